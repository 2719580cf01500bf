"Recorded voices: the layouts of three packages, copies and groups, the cache of sound."

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avpapers.core.files import DataUnavailableError
from avpapers.data import voices as V

PACKS = tuple(V.PACKS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.fixture
def sets(tmp_path):
    return {name: V.voices(name, folder=V.write_fixture(name, tmp_path / name)) for name in PACKS}


def row(frame, **where):
    found = frame
    for column, value in where.items():
        found = found[found[column] == value]
    assert len(found) == 1, found
    return found.iloc[0]


def test_hedgewars(sets):
    f = sets["hedgewars"].frame
    assert len(f) == 4 * 9 + 1 and set(f["voice"]) == {
        "Default",
        "British",
        "Default_es",
        "Pirate",
        "Classic",
    }
    assert set(f["label"]) == {"pain", "effort", "joy", "alarm", "anger", "dismay", ""}
    assert (
        row(f, voice="Pirate", event="Ow2")["label"] == "pain"
        and row(f, voice="British", event="Hello")["label"] == ""
    )
    assert (
        row(f, voice="Default_es", event="Nooo")["language"] == "es"
        and row(f, voice="Pirate", event="Nooo")["language"] == "en"
    )
    assert (
        not row(f, voice="British", event="Laugh")["words"]
        and row(f, voice="British", event="Victory")["words"]
    )
    assert row(f, voice="Classic", event="Jump2")["group"] == "Default"
    assert set(f.loc[f["label"].isin(["pain", "effort"]), "words"]) == {False}


def test_the_classes_are_those_described():
    assert len(V._CLASS_OF) == 4 + 2 + 6 + 8 + 6 + 11 and V._CRIES >= {"Ow", "Laugh", "Nooo", "Hmm"}


def test_openarena(sets):
    f = sets["openarena"].frame
    assert set(f["voice"]) == {"tony", "major", "angelyss"} and set(f["group"]) == {
        "tony",
        "angelyss",
    }
    assert (
        row(f, voice="tony", event="pain25_1")["level"] == 1.0
        and row(f, voice="tony", event="pain100_1")["level"] == 0.25
    )
    assert row(f, voice="tony", event="pain75")["level"] == 0.5
    assert np.isnan(row(f, voice="angelyss", event="pain25_1")["level"])  # its copy says 50
    assert (
        row(f, voice="tony", event="falling1")["label"] == "fall"
        and set(f.loc[f["label"] != "pain", "level"].dropna()) == set()
    )
    assert set(f["label"]) == {"death", "drown", "fall", "gasp", "jump", "pain", "taunt"} and set(
        f.loc[f["words"], "label"]
    ) == {"taunt"}
    assert (
        not f["file"].str.contains("footsteps|credit").any()
        and f["file"].str.contains("pak2-players.pk3!sound/player/").all()
    )


def test_tuxpaint(sets):
    f = sets["tuxpaint"].frame
    assert (
        len(f) == 7
        and set(f["language"]) == {"en", "fr", "da", "pt_BR"}
        and set(f["label"]) == {"animals", "food"}
    )
    assert set(f["event"]) == set(f["group"]) == {"A koala.", "Corn."}
    koala = f[(f["language"] == "fr") & (f["event"] == "A koala.")]
    assert (
        koala["text"].tolist() == ["Un koala."]
        and row(f, event="Corn.", language="fr")["text"] == "Du maïs."
    )
    assert row(f, event="Corn.", language="da")["text"] == ""


def test_copies_and_groups(sets):
    for v in sets.values():
        assert v.frame["sha256"].is_unique and v.frame["sha256"].str.len().eq(64).all()
        assert v.frame["seconds"].between(0.15, 0.4).all() and list(v.frame.columns) == list(
            sets["hedgewars"].frame.columns
        )
        V.check_groups(v.frame["group"], v.frame["group"])
    with pytest.raises(ValueError, match="got 'b' in 'train' and in 'test'"):
        V.check_groups("abcb", ("train", "train", "test", "test"))


def test_without_copies():
    table = pd.DataFrame({"sha256": list("aabc"), "level": [0.25, 0.5, 1.0, np.nan], "n": range(4)})
    got = V.without_copies(table)
    assert got["n"].tolist() == [0, 2, 3] and got["level"].isna().tolist() == [True, False, True]


@pytest.mark.parametrize("name", PACKS)
def test_waves(sets, name, cache):
    v = sets[name]
    waves = v.waves()
    assert len(waves) == len(v) and all(
        w.dtype == torch.float32 and w.abs().max() <= 1 for w in waves
    )
    for w, s in zip(waves, v.frame["seconds"], strict=True):
        assert abs(len(w) / 16_000 - s) < 1e-3
    (kept,) = (cache / "voices").glob("*.npz")
    before = kept.stat().st_mtime_ns
    again = v.waves()
    assert kept.stat().st_mtime_ns == before and all(
        torch.equal(a, b) for a, b in zip(waves, again, strict=True)
    )
    kept.write_bytes(kept.read_bytes()[:100])
    assert all(torch.equal(a, b) for a, b in zip(waves, v.waves(), strict=True))
    assert max(len(w) for w in v.waves(8000, max_seconds=0.1)) == 800
    part = v.take(v.frame.index < 2)
    assert len(part) == 2 and part.checksum != v.checksum and torch.equal(part.waves()[1], waves[1])


def test_checksum_follows_content(tmp_path, sets):
    shutil.copytree(tmp_path / "hedgewars", tmp_path / "again")
    again = V.voices("hedgewars", folder=tmp_path / "again")
    assert again.checksum == sets["hedgewars"].checksum
    (tmp_path / "again" / V.PACKS["hedgewars"].place / "British" / "Ow1.ogg").write_bytes(
        V._tone(999)
    )
    assert V.voices("hedgewars", folder=tmp_path / "again").checksum != again.checksum


def test_unavailable(tmp_path):
    with pytest.raises(ValueError, match="pack: got .*, expected one of"):
        V.voices("quake")
    with pytest.raises(DataUnavailableError, match="got no recordings below usr/share"):
        V.voices("hedgewars", folder=tmp_path)
    if not (Path("/") / V.PACKS["hedgewars"].place).is_dir():
        with pytest.raises(DataUnavailableError, match="AVPAPERS_OFFLINE"):
            V.voices("hedgewars")
        with pytest.raises(DataUnavailableError, match="got it neither installed nor in the cache"):
            V.voices("hedgewars", fetch=False)
        with pytest.warns(UserWarning, match="no recorded voices of hedgewars"):
            assert V.find_voices("hedgewars") is None


def test_files_that_went_away(sets, tmp_path):
    shutil.rmtree(tmp_path / "hedgewars")
    with pytest.raises(DataUnavailableError, match="got no file"):
        sets["hedgewars"].waves()
    with pytest.raises(ValueError, match="got no clip of hedgewars"):
        sets["hedgewars"].take([False] * len(sets["hedgewars"]))


def test_the_second_package_may_be_missing(tmp_path, monkeypatch):
    tree = V.write_fixture("openarena", tmp_path / "tree")

    def unpacked(name, fetch):
        if name == "openarena-data":
            raise DataUnavailableError("no")
        return tree

    monkeypatch.setattr(V, "_unpacked", unpacked)
    if not (Path("/") / V.PACKS["openarena"].place).is_dir():
        with pytest.warns(UserWarning, match="openarena-data could not be had"):
            assert len(V.voices("openarena")) > 20


def test_catalog():
    assert set(V.DATASETS) == {f"voices {n}" for n in PACKS}
    for d in V.DATASETS.values():
        assert d.license and d.size and d.source and not d.embedded and callable(d.get)


def test_no_sound_in_the_repository():
    "The licenses of the recordings are not ours: the pages keep no player with them."
    page = Path(__file__).parents[1] / "nbs" / "data" / "voices.ipynb"
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        assert "data:audio" not in json.dumps(cell.get("outputs", [])), (
            f"cell {cell['id']}: clear its output before you commit"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, clips, groups", [("hedgewars", 745, 13), ("openarena", 193, 12), ("tuxpaint", 6468, 812)]
)
def test_real_packages(name, clips, groups, monkeypatch):
    monkeypatch.delenv("AVPAPERS_CACHE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v = V.find_voices(name, fetch=False)
    if v is None:
        pytest.skip(f"{name} is got it neither installed nor in the cache")
    assert len(v) == clips and v.frame["group"].nunique() == groups and not v.stand_in
    few = v.take(v.frame.index < 20).waves()
    assert all(torch.isfinite(w).all() and w.abs().max() > 0.005 for w in few)
