"The runner: parallel, resumable, with time limits; a killed worker or suite leaves the records of an undisturbed run."

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import nbformat
import psutil
import pytest

from avpapers.suite import cluster, runner
from avpapers.suite.project import Workspace
from avpapers.suite.runner import Job, Result, keep, parameters_of, plan, run_all

ROOT = Path(__file__).parents[1]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}

EXPERIMENT = """
import json, os, time, pathlib
time.sleep(1.5)
out = pathlib.Path(record_path) / "toy" / f"sum-{tier}-seed{seed}.json"
out.parent.mkdir(parents=True, exist_ok=True)
tmp = out.with_suffix(f".{os.getpid()}.tmp")
tmp.write_text(json.dumps({"seed": seed, "value": sum(i * i for i in range(1000 + seed))}))
os.replace(tmp, out)
"""


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    if "seed" in sources[0] or "tier" in sources[0]:
        cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)


def toy(root):
    "A project with one toy paper: an overview, an experiment, a results page."
    folder = root / "nbs" / "toy"
    folder.mkdir(parents=True)
    (root / "settings.ini").write_text("[DEFAULT]\n")
    nbformat.write(notebook("1 + 1"), folder / "00_overview.ipynb")
    parameters = 'tier = "smoke"\nseed = 0\nrecord_path = ""'
    nbformat.write(notebook(parameters, EXPERIMENT), folder / "04_experiments.ipynb")
    results = "import pathlib\nlen(list(pathlib.Path(record_path).rglob('*.json')))"
    nbformat.write(
        notebook('tier = "smoke"\nrecord_path = ""', results), folder / "05_results.ipynb"
    )
    return root


@pytest.fixture
def project(tmp_path):
    return toy(tmp_path)


def states(project):
    return {
        p.relative_to(project / "_runs/smoke/state"): json.loads(p.read_text())["status"]
        for p in (project / "_runs/smoke/state").rglob("*.json")
    }


def values(project):
    return {
        p.name: json.loads(p.read_text())
        for p in sorted((project / "_runs/smoke/records").rglob("*.json"))
    }


def test_plan_puts_results_last(project):
    jobs = plan(["toy"], Workspace(project, "smoke"), seeds=2)
    assert [j.key for j in jobs] == [
        "toy/04_experiments-seed0",
        "toy/04_experiments-seed1",
        "toy/00_overview",
        "toy/05_results",
    ]


@pytest.mark.parametrize(
    "bad, message",
    [({"tier": "huge"}, "tier"), ({"seeds": 0}, "seeds"), ({"papers": ["none"]}, "no notebooks")],
)
def test_bad_requests_fail_before_any_kernel(project, bad, message):
    given = {"papers": ["toy"], "tier": "smoke", "seeds": 1} | bad
    with pytest.raises(ValueError, match=message):
        plan(given["papers"], Workspace(project, given["tier"]), seeds=given["seeds"])


def test_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="learning_rate"):
        parameters_of(notebook("tier = 'smoke'\nlearning_rate = 1"))


@pytest.mark.slow
def test_failure_is_kept_and_stops_nothing(project, monkeypatch):
    "A notebook that raises, and a disk that is full for another: the rest is made, and only these two run again."

    def full(job, space, result, mark):
        if job.key == "toy/00_overview":
            raise OSError(28, "No space left on device", "x.json")
        keep(job, space, result, mark)

    space = Workspace(project, "smoke")
    nbformat.write(notebook("print('before')", "1/0"), project / "nbs/toy/01_data.ipynb")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "keep", full)
        results = {r.key: r for r in run_all(plan(["toy"], space), space, workers=2)}
    failed, unkept = results.pop("toy/01_data"), results.pop("toy/00_overview")
    assert failed.status == "failed" and "ZeroDivisionError" in failed.error
    assert unkept.status == "failed" and "No space left" in unkept.error
    assert len(results) == 2 and {r.status for r in results.values()} == {"ok"}
    assert len(values(project)) == 1
    assert "before" in space.log("toy/01_data").read_text()
    assert "ZeroDivisionError" in (space.notebooks / "toy/01_data.ipynb").read_text()
    again = {r.key: r.status for r in run_all(plan(["toy"], space), space, workers=1)}
    assert again.pop("toy/01_data") == "failed" and again.pop("toy/00_overview") == "ok"
    assert set(again.values()) == {"skipped"}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "",
        "null",
        '{"status": "ok"}',
        '{"status": "ok", "fingerprint": 1, "records": 3}',
    ],
)
def test_a_damaged_state_means_not_done(project, text):
    space = Workspace(project, "smoke")
    job = plan(["toy"], space)[0]
    keep(job, space, Result(job.key, "ok", notebook="{}"), "mark")
    space.state(job.key).write_text(text)
    assert not runner.is_done(job, space)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_below_one_are_refused(project, workers):
    space = Workspace(project, "smoke")
    with pytest.raises(ValueError, match="jobs: got"):
        run_all(plan(["toy"], space), space, workers=workers)
    assert not space.base.exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_run(project):
    space = Workspace(project, "smoke")
    (project / "_runs").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="_runs: got"):
        run_all(plan(["toy"], space), space)


