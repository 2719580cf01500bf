"Adjective-noun pairs: relevance, Shapley shares, splits without leaks, checks of lists."

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.anp import data as D
from avpapers.anp import model as M
from avpapers.core.random import seeded_generator

SIZES = st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 8))


def world(adjectives, nouns, pairs, seed, batch=7, hidden=9):
    def draw(*shape, k=0):
        return torch.randn(*shape, generator=seeded_generator(seed, stream=str(k)))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fusion = M.Fusion(adjectives, nouns, pairs, hidden=hidden)
    a, n = (2 * draw(batch, adjectives)).softmax(1), (2 * draw(batch, nouns, k=1)).softmax(1)
    return fusion.whiten_by(a, n), a, n


@pytest.mark.filterwarnings("ignore:contributions")
@given(SIZES, st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_relevance_is_conserved_and_not_negative(sizes, seed):
    fusion, a, n = world(*sizes, seed)
    explained = torch.arange(sizes[2]).expand(len(a), -1)
    found = M.contributions(fusion, a, n, explained)
    reached = (
        torch.relu(fusion.hidden((torch.cat([a, n], 1) - fusion.mean) / fusion.std))[:, None]
        * fusion.out.weight.clamp_min(0)
    ).sum(-1) > 1e-6
    whole = fusion(a, n).softmax(1)
    torch.testing.assert_close(found.sum(-1)[reached], whole[reached], atol=1e-4, rtol=1e-3)
    assert found.min() > -1e-5


@given(SIZES, st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_shapley_shares_add_up(sizes, seed):
    fusion, a, n = world(*sizes, seed)
    pair = torch.zeros(len(a), dtype=torch.long)
    shares = M.shapley_shares(fusion, a, n, pair)
    empty = fusion(*fusion.mean.expand(len(a), -1).split(sizes[:2], 1)).log_softmax(1)[:, 0]
    torch.testing.assert_close(
        shares.sum(1), fusion(a, n).log_softmax(1)[:, 0] - empty, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("hidden", [0, 11])
def test_relevance_of_any_two_classifiers(hidden):
    "A plain linear or ReLU fusion, explained like our own without whitening; 1-D as column."
    own, a, n = world(4, 3, 5, 0, hidden=hidden or 9)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if hidden:
            own.mean.zero_(), own.std.fill_(1)
            other = torch.nn.Sequential(own.hidden, torch.nn.ReLU(), own.out)
        else:
            other = torch.nn.Linear(7, 5)
    best = other(torch.cat([a, n], 1)).argmax(1)
    found = M.contributions(other, a, n, best)
    assert torch.equal(found, M.contributions(other, a, n, best[:, None])[:, 0])
    if hidden:
        assert torch.equal(found, M.contributions(own, a, n, best))
        return
    x, w, chosen = (
        torch.cat([a, n], 1),
        other.weight.detach(),
        other(torch.cat([a, n], 1)).softmax(1),
    )
    for i, k in enumerate(best.tolist()):  # from 0 to 1: z = x w - min(w, 0)
        z = x[i] * w[k] - w[k].clamp_max(0)
        torch.testing.assert_close(found[i], (z / z.sum() * chosen[i, k]).detach())


def test_relevance_of_nothing_is_said():
    fusion, a, n = world(4, 3, 5, 0)
    with torch.no_grad():
        fusion.out.weight[1] = -fusion.out.weight[1].abs()
    with pytest.warns(UserWarning, match="7 of 14 explained pairs have no active hidden unit"):
        found = M.contributions(fusion, a, n, torch.tensor([[0, 1]] * 7))
    assert found[:, 1].abs().max() == 0
    assert M.adjective_to_noun_ratio(found[:, 1], 4).isnan().all()


def test_one_picture_cannot_whiten():
    fusion, a, n = world(4, 3, 5, 0)
    with pytest.raises(ValueError, match="adjective: got 1 pictures, expected at least 2"):
        fusion.whiten_by(a[:1], n[:1])


def test_a_half_without_weights_gets_nothing():
    fusion, a, n = world(4, 3, 5, 0)
    with torch.no_grad():
        fusion.hidden.weight[:, :4] = 0
    relevance = M.contributions(fusion, a, n, torch.zeros(7, 2, dtype=torch.long))
    assert relevance[..., :4].abs().max() == 0 and relevance[..., 4:].abs().sum() > 0
    assert M.shapley_shares(fusion, a, n, torch.zeros(7, dtype=torch.long))[:, 0].abs().max() < 1e-6


def test_product_rule_prefers_what_both_parts_say():
    pairs = torch.tensor([[0, 0], [1, 1], [0, 1]])
    scores = M.product_rule(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]]), pairs)
    assert scores.argmax() == 2
    rare = M.product_rule(
        torch.tensor([[0.5, 0.5]]),
        torch.tensor([[0.5, 0.5]]),
        pairs,
        counts=torch.tensor([8.0, 1, 1]),
    )
    expected = torch.tensor([0.8 / (0.9 * 0.8), 0.1 / (0.1 * 0.2), 0.1 / (0.9 * 0.2)]).log()
    torch.testing.assert_close((rare - rare[:, :1])[0], expected - expected[0])


