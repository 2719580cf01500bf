"Skip RNN where a torch.nn.LSTM stood: lengths, packed sequences, states, precision, tracing, weights."

import copy
import importlib.util
import inspect
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avpapers.skiprnn.model import PATHS, SkipGRU, SkipLSTM, SkipState, run_on_demand
from avpapers.skiprnn.recurrence import open_gate, round_straight_through, skip_length

BOTH = pytest.mark.parametrize("cell", [SkipLSTM, SkipGRU])
TRAINED = [
    (SkipLSTM, 1, "exact"),
    (SkipLSTM, 1, "compiled"),
    (SkipLSTM, 2, "exact"),
    (SkipGRU, 2, "exact"),
]
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def sleepy(cell, *sizes, gate=-1.5, **kwargs):
    module = cell(*sizes, generator=torch.Generator().manual_seed(0), **kwargs)
    with torch.no_grad():
        module.gate_bias.fill_(gate)
        module.gate_weight.mul_(3)
    return module


def noise(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parts(result):
    "All tensors of a result."
    output, state, gates = result
    return [x for x in (output, *state, *gates) if x is not None]


def close(a, b, **tolerance):
    for x, y in zip(parts(a), parts(b), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def row(state, i):
    "The state of one sequence of a batch, still a batch."
    h, c, *gate = state
    c = None if c is None else c[:, i : i + 1]
    return SkipState(h[:, i : i + 1], c, *(x[i : i + 1] for x in gate))


def started(module, B, seed=3):
    "A state from the middle of other sequences, with something in the gate."
    with torch.no_grad():
        return module(noise(17, B, module.input_size, seed=seed, dtype=module.h_0.dtype))[1]


# ---------------------------------------------------------------- lengths


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_sequence_is_as_if_alone(data):
    "Over cells, layers, shapes, lengths, types and paths; padding holds NaN."
    draw = data.draw
    cell, layers = draw(st.sampled_from([SkipLSTM, SkipGRU])), draw(st.integers(1, 2))
    T, sizes = draw(st.integers(1, 12)), (draw(st.integers(1, 3)), draw(st.integers(1, 9)))
    lengths = draw(st.lists(st.integers(1, T), min_size=1, max_size=6))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    path = draw(st.sampled_from([*PATHS, None]))
    module = sleepy(cell, *sizes, layers, gate=draw(st.floats(-3, 1)), batch_first=True).to(dtype)
    x = noise(len(lengths), T, sizes[0]).to(dtype)
    forced = path != "event" and draw(st.booleans())
    update = (noise(len(lengths), T, seed=4) > 0).float() if forced else None
    for i, n in enumerate(lengths):
        x[i, n:] = torch.nan
    tolerance = {} if dtype in (torch.float32, torch.float64) else {"rtol": 0.02, "atol": 0.02}
    with torch.no_grad():
        start = module(noise(len(lengths), 5, sizes[0], seed=5).to(dtype))[1]
        output, state, gates = module(x, start, lengths=lengths, update=update, path=path)
        for i, n in enumerate(lengths):
            one = None if update is None else update[i : i + 1, :n]
            alone = module(x[i : i + 1, :n], row(start, i), update=one, path=path)
            own = (
                output[i : i + 1, :n],
                row(state, i),
                type(gates)(*(g[i : i + 1, :n] for g in gates)),
            )
            close(own, alone, **tolerance)
            assert not any(p[i, n:].any() for p in (output, *gates))
    assert state.increment.dtype == gates.update.dtype == torch.promote_types(dtype, torch.float32)
    assert output.dtype == state.h.dtype == dtype


@pytest.mark.parametrize("cell, layers, path", TRAINED)
@pytest.mark.parametrize("forced", [False, True])
def test_gradients_with_lengths_are_those_of_the_plain_path(cell, layers, path, forced):
    module = sleepy(cell, 3, 8, layers).double()
    lengths = torch.tensor([4, 25, 11, 25, 1])
    update = (noise(25, 5, seed=4) > 0.3).double() if forced else None
    found = []
    for way in ("dense", path):
        x = noise(25, 5, 3).double()
        x[4:, 0] = torch.nan
        x.requires_grad_()
        module.zero_grad()
        output, state, gates = module(x, lengths=lengths, update=update, path=way)
        loss = output.square().sum() + state.h.sum() + 0.1 * gates.update.sum()
        (loss + gates.increment.sum() + state.accumulated.square().sum()).backward()
        assert not x.grad[4:, 0].any()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@BOTH
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sort", [False, True])
def test_packed_sequences_come_back_packed(cell, batch_first, sort):
    module = sleepy(cell, 3, 8, 2, batch_first=batch_first)
    lengths = torch.tensor([9, 7, 7, 2] if sort else [2, 7, 9, 7])
    x = noise(9, 4, 3).transpose(0, 1) if batch_first else noise(9, 4, 3)
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=sort)
    start = started(sleepy(cell, 3, 8, 2), 4)
    output, state, gates = module(packed, start)
    padded = module(x, start, lengths=lengths)
    unpacked = [pad_packed_sequence(p, batch_first)[0] for p in (output, *gates)]
    close((unpacked[0], state, unpacked[1:]), padded, rtol=0, atol=0)
    assert len(gates.update.data) == lengths.sum()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_masks_of_any_type(cell, dtype):
    module, mask = sleepy(cell, 3, 8), noise(9, 3, seed=2) > 0
    given = module(noise(9, 3, 3), update=mask.to(dtype), lengths=[9, 4, 6])
    close(given, module(noise(9, 3, 3), update=mask.float(), lengths=[9, 4, 6]))
    with pytest.raises(TypeError, match="update: got list, expected a tensor"):
        module(noise(9, 3, 3), update=mask.tolist())


def test_packed_masks():
    module, x, lengths = sleepy(SkipLSTM, 3, 8), noise(9, 3, 3), torch.tensor([4, 9, 6])
    mask = (noise(9, 3, seed=2) > 0).float()
    pack = {"lengths": lengths, "enforce_sorted": False}
    packed, packed_mask = (pack_padded_sequence(p, **pack) for p in (x, mask))
    output = module(packed, update=packed_mask)[2].update
    assert torch.equal(output.data, packed_mask.data)
    with pytest.raises(TypeError, match="update: got Tensor, expected a PackedSequence"):
        module(packed, update=mask)
    other = pack_padded_sequence(mask, torch.tensor([9, 4, 6]), enforce_sorted=False)
    with pytest.raises(ValueError, match="update: got other sorted_indices"):
        module(packed, update=other)


WRONG = {
    "too long": ([5, 21], ValueError, "lengths: got 5 to 21, expected 1 to 20"),
    "empty": ([0, 3], ValueError, "lengths: got 0 to 3, expected 1 to 20; leave empty"),
    "of one": ([20], ValueError, r"lengths: got shape \(1,\)"),
    "fractions": ([2.0, 3.0], ValueError, "2 whole numbers"),
    "truths": ([True, True], ValueError, "2 whole numbers"),
}


@pytest.mark.parametrize("given", WRONG)
def test_lengths_that_cannot_be(given):
    lengths, error, match = WRONG[given]
    with pytest.raises(error, match=match):
        SkipGRU(3, 8)(noise(20, 2, 3), lengths=lengths)


def test_other_inputs_are_refused_by_name():
    module = SkipLSTM(3, 8)
    packed = pack_padded_sequence(noise(5, 2, 3), torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="lengths: got them for a PackedSequence"):
        module(packed, lengths=[5, 2])
    with pytest.raises(ValueError, match="lengths: got them with one sequence"):
        module(noise(5, 3), lengths=[5])
    with pytest.raises(ValueError, match=r"packed data \(N, 3\)"):
        module(pack_padded_sequence(noise(5, 2, 4), torch.tensor([5, 2])))
    with pytest.raises(ValueError, match="nested tensor, expected a padded one"):
        module(torch.nested.nested_tensor([noise(5, 3), noise(2, 3)]))
    with pytest.raises(TypeError, match="input: got list"):
        module([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="input: got torch.float64, expected torch.float32"):
        module(noise(5, 2, 3).double())
    with pytest.raises(ValueError, match="input: got a tensor on meta, expected cpu"):
        module(noise(5, 2, 3).to("meta"))


# ---------------------------------------------------------------- batches and states


@BOTH
@pytest.mark.parametrize("path", [*PATHS, None])
def test_a_batch_of_none(cell, path):
    module = sleepy(cell, 3, 8, 2)
    with torch.no_grad():
        output, state, gates = module(noise(6, 0, 3), path=path)
        again = module(noise(6, 0, 3), state, lengths=[], path=path)
    assert output.shape == again[0].shape == (6, 0, 8) and state.h.shape == (2, 0, 8)
    assert gates.update.shape == (6, 0) and state.accumulated.shape == (0,)


@BOTH
def test_a_batch_of_none_trains(cell):
    module = sleepy(cell, 3, 8)
    module(noise(6, 0, 3))[0].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@BOTH
@pytest.mark.parametrize("path", PATHS)
def test_one_sequence_without_a_batch(cell, path):
    module = sleepy(cell, 3, 8, 2, batch_first=True)
    x = noise(14, 3)
    with torch.no_grad():
        whole = module(x, path=path)
        batch = module(x[None], path=path)
        first = module(x[:6], path=path)
        second = module(x[6:], first[1], path=path)
    assert whole[1].h.shape == (2, 8) and whole[1].increment.shape == ()
    torch.testing.assert_close(whole[1].h, batch[1].h[:, 0])
    torch.testing.assert_close(torch.cat([first[0], second[0]]), whole[0])
    torch.testing.assert_close(second[1].accumulated, whole[1].accumulated)
    with pytest.raises(ValueError, match=r"state: got h of shape \(2, 1, 8\), expected \(2, 8\)"):
        module(x, batch[1])


def test_one_sequence_takes_the_state_of_torch():
    lstm = nn.LSTM(3, 8, 2)
    skip, pair = SkipLSTM.from_torch(lstm), (noise(2, 8), noise(2, 8, seed=2))
    output, (h, c) = lstm(noise(9, 3), pair)
    ours, state, _ = skip(noise(9, 3), pair)
    torch.testing.assert_close(ours, output)
    torch.testing.assert_close((state.h, state.c), (h, c))


@pytest.mark.parametrize("path", [*PATHS, None])
@pytest.mark.parametrize("part", ["h", "c", "increment", "accumulated"])
@pytest.mark.parametrize("form", ["short", "long", "scalar"])
def test_state_of_another_batch_is_refused_on_every_path(path, part, form):
    module = sleepy(SkipLSTM, 3, 8)
    state = started(module, 6)
    axis = 1 if part in "hc" else 0
    given = getattr(state, part)
    changed = {
        "short": given.narrow(axis, 0, 2),
        "long": torch.cat([given, given], axis),
        "scalar": given.flatten()[0],
    }
    state = state._replace(**{part: changed[form]})
    with torch.no_grad(), pytest.raises(ValueError, match=f"state: got {part} of shape"):
        module(noise(5, 6, 3), state, path=path)


def test_state_that_is_none():
    lstm, gru = sleepy(SkipLSTM, 3, 8), sleepy(SkipGRU, 3, 8)
    x, state = noise(5, 2, 3), started(lstm, 2)
    with pytest.raises(ValueError, match="expected no tensor"):
        gru(x, state)
    with pytest.raises(ValueError, match="state: got None as c"):
        lstm(x, state._replace(c=None))
    with pytest.raises(ValueError, match=r"pass \(h, c\)"):
        lstm(x, state.h)
    with pytest.raises(TypeError, match="state: got tuple as h"):
        gru(x, (state.h, state.c))


@pytest.mark.parametrize("grad", [False, True])
def test_wider_state_is_refused_with_and_without_gradients(grad):
    module = sleepy(SkipLSTM, 3, 8)
    state = SkipState(*(x.double() for x in started(module, 2)))
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match="state.h: got torch.float64"),
    ):
        module(noise(5, 2, 3), state)


