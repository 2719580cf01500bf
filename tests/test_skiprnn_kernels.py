"The compiled paths of Skip RNN beyond their notebooks: layouts, NaN, threads, precision, the GPU kernel."

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avpapers.skiprnn import kernels
from avpapers.skiprnn.model import SkipGRU, SkipLSTM, path_difference

BOTH = pytest.mark.parametrize("cell", [SkipLSTM, SkipGRU])


def sleepy(cell, *sizes, bias=-1.5, **kwargs):
    module = cell(*sizes, generator=torch.Generator().manual_seed(0), **kwargs)
    with torch.no_grad():
        module.gate_bias.fill_(bias)
        module.gate_weight.mul_(3)
    return module.eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(module, x, *state, **options):
    with torch.no_grad():
        return module(x, *state, **options)


def close(a, b, **tolerance):
    "Two results of a module."
    torch.testing.assert_close(a[0], b[0], **tolerance)
    torch.testing.assert_close(a[1].h, b[1].h, **tolerance)
    torch.testing.assert_close(a[1].accumulated, b[1].accumulated, **tolerance)
    torch.testing.assert_close(a[2].increment, b[2].increment, **tolerance)
    assert torch.equal(a[2].update, b[2].update)


# ---------------------------------------------------------------- which path


def test_model_does_not_import_numba():
    "Neither numba nor Triton is loaded before it is used."
    heavy = ("numba", "avpapers.skiprnn.kernels")
    code = (
        f"import sys, avpapers.skiprnn.model as m; print([n for n in {heavy} if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@BOTH
def test_taken_by_itself_without_gradients(cell, monkeypatch):
    calls, original = [], kernels.event_kernel
    monkeypatch.setattr(
        kernels, "event_kernel", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    module, x = sleepy(cell, 3, 8), noise(20, 4, 3)
    run(module, x)
    with torch.inference_mode():
        module(x)
    assert len(calls) == 2
    module(x)
    run(module.double(), x)
    assert len(calls) == 2


@BOTH
def test_falls_back_without_numba(cell, monkeypatch):
    from avpapers.skiprnn import model

    module, x = sleepy(cell, 3, 8), noise(20, 4, 3)
    compiled = run(module, x)
    monkeypatch.setattr(model, "_has_numba", lambda: False)
    close(compiled, run(module, x))
    with pytest.raises(ValueError, match="needs numba"):
        run(module, x, path="compiled")


def test_what_it_cannot_do_raises_an_error():
    with pytest.raises(ValueError, match="LSTM of one layer only"):
        sleepy(SkipGRU, 3, 8)(noise(5, 2, 3), path="compiled")
    with pytest.raises(ValueError, match="LSTM of one layer only"):
        sleepy(SkipLSTM, 3, 8, 2)(noise(5, 2, 3), path="compiled")
    with pytest.raises(ValueError, match="runs on the CPU, not on meta"):
        run(sleepy(SkipLSTM, 3, 8).to("meta"), noise(5, 2, 3).to("meta"), path="compiled")


# ---------------------------------------------------------------- values


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([SkipLSTM, SkipGRU]),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 35),
    st.integers(1, 40),
    st.integers(1, 21),
    st.floats(-4, 2),
)
def test_equals_the_plain_path(cell, layers, D, H, T, B, bias):
    "Any sizes, also such as fill no vector and no block, in double precision."
    module, x = sleepy(cell, D, H, layers, bias=bias).double(), noise(T, B, D).double()
    close(run(module, x, path="compiled"), run(module, x, path="dense"), rtol=1e-10, atol=1e-11)


@BOTH
def test_single_precision(cell):
    module, x = sleepy(cell, 3, 110, bias=-2.5), noise(200, 40, 3)
    found = path_difference(module, x, "compiled")
    assert (
        found["output"] < 5e-6 and found["decisions"] <= 2
    )  # of 8000; one may lie on the edge of rounding


@BOTH
def test_layouts(cell):
    "Strided, expanded, batch first, unbatched: the same numbers."
    module, first, wide = sleepy(cell, 3, 8), sleepy(cell, 3, 8, batch_first=True), noise(40, 12, 6)
    x = wide[::2, ::3, ::2]
    whole = run(module, x.contiguous())
    close(run(module, x), whole)
    turned = run(first, x.transpose(0, 1))
    torch.testing.assert_close(turned[0].transpose(0, 1), whole[0])
    torch.testing.assert_close(run(module, x[:, 1])[0], whole[0][:, 1])
    same = run(module, x[:, :1].expand(-1, 5, -1))
    assert all(torch.equal(same[0][:, b], same[0][:, 0]) for b in range(5))


