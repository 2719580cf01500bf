"Experiments beyond one run: stopped trainings, wrong settings, every tier's configuration."

from dataclasses import replace

import pytest

from avpapers.skiprnn.experiments import EXPERIMENTS, Config, adding_config, run_adding
from avpapers.skiprnn.training import Variant
from avpapers.suite.tiers import TIERS

TIMED = {"train_seconds"}


def test_checkpoints_change_nothing(tmp_path):
    "With checkpoints, and again with the finished ones found, rows are those of a run without."
    config = replace(adding_config("smoke"), num_steps=12)
    rows = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in run_adding(config, seed=2, checkpoints=where).rows]
        for where in (None, tmp_path, tmp_path)
    ]
    assert rows[0] == rows[1] == rows[2] and len(list(tmp_path.glob("adding-smoke-2-*.pt"))) == len(config.variants)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_tier_has_a_configuration(name):
    experiment = EXPERIMENTS[name]
    for tier in experiment.tiers:
        assert tier in TIERS and experiment.config(tier).tier == tier


def test_paper_sizes_are_the_papers():
    for name, length in (("adding", 50), ("digits", 784)):
        config = EXPERIMENTS[name].config("gpu")
        assert config.paper_size and config.hidden_size == 110 and config.batch_size == 256 and config.lengths == (length,)
    assert EXPERIMENTS["frequency"].config("gpu").lengths == (100, 200)


@pytest.mark.parametrize("change, message", [({"num_steps": 0}, "num_steps"), ({"batch_size": -1}, "batch_size")])
def test_wrong_sizes_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        replace(adding_config("smoke"), **change)


def test_two_variants_of_one_name():
    with pytest.raises(ValueError, match="not distinct"):
        Config("smoke", 1, variants=(Variant("a", "skip"), Variant("a", "dense")))


def test_what_does_not_depend_on_the_seed_runs_once(tmp_path, monkeypatch):
    from avpapers.suite import experiments as suite
    from avpapers.suite.records import Record

    ran = []

    def run(config, *, seed, device="cpu", checkpoints=None):
        ran.append(seed)
        return Record("skiprnn", "fixed", config, seed, [], {}, data=[{"name": "made up", "checksum": "", "stand_in": True}], rows=[{"model": "none"}])

    once = suite.Experiment("fixed", (), lambda tier: tier, run, every_seed=False)
    monkeypatch.setattr(suite, "experiments_of", lambda paper: {"fixed": once})
    for seed in (0, 1, 2):
        list(suite.run_experiments("skiprnn", tier="smoke", seed=seed, device="cpu", out=tmp_path, force=True))
    assert ran == [0]
