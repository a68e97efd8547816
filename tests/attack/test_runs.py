"""What a run refuses before it begins, and on resuming."""

from dataclasses import replace

import pytest
import torch

from ketools import FactSet, KetoolsError
from ketools.runs import preflight
from ketools.runs.run import lifelong
from tests.runs.conftest import facts, panel, run  # noqa: F401 - fixtures
from tests.small_world import small_facts

LONG = "word " * 200


@pytest.mark.parametrize("field", ["paraphrases", "neighbours"])
def test_a_prompt_that_is_scored_and_too_long_is_named_before_the_folder_is_made(tiny_gpt2, tmp_path, field):
    chosen = small_facts().sample(8, 0)
    changed = replace(chosen[6], **{field: (f"{LONG}was born in",)})
    given = FactSet(changed if fact.id == changed.id else fact for fact in small_facts())
    kind = {"paraphrases": "paraphrase", "neighbours": "neighbourhood"}[field]
    problems = preflight.inspect(tiny_gpt2, given.sample(8, 0), "memit", trial=False).problems
    assert [text for text in problems if repr(changed.id) in text and kind in text]
    with pytest.raises(KetoolsError, match=f"{changed.id}.*{kind}"):
        lifelong(tiny_gpt2, given, "ultraedit", edits=8, batch=3, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_another_run(run, tiny_gpt2):  # noqa: F811
    run("run", edits=2, batch=2)
    tiny_gpt2.edits.refill([])
    ids = tiny_gpt2.tokenizer.backend_tokenizer.to_str()
    vocabulary = tiny_gpt2.tokenizer.get_vocab()
    one, two = (next(word for word, i in vocabulary.items() if i == k) for k in (300, 301))
    swapped = ids.replace(f'"{one}":300', f'"{one}":301').replace(f'"{two}":301,', f'"{two}":300,', 1)
    assert swapped != ids
    tiny_gpt2.tokenizer._tokenizer = type(tiny_gpt2.tokenizer.backend_tokenizer).from_str(swapped)
    with pytest.raises(KetoolsError, match="reads"):
        run("run", edits=2, batch=2)


def test_buffers_count_too(run, tiny_gpt2):  # noqa: F811
    run("run", edits=2, batch=2)
    tiny_gpt2.edits.refill([])
    tiny_gpt2.model.register_buffer("scale", torch.ones(1))
    with pytest.raises(KetoolsError, match="reads"):
        run("run", edits=2, batch=2)
