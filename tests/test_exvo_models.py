"Vocal bursts: known scores, networks without padding, missing labels, grouped networks."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avpapers.core.audio import masked_mean
from avpapers.core.random import seeded_generator, seeded_globals
from avpapers.exvo import model as M
from avpapers.exvo import performance as P
from avpapers.exvo import training as T


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed))


def seeded(make, *args, seed=0, **how):
    with seeded_globals(seed):
        return make(*args, **how)


# The score


def test_concordance_by_hand():
    p = torch.tensor([[1.0, -1.0, 1.0], [2.0, 0.0, 2.0], [3.0, 1.0, 3.0]])
    y = torch.tensor([[2.0, 1.0, 1.0], [3.0, 0.0, 2.0], [4.0, -1.0, 3.0]])
    torch.testing.assert_close(M.concordance(p, y), torch.tensor([4 / 7, -1.0, 1.0]).double())
    as_competition = M.concordance(p, y, as_competition=True)
    torch.testing.assert_close(
        as_competition,
        torch.tensor([0.4444, -0.6667, 0.6667], dtype=torch.float64),
        atol=1e-9,
        rtol=0,
    )


def test_a_constant_has_no_concordance():
    y = draw(20, 2)
    assert M.concordance(torch.full_like(y, 0.3), y).tolist() == [0, 0]
    assert M.concordance(torch.ones(5, 1), torch.ones(5, 1)).tolist() == [0]


def test_concordance_equals_torchmetrics():
    "torchmetrics divides by N - 1; with equal means the divisor cancels, else it is of order 1/N."
    metric = pytest.importorskip("torchmetrics.regression").ConcordanceCorrCoef(num_outputs=4)
    y = draw(500, 4).double()
    p = 0.6 * y + draw(500, 4, seed=1) * torch.tensor([0.1, 0.5, 1.0, 2.0])
    torch.testing.assert_close(M.concordance(p, y), metric(p, y), atol=2 / 500, rtol=0)
    p, y = p - p.mean(0), y - y.mean(0)
    metric.reset()
    torch.testing.assert_close(M.concordance(p, y), metric(p, y), atol=1e-6, rtol=0)