@BOTH
def test_one_step_and_none(cell):
    module = sleepy(cell, 3, 8)
    output, _, gates = run(module, noise(1, 5, 3))
    assert output.shape == (1, 5, 8) and gates.update.sum() == 5
    assert run(module, noise(5, 0, 3))[0].shape == (5, 0, 8)
    with pytest.raises(ValueError, match="expected sequences of at least one step"):
        run(module, noise(0, 5, 3))


@BOTH
def test_in_pieces(cell):
    "A sequence may be cut anywhere, also in the middle of a wait."
    module, x = sleepy(cell, 3, 8, 2, bias=-2.5), noise(60, 11, 3)
    whole = run(module, x)
    for cut in (1, 17, 59):
        first = run(module, x[:cut])
        second = run(module, x[cut:], first[1])
        torch.testing.assert_close(torch.cat([first[0], second[0]]), whole[0])
        torch.testing.assert_close(second[1].accumulated, whole[1].accumulated)


@BOTH
def test_forced_updates(cell):
    module, x = sleepy(cell, 3, 8, 2).double(), noise(30, 9, 3).double()
    mask = (noise(30, 9) < 0).double()
    close(
        run(module, x, update=mask, path="compiled"),
        run(module, x, update=mask, path="dense"),
        rtol=1e-10,
        atol=1e-11,
    )


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_a_number_goes_where_it_goes_in_the_plain_path(cell, value):
    module, x = sleepy(cell, 3, 8), noise(30, 6, 3)
    x[0, 2, 1] = value
    compiled, plain = run(module, x), run(module, x, path="dense")
    for a, b in (
        (compiled[0], plain[0]),
        (compiled[2].update, plain[2].update),
        (compiled[1].accumulated, plain[1].accumulated),
    ):
        torch.testing.assert_close(a, b, equal_nan=True)


@BOTH
def test_very_long(cell):
    module = sleepy(cell, 1, 4, bias=-6.0)
    output, _, gates = run(module, noise(100_000, 1, 1))
    assert output.isfinite().all() and 1 < gates.update.sum() < 5_000


def test_increment_that_never_opens():
    module = sleepy(SkipLSTM, 1, 4, bias=-30.0)
    with torch.no_grad():
        module.gate_weight.zero_()
    assert run(module, noise(500, 3, 1))[2].update.sum(0).tolist() == [1, 1, 1]


