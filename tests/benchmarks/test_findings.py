"""Verdicts are computed: every claim holds where it is true and fails where it is not; runs are made once and resumed."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import findings, verdicts
from benchmarks.verdicts import (
    BOTH,
    CLAIMS,
    METHODS,
    NEITHER,
    NO_PAST,
    NO_PAST_NORM,
    NORM,
    STOP,
    judge,
    student,
    verdict,
)
from ketools.editing.covariance import Statistics
from ketools.models.model import load
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import Run
from ketools.runs.study import write_study
from tests.conftest import SENTENCES
from tests.runs.fakes import fake_record
from tests.small_world import small_facts

# The paper's story: method -> norm ratio, unedited kept, downstream kept; past keys do more than lambda_n.
STORY = {
    NO_PAST: (3.0, 0.50, 0.70), NO_PAST_NORM: (2.0, 0.60, 0.80), NEITHER: (2.5, 0.75, 0.85), STOP: (2.2, 0.85, 0.92),
    NORM: (1.2, 0.88, 0.94), BOTH: (1.1, 0.98, 0.99),
}  # fmt: skip


def story(seeds=range(5), *, reverse=False) -> pd.DataFrame:
    """Rows of `measure`: the paper's story with a little noise, or its reverse."""
    draw, rows = np.random.default_rng(0), []
    for seed in seeds:
        for method in METHODS:
            stopped = "mpes" in method or method == BOTH
            norm, unedited, downstream = STORY.get(method, (2.0, 0.7, 0.8))
            sign = -1 if reverse else 1
            row = {
                "natural": 0.5, "p_at_edit": 0.5 + sign * (-0.1 if stopped else 0.3), "norm_ratio": 1 + sign * (norm - 1),
                "norm_ratio_unedited": 1.5 if reverse else 1.0, "share_before": 0.1, "share_end": 0.1 + sign * 0.2,
                "unedited_kept": 0.9 + sign * (unedited - 0.9) - 0.3 * reverse, "downstream_kept": downstream,
                "share_against_downstream": -sign * 0.8, "share_against_unedited": -sign * 0.9,
                "same_subject_kept": 0.5 + sign * (unedited - 0.5), "ES": 0.5 + sign * (unedited - 0.5),
                "steps": 10 - sign * (4 if stopped else 0), "seconds_targets": 0.1 - sign * (0.05 if stopped else 0),
            }  # fmt: skip
            if reverse:
                row["downstream_kept"] = 1.1 - 0.2 * stopped
            noise = {name: value + 1e-5 * draw.standard_normal() for name, value in row.items()}
            rows.append({"method": method, "seed": seed} | noise)
    return pd.DataFrame(rows)


def test_every_claim_holds_in_the_paper_s_story_and_none_in_its_reverse():
    judged = judge(story())
    assert len(judged) == len(CLAIMS) > 30
    assert list(judged.loc[judged["verdict"] != "holds", "claim"]) == []
    assert set(judged["finding"].str[0]) == set("1234567")
    other = judge(story(reverse=True))
    assert list(other.loc[other["verdict"] == "holds", "claim"]) == []
    assert (judged["seeds"] == 5).all()


def test_a_verdict_needs_the_whole_interval():
    none = float("nan")
    assert verdict(0.15, 0.1, 0.2, 0.0) == "holds"
    assert verdict(0.05, -0.1, 0.2, 0.0).startswith("does not hold (the interval")
    assert verdict(-0.15, -0.2, -0.1, 0.0) == "does not hold (the reverse)"
    assert verdict(0.1, none, none, 0.0) == "no verdict (one seed, above)"
    assert verdict(0.0, none, none, 0.0) == "no verdict (one seed, not above)"
    assert verdict(none, none, none, 0.0) == "no number"
    one = judge(story(seeds=[3]))
    assert one["verdict"].str.match(r"no verdict \(one seed, (not )?above\)|no number").all()
    some = story()
    missing = judge(some[some["method"] != "alphaedit"])
    about = missing["claim"].str.startswith("AlphaEdit:")
    assert about.any() and not (missing.loc[about, "verdict"] == "holds").any()


def test_intervals_are_student_s_and_methods_are_compared_seed_by_seed():
    values = [0.1, 0.4, 0.2, float("nan"), 0.3]
    mean, low, high, n = student(values)
    good = np.array([0.1, 0.4, 0.2, 0.3])
    want = stats.t.interval(0.95, 3, good.mean(), stats.sem(good))
    assert (mean, low, high, n) == (pytest.approx(0.25), pytest.approx(want[0]), pytest.approx(want[1]), 4)
    rows = story()
    rows["unedited_kept"] += rows["seed"]  # seeds differ much more than methods: only pairs tell
    judged = judge(rows).set_index("claim")
    claim = next(c for c in judged.index if c.startswith("MPES delays: more unedited"))
    assert judged.loc[claim, "verdict"] == "holds"
    assert judged.loc[claim, "mean"] == pytest.approx(0.1, abs=1e-3)


