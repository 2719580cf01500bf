"The parts of uncertainty, mc_dropout on many models, the noisy loss, and the measures."

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avpapers.core import benchmark as B
from avpapers.core import calibration as C
from avpapers.core.random import seeded_generator
from avpapers.suite.records import Record
from avpapers.suite.run import Run
from avpapers.uncertainty import data as D
from avpapers.uncertainty import experiments as E
from avpapers.uncertainty import model as M
from avpapers.uncertainty import performance as P
from avpapers.uncertainty import training as T
from avpapers.uncertainty.claims import paper
from avpapers.uncertainty.masks import DropoutOn, Masks
from avpapers.uncertainty.model import decompose, mc_dropout


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed))


# The parts


@given(
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(2, 5),
    st.floats(0.01, 30),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_parts_add_up(passes, items, classes, scale, seed):
    z = scale * normal(passes, items, classes, seed=seed)
    u, p = decompose(z), z.double().softmax(-1)
    torch.testing.assert_close(
        u.predictive_entropy, u.expected_entropy + u.mutual_information, atol=2e-6, rtol=1e-5
    )
    assert (u.mutual_information >= 0).all() and (
        u.predictive_entropy <= math.log(classes) + 1e-5
    ).all()
    torch.testing.assert_close(
        u.aleatoric_variance.double(), (1 - p.square().sum(-1)).mean(0), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        u.epistemic_variance.double(), p.var(0, correction=0).sum(-1), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        u.released_epistemic, z.var((0, 2), correction=0), rtol=1e-4, atol=1e-5
    )
    exact = -torch.xlogy(p.mean(0), p.mean(0)).sum(-1)
    torch.testing.assert_close(u.predictive_entropy.double(), exact, atol=1e-5, rtol=1e-4)


def test_order_of_passes_is_nothing_and_equal_passes_agree():
    z = 3 * normal(9, 20, 4)
    u, turned, alike = (
        decompose(z),
        decompose(z[torch.randperm(9)]),
        decompose(z[:1].expand(9, -1, -1)),
    )
    for name in (
        "probs",
        "mutual_information",
        "epistemic_variance",
        "logit_variance",
        "released_epistemic",
    ):
        torch.testing.assert_close(getattr(u, name), getattr(turned, name), atol=1e-5, rtol=1e-4)
    assert alike.mutual_information.max() < 1e-6 and alike.epistemic_variance.max() < 1e-10


def test_released_formula_worked_example():
    "Logits 0, 2 in one pass, 4, 6 in the other: mean 3, squares 9, 1, 1, 9 -> 5; passes alone 4."
    u = decompose(torch.tensor([[[0.0, 2.0]], [[4.0, 6.0]]]))
    assert u.released_epistemic.item() == pytest.approx(
        5
    ) and u.logit_variance.item() == pytest.approx(4)


def test_logit_noise_flattens_and_vanishes():
    z, noise = 2 * normal(3, 10, 4), normal(400, 4, seed=1)
    still = decompose(z, torch.full((3, 10), -30.0), noise=noise)
    torch.testing.assert_close(still.probs, decompose(z).probs, atol=1e-5, rtol=1e-4)
    loud = decompose(z, torch.full((3, 10), 3.0), noise=noise)
    assert (loud.predictive_entropy > still.predictive_entropy).float().mean() > 0.9
    assert loud.learned_variance[0].item() == pytest.approx(math.exp(3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: decompose(normal(5, 3)), "logits: got shape"),
        (lambda: decompose(normal(5, 3, 1)), "at least 2 classes"),
        (lambda: decompose(torch.full((2, 3, 2), torch.nan)), "NaN, first in items"),
        (lambda: decompose(normal(5, 3, 2), normal(3, 5)), "log_variance: got shape"),
        (lambda: decompose(normal(5, 3, 2), noise=normal(4, 2)), "without log_variance"),
    ],
)
def test_wrong_logits_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# mc_dropout


def chain(p=0.3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(8, 8),
            nn.Tanh(),
            nn.Dropout(p),
            nn.Linear(8, 3),
        )


class Residual(nn.Module):
    "A skip over the dropout, batch normalization, a functional dropout, a nested block."

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.block = nn.ModuleDict({"inner": nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8))})
        self.out = nn.Linear(8, 3)

    def forward(self, x, scale=1.0):
        h = self.norm(self.first(x))
        return self.out(F.dropout(h + scale * self.block["inner"](h), 0.2, training=self.training))


