"mc_dropout on many kinds of models: the law of the plain loop, or an error or warning that says otherwise."

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avpapers.core.random import seeded_generator, seeded_globals
from avpapers.uncertainty.masks import DropoutOn, Masks
from avpapers.uncertainty.model import decompose, mc_dropout


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded_generator(seed))


def built(make, *args):
    with seeded_globals(0):
        return make(*args).eval()


@torch.no_grad()
def trained(model, call, passes):
    "Passes of torch's own dropout: everything in training mode but batch normalization."
    flags = {m: m.training for m in model.modules()}
    model.train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    with seeded_globals(7):
        found = torch.stack([call(model) for _ in range(passes)])
    for m, flag in flags.items():
        m.training = flag
    return found


def assert_same_law(found, expected, spread=0.3):
    "Mean and variance over passes agree within sampling error."
    error = (expected.var(0) / len(expected) + found.var(0) / len(found)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 5.5 * error + 1e-6).all()
    ratio = found.var(0) / expected.var(0)
    assert (ratio.log().abs() < spread).all(), ratio


class Functional(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, training=self.training)


class Skip(nn.Module):
    def __init__(self, width, p):
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), nn.Dropout(p)

    def forward(self, x):
        return x + self.drop(self.linear(x))


ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softplus, nn.ELU, nn.Mish)
layers = st.one_of(
    st.sampled_from(ACTIVATIONS).map(lambda a: lambda width: a()),
    st.floats(0.1, 0.6).map(lambda p: lambda width: nn.Dropout(p)),
    st.floats(0.1, 0.6).map(lambda p: lambda width: nn.Dropout(p, inplace=True)),
    st.floats(0.1, 0.6).map(lambda p: lambda width: nn.AlphaDropout(p)),
    st.floats(0.1, 0.6).map(lambda p: lambda width: Functional(p)),
    st.floats(0.1, 0.6).map(lambda p: lambda width: Skip(width, p)),
    st.just(lambda width: nn.ReLU(inplace=True)),
    st.just(lambda width: nn.Linear(width, width)),
    st.just(lambda width: nn.BatchNorm1d(width)),
)
networks = st.lists(layers, max_size=5)


def assembled(parts, p, width=8):
    made = [part(width) for part in parts]
    return nn.Sequential(nn.Linear(5, width), nn.Dropout(p), *made, nn.Linear(width, 3, bias=False))


