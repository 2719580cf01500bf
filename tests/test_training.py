"""Training beyond one process: kills, several processes, files of others."""

import math
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

from avpapers.core.random import seeded_generator, seeded_globals
from avpapers.core.training import ShuffledBatches, cosine_schedule, fit

SCRIPT = textwrap.dedent("""
    import sys, time, torch
    from pathlib import Path
    from torch import nn
    from avpapers.core.random import seeded_generator, seeded_globals
    from avpapers.core.training import ShuffledBatches, cosine_schedule, fit
    torch.set_num_threads(1)
    pause, pairs = float(sys.argv[1]), [Path(a) for a in sys.argv[2:]]
    def run(checkpoint, out):
        x = torch.randn(60, 4, generator=seeded_generator(0)); y = x.sum(1, keepdim=True)
        with seeded_globals(0): net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        def step(model, batch):
            time.sleep(pause)
            return (model(batch[0]) - batch[1]).square().mean(), {}
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        history = fit(net, ShuffledBatches(x, y, batch_size=16), step=step, optimizer=optimizer,
                      num_steps=120, clip=1.0, scheduler=cosine_schedule(optimizer, 120, warmup=10),
                      ema_decay=0.9, checkpoint=checkpoint, checkpoint_every=7, log_every=10,
                      device="cpu", progress=False)
        loss = history.table.loss.tolist()
        torch.save({"net": net.state_dict(), "ema": history.ema.state_dict(), "loss": loss}, out)
    for checkpoint, out in zip(pairs[::2], pairs[1::2]): run(checkpoint, out)
""")


def start(path, *args):
    script = path / "run.py"
    script.write_text(SCRIPT)
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, str(script), *map(str, args)], env=env)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    checkpoint, out = tmp_path / "killed.pt", tmp_path / "killed_out.pt"
    whole, whole_out = tmp_path / "whole.pt", tmp_path / "whole_out.pt"
    process, deadline = start(tmp_path, 0.02, checkpoint, out), time.time() + 60
    while time.time() < deadline and not checkpoint.exists():
        time.sleep(0.01)
    time.sleep(0.33)  # between two checkpoints, between two rows of the history
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 120
    assert start(tmp_path, 0, checkpoint, out, whole, whole_out).wait() == 0
    whole, killed = (torch.load(p, weights_only=True) for p in (whole_out, out))
    assert whole["loss"] == killed["loss"]
    for part in ("net", "ema"):
        assert all(torch.equal(whole[part][k], killed[part][k]) for k in whole[part])


def learn(folder):
    """Ten steps on the processes that are there; the first one saves the weights."""
    x = torch.randn(64, 4, generator=seeded_generator(0))
    with seeded_globals(0):
        net = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    history = fit(
        net,
        ShuffledBatches(x, x.sum(1, keepdim=True), batch_size=16),
        optimizer=optimizer,
        num_steps=10,
        device="cpu",
        step=lambda model, batch: (
            (model(batch[0]) - batch[1]).square().mean(),
            {"rows": float(len(batch[0]))},
        ),
        clip=1.0,
        checkpoint=f"{folder}/ddp{os.environ.get('WORLD_SIZE', 1)}.pt",
        log_every=5,
        progress=False,
    )
    if os.environ.get("RANK", "0") == "0":
        torch.save(
            {
                "weight": net.weight.data,
                "loss": history.table.loss.tolist(),
                "rows": history.table.rows.tolist(),
            },
            f"{folder}/weights{os.environ.get('WORLD_SIZE', 1)}.pt",
        )


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1]); from test_training import learn; "
        "learn(sys.argv[2])"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    here = os.path.dirname(__file__)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    process = subprocess.Popen(
        [*command, str(script), here, str(tmp_path)],
        env=env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        message = process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    assert process.returncode == 0, message[-3000:]
    learn(tmp_path)
    one, two = (torch.load(tmp_path / f"weights{n}.pt", weights_only=True) for n in (1, 2))
    assert one["rows"] == [16, 16] and two["rows"] == [8, 8]
    torch.testing.assert_close(one["weight"], two["weight"])
    torch.testing.assert_close(one["loss"], two["loss"])


def tiny(checkpoint, step=None, **kwargs):
    with seeded_globals(0):
        net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = step or (lambda model, batch: (model(batch).square().mean(), {}))
    return fit(
        net,
        lambda generator: torch.randn(4, 2, generator=generator),
        step=step,
        optimizer=optimizer,
        device="cpu",
        checkpoint=checkpoint,
        progress=False,
        **({"num_steps": 6} | kwargs),
    )


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def step(model, batch):
        calls.append(1)
        return model(batch).square().mean() * (float("inf") if len(calls) == 5 else 1), {}

    with pytest.raises(
        FloatingPointError, match="got inf at step 5 .*the weights are those of the step before"
    ):
        tiny(path, step, checkpoint_every=2)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 4 and all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_stay_finite_when_the_loss_does_not(accumulate):
    "The step that fails leaves no trace in the weights, however rarely the history is written."
    good, bad, calls = [], [], []

    def step(model, batch):
        calls.append(1)
        good[:] = [w.detach().clone() for w in model.parameters()]
        broken = len(calls) == 5 * accumulate
        return model(batch).square().mean() + (math.nan if broken else 0), {
            "part": torch.tensor(1.0)
        }

    def remember(model, batch):
        bad.append(model)
        return step(model, batch)

    with pytest.raises(FloatingPointError, match=r"at step 5 \(not finite in the logs: nothing\)"):
        tiny(None, remember, log_every=1000, gradient_accumulation=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(good, bad[0].parameters(), strict=True))


def test_global_generators_are_given_back():
    np.random.seed(1), random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1), random.seed(1)

    def noisy(model, batch):
        return model(batch).square().mean() + 0 * np.random.rand() + 0 * random.random(), {}

    tiny(None, noisy)
    assert (np.random.rand(), random.random()) == expected


def test_truncated_and_pickled_checkpoints_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "run.pt"
    tiny(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        tiny(path)
    assert path.stat().st_size == len(whole) // 2

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "payload-ran"),))

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="delete it"):
        tiny(path)
    torch.save({"seed": Payload()}, path)
    with pytest.raises(ValueError, match="delete it"):
        tiny(path)
    assert not (tmp_path / "payload-ran").exists()


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    tiny(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avpapers.core.training.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tiny(path, num_steps=8)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    tiny(path)
    with pytest.raises(ValueError, match="another run, with seed"):
        tiny(path, seed=3)
    with pytest.raises(ValueError, match="without ema"):
        tiny(path, ema_decay=0.9)


def test_global_randomness_is_untouched(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny(None)
    assert torch.equal(torch.rand(3), expected)


def test_schedule_is_monotone_after_warm_up():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = cosine_schedule(optimizer, 50, warmup=5, final=0.0), []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert (
        rates[:6] == sorted(rates[:6])
        and rates[5:] == sorted(rates[5:], reverse=True)
        and rates[-1] == 0
    )
