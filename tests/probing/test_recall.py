"""Recall agrees with a plain forward pass."""

from dataclasses import replace

import pytest
import torch

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.probing.recall import answers, complete, surroundings, top_tokens


@torch.no_grad()
def _next(model: EditableModel, prompt: str) -> torch.Tensor:
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    return model.model(ids).logits[0, -1].softmax(-1)


def test_top_tokens_are_those_of_the_forward_pass(tiny_gpt2: EditableModel) -> None:
    frame, plain = top_tokens(tiny_gpt2, "the capital of", 3), _next(tiny_gpt2, "the capital of")
    assert frame["probability"].tolist() == pytest.approx(plain.topk(3).values.tolist(), rel=1e-5)
    assert frame["probability"].is_monotonic_decreasing


def test_a_one_token_answer_has_the_probability_of_that_token(tiny_gpt2: EditableModel) -> None:
    best = top_tokens(tiny_gpt2, "the capital of", 1)
    token = best.loc[0, "token"]
    ids = tiny_gpt2.tokenizer(f" {token.strip()}", add_special_tokens=False)["input_ids"]
    frame = answers(tiny_gpt2, ["the capital of"], [token.strip()])
    if len(ids) == 1 and token.startswith(" "):
        assert frame.loc[0, "right"]
        assert frame.loc[0, "probability"] == pytest.approx(best.loc[0, "probability"], rel=1e-4)
    assert 0 < frame.loc[0, "probability"] <= 1


def test_a_completion_begins_with_the_top_token(tiny_gpt2: EditableModel) -> None:
    assert complete(tiny_gpt2, "the capital of", 4).startswith(
        top_tokens(tiny_gpt2, "the capital of", 1).loc[0, "token"]
    )


def test_surroundings_hold_every_kind_of_prompt_with_its_own_true_answer(tiny_gpt2: EditableModel) -> None:
    fact = Fact(
        "0", "r", "{} lives in", "Ann", "Rome", "Oslo", paraphrases=("The home of Ann is",), neighbours=("Bob is in",)
    )
    other = Fact("1", "s", "{} works as a", "Ann", "cook", "smith")
    frame = surroundings(tiny_gpt2, fact, [fact, other])
    assert frame["kind"].tolist() == ["prompt", "paraphrase", "neighbour", "same subject"]
    assert frame["true"].tolist() == ["Rome", "Rome", "Rome", "cook"]
    assert set(frame["new"]) == {"Oslo"}
    assert frame.loc[3, "p_true"] == pytest.approx(answers(tiny_gpt2, [other.text], ["cook"]).loc[0, "probability"])


def test_what_cannot_be_compared_or_asked_is_refused_by_name(tiny_gpt2: EditableModel) -> None:
    known = Fact("0", "r", "{} lives in", "Ann", "Rome", "Oslo")
    for unknown, others in (
        (replace(known, id="zsre-9", target_true=None), []),
        (known, [replace(known, id="zsre-9", target_true=None)]),
    ):
        with pytest.raises(KetoolsError, match="'zsre-9'.*target_true.*is missing"):
            surroundings(tiny_gpt2, unknown, others)
    for ask in (top_tokens, complete):
        with pytest.raises(KetoolsError, match="is blank"):
            ask(tiny_gpt2, "  ")
        with pytest.raises(KetoolsError, match="window\\s+holds 128"):
            ask(tiny_gpt2, "Ada " * 200)
    with pytest.raises(KetoolsError, match="fewer tokens"):
        complete(tiny_gpt2, "Ada was born in", 128)
    with pytest.raises(KetoolsError, match="k=0"):
        top_tokens(tiny_gpt2, "Ada", 0)
