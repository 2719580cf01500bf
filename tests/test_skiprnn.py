"Skip RNN beyond its notebooks: odd inputs, memory, precision, long sequences."

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.skiprnn.model import PATHS, SkipGRU, SkipLSTM
from avpapers.skiprnn.recurrence import skip_length
from avpapers.skiprnn.training import SequenceModel, predict

BOTH = pytest.mark.parametrize("cell", [SkipLSTM, SkipGRU])


def sleepy(cell, *sizes, bias=-1.5, **kwargs):
    module = cell(*sizes, generator=torch.Generator().manual_seed(0), **kwargs)
    with torch.no_grad():
        module.gate_bias.fill_(bias)
        module.gate_weight.mul_(3)
    return module


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-13, 1.0, width=32), st.integers(1, 3000))
def test_skip_length_is_the_recurrence(p, limit):
    "The closed count equals adding step by step, in float32."
    increment, total, steps = torch.tensor(p, dtype=torch.float32), torch.tensor(0.0), 0
    while steps <= limit:
        steps += 1
        total = total + torch.minimum(increment, 1 - total)
        if total.round() == 1:
            break
    expected = min(steps, limit + 1)
    assert int(skip_length(increment[None], limit=limit)[0]) == expected


@BOTH
def test_tape_is_freed(cell):
    "No reference cycle keeps the tape of a training step alive."
    module = sleepy(cell, 3, 8)
    output, state, gates = module(noise(12, 4, 3))
    node = weakref.ref(output.grad_fn)
    (output.sum() + state.h.sum()).backward()
    del output, state, gates
    assert node() is None


@BOTH
@pytest.mark.parametrize("path", PATHS)
def test_strided_and_single_step_inputs(cell, path):
    module = sleepy(cell, 3, 8)
    wide = noise(20, 5, 6)
    with torch.no_grad():
        strided, whole = (
            module(wide[::2, :, ::2], path=path)[0],
            module(wide[::2, :, ::2].contiguous(), path=path)[0],
        )
        torch.testing.assert_close(strided, whole)
        one = module(wide[:1, :, :3], path=path)
    assert one[0].shape == (1, 5, 8) and one[2].update.sum() == 5


@BOTH
def test_very_long_sequence(cell):
    module = sleepy(cell, 1, 4, bias=-6.0)
    with torch.no_grad():
        output, state, gates = module(noise(100_000, 1, 1))
    assert output.shape == (100_000, 1, 4) and output.isfinite().all()
    assert 1 < gates.update.sum() < 5_000


@BOTH
def test_unbatched_and_batch_first(cell):
    module, first = sleepy(cell, 3, 8), sleepy(cell, 3, 8, batch_first=True)
    first.load_state_dict(module.state_dict())
    x = noise(20, 4, 3)
    with torch.no_grad():
        y = module(x)[0]
        torch.testing.assert_close(first(x.transpose(0, 1))[0].transpose(0, 1), y)
        torch.testing.assert_close(module(x[:, 0])[0], y[:, 0])


@BOTH
def test_layer_norm_trains_and_runs(cell):
    module = sleepy(cell, 3, 8, 2, layer_norm=True)
    output, _, gates = module(noise(20, 4, 3))
    (output.sum() + gates.update.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    with torch.no_grad():
        dense, event = module(noise(20, 4, 3), path="dense"), module(noise(20, 4, 3), path="event")
    torch.testing.assert_close(dense[0], event[0])
    with pytest.raises(ValueError, match="layer_norm"):
        module(noise(20, 4, 3), path="exact")


@BOTH
def test_gate_keeps_full_precision_under_autocast(cell):
    module, x = sleepy(cell, 3, 8), noise(20, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _, gates = module(x.bfloat16())
    assert output.dtype == gates.increment.dtype == torch.float32


@BOTH
def test_every_parameter_learns(cell):
    module = sleepy(cell, 3, 8, 2)
    output, _, gates = module(noise(30, 4, 3))
    (output[-1].square().sum() + 0.1 * gates.update.sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_wrong_state_raises_an_error():
    module = SkipLSTM(3, 8)
    with pytest.raises(
        ValueError, match=r"state: got h of shape \(1, 4, 9\), expected \(1, 4, 8\)"
    ):
        module(noise(5, 4, 3), (torch.zeros(1, 4, 9), torch.zeros(1, 4, 9)))


def test_event_path_refuses_gradients():
    with pytest.raises(ValueError, match="no_grad"):
        SkipLSTM(3, 8)(noise(5, 4, 3), path="event")


def test_row_of_a_batch_is_a_batch_of_one():
    model = SequenceModel("gru", 3, 8, 2, generator=torch.Generator().manual_seed(0))
    x, lengths = noise(6, 20, 3), torch.tensor([20, 5, 9, 20, 1, 14])
    outputs, update = predict(model, x, lengths)
    for k in range(6):
        alone, _ = predict(model, x[k : k + 1, : lengths[k]], lengths[k : k + 1])
        torch.testing.assert_close(alone[0], outputs[k])


def test_shapes_are_checked_when_asked():
    "The jaxtyping annotations hold at run time."
    from beartype import beartype
    from jaxtyping import TypeCheckError, jaxtyped

    from avpapers.skiprnn import training

    checked = jaxtyped(typechecker=beartype)(training.count_updates)
    assert checked(torch.ones(3, 5), torch.tensor([5, 2, 1])).tolist() == [5, 2, 1]
    with pytest.raises(TypeCheckError):
        checked(torch.ones(3, 5), torch.tensor([5, 2]))
