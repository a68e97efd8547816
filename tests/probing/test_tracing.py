"""Causal tracing against plain loops on every architecture, and against what must hold whatever the model."""

import numpy as np
import pandas as pd
import pytest
import torch

from ketools import Fact, KetoolsError, load
from ketools.probing.tracing import KINDS, average, make_cases, noise_of, plan_of, spread_of, trace, trace_cases
from ketools.reference.tracing import Tokens, probability, restored, states
from tests.models.test_architectures import KINDS as ARCHITECTURES
from tests.models.test_architectures import network


def tokens_of(case):
    return Tokens(case.ids, case.first, case.last, case.target)


def plain_noise(model, case, plan, sample=0):
    width = model.model.get_input_embeddings().weight.shape[1]
    return plan.noise * noise_of(case, sample, plan.seed, width)


def plain_restored(model, case, plan, kind, layer, positions, sample=0):
    """The target's probability after a restoration, as the reference computes it."""
    layers = [layer] if kind.startswith("hidden") else plan.span(layer, model.anatomy.n_layer)
    return restored(model, tokens_of(case), plain_noise(model, case, plan, sample), kind, layers, positions)


def plan(model, noise=1.0, at="each", kinds=KINDS, layers=None, samples=1, window=2):
    return plan_of(model, kinds, layers, at, samples, window, 7, noise)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_restoration_equals_the_plain_loop(kind, tiny_tokenizer, tiny_facts):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    cases = make_cases(model, [tiny_facts[i] for i in (1, 2, 3)], "new")
    how = plan(model)
    frame = trace_cases(model, cases, how)
    assert set(frame["kind"]) == set(KINDS)
    wrong = []
    for row in frame.sample(60, random_state=1).itertuples():
        (case,) = (case for case in cases if case.fact.id == row.fact)
        want = plain_restored(model, case, how, row.kind, row.layer, [row.position])
        if row.p != pytest.approx(want, rel=1e-5):
            wrong.append((row, want))
    assert not wrong
    for case in cases:
        some = frame[frame["fact"] == case.fact.id]
        assert some["p_clean"].iloc[0] == pytest.approx(probability(model, tokens_of(case)), rel=1e-5)
        _, corrupted = states(model, tokens_of(case), plain_noise(model, case, how))
        assert some["p_corrupted"].iloc[0] == pytest.approx(corrupted, rel=1e-5)
    assert frame["effect"].abs().max() > 0, "nothing to tell apart"


@pytest.mark.parametrize("at", ["subject", "all", "subject_last", "last"])
def test_places_restored_together_equal_the_plain_loop(tiny_model, tiny_facts, at):
    cases = make_cases(tiny_model, tiny_facts, "new")
    how = plan(tiny_model, at=at, samples=2, layers=[1, 2])
    frame = trace_cases(tiny_model, cases, how)
    assert len(frame) == len(cases) * len(KINDS) * 2
    for row in frame.sample(25, random_state=0).itertuples():
        (case,) = (case for case in cases if case.fact.id == row.fact)
        places = {
            "subject": range(case.first, case.last + 1),
            "all": range(case.first, len(case.ids)),
            "subject_last": [case.last],
            "last": [case.end],
        }[at]
        want = [plain_restored(tiny_model, case, how, row.kind, row.layer, list(places), s) for s in range(2)]
        assert row.p == pytest.approx(np.mean(want), rel=1e-5)


def test_without_noise_everything_is_recovered_exactly(tiny_model, known_facts):
    frame = trace(tiny_model, known_facts(tiny_model), KINDS, noise=0.0)
    # To rounding: with several threads a product's last bits depend on how many rows share a batch.
    assert np.allclose(frame["p"], frame["p_clean"], rtol=1e-5) and (frame["effect"].abs() <= 1e-5).all()


def test_full_restoration_recovers_everything_exactly(tiny_model, known_facts):
    frame = trace(tiny_model, known_facts(tiny_model), ["hidden"], at="all", noise=5.0)
    assert (frame["p_corrupted"] < 0.9 * frame["p_clean"]).any(), "the noise took nothing away"
    assert np.allclose(frame["p"], frame["p_clean"], rtol=1e-6)


def test_the_subject_s_stream_behind_the_embeddings_of_the_subject_alone_carries_all(tiny_model, known_facts):
    # All tokens of the subject are restored after layer 0: there the others have seen corrupted keys in layer 0 alone.
    frame = trace(tiny_model, known_facts(tiny_model), ["hidden"], at="last", layers=[3])
    assert np.allclose(frame["p"], frame["p_clean"], rtol=1e-5), "the top layer's state at the end is the answer"


def test_severing_where_nothing_follows_changes_nothing(tiny_model, known_facts):
    frame = trace(tiny_model, known_facts(tiny_model), KINDS, layers=[3])
    by = frame.set_index(["fact", "position", "kind"])["p"].unstack()
    for name in ("mlp", "attention"):
        assert np.allclose(by[f"hidden, {name} severed"], by["hidden"], rtol=1e-6)


