"""Verdicts about a table: data from its numbers, worded whichever way they came out."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketools.plots.style import ends_of
from ketools.report.verdicts import Verdict, progress, reading
from ketools.runs.compare import MEASURES


def table(**methods):
    """A table as of by_method, from {method: {measure: value}}."""
    rows = []
    for method, values in methods.items():
        row = {"model": "pocket", "method": method.replace("_", "+") if "memit_" in method else method, "seeds": 3}
        row |= {"seed_list": "0, 1 and 2", "processor": "One CPU"}
        rows.append(row | {"edits": 10_000, "collapsed": 0} | dict.fromkeys(MEASURES, 0.5) | values)
    return pd.DataFrame(rows)


def of_kind(verdicts, kind, about=""):
    (verdict,) = [each for each in verdicts if (each.kind, each.about) == (kind, about)]
    return verdict


def test_parts_are_told_by_how_far_each_goes():
    verdicts = reading(
        table(
            memit={"unedited_kept": 0.4, "norm_ratio": 5.0, "seconds_per_edit": 0.10},
            memit_mpes={"unedited_kept": 0.5, "norm_ratio": 4.0},
            memit_norm={"unedited_kept": 0.8, "norm_ratio": 5.4},
            encore={"unedited_kept": 0.9, "norm_ratio": 1.0, "seconds_per_edit": 0.05},
        )
    )["pocket"]
    unedited = of_kind(verdicts, "parts", "unedited_kept")
    assert unedited.values == {"memit": 0.4, "memit+mpes": 0.5, "memit+norm": 0.8, "encore": 0.9} and unedited.n == 6
    assert progress(unedited) == pytest.approx({"memit+mpes": 0.2, "memit+norm": 0.8})
    assert "MPES 20% (50%)" in str(unedited) and "norm constraint 80% (80%)" in str(unedited)
    norm = of_kind(verdicts, "parts", "norm_ratio")
    assert progress(norm) == pytest.approx({"memit+mpes": 0.25, "memit+norm": -0.1}) and "10% the other way" in str(
        norm
    )
    alike = of_kind(verdicts, "parts", "perplexity_ratio")
    assert progress(alike) == {} and "hardly differ" in str(alike)
    time = of_kind(verdicts, "time")
    assert time.values == {"memit": 0.10, "encore": 0.05} and "50% less" in str(time)


def test_it_says_the_opposite_of_opposite_numbers():
    verdicts = reading(
        table(
            memit={"unedited_kept": 0.9, "S": 0.9, "norm_ratio": 1.0, "seconds_per_edit": 0.05},
            memit_mpes={"unedited_kept": 0.95, "S": 0.95},
            encore={"unedited_kept": 0.4, "S": 0.8, "norm_ratio": 5.0, "seconds_per_edit": 0.10},
        )
    )["pocket"]
    assert progress(of_kind(verdicts, "parts", "unedited_kept")) == pytest.approx({"memit+mpes": -0.1})
    assert "none of them alone" in str(of_kind(verdicts, "parts", "unedited_kept"))
    assert "100% more" in str(of_kind(verdicts, "time"))
    order = of_kind(verdicts, "paper: order").values
    assert sorted(order, key=order.__getitem__) == ["encore", "memit", "memit+mpes"]


@pytest.mark.parametrize(
    ("kept", "most", "least"),
    [
        ({"memit": 0.09, "memit_mpes": 0.085, "alphaedit": 0.461, "encore": 0.464}, "AlphaEdit and ENCORE", "MEMIT and MEMIT + MPES least"),
        ({"memit": 0.5, "alphaedit": 0.506, "encore": 0.51}, "MEMIT, AlphaEdit and ENCORE", ""),
    ],
)  # fmt: skip
def test_who_keeps_as_much_as_the_best_is_named_beside_it(kept, most, least):
    verdict = reading(table(**{m: {"unedited_kept": v, "S": 0.5 + v} for m, v in kept.items()}))["pocket"][0]
    assert (verdict.kind, verdict.n) == ("end", 10_000)
    assert list(verdict.values["unedited_kept"].values()) == list(kept.values())
    assert (
        f"{most} have kept" in str(verdict) and (least in str(verdict)) and bool(least) == (" least " in str(verdict))
    )


@given(st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 1), min_size=1))
def test_highest_and_lowest_share_no_method_and_hold_the_extremes(values):
    first, behind = ends_of(values)
    assert max(values, key=values.__getitem__) in first and not set(first) & set(behind)
    lowest = min(values, key=values.__getitem__)
    assert lowest in (behind or first)


def test_what_was_not_run_or_not_measured_has_no_verdict():
    alone = reading(table(alphaedit={"norm_ratio": 2.0}))["pocket"]
    assert {method for each in alone for method in each.values} == {"alphaedit"}
    broken = reading(table(memit={"norm_ratio": math.inf, "unedited_kept": math.nan}, encore={}, memit_mpes={}))[
        "pocket"
    ]
    said = " ".join(map(str, broken))
    assert "nan" not in said and "inf" not in said
    assert "unedited_kept" not in {each.about for each in broken}
    ended, *others = reading(table(memit={"collapsed": 2, "norm_ratio": 50.0}, encore={}))["pocket"]
    assert all("memit" not in verdict.values for verdict in others), "measured after fewer edits"
    assert ended == Verdict("collapsed", {"memit": {"runs": 2, "of": 3}}, 2) and "2 of 3 runs" in str(ended)


@pytest.mark.parametrize("encore", ["Another CPU", ""])
def test_seconds_are_compared_on_one_processor_alone(encore):
    memit = "One CPU" if encore else ""  # not known of either
    mixed = table(
        memit={"seconds_per_edit": 0.10, "processor": memit}, encore={"seconds_per_edit": 0.05, "processor": encore}
    )
    assert "time" not in {each.kind for each in reading(mixed)["pocket"]}


def test_a_part_that_does_nothing_goes_no_way():
    verdicts = reading(
        table(memit={"unedited_kept": 0.4}, memit_mpes={"unedited_kept": 0.3999}, encore={"unedited_kept": 0.9})
    )["pocket"]
    assert "MPES 0% (40%)" in str(of_kind(verdicts, "parts", "unedited_kept"))
