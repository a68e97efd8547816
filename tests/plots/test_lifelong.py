"""Figures of runs: titles that follow the data, units on every axis, gaps where nothing was measured."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError, plots
from ketools.plots.style import label, words
from tests.plots.figures import MARKUP, tells
from tests.plots.sample import record, records

TABLE = {"norm_growth": "norms", "norm_fit_curve": "norms", "cost": "batches", "target_probability_lines": "batches"}
COLUMN = {
    "unedited_kept": "unedited_kept",
    "same_subject_kept": "same_subject_kept",
    "downstream_kept": "downstream_kept",
    "perplexity": "perplexity_ratio",
    "edit_scores": "ES",
    "probability": "p_edited",
    "norm_growth": "ratio",
    "norm_fit_curve": "ratio",
    "target_probability_lines": "p_target_mean",
}
FIGURES = [*COLUMN, "cost"]


def table(name, runs=None):
    frame = plots.stack(runs or records(), TABLE.get(name, "checkpoints"))
    return frame.assign(p_target_mean=1 / frame["steps_mean"]) if name == "target_probability_lines" else frame


def draw(name, runs=None):
    return getattr(plots, name)(table(name, runs))


def kept(*values):
    return pd.DataFrame({"edits": [100, 200, 300], "now": values, "at_edit": 1.0, "kept": values})


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_unit_and_every_figure_its_words(name):
    fig = draw(name)
    assert tells(fig)
    axes = [fig.layout[key] for key in fig.layout.to_plotly_json() if re.fullmatch(r"[xy]axis\d*", key)]
    assert all(axis.title.text or axis.matches for axis in axes), "an axis without a title that follows no other"
    assert all(label(method) in words(fig)["description"] for method in records())


@pytest.mark.parametrize("name", FIGURES)
def test_titles_follow_the_data(name):
    finding = tells(draw(name))
    flipped = {"memit": records()["encore"], "alphaedit": records()["alphaedit"], "encore": records()["memit"]}
    assert tells(draw(name, flipped)) != finding
    assert tells(draw(name, records(["encore"]))) != finding


def test_titles_say_who_keeps_and_who_loses():
    growth = tells(draw("norm_growth"))
    assert re.findall(r"[\d.]+×", growth) == ["3.16×", "1.81×", "1.14×"]
    assert (
        growth.index("half or more")
        < growth.index("AlphaEdit")
        < growth.index("less than half")
        < growth.index("ENCORE")
    )
    fine = {"memit": record(0.1, 0.0, 0.3), "encore": record(0.1, 0.0, 0.3)}
    assert "survive with every method" in tells(draw("unedited_kept", fine))
    assert "no more confident" in tells(draw("probability", fine)) and "any method" in tells(draw("probability", fine))
    lost = tells(draw("unedited_kept", {"encore": record(9.0, 0.9, 0.99)}))
    assert "are lost with ENCORE" in lost and "10%" in lost
    assert "6.20 steps" in tells(draw("cost")) and "69% fewer than AlphaEdit" in tells(draw("cost"))


def test_a_model_broken_beyond_numbers_is_named_as_such():
    broken = record(3.0, 0.5, 0.5)
    broken.norms.loc[broken.norms["edited"] & (broken.norms["edits"] == 200), "ratio"] = math.inf
    broken.checkpoints.loc[broken.checkpoints["edits"] == 200, ["perplexity_ratio"]] = math.inf
    for name in ("norm_growth", "perplexity"):
        fig = draw(name, {"memit": broken})
        assert "beyond measure" in tells(fig) and "beyond measure" in words(fig)["description"]
        assert all(y is None or not math.isinf(y) for trace in fig.data for y in trace.y)


def test_runs_that_stopped_at_different_places_are_not_mixed_up():
    runs = {"memit": record(2.0, 0.5, 0.9, edits=100), "encore": record(0.1, 0.0, 0.4)}
    assert "100 to 200 edits" in tells(draw("unedited_kept", runs))


@pytest.mark.parametrize("name", sorted(COLUMN))
def test_missing_columns_and_values_are_named(name):
    figure, frame, column = getattr(plots, name), table(name), COLUMN[name]
    with pytest.raises(KetoolsError, match=f"lacks {column}"):
        figure(frame.drop(columns=column))
    with pytest.raises(KetoolsError, match=f"{column} was not measured"):
        figure(frame.assign(**{column: math.nan}))
    with pytest.raises(KetoolsError, match="no rows"):
        figure(frame.iloc[:0])
    with pytest.raises(KetoolsError, match="lacks method"):
        figure(frame.drop(columns="method"))


def test_natural_facts_are_a_line_and_a_level():
    frame = plots.stack(records(), "checkpoints").assign(p_natural=math.nan)
    with pytest.raises(KetoolsError, match="p_natural was not measured"):
        plots.probability(frame)
    targets = table("target_probability_lines")
    assert len(plots.target_probability_lines(targets).data) == 3
    fig = plots.target_probability_lines(targets.assign(p_natural=0.1))
    assert (
        list(fig.data[-1].y) == pytest.approx([0.1, 0.1])
        and "grows more confident" in tells(fig)
        and "ENCORE" in tells(fig).split(",")[0]
    )


def test_names_from_outside_are_text_not_markup():
    for name in FIGURES:
        assert MARKUP in tells(draw(name, {MARKUP: record(1.0, 0.1, 0.5)}))


def test_stack_names_each_run():
    frame = plots.stack(records(), "batches")
    assert frame.columns[0] == "method" and list(frame["method"].unique()) == list(records())
    with pytest.raises(KetoolsError, match="no runs"):
        plots.stack({}, "norms")


def test_wide_ranges_get_a_logarithmic_axis():
    assert draw("perplexity", {"memit": record(1, 0.9, 0.5)}).layout.yaxis.type == "log"
    assert draw("perplexity", {"memit": record(1, 0.1, 0.5)}).layout.yaxis.type == "linear"


@pytest.mark.parametrize("name", ["unedited_kept", "perplexity", "edit_scores", "probability"])
def test_a_hole_breaks_the_line_and_the_caption_counts_it(name):
    figure, frame = getattr(plots, name), plots.stack(records(every=50), "checkpoints")
    whole = words(figure(frame))["caption"]
    inside, end = ((frame["method"] == m) & (frame["edits"] == at) for m, at in (("memit", 100), ("encore", 200)))
    frame.loc[inside | end, COLUMN[name]] = math.nan
    fig = figure(frame)
    more = words(fig)["caption"].removeprefix(whole)
    assert COLUMN[name] in more and "1 of 4 with MEMIT" in more and "1 of 4 with ENCORE" in more
    lines = {trace.name: trace for trace in reversed(fig.data)}  # the first panel's
    assert [x for x, y in zip(lines["MEMIT"].x, lines["MEMIT"].y) if y is None or math.isnan(y)] == [100]
    assert lines["MEMIT"].x[-1] == 200 and lines["ENCORE"].x[-1] == 150 and lines["AlphaEdit"].x[-1] == 200
    assert "nan" not in words(fig)["description"] and "unknown" not in words(fig)["description"]


def test_a_line_of_several_seeds_has_their_range_behind_it():
    frame = plots.stack(records(), "checkpoints")
    frame["seeds"] = frame["method"].map({"memit": 3, "alphaedit": 2, "encore": 1})
    frame = frame.assign(unedited_kept_low=frame["unedited_kept"] - 0.1, unedited_kept_high=1.0)
    fig = plots.unedited_kept(frame)
    assert [trace.fill for trace in fig.data] == ["toself", "toself", None, None, None]
    lines = {trace.name: trace for trace in fig.data if trace.fill is None}
    assert lines["MEMIT"].meta["interval"] == "range of 3 seeds" and lines["ENCORE"].meta is None
    memit = frame[frame["method"] == "memit"]
    assert np.asarray(lines["MEMIT"].customdata) == pytest.approx(
        memit[["unedited_kept_low", "unedited_kept_high"]].to_numpy()
    )
    assert list(fig.data[0].y[:3]) == pytest.approx(memit["unedited_kept_low"].tolist())


def test_the_law_of_growth_is_named():
    grown = plots.stack(records(["memit"]), "norms")
    title = tells(plots.norm_fit_curve(grown, context="n = 3."))
    assert "edits^" in title and "still growing" in title
    still = tells(plots.norm_fit_curve(grown.assign(ratio=1.0)))
    assert "does not grow" in still and "no longer growing" in still
    assert "edits^0.50" in tells(plots.norm_fit_curve(grown.assign(ratio=np.sqrt(1 + grown["edits"] / 50))))
    with pytest.raises(KetoolsError, match="nothing to fit"):
        plots.norm_fit_curve(grown[grown["edits"] == 0])
