"""The editing overfit by quantiles and by its spill onto the subject's other prompts."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest

import ketools.evaluation.overfitting as overfitting
from ketools import Fact, KetoolsError
from ketools.evaluation.edits import recall
from ketools.evaluation.overfitting import (
    natural_probabilities,
    natural_probability,
    overfit,
    quantiles,
    separation,
    spill,
    spill_change,
)


@pytest.fixture
def known(monkeypatch):
    """A model is a dictionary {(prompt, target): probability}; above one half is the argmax."""

    def score(model, pairs):
        p = np.array([model.get(pair, 0.0) for pair in pairs])
        return p, p > 0.5

    monkeypatch.setattr(overfitting, "score_pairs", score)


def test_quantiles_by_hand():
    frame = quantiles([0.9, 1.0, 0.8, math.nan], [0.1, 0.3], at=(0.0, 0.5, 1.0))
    assert list(frame["edited"]) == [0.8, 0.9, 1.0]
    assert frame["natural"].to_numpy() == pytest.approx([0.1, 0.2, 0.3])
    assert frame["difference"].to_numpy() == pytest.approx([0.7, 0.7, 0.7])
    assert (frame["n_edited"] == 3).all() and (frame["n_natural"] == 2).all() and (frame["excluded"] == 1).all()


def test_equal_means_of_unlike_distributions_are_told_apart():
    edited, natural = [0.0, 1.0] * 50, [0.5] * 100
    assert not overfit(np.mean(edited), np.mean(natural))["overfit"]
    assert quantiles(edited, natural)["difference"].iloc[-1] == 0.5
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
            quantiles(bad, [0.5])
        with pytest.raises(KetoolsError, match="natural probabilities"):
            separation([0.5], bad)


def test_the_natural_level_is_that_of_known_facts(tiny_gpt2, facts):
    frame = natural_probabilities(tiny_gpt2, facts)
    scored = recall(tiny_gpt2, facts, prompts="prompt")
    assert list(frame["p"]) == list(scored["p_true"]) and list(frame["known"]) == list(scored["accuracy"] == 1)
    level = natural_probability(tiny_gpt2, facts)
    known = frame.loc[frame["known"], "p"]
    assert level == pytest.approx(known.mean()) if len(known) else math.isnan(level)
    with pytest.raises(KetoolsError, match="target_true"):
        natural_probabilities(tiny_gpt2, [Fact("x", "r", "{} is", "Ada", None, "Vell")])


def test_facts_that_the_model_does_not_know_are_counted_out_aloud(monkeypatch):
    frame = pd.DataFrame({"p": [0.9, 0.5, 0.1], "known": [True, True, False]})
    monkeypatch.setattr(overfitting, "natural_probabilities", lambda model, facts: frame)
    with pytest.warns(UserWarning, match="^1 of 3 facts left out of the natural probability") as caught:
        assert natural_probability(None, []) == pytest.approx(0.7)
    assert len(caught) == 1 and caught[0].filename == __file__
    frame["known"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert natural_probability(None, []) == pytest.approx(0.5)


EDITED = Fact("1", "born", "{} was born in", "Ada", "Vell", "Sall")
AROUND = [
    EDITED,
    Fact("2", "works", "{} works in", "ada", "Oran", "Ixian"),
    Fact("3", "lives", "{} lives in", "Ada", "Sall", "Vell"),  # its own answer is the target
    Fact("4", "eats", "{} eats", "Ada", None, "fish"),  # its own answer is unknown
    Fact("5", "works", "{} works in", "Bo", "Oran", "Ixian"),
]
ALONE = Fact("6", "born", "{} was born in", "Mira", "Vell", "Sall")


def test_spill_by_hand(known):
    model = {
        ("ada works in", "Sall"): 0.6, ("ada works in", "Oran"): 0.3,
        ("Ada lives in", "Sall"): 0.9, ("Ada eats", "Sall"): 0.2,
    }  # fmt: skip
    frame = spill(model, [EDITED, ALONE], AROUND)
    assert list(frame["id"]) == ["1", "1", "1", "6"] and list(frame["other"])[:3] == ["2", "3", "4"]
    assert frame.iloc[3][["other", "prompt", "p_target", "p_own", "spilled"]].isna().all()
    assert list(frame["p_target"])[:3] == [0.6, 0.9, 0.2] and frame["spilled"].iloc[0] == 1
    assert frame["spilled"].iloc[1:].isna().all(), "no rival, no spill"
    before = spill({("ada works in", "Oran"): 0.9, ("ada works in", "Sall"): 0.1}, [EDITED, ALONE], AROUND)
    change = spill_change(before, frame)
    assert (change["spilled_before"], change["spilled"]) == (0, 1)
    assert change["p_target"] == pytest.approx(1.7 / 3) and change["p_target_ratio"] == pytest.approx(17)
    assert (change["n"], change["facts"], change["without"], change["no_rival"]) == (3, 2, 1, 2)


def test_a_neighbouring_fact_that_was_edited_too_owns_its_new_object(known):
    frame = spill({}, [EDITED, AROUND[1]], AROUND).set_index(["id", "other"])
    assert frame.loc[("1", "2"), "own"] == "Ixian" and frame.loc[("2", "1"), "own"] == "Sall"


def test_spill_refuses(known):
    with pytest.raises(KetoolsError, match="0 edited facts"):
        spill({}, [], AROUND)
    alone = spill({}, [ALONE], AROUND)
    with pytest.raises(KetoolsError, match="none of 1 facts has another prompt"):
        spill_change(alone, alone)
    with pytest.raises(KetoolsError, match="different prompts"):
        spill_change(alone, spill({}, [EDITED], AROUND))


def test_spill_on_a_model(tiny_gpt2, facts):
    frame = spill(tiny_gpt2, facts[:4], facts)
    assert len(frame) == 4 and frame["p_target"].between(0, 1).all() and set(frame["spilled"].dropna()) <= {0.0, 1.0}
