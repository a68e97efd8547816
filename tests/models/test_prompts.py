"""Rows of tokens: where the subject ends, where targets are read; scores against the plain forward."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from ketools import Editor, Fact, FactSet, KetoolsError
from ketools.editing.keys import fact_rows
from ketools.evaluation.edits import evaluate
from ketools.facts.fact import Locality, TwoHop
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import in_chat, make_rows
from ketools.probing.recall import answers, complete, top_tokens
from ketools.reference import score
from tests.tokenizers import KINDS, with_bos


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
    (row,) = make_rows(tiny_gpt2, [f.text], [f.target_new], [f.subject_span])
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
    (row,) = make_rows(tiny_gpt2, [f.text], [f.target_new], [f.subject_span])
    assert decoded(tiny_gpt2, [*row.ids, row.target_ids[-1]]) == f"{f.text} {f.target_new}"
    assert decoded(tiny_gpt2, row.target_ids) == f" {f.target_new}"
    assert decoded(tiny_gpt2, row.ids[: row.subject_last + 1]) == f"{before} {subject}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_glued_target_reads_on_from_its_prompt(tiny_gpt2, kind):
    tiny_gpt2.tokenizer = KINDS[kind]()
    blank, glued, own = make_rows(
        tiny_gpt2, ["The tower (", "The tower (", "The tower ("], ["Vell", "Vell", "Vell"], glue=[False, None, True]
    )
    assert glued == own != blank or kind == "without_spaces"
    assert decoded(tiny_gpt2, glued.target_ids).strip() == "Vell"


def test_scores_of_a_glued_target_are_those_of_the_text(tiny_gpt2):
    ids = tiny_gpt2.tokenizer('The tower of "Vell')["input_ids"]
    n = len(tiny_gpt2.tokenizer('The tower of "')["input_ids"])
    with torch.no_grad():
        logprob = tiny_gpt2.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    want = sum(float(logprob[i - 1, ids[i]]) for i in range(n, len(ids))) / (len(ids) - n)
    found, _ = target_logprobs(tiny_gpt2, ['The tower of "'] * 2, ["Vell"] * 2, [None, False])
    assert found[0] == pytest.approx(want, abs=1e-5) and found[1] != pytest.approx(want, abs=1e-3)


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BLANK = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {% endif %}{% endfor %}"


def chatting(model, template):
    """Give the model a tokenizer of its own with this chat template."""
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = template


def test_a_fact_in_the_form_of_the_chat_template(tiny_gpt2, tiny_facts):
    chatting(tiny_gpt2, TEMPLATE)
    asked = replace(
        tiny_facts[0],
        two_hop=(TwoHop("Who?", None, "Bo"),),
        locality=(Locality("Where?", "Sall"),),
        neighbours=("Bo was in",),
    )
    (chat,) = in_chat(tiny_gpt2, [asked])
    around = "<|user|>\n{}<|end|>\n<|assistant|>\n".format
    assert (chat.text, chat.glue) == (around(asked.text), True)
    assert chat.text[slice(*chat.subject_span)] == asked.subject
    assert chat.paraphrases == tuple(map(around, asked.paraphrases)) and chat.neighbours == (around("Bo was in"),)
    assert chat.two_hop == (TwoHop(around("Who?"), None, "Bo", True),)
    assert chat.locality == (Locality(around("Where?"), "Sall", True),)
    assert in_chat(tiny_gpt2, [chat]) == FactSet([chat]) and chat.prompt == asked.prompt
    bare, behind = fact_rows(tiny_gpt2, [chat], ("", "I sang. "))[0].contexts
    assert decoded(tiny_gpt2, [*bare.ids, bare.target_ids[-1]]) == around(asked.text) + asked.target_new
    assert decoded(tiny_gpt2, behind.ids).startswith(f"<|user|>\nI sang. {asked.text}<|end|>")
    assert decoded(tiny_gpt2, behind.ids[: behind.subject_last + 1]) == f"<|user|>\nI sang. {asked.subject}"


@pytest.mark.parametrize(
    ("template", "glue"), [(TEMPLATE, True), (BLANK, False), (TEMPLATE.replace("|>\n{% endif", "|> {% endif"), False)]
)
def test_what_stands_before_the_answer_is_the_templates(tiny_gpt2, tiny_facts, template, glue):
    chatting(tiny_gpt2, template)
    (chat,) = in_chat(tiny_gpt2, tiny_facts[:1])
    assert chat.glue is glue and not chat.text.endswith(" ")


def test_everything_that_asks_can_ask_in_chat(tiny_gpt2, tiny_facts):
    chatting(tiny_gpt2, TEMPLATE)
    rendered, (fact,) = in_chat(tiny_gpt2, tiny_facts[:1])[0], tiny_facts[:1]
    plain = evaluate(tiny_gpt2, [rendered])
    pd.testing.assert_frame_equal(evaluate(tiny_gpt2, [fact], chat=True), plain)
    found = answers(tiny_gpt2, [fact.text], [fact.target_new], chat=True)
    assert found["probability"].tolist() == pytest.approx(plain["p_new"].tolist(), rel=1e-5)
    assert complete(tiny_gpt2, fact.text, 3, chat=True) == complete(tiny_gpt2, rendered.text, 3)
    assert top_tokens(tiny_gpt2, fact.text, 2, chat=True).equals(top_tokens(tiny_gpt2, rendered.text, 2))
    one, two = (Editor(tiny_gpt2, "ft", chat=chat, ft_steps=2) for chat in (True, False))
    edits = []
    for editor, it in ((one, fact), (two, rendered)):
        edits.append(editor.apply([it]))
        editor.undo()
    assert all(torch.equal(edits[0].layers[i][0], edits[1].layers[i][0]) for i in edits[0].layers)


def test_one_fact_instead_of_several_is_refused_in_chat_too(tiny_gpt2, tiny_facts):
    chatting(tiny_gpt2, TEMPLATE)
    editor = Editor(tiny_gpt2, "ft", chat=True)
    for wrong in (tiny_facts[0], ["Ada"]):
        with pytest.raises(KetoolsError, match="expected a FactSet or a list of Fact"):
            editor.apply(wrong)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_gpt2, tiny_facts):
    chatting(tiny_gpt2, None)
    with pytest.raises(KetoolsError, match="chat template"):
        in_chat(tiny_gpt2, tiny_facts)
    chatting(tiny_gpt2, "{{ raise_exception('no') }}")
    with pytest.raises(KetoolsError, match="chat template"):
        evaluate(tiny_gpt2, tiny_facts, chat=True)
    chatting(tiny_gpt2, "fixed")
    with pytest.raises(KetoolsError, match="leaves out"):
        complete(tiny_gpt2, "Ada", chat=True)


def test_of_two_beginning_of_text_tokens_one_goes(tiny_gpt2):
    tiny_gpt2.tokenizer = with_bos()
    bos = tiny_gpt2.tokenizer.bos_token
    (plain,) = make_rows(tiny_gpt2, ["Ada Lorn lives in"], ["Vell"], [(0, 8)])
    with pytest.warns(UserWarning, match="only one is kept"):
        (row,) = make_rows(tiny_gpt2, [f"{bos}Ada Lorn lives in"], ["Vell"], [(len(bos), len(bos) + 8)])
    assert row == plain
    chatting(tiny_gpt2, "{{ bos_token }}" + TEMPLATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (chat,) = in_chat(tiny_gpt2, [fact("{} lives in", "Ada Lorn")])
        (row,) = make_rows(tiny_gpt2, [chat.text], ["Vell"])
    assert row.ids.count(tiny_gpt2.tokenizer.bos_token_id) == 1 and not chat.text.startswith(bos)
