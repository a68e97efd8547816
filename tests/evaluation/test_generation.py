"""Text that the model writes by itself; entropies against their formula on small strings."""

import math

import pytest
import torch

from ketools import KetoolsError
from ketools.evaluation.generation import (
    continuations,
    generation_entropy,
    ngram_entropy,
)
from ketools.models.tokens import make_rows


def plain_greedy(model, prompt, tokens):
    """One token at a time, no cache, no batch."""
    (row,) = make_rows(model, [prompt])
    ids = list(row.ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(ids[len(row.ids) :], skip_special_tokens=True)


def test_continuations_equal_the_plain_loop(tiny_model):
    prompts = [
        "Ada Lorn was born in",
        "Bo Tarn plays the ",
        "You may visit",
        "Ada Lorn was born in",
        "Mira Quell lives in",
    ]
    said = continuations(tiny_model, prompts, 6)
    assert said == [plain_greedy(tiny_model, prompt.rstrip(), 6) for prompt in prompts]


def test_drawn_text_hangs_on_the_seed_alone_and_leaves_torch_s_state(tiny_gpt2):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (continuations(tiny_gpt2, ["Ada"] * 4, 12, top_k=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert one == two != other and len(set(one)) > 1


@pytest.mark.parametrize(
    ("prompts", "tokens", "top_k", "named"),
    [(["Ada Lorn"], 500, 1, "fewer tokens"), (["Ada", "  "], 5, 1, "'  '"), (["Ada"], 5, 0, "top_k=0")],
)
def test_what_cannot_be_continued(tiny_gpt2, prompts, tokens, top_k, named):
    with pytest.raises(KetoolsError, match=named):
        continuations(tiny_gpt2, prompts, tokens, top_k=top_k)


def test_entropies_by_hand():
    assert ngram_entropy("a b a b", 2) == pytest.approx(-(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3))
    assert ngram_entropy("a b a b", 3) == pytest.approx(1.0)  # aba, bab
    assert ngram_entropy("w x y z", 2) == pytest.approx(math.log2(3))
    assert ngram_entropy("the the the the", 2) == 0
    assert ngram_entropy("one", 2) == ngram_entropy("", 3) == 0
    assert ngram_entropy("Joe, Joe.", 2) == pytest.approx(math.log2(3))  # marks are words
    h2, h3 = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3), 1.0
    assert generation_entropy(["a b a b", ""]) == pytest.approx(100 * (h2 / 3 + 2 * h3 / 3) / 2)
    with pytest.raises(KetoolsError, match="0 texts"):
        generation_entropy([])
