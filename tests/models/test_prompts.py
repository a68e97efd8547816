"""Rows of tokens: where the subject ends, where targets are read; scores against the plain forward."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from ketools import Fact, KetoolsError
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import make_rows, subject_span
from ketools.reference.scores import score


def fact(prompt, subject, new="Vell"):
    return Fact("1", "r", prompt, subject, "harp", new)


def decoded(model, ids):
    return model.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "prompt", ["{} was born in", "The mother tongue of {} is", "You may visit the home of {}", "({}) is", "“{}”, in"]
)
@pytest.mark.parametrize("subject", ["Ada Lorn", "Vell", "Zörn Ümit", "O'Qell-Tar"])
def test_the_subjects_last_token(tiny_gpt2, prompt, subject):
    f = fact(prompt, subject)
    (row,) = make_rows(tiny_gpt2, [f.text], [f.target_new], [subject_span(f)])
    upto = decoded(tiny_gpt2, row.ids[: row.subject_last + 1])
    before = decoded(tiny_gpt2, row.ids[: row.subject_last])
    assert upto.endswith(subject[-1]) and upto.strip().startswith(f.text[: f.text.index(subject)].strip())
    assert subject in upto and subject not in before


def test_targets_get_their_one_space_and_all_positions(tiny_gpt2):
    tokens = tiny_gpt2.tokenizer(" Oran Bay")["input_ids"]
    assert len(tokens) > 1
    for prompt in ("Ada Lorn was born in", "Ada Lorn was born in "):
        (row,) = make_rows(tiny_gpt2, [prompt], ["Oran Bay"])
        n = len(tiny_gpt2.tokenizer("Ada Lorn was born in")["input_ids"])
        assert row.target_ids == tuple(tokens)
        assert row.target_positions == tuple(range(n - 1, n - 1 + len(tokens)))
        assert row.ids[n:] == tuple(tokens[:-1])


def test_beginning_and_end_of_text_tokens(tiny_gpt2):
    tokenizer = tiny_gpt2.tokenizer.backend_tokenizer
    plain = make_rows(tiny_gpt2, ["Ada Lorn lives in"], ["Vell"], [(0, 8)])[0]
    before = tokenizer.post_processor
    try:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]),
            ]
        )
        (row,) = make_rows(tiny_gpt2, ["Ada Lorn lives in"], ["Vell"], [(0, 8)])
    finally:
        tokenizer.post_processor = before or processors.ByteLevel(trim_offsets=False)
    assert row.ids == (0, *plain.ids) and row.target_ids == plain.target_ids
    assert row.subject_last == plain.subject_last + 1
    assert row.target_positions == tuple(p + 1 for p in plain.target_positions)


def test_mistakes(tiny_gpt2):
    with pytest.raises(KetoolsError, match="stands 2 times"):
        subject_span(fact("{} and Vell are", "Vell", "harp Sall"))
    with pytest.raises(KetoolsError, match="no tokens"):
        make_rows(tiny_gpt2, ["Ada lives in"], [" "])
    with pytest.raises(KetoolsError, match="context window holds 128"):
        make_rows(tiny_gpt2, ["Ada " * 200])


def test_scores_equal_the_plain_forward(tiny_model, tiny_facts):
    prompts = [f.text for f in tiny_facts] + [p for f in tiny_facts for p in f.paraphrases]
    pairs = [(f.target_true, f.target_new) for f in tiny_facts] * 2
    logprob, correct = target_logprobs(tiny_model, prompts, pairs)
    assert logprob.shape == correct.shape == (len(prompts), 2)
    assert correct.any() and not correct.all()
    for i, prompt in enumerate(prompts):
        for j in (0, 1):
            want = score(tiny_model, prompt, pairs[i][j])
            assert logprob[i, j] == pytest.approx(want[0], rel=0, abs=1e-5)  # of the probability, a share
            assert correct[i, j] == want[1]
    single, _ = target_logprobs(tiny_model, prompts, [t for t, _ in pairs])
    assert np.allclose(single, logprob[:, 0], atol=1e-6)
    assert target_logprobs(tiny_model, [], [])[0].shape == (0,)


words = st.sampled_from(["Ada", "Lorn", "Vell", "the", "river", "Oran", "Bay", "ixé", "42", "Q"])
text = st.lists(words, min_size=1, max_size=4).map(" ".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text, text, text, text)
def test_rows_say_what_the_text_says(tiny_gpt2, before, subject, after, target):
    f = fact(f"{before} {{}} {after}", subject, target + " new")
    if f.text.count(subject) != 1:
        return
    (row,) = make_rows(tiny_gpt2, [f.text], [f.target_new], [subject_span(f)])
    assert decoded(tiny_gpt2, [*row.ids, row.target_ids[-1]]) == f"{f.text} {f.target_new}"
    assert decoded(tiny_gpt2, row.target_ids) == f" {f.target_new}"
    assert decoded(tiny_gpt2, row.ids[: row.subject_last + 1]) == f"{before} {subject}"
