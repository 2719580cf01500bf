"Tables, lists and files of a list: what is read alike and what is refused."

import csv
import io
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.core import tables as T

WRITTEN = [["id", "age", "note"], ["[01]", "30.5", "a, b; c"], ["[02]", "", 'two\nlines "q"']]


def saved(file, rows, separator=",", encoding="utf-8", newline="\n"):
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator=newline).writerows(rows)
    file.write_bytes(stream.getvalue().encode(encoding))
    return file


def table(tmp_path, text, **options):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return T.read_table(tmp_path / "t.csv", **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_one_table_written_in_many_ways(encoding, separator, newline, tmp_path):
    file = saved(tmp_path / "t.csv", WRITTEN, separator, encoding, newline)
    frame = T.read_table(file, required=("id", "age"), key=("id",))
    assert frame.to_numpy().tolist() == WRITTEN[1:]
    assert list(frame.index) == ["t.csv, line 2", "t.csv, line 3"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.text("a,;\t\"' \n1", max_size=4), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(",;\t"),
)
def test_cells_come_back_as_they_were_written(tmp_path_factory, rows, separator):
    file = tmp_path_factory.mktemp("t") / "t.csv"
    saved(file, [["x", "y", "z"], *rows], separator)
    assert T.read_table(file, required=("x", "y", "z")).to_numpy().tolist() == rows


def test_lines_are_counted_in_the_file(tmp_path):
    frame = table(tmp_path, 'a,b\n\n"1\n2",x\n\n3,y\n', required=("a", "b"))
    assert list(frame.index) == ["t.csv, line 3", "t.csv, line 6"]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", {}, "t.csv: got no rows"),
        ("a,b\n", {}, "t.csv: got no rows"),
        ("a,b\n1,2\n3\n", {}, "line 3: got 1 cells, expected 2"),
        ("a;b\n1;2\n3;4;5\n", {"required": ("a",)}, r"line 3: got 3 cells, .*\(1 of 2 rows"),
        ("a,b,a\n1,2,3\n", {}, "got a as the name of several columns"),
        ("a,b\n1,2\n", {"required": ("b", "c", "d")}, "got columns a, b, expected c, d too"),
        ("a|b\n1|2\n", {"required": ("a", "b")}, r"got columns a\|b, expected a, b too"),
        ('a,b\n1,"2\n', {}, "line 2: got unexpected end of data"),
        ("a,b\n1,2\n 1 ,3\n", {"key": ("a",)}, "line 3: got a '1' again, .* line 2 already"),
        (
            "a,b\nx,\n,y\n",
            {"filled": ("a", "b")},
            "line 3, a: got a gap, .* also in t.csv, line 2, b",
        ),
        ("a,b\n1,2\n,3\n", {"key": ("a",)}, "t.csv, line 3, a: got a gap, expected text in a$"),
        (b"a,b\n1,\xff\n", {}, "line 2: got bytes that are not utf-8"),
        (b"a,b\n1,\0\n", {}, "t.csv: got zero bytes"),
        ("a;b,c\n1;2,3\n", {}, "commas and semicolons divide equally well"),
    ],
)
def test_refused(text, options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        table(tmp_path, text, **options)


def test_rows_that_are_there_twice(tmp_path):
    T.check_rows_once(table(tmp_path, "a,b\n1,2\n1,3\n"))
    frame = table(tmp_path, ",a,b\n7,1,2\n8,3,4\n9,1,2\n")
    for rows in (frame, pd.concat([frame[:1], frame[:1]])):
        with pytest.raises(ValueError, match=r"got the row \('1', '2'\) again, .* line 2 already"):
            T.check_rows_once(rows)


def test_two_separators_of_which_one_fits_all_rows(tmp_path):
    frame = table(tmp_path, "a;b,c\n1;2,3\n1,5;2,3\n")
    assert list(frame.columns) == ["a", "b,c"]


def test_a_key_of_two_columns(tmp_path):
    text = "who,what,x\nA,1,5\na,2,5\nB,1,5\n"
    assert len(table(tmp_path, text, key=("who", "what"), normalize=str.lower)) == 3
    with pytest.raises(ValueError, match=r"got who, what \('a', '1'\) again"):
        table(tmp_path, text + "a,1,6\n", key=("who", "what"), normalize=str.lower)


def test_missing_file_says_what_to_do(tmp_path):
    for read in (T.read_text, T.read_lines, T.read_json, T.read_table):
        with pytest.raises(FileNotFoundError, match="no.csv: got no such file in .*; fetch it"):
            read(tmp_path / "no.csv", hint="fetch it")


def test_latin_1_where_it_is_named():
    assert T.read_text("x", content=b"caf\xe9", encoding="latin-1") == "caf\xe9"
    assert T.read_text("x", content="caf\xe9".encode("utf-8-sig"), encoding="latin-1") == "caf\xe9"


def test_only_line_ends_divide_lines(tmp_path):
    (tmp_path / "l.txt").write_text("a\x85b\u2028c\r\n\n d ", encoding="utf-8", newline="")
    assert T.read_lines(tmp_path / "l.txt") == {
        "l.txt, line 1": "a\x85b\u2028c",
        "l.txt, line 3": "d",
    }


# Numbers


@pytest.mark.parametrize(
    ("cell", "value"), [("1", 1.0), (" -2.50 ", -2.5), (".5", 0.5), ("3.", 3.0), ("+1E-3", 0.001)]
)
def test_numbers(cell, value):
    assert T.as_numbers(pd.DataFrame({"x": [cell]}, dtype=str)).tolist() == [[value]]


@pytest.mark.parametrize(
    "cell", ["inf", "-Infinity", "1e400", "1,5", "1 000", "1_0", "x", "0x1", "--1"]
)
def test_what_is_no_number(cell):
    frame = pd.DataFrame({"y": ["1", cell]}, index=["a.csv, line 2", "a.csv, line 3"], dtype=str)
    for gaps in (False, True):
        with pytest.raises(
            ValueError, match="^a.csv, line 3, y: got '.*', expected a finite number"
        ):
            T.as_numbers(frame, gaps=gaps)


@pytest.mark.parametrize("cell", ["", " ", "NA", "n/a", "NaN", "null"])
def test_gaps(cell):
    frame = pd.DataFrame({"x": ["1", cell], "y": [cell, "2"]}, dtype=str)
    found = T.as_numbers(frame, gaps=True, whole=True, low=0)
    assert math.isnan(found[0, 1]) and math.isnan(found[1, 0]) and np.isfinite(found).sum() == 2
    with pytest.raises(ValueError, match=r"^0, y: got .*; also in 1, x$"):
        T.as_numbers(frame)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"whole": True}, "got '1.5', expected a whole number"),
        ({"low": 2}, "got '1.5', expected a finite number of at least 2"),
        ({"low": 0, "high": 1}, "got '1.5', expected a finite number from 0 to 1"),
    ],
)
def test_ranges(options, says):
    with pytest.raises(ValueError, match=says):
        T.as_numbers(pd.DataFrame({"x": ["1.5"]}, dtype=str), **options)


