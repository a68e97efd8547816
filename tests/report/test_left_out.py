"""What is in no mean of a report is said: seeds, facts that the model did not know, edits without a score."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ketools.evaluation.metrics import metric
from ketools.plots.style import words
from ketools.report.figures import CHARTS, checkpoints, left_out, pooled
from ketools.report.page import at_the_end
from ketools.report.verdicts import Verdict
from ketools.runs.records import Run, arrange
from tests.report.test_sets import groups
from tests.runs.fakes import fake_record


def holed(*places):
    """Three seeds of MEMIT; `places`: (seed, edits, column) that were not measured."""
    given = groups(("memit", 0), ("memit", 1), ("memit", 2))
    for seed, edits, column in places:
        frame = given[0].runs[seed].record.checkpoints
        frame.loc[frame["edits"] == edits, column] = np.nan
    return given


def test_a_seed_that_is_in_no_mean_is_not_counted_in_it():
    whole, given = holed(), holed((1, 200, "unedited_kept"))
    frame = pooled(given, lambda record: record.checkpoints).set_index("edits")
    values = [fake_record("memit", seed).checkpoints["unedited_kept"].iloc[-1] for seed in (0, 2)]
    assert frame.loc[200, "unedited_kept"] == pytest.approx(np.mean(values))
    assert frame.loc[200, "unedited_kept_seeds"] == 2 and frame.loc[100, "unedited_kept_seeds"] == 3
    assert not [name for name in pooled(whole, lambda record: record.checkpoints) if name.endswith("_seeds")]
    said = left_out(frame.reset_index(), ["unedited_kept"])
    assert "MEMIT: unedited_kept" in said and "2 of 3 seeds" in said
    fig = CHARTS["unedited"].figure(given)
    assert words(fig)["caption"] == words(CHARTS["unedited"].figure(whole))["caption"] + said
    assert "range of 2 to 3 seeds" in next(trace for trace in fig.data if trace.name == "MEMIT").hovertemplate
    assert words(CHARTS["downstream"].figure(given)) == words(CHARTS["downstream"].figure(whole))


def test_a_seed_without_rows_is_told():
    given = groups(("memit", 0), ("memit", 1), ("encore", 0))
    short = replace(given[0].runs[1].record, residual=pd.DataFrame())
    given = arrange([*given[0].runs[:1], replace(given[0].runs[1], record=short), *given[1].runs])
    caption = words(CHARTS["residual"].figure(given))["caption"]
    assert " MEMIT: 1 of 2 seeds;" in caption


def cells(given):
    """Metric -> cells of the table of the end."""
    table = at_the_end(given)[0]
    aside = sum(head in ("n", "unedited") for head, _ in table.heads)
    return {head: row[aside:] for (head, _), row in table.rows}


def test_no_verdict_where_the_interval_of_a_share_holds_the_bound():
    """87% of 15 facts may be 95%; of 1,500 it is not."""
    record = fake_record("memit", 0)
    for known, told in ((15, False), (1500, True)):
        points = record.checkpoints.assign(unedited_known=known, unedited_kept=13 / 15)
        given = arrange([Run("a", replace(record, checkpoints=points))])
        finding = words(CHARTS["unedited"].figure(given))["finding"]
        assert ("are lost" in finding) is told and "survive" not in finding and f"n {known:,}" in finding


def test_a_run_that_ended_in_its_first_batch_is_in_no_mean():
    first = fake_record("memit", 1)
    first = replace(first, checkpoints=first.checkpoints[:1], collapse={"batch": 1, "edits": 0, "why": "not finite"})
    given = [*groups(("memit", 0))[0].runs, Run("at once", first), *groups(("encore", 0))[0].runs]
    whole, frame = arrange([given[0], given[2]]), pooled(arrange(given), checkpoints)
    assert frame.drop(columns="runs").equals(pooled(whole, checkpoints))
    assert "MEMIT: 1 of 2 seeds" in left_out(frame, ["unedited_kept"])
    assert cells(arrange(given)) == cells(whole)


def test_records_that_do_not_say_how_many_facts_they_asked_are_drawn():
    given = groups(("memit", 0), ("encore", 0))
    given[0].runs[0].record.checkpoints["unedited_known"] = 1000
    assert "n 1,000" not in words(CHARTS["unedited"].figure(given))["finding"]
    given[1].runs[0].record.checkpoints["unedited_known"] = 1000
    assert "n 1,000" in words(CHARTS["unedited"].figure(given))["finding"]


def test_the_unedited_model_is_shown_over_all_seeds():
    given = groups(("memit", 0), ("encore", 0), ("memit", 1))
    for group in given:
        for run in group.runs:
            run.record.checkpoints["p_natural"] = 0.6 + 0.1 * run.seed
            run.record.checkpoints["unedited_known"] = 990 + 10 * run.seed
    table = at_the_end(given)[0]
    assert "0.650 (0.600–0.700)" in str(table) and "995 (990–1,000)" in str(table)


def test_a_cell_says_of_how_many_seeds_it_is():
    assert "of 3" not in str(cells(holed()))
    shown = cells(holed((1, 200, "unedited_kept"), (0, 200, "ES"), (1, 200, "ES")))
    kept = [fake_record("memit", seed).checkpoints["unedited_kept"].iloc[-1] for seed in (0, 2)]
    assert shown[metric("unedited_kept").label] == [
        f"{np.mean(kept):.0%} ({min(kept) * 100:.0f}–{max(kept):.0%}; 2 of 3)"
    ]
    (efficacy,) = shown[metric("ES").label]
    assert efficacy.endswith("% (1 of 3)"), "one value has no range"


def test_what_the_model_did_not_know_before_is_said_under_the_table():
    given = groups(("memit", 0), ("encore", 0), ("memit", 1))
    counts = {"unedited_asked": 1000, "same_subject_asked": 300, "same_subject_known": 300}
    for group in given:
        for run in group.runs:
            frame = run.record.checkpoints
            frame[[*counts]], frame["unedited_known"] = [*counts.values()], 1000
    assert at_the_end(given)[1] == [], "nothing is left out"
    for group in given:
        for run in group.runs:
            run.record.checkpoints["unedited_known"] = 990 + run.seed
    assert at_the_end(given)[1] == [
        Verdict("unknown", {"known": 990 + seed, "seeds": [seed]}, 1000, "unedited facts") for seed in (0, 1)
    ]


def test_edits_that_are_in_no_point_of_their_age_are_counted():
    given, whole = groups(("memit", 0), ("encore", 0)), groups(("memit", 0), ("encore", 0))
    facts = given[0].runs[0].record.facts
    facts.loc[[0, 1, 60], "end_efficacy_success"] = np.nan
    said = words(CHARTS["age"].figure(given))["caption"].removeprefix(words(CHARTS["age"].figure(whole))["caption"])
    assert "left out" in said and said.endswith(": 3 with MEMIT.")
    facts.loc[facts["batch"] == 2, "at_edit_efficacy_success"] = 0.0  # nothing took: no ratio, for all 50 of them
    fig = CHARTS["age"].figure(given)
    assert ": 52 with MEMIT." in words(fig)["caption"] and "kept that were not measured" in words(fig)["caption"]
    (line,) = [trace for trace in fig.data if trace.name == "MEMIT"]
    assert [x for x, y in zip(line.x, line.y) if y is None or np.isnan(y)] == [100]
