"""The ENCORE dial shows the grid's row at its settings, and every other."""

import itertools
import math

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.widgets import EncoreDial
from ketools.course.widgets.explorers import MEASURES
from ketools.plots.style import words
from ketools.runs.sweep import ALL_STEPS

WEIGHTS, STEPS = (0.0, 10.0, 40.0), (0, 2, ALL_STEPS)


def made_up_grid():
    rows = [
        {"lambda_n": w, "patience": p, **{key: 0.5 + 0.01 * w / 10 + 0.001 * (p % 7) for key in MEASURES}}
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
    assert "best in retention of unedited facts: lambda_n 40, patience all steps" in view.sentence()
    view.controls["lambda_n"].value, view.controls["patience"].value = 40.0, ALL_STEPS
    assert "no pair of the grid does better" in view.sentence()
    view.controls["measure"].value = "steps_mean"
    assert "best in optimisation steps per fact: lambda_n 0, patience +0" in view.sentence()
    above = EncoreDial(made_up_grid().assign(norm_ratio=lambda grid: 2 * grid["norm_ratio"]))
    above.controls["measure"].value = "norm_ratio"
    assert "best in norm of the most-changed matrix: lambda_n 0, patience +0" in above.sentence(), "nearest to 1"


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
