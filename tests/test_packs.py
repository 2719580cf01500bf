"Packs: found, checked, built from both layouts of each set, read by the papers' loaders."

import csv
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from avpapers.anp import packs as AP
from avpapers.cli import app
from avpapers.core.files import DataUnavailableError, checksum
from avpapers.data import packs as P
from avpapers.data import packs_build as B
from avpapers.exvo import packs as EP
from avpapers.skiprnn import packs as SP
from avpapers.skiprnn.data import IMDB_SHA256, IMDB_URL
from avpapers.suite.paper import load_paper
from avpapers.suite.records import Record
from avpapers.suite.run import Run
from avpapers.uncertainty import packs as UP

REAL = os.environ.get("AVPAPERS_DATA", "")


def real(name):
    "For a test that reads the real pack."
    here = REAL and Path(REAL, name, "card.json").is_file()
    return pytest.mark.skipif(not here, reason=f"no pack {name} in AVPAPERS_DATA")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    "A cache of its own, and no packs but those the test makes, or the real ones."
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    if request.node.get_closest_marker("skipif") is None:
        monkeypatch.delenv("AVPAPERS_DATA", raising=False)
        monkeypatch.setenv("AVPAPERS_OFFLINE", "1")


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def save_picture(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


# ---- layouts of the sets, made up


def ferplus_folder(folder, layout, rng):
    faces = rng.integers(0, 256, (14, 48, 48), dtype=np.uint8)
    faces[9] = faces[0]  # a test face with a twin in training
    usage = ["Training"] * 7 + ["PublicTest"] * 4 + ["PrivateTest"] * 3
    votes = rng.multinomial(10, [0.1] * 10, 14)
    votes[2], votes[6] = [0] * 9 + [10], [0] * 8 + [10, 0]
    names = [f"fer{i:07d}.png" for i in range(14)]
    names[3], names[5] = "", names[4]  # no name, and a name in two rows
    head = ("Usage", "Image name", *B._VOTES)
    rows = [(u, n, *v) for u, n, v in zip(usage, names, votes.tolist(), strict=True)]
    write_csv(folder / "fer2013new.csv", [head, *rows])
    if layout == "official":
        pixels = [" ".join(map(str, f.ravel())) for f in faces]
        table = zip([0] * 14, pixels, usage, strict=True)
        write_csv(folder / "fer2013.csv", [("emotion", "pixels", "Usage"), *table])
    else:
        places = {"Training": "Train", "PublicTest": "Valid", "PrivateTest": "Test"}
        for face, name, part in zip(faces, names, usage, strict=True):
            if name:  # the later of two rows writes over the earlier
                save_picture(folder / "repo" / f"FER2013{places[part]}" / name, face)


def mnist_folder(folder, layout, rng):
    for part, prefix, size, first in (("train", "train", 36, 0), ("test", "t10k", 12, 36)):
        x = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        y = np.arange(size) % 10
        if layout == "official":
            folder.mkdir(parents=True, exist_ok=True)
            head = struct.pack(">IIII", 0x803, *x.shape)
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + x.tobytes())
            labels = struct.pack(">II", 0x801, size) + y.astype(np.uint8).tobytes()
            (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
        else:
            for i in range(size):
                save_picture(folder / part / str(y[i]) / f"{first + i}.png", x[i])


def imdb_folder(folder, layout, rng):
    top = folder / ("aclImdb" if layout == "official" else "repo/aclImdb")
    for split in ("train", "test"):
        for name, rating in (("neg", 2), ("pos", 9)):
            (top / split / name).mkdir(parents=True)
            for i in range(8):
                text = f'A {name} film called {chr(97 + i) * 3} of {split}.<br /><br />Long ago, "so" said'
                text = "The same review." if i == 7 and name == "neg" else text
                (top / split / name / f"{i}_{rating}.txt").write_text(text)
    (top / "train" / "unsup").mkdir()
    (top / "train" / "unsup" / "0_0.txt").write_text("not read")


def emogator_folder(folder, layout, rng):
    top = folder / ("mp3" if layout == "official" else "repo/data/mp3")
    top.mkdir(parents=True)
    for speaker in (1, 2, 4):
        for k in range(1, 31):
            time = np.arange(4800) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * k) * time)
            soundfile.write(top / f"{speaker:06d}-{k:02d}-1.mp3", wave, 16_000)
    shutil.copy(top / "000001-01-1.mp3", top / "000001-01-2.mp3")  # another take