@given(st.integers(2, 40), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_concordance_is_symmetric_bounded_and_without_order(n, seed):
    p, y = draw(n, 3, seed=seed), draw(n, 3, seed=seed + 1)
    found = M.concordance(p, y)
    order = torch.randperm(n, generator=seeded_generator(seed))
    torch.testing.assert_close(M.concordance(p[order], y[order]), found)
    torch.testing.assert_close(M.concordance(y, p), found)
    torch.testing.assert_close(M.concordance(3 * p + 1, 3 * y + 1), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(M.concordance(-p, -y), found)
    assert found.abs().max() <= 1 + 1e-12 and (found.abs() <= _correlation(p, y).abs() + 1e-9).all()


def _correlation(p, y):
    p, y = ((v - v.mean(0)).double() for v in (p, y))
    return (p * y).sum(0) / (p.square().sum(0) * y.square().sum(0)).sqrt()


def test_score_and_its_parts():
    emotion, country, age = (
        torch.rand(6, 10, generator=seeded_generator(0)),
        torch.tensor([0, 0, 0, 1, 2, 3]),
        25 + draw(6),
    )
    right = {"emotion": emotion, "country": nn.functional.one_hot(country, 4).float(), "age": age}
    found = M.score(right, emotion, country, age)
    assert found == pytest.approx({"C": 1, "U": 1, "M": 0, "S": 1.5})
    first = torch.zeros(6, 4)
    first[:, 0] = 1
    part = M.score(
        {"country": first, "age": age + 2}, emotion, country, age
    )  # recall 1, 0, 0, 0, however many of each
    assert part == pytest.approx({"U": 0.25, "M": 2.0}, abs=1e-5)
    assert M.score(right | {"emotion": 1 - emotion}, emotion, country, age)["S"] == 0


def test_what_nobody_knows_is_not_scored():
    emotion, country, age = (
        torch.rand(6, 10, generator=seeded_generator(0)),
        torch.tensor([0, 0, 1, 1, 2, 3]),
        25 + draw(6),
    )
    said = {
        "emotion": emotion.roll(1, 0),
        "country": torch.eye(4)[[0, 1, 1, 1, 2, 0]],
        "age": age + torch.arange(6),
    }
    known = M.score({k: v[:4] for k, v in said.items()}, emotion[:4], country[:4], age[:4])
    emotion[4:], country[4:], age[4:] = math.nan, -1, math.nan
    assert M.score(said, emotion, country, age) == pytest.approx(known) and all(
        map(math.isfinite, known.values())
    )


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_score_is_the_harmonic_mean_and_rises_with_each_part(c, u, m):
    from statistics import harmonic_mean

    found = M.multitask_score(c, u, m)
    assert found == pytest.approx(harmonic_mean([c, u, 1 / m]))
    assert (
        M.multitask_score(c + 0.1, u, m) > found < M.multitask_score(c, u + 0.1, m)
        and M.multitask_score(c, u, m - 0.05) > found
    )
    assert M.multitask_score(-c, u, m) == M.multitask_score(c, 0, m) == 0


# Heads and functionals


def test_heads_speak_in_the_units_of_the_labels():
    heads = seeded(M.Heads, 8, age=(40.0, 5.0), num_emotions=3, num_countries=6)
    x = draw(7, 8)
    out = heads(x)
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "emotion": (7, 3),
        "country": (7, 6),
        "age": (7,),
    }
    assert 0 < out["emotion"].min() and out["emotion"].max() < 1
    torch.testing.assert_close(out["age"], 40 + 5 * heads.by_task["age"](x)[:, 0])
    assert list(M.Heads(8, tasks=("age", "emotion"))(x)) == ["emotion", "age"]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_functionals_do_not_hear_padding(lengths, seed):
    mel, n = draw(len(lengths), 3, 12, seed=seed), torch.tensor(lengths)
    found = M.functionals(mel, n)
    assert found.shape == (len(lengths), 13) and torch.isfinite(found).all()
    spoilt = mel.masked_fill(torch.arange(12) >= n[:, None, None], math.nan)
    torch.testing.assert_close(M.functionals(spoilt, n), found)
    torch.testing.assert_close(M.functionals(mel[:1, :, : lengths[0]], n[:1]), found[:1])


def test_functionals_net_standardizes_and_stays_independent_of_the_batch_in_eval():
    net, x = seeded(M.FunctionalsNet, 5), 7 + 3 * draw(64, 5)
    torch.testing.assert_close(net(x)["age"], net(10 * x - 4)["age"], atol=1e-3, rtol=1e-4)
    net = seeded(M.FunctionalsNet, 5)
    for part in x.split(16):
        net(part)
    torch.testing.assert_close(
        net.body[0].running_mean, x.mean(0)
    )  # every batch has the same share
    net.eval()
    torch.testing.assert_close(net(x[:1])["country"], net(x)["country"][:1])


# Image classifiers


class Bare(nn.Module):
    "A backbone that passes its image on: the bands are the features."

    num_features = 4

    def forward_features(self, images):
        return images.transpose(1, 2)


def test_pooling_takes_true_frames_only():
    net = M.SpectrogramNet(Bare())
    mel, lengths = 5 + 2 * draw(3, 4, 10), torch.tensor([10, 6, 1])
    torch.testing.assert_close(net.features(mel, lengths), masked_mean(mel, lengths))
    torch.testing.assert_close(net.features(mel), mel.mean(2))
    net.standardize_by(mel)
    torch.testing.assert_close(net.features(mel), ((mel - mel.mean()) / mel.std()).mean(2))


def test_a_burst_does_not_hear_its_neighbors():
    net = seeded(M.burst_resnet).eval()
    mel, lengths = draw(4, 64, 96), torch.tensor([96, 70, 40, 5])
    whole = net(mel, lengths)
    for k in range(4):
        alone = net(mel[k : k + 1], lengths[k : k + 1])
        for task in M.TASKS:
            torch.testing.assert_close(alone[task][0], whole[task][k], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(mel)["age"][0], whole["age"][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fill", [0.0, 50.0, float("nan")])
@pytest.mark.parametrize("pad", [1, 16, 133])
def test_padding_is_never_seen(fill, pad):
    "Whatever stands behind a burst, and however much, in either network; after training, too."
    mel, lengths = draw(3, 64, 80), torch.tensor([80, 47, 9])
    longer = torch.cat([mel, mel.new_full((3, 64, pad), fill)], 2)
    longer[1, :, 47:], longer[2, :, 9:] = fill, fill
    nets = [seeded(M.burst_resnet), seeded(M.burst_conformer)]
    nets[0].train()(mel, lengths)  # moves the running statistics of batch normalization
    for net in nets:
        whole, further = net.eval()(mel, lengths), net(longer, lengths)
        for task in M.TASKS:
            torch.testing.assert_close(further[task], whole[task], atol=1e-4, rtol=1e-3)


def test_backbones_that_look_at_padding_are_refused():
    net = seeded(lambda: M.burst_classifier("mobilenetv3_small_050")).eval()
    mel = draw(2, 64, 64)
    assert net(mel)["age"].isfinite().all()
    with pytest.raises(ValueError, match="lengths: got clips of unequal length for a backbone"):
        net(mel, torch.tensor([64, 30]))


@pytest.mark.parametrize("lengths", [[0, 5], [5, 65]])
def test_lengths_outside_of_the_batch_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths: got .* expected 1 to 64"):
        seeded(M.burst_resnet).eval()(draw(2, 64, 64), torch.tensor(lengths))


@pytest.mark.parametrize("depth, width, millions", [(10, 16, 0.31), (18, 16, 0.70), (18, 8, 0.17)])
def test_narrow_resnets_have_the_expected_size(depth, width, millions):
    net = M.narrow_resnet(depth, width=width)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1e6 * millions, rel=0.05)
    assert net.num_features == 8 * width


def test_any_timm_backbone_by_name():
    net = M.burst_classifier("resnet10t", tasks=("country",), num_countries=3)
    assert {k: tuple(v.shape) for k, v in net(draw(2, 32, 48), torch.tensor([48, 20])).items()} == {
        "country": (2, 3)
    }


# The Conformer


@pytest.fixture(scope="module")
def conformer():
    net = seeded(M.Conformer, 16, width=24, num_blocks=2).eval()
    for k, block in enumerate(net.blocks):
        with torch.no_grad():
            block.distance.weight.copy_(draw(*block.distance.weight.shape, seed=k))
    return net


@given(st.lists(st.integers(4, 40), min_size=1, max_size=3), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_conformer_does_not_hear_padding(conformer, lengths, seed):
    mel, n = draw(len(lengths), 16, 40, seed=seed), torch.tensor(lengths)
    layers, frames = conformer(mel, n)
    assert frames.tolist() == [math.ceil(k / 4) for k in lengths] and len(layers) == 3
    padded = torch.arange(40) >= n[:, None, None]
    louder, _ = conformer(torch.where(padded, 100.0, mel), n)
    for k, (length, t) in enumerate(zip(lengths, frames.tolist(), strict=True)):
        alone, _ = conformer(mel[k : k + 1, :, :length], n[k : k + 1])
        for whole, loud, one in zip(layers, louder, alone, strict=True):
            torch.testing.assert_close(whole[k, :t], one[0], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(whole[k, :t], loud[k, :t], atol=1e-4, rtol=1e-3)


@given(st.integers(3, 20), st.integers(0, 20), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_a_block_knows_distances_and_not_places(conformer, size, shift, seed):
    "The same frames later in the silence: the same result, as much later."
    block, x = conformer.blocks[0], draw(1, size, 24, seed=seed)
    early, late = (
        draw(1, 40, 24, seed=seed + 1),
        draw(1, 40, 24, seed=seed + 2),
    )  # silence need not be silent
    early[:, :size], late[:, shift : shift + size] = x, x
    place = torch.arange(40)[None]
    first, second = (
        block(s, (place >= k) & (place < k + size))[:, k : k + size]
        for s, k in ((early, 0), (late, shift))
    )
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)
    turned = block(x.flip(1), torch.ones(1, size, dtype=torch.bool)).flip(1)
    assert not torch.allclose(turned, first, atol=1e-3)


def test_gradients_of_a_conformer_are_finite_and_reach_everything():
    net = seeded(M.burst_conformer, 16, tasks=("emotion", "age"))
    out = net(draw(3, 16, 40), torch.tensor([40, 9, 1]))
    sum(v.sum() for v in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(
        block.distance.weight.grad.abs().sum() > 0 and block.mix.weight.grad.abs().sum() > 0
        for block in net.conformer.blocks
    )


def test_layer_means_are_means_of_layers(conformer):
    mel, n = draw(3, 16, 40), torch.tensor([40, 13, 4])
    with torch.no_grad():
        layers, frames = conformer(mel, n)
    found = M.layer_means(conformer, mel, n)
    assert found.shape == (3, 3, 24) and not found.requires_grad
    for mean, layer in zip(found, layers, strict=True):
        for b, t in enumerate(frames):
            torch.testing.assert_close(mean[b], layer[b, :t].mean(0))
    last = M.ConformerNet(conformer, tasks=("age",))
    torch.testing.assert_close(last(mel, n)["age"], last.heads(found[-1])["age"])


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: M.concordance(torch.ones(3, 2), torch.ones(3, 1)),
            ("prediction", "(3, 2)", "(3, 1)"),
        ),
        (lambda: M.concordance(torch.ones(1, 2), torch.ones(1, 2)), ("at least 2",)),
        (lambda: M.Heads(8, tasks=("mood",)), ("tasks", "emotion, country, age", "mood")),
        (lambda: M.Heads(8, tasks=()), ("tasks",)),
        (lambda: M.narrow_resnet(34), ("depth", "10, 18", "34")),
        (lambda: M.narrow_resnet(width=1), ("width", "at least 2", "1")),
        (lambda: M.Conformer(kernel=6), ("kernel", "odd", "6")),
        (lambda: M.Conformer(width=30, num_heads=4), ("width", "num_heads", "30")),
        (lambda: T.TaskWeights("loud"), ("weighting", "fixed, normalized, learned", "loud")),
        (lambda: T.TaskWeights("normalized"), ("scales", "constant_losses")),
        (lambda: M.grouped([nn.Linear(2, 2)]), ("networks", "Linear")),
        (
            lambda: P.customary_steps(P.functionals_net(SMOKE, "cpu"), None, habits=("luck",)),
            ("habits", "luck"),
        ),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


# Losses

SMOKE = P.SIZES["smoke"]


def test_losses_by_hand():
    outputs = {
        "emotion": torch.tensor([[0.5, 0.5], [1.0, 0.0]]),
        "country": torch.zeros(2, 4),
        "age": torch.tensor([30.0, 20.0]),
    }
    found = T.task_losses(
        outputs,
        torch.tensor([[0.5, 0.0], [0.0, 0.0]]),
        torch.tensor([2, 0]),
        torch.tensor([33.0, 24.0]),
        age_std=5.0,
    )
    torch.testing.assert_close(
        found,
        {
            "emotion": torch.tensor(1.25 / 4),
            "country": torch.tensor(math.log(4)),
            "age": torch.tensor(12.5 / 25),
        },
    )
    assert list(T.task_losses({"age": outputs["age"]}, *[torch.zeros(2)] * 3, age_std=1.0)) == [
        "age"
    ]


def test_what_nobody_knows_costs_nothing():
    outputs = {
        "emotion": draw(4, 3).requires_grad_(),
        "country": draw(4, 4).requires_grad_(),
        "age": draw(4).requires_grad_(),
    }
    emotion, country, age = draw(4, 3), torch.tensor([1, -1, 0, -1]), draw(4)
    emotion[1], emotion[2, 0], age[3] = math.nan, math.nan, math.nan
    found = T.task_losses(outputs, emotion, country, age, age_std=2.0)
    kept = emotion.isfinite()
    torch.testing.assert_close(
        found["emotion"], (outputs["emotion"][kept] - emotion[kept]).square().mean()
    )
    torch.testing.assert_close(
        found["country"], nn.functional.cross_entropy(outputs["country"][::2], country[::2])
    )
    torch.testing.assert_close(found["age"], (outputs["age"][:3] - age[:3]).square().mean() / 4)
    sum(found.values()).backward()
    assert all(v.grad.isfinite().all() for v in outputs.values())
    assert (
        not outputs["emotion"].grad[~kept].any()
        and not outputs["country"].grad[1::2].any()
        and outputs["age"].grad[3] == 0
    )


def test_a_batch_without_any_label_has_loss_zero():
    outputs = {"emotion": draw(2, 3).requires_grad_(), "country": draw(2, 4), "age": draw(2)}
    nothing = T.task_losses(
        outputs,
        torch.full((2, 3), math.nan),
        torch.tensor([-1, -1]),
        torch.full((2,), math.nan),
        age_std=1.0,
    )
    assert [float(v.detach()) for v in nothing.values()] == [0, 0, 0]


LOSSES = {"emotion": torch.tensor(0.04), "country": torch.tensor(1.2), "age": torch.tensor(0.9)}


def test_fixed_weights_add_and_normalized_ones_divide_first():
    assert float(T.TaskWeights()(LOSSES)) == pytest.approx(2.14)
    scales = {"emotion": 0.08, "country": 1.5, "age": 1.0}
    assert float(T.TaskWeights("normalized", scales)(LOSSES)) == pytest.approx(0.5 + 0.8 + 0.9)
    assert float(T.TaskWeights("normalized", scales)({"age": LOSSES["age"]})) == pytest.approx(0.9)
    assert not list(T.TaskWeights().parameters())


def test_learned_weights_follow_the_formula():
    weights = T.TaskWeights("learned")
    expected = sum(float(v) / (2 * math.exp(-0.33)) - 0.33 / 2 for v in LOSSES.values())
    assert weights(LOSSES).item() == pytest.approx(expected, rel=1e-5)
    one = weights({"age": LOSSES["age"]}).item()
    assert one == pytest.approx(0.9 / (2 * math.exp(-0.33)) - 0.165, rel=1e-5)


def test_learned_weights_come_to_rest_where_every_loss_counts_alike():
    "The derivative by s is zero at exp(s) = L, where each term weighs L / (2 L) = 1/2."
    weights = T.TaskWeights("learned")
    with torch.no_grad():
        for task, loss in LOSSES.items():
            weights.s[task].copy_(loss.log())
    weights(LOSSES).backward()
    assert all(abs(float(s.grad)) < 1e-6 for s in weights.parameters())


# Training


def features(n=96, seed=0, speakers="abcdefgh", frames=16):
    "Spectrograms whose level tells everything."
    level = torch.rand(n, generator=seeded_generator(seed))
    mel = level[:, None, None] * 4 + 0.1 * draw(n, 8, frames, seed=seed + 1)
    emotion = (level[:, None] * torch.linspace(0.5, 1, 3)).clamp(0, 1)
    names = tuple(speakers[k % len(speakers)] for k in range(n))
    return T.Features(
        mel, torch.full((n,), frames), emotion, (level * 3.999).long(), 20 + 20 * level, names
    )


def test_constant_losses_are_those_of_the_best_constant():
    data = features()
    scales = T.constant_losses(data)
    constant = {
        "emotion": data.emotion.mean(0).expand(len(data), -1),
        "age": data.age.mean().expand(len(data)),
        "country": (torch.bincount(data.country) / len(data)).log().expand(len(data), -1),
    }
    found = T.task_losses(
        constant, data.emotion, data.country, data.age, age_std=float(data.age.std(correction=0))
    )
    assert {k: float(v) for k, v in found.items()} == pytest.approx(scales, rel=1e-4)


@pytest.mark.parametrize("weighting", T.WEIGHTINGS)
def test_training_learns_and_repeats_itself(weighting):
    train, validation = features(), features(40, seed=9, speakers="uvwxyz")
    runs = []
    for _ in range(2):
        net = seeded(M.FunctionalsNet, 33, num_emotions=3, age=train.age_scale)
        runs.append(
            T.train_bursts(
                net,
                T.functional_features(train),
                T.functional_features(validation),
                weighting=weighting,
                num_epochs=12,
                lr=1e-2,
                batch_size=16,
            )
        )
    first, second = (torch.cat([p.flatten() for p in r.use("together").parameters()]) for r in runs)
    assert torch.equal(first, second)
    assert set(runs[0].best) == {"emotion", "country", "age", "together"}
    found = M.score(
        T.predict(runs[0].model, T.functional_features(validation)),
        validation.emotion,
        validation.country,
        validation.age,
    )
    assert (
        found["C"] > 0.8
        and found["M"] < 2.5
        and found["S"] == pytest.approx(runs[0].validation["together"], rel=1e-4)
    )
    with pytest.raises(ValueError, match="rule: got .*, expected one of"):
        runs[0].use("luck")


def test_training_keeps_the_best_weights_of_each_rule_and_refuses_shared_speakers():
    train, validation = features(), features(40, seed=9, speakers="uvwxyz")
    with pytest.raises(ValueError, match="got shared speakers"):
        T.train_bursts(
            M.FunctionalsNet(33), T.functional_features(train), T.functional_features(features(8))
        )
    bad = T.functional_features(validation)
    bad.inputs[5, 2] = math.nan
    with pytest.raises(ValueError, match="burst 5"):
        T.train_bursts(M.FunctionalsNet(33), T.functional_features(train), bad)


def test_hidden_spans_cover_their_share_of_true_frames():
    lengths = torch.tensor([200, 60, 3]).repeat(100)
    hidden = T.hidden_spans(lengths, 200, share=0.4, span=3, generator=seeded_generator(0))
    assert not hidden[1::3, 60:].any() and not hidden[2::3, 3:].any()
    assert hidden[::3].float().mean() == pytest.approx(0.4, abs=0.02)
    assert not T.hidden_spans(lengths, 200, share=0.0, generator=seeded_generator(0)).any()


def test_frame_numbers_name_like_frames_alike():
    mel = torch.cat([torch.zeros(4, 8, 20), torch.full((4, 8, 20), 5.0)])
    numbers = T.frame_numbers(mel, num_centers=2)
    assert (
        numbers.shape == (8, 5)
        and len(numbers[:4].unique()) == len(numbers[4:].unique()) == 1
        and numbers[0, 0] != numbers[4, 0]
    )


def test_pre_training_learns_to_name_what_was_hidden():
    mel, lengths = features(64).inputs - 2, torch.full((64,), 16)
    net = seeded(M.Conformer, 8, width=16, num_blocks=1)
    history = T.pretrain_conformer(
        net, mel, lengths, num_epochs=15, num_centers=4, lr=1e-2, batch_size=16
    )
    named = history.table["named"].to_numpy()
    assert not net.training and named[-1] > 0.6 > named[0]


# Networks side by side, and the two ways to train


def test_grouped_nets_are_the_nets():
    networks = [seeded(M.narrow_resnet, seed=s, width=4).eval() for s in range(3)]
    images = draw(2, 3, 32, 32)
    whole = M.grouped(networks)
    for module in networks[0].modules():
        assert getattr(module, "groups", 1) == 1  # the given networks stay as they are
    found = whole.forward_features(images).unflatten(1, (3, -1))
    for s, net in enumerate(networks):
        torch.testing.assert_close(
            found[:, s], net.forward_features(images[:, s : s + 1]), atol=1e-4, rtol=1e-4
        )


def beside(*tasks, width=4):
    return [seeded(M.burst_resnet, seed=s, width=width, tasks=t) for s, t in enumerate(tasks)]


def test_nets_side_by_side_have_gradients_of_their_own():
    """The gradient of a network is that of its own loss, and is clipped by its own norm."""
    networks = [n.double().train() for n in beside(M.TASKS, ("country",), ("age",))]
    for net in networks:
        net.backbone.layer4[0].bn2.weight.data.fill_(1.0)
    whole, mel, lengths = (
        M.GroupedEnsemble(networks),
        draw(6, 32, 48).double(),
        torch.tensor([48, 30, 48, 20, 11, 40]),
    )
    weigh = [1e3, 1.0, 1e-4]  # norms far above and below the largest

    def total(out):
        return sum(v.square().sum() for v in out.values())

    sum(w * total(out) for w, out in zip(weigh, whole(mel, lengths), strict=True)).backward()
    grouped = {k: p.grad.chunk(3) for k, p in whole.body.backbone.named_parameters()}
    heads = [[p.grad.clone() for p in h.parameters()] for h in whole.heads]
    whole.zero_grad()
    for s, (w, net) in enumerate(zip(weigh, networks, strict=True)):
        net.zero_grad()
        (w * total(net(mel, lengths))).backward()
        for k, p in net.backbone.named_parameters():
            torch.testing.assert_close(grouped[k][s], p.grad, atol=1e-9, rtol=1e-7)
        for found, p in zip(heads[s], net.heads.parameters(), strict=True):
            torch.testing.assert_close(found, p.grad)


def test_each_net_is_clipped_by_its_own_norm():
    networks = beside(("country",), ("country",))
    whole = M.GroupedEnsemble(networks)
    for p in whole.parameters():
        p.grad = torch.ones_like(p)
    for p in whole.heads[1].parameters():
        p.grad = 100 * torch.ones_like(p)
    extra = [nn.Linear(1, 1), nn.Linear(1, 1)]
    whole.clip(5.0, extra)
    norms = [
        torch.stack(
            [
                *(p.grad.chunk(2)[s].square().sum() for p in whole.body.parameters()),
                *(p.grad.square().sum() for p in whole.heads[s].parameters()),
            ]
        )
        .sum()
        .sqrt()
        for s in range(2)
    ]
    torch.testing.assert_close(torch.stack(norms), torch.tensor([5.0, 5.0]))
    before = [p.grad.clone() for p in whole.parameters()]
    whole.clip(1e9, extra)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, whole.parameters(), strict=True))


def test_what_cannot_stand_side_by_side_is_refused():
    one, other = beside(("country",), ("country",))
    with pytest.raises(ValueError, match="one shape"):
        M.GroupedEnsemble([one, seeded(M.burst_resnet, width=6)])
    with pytest.raises(ValueError, match="same spectrograms"):
        M.GroupedEnsemble([one, other.standardize_by(3 * draw(4, 8, 9) + 1)])
    with pytest.raises(ValueError, match="weightings: got .*, expected as many"):
        T.train_side_by_side([one], features(8), features(8), weightings=["fixed", "fixed"])


@pytest.mark.parametrize("habits", [P.HABITS, (), *[(h,) for h in P.HABITS]])
def test_habits_change_the_time_and_nothing_else(habits):
    data = P.random_functionals(SMOKE)
    ways = [
        (net := P.functionals_net(SMOKE, "cpu"), make(net, data, batch_size=8, num_steps=2, **how))
        for make, how in ((P.resident_steps, {}), (P.customary_steps, {"habits": habits}))
    ]
    ours, theirs = (float(step()) for _, step in ways)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for a, b in zip(*(net.parameters() for net, _ in ways), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(ways[0][0].body[0].running_mean, ways[1][0].body[0].running_mean)


def test_time_by_operation_adds_up():
    shares = P.time_by_operation(lambda: torch.ones(300, 300) @ torch.ones(300, 300), least=0.0)
    assert sum(shares.values()) == pytest.approx(1) and {"ones", "mm"} <= set(shares)