@given(networks, st.floats(0.1, 0.6), st.sampled_from(["shared", "independent"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_networks_have_the_law_of_the_plain_loop(parts, p, masks):
    model, x, passes = built(assembled, parts, p), normal(2, 5), 4000
    found = mc_dropout(model, passes, masks=masks).sample(x)
    many = x.repeat(passes, 1)  # rows have masks of their own there, so each is a pass
    expected = trained(model, lambda m: m(many.clone()), 1)[0].unflatten(0, (passes, 2))
    assert_same_law(found, expected)


@given(networks, st.floats(0.1, 0.9), st.integers(1, 7), st.integers(200, 4000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_path_replays_the_same_masks(parts, p, items, budget):
    model, x = built(assembled, parts, p), normal(items, 5)
    for masks in ("shared", "independent"):
        how = {"masks": masks, "seed": 3}
        loop = mc_dropout(model, 6, method="loop", **how).sample(x)
        for other in ({}, {"method": "vmap"}, {"max_bytes": budget}):
            found = mc_dropout(model, 6, **how, **other).sample(x)
            torch.testing.assert_close(found, loop, atol=1e-5, rtol=1e-4)


# Recurrent layers


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first=True, **options):
        super().__init__()
        self.rnn = kind(4, 6, 3, dropout=0.4, batch_first=batch_first, **options)
        self.out = nn.LazyLinear(3)
        self.last = (slice(None), -1) if batch_first else (-1,)
        self(torch.zeros(1, 1, 4))

    def forward(self, x):
        return self.out(self.rnn(x)[0][self.last])


@pytest.mark.parametrize(
    "kind, options",
    [
        (nn.LSTM, {"proj_size": 3}),
        (nn.GRU, {"bidirectional": True, "batch_first": False}),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_recurrent_dropout(kind, options):
    model = built(lambda: Recurrent(kind, **options))
    first = options.get("batch_first", True)
    x = normal(2, 5, 4) if first else normal(5, 2, 4)
    asked = mc_dropout(model, 1500, method="loop", seed=3)
    before = torch.get_rng_state()
    found = asked.sample(x)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(found, asked.sample(x))
    many = x.repeat_interleave(1500, 0 if first else 1)
    expected = trained(model, lambda m: m(many), 1)[0].unflatten(0, (2, 1500)).transpose(0, 1)
    assert found.shape == (1500, 2, 3)
    assert_same_law(found, expected)
    alike = (x[:1].expand(3, -1, -1)) if first else x[:, :1].expand(-1, 3, -1)
    same = mc_dropout(model, 5, method="loop").sample(alike)
    torch.testing.assert_close(same, same[:, :1].expand(-1, 3, -1))  # one mask for all items


def test_a_recurrent_layer_alone_has_no_dropout():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 6, dropout=0.3), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0][-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = One()
    with pytest.raises(ValueError, match="only between two layers"):
        mc_dropout(model, 5)(normal(6, 3, 4))


# Where the items are


class Flattened(nn.Module):
    "Tokens in the batch axis, item by item or the other way round."

    def __init__(self, minor):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 3)
        self.minor = minor

    def forward(self, x):
        x = x.transpose(0, 1) if self.minor else x
        h = self.drop(self.first(x.flatten(0, 1)).tanh())
        return self.out(h).unflatten(0, x.shape[:2]).mean(0 if self.minor else 1)


class Heads(nn.Module):
    def __init__(self, batch_first, weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=batch_first)
        self.out, self.weights, self.time = nn.Linear(4, 3), weights, 1 if batch_first else 0

    def forward(self, x):
        h = self.attention(x, x, 2 * x, need_weights=self.weights)[0]
        return self.out(h.mean(self.time))


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=batch_first)
        self.layer, self.out, self.time = layer, nn.Linear(4, 3), 1 if batch_first else 0

    def forward(self, x):
        return self.out(self.layer(x).mean(self.time))


LAYOUTS = [
    (Flattened, False, 0),
    (Flattened, True, 0),
    (Heads, True, True, 0),
    (Heads, True, False, 0),
    (Heads, False, True, 1),
    (Encoder, True, 0),
    (Encoder, False, 1),
]


@pytest.mark.parametrize("masks", ["shared", "independent"])
@pytest.mark.parametrize("make, options, axis", [(m, o, a) for m, *o, a in LAYOUTS])
def test_items_on_any_axis(make, options, axis, masks):
    model, x = built(make, *options), normal(3, 5, 4).movedim(0, axis)
    found = mc_dropout(model, 2000, masks=masks).sample(x)
    many = x.repeat_interleave(2000, axis)
    expected = trained(model, lambda m: m(many), 1)[0].unflatten(0, (3, 2000)).transpose(0, 1)
    assert found.shape == (2000, 3, 3)
    assert_same_law(found, expected)
    alike = x.select(axis, 0).unsqueeze(axis).expand_as(x)
    same = mc_dropout(model, 10, masks=masks).sample(alike)
    assert torch.allclose(same, same[:, :1], atol=1e-5) == (masks == "shared")
    cut = mc_dropout(model, 10, masks=masks, max_bytes=1).sample(x)
    torch.testing.assert_close(cut, mc_dropout(model, 10, masks=masks).sample(x))


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 5)

    def forward(self, x, offset, gates=None):
        h = self.out(self.drop(self.first(x))) + offset
        return h if gates is None else h * gates["of items"][0]


@pytest.mark.parametrize("shared", [(), ("offset",), (1,)])
def test_what_all_items_share_is_not_cut(shared):
    "As many classes as items; the gates are per item."
    model, x, offset = built(Biased), normal(5, 6), torch.arange(5.0)
    gates = {"of items": [torch.linspace(1, 2, 5)[:, None]]}
    whole, parts = (
        mc_dropout(model, 8, shared=shared, max_bytes=b).sample(x, offset, gates=gates)
        for b in (None, 1)
    )
    torch.testing.assert_close(whole, parts)
    one = mc_dropout(model, 8).sample(x[2:3], offset, gates={"of items": [torch.tensor([[1.5]])]})
    torch.testing.assert_close(one[:, 0], whole[:, 2])
    with pytest.raises(ValueError, match="shared: got 'wrong'"):
        mc_dropout(model, 8, shared=("wrong",))(x, offset)


def test_a_given_axis_is_used():
    model = built(Encoder, False)
    found = mc_dropout(model, 8, batch_dim=1)(normal(5, 3, 4))
    assert found.probs.shape == (3, 3)
    with pytest.warns(UserWarning, match="found no axis"):  # items do not lie on axis 2
        mc_dropout(model, 8, batch_dim=2)(normal(5, 3, 4))


def test_items_that_depend_on_each_other_are_run_together():
    model = built(
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            nn.BatchNorm1d(8, track_running_stats=False),
            nn.Dropout(0.4),
            nn.Linear(8, 3),
        )
    )
    x = normal(6, 5)
    with pytest.warns(UserWarning, match="whole batch is run at once"):
        found = mc_dropout(model, 3000, max_bytes=1).sample(x)
    # torch's own draws, with the batch statistics of this batch
    h = model[1](model[0](x)).detach()
    many = F.dropout(h.repeat(3000, 1, 1), 0.4)
    assert_same_law(found, model[3](many).detach())


def test_independent_masks_are_not_repeated():
    model = built(lambda: nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2)))
    alike = normal(1, 4).expand(60, -1)
    for budget in (None, 40_000):
        found = mc_dropout(model, 4, masks="independent", max_bytes=budget).sample(alike)
        assert len(found.transpose(0, 1).flatten(1).unique(dim=0)) == 60


