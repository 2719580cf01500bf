"Experiments of Skip RNN: stopped trainings, wrong settings, the paper's sizes."

from dataclasses import replace

import pytest

from avpapers.skiprnn import experiments as E
from avpapers.skiprnn.claims import paper
from avpapers.skiprnn.training import Variant
from avpapers.suite.run import execute

TIMED = {"train_seconds"}


def test_checkpoints_change_nothing(tmp_path):
    "With checkpoints, and again with the finished ones found, rows are those of a run without."
    size, rows = replace(E.ADDING["smoke"], num_steps=12), []
    for folder in (None, tmp_path, tmp_path):
        record = execute(
            paper, paper.experiments["adding"], tier="smoke", seed=2, folder=folder, size=size
        )
        rows.append([{k: v for k, v in row.items() if k not in TIMED} for row in record.rows])
    assert rows[0] == rows[1] == rows[2] and len(list(tmp_path.glob("*.pt"))) == len(size.variants)


def test_paper_sizes_are_the_papers():
    for sizes, length in ((E.ADDING, 50), (E.DIGITS, 784)):
        for tier in ("gpu", "paper"):
            size = sizes[tier]
            assert size.hidden_size == 110 and size.batch_size == 256 and size.lengths == (length,)
    assert E.FREQUENCY["gpu"].lengths == (100, 200) and not E.DIGITS["gpu"].paper_size


@pytest.mark.parametrize(
    "change, message", [({"num_steps": 0}, "num_steps"), ({"batch_size": -1}, "batch_size")]
)
def test_wrong_sizes_raise_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(E.ADDING["smoke"], **change)


def test_two_variants_of_one_name():
    with pytest.raises(ValueError, match="not distinct"):
        E.Config(1, variants=(Variant("a", "skip"), Variant("a", "dense")))