@given(st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_codetection_obeys_bayes(seed):
    hits = torch.rand(40, 3, generator=seeded_generator(seed)) < 0.6
    matrix, rate = M.codetection(hits), hits.double().mean(0)
    torch.testing.assert_close(rate[:, None] * matrix, (rate[:, None] * matrix).T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3).double())


@pytest.fixture(scope="module")
def drawn():
    return D.drawn_world(8, 5, 16, seed=3)


def test_a_drawn_world_keeps_its_promises(drawn):
    assert (
        len(drawn.pairs.unique(dim=0)) == 16
        and set(drawn.pairs[:, 0].tolist()) == set(range(5))
        and set(drawn.pairs[:, 1].tolist()) == set(range(8))
    )
    assert drawn.kinds.count("scene") == 2
    parts = {s: D.drawn_pictures(drawn, 4, split=s) for s in D.SPLITS}
    for a in parts:
        for b in parts:
            assert a == b or not set(parts[a].groups) & set(parts[b].groups)
    assert {g.split("/")[0] for g in parts["test"].groups} == set(D.UNSEEN)
    again, other = D.drawn_pictures(drawn, 4), D.drawn_pictures(drawn, 4, seed=1)
    assert torch.equal(again.images, parts["train"].images) and not torch.equal(
        other.images, again.images
    )
    assert (
        again.images.min() >= 0
        and again.images.max() <= 1
        and again.images.shape == (64, 3, 32, 32)
    )
    assert len(parts["train"].take("train")) == 64


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda w: D.drawn_world(5000), "num_nouns"),
        (lambda w: D.drawn_world(8, 99), "num_adjectives"),
        (lambda w: D.drawn_pictures(w, 0), "per_pair"),
        (lambda w: D.drawn_pictures(w, 1, split="tets"), "split"),
        (lambda w: D.drawn_pictures(w, 1).take("test"), "split: got"),
    ],
)
def test_wrong_requests_raise(drawn, call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn)


@pytest.mark.parametrize(
    "name, file, text, message",
    [
        ("mtvso", "train.txt", "a.jpg 0 0", "line 1"),
        ("mtvso", "train.txt", "a.jpg 0 1 1", "got pair 0, expected"),
        ("mtvso", "test.txt", "train/c.jpg 1 1 1", "expected one split"),
        ("mit_states", "compositional-split-natural/val_pairs.txt", "ancient", "adjective noun"),
        ("mit_states", "compositional-split-natural/val_pairs.txt", "wet coat", "'wet coat' again"),
        (
            "mtvso",
            "mtvso_anplabels.txt",
            "cute_cat\ndim_night",
            "line 2: got 'dim_night', expected",
        ),
        ("mtvso", "mtvso_nounlabels.txt", "cat\nnight\ncat", "line 3: got the name 'cat' again"),
        ("mtvso", "train.txt", "train/c.jpg 1 1 1\n" * 2, "line 2: got the picture 'train/c.jpg'"),
        ("mtvso", "train.txt", " \n", "train.txt: got no lines"),
        ("emoset", "train.json", "[]", "train.json: got no entries"),
        ("emoset", "val.json", '[["awe"]]', "val.json, entry 1: got"),
        ("emoset", "val.json", '[["awe", ', "val.json, line 1: got .*, expected whole JSON"),
    ],
)
def test_damaged_lists(name, file, text, message, tmp_path):
    folder = D.write_fixture(name, tmp_path)
    (folder / file).write_text(text)
    load = getattr(D, name)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "name, file",
    [
        ("mtvso", "mtvso_adjlabels.txt"),
        ("mit_states", "compositional-split-natural/test_pairs.txt"),
        ("emoset", "val.json"),
    ],
)
def test_missing_files(name, file, tmp_path):
    folder = D.write_fixture(name, tmp_path)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.split("/")[-1]):
        getattr(D, name)(folder)


