"""Forgetting and tests between methods: against hand-computed examples and formulas."""

import math

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.evaluation.forgetting import (
    forgetting_by_age,
    forgetting_curve,
    mcnemar,
)


def checkpoints(**changes):
    table = {
        "edits": [0, 100, 200, 400],
        "ES": [math.nan, 1.0, 0.6, 0.3],
        "at_edit_ES": [math.nan, 1.0, 1.0, 1.0],
        "norm_ratio": [1.0, 2.0, 4.0, 8.0],
        "unedited_kept": [1.0, 0.9, 0.8, 0.7],
    }
    return pd.DataFrame(table | changes)


def test_curve_by_hand():
    curve = forgetting_curve(checkpoints())
    assert list(curve["edits"]) == [100, 200, 400] and list(curve["kept"]) == [1.0, 0.6, 0.3]
    assert curve["forgotten"].to_numpy() == pytest.approx([0, 0.4, 0.7])


def test_a_run_without_checkpoints_is_named():
    with pytest.raises(KetoolsError, match="no checkpoint after an edit"):
        forgetting_curve(checkpoints().iloc[:1])
    with pytest.raises(KetoolsError, match="lacks the columns edits, ES, at_edit_ES; it has none"):
        forgetting_curve(pd.DataFrame())


def test_nan_in_a_record_is_kept_in_the_curve():
    curve = forgetting_curve(checkpoints(ES=[math.nan, 1.0, math.nan, 0.4]))
    assert list(curve["finite"]) == [True, False, True]
    assert curve["kept"].isna().tolist() == [False, True, False]


def test_a_run_of_one_edit():
    curve = forgetting_curve(pd.DataFrame({"edits": [0, 1], "ES": [math.nan, 1.0], "at_edit_ES": [math.nan, 1.0]}))
    assert curve[["edits", "kept"]].to_numpy().tolist() == [[1, 1.0]]
    facts = pd.DataFrame({"id": ["a"], "batch": [1], "at_edit_efficacy_success": [1.0], "end_efficacy_success": [1.0]})
    aged = forgetting_by_age(facts, pd.DataFrame({"batch": [1], "edits": [1]}))
    assert list(aged["age"]) == [0] and list(aged["kept"]) == [1]


FACTS = pd.DataFrame(
    {
        "id": list("abcdef"),
        "batch": [1, 1, 2, 2, 3, 3],
        "at_edit_efficacy_success": [1, 1, 1, 1, 1, 0],
        "end_efficacy_success": [0, math.nan, 1, 0, 1, 0],
    }
)
BATCHES = pd.DataFrame({"batch": [1, 2, 3], "edits": [2, 4, 6]})


def test_by_age_by_hand():
    frame = forgetting_by_age(FACTS, BATCHES)
    assert list(frame["age"]) == [0, 2, 4] and list(frame["batch"]) == [3, 2, 1]
    assert list(frame["now"]) == [0.5, 0.5, 0] and list(frame["at_edit"]) == [0.5, 1, 1]
    assert list(frame["kept"]) == [1, 0.5, 0] and list(frame["excluded"]) == [0, 0, 1]


def test_by_age_needs_a_complete_run():
    with pytest.raises(KetoolsError, match="once the run is complete"):
        forgetting_by_age(FACTS.drop(columns="end_efficacy_success"), BATCHES)
    with pytest.raises(KetoolsError, match="no batch is finished"):
        forgetting_by_age(pd.DataFrame(), BATCHES)
    with pytest.raises(KetoolsError, match="lacks batch 3"):
        forgetting_by_age(FACTS, BATCHES[:2])


def method(successes, ids=None):
    return pd.DataFrame({"id": ids or [str(i) for i in range(len(successes))], "end_efficacy_success": successes})


def test_mcnemar_by_hand():
    a, b = method([1] * 9 + [0] + [1, 0]), method([0] * 9 + [1] + [1, 0])
    got = mcnemar(a, b)
    assert (got["only_a"], got["only_b"], got["both"], got["neither"], got["n"]) == (9, 1, 1, 1, 12)
    assert got["p_value"] == pytest.approx(2 * (1 + 10) / 2**10)
    assert got["share_a"] == pytest.approx(10 / 12)
    assert mcnemar(b, a)["p_value"] == got["p_value"]
    assert mcnemar(a, a)["p_value"] == 1
    assert mcnemar(method([1, 0]), method([0, 1]))["p_value"] == 1


def test_mcnemar_pairs_by_id_and_counts_what_it_cannot_pair():
    a, b = method([1, 0, 1, math.nan], list("abcd")), method([0, 1, 1, 1], list("badx"))
    got = mcnemar(a, b)
    assert (got["only_a"], got["only_b"], got["both"], got["neither"]) == (0, 0, 1, 1)
    assert (got["n"], got["excluded"]) == (2, 3)
    with pytest.raises(KetoolsError, match="no scored fact in common"):
        mcnemar(a, method([1.0], ["z"]))
    with pytest.raises(KetoolsError, match="'a' occurs twice in the second"):
        mcnemar(a, method([1, 1], ["a", "a"]))
    with pytest.raises(KetoolsError, match="lacks the columns"):
        mcnemar(a, b, "success")
