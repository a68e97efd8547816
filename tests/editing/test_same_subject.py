"""Facts of one subject, whose keys are nearly one: found, named, and edited so that all of them hold."""

import warnings

import pytest
import torch

from ketools import Fact, FactSet
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor, SameSubject
from ketools.editing.keys import checked_rows, keys_and_states, near_subjects
from ketools.editing.methods import MEMIT
from ketools.editing.stopping import FixedSteps
from ketools.editing.targets import compute_targets
from ketools.models.scoring import target_logprobs
from ketools.models.weights import fresh
from tests.conftest import SENTENCES

PAIRS = [("Ada Lorn", "Vell", "harp"), ("Bo Tarn", "Ixian", "tower"), ("Mira Quell", "Sall", "Vell")]

LOOSE = {"lambda_p_relative": 0.01, "lambda_n_relative": 0.01}


def same_subjects(start=True):
    """Two facts of each of three subjects, which the prompts begin with, and a fact alone."""
    prompts = ("{} was born in", "{} plays the") if start else ("{} was born in", "You may visit the home of {}")
    facts = [Fact(f"{s} {j}", f"r{j}", prompts[j], s, None, new[j]) for j in (0, 1) for s, *new in PAIRS]
    return FactSet([*facts[:3], Fact("alone", "r0", "{} lives in", "Tovar Istin", None, "Vell"), *facts[3:]])


def test_facts_of_one_subject_with_nearly_one_key_are_found(tiny_model):
    facts = same_subjects()
    rows = checked_rows(tiny_model, facts, ("",))
    assert near_subjects(tiny_model, facts, rows, 1) == [[0, 4], [1, 5], [2, 6]]
    assert near_subjects(tiny_model, facts[:4], rows[:4], 1) == []
    facts = same_subjects(start=False)
    rows = checked_rows(tiny_model, facts, ("",))
    K, _ = keys_and_states(tiny_model, rows, 1, 1)
    K = K / K.norm(dim=0)
    assert near_subjects(tiny_model, facts, rows, 1) == [[i, i + 4] for i in range(3) if K[:, i] @ K[:, i + 4] > 0.9]


@torch.no_grad()
def probability(model, row, delta):
    """Of a fact's target, mean over its contexts, with `delta` added to layer 1's output at the subject's last token."""
    values = []
    for context in row.contexts:

        def add(_, args, out, at=context.subject_last):
            out[:, at] += delta

        handle = model.layer(1).register_forward_hook(add)
        logits = model.model(torch.tensor([context.ids])).logits[0].log_softmax(-1)
        handle.remove()
        values.append(logits[list(context.target_positions), list(context.target_ids)].mean().exp())
    return torch.stack(values).mean()


def test_facts_of_one_subject_share_a_delta_that_serves_them_all(tiny_llama):
    facts, hyper = same_subjects(), MEMIT.settings(tiny_llama, layers=[1], steps=12)
    rows = checked_rows(tiny_llama, facts, ("", "I sang. "))
    pairs = [[0, 4], [1, 5], [2, 6]]
    arguments = (tiny_llama, facts, ("", "I sang. "), FixedSteps(), hyper, None, rows)
    seen = []
    shared, alone = compute_targets(*arguments, seen.append, pairs), compute_targets(*arguments)
    deltas = shared.z - shared.h0
    for a, b in pairs:
        assert torch.allclose(deltas[a], deltas[b], atol=1e-5) and not torch.allclose(
            deltas[a], deltas[a - 1], atol=1e-2
        )
        assert shared.steps[a] == shared.steps[b] and shared.loss[a] == shared.loss[b]
    # A fact alone is found as without the others; h0 and what is known are each fact's own.
    for name in ("z", "h0", "steps", "p_target", "loss", "known", "tokens"):
        assert torch.allclose(getattr(shared, name)[3], getattr(alone, name)[3], atol=1e-5)
    assert torch.equal(shared.known, alone.known) and torch.allclose(shared.trace[:, 0], alone.trace[:, 0], atol=1e-6)
    for row, delta, p in zip(rows, deltas, shared.p_target, strict=True):
        assert torch.allclose(probability(tiny_llama, row, delta), p, rtol=1e-4)
    assert {int(i) for one in seen for i in one.facts} == set(range(7))
    assert torch.equal(seen[-1].z[-1], shared.z[int(seen[-1].facts[-1])])


@pytest.mark.parametrize("method", ["memit", "encore", "emmet", "rome"])
def test_facts_of_one_subject_in_one_batch(tiny_llama, method):
    facts, statistics = same_subjects(), Statistics.compute(tiny_llama, SENTENCES * 3, [1], 600)
    said = {}
    for how in ("shared", "apart", "alone"):
        with fresh(tiny_llama):
            editor = Editor(tiny_llama, method, statistics=statistics, layers=[1], same_subject=how, **LOOSE)
            with pytest.warns(SameSubject, match=r"Ada Lorn \(Ada Lorn 0, Ada Lorn 1\), Bo Tarn.*same_subject"):
                edit = editor.apply(facts)
            assert edit.record["facts"] == facts.ids and len(edit.record["known"]) == len(facts)
            said[how] = target_logprobs(tiny_llama, [f.text for f in facts], [f.target_new for f in facts])[0]
            alone = Fact("later", "r2", "{} lives in", "Ada Lorn", None, "Sall")
            with pytest.warns(SameSubject, match=r"'later' \(Ada Lorn, edited by 'Ada Lorn 1'\)"):
                editor.apply([alone])
    # Which of them is better on a model this small depends on the processor that trained it; that they differ does not.
    assert abs(said["shared"] - said["alone"]).max() > 1e-3


def test_a_batch_of_different_subjects_has_the_bits_of_any_setting(tiny_llama, tiny_facts):
    statistics = Statistics.compute(tiny_llama, SENTENCES * 3, [1], 600)
    different = [fact for fact in tiny_facts if fact.subject != "Dunmark"]
    edits = []
    for how in ("shared", "apart", "alone"):
        with fresh(tiny_llama), warnings.catch_warnings():
            warnings.simplefilter("error", SameSubject)
            edits.append(
                Editor(tiny_llama, "encore", statistics=statistics, layers=[1], same_subject=how).apply(different)
            )
    assert all(torch.equal(edit.layers[1][side], edits[0].layers[1][side]) for edit in edits for side in (0, 1))