# What is dropout


class Own(nn.Module):
    "Dropout written by hand, with torch's random functions."

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if not self.training:
            return x
        if self.how == "bernoulli":
            return x * torch.bernoulli(torch.full_like(x, 0.6)) / 0.6
        if self.how == "in place":
            return x * torch.empty_like(x).bernoulli_(0.6).div_(0.6)
        if self.how == "items":
            return x * torch.rand(len(x), 1).add_(0.6).floor_() / 0.6
        return x * (torch.empty_like(x).uniform_() < 0.6) / 0.6


@pytest.mark.parametrize("how", ["bernoulli", "in place", "items", "uniform"])
@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_dropout_by_behavior(how, masks):
    "Also beside a dropout of torch, where it would be missed in silence."
    parts = (nn.Linear(5, 8), Own(how), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
    model, x = built(lambda: nn.Sequential(*parts)), normal(2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mc_dropout(model, 2000, masks=masks).sample(x)
    many = x.repeat(2000, 1)
    expected = trained(model, lambda m: m(many), 1)[0].unflatten(0, (2000, 2))
    assert_same_law(found, expected)


def test_stochastic_depth():
    from timm.layers import DropPath

    class Block(Skip):
        def __init__(self):
            super().__init__(5, 0.0)
            self.drop = DropPath(0.4)

    model, x = built(lambda: nn.Sequential(Block(), nn.Linear(5, 3))), normal(3, 5)
    for masks in ("shared", "independent"):
        asked = mc_dropout(model, 2000, masks=masks)
        assert asked.path(x) == "vmap"
        without = (asked.sample(x) - model[1](x)).abs().amax(2) < 1e-5  # the branch was dropped
        assert ((without.float().mean(0) - 0.4).abs() < 0.05).all()
        assert bool((without == without[:, :1]).all()) == (masks == "shared")


class Chatty(nn.Module):
    "Noise in training, dropout that is off whatever happens, and one of torch."

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(5, 8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x):
        h = F.dropout(self.first(x), 0.9, training=False)
        if self.training:
            h = h + torch.randn_like(h)
        return self.out(self.drop(h))


class SelfAttentionDropout(Chatty):
    pass


def test_names_decide_nothing_and_noise_stays_off():
    x, found = normal(2, 5), []
    for kind in (Chatty, SelfAttentionDropout):
        with pytest.warns(UserWarning, match=f"{kind.__name__} draws random numbers"):
            found.append(mc_dropout(built(kind), 3000).sample(x))
    assert torch.equal(*found)
    model = built(Chatty)
    many = model.out(F.dropout(model.first(x.repeat(3000, 1)), 0.1)).detach()
    assert_same_law(found[0], many.unflatten(0, (3000, 2)))


def test_noise_alone_is_no_dropout():
    model = built(Chatty)
    model.drop = nn.Identity()
    with pytest.raises(ValueError, match="no dropout.*Chatty draws random numbers"):
        mc_dropout(model)(normal(2, 5))


@pytest.mark.parametrize("functional", [True, False])
def test_a_result_written_in_place(functional):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
            self.drop = nn.Dropout(0.4, inplace=True)

        def forward(self, x):
            F.dropout(x, 0.3, self.training, inplace=True) if functional else self.drop(x)
            return self.out(self.first(x).relu())

    model, x = built(Written), normal(2, 5)
    given = x.clone()
    with pytest.warns(UserWarning, match="one by one, since vmap differs"):
        found = mc_dropout(model, 2000).sample(x)
    assert torch.equal(x, given)
    many = x.repeat(2000, 1)
    assert_same_law(found, trained(model, lambda m: m(many.clone()), 1)[0].unflatten(0, (2000, 2)))
    with pytest.raises(ValueError, match="differs from the loop"):
        mc_dropout(model, 5, method="vmap")(x)


# What changes, and what must not


def small():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def test_a_changed_model_is_examined_again():
    model, x = built(small), normal(3, 5)
    asked = mc_dropout(model, 20)
    first = asked(x).probs
    assert asked.path(x) == "thin"
    model[2].p = 0.0
    with pytest.raises(ValueError, match="no dropout"):
        asked(x)
    model[2].p = 0.4
    assert torch.equal(asked(x).probs, first)
    handle = model[3].register_forward_hook(lambda module, inputs, out: out + 1)
    assert asked.path(x) == "vmap"
    handle.remove()
    model[2] = nn.Identity()
    with pytest.raises(ValueError, match="no dropout"):
        asked(x)


class Branching(nn.Module):
    "Calls its dropout for some values only."

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(5, 8), nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x):
        h = self.drop(self.first(x))
        return self.out(self.drop(h) if x.max() > 10 else h)


def test_another_branch_is_noticed():
    asked, x = mc_dropout(built(Branching), 20), normal(3, 5)
    asked(x)
    with pytest.warns(UserWarning, match="one by one: got"):
        far = asked.sample(10 * x.abs() + 10)
    assert (far.std(0) > 1e-3).all()


def test_no_effect_is_an_error_and_chance_is_not():
    class Lost(Branching):
        def forward(self, x):
            self.drop(self.first(x))
            return self.out(self.first(x))

    with pytest.raises(ValueError, match="equal outputs from all passes"):
        mc_dropout(built(Lost), 10)(normal(3, 5))
    rare = built(lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.02), nn.Linear(3, 2)))
    found = [mc_dropout(rare, 2, seed=s)(normal(1, 2)).epistemic_variance for s in range(5)]
    assert min(map(float, found)) < 1e-12


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.seen = []

    def forward(self, x, fail=None):
        self.count += 1
        self.mean.mul_(0.9).add_(0.1 * x.mean((0, 1)))
        self.seen.append(len(x))
        h = self.norm(self.attention(x, x, x)[0].mean(1))
        if fail is not None and fail.max() > 0:
            raise OSError("midway")
        return self.out(self.drop(h))