# ---------------------------------------------------------------- forced decisions


@pytest.mark.parametrize("cell, layers, path", TRAINED)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_forced_decisions_on_a_filled_gate(cell, layers, path, share):
    "Values, returned state and gradients, from a state with something accumulated."
    module = sleepy(cell, 3, 8, layers).double()
    update = (torch.rand(12, 4, generator=torch.Generator().manual_seed(3)) < share).double()
    given = started(module, 4)
    assert (given.accumulated > 0).any()
    found = []
    for way in ("dense", path):
        module.zero_grad()
        start = SkipState(*(None if x is None else x.clone().requires_grad_() for x in given))
        result = module(noise(12, 4, 3).double(), start, update=update, path=way)
        loss = sum((x.square() + x).sum() for x in parts(result))
        loss.backward()
        grads = [x.grad for x in start if x is not None] + [p.grad for p in module.parameters()]
        found.append((result, [torch.zeros(()) if g is None or not g.any() else g for g in grads]))
    close(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)
    assert not found[1][0][1].accumulated.any()


@BOTH
def test_forced_decisions_without_gradients(cell):
    module, update = sleepy(cell, 3, 8, 2), (noise(12, 4, seed=2) > 0.8).float()
    start = started(module, 4)
    with torch.no_grad():
        dense, *others = (
            module(noise(12, 4, 3), start, update=update, path=p)
            for p in ("dense", "exact", "compiled")
        )
    for other in others:
        close(other, dense)


