"""The ENCORE dial shows the grid's row at its settings, the trace explorer the rows that its controls name."""

import itertools
import math

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.widgets import EncoreDial, TraceExplorer
from ketools.course.widgets.explorers import MEASURES
from ketools.plots.style import words
from ketools.probing.recall import answers
from ketools.probing.tracing import ROLES, average, trace
from ketools.runs.sweep import ALL_STEPS

WEIGHTS, STEPS = (0.0, 10.0, 40.0), (0, 2, ALL_STEPS)


def made_up_grid():
    rows = [
        {"lambda_n": w, "patience": p, **{key: 0.5 + 0.005 * w / 10 + 0.001 * (p % 7) for key in MEASURES}}
        for w, p in itertools.product(WEIGHTS, STEPS)
    ]
    return pd.DataFrame(rows)


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]


def test_every_control_drives_the_data_and_the_picture():
    grid = made_up_grid()
    view = EncoreDial(grid, context="Mode test.")
    assert (view.controls["lambda_n"].value, view.controls["patience"].value) == (10.0, 2)
    for weight, steps, measure in itertools.product(WEIGHTS, STEPS, ("norm_ratio", "steps_mean")):
        for name, value in (("lambda_n", weight), ("patience", steps), ("measure", measure)):
            view.controls[name].value = value
        row = grid[(grid["lambda_n"] == weight) & (grid["patience"] == steps)].iloc[0]
        pd.testing.assert_series_equal(view.chosen, row)
        assert view.data.loc[steps, weight] == row[measure]
        points, ring, heat = drawn(view)["data"]
        assert (ring["x"], ring["y"]) == ([row["efficacy"]], [row["unedited_kept"]]) and len(points["x"]) == 9
        assert heat["z"] == view.data.to_numpy().tolist()
        (frame,) = drawn(view)["layout"]["shapes"]
        assert (frame["x0"] + 0.5, frame["y0"] + 0.5) == (WEIGHTS.index(weight), STEPS.index(steps))
        assert f"lambda_n {weight:g}" in view.sentence() and view.message == ""


def test_the_sentence_names_the_best_pair():
    view = EncoreDial(made_up_grid())
    assert "best where edits hold: lambda_n 40, patience all steps" in view.sentence()
    view.controls["lambda_n"].value, view.controls["patience"].value = 40.0, ALL_STEPS
    assert "no pair whose edits hold does better" in view.sentence()
    view.controls["measure"].value = "steps_mean"
    assert "best where edits hold: lambda_n 0, patience +0" in view.sentence()
    above = EncoreDial(made_up_grid().assign(norm_ratio=lambda grid: 2 * grid["norm_ratio"]))
    above.controls["measure"].value = "norm_ratio"
    assert "best where edits hold: lambda_n 0, patience +0" in above.sentence(), "nearest to 1"


def test_a_pair_that_writes_nothing_is_best_in_nothing():
    grid = made_up_grid()
    corner = (grid["lambda_n"] == 40) & (grid["patience"] == ALL_STEPS)
    view = EncoreDial(grid.assign(efficacy=grid["efficacy"].where(~corner, 0.08)))
    view.controls["measure"].value = "same_subject_kept"
    assert "best where edits hold: lambda_n 40, patience +2" in view.sentence()


def test_pairs_that_were_not_run_are_gaps():
    grid = made_up_grid().drop(index=4)
    view = EncoreDial(grid)
    assert view.chosen is None and view.sentence() == "No run with lambda_n 10, patience +2."
    assert drawn(view)["data"][1]["z"][1][1] is None
    view.controls["measure"].value = "p_edited"
    assert math.isnan(view.data.loc[2, 10.0])


def test_measures_that_were_not_taken_are_not_offered():
    view = EncoreDial(made_up_grid().assign(downstream_kept=math.nan).drop(columns="perplexity_ratio"))
    offered = {key for _, key in view.controls["measure"].options}
    assert offered == set(MEASURES) - {"downstream_kept", "perplexity_ratio"}


