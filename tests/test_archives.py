"""Archives that would leave their folder, arrays with flipped bits, pickles that are programs."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from avpapers.data.archives import extract, load_array, load_object_array, safe_unpickle


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_members_that_leave_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as z:
        z.writestr("good", "ok")
        z.writestr(name, "evil")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as t:
        t.addfile(info := tarfile.TarInfo(name), io.BytesIO())
        assert info.size == 0
    for archive in ("bad.zip", "bad.tar.gz"):
        with pytest.raises(ValueError, match="leaves its folder"):
            extract(tmp_path / archive, tmp_path / "out")
    assert visible(tmp_path) == ["bad.tar.gz", "bad.zip"]


def test_links_in_archives(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as t:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(info)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as z:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    for archive in ("bad.tar", "bad.zip"):
        with pytest.raises(ValueError, match="links"):
            extract(tmp_path / archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_with_a_payload_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    nested = np.array({"x": [Payload()]}, dtype=object)
    np.save(tmp_path / "x.npy", nested, allow_pickle=True)
    for call in (
        lambda: safe_unpickle(pickle.dumps(Payload())),
        lambda: load_object_array((tmp_path / "x.npy").read_bytes()),
        lambda: safe_unpickle(b"cbuiltins\neval\n(V1\ntR."),
        lambda: safe_unpickle(b"cnumpy\nload\n(Vx\ntR."),
        lambda: safe_unpickle(b"c_codecs\nencode\n(Vx\nVzlib\ntR."),
    ):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            call()
    assert not (tmp_path / "ran").exists()


def test_plain_arrays_keep_their_type(tmp_path):
    for array in (np.arange(6, dtype="<i2").reshape(2, 3), np.array(["a", "bc"]), np.array(3.5)):
        np.save(tmp_path / "x.npy", array)
        back = load_array((tmp_path / "x.npy").read_bytes())
        assert back.dtype == array.dtype and np.array_equal(back, array)
    with pytest.raises(ValueError, match="npy"):
        load_array((tmp_path / "x.npy").read_bytes()[:20])
    with pytest.raises(ValueError, match="array of objects"):
        load_array(npy(np.array([{}], dtype=object)))


def npy(array, **how):
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def test_any_flipped_bit_of_a_header_is_a_value_error_or_an_array():
    whole = npy(np.arange(8, dtype=np.float16))
    for bit in range(8 * 128):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        try:
            assert load_array(bytes(spoiled), name="f.npy").size >= 0
        except ValueError as error:
            assert "f.npy" in str(error)


class Forged:
    def __init__(self, kind, content):
        self.kind, self.content = kind, content

    def __reduce__(self):
        make = np.zeros(1).__reduce__()[0]
        return make, (np.ndarray, (0,), b"b"), (1, (1,), self.kind, False, self.content)


@pytest.mark.parametrize(
    "kind",
    [np.dtype("O"), np.dtype([("x", "O")]), np.dtype([("x", "f8")]), np.dtype("M8[s]")],
    ids=str,
)
def test_forged_addresses_are_refused(kind):
    for protocol in range(2, 6):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            safe_unpickle(pickle.dumps(Forged(kind, b"A" * kind.itemsize), protocol))


@pytest.mark.parametrize(
    "data",
    [
        # ndarray called with a buffer
        b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(S'O8'\ntRS'AAAAAAAA'\ntR.",
        # a plain type that is told to hold objects: plain here
        b"cnumpy\ndtype\n(S'f8'\ntR(K\x03S'|'\nNNNK\xffK\xffK?tb.",
        b"cnumpy\nndarray\n.",
        b"",
        b"N",
        b"(lp0\nh\x00a.",
        pickle.dumps({1: [2]})[:-3],
    ],
    ids=["buffer", "flags", "bare class", "empty", "cut", "itself", "cut dict"],
)
def test_odd_pickles_give_plain_values_or_are_refused(data):
    try:
        assert safe_unpickle(data) == np.dtype("f8")
    except pickle.UnpicklingError as error:
        assert "refused" in str(error)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3).T,
        np.array(["a", "bc"]),
        np.array([True, False]),
        np.array(2.5),
        np.arange(4, dtype=">i2"),
        np.zeros((0, 3)),
        np.array([b"x"]),
        np.array([1 + 2j]),
    ],
    ids=repr,
)
def test_pickled_arrays_come_back_as_they_were(array):
    for protocol in range(2, 6):
        back = safe_unpickle(pickle.dumps({"a": [array, array]}, protocol))["a"][1]
        assert (
            back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)
        )
        assert back.flags.writeable and back.flags.f_contiguous == array.flags.f_contiguous
