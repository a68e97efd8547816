"""Helpers of the notebooks 01 to 03: against plain versions, and where they must find nothing."""

import pandas as pd
import pytest
import torch

from ketools.course.lessons import keys, nb01, nb02, nb03
from ketools.course.lessons.points import kind_points
from ketools.errors import KetoolsError
from ketools.models.replay import read_last
from ketools.models.weights import edited
from ketools.plots.style import words
from ketools.probing.lens import lens, lens_trace
from ketools.probing.recall import answers
from tests.plots.figures import known_facts

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def covariance(model, seed=0):
    d = model.anatomy.d_mlp
    draw = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw @ draw.T / (2 * d)


def test_keys_are_those_that_the_editor_reads(tiny_model, tiny_facts):
    for fact in tiny_facts:
        own = keys.keys_of(tiny_model, fact.text, 1)
        place = keys.token_of(tiny_model, fact)
        ids = tiny_model.tokenizer(fact.text)["input_ids"]
        (key,), _ = read_last(tiny_model, [ids[: place + 1]], key_layer=1)
        torch.testing.assert_close(own[place].float(), key, **CLOSE)
        assert tiny_model.tokenizer.decode(ids[: place + 1]).endswith(fact.subject)
        assert keys.token_of(tiny_model, fact, "first") <= place


def test_adding_nothing_changes_nothing(tiny_model, tiny_facts):
    fact = tiny_facts[1]
    plain = answers(tiny_model, [fact.text], [fact.target_new])["probability"][0]
    nothing = torch.zeros(tiny_model.anatomy.d_model)
    assert keys.with_added(tiny_model, fact, 1, nothing) == pytest.approx(plain, rel=1e-4)
    push = torch.linspace(-3, 3, len(nothing))  # a constant would not outlive GPT-2's norm
    assert keys.with_added(tiny_model, fact, 1, push) != pytest.approx(plain, rel=1e-2)


def test_a_matrix_of_rank_one_is_an_edit(tiny_model, tiny_facts):
    before = tiny_model.weight(1).double()
    delta = torch.outer(
        torch.linspace(-1, 1, len(before), dtype=torch.float64), torch.ones(before.shape[1], dtype=torch.float64)
    )
    with edited(tiny_model, nb03.as_edit(1, delta, tiny_facts[0])):
        torch.testing.assert_close(tiny_model.weight(1).double(), before + delta, rtol=1e-4, atol=1e-5)
    c = covariance(tiny_model)
    assert keys.moved(delta, before, c) == pytest.approx(
        float(((delta @ c @ delta.T).trace() / (before @ c @ before.T).trace()).sqrt())
    )


def test_a_state_of_the_same_subject_changes_nothing(tiny_model, tiny_facts):
    facts = known_facts(tiny_model, tiny_facts)
    fact = facts[0]
    other = next(f for f in facts if f.target_true != fact.target_true)
    frame = nb02.transplanted(tiny_model, [(fact, other)])
    untouched = frame[(frame["layer"] == -1) & (frame["answer"] == "own")]["p"].item()
    assert untouched == pytest.approx(answers(tiny_model, [fact.text], [fact.target_true])["probability"][0], rel=1e-4)
    assert set(frame["layer"]) == {-1, *range(tiny_model.anatomy.n_layer)} and set(frame["answer"]) == {"own", "other"}
    row = nb02._row(tiny_model, fact, fact.subject)
    clean = nb02._next(tiny_model, row, -1, None)
    got = []
    handle = tiny_model.layer(1).register_forward_hook(
        lambda m, a, out: got.append((out[0] if isinstance(out, tuple) else out)[0, row.subject_last].clone())
    )
    nb02._next(tiny_model, row, -1, None)
    handle.remove()
    torch.testing.assert_close(nb02._next(tiny_model, row, 1, got[0]), clean, **CLOSE)
    assert "does not bring its answer along" in words(nb02.transplant_lines(frame, context="n = 1"))["finding"]


