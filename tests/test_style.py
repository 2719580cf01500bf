"One hand: one formatter, one linter, no exceptions."

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["format --check", "check"])
def test_one_formatter(command):
    words = [sys.executable, "-m", "ruff", *command.split(), "nbs", "tests"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_line_is_left_out():
    "A comment that switches the formatter off would be an exception."
    mark = "fmt: " + "skip"
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("tests/*.py")]
    assert not [f.name for f in files if mark in f.read_text(encoding="utf8")]