def test_words_and_refusals():
    view = EncoreDial(made_up_grid(), context="Mode test, seed 3.")
    assert "seed 3" in words(view.figure())["caption"] and "patience all steps" in words(view.figure())["description"]
    with pytest.raises(KetoolsError, match="lacks patience"):
        EncoreDial(made_up_grid().drop(columns="patience"))
    with pytest.raises(KetoolsError, match="twice"):
        EncoreDial(pd.concat([made_up_grid()] * 2))
    with pytest.raises(KetoolsError, match="no rows"):
        EncoreDial(made_up_grid().iloc[:0])


KINDS = ("hidden", "mlp")


def made_up_trace(tokens=("Ada", " Lorn", " was", " born", " in"), facts=("a", "b"), layers=4):
    """A trace in the shape of probing.tracing.trace: the subject's last token matters in the middle."""
    roles = ["first of the subject", "last of the subject", "first after the subject", "further", "last token"]
    rows = [
        {
            "fact": fact, "kind": kind, "layer": layer, "position": i, "token": token, "role": roles[i],
            "effect": 0.05 * n + (0.4 if i == 1 and layer == 2 else 0.01 * i), "p_clean": 0.8, "p_corrupted": 0.1,
        }
        for n, fact in enumerate(facts) for kind in KINDS for i, token in enumerate(tokens) for layer in range(layers)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(p=lambda frame: frame["effect"] + 0.1)
    return frame.assign(role=pd.Categorical(frame["role"], ROLES, ordered=True).remove_unused_categories())


def heat(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


def test_every_control_chooses_rows():
    frame = made_up_trace()
    view = TraceExplorer(frame, context="Mode test.")
    pd.testing.assert_frame_equal(view.data, frame[frame["fact"] == "a"])
    assert len(heat(view)) == 2, "a panel a kind"
    view.controls["fact"].value = "b"
    view.controls["kind"].value = "mlp"
    view.controls["layers"].value = (1, 2)
    wanted = frame[(frame["fact"] == "b") & (frame["kind"] == "mlp") & frame["layer"].isin((1, 2))]
    pd.testing.assert_frame_equal(view.data, wanted)
    (drawn,) = heat(view)
    assert drawn["z"] == wanted.pivot(index="position", columns="layer", values="effect").to_numpy().tolist()
    assert [row[0] for row in drawn["customdata"]] == ["Ada*", "Lorn*", "was", "born", "in"], "hover names the token"
    view.controls["fact"].value = ""
    means = average(view.data).set_index(["role", "layer"])["mean"]
    assert heat(view)[0]["z"][1][1] == pytest.approx(means["last of the subject", 2])
    assert view.message == ""


def test_sentence_and_figure_follow():
    view = TraceExplorer(made_up_trace(), context="Mode test, seed 0.")
    assert "after layer 2" in view.sentence() and "after layer 2" in view._sentence.value
    assert "Mode test, seed 0." in words(view.figure())["caption"]
    view.controls["layers"].value = (0, 1)
    assert "layer 2" not in view.sentence()


def test_a_real_trace(tiny_model, tiny_facts):
    asked = answers(tiny_model, [fact.text for fact in tiny_facts], [fact.target_true for fact in tiny_facts])
    known = [fact for fact, ok in zip(tiny_facts, asked["right"]) if ok]
    if not known:
        pytest.skip("the tiny model knows none of the facts")
    view = TraceExplorer(trace(tiny_model, known, ["hidden"]))
    assert view.data["effect"].max() > 0 and view.frame["fact"].nunique() == len(known)


def test_tokens_are_text_not_markup_and_may_repeat():
    frame = made_up_trace(tokens=("<b>Ada", " <img src=x>", " the", " the", "$x$"))
    view = TraceExplorer(frame)
    drawn = str(view._picture.outputs[0]["data"]["application/vnd.plotly.v1+json"])
    assert "<b>Ada" not in drawn and "<img" not in drawn + view._sentence.value + view._below.value
    assert len(heat(view)[0]["y"]) == 5


def test_refusals():
    frame = made_up_trace()
    with pytest.raises(KetoolsError, match="lacks effect"):
        TraceExplorer(frame.drop(columns="effect"))
    with pytest.raises(KetoolsError, match="no rows"):
        TraceExplorer(frame.iloc[:0])
    with pytest.raises(KetoolsError, match="several positions"):
        TraceExplorer(frame.assign(position=-1))