def test_a_fact_has_its_noise_and_its_effects_whatever_stands_beside_it(tiny_model, known_facts):
    facts = known_facts(tiny_model)
    everything = trace(tiny_model, facts, samples=2)
    case = make_cases(tiny_model, facts)[-1]
    assert torch.equal(noise_of(case, 1, 0, 8), noise_of(make_cases(tiny_model, facts[-1:])[0], 1, 0, 8))
    alone = trace(tiny_model, facts[-1:], samples=2)
    beside = everything[everything["fact"] == facts[-1].id]
    assert np.allclose(beside["p"], alone["p"], rtol=1e-5)
    assert list(dict.fromkeys(everything["fact"])) == [fact.id for fact in facts], "not in the order given"
    other = trace(tiny_model, facts[-1:], samples=2, seed=1)
    assert not np.allclose(other["p_corrupted"], alone["p_corrupted"], rtol=1e-4)
    assert not torch.equal(noise_of(case, 0, 0, 8), noise_of(case, 1, 0, 8))
    assert trace(tiny_model, facts[-1:], samples=2).equals(alone), "a second run differs"


def test_the_noise_is_standard_normal_times_three_spreads(tiny_gpt2, known_facts):
    facts = known_facts(tiny_gpt2)
    weight = tiny_gpt2.model.get_input_embeddings().weight
    cases = make_cases(tiny_gpt2, facts)
    assert spread_of(tiny_gpt2) == pytest.approx(float(weight.std(correction=0)), rel=1e-5)
    many = torch.cat([noise_of(cases[0], s, 0, 2000) for s in range(5)])
    assert float(many.std()) == pytest.approx(1, abs=0.02) and abs(float(many.mean())) < 0.02
    assert trace(tiny_gpt2, facts, ["hidden"], layers=[0], at="last").attrs["sigma"] == spread_of(tiny_gpt2)


def test_roles_and_what_stands_before_the_subject(tiny_gpt2):
    (case,) = make_cases(tiny_gpt2, [Fact("1", "r", "You may visit the home of {} in", "Tovar Istin", "Vell", "Sall")])
    words = [tiny_gpt2.tokenizer.decode([i]) for i in case.ids]
    assert "".join(words[case.first : case.last + 1]).strip() == "Tovar Istin"
    roles = [case.role(i) for i in range(case.end + 1)]
    assert roles[0] == "before the subject" and roles[case.last] == "last of the subject" and roles[-1] == "last token"
    assert roles[case.first] in ("first of the subject", "last of the subject")
    frame = trace_cases(tiny_gpt2, [case], plan(tiny_gpt2))
    assert (frame.loc[frame["role"] == "before the subject", "effect"] == 0).all()
    assert frame["position"].max() == case.end and frame["token"].iloc[0] == words[0]


def test_averages_weigh_facts_alike_and_cover_the_mean():
    rng = np.random.default_rng(0)
    rows = [(i, "a", x) for i in range(50) for x in rng.normal(i % 2, 0.1, size=1 + i % 3)] + [(0, "b", 5.0)]
    frame = pd.DataFrame(rows, columns=["fact", "kind", "effect"])
    frame.attrs["unknown"] = 3
    got = average(frame, by=["kind"]).set_index("kind")
    per_fact = frame[frame["kind"] == "a"].groupby("fact")["effect"].mean()
    assert got.loc["a", "mean"] == pytest.approx(per_fact.mean()) and got.loc["a", "facts"] == 50
    half = 1.96 * per_fact.std() / np.sqrt(50)
    assert got.loc["a", "high"] - got.loc["a", "low"] == pytest.approx(2 * half, rel=0.1)
    assert got.loc["b", ["mean", "low", "high", "facts"]].tolist() == [5.0, 5.0, 5.0, 1]
    assert average(frame, by=["kind"]).attrs == {"unknown": 3}


def test_unknown_facts_are_left_out_and_counted(tiny_gpt2, known_facts):
    facts = known_facts(tiny_gpt2)
    lost = Fact("lost", "r", "{} was born in", "Ada Lorn", "harp harp", "Vell")
    with pytest.warns(UserWarning, match=r"1 of \d+ facts left out.*'lost'") as heard:
        frame = trace(tiny_gpt2, [lost, *facts], ["hidden"], at="last")
    assert heard[0].filename == __file__
    assert frame.attrs["unknown"] == 1 and frame.attrs["unknown_ids"] == ["lost"] and frame.attrs["facts"] == len(facts)
    assert "lost" not in set(frame["fact"])
    with pytest.raises(KetoolsError, match="knows none of the 1 facts"):
        trace(tiny_gpt2, [lost])


@pytest.mark.parametrize(
    ("facts", "settings", "said"),
    [
        ([], {}, "no facts"),
        ([Fact("7", "r", "{} is in", "Vell " * 200 + "x", "Sall", "Ixian")], {}, "fact '7'.*window"),
        ([Fact("7", "r", "{} is in", "Vell", None, "Ixian")], {}, "fact '7'.*target_true"),
        (None, {"kinds": ["heads"]}, "kinds=.*'hidden, mlp severed'"),
        (None, {"kinds": []}, "kinds="),
        (None, {"at": "middle"}, "at='middle'"),
        (None, {"noise": -1.0}, "noise"),
        (None, {"samples": 0}, "samples"),
        (None, {"layers": []}, "layers is empty"),
        (None, {"layers": [9]}, "layers 0 to 3"),
        (None, {"target": "old"}, "target='old'"),
    ],
)
def test_mistakes_are_named(tiny_gpt2, known_facts, facts, settings, said):
    with pytest.raises(KetoolsError, match=said):
        trace(tiny_gpt2, known_facts(tiny_gpt2) if facts is None else facts, **settings)


def test_an_empty_frame_has_no_average():
    with pytest.raises(KetoolsError, match="no column"):
        average(pd.DataFrame({"fact": [1]}))
    with pytest.raises(KetoolsError, match="empty"):
        average(pd.DataFrame({"fact": [], "kind": [], "role": [], "layer": [], "effect": []}))
