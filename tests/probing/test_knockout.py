"""Attention knockout against a plain loop, and against what it must do: hide the subject."""

import pytest
import torch

from ketools import Fact, KetoolsError, load
from ketools.probing.knockout import SOURCES, knockout, knockout_cases
from ketools.probing.tracing import make_cases
from ketools.reference.tracing import Tokens, knocked_out, probability
from tests.models.test_architectures import KINDS, network


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_plain_loop(kind, attention, tiny_tokenizer, tiny_facts):
    made, plain = network(kind), network(kind)
    try:
        made.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"{kind} has no {attention} attention")
    plain.set_attn_implementation("eager")
    model, plain = load(made, tokenizer=tiny_tokenizer), load(plain, tokenizer=tiny_tokenizer)
    cases = make_cases(model, list(tiny_facts)[:5], "new")
    frame = knockout_cases(model, cases, SOURCES, 2)
    for row in frame.itertuples():
        (case,) = (case for case in cases if case.fact.id == row.fact)
        subject = set(range(case.first, min(case.last + 1, case.end)))
        places = sorted(subject if row.source == "subject" else set(range(case.end)) - subject)
        if not places:
            assert row.p != row.p
            continue
        layers = [i for i in (row.layer - 1, row.layer) if i >= 0]
        tokens = Tokens(case.ids, case.first, case.last, case.target)
        assert row.p == pytest.approx(knocked_out(plain, tokens, layers, places), rel=1e-5)
        assert row.p_clean == pytest.approx(probability(plain, tokens), rel=1e-5)
        assert row.change == pytest.approx(row.p / row.p_clean - 1)
    assert frame["change"].abs().max() > 1e-3, "nothing was blocked"


def test_a_subject_hidden_in_all_layers_cannot_matter(tiny_model):
    # Subject first, the reading token right behind it: nothing else can carry the subject.
    facts = [Fact(name, "r", "{} is", name, "Ixian", "Sall") for name in ("Vex", "Zog", "Qud", "Tib", "Jaf")]
    cases = make_cases(tiny_model, facts)
    length = max({len(case.ids) for case in cases}, key=[len(case.ids) for case in cases].count)
    cases = [case for case in cases if len(case.ids) == length and case.end == case.last + 1]
    assert len(cases) > 1
    frame = knockout_cases(tiny_model, cases, ("subject",), 99)
    assert frame["p"].max() == pytest.approx(frame["p"].min(), rel=1e-5)
    assert frame["p_clean"].max() > 1.01 * frame["p_clean"].min()


@pytest.mark.parametrize("given", [{"sources": ("others",)}, {"sources": ()}, {"window": 0}, {"window": -1}])
def test_what_cannot_be_blocked_is_refused(tiny_gpt2, tiny_facts, given):
    with pytest.raises(KetoolsError, match="expected some of 'subject', 'other', and a window of at least 1"):
        knockout(tiny_gpt2, tiny_facts, **given)


def test_facts_that_the_model_does_not_know_are_left_out_and_counted(tiny_gpt2, known_facts):
    facts = known_facts(tiny_gpt2)
    lost = Fact("lost", "r", "{} was born in", "Ada Lorn", "harp harp", "Vell")
    with pytest.warns(UserWarning, match="'lost'"):
        frame = knockout(tiny_gpt2, [*facts, lost])
    assert frame.attrs["unknown"] == 1 and "lost" not in set(frame["fact"])
    assert len(frame) == len(facts) * 2 * 4


def test_no_facts_is_a_mistake(tiny_gpt2):
    with pytest.raises(KetoolsError, match="no facts"):
        knockout(tiny_gpt2, [])


def test_an_attention_whose_mask_is_hidden_is_refused(tiny_gpt2, tiny_facts, monkeypatch):
    from ketools.probing import knockout as module

    cases = make_cases(tiny_gpt2, tiny_facts, "new")
    monkeypatch.setattr(
        module, "probability", lambda *_: torch.ones(len(cases)).numpy()
    )  # flash attention cannot run here
    real = module.freeze

    def with_flat_masks(*args):
        frozen = real(*args)
        frozen.calls = [((), kwargs | {"attention_mask": torch.ones(2, 3)}) for _, kwargs in frozen.calls]
        frozen.run = lambda hidden, _: hidden
        return frozen

    monkeypatch.setattr(module, "freeze", with_flat_masks)
    with pytest.raises(KetoolsError, match="attn_implementation='sdpa' or 'eager'"):
        knockout_cases(tiny_gpt2, cases, SOURCES, 1)