@pytest.mark.parametrize("make", [chain, Residual])
@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_model_is_left_as_it_was(make, masks):
    model = make()
    list(model.modules())[2].eval()
    flags = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    u = mc_dropout(model, 20, masks=masks)(normal(5, 6))
    assert (u.mutual_information > 1e-6).all() and u.num_samples == 20
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_flags_come_back_after_an_error():
    class Broken(Residual):
        def forward(self, x):
            super().forward(x)
            raise OSError("no")

    model = Broken().train()
    with pytest.raises(OSError):
        mc_dropout(model)(normal(3, 6))
    assert all(m.training for m in model.modules())
    torch.manual_seed(0)
    assert torch.equal(
        F.dropout(torch.ones(4), 0.5, training=False), torch.ones(4)
    )  # the mode is off again


@pytest.mark.parametrize("make", [chain, Residual])
def test_a_row_does_not_depend_on_its_batch(make):
    model, x = make(), normal(30, 6)
    whole = mc_dropout(model, 40)(x)
    for part in (x[4:5], x[[4, 2, 9]], x[2:20:2]):
        found = mc_dropout(model, 40)(part)
        at = [int((x == row).all(1).nonzero()[0]) for row in part]
        torch.testing.assert_close(found.probs, whole.probs[at], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            found.mutual_information, whole.mutual_information[at], atol=1e-6, rtol=1e-3
        )
    tight = mc_dropout(model, 40, max_bytes=3000)(x)
    torch.testing.assert_close(tight.probs, whole.probs, atol=1e-6, rtol=1e-5)


def test_seeds():
    x, model = normal(4, 6), Residual()
    first, second, other = (mc_dropout(model, 10, seed=s)(x).probs for s in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    asked = mc_dropout(model, 10)
    assert torch.equal(asked(x).probs, asked(x).probs)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    asked(x)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is not touched


def test_against_every_mask_there_is():
    "Three hidden units: the exact predictive distribution is a sum over eight masks."
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.4), nn.Linear(3, 2))
    x = 2 * normal(5, 2)
    exact = torch.zeros(5, 2)
    for kept in itertools.product((0.0, 1.0), repeat=3):
        mask = torch.tensor(kept)
        weight = math.prod(0.6 if k else 0.4 for k in kept)
        exact += weight * model[2](model[0](x) * mask / 0.6).softmax(1).detach()
    for how in ({}, {"masks": "independent"}, {"method": "vmap"}):
        found = mc_dropout(model, 20_000, **how)(x).probs
        torch.testing.assert_close(found, exact, atol=0.012, rtol=0)
    torch.testing.assert_close(
        mc_dropout(model, 3000, method="loop")(x).probs, exact, atol=0.03, rtol=0
    )


@pytest.mark.parametrize(
    "model",
    [
        chain(),
        nn.Sequential(
            nn.Linear(6, 8),
            nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Linear(8, 4, bias=False), nn.GELU())),
        ),
        nn.Sequential(
            nn.Dropout(0.2), nn.Dropout(0.3), nn.Linear(6, 3), nn.ReLU(), nn.Dropout(0.0)
        ),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5)),
        M.StochasticLogitHead(6, 4, generator=seeded_generator(0)),
    ],
)
def test_thinned_equals_mapped(model):
    x = normal(11, 6)
    assert mc_dropout(model, 30).path(x) == "thin"
    thin, mapped = (
        mc_dropout(model, 30, method=m, max_bytes=b).sample(x)
        for m, b in (("thin", 20_000), ("vmap", None))
    )
    torch.testing.assert_close(thin, mapped, atol=1e-5, rtol=1e-4)