def test_gate_in_full_precision_under_autocast():
    module, x = sleepy(SkipLSTM, 3, 8), noise(20, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state, gates = run(module, x.bfloat16())
        trained = module(x.bfloat16(), path="compiled")
    kinds = {
        t.dtype
        for t in (
            output,
            gates.update,
            gates.increment,
            state.c,
            state.accumulated,
            trained[0],
            trained[1].c,
        )
    }
    assert kinds == {torch.float32}


@BOTH
def test_a_sequence_does_not_depend_on_its_batch_or_on_threads(cell):
    module, x, before = sleepy(cell, 3, 24), noise(60, 50, 3), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(module, x)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(run(module, x[:, 7:8])[0][:, 0], results[0][:, 7])


def test_last_state_only():
    module, x = sleepy(SkipLSTM, 3, 8), noise(20, 4, 3)
    from avpapers.skiprnn.model import flatten_state, read_state

    with torch.no_grad():
        state = read_state(module, None, 4)
        net = kernels.cached_weights(
            module, [module.layer(0)], (module.gate_weight, module.gate_bias)
        )
        part = kernels.event_kernel(
            "lstm", net, x, flatten_state(state), state.increment, state.accumulated, last_only=True
        )
    whole = run(module, x)
    torch.testing.assert_close(part.state[:, :8], whole[1].h[0])
    assert part.tops.numel() == 0 and torch.equal(part.updates, whole[2].update)


# ---------------------------------------------------------------- weights that change


def test_changed_weights_are_seen():
    module, x = sleepy(SkipLSTM, 3, 8), noise(20, 4, 3)
    results = [run(module, x)[0]]
    module.weight_hh_l0.data.mul_(0.5)  # leaves no trace but the values
    results.append(run(module, x)[0])
    module.load_state_dict(sleepy(SkipLSTM, 3, 8, bias=0.0).state_dict())
    results.append(run(module, x)[0])
    module.weight_ih_l0 = torch.nn.Parameter(torch.zeros_like(module.weight_ih_l0))
    results.append(run(module, x)[0])
    for k, result in enumerate(results[1:]):
        assert not torch.equal(result, results[k])
    torch.testing.assert_close(results[-1], run(module, x, path="dense")[0])


def test_module_can_be_copied_and_let_go():
    import copy
    import gc
    import pickle
    import weakref

    module, x = sleepy(SkipLSTM, 3, 8), noise(20, 4, 3)
    y = run(module, x)[0]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(run(twin, x)[0], y)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork():
    "Threads of the parent are not waited for."
    code = """
import os, torch
torch.set_num_threads(2)
from avpapers.skiprnn.model import SkipLSTM
net, x = SkipLSTM(3, 8), torch.randn(20, 64, 3)
with torch.no_grad(): net(x)
pid = os.fork()
if pid == 0:
    with torch.no_grad(): net(x)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    assert out.stdout.strip() == "7"


def test_no_folder_for_compiled_code(monkeypatch):
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    def twice(x):
        return 2 * x

    assert kernels._jit(twice)(21) == 42


# ---------------------------------------------------------------- training


def gradients(module, x, path, update=None, tail=False):
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    output, state, gates = module(leaf, path=path, update=update)
    loss = output[-1].square().sum() + 0.1 * gates.update.sum()
    if not tail:
        slope = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
        loss = (
            loss
            + (output * slope).sum()
            + state.c.sum()
            + gates.increment.sum()
            + state.accumulated.square().sum()
            + (gates.update * slope[..., 0]).sum()
        )
    loss.backward()
    return {
        **{name: p.grad for name, p in module.named_parameters() if p.grad is not None},
        "input": leaf.grad,
    }


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 35),
    st.integers(1, 40),
    st.integers(1, 21),
    st.floats(-4, 2),
    st.booleans(),
    st.booleans(),
)
def test_gradients_equal_those_of_the_plain_path(D, H, T, B, bias, forced, tail):
    module, x = sleepy(SkipLSTM, D, H, bias=bias).double(), noise(T, B, D).double()
    update = (noise(T, B, seed=3) < 0).double() if forced else None
    plain, compiled = (gradients(module, x, path, update, tail) for path in ("dense", "compiled"))
    for (
        name,
        g,
    ) in compiled.items():  # where nothing depends on the gate, the plain path leaves None
        torch.testing.assert_close(
            g,
            plain.get(name, torch.zeros_like(g)),
            rtol=1e-7,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_gradients_batch_first_and_on_threads():
    module, x, before = (
        sleepy(SkipLSTM, 3, 20, batch_first=True).double(),
        noise(40, 30, 3).double(),
        torch.get_num_threads(),
    )
    plain = gradients(module, x, "dense")
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, g in gradients(module, x, "compiled").items():
                torch.testing.assert_close(g, plain[name], rtol=1e-7, atol=1e-9)
    finally:
        torch.set_num_threads(before)


def test_gradients_through_pieces():
    "The state of one piece is the start of the next, and gradients pass the seam."
    module, x = sleepy(SkipLSTM, 3, 8, bias=-2.5).double(), noise(40, 7, 3).double()
    found = []
    for path in ("dense", "compiled"):
        module.zero_grad()
        first = module(x[:19], path=path)
        second = module(x[19:], first[1], path=path)
        (first[0].sum() + second[0].square().sum() + second[2].update.sum()).backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_output_changed_in_place_is_noticed():
    module = sleepy(SkipLSTM, 3, 8)
    output, _, _ = module(noise(20, 4, 3), path="compiled")
    loss = output.square().sum()
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tape_is_freed():
    import weakref

    module = sleepy(SkipLSTM, 3, 8)
    output, state, gates = module(noise(12, 4, 3), path="compiled")
    node = weakref.ref(output.grad_fn)
    (output.sum() + state.h.sum()).backward()
    del output, state, gates
    assert node() is None


def test_it_learns():
    "A batch is learnt by heart through the compiled trainer."
    module, x = SkipLSTM(2, 16, generator=torch.Generator().manual_seed(0)), noise(20, 8, 2)
    head, target = torch.nn.Linear(16, 1), noise(8, 1, seed=5)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        output, _, gates = module(x, path="compiled")
        loss = (head(output[-1]) - target).square().mean()
        (loss + 1e-4 * gates.update.sum(0).mean()).backward()
        optimizer.step()
    assert loss < 1e-2


# ---------------------------------------------------------------- the page


def test_goals_name_the_worst_case():
    from avpapers.skiprnn import performance as P

    row = {
        "case": "running",
        "way": "kernel",
        "batch": 1,
        "peer": "same code, all steps",
        "threads": 1,
        "low": 1,
        "high": 2,
    }
    rows = [
        row | {"ratio": 1.9, "bound": 2.0, "used": 0.5},
        row | {"ratio": 8.0, "bound": 10.0, "used": 0.1},
    ]
    first = P.goals(rows)[0]
    assert (
        first["met"] == "no"
        and first["ratio"] == 8.0
        and first["at"] == "10 % updates"
        and first["why"]
    )
    assert P.goals(rows[:1])[0]["met"] == "yes"
    assert P.goals([])[0]["met"] == P.goals([])[-1]["met"] == "not measured"


def test_net_with_share():
    from avpapers.skiprnn import performance as P

    x = noise(200, 8, 1)
    for share in (1.0, 0.3, 0.1):
        assert abs(float(run(P.net_with_share(share, x, 16), x)[2].update.mean()) - share) < 0.05
    with pytest.raises(ValueError, match="share: got 0"):
        P.net_with_share(0, x, 16)


# ---------------------------------------------------------------- the GPU kernel

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (it exists for Linux only)",
)
INTERPRETED = """
import torch
from avpapers.skiprnn.kernels_gpu import triton_recurrence
from avpapers.skiprnn.model import SkipLSTM, flatten_state, read_state
from avpapers.skiprnn.recurrence import dense_recurrence
for T, B, D, H, bias in ((1, 1, 1, 3, 1.0), (9, 3, 2, 5, -1.5), (13, 17, 18, 17, -2.5), (8, 4, 2, 6, 3.0)):
    net = SkipLSTM(D, H, gate_bias=bias, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): net.gate_weight.mul_(3)
    x, found = torch.randn(T, B, D, generator=torch.Generator().manual_seed(1)), []
    slope = torch.linspace(-1, 1, T * B * H).view(T, B, H)
    for way in (dense_recurrence, triton_recurrence):
        net.zero_grad()
        leaf, start = x.clone().requires_grad_(), read_state(net, None, B)
        gate = (net.gate_weight, net.gate_bias)
        given = ("lstm", [net.layer(0)], gate, leaf)
        if way is triton_recurrence:
            given = (net.layer(0), gate, leaf)
        run = way(*given, flatten_state(start), start.increment, start.accumulated)
        loss = (run.tops * slope).sum() + (run.updates * slope[..., 0]).sum()
        loss = loss + run.state.square().sum() + run.accumulated.square().sum()
        (loss + run.increments.sum()).backward()
        found.append((run, [*(p.grad.clone() for p in net.parameters()), leaf.grad]))
    (a, ga), (b, gb) = found
    assert torch.equal(a.updates, b.updates)
    for left, right in ((a.tops, b.tops), (a.state, b.state), (a.accumulated, b.accumulated), *zip(ga, gb)):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)
