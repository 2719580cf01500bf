"Claims are complete and can fail, verdicts follow the rules, the ledger is up to date."

import itertools
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from avpapers.suite import ledger as L
from avpapers.suite.evidence import Check, Outcome, Runs, Setting
from avpapers.suite.judge import SUPPORTING, VERDICTS, judge
from avpapers.suite.paper import invent, load_paper, standing_papers
from avpapers.suite.records import find_records, split_stale, validate
from avpapers.suite.run import config_of
from avpapers.suite.tiers import TIERS

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "nbs" / "records"
PAPERS = {name: load_paper(name) for name in standing_papers()}
CLAIMS = [c for p in PAPERS.values() for c in p.claims.values()]
SAVED = {c["id"]: c for c in L.read_ledger(RECORDS / "ledger.json")["claims"]}
SETTINGS = ("budget", "used", "fifth", "length", "layer", "erased", "share")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_claim_is_complete(claim):
    assert claim.control and claim.metric and claim.where and claim.must_fail
    assert claim.paper_value is None or claim.paper_value.source
    assert set(claim.must_fail) <= set(claim.experiments)


def test_ids_are_unique():
    ids = [c.id for c in CLAIMS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", PAPERS)
def test_claims_read_experiments_that_exist(name):
    offered = load_paper(name, experiments=True).experiments
    for claim in PAPERS[name].claims.values():
        assert set(claim.experiments) <= set(offered), claim.id
    assert sum(e.benchmark for e in offered.values()) == 1 and all(
        "smoke" in e.sizes or name for e in offered.values()
    )


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_the_invented_record_fails(claim):
    "The rows that a claim brings against itself are judged, and do not support it."
    runs = invent(claim.must_fail, settings=SETTINGS)
    outcome = claim.decide(runs)
    verdict = judge(outcome, Setting("cpu", "invented", seeds=tuple(range(5))))
    assert verdict.name in VERDICTS and verdict.name not in SUPPORTING, verdict


def test_a_claim_needs_its_experiments():
    for claim in CLAIMS:
        assert claim.decide({}) is None


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_claim_has_records_or_a_reason(claim):
    row = SAVED[claim.id]
    assert row["verdict"] in VERDICTS and row["reason"]
    assert row["records"] or row["verdict"] == "not tested"
    for name in row["records"]:
        assert (RECORDS / name).exists()
    if row["verdict"] not in ("not tested", "inconclusive"):
        assert row["n"] >= 3 and row["checks"] and row["low"] is not None
    if row["verdict"] == "inconclusive":
        assert "would" in row["reason"] or "diverged" in row["reason"], row["reason"]


def test_ledger_is_up_to_date():
    "`avpapers report --save` would change nothing."
    saved, now = L.read_ledger(RECORDS / "ledger.json"), L.ledger(PAPERS, RECORDS)
    assert not now["stale"], now["stale"]
    for part in ("claims", "performance", "carried"):
        rows = [
            sorted(json.dumps(r, sort_keys=True) for r in x[part])
            for x in (json.loads(json.dumps(now)), saved)
        ]
        assert rows[0] == rows[1]


def test_committed_records_are_whole_and_fresh():
    records = find_records(RECORDS)
    fresh, stale = split_stale(records)
    assert records and not stale, stale
    for record in records:
        assert record.tier in TIERS and record.data and record.versions["torch"]
        assert (
            record.paper in PAPERS and record.fingerprint and record.module.startswith("avpapers.")
        )
        sizes = load_paper(record.paper, experiments=True).experiments[record.experiment].sizes
        assert record.config == config_of(sizes[record.tier]), record.name


# ---------------------------------------------------------------- the ledger before the suite was rebuilt


@pytest.fixture(scope="module")
def frozen():
    "Records of that day, by paper."
    found = {}
    with zipfile.ZipFile(Path(__file__).parent / "frozen" / "records.zip") as archive:
        for name in archive.namelist():
            record = validate(json.loads(archive.read(name)))
            found.setdefault(record.paper, []).append(record)
    return found


NUMBER = r"-?\d[\d.]*(?:e[+-]?\d+)?"
FROZEN = {
    c["id"]: c for c in json.loads((Path(__file__).parent / "frozen" / "ledger.json").read_text())
}


@pytest.mark.parametrize("name", FROZEN)
def test_criteria_give_the_same_numbers(name, frozen):
    "Estimates, intervals and checks of the frozen records, to the last digit the ledger keeps."
    old = FROZEN[name]
    paper = next(p for p in PAPERS.values() if name in p.claims)
    row = L.claim_row(paper.claims[name], frozen[paper.package], real=paper.real)
    assert [row[k] for k in ("estimate", "low", "high", "n")] == [
        old[k] for k in ("estimate", "low", "high", "n")
    ]
    now = [[c["estimate"], c["low"], c["high"]] for c in row["checks"]]
    moved = {"AN-1"}  # its control is a claim of its own
    for check in old["checks"]:
        number = [float(x) for x in re.findall(NUMBER, check.rsplit(": ", 1)[1].partition("]")[0])]
        assert name in moved or any(number == pytest.approx(n, rel=1e-3, abs=1e-9) for n in now), (
            check
        )


# ---------------------------------------------------------------- the rules


def flipped(check: Check, signs: pd.Series) -> Check:
    "A check whose differences change their side of the threshold where the sign says so."
    if not isinstance(check.values, pd.Series) or None not in (check.above, check.below):
        return check
    edge = check.above if check.above is not None else check.below
    return replace(check, values=edge + signs * (check.values - edge))


def test_roles_flipped_at_random_seldom_support_a_claim(frozen):
    """Method and baseline exchanged in every combination of seeds, for all claims whose checks are per seed:
    the share of supporting verdicts stays at or below the nominal error."""
    supported = tried = 0
    for paper in PAPERS.values():
        runs = L.runs_at(frozen[paper.package], "night")
        for claim in paper.claims.values():
            outcome, setting, _ = L.evidence_at(claim, runs, paper.real)
            if outcome is None or not any(isinstance(c.values, pd.Series) for c in outcome.checks):
                continue
            for signs in itertools.product((1, -1), repeat=len(setting.seeds)):
                signs = pd.Series(signs, index=list(setting.seeds))
                turned = Outcome(
                    outcome.estimate,
                    *([flipped(c, signs) for c in cs] for cs in (outcome.checks, outcome.controls)),
                )
                supported += judge(turned, setting).name in SUPPORTING
                tried += 1
    assert tried > 500 and supported / tried <= 0.05, (supported, tried)


SEEDS = tuple(range(5))
REAL, TOY = Setting("night", "own", seeds=SEEDS), Setting("cpu", "toy", stand_in=True, seeds=SEEDS)


def series(*values):
    return pd.Series(values, index=range(len(values)))


def outcome(values, controls=(), **check):
    check = check or {"above": 0}
    return Outcome(
        values, [Check("check", values, **check)], [Check("control", c, above=0) for c in controls]
    )


UP, DOWN, WIDE = (
    series(1.0, 1.1, 0.9, 1.0, 1.05),
    series(-1.0, -1.1, -0.9, -1.0, -1.05),
    series(3.0, -2.0, 1.0, -1.0, 2.0),
)


@pytest.mark.parametrize(
    "found, setting, verdict",
    [
        (outcome(UP), REAL, "direction reproduced"),
        (outcome(UP), TOY, "mechanism shown"),
        (outcome(DOWN), REAL, "not reproduced"),
        (outcome(DOWN), TOY, "mechanism not shown"),
        (outcome(WIDE), REAL, "inconclusive"),
        (outcome(0.01 * UP, above=0, at_least=0.05), REAL, "not reproduced"),
        (outcome(0.01 * UP, above=0, at_least=0.05), TOY, "mechanism not shown"),
        (outcome(UP, above=0, at_least=0.05), REAL, "direction reproduced"),
        (outcome(UP, above=0.8, below=1.2), REAL, "direction reproduced"),
        (outcome(UP, above=0.5, below=0.8), REAL, "not reproduced"),
        (outcome(UP, [WIDE]), REAL, "inconclusive"),
        (outcome(UP, [DOWN]), REAL, "not reproduced"),
        (outcome(series(1.0, float("nan"), 1.1, 0.9, 1.0)), REAL, "inconclusive"),
        (Outcome(UP), REAL, "not tested"),
        (None, None, "not tested"),
        (outcome(UP), replace(REAL, seeds=(0, 1)), "not tested"),
        (outcome(UP), replace(REAL, problems=("seeds 0 and 1 have equal results",)), "not tested"),
    ],
)
def test_rules(found, setting, verdict):
    made = judge(found, setting)
    assert made.name == verdict and made.reason


def test_a_set_up_that_cannot_test_never_gives_a_verdict():
    assert judge(outcome(UP), REAL, not_tested="wrong cell").name == "not tested"


def test_several_tries_count():
    "One check of twenty that is barely reversed is what chance gives; alone it refutes."
    barely = series(-1.0, -0.05, -0.6, -0.3, -0.5)
    assert Check("alone", barely, above=0).reversed
    many = Outcome(
        UP, [Check("barely", barely, above=0), *(Check(str(k), UP, above=0) for k in range(19))]
    )
    assert (
        judge(outcome(barely), REAL).name == "not reproduced"
        and judge(many, REAL).name == "inconclusive"
    )


def test_the_papers_own_setting_needs_the_band():
    paper = Setting("paper", "own", same_setting=True, seeds=SEEDS)
    assert judge(outcome(UP), paper, paper_value=1.0, tolerance=0.2).name == "reproduced"
    assert judge(outcome(UP), paper, paper_value=3.0, tolerance=0.2).name == "not reproduced"
    assert judge(outcome(UP), paper, paper_value=1.0, tolerance=0.01).name == "direction reproduced"


def test_equal_seeds_are_noticed(frozen):
    "Seed 0's rows copied to the other seeds: no verdict becomes stronger, all become not tested."
    paper = PAPERS["anp"]
    first = frozen["anp"][0]
    copies = [r.model_copy(update={"rows": first.rows}) for r in frozen["anp"]]
    for claim in paper.claims.values():
        row = L.claim_row(claim, copies, real=paper.real)
        assert row["verdict"] == "not tested", claim.id


def test_stand_ins_are_known_from_the_paper(frozen):
    "A flag changed by hand in a record changes no verdict."
    paper = PAPERS["exvo"]
    records = [r.model_copy(deep=True) for r in frozen["exvo"]]
    for record in records:
        for source in record.data:
            source.stand_in = False
    row = L.claim_row(paper.claims["EV-4"], records, real=paper.real)
    assert row["stand_in"] and row["verdict"] == "mechanism shown"


def test_one_bad_record_stops_nothing(tmp_path, frozen):
    "A damaged file and a missing column are reported, and the other claims are judged."
    folder = tmp_path / "uncertainty"
    folder.mkdir()
    for record in frozen["uncertainty"]:
        fresh = record.model_copy(update={"fingerprint": L_fingerprint(record.module)})
        if record.experiment == "faces":
            fresh.rows = [{k: v for k, v in row.items() if k != "role"} for row in record.rows]
        (folder / Path(record.name).name).write_text(json.dumps(fresh.model_dump(by_alias=True)))
    (folder / "words-night-seed0.json").write_text("{")
    found = L.paper_ledger(PAPERS["uncertainty"], tmp_path)
    verdicts = {c["id"]: c for c in found["claims"]}
    assert any("words-night-seed0.json" in line for line in found["stale"])
    assert verdicts["UN-3"]["verdict"] == "not tested" and "role" in verdicts["UN-3"]["reason"]
    assert verdicts["UN-4"]["n"] == 4 and "4 of 5 seeds" in verdicts["UN-4"]["note"]


def L_fingerprint(module):
    from avpapers.core.fingerprint import fingerprint

    return fingerprint(module)


def test_compared_with_the_same_tier():
    new = {"claims": [{"id": "X-1", "estimate": 0.5, "low": 0.4, "high": 0.6}]}
    old = {
        "claims": [
            {
                "id": "X-1",
                "verdict": "reproduced",
                "tier": "night",
                "tiers": {"cpu": {"estimate": 0.52, "low": 0.5, "high": 0.54}},
            }
        ]
    }
    (line,) = L.compare(new, old, "cpu")
    assert line["agrees"] == "yes" and line["committed verdict"] == "reproduced"
    assert L.compare(new, old, "night")[0]["agrees"] == "nothing to compare with"


def test_runs_need_one_row_per_seed(frozen):
    runs = Runs([r for r in frozen["skiprnn"] if r.experiment == "digits"])
    with pytest.raises(ValueError, match="narrow it down"):
        runs["accuracy"]
    with pytest.raises(ValueError, match="no column 'nothing'"):
        runs.where(role="skip")["nothing"]
    assert list(runs.where(role="skip")["accuracy"].index) == [0, 1, 2, 3, 4]
