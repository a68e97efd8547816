"""Text that the model writes by itself; entropies and tf-idf against their formulas on small strings."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ketools import KetoolsError
from ketools.evaluation.generation import (
    continuations,
    free_text,
    generation_entropy,
    ngram_entropy,
    reference_score,
    references_of,
    vectorizer,
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


def test_tf_idf_by_hand():
    corpus = ["red river", "red stone stone"]
    idf = {"red": math.log(3 / 3) + 1, "river": math.log(3 / 2) + 1, "stone": math.log(3 / 2) + 1}

    def vector(text):
        counts = Counter(word for word in text.split() if word in idf)
        v = {word: n * idf[word] for word, n in counts.items()}
        size = math.sqrt(sum(x * x for x in v.values()))
        return {word: x / size for word, x in v.items()}

    a, b = vector("red stone unknown"), vector("red river red stone stone")
    expected = sum(x * b.get(word, 0) for word, x in a.items())
    assert reference_score(["red", "stone unknown"], corpus, vectorizer(corpus)) == pytest.approx(expected)
    assert reference_score(corpus, corpus, vectorizer(corpus)) == pytest.approx(1)
    assert reference_score(["nothing shared"], corpus, vectorizer(corpus)) == 0
    assert reference_score([""], corpus, vectorizer(corpus)) == 0
    with pytest.raises(KetoolsError, match="0 references"):
        reference_score(["red"], [], vectorizer(corpus))
    for empty in ([], [""], ["a b"]):
        with pytest.raises(KetoolsError, match="texts with words"):
            vectorizer(empty)


def test_free_text(tiny_gpt2, facts):
    spoken = [replace(facts[0], generation=("Ada Lorn is", "Many say that Ada")), facts[1]]
    references = references_of(spoken, facts)
    assert references[spoken[0].id] == [
        f"{f.text} {f.target_true}." for f in facts if f.relation == "born" and f.target_true == spoken[0].target_new
    ]
    frame = free_text(tiny_gpt2, spoken, references, tokens=20).set_index("id")
    row, silent = frame.loc[spoken[0].id], frame.loc[spoken[1].id]
    assert len(row["texts"]) == row["n"] == 2 and row["texts"][0].startswith("Ada Lorn is")
    assert row["GE"] == pytest.approx(generation_entropy(row["texts"]))
    every = [text for texts in references.values() for text in texts]
    assert row["RS"] == pytest.approx(reference_score(row["texts"], references[spoken[0].id], vectorizer(every)))
    assert silent["n"] == 0 and math.isnan(silent["GE"]) and math.isnan(silent["RS"])
    assert math.isnan(free_text(tiny_gpt2, spoken, tokens=5)["RS"].iloc[0])
    with pytest.raises(KetoolsError, match="field generation"):
        free_text(tiny_gpt2, facts[:3])


def test_a_model_that_says_nothing_counts(tiny_gpt2, facts, monkeypatch):
    import ketools.evaluation.generation as module

    monkeypatch.setattr(module, "continuations", lambda model, prompts, *_, **__: [""] * len(prompts))
    row = free_text(tiny_gpt2, [replace(facts[0], generation=("Ada",))]).iloc[0]
    assert row["GE"] == 0 and row["short"] == 1
