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
from ketools.probing.lens import lens
from ketools.probing.recall import answers

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


def test_transplants_say_whose_answer_is_given():
    rows = [("a", -1, 0.6, 0.01), ("b", -1, 0.8, 0.01), ("a", 0, 0.02, 0.5), ("b", 0, 0.02, 0.7)]
    frame = pd.DataFrame(
        [(f, i, name, p) for f, i, *both in rows for name, p in zip(("own", "other"), both)],
        columns=["fact", "layer", "answer", "p"],
    )
    finding = words(nb02.transplant_lines(frame, context="n = 2"))["finding"]
    assert "after layer 0" in finding and "0.600" in finding and "untouched 0.700" in finding
    untouched = nb02.transplant_lines(frame.assign(p=frame["p"].where(frame["answer"] == "own", 0.0)), context="n = 2")
    assert "does not bring its answer along" in words(untouched)["finding"]


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
