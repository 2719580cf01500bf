"Adjective-noun pairs: training, attribution, inserted evidence, photographs, and zennit."

from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

from avpapers.anp import data as D
from avpapers.anp import experiments as E
from avpapers.anp import model as M
from avpapers.anp import training as T
from avpapers.anp.claims import paper
from avpapers.core.random import seeded_generator
from avpapers.suite.evidence import Runs
from avpapers.suite.records import Record
from avpapers.suite.run import Run, execute


def blobs(num, classes, width=12, seed=0):
    labels = torch.arange(num) % classes
    centers = 3 * torch.randn(classes, width, generator=seeded_generator(0, stream="centers"))
    return centers[labels] + torch.randn(
        num, width, generator=seeded_generator(seed, stream="noise")
    ), labels


def test_a_tower_learns_what_can_be_learned():
    x, y = blobs(300, 4)
    tower = T.train_tower(x, y, 4, hidden=8, num_epochs=30)
    test, labels = blobs(200, 4, seed=1)
    p = T.probabilities(tower, test)
    torch.testing.assert_close(p.sum(1), torch.ones(200))
    assert (p.argmax(1) == labels).float().mean() > 0.9 and not tower.training
    torch.testing.assert_close(p, T.probabilities(tower, iter(test.split(7))))


def test_a_picture_does_not_depend_on_its_batch():
    x, y = blobs(64, 4)
    tower = T.train_tower(x, y, 4, hidden=8, num_epochs=2)
    net = M.ANPNet(
        tower, T.train_tower(x, y, 4, hidden=8, num_epochs=2, seed=1), 5, hidden=8
    ).train()
    torch.testing.assert_close(net(x[:1]), net(x)[:1], atol=1e-5, rtol=1e-4)


def test_the_free_bottleneck_moves_only_what_is_free():
    x, y = blobs(64, 4)
    towers = [T.train_tower(x, y, 4, hidden=8, num_epochs=2, seed=s) for s in (0, 1)]
    before = [p.clone() for t in towers for p in t.parameters()]
    free = T.train_free(*towers, x, y, 4, hidden=8, num_epochs=5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (p for t in towers for p in t.parameters()), strict=True)
    )
    for name, tower in (("adjective", towers[0]), ("noun", towers[1])):
        moved = getattr(free, name)
        assert all(
            torch.equal(a, b)
            for a, b in zip(tower.body.parameters(), moved.body.parameters(), strict=True)
        )
        assert not torch.equal(tower.out.weight, moved.out.weight)


def test_a_weighted_rule_can_learn_to_ignore_a_useless_half():
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    truth = torch.randint(len(pairs), (600,), generator=seeded_generator(0))
    adjective = torch.nn.functional.one_hot(pairs[truth, 0], 3) * 0.7 + 0.1
    noun = torch.rand(600, 4, generator=seeded_generator(1)).softmax(1)
    rule = M.LogLinear(pairs)
    T.train_on(rule, adjective, noun, labels=truth, num_epochs=60, lr=3e-2)
    assert rule.weight[0].item() > 0.8 and abs(rule.weight[1].item()) < 0.35


def test_zennit_gives_the_same_relevance():
    pytest.importorskip("zennit", reason="zennit comes with avpapers[peers]")
    from avpapers.anp.performance import with_zennit

    torch.manual_seed(0)
    fusion = M.Fusion(5, 6, 7, hidden=32)
    a, n = (2 * torch.randn(20, 5)).softmax(1), (2 * torch.randn(20, 6)).softmax(1)
    fusion.whiten_by(a, n)
    top = fusion(a, n).topk(3).indices
    torch.testing.assert_close(
        M.contributions(fusion, a, n, top), with_zennit(fusion, a, n, top)(), atol=1e-5, rtol=1e-3
    )


