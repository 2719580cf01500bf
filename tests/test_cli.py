"The command line: what it refuses, with which sentence, and what it says when a run is stopped or small."

import errno
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch

import avpapers
from avpapers import cli
from avpapers.suite import doctor, ledger, project, runner
from avpapers.suite import run as runs
from avpapers.suite.runner import Result

ROOT = Path(__file__).parents[1]


@pytest.fixture
def call(monkeypatch, capsys):
    "Call `avpapers` in this process; the exit code and what it printed."

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["avpapers", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out + printed.err

    monkeypatch.chdir(ROOT)
    return call


REFUSED = {
    "reproduce anp --jobs 0": "jobs: got 0",
    "reproduce anp --jobs -1": "jobs: got -1",
    "reproduce anp --seeds 0": "seeds: got 0",
    "reproduce anp --seeds 99999999999": "seeds: got 99999999999",
    "reproduce anp --device tpu": "device: got 'tpu'",
    "reproduce anp --tier big": "tier: got 'big'",
    "reproduce nobody": "paper: got 'nobody'",
    "reproduce anp --tier smoke --save": "save: got tier smoke",
    "run anp --tier big": "tier: got 'big'",
    "run anp --device tpu": "device: got 'tpu'",
    "run anp. --tier smoke": "experiment: got ''",
    "run anp.nothing --tier smoke": "experiment: got 'nothing'",
    "run suite --tier smoke": "paper: got 'suite'",
    "run anp --tier smoke --seed -1": "seed: got -1",
    "run anp --tier smoke --seed 99999999999999999999": "seed: got 9999",
    "run anp --tier smoke --out /proc/x": "out: got /proc/x",
    "report --tier big": "tier: got 'big'",
    "report --tier smoke --save": "save: got --save with --tier smoke",
    "report nobody": "paper: got 'nobody'",
    "docs --tier big": "tier: got 'big'",
    "docs --engine hugo": "engine: got 'hugo'",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line_before_anything_starts(call, command):
    start = time.monotonic()
    code, said = call(*command.split())
    assert code == 2 and said.count("\n") == 1 and REFUSED[command] in said and "expected" in said
    assert time.monotonic() - start < 60


def test_out_that_is_a_file(call, tmp_path):
    (tmp_path / "file").write_text("precious")
    code, said = call("run", "anp", "--tier", "smoke", "--out", str(tmp_path / "file"))
    assert code == 2 and "out: got" in said and (tmp_path / "file").read_text() == "precious"


def test_gpu_tier_without_gpu(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, said = call("run", "anp", "--tier", "gpu")
    assert code == 2 and "device: got no GPU for tier gpu" in said
    code, said = call("reproduce", "anp", "--tier", "gpu")
    assert code == 2 and "cuda" in said


@pytest.mark.parametrize("text", ['{"claims": [', "[]", ""])
def test_damaged_ledger_is_named(call, monkeypatch, tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    monkeypatch.setattr(project, "records_folder", lambda: tmp_path)
    code, said = call("list")
    assert code == 2 and "ledger.json: got" in said and said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_errors_of_the_system_are_one_line(call, monkeypatch, number):
    def fail(*given, **named):
        raise OSError(number, os.strerror(number), "_runs/x.json")

    monkeypatch.setattr(ledger, "ledger", fail)
    code, said = call("report", "anp")
    assert (
        code == 2
        and "_runs/x.json" in said
        and os.strerror(number) in said
        and said.count("\n") == 1
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so(call, monkeypatch, tmp_path, number):
    def endless(*given, **named):
        os.kill(os.getpid(), number)
        time.sleep(30)
        yield

    monkeypatch.setattr(runs, "run_experiments", endless)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, said = call("run", "anp", "--tier", "smoke", "--out", str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 130 and "stopped" in said and said.count("\n") == 1


def test_smoke_tells_the_time_and_no_verdicts(call, monkeypatch):
    made = [
        Result("anp/a", "ok", 3.0),
        Result("anp/b", "skipped"),
        Result("anp/c", "failed", 1.0, "why"),
    ]
    monkeypatch.setattr(runner, "run_all", lambda *given, **named: made)
    code, said = call("reproduce", "anp", "--tier", "smoke", "--no-site")
    assert (
        code == 1
        and "1 ran, 1 were done before, 1 failed; 4 s" in said
        and "failed: anp/c: why" in said
    )
    assert "reproduced" not in said and "committed" not in said


def test_version(call):
    assert call("--version") == (0, f"avpapers {avpapers.__version__}\n")


def test_doctor_keeps_the_brackets_of_extras(call, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "")
    code, said = call("doctor")
    assert "pip install 'avpapers[suite]'" in said and code == 1
    extras = [line for line in requires("avpapers") or () if "extra" in line]
    assert len(extras) > 10 and "smalldocs" in said


# ---------------------------------------------------------------- which clone


def clone(folder):
    (folder / "nbs/records").mkdir(parents=True)
    (folder / "settings.ini").write_text("[DEFAULT]\nuser = other\n")
    return folder


def test_another_clone_is_refused(call, monkeypatch, tmp_path):
    monkeypatch.chdir(clone(tmp_path))
    for command in ("list", "report", "reproduce anp", "docs"):
        code, said = call(*command.split())
        assert code == 2 and "project: got the clone" in said and "pip install -e" in said


def test_no_clone(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, said = call("reproduce", "anp")
    assert code == 2 and "project: got" in said and "git clone" in said


@pytest.mark.slow
def test_a_wheel_carries_the_records(tmp_path):
    "A plain install, away from any clone, lists the papers and judges their claims."
    source, place = tmp_path / "source", tmp_path / "installed"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if names.returncode:
        pytest.skip("needs a clone with git")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.endswith(".ipynb"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    unpack = [
        sys.executable,
        "-m",
        "zipfile",
        "-e",
        next(map(str, tmp_path.glob("*.whl"))),
        str(place),
    ]
    subprocess.run(unpack, check=True)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(place), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ),
    }
    (tmp_path / "away").mkdir()

    def ask(*words):
        command = [sys.executable, "-m", "avpapers.cli", *words]
        return subprocess.run(
            command, cwd=tmp_path / "away", env=env, capture_output=True, text=True
        )

    listed, judged = ask("list"), ask("report", "anp", "--json")
    assert listed.returncode == judged.returncode == 0, listed.stderr + judged.stderr
    assert "complete" in listed.stdout and (place / "avpapers/records/ledger.json").exists()
    book = ledger.ledger(["anp"], ROOT / "nbs/records")
    assert json.loads(judged.stdout)["claims"] == json.loads(json.dumps(book))["claims"]
