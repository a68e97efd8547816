"""Two-hop questions: what follows, what stays, what breaks."""

import math

import numpy as np
import pandas as pd
import pytest

from ketools import Fact, KetoolsError
from ketools.evaluation import forgetting as module
from ketools.evaluation.forgetting import ripple, two_hop
from ketools.facts.fact import TwoHop


def fact(id, *hops):
    return Fact(id, "born", "{} was born in", f"Ada {id}", "Vell", "Sall", two_hop=hops)


FACTS = [
    fact("1", TwoHop("Q1", "old", "new"), TwoHop("Q2", "old", "new")),
    fact("2", TwoHop("Q3", "old", "new")),
    fact("3", TwoHop("Q4", "old", "new")),
    fact("4", TwoHop("Q5", None, "new")),
    fact("5"),
]
BEFORE = {(q, "old"): 0.9 for q in ("Q1", "Q2", "Q3")} | {("Q4", "old"): 0.2, ("Q4", "new"): 0.1, ("Q5", "new"): 0.3}
AFTER = {
    ("Q1", "new"): 0.8, ("Q1", "old"): 0.1, ("Q2", "old"): 0.7, ("Q2", "new"): 0.2,
    ("Q3", "new"): 0.3, ("Q3", "old"): 0.4, ("Q4", "new"): 0.9, ("Q5", "new"): 0.6,
}  # fmt: skip


@pytest.fixture
def known(monkeypatch):
    def score(model, pairs):
        p = np.array([model.get(pair, 0.0) for pair in pairs])
        return p, p > 0.5

    monkeypatch.setattr(module, "score_pairs", score)


def test_by_hand(known):
    before, after = two_hop(BEFORE, FACTS), two_hop(AFTER, FACTS)
    assert list(after["question"])[:5] == ["Q1", "Q2", "Q3", "Q4", "Q5"] and pd.isna(after["question"].iloc[5])
    assert list(after["success"])[:4] == [1, 0, 0, 1] and after["success"].iloc[4:].isna().all()
    assert after["p_new"].iloc[4] == 0.6 and math.isnan(after["p_true"].iloc[4])
    got = ripple(before, after)
    # Q1 follows, Q2 keeps, Q3 says neither; Q4 was not known, Q5 has no old answer.
    assert got["followed"] == got["kept"] == got["broken"] == pytest.approx(1 / 3)
    assert (got["n"], got["known"], got["unknown"], got["facts"], got["without"]) == (5, 3, 2, 5, 1)
    assert got["success"] == 0.5 and got["success_before"] == 0


def test_a_model_that_knew_nothing_has_no_shares(known):
    got = ripple(two_hop({}, FACTS), two_hop(AFTER, FACTS))
    assert math.isnan(got["followed"]) and got["known"] == 0 and got["unknown"] == 5


def test_refusals(known):
    with pytest.raises(KetoolsError, match="none of 1 facts has a two-hop question"):
        two_hop({}, [FACTS[4]])
    with pytest.raises(KetoolsError, match="none of 0 facts"):
        two_hop({}, [])
    with pytest.raises(KetoolsError, match="different questions"):
        ripple(two_hop({}, FACTS), two_hop({}, FACTS[:2]))


def test_on_a_model(tiny_model):
    frame = two_hop(tiny_model, [fact("1", TwoHop("Ada Lorn was born in the land of", "Vell", "Oran Bay"))])
    assert frame["p_true"].between(0, 1).all() and frame["success"].iloc[0] == float(
        frame["p_new"].iloc[0] > frame["p_true"].iloc[0]
    )
    long = fact("long", TwoHop("The tower of Vell " * 80, "Vell", "Oran Bay"))
    with pytest.raises(KetoolsError, match="context window"):
        two_hop(tiny_model, [long])
