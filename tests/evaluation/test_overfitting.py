"""The editing overfit: edited probabilities against natural ones."""

import math

import numpy as np
import pytest

from ketools import Fact, KetoolsError
from ketools.evaluation.edits import (
    natural_probabilities,
    overfit,
    recall,
    separation,
)


def test_equal_means_of_unlike_distributions_are_told_apart():
    edited, natural = [0.0, 1.0] * 50, [0.5] * 100
    assert not overfit(np.mean(edited), np.mean(natural))["overfit"]
    found = separation(edited, natural)
    assert found["ks"] == pytest.approx(0.5) and found["ks_p"] < 1e-6
    assert found["auroc"] == pytest.approx(0.5) and found["above_natural"] == 0.5


def test_separation_by_hand():
    found = separation([0.2, 0.6, 0.9], [0.1, 0.6])
    # pairs: .2>.1, .2<.6, .6>.1, .6=.6, .9>.1, .9>.6
    assert found["auroc"] == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert found["above_natural"] == pytest.approx(2 / 3)
    same = separation(np.linspace(0, 1, 200), np.linspace(0, 1, 200))
    assert same["auroc"] == pytest.approx(0.5) and same["ks"] == 0 and same["above_natural"] <= 0.05


def test_nothing_to_compare_is_said():
    for bad in ([], [math.nan]):
        with pytest.raises(KetoolsError, match="edited probabilities"):
            separation(bad, [0.5])
        with pytest.raises(KetoolsError, match="natural probabilities"):
            separation([0.5], bad)


def test_overfit():
    assert overfit(0.9, 0.6).to_dict() == {
        "p_edited": 0.9, "p_natural": 0.6, "ratio": pytest.approx(1.5), "overfit": True,
    }  # fmt: skip
    assert not overfit(0.5, 0.6)["overfit"] and math.isnan(overfit(0.5, 0.0)["ratio"])


def test_the_natural_level_is_that_of_known_facts(tiny_gpt2, facts):
    frame = natural_probabilities(tiny_gpt2, facts)
    scored = recall(tiny_gpt2, facts)
    assert list(frame["p"]) == list(scored["p_true"]) and list(frame["known"]) == list(scored["accuracy"] == 1)
    with pytest.raises(KetoolsError, match="target_true"):
        natural_probabilities(tiny_gpt2, [Fact("x", "r", "{} is", "Ada", None, "Vell")])