def test_a_scheduler_that_does_not_answer():
    with pytest.raises(ValueError, match="scheduler: got 'tcp://127.0.0.1:9'"):
        cluster.connect("tcp://127.0.0.1:9", timeout=1)


def refuses_strangers(port):
    "Does a port speak TLS, and hang up on whoever shows no certificate?"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        try:
            secret = context.wrap_socket(line)
        except ssl.SSLError:
            return False  # not TLS
        try:
            secret.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return not secret.recv(64)
        except (ssl.SSLError, ConnectionError):
            return True


class Look(runner.Lines):
    "Knocks at every port of the cluster while an experiment runs."

    def __init__(self):
        super().__init__()
        self.answers = {}

    def cell(self, event):
        if event["cell"] == 2 and event["key"].startswith("toy/04"):
            # the loop that calls here must stay free to answer
            threading.Thread(target=self.knock).start()

    def knock(self):
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            if "ipykernel" not in " ".join(process.cmdline()):
                for c in process.net_connections("inet"):
                    if c.status == psutil.CONN_LISTEN:
                        self.answers[c.laddr.port] = refuses_strangers(c.laddr.port)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The toy paper after a run of all its notebooks, what its ports answered, and the warnings."
    root, look = toy(tmp_path_factory.mktemp("finished")), Look()
    space = Workspace(root, "smoke")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        results = run_all(plan(["toy"], space), space, workers=1, show=look)
    assert {r.status for r in results} == {"ok"}
    return root, look.answers, [str(w.message) for w in said]


def test_no_stranger_gets_in_while_the_suite_runs(finished):
    """Every port of the cluster wants a certificate in mid-run.

    A kernel has one port more, the pipe for what its child processes print, which takes only messages with its secret.
    """
    _, answers, said = finished
    assert len(answers) >= 3 and all(answers.values()), answers  # scheduler, nanny, worker
    assert not [text for text in said if "already in use" in text]


def test_second_run_does_nothing(finished):
    root = finished[0]
    space = Workspace(root, "smoke")
    jobs, start = plan(["toy"], space), time.monotonic()
    assert {r.status for r in run_all(jobs, space, workers=1)} == {"skipped"}
    assert time.monotonic() - start < 2
    nb = nbformat.read(root / "nbs/toy/00_overview.ipynb", 4)
    nb.cells[0].source = "2 + 2"
    nbformat.write(nb, root / "nbs/toy/00_overview.ipynb")
    status = {r.key: r.status for r in run_all(jobs, space, workers=1)}
    assert status.pop("toy/00_overview") == "ok" and set(status.values()) == {"skipped"}


def test_a_client_without_the_certificate_is_refused():
    from distributed import Client

    with cluster.local_cluster(1) as made:
        assert made.scheduler_address.startswith("tls://127.0.0.1:") and not made.scheduler.services
        for address in (made.scheduler_address, made.scheduler_address.replace("tls", "tcp")):
            with pytest.raises((OSError, TypeError, ValueError)):
                Client(address, timeout=1)


def test_time_limit_holds_for_the_whole_notebook():
    slow = notebook("import time\ntime.sleep(3)", "time.sleep(60)")
    payload = {
        "key": "slow",
        "notebook": nbformat.writes(slow),
        "parameters": {},
        "inputs": {},
        "limit_seconds": 8,
        "records": None,
    }
    start = time.monotonic()
    result = runner.run_job(payload, lambda event: None)
    assert (
        result["status"] == "failed"
        and "Timeout: got a notebook still running at its time limit, 8 s" in result["error"]
        and time.monotonic() - start < 40
    )