print("agree")
"""


@needs_triton
def test_gpu_kernel_in_the_interpreter():
    "Values and gradients of the Triton kernel, on the CPU."
    out = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert out.stdout.strip() == "agree", out.stderr[-2000:]


COMPILED = """
import warnings; warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from avpapers.skiprnn import kernels_gpu
for kernel in (kernels_gpu._forward, kernels_gpu._backward):
    names, fixed = kernel.arg_names, {"H": 110, "P": 128, "ROWS": 16, "PRECISION": "ieee"}
    kind = lambda n: "constexpr" if n in fixed else "i32" if n in "TBD" else "*i64" if n == "slots" else "*fp32"
    source = ASTSource(kernel, {n: kind(n) for n in names}, {(names.index(k),): v for k, v in fixed.items()})
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8}).asm["ptx"]
print("compiled")
"""


@needs_triton
@pytest.mark.slow
def test_gpu_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path: Path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path)
    }
    out = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=280, env=env
    )
    assert out.stdout.strip() == "compiled", out.stderr[-2000:]


def test_gpu_kernel_says_what_it_takes():
    from avpapers.skiprnn import kernels_gpu

    module = SkipLSTM(3, 200)
    arguments = (
        module.layer(0),
        (module.gate_weight, module.gate_bias),
        noise(5, 2, 3),
        torch.zeros(2, 400),
        torch.ones(2),
        torch.zeros(2),
    )
    error = ImportError if kernels_gpu.triton is None else ValueError
    with pytest.raises(error, match="Triton|up to 128 units"):
        kernels_gpu.triton_recurrence(*arguments)
