"Records: schema, atomic writing under kill -9, staleness, fingerprints, runs and their parts, carrying over."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avpapers.core import fingerprint as F
from avpapers.core.fingerprint import fingerprint, reached
from avpapers.suite.paper import load_paper, standing_papers
from avpapers.suite.records import (
    Record,
    find_records,
    read_record,
    scan_records,
    stale_reason,
    to_frame,
    validate,
    write_record,
)
from avpapers.suite.run import Run, config_of, run_experiments

ROOT = Path(__file__).parents[1]
MODULE = "avpapers.skiprnn.experiments"


def record(seed=0, **fields):
    given = {
        "paper": "skiprnn",
        "experiment": "adding",
        "tier": "smoke",
        "seed": seed,
        "module": MODULE,
        "config": {"length": 30},
    }
    return Record(**given | {"rows": [{"model": "lstm", "mse": 0.5}]} | fields)


def content(**fields):
    return record().model_dump(by_alias=True) | fields


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": -1}, "seed"),
        ({"tier": "huge"}, "smoke, cpu, night, gpu, paper"),
        ({"rows": [{"nested": [1]}]}, "rows.0.nested"),
        ({"rows": [{"accuracy": 7.0}]}, "accuracy: got 7, expected 0 to 1"),
        ({"rows": [{"r_learned": -1.5}]}, "r_learned: got -1.5"),
        ({"extra": 1}, "extra"),
        ({"schema": 99}, "schema: got 99"),
        ({"seconds": "long"}, "seconds"),
        ({"data": [{"name": "x"}]}, "data.0.checksum"),
    ],
)
def test_bad_records_name_the_field(change, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        validate(content(**change))


def test_missing_field():
    with pytest.raises(ValueError, match="module"):
        validate({k: v for k, v in content().items() if k != "module"})


def test_not_finite_becomes_null(tmp_path):
    path = write_record(record(rows=[{"mse": float("nan")}]), tmp_path)
    assert json.loads(path.read_text())["rows"] == [{"mse": None}]


WRITER = """
import sys
from avpapers.suite.records import Record, write_record
rows = [{"model": "m" * 50, "value": k} for k in range(3000)]
k = 0
while True:
    made = Record(paper="skiprnn", experiment="adding", tier="smoke", seed=k % 3, module="", config={"k": k}, rows=rows)
    write_record(made, sys.argv[1])
    k += 1
    print(k, flush=True)
"""


def test_kill_during_write_leaves_no_half_file(tmp_path):
    for round_ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2):
            writer.stdout.readline()  # it is in full swing
        time.sleep(0.003 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        found = find_records(tmp_path)  # reads and checks every file
        assert found and all(len(r.rows) == 3000 for r in found)


def test_no_space_or_permission_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_record(record(), tmp_path)
    before = path.read_text()

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(record(commit="new"), tmp_path)
    assert path.read_text() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_named_and_a_wrong_name_is_refused(tmp_path):
    path = write_record(record(), tmp_path)
    write_record(record(seed=1), tmp_path)
    os.replace(path, path.with_name("adding-smoke-seed2.json"))
    whole, damaged = scan_records(tmp_path)
    assert [r.seed for r in whole] == [1] and "adding-smoke-seed2.json" in damaged[0]
    with pytest.raises(ValueError, match="adding-smoke-seed2.json"):
        find_records(tmp_path)
    path.write_text(path.with_name("adding-smoke-seed1.json").read_text()[:100])
    with pytest.raises(ValueError, match="adding-smoke-seed0.json"):
        read_record(path)


# ---------------------------------------------------------------- what makes a record stale


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the library's code that may be changed; fingerprints are taken of it."
    copy = tmp_path / "avpapers"
    shutil.copytree(
        ROOT / "avpapers", copy, ignore=shutil.ignore_patterns("__pycache__", "files", "_modidx.py")
    )

    monkeypatch.setattr(F.avpapers, "__file__", str(copy / "__init__.py"))
    forget()
    yield copy
    forget()


def forget():
    reached.cache_clear()
    F.read_code.cache_clear()


def change(package, file, old, new):
    path = package / file
    text = path.read_text()
    assert old in text, (file, old)
    path.write_text(text.replace(old, new, 1))
    forget()


MODULES = [f"avpapers.{p}.{m}" for p in standing_papers() for m in ("experiments", "performance")]
EXPERIMENTS = [m for m in MODULES if m.endswith("experiments")]


@pytest.mark.parametrize(
    "file, old, new, stale",
    [
        ("core/random.py", "crc32", "adler32", EXPERIMENTS),  # every random stream
        ("core/stats.py", "0.95", "0.9", [m for m in MODULES if m.endswith("performance")]),
        (
            "core/benchmark.py",
            "int = 7",
            "int = 3",
            [m for m in MODULES if m.endswith("performance") or "exvo" in m],
        ),
        (
            "skiprnn/performance.py",
            "repeats: int = 10",
            "repeats: int = 11",
            ["avpapers.skiprnn.performance"],
        ),
        ("suite/run.py", "self.record.seed", "self.record.seed + 1", EXPERIMENTS),
        ("core/plotting.py", "import", "import re\nimport", []),
        ("suite/judge.py", "0.05", "0.06", []),
        ("skiprnn/claims.py", "SOLVED = 1 / 600", "SOLVED = 1 / 500", []),
        ("anp/data.py", "__all__", "# a comment\n__all__", []),
    ],
)
def test_the_right_records_become_stale(package, file, old, new, stale):
    before = {m: fingerprint(m) for m in MODULES}
    change(package, file, old, new)
    moved = {m for m in MODULES if fingerprint(m) != before[m]}
    assert set(stale) <= moved if stale else not moved, moved
    if file.startswith("skiprnn"):
        assert moved == set(stale)


def test_fresh_stale_and_carried():
    today = fingerprint(MODULE)
    assert stale_reason(record(fingerprint=today)) == "" and "code changed" in stale_reason(
        record(fingerprint="0" * 16)
    )
    line = {"from": "0" * 16, "to": today, "date": "2026-11-25"}
    assert stale_reason(record(fingerprint="0" * 16, carried=[line])) == ""
    assert "gone" in stale_reason(record(module="avpapers.nobody.experiments"))


# ---------------------------------------------------------------- runs


def test_finished_variants_are_not_run_again(tmp_path):
    ran = []

    def experiment(run, stop_at=None):
        for name in run.variants(["a", "b", "c"]):
            if name == stop_at:
                raise KeyboardInterrupt
            ran.append(name)
            run.row(model=name, value=len(ran))
            run.keep(name, [len(ran)])

    with pytest.raises(KeyboardInterrupt):
        experiment(Run(record(rows=[]), folder=tmp_path), "c")
    again = Run(record(rows=[]), folder=tmp_path)
    experiment(again)
    assert ran == ["a", "b", "c"] and [r["model"] for r in again.rows] == ["a", "b", "c"]
    assert [r["value"] for r in again.rows] == [1, 2, 3] and again.record.extras == {
        "a": [1],
        "b": [2],
        "c": [3],
    }


def test_variants_in_separate_processes_make_one_record(tmp_path):
    "Two runs of one variant each leave parts; the third puts them together."

    def experiment(run):
        for name in run.variants(["a", "b"]):
            run.row(model=name, value=1)

    runs = [Run(record(rows=[]), folder=tmp_path, only=only) for only in (["b"], ["a"], None)]
    for run in runs:
        experiment(run)
    assert [r.left_out for r in runs] == [["a"], [], []] and [r["model"] for r in runs[2].rows] == [
        "a",
        "b",
    ]


def test_checkpoints_of_two_variants_never_meet(tmp_path):
    run = Run(record(), folder=tmp_path)
    names = ["skip lstm 1e-4", "skip lstm 1e 4", "a" * 200, "a" * 201]
    assert len({run.checkpoint(n) for n in names}) == 4 and Run(record()).checkpoint("a") is None


def test_stand_ins_are_what_the_paper_does_not_call_real():
    run = Run(record(), real=["mnist"])
    run.data("mnist", "abc")
    run.data("digits")
    run.data("digits")
    assert [(d.name, d.stand_in) for d in run.record.data] == [("mnist", False), ("digits", True)]


@pytest.mark.parametrize("name", standing_papers())
def test_every_size_is_a_configuration(name):
    for experiment in load_paper(name, experiments=True).experiments.values():
        for size in experiment.sizes.values():
            assert json.dumps(config_of(size))


TIMED = ("train_seconds", "dense_ms", "event_ms", "torch_lstm_ms", "speed_up", "fraction_of_bound")


@pytest.mark.parametrize("paper", standing_papers())
def test_same_seed_same_bits(paper, tmp_path):
    "Every metric of every row, twice; times excepted."
    runs = []
    for name in ("one", "two"):
        records = run_experiments(paper, tier="smoke", seed=1, device="cpu", out=tmp_path / name)
        runs.append(
            [{k: v for k, v in row.items() if k not in TIMED} for r in records for row in r.rows]
        )
    assert runs[0] == runs[1] and len(runs[0]) > 20


def test_finished_experiments_are_not_run_again(tmp_path):
    def once(**more):
        return list(
            run_experiments(
                "skiprnn",
                tier="smoke",
                seed=0,
                device="cpu",
                out=tmp_path,
                only=["frequency"],
                **more,
            )
        )[0]

    first = once()
    path = tmp_path / first.name
    marked = json.loads(path.read_text())
    marked["seconds"] = 1234.5
    path.write_text(json.dumps(marked))
    assert once().seconds == 1234.5 and once(force=True).seconds != 1234.5


@pytest.mark.parametrize(
    "wrong, message",
    [({"tier": "huge"}, "tier"), ({"seed": -1}, "seed"), ({"only": ["nothing"]}, "experiment")],
)
def test_wrong_requests_raise_an_error(wrong, message, tmp_path):
    given = {"tier": "smoke", "seed": 0, "device": "cpu", "out": tmp_path} | wrong
    with pytest.raises(ValueError, match=message):
        list(run_experiments("skiprnn", **given))


def test_gpu_asked_but_absent(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="cuda"):
        list(run_experiments("skiprnn", tier="smoke", seed=0, device="cuda", out=tmp_path))


def test_rows_of_many_records_make_one_table():
    frame = to_frame([record(), record(seed=1)])
    assert list(frame.columns) == ["experiment", "tier", "seed", "model", "mse"] and len(frame) == 2


def test_remembered_fingerprints_end_with_a_change_of_any_module(package, tmp_path, monkeypatch):
    "Fresh stays fresh from the cache; a changed, damaged or unwritable cache never decides."
    from avpapers.suite import records as R

    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    now = record(fingerprint=fingerprint(MODULE))
    for _ in range(2):
        R._code_state.cache_clear()
        assert stale_reason(now) == ""
    monkeypatch.setattr(R, "fingerprint", None)  # from the cache alone
    assert stale_reason(now) == ""
    monkeypatch.undo()
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(F.avpapers, "__file__", str(package / "__init__.py"))
    change(package, "core/random.py", "crc32", "adler32")
    R._code_state.cache_clear()
    assert "code changed" in stale_reason(now)
    for text in ("", "[]", "{"):
        (tmp_path / "cache" / "fingerprints.json").write_text(text)
        assert "code changed" in stale_reason(now)
    R._code_state.cache_clear()


# ---------------------------------------------------------------- carrying over


def git(root, *words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(root), *name, *words], check=True, capture_output=True, text=True
    ).stdout


