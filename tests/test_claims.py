"Claims are complete, tests can fail, the ledger is up to date, the same seed gives the same bits."

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avpapers.suite import report
from avpapers.suite.claims import VERDICTS, Claim, judge
from avpapers.suite.experiments import experiments_of, run_experiments
from avpapers.suite.papers import PAPERS
from avpapers.suite.records import find_records, stale_reason
from avpapers.suite.tiers import TIERS

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "nbs" / "records"
READY = [p for p in PAPERS if list((ROOT / "nbs" / p).glob("05*.ipynb"))]
CLAIMS = [c for p in READY for c in report.claims_of(p)]


def test_there_are_papers():
    assert {"skiprnn", "uncertainty"} <= set(READY)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_claim_is_complete(claim: Claim):
    offered = experiments_of(claim.paper)
    assert claim.control and claim.metric and claim.where and (claim.experiments or claim.not_tested)
    assert set(claim.experiments) <= set(offered)
    assert all(claim.id in offered[e].claims for e in claim.experiments)
    assert claim.paper_value is None or claim.paper_value.source
    assert (claim.tolerance is None) == (claim.paper_value is None)


def test_ids_are_unique():
    ids = [c.id for c in CLAIMS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_claim_has_records_or_a_reason(claim: Claim):
    row = next(c for c in report.read_ledger(RECORDS / "ledger.json")["claims"] if c["id"] == claim.id)
    assert row["verdict"] in VERDICTS and row["reason"]
    assert row["records"] or row["verdict"] == "not tested"
    for name in row["records"]:
        assert (RECORDS / name).exists()
    if row["verdict"] not in ("not tested", "inconclusive"):
        assert row["n"] >= 3 and row["control"] and row["low"] is not None


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.experiments], ids=lambda c: c.id)
def test_a_claims_test_can_fail(claim: Claim):
    "With every number of its records replaced by the same one, no claim may be supported."
    records = [r for e in claim.experiments for r in find_records(RECORDS, paper=claim.paper, experiment=e, tier="cpu")]
    if not records:
        pytest.skip("no records yet")
    settings = {"budget", "length", "sampling_ms", "batch", "gate_bias", "share", "fifth"}
    settings |= {"used"} if claim.experiments == ("events",) else set()  # there it is a setting, not a result
    flat = [replace(r, rows=[{k: 0.95 if (isinstance(v, float) or k == "equivalent_pairs") and k not in settings else v for k, v in row.items()} for row in r.rows])
            for r in records]  # fmt: skip
    outcome = claim.test(flat)
    assert judge(claim, outcome).name in ("inconclusive", "not reproduced")


def test_a_claims_test_needs_its_experiments():
    for claim in CLAIMS:
        assert not claim.experiments or claim.test([]) is None


def test_ledger_is_up_to_date():
    "`avpapers report --save` would change nothing."
    saved, now = report.read_ledger(RECORDS / "ledger.json"), report.ledger(READY, RECORDS)
    assert not now["stale"], now["stale"]
    for part in ("claims", "performance"):
        in_order = lambda rows: sorted(json.dumps(r, sort_keys=True) for r in rows)
        assert in_order(json.loads(json.dumps(now[part]))) == in_order(saved[part])


def test_committed_records_are_whole_and_fresh():
    records = find_records(RECORDS)
    assert records
    for record in records:
        assert not stale_reason(record), record.name
        assert record.tier in TIERS and record.data and record.versions["torch"]
        assert record.claims or record.experiment in ("performance", "voices")
        assert record.seconds > 0 or record.experiment == "voices"  # all but the first seed have nothing to do


@pytest.mark.parametrize("paper", READY)
def test_same_seed_same_bits(paper, tmp_path):
    "Every metric of every row, twice; times excepted."
    timed = {"train_seconds", "dense_ms", "event_ms", "torch_lstm_ms", "speed_up", "fraction_of_bound"}
    runs = []
    for name in ("one", "two"):
        records = run_experiments(paper, tier="smoke", seed=1, device="cpu", out=tmp_path / name)
        runs.append([{k: v for k, v in row.items() if k not in timed} for r in records for row in r.rows])
    assert runs[0] == runs[1] and len(runs[0]) > 20


def test_finished_experiments_are_not_run_again(tmp_path):
    first = list(run_experiments("skiprnn", tier="smoke", seed=0, device="cpu", out=tmp_path, only=["frequency"]))
    again = list(run_experiments("skiprnn", tier="smoke", seed=0, device="cpu", out=tmp_path, only=["frequency"]))
    forced = list(run_experiments("skiprnn", tier="smoke", seed=0, device="cpu", out=tmp_path, only=["frequency"], force=True))
    assert again[0].started == first[0].started and again[0].seconds == first[0].seconds
    assert forced[0].rows[0]["accuracy"] == first[0].rows[0]["accuracy"] and forced[0].seconds != first[0].seconds


@pytest.mark.parametrize("wrong, message", [({"tier": "huge"}, "tier"), ({"seed": -1}, "seed"), ({"only": ["nothing"]}, "experiment")])
def test_wrong_requests_are_told(wrong, message, tmp_path):
    given = {"tier": "smoke", "seed": 0, "device": "cpu", "out": tmp_path} | wrong
    with pytest.raises(ValueError, match=message):
        list(run_experiments("skiprnn", **given))


def test_gpu_asked_but_absent(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="cuda"):
        list(run_experiments("skiprnn", tier="smoke", seed=0, device="cuda", out=tmp_path))


@pytest.mark.parametrize("paper", [p for p in PAPERS if list((ROOT / "nbs" / p).glob("01*.ipynb"))])
def test_every_data_page_has_a_catalog(paper):
    "`avpapers data ls` and `make setup` read it, also for a paper that is still under way."
    import importlib

    module = importlib.import_module(f"avpapers.{paper}.data")
    assert set(module.CHECKSUMS) >= set(module.DATASETS)
    for row in module.DATASETS.values():
        assert row.license and row.size and row.source and callable(row.get) and isinstance(row.embedded, bool)