def test_a_run_that_ended_in_its_first_batch_has_no_numbers_and_no_vote():
    record = fake_record("memit")
    first = {name: getattr(record, name)[lambda frame: frame["edits"] == 0] for name in ("checkpoints", "norms")}
    first["norms"]["norm"] = 7.0 * first["norms"]["ratio"]
    none = {name: pd.DataFrame() for name in ("batches", "facts")}
    early = Run("memit", replace(record, **first, **none, collapse={"batch": 1, "edits": 0, "why": "not finite"}))
    row = verdicts.measure(early)
    assert row.pop("edits") == 0 and row.pop("natural") == record.checkpoints["p_natural"].iloc[0]
    row.pop("share_before")  # of the unedited model
    assert np.isnan(list(row.values())).all(), row
    assert verdicts.damage([early]).empty
    later = [Run(f"encore-{seed}", fake_record("encore", seed, every=50)) for seed in (0, 1)]
    pd.testing.assert_frame_equal(verdicts.damage([early, *later]), verdicts.damage(later))


@pytest.fixture
def job(trained_gpt2, tiny_tokenizer):
    """Model, facts and settings of runs that take seconds."""
    model, facts = load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer), small_facts()
    statistics = Statistics.compute(model, [*SENTENCES, *(f"{f.text} {f.target_true}." for f in facts)], range(4), 2000)
    sizes = Sizes(unedited=8, same_subject=6, per_task=2, neighbours=1, neighbours_end=1, residual_tokens=64)
    tasks = pd.DataFrame(
        {
            "task": "a",
            "split": "test",
            "id": f"a{i}",
            "prompt": f"{name} was",
            "choices": [" born", " song"],
            "answer": i % 2,
        }
        for i, name in enumerate(("Ada", "Bo"))
    )
    panel = Panel.take(model, facts, facts.sample(6, 0), sizes=sizes, tasks=tasks, texts=SENTENCES)
    quick = {"steps": 2, "prefix_count": 1, "prefix_tokens": 2, "layers": (1,)}
    return model, facts, {"statistics": statistics, "panel": panel, "overrides": quick}


def test_runs_are_made_once_go_on_and_become_tables(job, tmp_path, monkeypatch):
    model, facts, settings = job
    words = ["--seeds", "0,1", "--methods", "memit,memit+mpes,encore", "--edits", "6", "--batch", "2", "--quiet"]
    options = findings.parse([*words, "--checkpoint-every", "2", "--out", str(tmp_path / "runs"), "--model", "tiny"])
    before = {layer: model.weight(layer).clone() for layer in range(4)}
    runs = findings.collect(options, lambda: model, lambda: facts, model.fingerprint, **settings)
    assert [(run.method, run.seed) for run in runs] == [
        (m, s) for s in (0, 1) for m in ("memit", "memit+mpes", "encore")
    ]
    assert all(before[layer].equal(model.weight(layer)) for layer in before) and not model.edits
    text, data = findings.tables(runs, options)
    assert "MEMIT + MPES" in text and "does not hold" in text and "Spearman" in text
    assert len(data["rows"]) == 6 and len(data["claims"]) == len(CLAIMS)
    assert "of 4 claims hold; 37 have no number" in text
    row = verdicts.measure(runs[0])
    record = runs[0].record
    assert row["steps"] == record.facts["steps"].mean()
    assert row["norm_ratio"] == record.checkpoints["norm_ratio"].iloc[-1] > 1
    assert row["share_before"] == record.checkpoints["residual_share"].iloc[0]

    def never(*_, **__):
        raise AssertionError("a finished run is not run again")

    monkeypatch.setattr(findings, "sweep", never)
    again = findings.collect(options, never, never, model.fingerprint)
    assert findings.tables(again, options)[0] == text
    elsewhere = findings.parse([*words, "--out", str(tmp_path / "none"), "--records", str(tmp_path / "runs")])
    found = findings.collect(elsewhere, never, never, model.fingerprint)
    assert [run.record.provenance["seed"] for run in found] == [run.seed for run in runs]
    write_study({run.name: run.record for run in runs}, tmp_path / "kept")
    monkeypatch.setattr(findings, "KEPT", tmp_path / "kept")
    without = findings.parse([*words, "--out", str(tmp_path / "none")])
    kept = findings.collect(without, never, never, model.fingerprint)
    assert findings.tables(kept, options)[0] == text, "a study gives the same tables"
    with pytest.raises(AssertionError):  # of another model
        findings.collect(elsewhere, lambda: model, lambda: facts, "another")