def test_thinning_is_not_used_where_it_could_be_wrong():
    hooked = chain()
    hooked[3].register_forward_hook(lambda m, i, o: o)

    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, self.training)

    normed = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 2))
    hidden = nn.Sequential(Noisy(), nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    for model in (hooked, Residual(), normed, hidden):
        assert mc_dropout(model.eval()).path(normal(3, 6)) == "vmap"
    with pytest.raises(ValueError, match="chain of layers"):
        mc_dropout(normed, method="thin")
    with pytest.raises(ValueError, match="shared"):
        mc_dropout(chain(), method="thin", masks="independent")
    assert (mc_dropout(hidden, 20)(normal(3, 6)).mutual_information > 1e-6).all()


@pytest.mark.parametrize(
    "kind, shape",
    [(nn.Dropout1d, (4, 6, 5)), (nn.Dropout2d, (4, 6, 5, 3)), (nn.Dropout3d, (4, 6, 5, 3, 2))],
)
def test_channel_dropout_drops_channels(kind, shape):
    layer, x = kind(0.5), torch.ones(shape)
    with DropoutOn(Masks(2, 0), 1):
        out = layer(x).flatten(2)
    assert ((out == 0).all(2) | (out == 2).all(2)).all() and 0 < (out == 0).float().mean() < 1


def test_alpha_dropout_keeps_mean_and_variance():
    x = normal(1, 200_000, seed=1)
    with DropoutOn(Masks(1, 0), 0):
        out, on_zeros = (
            nn.AlphaDropout(0.3)(x),
            F.alpha_dropout(torch.zeros(1, 1000), 0.3, training=True),
        )
    assert out.mean().item() == pytest.approx(0, abs=0.02) and out.std().item() == pytest.approx(
        1, abs=0.02
    )
    theirs = F.alpha_dropout(torch.zeros(1, 1000), 0.3, training=True).unique()
    torch.testing.assert_close(on_zeros.unique(), theirs, atol=1e-4, rtol=1e-4)


def test_dropout_of_everything_and_of_nothing():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(1.0), nn.Linear(8, 2))
    torch.testing.assert_close(
        mc_dropout(model, 5).sample(normal(3, 6)), model[2].bias.detach().expand(5, 3, -1)
    )
    with pytest.raises(ValueError, match="no dropout with p > 0"):
        mc_dropout(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.0), nn.Linear(8, 2)))(normal(3, 6))