@pytest.mark.slow
def test_two_workers_one_killed(project):
    "Jobs on a cluster of two real worker processes with no shared folder; one is killed in mid-run, and all end well."
    pytest.importorskip("distributed")
    shell = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    scheduler = subprocess.Popen(
        shell + ["--scheduler-file", str(project / "s.json")], stderr=subprocess.DEVNULL
    )
    workers = []
    try:
        deadline = time.monotonic() + 30
        while not (project / "s.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads((project / "s.json").read_text())["address"]
        for name in ("one", "two"):
            folder = project / name
            folder.mkdir()
            start = [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
                "--name",
                name,
                "--local-directory",
                str(folder),
            ]
            workers.append(
                subprocess.Popen(
                    start,
                    cwd=folder,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )

        class KillOne(runner.Lines):
            killed = False

            def cell(self, event):
                if not self.killed and event["key"].endswith("seed1") and event["cell"] == 2:
                    self.killed = True
                    victim = next(
                        w
                        for w in workers
                        if any(
                            "ipykernel" in " ".join(c.cmdline())
                            for c in psutil.Process(w.pid).children()
                        )
                    )
                    for child in psutil.Process(victim.pid).children(recursive=True):
                        child.kill()
                    victim.kill()

        show, space = KillOne(), Workspace(project, "smoke")
        results = run_all(plan(["toy"], space, seeds=4), space, scheduler=address, show=show)
        assert show.killed and [r.status for r in results].count("ok") == 6
        assert sum(w.poll() is None for w in workers) == 1
        assert len(values(project)) == 4
    finally:
        for process in (*workers, scheduler):
            process.kill()


DRIVER = """
import sys, pathlib
from avpapers.suite import runner
from avpapers.suite.project import Workspace
if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    runner.stop_on_signals()
    space = Workspace(root, "smoke")
    runner.run_all(runner.plan(["toy"], space, seeds=3), space, workers=2)
"""


def test_force_removes_what_the_jobs_had_made(project):
    "A number changed by hand is not read back: the record of every job goes first."
    space = Workspace(project, "smoke")
    folder = space.records / "toy"
    folder.mkdir(parents=True)
    names = ("sum-smoke-seed0", "sum-smoke-seed1", "performance-smoke-seed0", "sum-cpu-seed0")
    for name in names:
        (folder / f"{name}.json").write_text("{}")
    jobs = [
        Job("toy/04_experiments.ipynb", "smoke", 0),
        Job("toy/05_results.ipynb", "smoke", stage=1),
    ]
    assert "sum-smoke-seed0" in [p.stem for p in runner.forget(jobs, space)]
    left = {p.stem for p in folder.iterdir()}
    assert "sum-smoke-seed0" not in left and {"sum-smoke-seed1", "sum-cpu-seed0"} <= left


@pytest.mark.slow
def test_killed_suite_ends_with_the_same_records(project, tmp_path):
    "kill -9 at random moments, then let it finish: the records are those of an undisturbed run."
    script, undisturbed = tmp_path / "driver.py", tmp_path / "undisturbed"
    script.write_text(DRIVER)
    shutil.copytree(project / "nbs", undisturbed / "nbs")
    (undisturbed / "settings.ini").write_text("[DEFAULT]\n")

    def start(root):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, script, root], **quiet)

    assert start(undisturbed).wait(timeout=200) == 0
    moments = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM):
        done = len(states(project))
        driver, deadline = start(project), time.monotonic() + 60
        while len(states(project)) == done and time.monotonic() < deadline:
            time.sleep(0.05)  # the first job of this round has ended, others are running
        time.sleep(moments.uniform(0, 0.5))
        assert driver.poll() is None, "the suite ended before it was killed"
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        driver.wait(timeout=60)
        gone, alive = psutil.wait_procs(family, timeout=40)
        assert not alive, "processes outlived the suite"
    assert start(project).wait(timeout=200) == 0
    assert values(project) == values(undisturbed) and len(values(project)) == 3
    assert set(states(project).values()) == {"ok"} and len(states(project)) == 5


def test_what_a_killed_job_leaves_is_removed(tmp_path, monkeypatch):
    "The folder of a dead process goes, that of a living one stays; a job's kernel lies inside."
    monkeypatch.setattr(runner.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(runner.tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"avpapers-job-{pid}-abc").mkdir()
        (tmp_path / f"avpapers-job-{pid}-abc" / "kernel.json").write_text("{}")
    seen = []
    payload = {"key": "x", "parameters": {}, "inputs": {}, "limit_seconds": 60, "records": None}
    payload["notebook"] = nbformat.writes(notebook("2 + 2"))

    def look(event):
        seen.extend(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))

    assert runner.run_job(payload, look)["status"] == "ok"
    assert [p.name for p in tmp_path.iterdir()] == [f"avpapers-job-{os.getpid()}-abc"]
    assert any(name.endswith("kernel.json") for name in seen)
    assert all(name.startswith(f"avpapers-job-{os.getpid()}-") for name in seen)


@pytest.mark.parametrize(
    "code, said",
    [
        (
            "raise RuntimeError('CUDA error: no memory\\n\\nCompile with X.')",
            "CUDA error: no memory",
        ),
        ("raise ValueError('\\n---\\nfirst: got 1\\nlast')", "ValueError: first: got 1"),
        ("class Odd(Exception): pass\nraise Odd", "Odd: no message"),
        ("import os\nos._exit(3)", "DeadKernelError: Kernel died"),
    ],
)
def test_a_failure_is_told_by_its_first_line(code, said):
    payload = {"key": "x", "parameters": {}, "inputs": {}, "limit_seconds": 60, "records": None}
    payload["notebook"] = nbformat.writes(notebook(code))
    assert said in runner.run_job(payload, lambda event: None)["error"]


def test_job_is_plain_data():
    assert Job("toy/04_experiments.ipynb", "smoke", 3).key == "toy/04_experiments-seed3"