def test_shares_of_a_trace_are_effects_over_the_loss():
    rows = [
        ("a", "mlp", "last of the subject", 0, 0.4, 0.5, 0.1),
        ("b", "mlp", "last of the subject", 0, 0.1, 0.4, 0.2),
    ]
    frame = pd.DataFrame(rows, columns=["fact", "kind", "role", "layer", "effect", "p_clean", "p_corrupted"])
    assert nb02.recovered(frame)["mlp", "last of the subject", 0] == pytest.approx(0.25 / 0.3)
    assert nb02.lost(frame) == pytest.approx((0.8 + 0.5) / 2)


def test_an_answer_by_tokens_multiplies_to_its_score(tiny_model, tiny_facts):
    fact = max(tiny_facts, key=lambda f: len(f.target_new))
    table = nb01.answer_tokens(tiny_model, fact.text, fact.target_new)
    p = answers(tiny_model, [fact.text], [fact.target_new])["probability"][0]
    assert len(table) > 1 and table["probability"].prod() ** (1 / len(table)) == pytest.approx(p, rel=1e-4)


def test_since_counts_from_the_last_time_that_the_target_was_not_first():
    rows = [
        (prompt, layer, 0, rank)
        for prompt, ranks in enumerate([(5, 1, 2, 1), (1, 1, 1, 1), (9, 9, 9, 3)])
        for layer, rank in enumerate(ranks, -1)
    ]
    frame = pd.DataFrame(rows, columns=["prompt", "layer", "from_end", "rank"])
    assert nb01.since(frame).tolist() == [2, -1, 3]


def test_wins_against_itself_are_none(tiny_model, tiny_facts):
    frame = lens_trace(tiny_model, [f.text for f in tiny_facts], [f.target_new for f in tiny_facts])
    assert nb01.wins(frame, frame).eq(0).all()
    best = nb01.at_subject(tiny_model, list(tiny_facts), frame)
    assert best["prompt"].tolist() == list(range(len(tiny_facts)))
    assert all(fact.subject.endswith(token.strip()) for fact, token in zip(tiny_facts, best["token"]))


def test_contests_need_another_relation(tiny_model, tiny_facts):
    # The "right" answer is the random one itself here, which cannot beat itself.
    facts = list(tiny_facts)
    frame = lens_trace(tiny_model, [f.text for f in facts], [f.target_new for f in facts])
    found = nb01.contests(tiny_model, facts, frame)
    assert len({f.relation for f in facts}) > 1 and found["kind"].between(0, 1).all()
    assert found["right"].eq(0).all() and found.index.tolist() == sorted(set(frame["layer"]))
    alone = lens_trace(tiny_model, [facts[0].text], [facts[0].target_new])
    assert nb01.contests(tiny_model, facts[:1], alone)["kind"].isna().all()


def test_the_lens_explorer_draws_what_is_chosen(tiny_gpt2):
    texts = ["Ada Lorn was born in", "Bo Tarn plays the"]
    with nb01.LensExplorer({text: lens(tiny_gpt2, text) for text in texts}, context="n = 2") as view:
        first = view.sentence()
        view.controls["prompt"].value = texts[1]
        view.controls["layers"].value = (1, 1)
        assert view.sentence() != first and view.data["layer"].nunique() == 3 and "n = 2" in view._below.value
    with pytest.raises(KetoolsError, match="at least one"):
        nb01.LensExplorer({})


def test_points_say_their_medians_and_escape_names():
    frame = pd.DataFrame({"kind": ["<b>a", "<b>a", "c"], "x": [0.25, 0.75, 2.0]})
    fig = kind_points(frame, "x", "finding", axis="x (1)", caption="caption", context="seed 0")
    assert "0.5" in words(fig)["description"] and words(fig)["caption"] == "caption seed 0"
    assert "<b>" not in fig.layout.yaxis.ticktext[0]
    with pytest.raises(KetoolsError):
        kind_points(frame, "y", "finding", axis="x", caption="caption")