# ---------------------------------------------------------------- NaN


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_skipped_is_not_read(cell, value):
    module, x = sleepy(cell, 3, 8, 2), noise(40, 3, 3)
    with torch.no_grad():
        clean = module(x, path="dense")
        skipped = clean[2].update == 0
        holed = torch.where(skipped[..., None], value, x)
        for path in PATHS:
            close(module(holed, path=path), clean)
        forced = {"update": clean[2].update}
        for path in ("dense", "exact", "compiled"):
            close(module(holed, path=path, **forced), module(x, path=path, **forced))


@pytest.mark.parametrize("path", ["exact", "event", "compiled"])
def test_one_nan_in_a_state_spreads_alike(path):
    module, start = sleepy(SkipLSTM, 3, 8), started(sleepy(SkipLSTM, 3, 8), 3)
    start.c[0, 1, 2] = torch.nan
    with torch.no_grad():
        close(
            module(noise(20, 3, 3), start, path=path),
            module(noise(20, 3, 3), start, path="dense"),
            equal_nan=True,
        )


@pytest.mark.parametrize("cell, layers, path", [*TRAINED, (SkipLSTM, 1, "dense")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_refuses_nan_alike(cell, layers, path, value):
    module, x = sleepy(cell, 3, 8, layers), noise(20, 3, 3)
    x[7, 1, 0] = value
    with pytest.raises(ValueError, match="input: got NaN or infinity with gradients"):
        module(x, path=path)


# ---------------------------------------------------------------- precision


@BOTH
@HALF
@pytest.mark.parametrize("bias, steps", [(-6.2, 900), (-2.0, 700), (0.5, 300)])
def test_sixteen_bits_count_as_single_precision(cell, dtype, bias, steps):
    "Every path takes the decisions of the same weights in single precision."
    module = cell(2, 8, gate_bias=bias, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = noise(steps, 3, 2).to(dtype)
    with torch.no_grad():
        expected = copy.deepcopy(module).float()(x.float(), path="dense")
        for path in (*PATHS, None):
            output, state, gates = module(x, path=path)
            assert torch.equal(gates.update, expected[2].update), path
            torch.testing.assert_close(state.accumulated, expected[1].accumulated)
            torch.testing.assert_close(output, expected[0].to(dtype), rtol=0.02, atol=0.02)
        with torch.inference_mode():
            assert torch.equal(module(x)[2].update, expected[2].update)


@HALF
@pytest.mark.parametrize("path", ["dense", "exact", "compiled", None])
def test_sixteen_bits_train(dtype, path):
    module, x = sleepy(SkipLSTM, 3, 8).to(dtype), noise(30, 4, 3).to(dtype)
    single = copy.deepcopy(module).float()
    for net, sequence in ((module, x), (single, x.float())):
        output, _, gates = net(sequence, path=path)
        (output.float().square().sum() + 0.1 * gates.update.sum()).backward()
    for a, b in zip(module.parameters(), single.parameters(), strict=True):
        assert a.grad.dtype == dtype
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=0.05, atol=0.05)


@HALF
def test_a_gate_in_sixteen_bits_is_refused(dtype):
    p = torch.tensor([0.01], dtype=dtype)
    for call in (lambda: open_gate(p, p), lambda: skip_length(p, limit=9)):
        with pytest.raises(ValueError, match=f"increment: got {dtype}, expected torch.float32"):
            call()


@BOTH
def test_inputs_on_demand_in_sixteen_bits(cell):
    module, x = sleepy(cell, 3, 8).bfloat16(), noise(30, 4, 3).bfloat16()
    lazy = run_on_demand(module, lambda rows, t: x[t, rows], batch_size=4, num_steps=30)
    with torch.no_grad():
        close(lazy, module(x, path="event"))
    with pytest.raises(ValueError, match=r"fetch: got shape \(4, 2\), expected \(4, 3\)"):
        run_on_demand(module, lambda rows, t: x[t, rows, :2], batch_size=4, num_steps=30)


# ---------------------------------------------------------------- derivatives and tracing


@settings(max_examples=200, deadline=None)
@given(st.floats(-(2.0**20), 2.0**20, width=32), st.sampled_from([torch.float32, torch.float64]))
def test_rounding_is_exact_and_lets_the_gradient_through(value, dtype):
    x = torch.tensor(value, dtype=dtype, requires_grad=True)
    y = round_straight_through(x)
    y.backward()
    assert torch.equal(y, x.round()) and x.grad == 1


@BOTH
def test_second_derivatives(cell):
    module, x = sleepy(cell, 2, 4).double(), noise(5, 2, 2).double().requires_grad_()
    mask = torch.ones(5, 2)
    assert torch.autograd.gradgradcheck(
        lambda x: module(x, update=mask, path="dense")[0], x, atol=1e-6
    )
    output, _, gates = module(x, path="dense")
    loss = output.square().sum() + gates.update.sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize("cell, layers, path", [*TRAINED, (SkipGRU, 1, None)])
def test_second_derivatives_of_fast_paths_name_the_plain_one(cell, layers, path):
    module, x = sleepy(cell, 3, 8, layers), noise(9, 2, 3).requires_grad_()
    output = module(x, path=path)[0].square().sum()
    (once,) = torch.autograd.grad(output, x, retain_graph=True)
    (slope,) = torch.autograd.grad(output, x, create_graph=True)
    assert torch.equal(once, slope)
    with pytest.raises(RuntimeError, match="path='dense'"):
        slope.square().sum().backward()


@BOTH
def test_torch_func(cell):
    module, x = sleepy(cell, 3, 8, 2).double(), noise(15, 4, 3).double()
    values = {k: p.detach() for k, p in module.named_parameters()}

    def loss(values, one):
        output, _, gates = torch.func.functional_call(module, values, one[:, None])
        return output.square().sum() + gates.update.sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(values, x)
    output, _, gates = module(x)
    (output.square().sum() + gates.update.sum()).backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        apart = torch.vmap(lambda one: module(one)[0])(x.transpose(0, 1))
    torch.testing.assert_close(apart.transpose(0, 1), output)
    with pytest.raises(ValueError, match="path: got 'exact' under torch.func"):
        torch.func.grad(lambda x: module(x, path="exact")[0].sum())(x)


@BOTH
def test_forward_mode_is_the_gradient_times_the_tangent(cell):
    module, x, v = sleepy(cell, 3, 8, 2).double(), noise(15, 4, 3).double(), noise(15, 4, 3, seed=2)

    def loss(x):
        output, _, gates = module(x)
        return output.square().sum() + gates.update.sum()

    _, slope = torch.func.jvp(loss, (x,), (v.double(),))
    torch.testing.assert_close(slope, (torch.func.grad(loss)(x) * v).sum())


class Outputs(nn.Module):
    "A trace returns tensors only, and a GRU's state has a part that is None."

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


@BOTH
def test_traced_by_torch(cell):
    module, x = sleepy(cell, 3, 8, 2), noise(6, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of steps is fixed, as it says
        trace = torch.jit.trace(Outputs(module), (x,))
    other = noise(6, 4, 3, seed=7)
    torch.testing.assert_close(trace(other), module(other)[0])


@BOTH
@pytest.mark.parametrize("train", [False, True])
def test_compiled_by_torch_in_one_graph(cell, train):
    module, x = sleepy(cell, 3, 8, 2), noise(6, 4, 3)
    graph = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        close(graph(x), module(x, path="dense"))
    if train:
        graph(x)[0].sum().backward()
        ours = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        module(x, path="dense")[0].sum().backward()
        for a, p in zip(ours, module.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad)
    with pytest.raises(Exception, match="lengths: got sequences of unequal length"):
        graph(x, lengths=torch.tensor([1, 2, 3, 4]))


@BOTH
@pytest.mark.parametrize("batch_first", [False, True])
def test_exported_by_torch(cell, batch_first):
    module = sleepy(cell, 3, 8, 2, batch_first=batch_first).eval()
    axis = 0 if batch_first else 1
    x = noise(6, 6, 3)
    sizes = ({axis: torch.export.Dim("batch", min=2, max=50)},)
    program = torch.export.export(module, (x,), dynamic_shapes=sizes).module()
    other = noise(11, 6, 3, seed=7) if batch_first else noise(6, 11, 3, seed=7)
    close(program(other), module(other, path="dense"))


def has_onnx() -> bool:
    return all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime"))


@BOTH
@pytest.mark.slow
@pytest.mark.skipif(not has_onnx(), reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.parametrize("bias", [True, False])
def test_exported_to_onnx(cell, bias, tmp_path):
    import onnxruntime

    module = sleepy(cell, 3, 8, 2, bias).eval()
    x, file = noise(6, 5, 3), tmp_path / "skip.onnx"
    sizes = ({1: torch.export.Dim("batch", min=2, max=50)},)
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    other = noise(6, 9, 3, seed=7)
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad():
        expected = module(other, path="dense")
    for a, b in zip(found, parts(expected), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.from_numpy(found[-2]), expected[2].update)
    assert 0 < expected[2].update.mean() < 1


# ---------------------------------------------------------------- the constructor


@BOTH
def test_order_of_arguments_is_that_of_torch(cell):
    theirs = list(inspect.signature(nn.GRU.__init__).parameters)  # (self, *args, **kwargs)
    assert theirs[:2] == ["self", "args"]
    for module in (cell(3, 8, 2, True, True, 0.5, False), nn.LSTM(3, 8, 2, True, True, 0.5, False)):
        assert (module.num_layers, module.bias, module.batch_first) == (2, True, True)
        assert module.dropout == 0.5 and module.eval()(noise(4, 9, 3))[0].shape == (4, 9, 8)
    assert pickle.loads(pickle.dumps(cell(3, 8))).hidden_size == 8
    cell(3, 8).flatten_parameters()


REFUSED = {
    "bidirectional": (True, "run two modules"),
    "proj_size": (4, "torch.nn.Linear behind"),
    "dropout": (1.5, "probability in"),
    "bias": (1, "bias: got 1, expected True or False"),
    "batch_first": ("yes", "batch_first: got 'yes'"),
    "num_layers": (True, "num_layers: got True"),
}


@BOTH
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused(cell, name):
    value, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        cell(3, 8, **{name: value})


@BOTH
def test_without_biases(cell):
    module = sleepy(cell, 3, 8, 2, bias=False)
    names = [n for n, _ in module.named_parameters()]
    assert "gate_bias" in names and not [n for n in names if n.startswith("bias")]
    assert not [n for n in module.state_dict() if n.startswith("bias")]
    x = noise(12, 4, 3)
    with torch.no_grad():
        for path in ("event", "compiled"):
            close(module(x, path=path), module(x, path="dense"))
    module(x)[0].sum().backward()
    zeros = module(
        torch.zeros(3, 1, 3),
        (torch.zeros(2, 1, 8),) * 2 if cell is SkipLSTM else torch.zeros(2, 1, 8),
    )
    assert not zeros[0].any()
    again = cell(3, 8, 2, bias=False)
    again.load_state_dict(module.state_dict())
    close(again(x), module(x))


@BOTH
def test_dropout_between_layers(cell):
    "In training only, on the plain path; all dropped is a top layer without input."
    module, x = sleepy(cell, 3, 8, 2, dropout=0.4), noise(12, 4, 3)
    plain = sleepy(cell, 3, 8, 2)
    close(module.eval()(x), plain(x))
    first, second = module.train()(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], plain(x)[0])
    with pytest.raises(ValueError, match="path: got 'exact' with dropout in training"):
        module(x, path="exact")
    module.dropout = 1.0
    with torch.no_grad():
        plain.weight_ih_l1.zero_()
    torch.testing.assert_close(module(x)[0], plain(x)[0])


def test_dropout_is_scaled():
    "The mean over many masks is near the value without, for a layer that is almost linear."
    module, x = sleepy(SkipLSTM, 3, 8, 2, dropout=0.5), noise(1, 1, 3).expand(1, 4000, 3)
    with torch.no_grad():
        module.weight_ih_l1.mul_(0.01)
        dropped, whole = module(x)[0].mean(1), module.eval()(x)[0][:, 0]
    torch.testing.assert_close(dropped, whole, rtol=0.01, atol=1e-3)


@BOTH
def test_dropout_with_one_layer_warns(cell):
    with pytest.warns(UserWarning, match="dropout: got 0.5 with one layer"):
        cell(3, 8, dropout=0.5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_torch(bias, dtype):
    lstm = nn.LSTM(3, 8, 3, bias, batch_first=True, dropout=0.2, dtype=dtype).eval()
    skip, x = SkipLSTM.from_torch(lstm), noise(4, 30, 3, dtype=dtype)
    assert not skip.training and skip.dropout == 0.2 and skip.gate_bias.dtype == dtype
    output, (h, c) = lstm(x)
    ours, state, gates = skip(x)
    torch.testing.assert_close(ours, output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((state.h, state.c), (h, c), rtol=1e-5, atol=1e-6)
    assert gates.update.all()
    gates.update.sum().backward()
    assert skip.gate_weight.grad is not None and lstm.weight_hh_l0.grad is None
    sparse = SkipLSTM.from_torch(lstm, gate_bias=-2.0, batch_first=False)
    assert sparse(x.transpose(0, 1))[2].update.mean() < 0.5


def test_load_torch_weights_keeps_the_gate():
    module = sleepy(SkipLSTM, 3, 8)
    gate = module.gate_weight.clone()
    module.load_torch_weights(nn.LSTM(3, 8))
    assert torch.equal(module.gate_weight, gate) and not module.h_0.any() and not module.c_0.any()
    wrong = {
        "num_layers=2": nn.LSTM(3, 8, 2),
        "bias=False": nn.LSTM(3, 8, bias=False),
        "projected": nn.LSTM(3, 8, proj_size=2),
        "got RNN": nn.RNN(3, 8),
        "resets after": nn.GRU(3, 8),
    }
    for match, rnn in wrong.items():
        with pytest.raises(ValueError, match=match):
            module.load_torch_weights(rnn)
    with pytest.raises(ValueError, match="layer_norm"):
        SkipLSTM(3, 8, layer_norm=True).load_torch_weights(nn.LSTM(3, 8))
    with pytest.raises(ValueError, match="for a skip gru"):
        SkipGRU(3, 8).load_torch_weights(nn.LSTM(3, 8))