def test_nothing_of_the_model_changes():
    model, x = built(Counting), normal(4, 5, 4)
    model.norm.train()
    flags = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    mc_dropout(model, 6)(x)
    with pytest.raises(OSError):
        mc_dropout(model, 6)(x, torch.ones(4))
    assert flags == [m.training for m in model.modules()] and not model.seen
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_threads_share_a_model():
    model, x = built(Counting).train(), normal(4, 5, 4)
    expected, found, seen = mc_dropout(model, 6)(x).probs, [], []

    def work():
        for _ in range(5):
            found.append(mc_dropout(model, 6)(x).probs)
            seen.append(all(m.training for m in model.modules()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and all(torch.equal(f, expected) for f in found) and all(seen)


# Kinds of outputs and numbers


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = small(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def test_outputs_that_hold_logits():
    from transformers.modeling_outputs import SequenceClassifierOutput as Output

    x = normal(3, 5)
    expected = mc_dropout(built(small), 10).sample(x)
    for wrap in (lambda z: {"logits": z, "loss": None}, lambda z: Output(logits=z)):
        found = mc_dropout(built(Wrapped, wrap), 10).sample(x)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for wrong in (lambda z: (z,), lambda z: {"scores": z}):
        with pytest.raises(ValueError, match="expected a tensor of logits"):
            mc_dropout(built(Wrapped, wrong), 10)(x)
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        mc_dropout(built(small), 10)(normal(3, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    for make in (small, lambda: Heads(True, True), lambda: Encoder(True)):
        model = built(make)
        x = normal(3, 5) if make is small else normal(3, 5, 4)
        found = mc_dropout(model.to(dtype), 200).sample(x.to(dtype))
        assert found.dtype == dtype
        single = mc_dropout(built(make), 200).sample(x)
        torch.testing.assert_close(found.float().std(0), single.std(0), atol=0.02, rtol=0.1)


@given(st.integers(0, 99), st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_attention_with_hidden_keys_equals_torch(seed, boolean):
    q, k, v = (normal(2, 3, 4, 8, seed=seed + i) for i in range(3))
    mask = torch.rand(2, 1, 4, 4, generator=seeded_generator(seed)) < 0.4
    mask[0, :, 1] = False  # a query that sees nothing
    if not boolean:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    with DropoutOn(Masks(1, 0), 0):
        ours = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=1e-9)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_compiled_and_scripted_models():
    x = normal(3, 5)
    compiled = torch.compile(built(small), backend="eager")
    expected = mc_dropout(built(small), 10).sample(x)
    torch.testing.assert_close(mc_dropout(compiled, 10).sample(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(built(small))
    with pytest.raises(ValueError, match="scripted"):
        mc_dropout(scripted, 10)(x)


# The parts


def test_double_precision_is_kept():
    z = 1e-5 * normal(5000, 2, 3).double()
    u = decompose(z, torch.zeros(5000, 2, dtype=torch.float64))
    p = z.softmax(-1)
    entropy = -(p.mean(0) * p.mean(0).log()).sum(-1) + (p * p.log()).sum(-1).mean(0)
    assert u.mutual_information.dtype == u.learned_variance.dtype == torch.float64
    torch.testing.assert_close(u.mutual_information, entropy, atol=1e-15, rtol=1e-3)


def test_classes_that_are_ruled_out():
    z = normal(20, 4, 5)
    z[:, 1, 2] = z[:, 3, 0] = -torch.inf
    u = decompose(z)
    rest = decompose(z[:, 1:2, [0, 1, 3, 4]])
    for name in ("logit_variance", "released_epistemic", "mutual_information"):
        torch.testing.assert_close(getattr(u, name)[1:2], getattr(rest, name))
    whole = z[:, :1]
    torch.testing.assert_close(u.logit_variance[:1], decompose(whole).logit_variance)
    for wrong in (torch.full((20, 4, 5), torch.inf), z.index_fill(0, torch.tensor([3]), 0.0)):
        with pytest.raises(ValueError, match="infinite ones"):
            decompose(wrong)