CARRY = """
import json, sys
from pathlib import Path
from avpapers.suite.carry import carry
from avpapers.suite.records import find_records, stale_reason
root = Path(sys.argv[1])
if len(sys.argv) > 2:
    print(json.dumps(carry(sys.argv[2], root=root, papers=["demo"])))
else:
    from avpapers.suite.run import run_experiments
    list(run_experiments("demo", tier="cpu", seed=0, device="cpu", out=root / "nbs" / "records"))
print(json.dumps([stale_reason(r) for r in find_records(root / "nbs" / "records", paper="demo")]))
"""


# an experiment that a changed number of the data does not reach
COUNTED = """

@paper.experiment(sizes=SIZES)
def counted(size: Size, run: Run) -> None:
    "Errors that are known."
    run.data("points")
    for k in range(3):
        run.row(role=str(k), mse=mean_square(torch.full((4, 1), float(k)), torch.zeros(4, 1)))
"""


@pytest.mark.slow
def test_a_renamed_function_carries_and_a_changed_number_does_not(tmp_path):
    from nbdev.export import nb_export

    from avpapers.suite.template import new_paper

    root = tmp_path / "clone"
    shutil.copytree(
        ROOT / "avpapers",
        root / "avpapers",
        ignore=shutil.ignore_patterns("__pycache__", "drawings.npz"),
    )
    shutil.copy(ROOT / "settings.ini", root)
    (root / "nbs" / "records").mkdir(parents=True)
    for path in new_paper(root, "demo"):
        nb_export(path, lib_path=root / "avpapers")
    (root / "avpapers" / "demo" / "__init__.py").touch()
    git(root.parent, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")

    def call(*words):
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "TQDM_DISABLE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", CARRY, str(root), *words],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    experiments, data, model = (
        root / "avpapers" / "demo" / f"{name}.py" for name in ("experiments", "data", "model")
    )
    experiments.write_text(experiments.read_text() + COUNTED)
    git(root, "commit", "-qam", "second experiment")
    assert call() == [["", ""]]
    for path in (model, experiments):
        path.write_text(path.read_text().replace("mean_square", "mean_squared_error"))
    data.write_text(data.read_text().replace("noise: float = 0.5", "noise: float = 0.51"))
    results, stale = call("HEAD")
    counted, lines = sorted(results, key=lambda line: line["record"])
    assert counted["result"] == "carried" and stale[0] == ""
    assert "before" in lines["result"] and "code changed" in stale[1]
    assert "worktree" not in git(root, "worktree", "list").replace(str(root), "")
