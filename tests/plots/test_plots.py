"""Figures: titles that follow the data, units on every axis, a palette that colour-blind readers can tell apart."""

import math
import re
from html import unescape

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.evaluation.metrics import look_up
from ketools.plots import figures as plots
from ketools.plots import style as findings
from ketools.plots.style import OKABE_ITO, label, styles, undressed, words
from tests.plots.sample import record, records

TABLE = {"norm_growth": "norms", "cost": "batches"}
# Those of runs; the others are tested with the frames that they draw.
FIGURES = [name for name in plots.__all__ if getattr(plots, name).__module__ == plots.__name__ and name != "stack"]
COLUMN = {
    "unedited_kept": "unedited_kept",
    "same_subject_kept": "same_subject_kept",
    "downstream_kept": "downstream_kept",
    "perplexity": "perplexity_ratio",
    "edit_scores": "ES",
    "probability": "p_edited",
}


def draw(name, runs=None):
    return getattr(plots, name)(plots.stack(runs or records(), TABLE.get(name, "checkpoints")))


def axes(fig):
    return [fig.layout[key] for key in fig.layout.to_plotly_json() if re.fullmatch(r"[xy]axis\d*", key)]


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_unit_and_every_figure_its_words(name):
    fig = draw(name)
    titled = [axis.title.text for axis in axes(fig) if axis.title.text]
    assert titled and all(re.search(r"\(.+\)$", text) for text in titled), titled
    assert all(axis.title.text or axis.matches for axis in axes(fig)), "an axis without a title that follows no other"
    said = words(fig)
    assert fig.layout.title.text.replace("<br>", " ") == said["finding"]
    assert said["caption"].endswith(".")
    assert all(label(method) in said["description"] for method in records())
    assert any(note.name == "caption" for note in fig.layout.annotations)


@pytest.mark.parametrize("name", FIGURES)
def test_titles_follow_the_data(name):
    one_way = words(draw(name))["finding"]
    flipped = {"memit": records()["encore"], "alphaedit": records()["alphaedit"], "encore": records()["memit"]}
    assert words(draw(name, flipped))["finding"] != one_way
    assert words(draw(name, records(["encore"])))["finding"] != one_way


def test_titles_say_who_keeps_and_who_loses():
    assert words(draw("norm_growth"))["finding"] == (
        "Edited matrices outgrow their norm with MEMIT and AlphaEdit, keep near their original norm with ENCORE "
        "(largest ratio after 200 edits: MEMIT 3.16×, AlphaEdit 1.81×, ENCORE 1.14×)"
    )
    fine = {"memit": record(0.1, 0.0, 0.3), "encore": record(0.1, 0.0, 0.3)}
    assert words(draw("unedited_kept", fine))["finding"].startswith("Unedited facts survive with every method (")
    assert (
        "no surer of edited facts than of natural ones with any method" in words(draw("probability", fine))["finding"]
    )
    lost = {"encore": record(9.0, 0.9, 0.99)}
    assert (
        words(draw("unedited_kept", lost))["finding"]
        == "Unedited facts get lost with ENCORE (still right after 200 edits: 10%)"
    )
    assert words(draw("cost"))["finding"].startswith("ENCORE takes 6.20 steps per fact (")
    assert (
        "48%" not in words(draw("cost"))["finding"] and "69% fewer than AlphaEdit (20" in words(draw("cost"))["finding"]
    )


def test_of_many_methods_the_two_at_the_ends_are_said():
    ends = {f"method-{i}": i / 10 for i in (3, 1, 9, 2, 5)}
    assert findings.UNEDITED.sentence(ends, "100").endswith("edits: from method-1 10% to method-9 90%)")
    few = dict(list(ends.items())[:4])
    assert findings.UNEDITED.sentence(few, "100").endswith("method-3 30%, method-1 10%, method-9 90%, method-2 20%)")
    broken = findings.NORM.sentence({**ends, "method-1": math.inf}, "100")
    assert "method-1 beyond measure" in broken and "method-5 0.50×" in broken


def test_a_model_broken_beyond_numbers_is_said_so():
    broken = record(3.0, 0.5, 0.5)
    broken.norms.loc[broken.norms["edited"] & (broken.norms["edits"] == 200), "ratio"] = math.inf
    broken.checkpoints.loc[broken.checkpoints["edits"] == 200, ["perplexity_ratio"]] = math.inf
    for name in ("norm_growth", "perplexity"):
        fig = draw(name, {"memit": broken})
        assert "beyond measure" in words(fig)["finding"] and "beyond measure" in words(fig)["description"]
        assert all(y is None or math.isfinite(y) or math.isnan(y) for trace in fig.data for y in trace.y)


def test_runs_that_stopped_at_different_places_are_not_mixed_up():
    runs = {"memit": record(2.0, 0.5, 0.9, edits=100), "encore": record(0.1, 0.0, 0.4)}
    assert "after 100 to 200 edits" in words(draw("unedited_kept", runs))["finding"]


