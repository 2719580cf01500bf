"Records: schema, atomic writing under kill -9, staleness."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from avpapers.suite import records as R
from avpapers.suite.records import (
    Record,
    find_records,
    fingerprint,
    read_record,
    stale_reason,
    validate,
    write_record,
)


def record(seed=0, **fields):
    return Record("skiprnn", "adding", "smoke", seed, ["SR-3"], {"length": 30}, rows=[{"model": "lstm", "mse": 0.5}], **fields)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": -1}, "seed is -1"),
        ({"tier": "huge"}, "smoke, cpu, gpu, paper"),
        ({"rows": [{"nested": [1]}]}, "not a flat dictionary"),
        ({"extra": 1}, "extra is not a field"),
        ({"schema": 99}, "schema is 99"),
        ({"seconds": "long"}, "seconds is 'long'"),
        ({"data": [{"name": "x"}]}, "lacks name, checksum or stand_in"),
    ],
)
def test_bad_records_name_the_field(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        validate(asdict(record()) | change)


def test_missing_field():
    content = asdict(record())
    del content["versions"]
    with pytest.raises(ValueError, match="versions is missing"):
        validate(content)


def test_not_finite_becomes_null(tmp_path):
    bad = record()
    bad.rows = [{"mse": float("nan")}]
    path = write_record(bad, tmp_path)
    assert json.loads(path.read_text())["rows"] == [{"mse": None}]


WRITER = """
import sys
from avpapers.suite.records import Record, write_record
rows = [{"model": "m" * 50, "value": k} for k in range(3000)]
k = 0
while True:
    write_record(Record("skiprnn", "adding", "smoke", k % 3, [], {"k": k}, rows=rows), sys.argv[1])
    k += 1
    print(k, flush=True)
"""


def test_kill_during_write_leaves_no_half_file(tmp_path):
    for round_ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            writer.stdout.readline()  # it is in full swing
        time.sleep(0.003 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        found = find_records(tmp_path)  # reads and checks every file
        assert found and all(len(r.rows) == 3000 for r in found)


def test_fingerprint_ignores_comments_and_docstrings_only(tmp_path, monkeypatch):
    package = tmp_path / "avpapers_probe"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def mark(text):
        (package / "module.py").write_text(text)
        fingerprint.cache_clear()
        return fingerprint("avpapers_probe.module")

    first = mark('def f(x):\n    "Doc."\n    return x + 1\n')
    assert first == mark('# a comment\ndef f(x):\n\n    "Another doc."\n    return x + 1\n')
    assert first != mark("def f(x):\n    return x + 2\n")
    fingerprint.cache_clear()


def test_fingerprint_follows_imports():
    tree_of = Path(R.__file__).parents[1] / "skiprnn"
    assert (tree_of / "experiments.py").exists()
    assert fingerprint("avpapers.skiprnn.experiments") != fingerprint("avpapers.skiprnn.model")


def test_stale_code_and_data_are_told():
    fresh = record(fingerprint=fingerprint("avpapers.skiprnn.experiments"))
    assert stale_reason(fresh) == ""
    assert "code changed" in stale_reason(record(fingerprint="0" * 16))
    from avpapers.skiprnn.data import CHECKSUMS

    name = next(n for n, c in CHECKSUMS.items() if c != "generated")
    fresh.data = [{"name": name, "checksum": "other", "stand_in": False}]
    assert f"data {name} changed" in stale_reason(fresh)


def test_unreadable_record_names_its_path(tmp_path):
    path = write_record(record(), tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="adding-smoke-seed0.json"):
        read_record(path)


def test_no_space_or_permission_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_record(record(), tmp_path)
    before = path.read_text()

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(record(commit="new"), tmp_path)
    assert path.read_text() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_difference_is_taken_seed_by_seed():
    rows = {0: (0.5, 0.4), 1: (0.7, 0.6), 2: (0.2, 0.1)}
    frame = R.table(Record("skiprnn", "adding", "smoke", s, [], {}, rows=[{"role": r, "mse": v} for r, v in zip("ab", pair, strict=True)]) for s, pair in rows.items())
    found = R.difference(frame, "mse", "a", "b")
    assert found.value == pytest.approx(0.1) and found.high - found.low == pytest.approx(0, abs=1e-9)


def test_only_the_papers_own_tier_has_its_setting():
    from avpapers.core.stats import mean_interval
    from avpapers.suite.claims import outcome_of

    runs = [replace(record(s), tier=t, experiment=e, data=[{"name": e, "checksum": "", "stand_in": e == "toy"}]) for s, (t, e) in enumerate((("paper", "own"), ("cpu", "toy")))]
    estimate = mean_interval([1.0, 2.0])
    own, toy = outcome_of(runs, "own", estimate, []), outcome_of(runs, ("own", "toy"), estimate, [])
    assert own.same_setting and not own.stand_in and not toy.same_setting and toy.stand_in
