"The template of a new paper: it runs whole at smoke, renders, and is refused where it would overwrite."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avpapers.suite.template import new_paper, template_notebooks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A copy of the clone with the new paper in it, exported."
    from nbdev.export import nb_export

    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(
        ROOT / "avpapers", root / "avpapers", ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "nbs" / "records").mkdir(parents=True)
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, root)
    for path in new_paper(root, "demo", title="Demo"):
        nb_export(path, lib_path=root / "avpapers")
    (root / "avpapers" / "demo" / "__init__.py").touch()
    return root


@pytest.mark.slow
def test_a_new_paper_runs_whole_at_smoke(clone):
    environment = os.environ | {"PYTHONPATH": str(clone), "TQDM_DISABLE": "1"}
    command = [
        sys.executable,
        "-m",
        "avpapers.cli",
        "reproduce",
        "demo",
        "--tier",
        "smoke",
        "--no-site",
    ]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 failed" in done.stdout and "8 ran" in done.stdout
    records = {p.name for p in (clone / "_runs/smoke/records/demo").glob("*.json")}
    assert {"lines-smoke-seed0.json", "performance-smoke-seed0.json"} <= records


def test_menus_name_a_new_paper(clone):
    code = "from pathlib import Path; from avpapers.suite.papers import synced; print(*synced(Path('.')).values())"
    environment = os.environ | {"PYTHONPATH": str(clone)}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert "demo/00_overview.ipynb" in said.stdout and "`demo` | Demo" in said.stdout, said.stderr[
        -1000:
    ]


@pytest.mark.parametrize("name", ["Demo", "two words", "class", "1st", "skiprnn", "../up"])
def test_names_that_cannot_be_used_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="name: got"):
        new_paper(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, prefix", [("another", ""), ("demo", "SR")])
def test_a_prefix_of_another_paper_is_refused(name, prefix, tmp_path):
    with pytest.raises(ValueError, match="prefix: got .* numbers its claims"):
        new_paper(tmp_path, name, prefix=prefix)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "nbs" / "demo").mkdir(parents=True)
    with pytest.raises(ValueError, match="there already"):
        new_paper(tmp_path, "demo")


def test_every_gap_of_the_template_is_filled():
    for name, notebook in template_notebooks("demo", "DE", "Demo").items():
        text = str(notebook)
        assert "{name}" not in text and "{title}" not in text and "{prefix}" not in text, name