@pytest.mark.parametrize("name", sorted(COLUMN))
def test_missing_columns_and_values_are_named(name):
    frame = plots.stack(records(), "checkpoints")
    with pytest.raises(KetoolsError, match=f"lacks {COLUMN[name]}"):
        getattr(plots, name)(frame.drop(columns=COLUMN[name]))
    with pytest.raises(KetoolsError, match=f"{COLUMN[name]} was not measured"):
        getattr(plots, name)(frame.assign(**{COLUMN[name]: math.nan}))
    with pytest.raises(KetoolsError, match="no rows"):
        getattr(plots, name)(frame.iloc[:0])
    with pytest.raises(KetoolsError, match="lacks method"):
        getattr(plots, name)(frame.drop(columns="method"))


def test_without_natural_facts_nothing_is_said_about_overfitting():
    frame = plots.stack(records(), "checkpoints").assign(p_natural=math.nan)
    with pytest.raises(KetoolsError, match="p_natural was not measured"):
        plots.probability(frame)


def test_methods_differ_by_colour_and_by_dash_and_symbol():
    for methods in (list(records()), [*records(), "sequential-memit"], [f"m{i}" for i in range(6)]):
        looks = list(styles(methods).values())
        assert {look.colour for look in looks} <= set(OKABE_ITO.values()) - {"#000000", "#F0E442"}
        for kind in ("colour", "dash", "symbol"):
            assert len({getattr(look, kind) for look in looks}) == len(methods), kind
    many = list(styles(f"m{i}" for i in range(18)).values())
    assert len({(look.colour, look.dash) for look in many}) == 18


def test_a_method_looks_the_same_alone_and_in_company():
    alone, company = draw("unedited_kept", records(["encore"])).data[0], draw("unedited_kept").data[2]
    assert alone.name == company.name == "ENCORE"
    assert alone.line == company.line and alone.marker == company.marker


def test_names_from_outside_are_text_not_markup():
    runs = {"<img src=x onerror=alert(1)>": record(1.0, 0.1, 0.5)}
    for name in FIGURES:
        assert "<img" not in draw(name, runs).to_json().replace("\\u003c", "<")


def test_undressed_leaves_the_figure_as_it_was():
    fig = draw("edit_scores")
    bare = undressed(fig)
    assert bare.layout.title.text is None and not any(note.name == "caption" for note in bare.layout.annotations)
    assert len(bare.layout.annotations) == 3, "panel titles stay"
    assert fig.layout.title.text and len(fig.layout.annotations) == 4


def test_the_table_below_a_figure_explains_the_metrics_it_knows():
    shown = plots.describe(draw("edit_scores"))._repr_html_()
    (said,) = re.findall(r'<th><abbr title="([^"]*)">efficacy \(ES\): MEMIT</abbr></th>', shown)
    assert unescape(said) == look_up("ES", "evaluate")[0].text() and "&gt;" in said
    assert '<abbr title="edits (shared): edits so far' in shown
    kept = plots.describe(draw("unedited_kept"))._repr_html_()
    assert "<th>MEMIT</th>" in kept, "a method is no metric"
    assert "<th>unedited matrices</th>" in plots.describe(draw("norm_growth"))._repr_html_()


def test_stack_names_each_run():
    frame = plots.stack(records(), "batches")
    assert frame.columns[0] == "method" and list(frame["method"].unique()) == list(records())
    with pytest.raises(KetoolsError, match="no runs"):
        plots.stack({}, "norms")


def test_wide_ranges_get_a_logarithmic_axis():
    assert draw("perplexity", {"memit": record(1, 0.9, 0.5)}).layout.yaxis.type == "log"
    assert draw("perplexity", {"memit": record(1, 0.1, 0.5)}).layout.yaxis.type == "linear"
    assert isinstance(draw("cost").data[0].x, tuple | list | pd.Series)


@pytest.mark.parametrize("name", ["unedited_kept", "perplexity", "edit_scores", "probability"])
def test_a_hole_breaks_the_line_and_the_caption_counts_it(name):
    frame = plots.stack(records(every=50), "checkpoints")
    whole = getattr(plots, name)(frame)
    inside, end = ((frame["method"] == m) & (frame["edits"] == at) for m, at in (("memit", 100), ("encore", 200)))
    frame.loc[inside | end, COLUMN[name]] = math.nan
    fig = getattr(plots, name)(frame)
    assert words(fig)["caption"].removeprefix(words(whole)["caption"]) == (
        f" Points of {COLUMN[name]} that were not measured and are left out: 1 of 4 with MEMIT and 1 of 4 with ENCORE."
    )
    lines = {trace.name: trace for trace in reversed(fig.data)}  # the first panel's
    assert [x for x, y in zip(lines["MEMIT"].x, lines["MEMIT"].y) if y is None or math.isnan(y)] == [100]
    assert lines["MEMIT"].x[-1] == 200 and lines["ENCORE"].x[-1] == 150 and lines["AlphaEdit"].x[-1] == 200
    assert "nan" not in words(fig)["description"] and "unknown" not in words(fig)["description"]