def test_attention_drops_and_batch_norm_does_not_move():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer.self_attn.dropout = 0.4
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for masks in ("shared", "independent"):
            u = mc_dropout(model, 30, masks=masks)(normal(3, 4, 8))
            assert (u.mutual_information > 1e-7).all()
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    q, k, v = (normal(2, 4, 8, seed=s) for s in range(3))
    with DropoutOn(Masks(1, 0), 0):
        ours = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, dropout_p=1e-12)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_models(attention):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": 3,
    }
    off = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = BertForSequenceClassification(
        BertConfig(**sizes, **off, attention_probs_dropout_prob=0.5, attn_implementation=attention)
    )
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    tokens = torch.randint(1, 50, (3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u = mc_dropout(model, 30)(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    assert (
        u.probs.shape == (3, 3) and (u.mutual_information > 1e-6).all()
    )  # dropout inside attention is all there is


def test_recurrent_dropout_falls_back_to_a_loop():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.drop, self.out = (
                nn.LSTM(4, 8, batch_first=True),
                nn.Dropout(0.5),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            return self.out(self.rnn(self.drop(x))[0][:, -1])

    with pytest.warns(UserWarning, match="one by one"):
        u = mc_dropout(Recurrent(), 20)(normal(5, 7, 4))
    assert (u.mutual_information > 1e-7).all()
    with pytest.raises(RuntimeError):
        mc_dropout(Recurrent(), 20, method="vmap")(normal(5, 7, 4))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_samples": 1}, "num_samples"),
        ({"num_samples": 2.5}, "num_samples"),
        ({"masks": "some"}, "masks"),
        ({"method": "fast"}, "method"),
        ({"logit_draws": 3}, "heteroscedastic"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        mc_dropout(chain(), **wrong)


def test_wrong_inputs_raise():
    asked = mc_dropout(chain(), 5)
    with pytest.raises(ValueError, match="empty"):
        asked(normal(0, 6))
    with pytest.raises(ValueError, match="NaN"):
        asked(torch.full((2, 6), torch.nan))
    with pytest.raises(ValueError, match="no|none"):
        asked(3)
    with pytest.raises(ValueError, match="logits"):
        mc_dropout(nn.Sequential(nn.Dropout(0.5)), 5)(normal(2, 3, 4))


def test_arguments_with_and_without_a_batch_axis():
    model, x = Residual(), normal(20, 6)
    half = mc_dropout(model, 10, max_bytes=2000)(x, scale=0.5)
    torch.testing.assert_close(
        half.probs, mc_dropout(model, 10)(x, 0.5).probs, atol=1e-6, rtol=1e-5
    )
    assert not torch.allclose(half.probs, mc_dropout(model, 10)(x).probs)


def test_no_gradient_and_doubles():
    model, x = chain().double(), normal(4, 6).double().requires_grad_()
    u = mc_dropout(model, 10)(x)
    assert not u.probs.requires_grad and u.to_frame().shape[0] == 4


# The loss and the head


@given(st.integers(0, 50), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_jensen(seed, v):
    outputs = torch.cat([2 * normal(6, 4, seed=seed), torch.full((6, 1), v)], 1)
    votes, noise = normal(6, 4, seed=seed + 1).softmax(1), normal(8, 6, 4, seed=seed + 2)
    first, second = (T.noisy_cross_entropy(outputs, votes, noise=noise, form=f) for f in T.FORMS)
    entropy = -torch.xlogy(votes, votes).sum(1)
    assert (first >= second - 1e-5).all() and (second >= entropy - 1e-5).all()


def test_head_bounds_its_variance_and_starts_small():
    head = M.StochasticLogitHead(5, 3, generator=seeded_generator(0))
    out = head(1000 * normal(50, 5))
    assert out.shape == (50, 4) and out[:, -1].min() >= -8 and out[:, -1].max() <= 5
    assert head(torch.zeros(1, 5))[0, -1].item() == pytest.approx(-2, abs=0.5)
    assert M.StochasticLogitHead(5, 3, heteroscedastic=False)(normal(2, 5)).shape == (2, 3)


def test_items_of_weight_zero_have_no_effect():
    x, votes = normal(200, 5), normal(200, 3, seed=1).softmax(1)
    weights = (torch.arange(200) % 4 > 0).float()
    other = torch.where(weights[:, None] > 0, votes, votes.roll(1, 1))
    first, second = (
        T.train_head(x, y, heteroscedastic=True, num_epochs=2, weights=weights)[0]
        for y in (votes, other)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "features, votes, weights, message",
    [
        (normal(4, 3), torch.full((5, 2), 0.5), None, "equally many"),
        (torch.full((4, 3), torch.inf), torch.full((4, 2), 0.5), None, "features: got NaN"),
        (normal(4, 3), torch.ones(4, 2), None, "sum to 1"),
        (normal(4, 3), torch.full((4, 2), 0.5), torch.zeros(4), "weights"),
    ],
)
def test_wrong_training_data_raise(features, votes, weights, message):
    with pytest.raises(ValueError, match=message):
        T.train_head(features, votes, heteroscedastic=False, weights=weights)


def test_standardize_guards_constant_features():
    x = torch.cat([normal(50, 2), torch.ones(50, 1)], 1)
    out = T.Standardize(x)(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert (out[:, 2] == 0).all() and torch.isfinite(out).all()


def test_a_checkpoint_resumes(tmp_path):
    x, votes = normal(200, 5), normal(200, 3, seed=1).softmax(1)
    whole, _ = T.train_head(x, votes, heteroscedastic=True, num_epochs=6)
    T.train_head(x, votes, heteroscedastic=True, num_epochs=3, checkpoint=tmp_path / "c.pt")
    rest, _ = T.train_head(
        x, votes, heteroscedastic=True, num_epochs=6, checkpoint=tmp_path / "c.pt"
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), rest.state_dict().values(), strict=True)
    )


# What is measured


def tiny(n=40, seed=0):
    votes = torch.multinomial(
        normal(n, 3, seed=seed).softmax(1), 10, replacement=True, generator=seeded_generator(seed)
    )
    counts = F.one_hot(votes, 3).sum(1).float()
    names = tuple(map(str, range(n)))
    return D.Rated(
        "tiny",
        names,
        counts,
        ("a", "b", "c"),
        ("test",) * n,
        names,
        D.vote_disagreement(counts),
        inputs=normal(n, 5),
    )


def test_one_pass_claims_no_epistemic_knowledge():
    data = tiny()
    row = E.measure(decompose(normal(1, 40, 3)), data, seed=0)
    assert "r_mutual" not in row and "r_learned" not in row and "r_expected" in row
    row = E.measure(decompose(normal(5, 40, 3), normal(5, 40)), data, seed=0)
    assert {
        "r_mutual",
        "r_learned",
        "r_learned_shuffled",
        "partial_learned",
        "auroc_error_mutual",
    } <= set(row)


def test_perfect_knowledge_of_votes_is_recognized():
    data = tiny(400)
    found = decompose(data.probs.clamp_min(1e-9).log()[None].expand(3, -1, -1))
    row = E.measure(found, data, seed=0)
    assert row["accuracy"] == 1 and row["kl_to_votes"] < 1e-5 and row["r_expected"] > 0.9
    assert (
        abs(row["r_mutual"]) <= 1
        and found.aleatoric_variance.sub(data.disagreement).abs().max() < 1e-5
    )


def test_a_calibrated_model_looks_like_its_twin():
    probs = (2 * normal(20_000, 3)).softmax(1)
    labels = torch.multinomial(probs, 1, generator=seeded_generator(1))[:, 0]
    names = tuple(map(str, range(len(probs))))
    data = D.Rated(
        "drawn",
        names,
        F.one_hot(labels, 3).float(),
        ("a", "b", "c"),
        ("test",) * len(probs),
        names,
        torch.zeros(len(probs)),
    )
    honest = E.calibration_by_fifth(decompose(probs.log()[None]), data, seed=0)
    sure = E.calibration_by_fifth(decompose(3 * probs.log()[None]), data, seed=0)
    assert [r["fifth"] for r in honest] == [1, 2, 3, 4, 5]
    assert all(r["gap"] < 5 * r["gap_calibrated"] + 0.002 for r in honest)
    assert sure[4]["gap"] > 10 * sure[4]["gap_calibrated"]
    assert all(a["mean_total"] < b["mean_total"] for a, b in zip(honest, honest[1:], strict=False))


def test_auroc_and_correlation_where_there_is_nothing_to_tell():
    import numpy as np

    assert E.auroc(np.zeros(4, bool), np.arange(4.0)) is None
    assert E.correlation(np.ones(4), np.arange(4.0)) == 0


def test_ferplus_runs_on_its_own_layout(tmp_path):
    "Loader, frozen timm features, head and all rows, on a made-up set of the real layout."
    D.write_fixture("ferplus", tmp_path)
    config = E.Config(None, num_epochs=1, num_samples=5, backbone="resnet10t", folder=str(tmp_path))
    faces = E.load_ferplus(config, pretrained=False, pixels=32)
    run = Run(
        Record(
            paper="uncertainty", experiment="ferplus", tier="smoke", seed=0, module="", config={}
        ),
        real=paper.real,
    )
    E.judged(config, run, faces)
    roles = {(r["role"], r["variant"]) for r in run.rows}
    assert {
        ("none", None),
        ("epistemic", None),
        ("aleatoric", None),
        ("both", None),
        ("both", "by fifth"),
    } <= roles
    assert not run.record.data[0].stand_in
    with pytest.raises(FileNotFoundError, match="AVPAPERS_FERPLUS"):
        E.load_ferplus(replace(config, folder=""), pretrained=False, pixels=32)


def test_frozen_features_see_a_normalized_picture():
    class Mean(nn.Module):
        pretrained_cfg = {
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "input_size": (3, 8, 8),
        }

        def forward(self, x):
            return x.mean((2, 3))

    found = E.frozen_features(torch.full((5, 48, 48), 0.75), Mean(), size=16, batch_size=2)
    torch.testing.assert_close(found, torch.ones(5, 3))


# Performance


def test_ways_that_leave_dropout_off_are_found():
    c = P.SIZES["smoke"]
    with torch.no_grad():
        case = next(k for k in P.cases(c, "cpu") if k["name"] == "dropout everywhere")
        ready, missing = P.prepared(case, 8)
    assert {"ours", "plain loop"} <= set(ready)
    for name in ("baal", "torch-uncertainty"):
        assert name not in ready and any(m.startswith(f"{name}: ") for m in missing)


def test_rows_of_a_case():
    times = {
        "plain pass": [1.0, 1.1, 0.9],
        "ours": [2.0, 2.2, 1.8],
        "plain loop": [20.0, 22.0, 18.0],
    }
    case = B.Case(
        "a",
        times,
        lower_bound=lambda t: [1.5 * s for s in t["plain pass"]],
        references=("plain pass",),
    )
    mine, (loop,) = P.bound_row(case, times), B.speedup_rows(case, times)
    assert mine["cost_over_bound"] == pytest.approx(2 / 1.5) and loop["ratio"] == pytest.approx(10)
    assert loop["bound"] == pytest.approx(20 / 1.5) and loop["fraction_of_bound"] == pytest.approx(
        1.5 / 2
    )


# Calibration


@pytest.mark.parametrize(
    "function", [C.brier_score, C.negative_log_likelihood, C.adaptive_calibration_error]
)
def test_calibration_wants_probabilities(function):
    good, labels = normal(6, 3).softmax(1), torch.tensor([0, 1, 2, 0, 1, 2])
    assert function(good, labels) > 0
    for probs, target, message in (
        (normal(6, 3), labels, "sum to 1"),
        (good, labels + 1, "expected 0 to 2"),
        (good, labels[:3], "target: got shape"),
        (good[:0], labels[:0], "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            function(probs, target)


@given(st.integers(0, 99), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_adaptive_bins_are_even_and_lose_nothing(seed, bins):
    probs, labels = (
        normal(200, 3, seed=seed).softmax(1),
        torch.randint(3, (200,), generator=seeded_generator(seed)),
    )
    table = C.reliability_table(probs, labels, num_bins=bins, adaptive=True)
    assert (
        table["count"].sum() == 200
        and table["count"].max() - table["count"].min() <= 1
        and len(table) == bins
    )
    assert table["confidence"].is_monotonic_increasing
