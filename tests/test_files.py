"""Files that are whole or not there, and arrays that know which code made them."""

import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from avpapers.core.files import arrays_file, atomic_path, cached_arrays, write_atomic
from avpapers.core.fingerprint import reached, read_code

HOW = {"made_by": "avpapers.core.files", "packages": ("numpy",)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def once(calls, **arrays):
    def make():
        calls.append(1)
        return arrays or {"x": np.arange(5)}

    return make


@pytest.mark.parametrize("content", ["text", b"bytes", ""])
def test_content_is_replaced_as_a_whole(tmp_path, content):
    path = write_atomic(tmp_path / "deep" / "a.txt", "old")
    assert write_atomic(path, content) == path and [p.name for p in path.parent.iterdir()] == [
        "a.txt"
    ]
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ZeroDivisionError])
def test_what_goes_wrong_leaves_the_old_file(tmp_path, error):
    path = write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir() if p.is_file()] == [
        "a.txt"
    ]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "old")
    program = f"""
from avpapers.core.files import atomic_path
import time
with atomic_path({str(path)!r}) as part:
    part.write_text("half")
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.time() + 60
    while time.time() < deadline and not list(tmp_path.glob(".a.txt.*.part")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    assert write_atomic(path, "new").read_text() == "new"


def test_arrays_are_made_once_and_any_damage_is_noticed():
    calls = []
    first = cached_arrays("kind", "key", once(calls), **HOW)
    assert (
        np.array_equal(cached_arrays("kind", "key", once(calls), **HOW)["x"], first["x"])
        and len(calls) == 1
    )
    file = arrays_file("kind", "key", **HOW)
    whole = file.read_bytes()
    for place in range(0, len(whole), 11):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert np.array_equal(cached_arrays("kind", "key", once(calls), **HOW)["x"], first["x"])
    for damage in (b"", b"PK", whole[:-40]):
        file.write_bytes(damage)
        assert np.array_equal(cached_arrays("kind", "key", once(calls), **HOW)["x"], first["x"])
    assert not list(file.parent.glob("*.part"))


def test_another_key_version_or_code_has_another_place(tmp_path, monkeypatch):
    places = {
        arrays_file("kind", "key", **HOW),
        arrays_file("kind", "other", **HOW),
        arrays_file("other", "key", **HOW),
    }
    monkeypatch.setattr(
        "avpapers.core.files.package_versions",
        lambda names: {"python": "3", **dict.fromkeys(names, "9.9")},
    )
    assert len(places | {arrays_file("kind", "key", **HOW)}) == 4


def test_a_change_of_the_making_module_changes_the_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    places = []
    for source in ("x = 1", "x = 1  # said", "x = 2"):
        (tmp_path / "maker_of_arrays.py").write_text(source)
        reached.cache_clear()
        read_code.cache_clear()
        importlib.invalidate_caches()
        places.append(arrays_file("kind", "key", made_by="maker_of_arrays"))
    reached.cache_clear()
    read_code.cache_clear()
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize("module", ["pretrained", "sentences", "avatars", "voices"])
def test_caches_of_derived_data_are_tied_to_their_code(module):
    source = open(importlib.util.find_spec(f"avpapers.data.{module}").origin).read()
    assert f'"made_by": "avpapers.data.{module}"' in source and "cached_arrays(" in source


def test_objects_are_not_kept():
    with pytest.raises(ValueError, match="expected arrays of numbers"):
        cached_arrays("kind", "key", once([], x=np.array([{}])), **HOW)