def test_hand_worked_shift_and_pairs():
    frame = pd.DataFrame(
        {
            "pair": [0, 0, 1, 1],
            "pair_5": True,
            "adjective_5": [True, False, True, True],
            "noun_5": True,
            "probability": [1.0, 3.0, 2.0, 2.0],
            "released": 1.0,
            "gain_adjective": [1.0, 3.0, 1.0, 1.0],
            "gain_noun": [1.0, 3.0, 3.0, 3.0],
        }
    )
    pairs = E.by_pair(frame)
    assert (
        pairs["probability"].tolist() == [2, 2]
        and pairs["share"].tolist() == [0.5, 0.25]
        and pairs["pictures"].tolist() == [2, 2]
    )
    assert E._shift(frame, "5") == pytest.approx((1 + 0 + 1 + 0 + 0 + 0) / 6)


@pytest.fixture(scope="module")
def small():
    config = replace(E.PAIRS["smoke"], num_epochs=8, per_pair=6)
    record = Record(paper="anp", experiment="pairs", tier="smoke", seed=0, module="", config={})
    world = D.drawn_world(8, 12, 24, seed=0)
    study = E.draw_study(config, Run(record), world, 0.8, 6, keep=False)
    return study, E.train_nets(study), world


def test_smaller_studies_are_the_first_pictures_of_each_pair(small):
    study, _, world = small
    part = E.first_of_each(study, 2)
    assert torch.equal(part.sets["train"].pair.bincount(), torch.full((24,), 2)) and torch.equal(
        part.sets["fusion"].pair.bincount(), torch.full((24,), 1)
    )
    again = E.draw_study(study.config, study.run, world, 0.8, 6, keep=False)
    torch.testing.assert_close(again.features["train"][::6], part.features["train"][::2])
    D.check(part.sets["train"])


def test_a_branch_that_says_nothing_has_no_share(small):
    study, nets, _ = small
    pair = study.sets["test"].pair
    mean = nets.fusion.mean[12:].expand(len(pair), -1)
    frame = E.credit(study, nets, (nets.says["test"][0], mean), pair)
    assert frame["gain_noun"].abs().max() < 1e-5 and frame["gain_adjective"].abs().max() > 0.1


def test_the_study_beats_chance_and_obeys_bayes(small):
    study, nets, _ = small
    frame = E.credit(study, nets, nets.says["test"], study.sets["test"].pair)
    assert (
        frame["adjective_1"].mean() > 3 / 12
        and frame["noun_1"].mean() > 2 / 8
        and frame["pair_5"].mean() > 5 / 24
    )
    for row in E.codetection_rows(frame):
        for a in E.PARTS:
            for b in E.PARTS:
                if a != b:
                    assert row[f"{a}_rate"] * row[f"{b}_given_{a}"] == pytest.approx(
                        row[f"{b}_rate"] * row[f"{a}_given_{b}"]
                    )


def test_a_second_thing_is_where_it_was_set():
    pictures, other = torch.zeros(40, 3, 20, 20), torch.ones(40, 3, 20, 20)
    out = D.set_into_corner(pictures, other, share=0.5, generator=seeded_generator(0))
    assert (
        torch.allclose(out.mean((1, 2, 3)), torch.full((40,), 0.25))
        and len({tuple(o[0, ::19, ::19].flatten().tolist()) for o in out}) == 4
    )
    assert pictures.max() == 0
    with pytest.raises(ValueError, match="share"):
        D.set_into_corner(pictures, other, share=0, generator=seeded_generator(0))


def test_evidence_that_is_taken_away(small):
    study, nets, world = small
    rows = pd.DataFrame(E.erased_rows(study, nets, world)).set_index(["part", "erased"])
    same = rows.xs(0.0, level="erased")
    assert same["anr"].iloc[0] == pytest.approx(
        same["anr"].iloc[1]
    )  # nothing taken away: the same pictures
    assert (
        rows.loc[("adjective", 1.0), "gain_adjective"]
        < rows.loc[("adjective", 0.0), "gain_adjective"]
    )
    assert rows.loc[("noun", 1.0), "gain_noun"] < rows.loc[("noun", 0.0), "gain_noun"]


