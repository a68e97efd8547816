"""Metrics of edits: by hand on known probabilities, and against a plain loop on a tiny model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ketools.evaluation.edits as edits
from ketools import Edit, Fact, KetoolsError, edited
from ketools.evaluation.edits import KINDS, evaluate, harmonic_mean, recall, summary
from ketools.facts.fact import Locality, TwoHop
from ketools.models.scoring import argmaxes
from ketools.models.tokens import make_rows
from ketools.reference import score


def fact(**changes) -> Fact:
    fields = {
        "id": "1", "relation": "capital", "prompt": "{} has the capital", "subject": "Arland",
        "target_true": "Old", "target_new": "New", "paraphrases": ("P1", "P2"), "neighbours": ("N1", "N2", "N3", "N4"),
    }  # fmt: skip
    return Fact(**fields | changes)


KNOWN = {  # (prompt, target): (probability, all tokens are the argmax)
    ("Arland has the capital", "New"): (0.6, True), ("Arland has the capital", "Old"): (0.1, False),
    ("P1", "New"): (0.5, True), ("P1", "Old"): (0.2, False),
    ("P2", "New"): (0.2, False), ("P2", "Old"): (0.3, True),
    ("N1", "New"): (0.1, False), ("N1", "Old"): (0.7, True),
    ("N2", "New"): (0.1, False), ("N2", "Old"): (0.4, False),
    ("N3", "New"): (0.25, False), ("N3", "Old"): (0.25, False),
    ("N4", "New"): (0.9, True), ("N4", "Old"): (0.05, False),
}  # fmt: skip


@pytest.fixture
def known(monkeypatch):
    """A model whose probabilities are known; returns what was asked of it."""
    asked = []

    def score(model, pairs, glue):
        asked.extend(pairs)
        found = [model.get(pair, (0.0, False)) for pair in pairs]
        return np.array([p for p, _ in found]), np.array([hit for _, hit in found])

    monkeypatch.setattr(edits, "score_pairs", score)
    return asked


def test_by_hand(known):
    row = evaluate(KNOWN, [fact()]).iloc[0]
    assert (row["p_new"], row["p_true"]) == (0.6, 0.1)
    assert (row["efficacy_success"], row["efficacy_accuracy"]) == (1.0, 1.0)
    assert row["efficacy_magnitude"] == pytest.approx(0.5)
    assert (row["paraphrase_success"], row["paraphrase_accuracy"]) == (0.5, 0.5)
    assert row["paraphrase_magnitude"] == pytest.approx((0.3 - 0.1) / 2)
    assert row["neighbourhood_success"] == 0.5  # N1, N2; a tie is a failure, N4 has gone over
    assert row["neighbourhood_accuracy"] == 0.25  # N1 alone is the first choice
    assert row["neighbourhood_magnitude"] == pytest.approx((0.6 + 0.3 + 0.0 - 0.85) / 4)


def test_every_metric_can_fail(known):
    swapped = {(p, "New" if t == "Old" else "Old"): (v, hit) for (p, t), (v, hit) in KNOWN.items()}
    only = fact(paraphrases=("P1",), neighbours=("N1", "N2"))
    row = evaluate(swapped, [only]).iloc[0]
    for kind in KINDS:
        assert row[f"{kind}_success"] == 0.0
        assert row[f"{kind}_accuracy"] == 0.0
        assert row[f"{kind}_magnitude"] < 0.0
    assert summary(evaluate(swapped, [only]))["S"] == 0.0


def test_a_fact_weighs_the_same_however_many_paraphrases_it_has(known):
    model = KNOWN | {("Other has the capital", "New"): (0.0, False), ("Other has the capital", "Old"): (0.5, True)}
    model |= {("Q", "New"): (0.0, False), ("Q", "Old"): (0.5, True)}
    other = fact(id="2", subject="Other", paraphrases=("Q",), neighbours=())
    frame = evaluate(model, [fact(), other])
    found = summary(frame)
    assert math.isnan(frame["neighbourhood_success"][1])
    assert found["ES"] == 0.5
    assert found["PS"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["NS"] == 0.5
    assert found["S"] == pytest.approx(3 / (1 / 0.5 + 1 / 0.25 + 1 / 0.5))
    assert found["n"] == 2


def test_limits_ask_less(known):
    evaluate(KNOWN, [fact()], neighbours=1, paraphrases=0)
    assert {prompt for prompt, _ in known} == {"Arland has the capital", "N1"}


def test_without_neighbours_s_is_unknown(known):
    found = summary(evaluate(KNOWN, [fact()], neighbours=0))
    assert found["ES"] == 1.0
    assert math.isnan(found["NS"])
    assert math.isnan(found["S"])


class Unedited(dict):
    """Known probabilities of a model without edits."""

    edits = ()

    def __or__(self, other):
        return Unedited({**self, **other})


def test_consequences_and_what_must_stay_have_columns_where_there_are_some(known):
    model = Unedited(KNOWN) | {
        ("H1", "After"): (0.6, True), ("H1", "Before"): (0.2, False),
        ("H2", "After"): (0.1, False), ("H2", "Before"): (0.4, True),
        ("H3", "After"): (0.3, True),
        ("L1", "Stay"): (0.8, True), ("L2", "Stay"): (0.1, False),
    }  # fmt: skip
    hops = (TwoHop("H1", "Before", "After"), TwoHop("H2", "Before", "After"))
    kept = (Locality("L1", "Stay"), Locality("L2", "Stay"))
    facts = [
        fact(two_hop=hops, locality=kept),
        fact(id="2", subject="Other", two_hop=(TwoHop("H3", None, "After"),)),
        fact(id="3", subject="Third"),
    ]
    frame = evaluate(model, facts)
    one, two, three = frame.to_dict("records")
    assert (one["two_hop_success"], one["two_hop_accuracy"]) == (0.5, 0.5)
    assert one["two_hop_magnitude"] == pytest.approx((0.4 - 0.3) / 2)
    assert (one["locality_accuracy"], one["locality_probability"]) == (0.5, pytest.approx(0.45))
    assert math.isnan(two["two_hop_success"]) and math.isnan(two["two_hop_magnitude"])
    assert two["two_hop_accuracy"] == 1.0, "an unknown answer before the edit does not hide the one after it"
    assert math.isnan(three["two_hop_accuracy"]) and math.isnan(three["locality_accuracy"])
    found = summary(frame)
    assert found["two_hop_accuracy"] == 0.75
    assert found["locality_accuracy"] == 0.5
    assert "two_hop_accuracy" not in evaluate(model, facts[2:])
    less = evaluate(model, facts, two_hop=0, locality=1)
    assert "two_hop_accuracy" not in less
    assert less["locality_accuracy"][0] == 1.0


def test_nothing_to_evaluate_and_negative_limits_are_refused(known):
    with pytest.raises(KetoolsError, match="got 0 facts"):
        evaluate(KNOWN, [])
    with pytest.raises(KetoolsError, match="neighbours=-1"):
        evaluate(KNOWN, [fact()], neighbours=-1)


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([1.0, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([1.0, float("nan")]))


def plain(model, prompt: str, target: str) -> tuple[float, bool]:
    """Probability, argmax."""
    logprob, hit = score(model, prompt, target)
    return math.exp(logprob), hit


def test_equals_a_plain_loop(tiny_gpt2, facts):
    facts = facts[:8]
    frame = evaluate(tiny_gpt2, facts)
    assert list(frame["id"]) == facts.ids
    for row, one in zip(frame.to_dict("records"), facts, strict=True):
        assert row["p_new"] == pytest.approx(plain(tiny_gpt2, one.text, one.target_new)[0], rel=1e-5)
        assert row["p_true"] == pytest.approx(plain(tiny_gpt2, one.text, one.target_true)[0], rel=1e-5)
        for kind, prompts in (("paraphrase", one.paraphrases), ("neighbourhood", one.neighbours)):
            new = [plain(tiny_gpt2, prompt, one.target_new) for prompt in prompts]
            true = [plain(tiny_gpt2, prompt, one.target_true) for prompt in prompts]
            wanted, other = (true, new) if kind == "neighbourhood" else (new, true)
            margin = [w[0] - o[0] for w, o in zip(wanted, other, strict=True)]
            assert row[f"{kind}_success"] == pytest.approx(np.mean([m > 0 for m in margin]))
            assert row[f"{kind}_accuracy"] == pytest.approx(np.mean([w[1] for w in wanted]))
            size = np.mean([w[0] + o[0] for w, o in zip(wanted, other, strict=True)])  # a margin may be a small rest
            assert row[f"{kind}_magnitude"] == pytest.approx(np.mean(margin), rel=0, abs=1e-5 * size)


def test_recall_asks_for_the_true_object(tiny_gpt2, facts):
    facts = facts[:5]
    frame = recall(tiny_gpt2, facts)
    expected = [plain(tiny_gpt2, one.text, one.target_true) for one in facts]
    np.testing.assert_allclose(frame["p_true"], [p for p, _ in expected], rtol=1e-5)
    assert list(frame["accuracy"]) == [float(hit) for _, hit in expected]


def test_recall_can_succeed(tiny_gpt2, facts):
    one = facts[0]
    best = next(
        t for t in (f" {w}" for w in "abcdefghijklmnop") if len(tiny_gpt2.tokenizer(t)["input_ids"]) == 1
    ).strip()
    with torch.no_grad():  # a head that always says this token
        token = tiny_gpt2.tokenizer(f" {best}")["input_ids"][0]
        tiny_gpt2.final_norm.weight.zero_()
        tiny_gpt2.final_norm.bias.zero_()[0] = 50.0
        tiny_gpt2.head.weight[:, 0] = 0.0
        tiny_gpt2.head.weight[token, 0] = 1.0
    told = Fact(one.id, one.relation, one.prompt, one.subject, best, one.target_new)
    frame = recall(tiny_gpt2, [told])
    assert frame["accuracy"].item() == 1.0
    assert frame["p_true"].item() > 0.5


def test_a_collapsed_model_gets_no_credit(tiny_gpt2, facts):
    tiny_gpt2.weight(1).fill_(float("nan"))
    frame = evaluate(tiny_gpt2, facts[:3])
    measured = frame.drop(columns=["id", "relation", "subject"])
    assert (measured == 0.0).all(axis=None)


def test_what_must_stay_is_compared_with_the_unedited_model_too(tiny_gpt2, facts):
    asked = [
        replace(one, locality=(Locality("The tower of Vell is", "harp"), Locality(facts[9].text, "Oran Bay")))
        for one in facts[:2]
    ]
    assert evaluate(tiny_gpt2, asked)["locality_unchanged"].isna().all(), "without edits nothing is compared"
    d_model, d_mlp = tiny_gpt2.weight(3).shape
    for size, unchanged in ((0.0, 1.0), (1e4, 0.0)):
        left = torch.zeros(d_model, 1)
        left[0] = size
        with edited(tiny_gpt2, Edit({3: (left, torch.ones(d_mlp, 1))}, {"fingerprint": tiny_gpt2.fingerprint})):
            found = evaluate(tiny_gpt2, asked)
            assert len(tiny_gpt2.edits) == 1
        first = [
            argmaxes(tiny_gpt2, make_rows(tiny_gpt2, [kept.prompt for kept in one.locality], ["harp", "Oran Bay"]))
            for one in asked
        ]
        assert all(len(ids) == 2 for ids in first)
        assert found["locality_unchanged"].tolist() == [unchanged] * 2
    assert summary(found)["locality_unchanged"] == 0.0 and summary(found)["locality_accuracy"] == 0.0


def test_argmaxes_are_those_of_the_plain_forward(tiny_gpt2, facts):
    rows = make_rows(tiny_gpt2, [one.text for one in facts[:6]], [one.target_new for one in facts[:6]])
    for row, found in zip(rows, argmaxes(tiny_gpt2, rows), strict=True):
        with torch.no_grad():
            best = tiny_gpt2.model(torch.tensor([row.ids])).logits[0].argmax(-1)
        assert found == tuple(best[list(row.target_positions)].tolist())