def test_columns_of_numbers():
    frame = pd.DataFrame(
        {"file": ["a", "b"], "x": ["1", "b"], "gap": ["", "NA"], "text": ["", "b"]}, dtype=str
    )
    assert T.number_columns(frame) == ["x", "gap"]


# Files


def test_files_in_any_letter_case(tmp_path):
    for name in ("b.WAV", "a.wav", ".c.wav", "d.mp3"):
        (tmp_path / name).touch()
    (tmp_path / "e.wav").mkdir()
    (tmp_path / "e.wav/f.Wav").touch()
    assert [f.name for f in T.files_of(tmp_path, (".wav",))] == ["a.wav", "b.WAV"]
    deep = T.files_of(tmp_path, (".WAV",), deep=True)
    assert [f.name for f in deep] == ["a.wav", "b.WAV", "f.Wav"]
    assert T.files_of(tmp_path / "nowhere", (".wav",)) == []


def test_listed_files(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("x/a.JPG", "b.jpg"):
        (tmp_path / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = T.listed_files(tmp_path, ["b.jpg", "x/a.jpg"], "pictures")
    assert list(found.items()) == [("b.jpg", "b.jpg"), ("x/a.jpg", "x/a.JPG")]
    names = ["b.jpg", *(f"{k}.jpg" for k in range(4))]
    says = "pictures: got 1 of 5, without 0.jpg, 1.jpg, 2.jpg and 1 more"
    with pytest.warns(UserWarning, match=says):
        assert T.listed_files(tmp_path, names, "pictures", most_missing=0.8) == {"b.jpg": "b.jpg"}
    with pytest.raises(FileNotFoundError, match=f"{says}, expected 50% of them"):
        T.listed_files(tmp_path, names, "pictures", most_missing=0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_bad_share(share, tmp_path):
    with pytest.raises(ValueError, match="most_missing: got"):
        T.listed_files(tmp_path, ["a"], "files", most_missing=share)


def test_nothing_at_all_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="got 0 of 1"):
        T.listed_files(tmp_path, ["a"], "files", most_missing=1)