@pytest.mark.parametrize("name", ["mtvso", "mit_states", "emoset"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_another_editor(name, encoding, tmp_path):
    folder = D.write_fixture(name, tmp_path)
    load = partial(D.emoset, min_pictures=1) if name == "emoset" else getattr(D, name)
    whole = load(folder)
    for file in [*folder.rglob("*.txt"), *folder.rglob("*.json")]:
        text = file.read_text().replace("\n", "\r\n")
        file.write_bytes(text.encode(encoding))
    again = load(folder)
    assert again.files == whole.files and again.adjectives == whole.adjectives
    assert torch.equal(again.pair, whole.pair)


def test_suffixes_of_another_letter_case(tmp_path):
    folder = D.write_fixture("mit_states", tmp_path / "a")
    (folder / "images/ancient bear/0.jpg").rename(folder / "images/ancient bear/0.JPEG")
    (folder / "images/ancient bear/1.jpg").rename(folder / "images/ancient bear/1.Png")
    (folder / "images/ancient bear/._1.jpg").touch()
    data = D.mit_states(folder)
    assert data.files[:2] == ("images/ancient bear/0.JPEG", "images/ancient bear/1.Png")
    assert len(data) == 8
    folder = D.write_fixture("mtvso", tmp_path / "b")
    (folder / "test/a b.jpg").rename(folder / "test/a b.JPG")
    assert D.mtvso(folder).files[3] == "test/a b.JPG"


def test_pictures_that_are_gone_are_counted(tmp_path):
    folder = D.write_fixture("mtvso", tmp_path / "a")
    for part in ("train", "test"):
        (folder / part / "d.jpg").unlink()
    with pytest.warns(UserWarning) as told:
        data = D.mtvso(folder)
    assert len(data) == 4 and len(data.pairs) == 3 and data.pair.tolist() == [0, 1] * 2
    assert "got 4 of 6, without train/d.jpg, test/d.jpg" in str(told[0].message)
    assert "pairs with pictures: got 2 of 3, without dark_cat" in str(told[1].message)
    with pytest.raises(FileNotFoundError, match="got 4 of 6, .* expected 70% of them"):
        D.mtvso(folder, most_missing=0.3)
    folder = D.write_fixture("mit_states", tmp_path / "b")
    (folder / "images/wet coat").rename(folder / "images/Wet coat")
    with pytest.raises(
        FileNotFoundError, match="pairs with pictures: got 3 of 4, without wet coat"
    ):
        D.mit_states(folder)
    with pytest.warns(UserWarning, match="without wet coat; going on"):
        assert len(D.mit_states(folder, most_missing=0.25)) == 6
    folder = D.write_fixture("emoset", tmp_path / "c")
    (folder / "image/train1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="got 8 of 9, without image/train1.jpg"):
        D.emoset(folder, min_pictures=1)


def test_emoset_takes_the_object_or_else_the_scene(tmp_path):
    folder = D.write_fixture("emoset", tmp_path)
    data = D.emoset(folder, min_pictures=1)
    assert data.nouns == ("mountain", "snake") and data.adjectives == ("awe", "fear")
    with pytest.raises(ValueError, match="min_pictures"):
        D.emoset(folder)
    annotation = json.loads((folder / "annotation/train1.json").read_text())
    assert annotation["object"] == ["Snake"]


def test_emoset_tells_of_pictures_without_a_noun(tmp_path):
    folder = D.write_fixture("emoset", tmp_path)
    (folder / "annotation/test2.json").write_text(json.dumps({"object": [], "scene": None}))
    with pytest.warns(UserWarning, match="object or a scene: got 8 of 9, without image/test2.jpg"):
        assert len(D.emoset(folder, min_pictures=1)) == 8
    (folder / "annotation/test2.json").write_text(json.dumps({"object": "Mountain"}))
    assert len(D.emoset(folder, min_pictures=1)) == 9
    (folder / "annotation/test2.json").write_text('{"object": ["Moun')
    with pytest.raises(ValueError, match="test2.json, line 1: got .*, expected whole JSON"):
        D.emoset(folder, min_pictures=1)
