"""Sentences about a table: worded from its numbers, whichever way they came out."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketools.plots.style import ends_of
from ketools.report.verdicts import damage, reading
from ketools.runs.compare import MEASURES


def table(**methods):
    """A table as of by_method, from {method: {measure: value}}."""
    rows = []
    for method, values in methods.items():
        row = {"model": "pocket", "method": method.replace("_", "+") if "memit_" in method else method, "seeds": 3}
        row |= {"seed_list": "0, 1 and 2", "processor": "One CPU"}
        rows.append(row | {"edits": 10_000, "collapsed": 0} | dict.fromkeys(MEASURES, 0.5) | values)
    return pd.DataFrame(rows)


def test_parts_are_told_by_how_far_each_goes():
    said = reading(
        table(
            memit={"unedited_kept": 0.4, "norm_ratio": 5.0, "seconds_per_edit": 0.10},
            memit_mpes={"unedited_kept": 0.5, "norm_ratio": 4.0},
            memit_norm={"unedited_kept": 0.8, "norm_ratio": 5.4},
            encore={"unedited_kept": 0.9, "norm_ratio": 1.0, "seconds_per_edit": 0.05},
        )
    )["pocket"]
    (unedited,) = [text for text in said if text.startswith("Unedited facts")]
    assert unedited == (
        "Unedited facts still right: 40% with MEMIT, 90% with ENCORE. Of that way each part, added to MEMIT alone, goes: "
        "MPES 20% (50%) and the norm constraint 80% (80%); the norm constraint alone goes furthest."
    )
    (norm,) = [text for text in said if text.startswith("The norm of")]
    assert "MPES 25% (4.00×) and the norm constraint 10% the other way (5.40×); MPES alone goes furthest" in norm
    assert "Perplexity: MEMIT (0.50×) and ENCORE (0.50×) hardly differ." in said
    assert "An edit takes 0.050 s with ENCORE, 50% less than with MEMIT (0.100 s)." in said


def test_it_says_the_opposite_of_opposite_numbers():
    said = reading(
        table(
            memit={"unedited_kept": 0.9, "S": 0.9, "norm_ratio": 1.0, "seconds_per_edit": 0.05},
            memit_mpes={"unedited_kept": 0.95, "S": 0.95},
            encore={"unedited_kept": 0.4, "S": 0.8, "norm_ratio": 5.0, "seconds_per_edit": 0.10},
        )
    )["pocket"]
    assert said[0].startswith(
        "After 10,000 edits MEMIT + MPES has kept most of what was not edited (95.0%), ENCORE least"
    )
    assert any("MPES 10% the other way (95.0%); none of them alone goes that way" in text for text in said)
    assert any("100% more than with MEMIT" in text for text in said)
    assert any(text.startswith("The order by S is MEMIT + MPES, MEMIT, ENCORE; in the paper") for text in said)


def test_who_keeps_as_much_as_the_best_is_named_beside_it():
    kept = {"memit": 0.09, "memit_mpes": 0.085, "alphaedit": 0.461, "encore": 0.464}
    said = reading(table(**{m: {"unedited_kept": value, "S": 0.5 + value} for m, value in kept.items()}))["pocket"]
    assert said[0] == (
        "After 10,000 edits AlphaEdit and ENCORE have kept most of what was not edited (46%), MEMIT and MEMIT + MPES least "
        "(8%); the highest score S is that of AlphaEdit and ENCORE (96.4%)."
    )
    alike = {"memit": 0.5, "alphaedit": 0.506, "encore": 0.51}
    said = reading(table(**{m: {"unedited_kept": value} for m, value in alike.items()}))["pocket"]
    assert said[0].startswith(
        "After 10,000 edits MEMIT, AlphaEdit and ENCORE have kept about as much of what was not edited (51%)"
    )


@given(st.dictionaries(st.sampled_from("abcdefg"), st.floats(0, 1), min_size=1))
def test_highest_and_lowest_share_no_method_and_hold_the_extremes(values):
    first, behind = ends_of(values)
    assert max(values, key=values.__getitem__) in first and not set(first) & set(behind)
    lowest = min(values, key=values.__getitem__)
    assert lowest in (behind or first)


def test_what_was_not_run_or_not_measured_is_not_spoken_of():
    alone = " ".join(reading(table(alphaedit={"norm_ratio": 2.0}))["pocket"])
    assert "MEMIT" not in alone and "ENCORE" not in alone and "AlphaEdit 2.00×" in alone
    broken = table(memit={"norm_ratio": math.inf, "unedited_kept": math.nan}, encore={}, memit_mpes={})
    said = " ".join(reading(broken)["pocket"])
    assert "nan" not in said and "inf" not in said.replace("information", "")
    ended = table(memit={"collapsed": 2}, encore={})
    assert "not finite, and the run ended there, with MEMIT (2 of 3 runs)" in reading(ended)["pocket"][0]


@pytest.mark.parametrize("encore", ["Another CPU", ""])
def test_seconds_are_compared_on_one_processor_alone(encore):
    memit = "One CPU" if encore else ""  # not known of either
    mixed = table(
        memit={"seconds_per_edit": 0.10, "processor": memit}, encore={"seconds_per_edit": 0.05, "processor": encore}
    )
    assert not any("An edit takes" in text for text in reading(mixed)["pocket"])


def test_a_part_that_does_nothing_goes_no_way():
    said = reading(
        table(memit={"unedited_kept": 0.4}, memit_mpes={"unedited_kept": 0.3999}, encore={"unedited_kept": 0.9})
    )
    assert any("MPES 0% (40%)" in text for text in said["pocket"])


def test_damage_goes_with_the_norm_or_against_it():
    def run(model, kept, **more):
        points = pd.DataFrame({"edits": [0, 1, 2, 3], "norm_ratio": [1.0, 1.1, 1.3, 1.6], "unedited_kept": kept} | more)
        return SimpleNamespace(model=model, record=SimpleNamespace(checkpoints=points))

    falls, grows = [0.0, 0.9, 0.8, 0.3], [1.0, 0.1, 0.2, 0.3]
    said = damage([run("a", falls), run("b", grows, perplexity_ratio=[1.0, 3.0, 2.0, 1.0]), run("a", falls)])
    assert (
        len(said) == 2
        and "On a, over 6 checkpoints of 2 runs," in said[0]
        and "of 1 run," in said[1]
        and "facts kept -1.00 (" in said[0]
    )
    assert "facts kept +1.00 and perplexity -1.00" in said[1]
    assert damage([run("a", [math.nan] * 4)]) == [] and damage([]) == []
    bare = SimpleNamespace(model="a", record=SimpleNamespace(checkpoints=pd.DataFrame({"edits": [0, 10]})))
    assert damage([bare]) == []