@pytest.fixture()
def photographs(tmp_path, monkeypatch):
    "Sixty small files in the layout of MT-VSO: color is the adjective, stripes are the noun."
    adjectives, nouns = (
        ("red", "green", "blue", "dark", "bright", "gray"),
        ("a", "b", "c", "d", "e", "f"),
    )
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (20, 20, 20), (250, 250, 250), (128, 128, 128))
    pairs = [(a, n) for a in range(6) for n in (a, (a + 1) % 6)]
    for name, values in (
        ("adj", adjectives),
        ("noun", nouns),
        ("anp", [f"{adjectives[a]}_{nouns[n]}" for a, n in pairs]),
    ):
        (tmp_path / f"mtvso_{name}labels.txt").write_text("\n".join(values))
    lines = {"train": [], "test": []}
    for k, (a, n) in enumerate(pairs):
        for i in range(8):
            file, part = f"{k}-{i}.jpg", "test" if i > 5 else "train"
            image = Image.new("RGB", (40, 40), colors[a])
            image.paste((255, 255, 0), (0, 6 * n, 40, 6 * n + 4))
            image.save(tmp_path / file)
            lines[part].append(f"{file} {k} {n} {a}")
    for part, rows in lines.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(rows))
    monkeypatch.setenv("AVPAPERS_MTVSO", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("tuned", [False, True])
def test_photographs_from_files(photographs, tuned):
    backbone = "resnet10t" if tuned else "efficientnet_lite0"
    config = E.Config(
        num_epochs=3,
        hidden=16,
        fusion_hidden=32,
        size=32,
        backbone=backbone,
        matched="resnet10t",
        tuned=tuned,
        lr=1e-2,
        photographs=True,
    )
    record = pairs_of(config)
    roles = {(row["role"], row.get("variant")) for row in record.rows}
    wanted = ("fusion", "single", "free", "product", "relevance", "codetection", "planted")
    assert {(r, None) for r in wanted} | {("single", "matched")} <= roles
    assert record.data[0].model_dump() == {
        "name": "mtvso",
        "checksum": "as read",
        "stand_in": False,
    }
    assert record.units["test pictures"] == 24
    runs = {"pairs": Runs([record, record.model_copy(update={"seed": 1})])}
    told = {c.id: c.decide(runs) for c in paper.claims.values()}
    assert told["AN-8"] is None and all(
        outcome is not None for name, outcome in told.items() if name != "AN-8"
    )


def pairs_of(config):
    return execute(paper, paper.experiments["pairs"], tier="smoke", seed=0, size=config)


def test_photographs_that_are_not_there(monkeypatch, photographs):
    (photographs / "0-0.jpg").write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"0-0\.jpg"):
        pairs_of(E.Config(size=32, photographs=True))
    monkeypatch.delenv("AVPAPERS_MTVSO")
    with pytest.raises(FileNotFoundError, match="AVPAPERS_MTVSO"):
        pairs_of(E.Config(size=32, photographs=True))


def test_pictures_are_set_aside_for_the_fusion(tmp_path):
    data = D.with_fusion_split(D.mtvso(D.write_fixture("mtvso", tmp_path / "a")))
    assert data.split.count("test") == 3
    folder = D.write_fixture("mit_states", tmp_path / "b")
    for pair in (folder / "images").iterdir():
        for k in range(2, 10):
            (pair / f"{k}.jpg").touch()
    anew = D.with_fusion_split(D.mit_states(folder), seed=1)
    for split, count in (("train", 6), ("fusion", 2), ("test", 2)):
        assert anew.take(split).pair.bincount().tolist() == [count] * 4


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: T.train_on(
                torch.nn.Linear(2, 2), torch.ones(3, 2), labels=torch.zeros(2, dtype=torch.long)
            ),
            "equally many",
        ),
        (
            lambda: T.train_tower(
                torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.long), 2
            ),
            "NaN",
        ),
        (lambda: T.PictureBatches(".", ("a",), torch.zeros(2), lambda p: p), "files, labels: got"),
        (lambda: E.Config(per_pair=0), "per_pair"),
        (lambda: D.drawn_pictures(D.drawn_world(8, 5, 16), 1, opacity=2), "opacity"),
        (lambda: D.drawn_pictures(D.drawn_world(8, 5, 16), 1, strength=-1), "strength"),
    ],
)
def test_wrong_calls_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
