"Every registered model keeps one contract: it runs, learns, saves, loads, and has a card."

import pytest
import torch

from avpapers.core.registry import (
    create_model,
    list_models,
    load_weights,
    model_card,
    read_card,
    save_weights,
)

SAMPLES = {  # an input for the default arguments
    "skip_lstm": lambda: (torch.randn(5, 2, 1),),
    "skip_gru": lambda: (torch.randn(5, 2, 1),),
    "stochastic_logit_head": lambda: (torch.randn(4, 512),),
    "anp_net": lambda: (torch.randn(4, 512),),
    "anp_fusion": lambda: (torch.rand(4, 117), torch.rand(4, 167)),
    "burst_resnet": lambda: (torch.randn(3, 64, 96), torch.tensor([96, 60, 30])),
    "burst_conformer": lambda: (torch.randn(3, 64, 96), torch.tensor([96, 60, 30])),
}
NAMES = [name for name in list_models() if not name.startswith("_")]


def first(out):
    "What is checked: the first output, or all of a dict, since each of its heads has weights."
    if isinstance(out, dict):
        return torch.cat([v.flatten() for v in out.values()])
    return out if isinstance(out, torch.Tensor) else out[0]


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name)


def test_every_model_has_a_sample():
    assert set(NAMES) == set(SAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_learns(name):
    model, x = make(name), SAMPLES[name]()
    out = first(model(*x))
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    reached = [
        p.grad is not None and bool(torch.isfinite(p.grad).all())
        for p in model.parameters()
        if p.requires_grad
    ]
    assert all(reached) and reached


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_model_and_weights_survive_a_file(name, tmp_path):
    model, twin, x = make(name).eval(), make(name).eval(), SAMPLES[name]()
    torch.testing.assert_close(first(model(*x)), first(twin(*x)))
    path = (
        save_weights(model, tmp_path / "weights.safetensors", model_card(name))
        or tmp_path / "weights.safetensors"
    )
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    load_weights(twin, path)
    torch.testing.assert_close(first(model(*x)), first(twin(*x)))
    assert read_card(path).paper == model_card(name).paper


@pytest.mark.parametrize("name", NAMES)
def test_its_card_is_complete(name):
    card = model_card(name)
    assert card.paper and card.citation and card.section and card.claims