def fashionpairs_folder(folder, layout, rng):
    head = ["id", "gender", "masterCategory", "subCategory", "articleType", "baseColour"]
    head += ["season", "year", "usage"]
    rows = []
    for i in range(40):
        color, article = ("Red", "Navy Blue")[i % 2], ("Shirts", "Jeans")[i // 2 % 2]
        row = [100 + i, "Men", "Apparel", "Topwear", article, color, "Fall", 2011, "Casual"]
        rows.append(row)
        picture = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        save_picture(folder / "images" / f"{100 + i}.jpg", picture, quality=90)
    shutil.copy(folder / "images" / "100.jpg", folder / "images" / "104.jpg")
    if layout == "official":  # a further column with commas that are not quoted
        head.append("productDisplayName")
        lines = [",".join(map(str, [*row, "A shirt, red, long"])) for row in rows]
        text = "\n".join([",".join(head), *lines]) + "\n"
        (folder / "styles.csv").write_text(text)
    else:
        write_csv(folder / "labels" / "styles.csv", [head, *rows])


def cifar10h_folder(folder, layout, rng):
    labels = rng.permutation(np.arange(40) % 10)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    images[1] = images[0]
    folder.mkdir(parents=True)
    np.save(folder / "cifar10h-counts.npy", 9 * np.eye(10, dtype=int)[labels] + 1)
    if layout == "official":
        (folder / "cifar-10-batches-py").mkdir()
        data = images.transpose(0, 3, 1, 2).reshape(40, 3072)
        content = pickle.dumps({"data": data, "labels": labels.tolist()}, protocol=2)
        (folder / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    else:
        np.save(folder / "cifar10_test_set_original_labels.npy", labels)
        seen = dict.fromkeys(range(10), 0)
        for image, k in zip(images, labels.tolist(), strict=True):
            place = folder / "test" / B._CLASSES[k] / f"{seen[k]:04d}.png"
            save_picture(place, image)
            seen[k] += 1


def utkface_folder(folder, layout, rng):
    top = folder if layout == "official" else folder / "data" / "images"
    for i in range(30):
        end = ".jpg" if layout == "official" else ".jpg.chip.jpg"
        name = f"{3 * i}_{i % 2}_{i % 5}_201701{i:02d}000{end}"
        face = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        save_picture(top / name, face, format="JPEG")
    shutil.copy(sorted(top.glob("*"))[0], top / f"0_0_0_20180101000{end}")
    shutil.copy(sorted(top.glob("*"))[1], top / f"61_1_20170109142408{end}")  # lacks a part


def text_votes_folder(folder, layout, rng):
    clips = [f"{1001 + s}_IEO_{e}_XX" for s in range(8) for e in ("ANG", "HAP")]
    head = ["", *"ADFHNS", "fileName", "numResponses"]
    rows = [
        [f"{m}{i + 1:05d}", 4, 1, 0, 0, 3, 1, clip, 9]
        for m in (1, 2, 3)
        for i, clip in enumerate(clips)
    ]
    write_csv(folder / "processedResults" / "tabulatedVotes.csv", [head, *rows])
    people = [[1001 + s, 30, "Male", "Other", "Not Hispanic"] for s in range(8)]
    about = ["ActorID", "Age", "Sex", "Race", "Ethnicity"]
    write_csv(folder / "VideoDemographics.csv", [about, *people])
    bank, ids = folder / "corpus", [f"doc{i // 2}_{i}" for i in range(24)]
    texts = ["None", *(f'Sentence {i}, with "quotes"' for i in range(1, 24))]
    told = [[i, "train", 3.0, 3.1, 2.9, t] for i, t in zip(ids, texts, strict=True)]
    write_csv(bank / "emobank.csv", [["id", "split", "V", "A", "D", "text"], *told])
    meta = [[i, i.split("_")[0], "blog", " "] for i in ids]
    write_csv(bank / "meta.tsv", [["id", "document", "category", "subcategory"], *meta], "\t")
    for who in ("reader", "writer"):
        given = [[i, 1 + (k + j) % 5, 3, 3] for k, i in enumerate(ids) for j in range(3 + k % 2)]
        write_csv(bank / f"individual_{who}_ratings.csv", [["id", "V", "A", "D"], *given])
    goemotions = folder / "data" / "original"
    if layout == "archive":  # coarser labels lie beside them in the repository
        (folder / "data" / "ekman").mkdir(parents=True)
        (folder / "data" / "ekman" / "train.tsv").write_text("other\t0\tid\n")
    goemotions.mkdir(parents=True)
    (goemotions / "labels.txt").write_text("\n".join(UP.GOEMOTIONS_CLASSES) + "\n")
    for part, first in (("train", 0), ("dev", 10), ("test", 14)):
        size = 10 if part == "train" else 4
        lines = [f"Text {first + i}\t{i}{',27' if i else ''}\tx{i}" for i in range(size)]
        lines[-1] = lines[-1] if part == "train" else f"text  {first - 9}\t3\ty"  # twins
        (goemotions / f"{part}.tsv").write_text("\n".join(lines) + "\n")


FOLDERS = {
    "ferplus": ferplus_folder,
    "mnist": mnist_folder,
    "imdb": imdb_folder,
    "emogator": emogator_folder,
    "fashionpairs": fashionpairs_folder,
    "cifar10h": cifar10h_folder,
    "utkface": utkface_folder,
    "text_votes": text_votes_folder,
}


def built(name, tmp_path, layout="official"):
    folder = tmp_path / f"{name} {layout}"
    FOLDERS[name](folder, layout, np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return B.add_pack(name, folder)


# ---- builders


def test_every_pack_has_a_builder_a_source_and_a_fixture():
    assert set(P.PACKS) == set(B.BUILDERS) == set(FOLDERS) == {*B.DOWNLOADS, "mnist", "imdb"}
    assert (B.IMDB_ARCHIVE.url, B.IMDB_ARCHIVE.sha256) == (IMDB_URL, IMDB_SHA256)
    for downloads in B.DOWNLOADS.values():
        for d in downloads:  # pinned by the commit, and single files by their checksum
            assert any(len(part) == 40 for part in d.url.split("/"))
            assert d.name == "archive" or len(d.sha256) == 64
    for pack in P.PACKS.values():
        assert len(pack.identity) == 64 and pack.license


@pytest.mark.parametrize("name", FOLDERS)
def test_both_layouts_give_the_same_set(name, tmp_path):
    one = built(name, tmp_path)
    first = P.identity(one)
    two = built(name, tmp_path, "archive")
    assert P.identity(two).labels == first.labels
    if name not in ("emogator",):  # an Ogg stream carries a random number
        assert P.identity(two).media == first.media
    card = json.loads((two.folder / "card.json").read_text())
    assert set(card["sha256"]) == {p.name for p in two.folder.iterdir()} - {"card.json"}
    assert card["license"] == P.PACKS[name].license
    assert not list(two.folder.parent.glob(".part-*"))


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_folder_is_refused_and_leaves_no_pack(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="expected"):
        B.add_pack(name, tmp_path / "empty")
    assert not P.has_pack(name)


def test_the_later_of_two_rows_with_a_name_is_kept(tmp_path):
    arrays = P.read_arrays(built("ferplus", tmp_path), "votes.npz")
    assert arrays["row"].tolist() == [0, 1, 2, 5, 6, *range(7, 14)]
    assert arrays["twin"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10]


def test_damaged_sources_are_refused(tmp_path):
    def changed(name, file, old, new):
        folder = tmp_path / f"bad {name} {file}"
        FOLDERS[name](folder, "official", np.random.default_rng(0))
        path = next(folder.rglob(file))
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            B.add_pack(name, folder)
        assert "got" in str(error.value) and "expected" in str(error.value)
        return str(error.value)

    assert "same rows" in changed("ferplus", "fer2013.csv", b",Training\n", b",PublicTest\n")
    assert "idx" in changed(
        "mnist", "t10k-images-idx3-ubyte", b"\x00\x00\x08\x03", b"\x00\x00\x0d\x03"
    )
    assert "row of styles.csv" in changed("fashionpairs", "styles.csv", b"\n105,", b"\n905,")
    assert "columns" in changed("fashionpairs", "styles.csv", b"baseColour", b"baseColor")
    assert "known actor" in changed("text_votes", "tabulatedVotes.csv", b"1003_IEO", b"9003_IEO")
    assert "numbers below 28" in changed("text_votes", "train.tsv", b",27\t", b",28\t")


def test_gaps_among_files_are_refused(tmp_path):
    for name, gone in (("imdb", "3_9.txt"), ("emogator", "000002-17-1.mp3")):
        folder = tmp_path / f"gap {name}"
        FOLDERS[name](folder, "official", np.random.default_rng(0))
        next(folder.rglob(gone)).unlink()
        with pytest.raises(ValueError, match="unpack"):
            B.add_pack(name, folder)


def test_two_copies_below_a_folder_are_refused(tmp_path):
    folder = tmp_path / "two"
    for part in ("a", "b"):
        mnist_folder(folder / part, "official", np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected one; give a folder that holds one copy"):
        B.add_pack("mnist", folder)


def test_another_edition_is_named_and_a_changed_download_not_kept(tmp_path, monkeypatch):
    folder = tmp_path / "part"
    mnist_folder(folder, "official", np.random.default_rng(0))
    with pytest.warns(UserWarning, match="another edition of the set"):
        found = B.add_pack("mnist", folder)
    shutil.rmtree(found.folder)
    monkeypatch.setattr(B, "_sources", lambda name: folder)
    with pytest.raises(DataUnavailableError, match="the source has changed"):
        B.get_pack("mnist")
    assert not P.has_pack("mnist")


def test_a_download_is_built_and_then_found(tmp_path, monkeypatch):
    folder = tmp_path / "download"
    mnist_folder(folder, "archive", np.random.default_rng(0))
    pinned = P.identity(B.write_pack("mnist", B.mnist_content(folder), "here")).labels
    shutil.rmtree(P.packs_dir() / "mnist")
    changed = P.Pack(**{**vars(P.PACKS["mnist"]), "identity": pinned})
    monkeypatch.setitem(P.PACKS, "mnist", changed)
    monkeypatch.setattr(B, "_sources", lambda name: folder)
    assert B.get_pack("mnist").place == "network"
    monkeypatch.setattr(B, "_sources", lambda name: pytest.fail("fetched again"))
    assert B.get_pack("mnist").place == "cache"


def test_files_of_a_repository_are_fetched_and_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_OFFLINE", "")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as z:
        z.writestr("name-commit/data/a.txt", "a")
    asked = []

    def retrieve(url, known_hash, fname, path, downloader=None):
        asked.append(url)
        Path(path, fname).write_bytes(stream.getvalue() if "codeload" in url else b"table")
        return str(Path(path, fname))

    import pooch

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    table = B._raw("o/n@" + "0" * 40, "d/t.csv", checksum_of(b"table"), "original/t.csv")
    files = (B._archive("o/n@" + "0" * 40), table)
    monkeypatch.setitem(B.DOWNLOADS, "utkface", files)
    for _ in range(2):
        folder = B._sources("utkface")
    assert (
        len(asked) == 2 and asked[1] == f"https://raw.githubusercontent.com/o/n/{'0' * 40}/d/t.csv"
    )
    assert (folder / "archive/name-commit/data/a.txt").read_text() == "a"
    assert (folder / "original" / "t.csv").read_bytes() == b"table"


def checksum_of(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", FOLDERS)
def test_offline_nothing_is_fetched_and_the_error_says_so(name, monkeypatch):
    import pooch

    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("the network was used"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("so it was"))
    with pytest.raises(DataUnavailableError, match="could not fetch it"):
        B.get_pack(name, accept=True)
    assert not P.has_pack(name)


# ---- finding and checking


def test_the_variable_comes_before_the_cache(tmp_path, monkeypatch):
    found = built("mnist", tmp_path)
    assert P.find_pack("mnist").place == "cache"
    shutil.copytree(found.folder, tmp_path / "elsewhere" / "mnist")
    monkeypatch.setenv("AVPAPERS_DATA", str(tmp_path / "elsewhere"))
    assert P.find_pack("mnist").place == "AVPAPERS_DATA"
    assert P.pack_checksum(P.find_pack("mnist")) == P.pack_checksum(found)
    shutil.rmtree(tmp_path / "elsewhere" / "mnist")
    assert P.find_pack("mnist").place == "cache"
    monkeypatch.setenv("AVPAPERS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="AVPAPERS_DATA: got .*nowhere"):
        P.find_pack("mnist")


@pytest.mark.parametrize("name", P.PACKS)
def test_the_error_tells_three_ways(name):
    with pytest.raises(DataUnavailableError) as error:
        P.find_pack(name)
    accept = " --accept" if P.PACKS[name].research_only else ""
    for way in (f"data get {name}{accept}`", f"data add {name} FOLDER", "set AVPAPERS_DATA"):
        assert way in str(error.value)


def test_a_changed_file_is_refused_whatever_it_is(tmp_path):
    found = built("text_votes", tmp_path)
    path = found.folder / "goemotions.csv.xz"
    P.read_rows(found, path.name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"text_votes, goemotions.csv.xz: got checksum"):
        P.read_rows(found, path.name)
    path.unlink()
    with pytest.raises(DataUnavailableError, match="got no file goemotions.csv.xz"):
        P.read_rows(found, path.name)


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    found = built("mnist", tmp_path)
    found.path("mnist.npz")
    monkeypatch.setattr(P, "checksum", lambda path: pytest.fail("hashed again"))
    found.path("mnist.npz")


def test_cards_of_three_kinds_are_read_and_others_refused(tmp_path):
    found = built("mnist", tmp_path)
    card, digits = found.folder / "card.json", checksum(found.folder / "mnist.npz")
    for told in (
        {"sha256": digits},
        {"sha256": {"mnist.npz": digits}},
        {"files": [{"file": "mnist.npz", "bytes": 1, "sha256": digits}]},
    ):
        card.write_text(json.dumps(told))
        assert dict(P.find_pack("mnist").sha256) == {"mnist.npz": digits}
    card.write_text("{}")
    with pytest.raises(ValueError, match="without checksums"):
        P.find_pack("mnist")
    card.write_text(json.dumps({"sha256": digits}))
    (found.folder / "second.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="expected one file"):
        P.find_pack("mnist")
    card.write_text(json.dumps({"sha256": {"other": digits}}))
    with pytest.raises(ValueError, match="without a checksum of mnist.npz"):
        P.find_pack("mnist").path("mnist.npz")


def test_pickles_are_not_read(tmp_path):
    found = built("mnist", tmp_path)
    path = found.folder / "mnist.npz"
    np.savez(path, x_train=np.array([{}], dtype=object))
    found = P.FoundPack(found.pack, found.folder, "cache", {"mnist.npz": checksum(path)})
    with pytest.raises(ValueError, match="expected arrays of numbers or text"):
        P.read_arrays(found, "mnist.npz")


def test_identity_tells_labels_from_media(tmp_path):
    folder = tmp_path / "m"
    mnist_folder(folder, "official", np.random.default_rng(0))
    content = B.mnist_content(folder)["mnist.npz"]
    first = P.identity(B.write_pack("mnist", {"mnist.npz": content}, "here"))
    for name, same in (("x_test", (True, False)), ("y_test", (False, True))):
        other = content | {name: content[name][::-1].copy()}
        second = P.identity(B.write_pack("mnist", {"mnist.npz": other}, "here"))
        assert (first.labels == second.labels, first.media == second.media) == same


def test_a_strip_and_a_sheet_come_back():
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    parts = []
    for p in pictures:
        stream = io.BytesIO()
        Image.fromarray(p).save(stream, "PNG")
        parts.append(stream.getvalue())
    strip = B._strip(parts)
    assert (P.read_strip(strip) == pictures).all()
    assert (P.read_strip(strip, [3, 1]) == pictures[[3, 1]]).all()
    with pytest.raises(ValueError, match="offset: got"):
        P.read_strip(strip | {"offset": strip["offset"][:-1]})
    grays = rng.integers(0, 256, (60, 1, 1), dtype=np.uint8) * np.ones((1, 48, 48), np.uint8)
    back = P.read_sheet(B._sheets(list(grays))[0])
    assert len(back) == 75 and abs(back[:60].astype(int) - grays).max() <= 3
    assert [len(P.read_sheet(s)) for s in B._sheets(list(grays), each=50)] == [50, 25]


def test_twins_outside_training_are_dropped():
    split = ["train", "test", "test", "validation", "train", "test"]
    assert P.without_twins([1, 1, 2, 1, 1, 2], split).tolist() == [1, 0, 1, 0, 1, 1]
    assert P.twin_numbers([b"a", b"b", b"a", b"c"]).tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match="twin and split"):
        P.without_twins([1], split)
    with pytest.raises(ValueError, match="train: got 'fit'"):
        P.without_twins(range(6), split, train="fit")


# ---- commands


def test_commands(tmp_path, monkeypatch):
    def call(*words):
        return CliRunner().invoke(app, ["data", *words], env={"COLUMNS": "200"})

    listed = call("ls")
    assert listed.exit_code == 0 and "data get ferplus --accept" in listed.output
    refused = call("get", "utkface")
    assert refused.exit_code and "licence of utkface: non-commercial" in refused.output
    assert "data get utkface --accept" in str(refused.exception)
    folder = tmp_path / "faces"
    utkface_folder(folder, "official", np.random.default_rng(0))
    with pytest.warns(UserWarning, match="1 names without all labels"):
        added = call("add", "utkface", str(folder))
    assert added.exit_code == 0 and "pack utkface, labels " in added.output
    assert "licence of utkface" in added.output
    assert "cache" in call("ls").output and call("get", "utkface").exit_code == 0
    assert "expected one of" in str(call("add", "celeba", str(folder)).exception)
    assert "expected one of" in str(call("get", "celeba").exception)


# ---- the papers' loaders on fixtures


def test_ferplus_faces(tmp_path):
    found = built("ferplus", tmp_path)
    faces = UP.packed_ferplus()
    assert [faces.split.count(s) for s in ("train", "test", "validation")] == [4, 4, 3]
    assert faces.items == tuple(f"row {r:05d}" for r in (0, 1, 5, *range(6, 14)))
    assert faces.inputs.shape == (11, 48, 48) and not faces.stand_in
    assert faces.checksum == P.pack_checksum(found)
    kept = UP.without_face_twins(faces)
    assert kept.sum() == 10 and not kept[faces.items.index("row 00009")]
    assert faces.take(kept).split.count("test") == 3
    twin = UP.face_twins(faces.take("test"))
    assert twin.tolist()[2] == 0


def test_a_face_is_the_one_of_its_row(tmp_path):
    folder = tmp_path / "faces"
    ferplus_folder(folder, "official", np.random.default_rng(0))
    flat = [" ".join([str(10 * i)] * 2304) for i in range(14)]
    rows = list(csv.reader((folder / "fer2013.csv").open()))
    table = [[r[0], p, r[2]] for r, p in zip(rows[1:], flat, strict=True)]
    write_csv(folder / "fer2013.csv", [rows[0], *table])
    with pytest.warns(UserWarning, match="another edition"):
        B.add_pack("ferplus", folder)
    faces = UP.packed_ferplus()
    wanted = torch.tensor([10.0 * int(i[4:]) for i in faces.items])
    assert (faces.inputs[:, 24, 24] * 255 - wanted).abs().max() < 2


def test_cifar10h_and_utkface_keep_twins_together(tmp_path):
    built("cifar10h", tmp_path)
    built("utkface", tmp_path)
    for seed in range(4):
        pictures = UP.packed_cifar10h(split_seed=seed)
        assert pictures.groups[0] == pictures.groups[1] and len(set(pictures.groups)) == 39
        assert pictures.split[0] == pictures.split[1]
        faces = UP.packed_utkface("race", split_seed=seed)
        assert len(faces) == 31 and len(set(faces.groups)) == 30
    assert pictures.inputs.shape == (40, 3, 32, 32) and (pictures.votes.sum(1) == 19).all()
    assert (pictures.votes.argmax(1) == pictures.labels).all()
    assert set(faces.subgroup) <= set(UP.UTKFACE_NAMES["age"]) and faces.votes.shape == (31, 5)
    ages = UP.packed_utkface("age", subgroup="gender")
    assert ages.class_names[0] == "0-10" and ages.probs[:, 0].sum() == 5  # 0, 0 again, 3, 6, 9
    with pytest.raises(ValueError, match="task: got 'mood'"):
        UP.packed_utkface("mood")


def test_text_votes(tmp_path):
    built("text_votes", tmp_path, "archive")
    clips = UP.packed_cremad(mode="face")
    assert (
        len(clips) == 16
        and len(set(clips.groups)) == 8
        and clips.votes[0].tolist() == [4, 1, 0, 0, 3, 1]
    )
    with pytest.raises(ValueError, match="mode: got 'smell'"):
        UP.packed_cremad(mode="smell")
    bank = UP.packed_emobank()
    assert len(bank) == 24 and bank.items[0] == "doc0_0: None" and bank.ratings is None
    assert bank.votes[0].tolist() == [2, 1, 0] and bank.votes[1].tolist() == [1, 1, 2]
    four = UP.packed_emobank(raters=4, perspective="writer")
    assert len(four) == 12 and four.ratings.shape == (12, 4)
    with pytest.raises(ValueError, match="raters: got 9"):
        UP.packed_emobank(raters=9)
    with pytest.warns(UserWarning, match="got 2 texts in two splits"):
        comments = UP.packed_goemotions()
    assert [comments.split.count(s) for s in ("train", "validation", "test")] == [8, 4, 4]
    assert comments.votes.sum(1).tolist()[:2] == [1, 2]


def test_digits_and_reviews(tmp_path):
    found = built("mnist", tmp_path)
    digits = SP.packed_mnist()
    assert [len(s) for s in digits.splits.values()] == [33, 3, 12] and not digits.stand_in
    arrays = P.read_arrays(found, "mnist.npz")
    pixels = (digits.test.inputs.view(12, 28, 28) * 255).round().to(torch.uint8)
    assert (pixels.numpy() == arrays["x_test"]).all()
    assert digits.checksum == P.pack_checksum(found) == SP.packed_mnist(size=14).checksum
    built("imdb", tmp_path)
    reviews = SP.packed_imdb(length=12, vocabulary_size=50)
    assert len(reviews.test) == 16 and len(reviews.train) + len(reviews.validation) == 15
    assert reviews.checksum.startswith("pack imdb, labels ") and not reviews.stand_in


def test_a_record_names_pack_and_identity(tmp_path):
    built("mnist", tmp_path)
    digits = SP.packed_mnist()
    about = {"paper": "skiprnn", "experiment": "digits", "tier": "smoke", "seed": 0}
    record = Record(**about, module="avpapers.skiprnn.experiments", config={})
    run = Run(record, real=load_paper("skiprnn").real)
    run.data(digits.name, digits.checksum)
    (source,) = run.record.data
    which = P.identity(P.find_pack("mnist"))
    assert source.name == "mnist" and not source.stand_in
    assert source.checksum == f"pack mnist, labels {which.labels}, media {which.media}"


def test_bursts(tmp_path):
    built("emogator", tmp_path)
    data = EP.packed_emogator(folds=3, sound=True)
    assert len(data) == 90 and data.emotions == B.EMOGATOR_CATEGORIES
    assert set(data.speaker) == {"001", "002", "004"} and set(data.split) == {
        "train",
        "validation",
        "test",
    }
    assert (data.emotion.sum(1) == 1).all() and (data.emotion.argmax(1) == data.kind).all()
    for row in (3, 47, 88):  # the pitch says which category it is
        wave = data.waves[row, : data.lengths[row]]
        peak = torch.fft.rfft(wave).abs().argmax() * 16_000 / len(wave)
        assert abs(peak - (210 + 10 * int(data.kind[row]))) < 6
    one = EP.packed_emogator(speakers=[1, 2, 4], folds=3, fold=2)
    assert one.waves is None and one.split != data.split
    for wrong in ({"speakers": [3]}, {"fold": 5}, {"folds": 9}):
        with pytest.raises(ValueError, match=r"speakers|fold"):
            EP.packed_emogator(**wrong)


def test_folds_test_every_speaker_once():
    who = [f"{k:03d}" for k in range(23) for _ in range(3)]
    tested = [
        s
        for f in range(5)
        for s, p in zip(who, EP.split_by_fold(who, f), strict=True)
        if p == "test"
    ]
    assert sorted(tested) == sorted(who)
    assert EP.split_by_fold(who, 0, seed=1) != EP.split_by_fold(who, 0)


def test_color_pairs(tmp_path):
    found = built("fashionpairs", tmp_path)
    pairs = AP.packed_fashionpairs(min_pictures=10)
    assert (
        len(pairs) == 40
        and pairs.adjectives == ("Navy Blue", "Red")
        and pairs.nouns == ("Jeans", "Shirts")
    )
    assert pairs.images.shape == (40, 3, 64, 64) and pairs.checksum == P.pack_checksum(found)
    assert pairs.groups[0] == pairs.groups[4] and pairs.split[0] == pairs.split[4]
    for p in range(4):
        split = [s for s, q in zip(pairs.split, pairs.pair.tolist(), strict=True) if q == p]
        assert split.count("train") in (5, 6, 7) and {"validation", "test"} <= set(split)
    assert set(AP.packed_fashionpairs(min_pictures=10, fusion=True).split) == set(AP.SPLITS)
    with pytest.raises(ValueError, match="min_pictures: got 11, expected at most 10"):
        AP.packed_fashionpairs(min_pictures=11)


def test_copies_under_two_pairs_stay_together():
    pair, twin = [0] * 10 + [1] * 10, [*range(10), 0, 1, *range(10, 18)]
    shares = {"train": 0.5, "test": 0.5}
    for seed in range(5):
        split = AP.split_within_pairs(pair, twin, seed=seed, shares=shares)
        assert split[0] == split[10] and split[1] == split[11]
        assert 3 <= split[:10].count("train") <= 7
    with pytest.raises(ValueError, match="shares: got"):
        AP.split_within_pairs(pair, twin, seed=0, shares={"train": 0.5})


# ---- the real packs


@real("ferplus")
def test_real_ferplus():
    faces = UP.packed_ferplus()
    assert [faces.split.count(s) for s in ("train", "test", "validation")] == [28556, 3579, 3572]
    kept = UP.without_face_twins(faces)
    assert (
        int((~kept).sum()) == 567
        and P.identity(P.find_pack("ferplus")).labels == P.PACKS["ferplus"].identity
    )


@real("cifar10h")
def test_real_cifar10h():
    data = UP.packed_cifar10h()
    total = data.votes.sum(1)
    assert len(data) == 10_000 and (total.min(), total.max(), total.sum()) == (47, 63, 511_000)
    assert len(set(data.groups)) == 10_000


@real("utkface")
def test_real_utkface():
    data = UP.packed_utkface("race", subgroup="gender")
    assert data.votes.sum(0).tolist() == [5265, 405, 1553, 1452, 1103]
    assert (data.subgroup.count("male"), data.subgroup.count("female")) == (4372, 5406)
    assert len(set(data.groups)) == 9672


@real("text_votes")
def test_real_text_votes():
    for mode in ("voice", "face", "audiovisual"):
        clips = UP.packed_cremad(mode=mode)
        assert len(clips) == 7442 and len(set(clips.groups)) == 91
    assert len(UP.packed_emobank()) == 10_062
    with pytest.warns(UserWarning, match="texts in two splits"):
        comments = UP.packed_goemotions()
    assert comments.split.count("test") == 5427 and 53_000 < len(comments) < 54_263


@real("mnist")
def test_real_mnist():
    digits = SP.packed_mnist()
    assert [len(s) for s in digits.splits.values()] == [55_000, 5000, 10_000]
    assert digits.test.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@real("imdb")
def test_real_imdb():
    reviews = SP.packed_imdb()
    assert len(reviews.test) == 5000 and reviews.test.targets.sum() == 2500
    assert 4900 < len(reviews.train) + len(reviews.validation) <= 5000


@real("emogator")
def test_real_emogator():
    data = EP.packed_emogator()
    assert len(data) == 10_710 and len(set(data.speaker)) == 357 and len(data.kinds) == 30
    assert len(EP.packed_emogator(least_db=-60)) == 10_628
    some = EP.packed_emogator(speakers=[1, 2, 3, 4, 5], sound=True)
    assert len(some) == 150 and some.lengths.max() <= 2.05 * 16_000


@real("fashionpairs")
def test_real_fashionpairs():
    data = AP.packed_fashionpairs()
    found = (len(data), len(data.pairs), len(data.adjectives), len(data.nouns))
    assert found == (6877, 106, 16, 28)
    assert len(AP.packed_fashionpairs(min_pictures=1)) == 9583


@pytest.mark.parametrize("name", [pytest.param(n, marks=real(n)) for n in P.PACKS])
def test_real_packs_are_the_pinned_ones(name):
    found = P.find_pack(name)
    assert found.place == "AVPAPERS_DATA" and P.identity(found).labels == P.PACKS[name].identity
