"""What an edit may not be, what `edited` must put back, and what is checked before a run begins."""

import pytest
import torch

from ketools import Fact, KetoolsError
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.models.weights import edited
from tests.attack.test_interrupts import CHEAP
from tests.small_world import small_facts


def weights(model):
    return [model.weight(i).clone() for i in range(model.anatomy.n_layer)]


def some_edit(model, layer=1, scale=0.01, dtype=torch.float32):
    shape = model.weight(layer).shape
    return Edit({layer: ((torch.ones(shape[0], 1) * scale).to(dtype), torch.ones(shape[1], 1).to(dtype))}, {})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.int64, torch.bool])
def test_factors_are_floats(tiny_gpt2, dtype):
    before = weights(tiny_gpt2)
    with pytest.raises(KetoolsError, match="layer 1"):
        some_edit(tiny_gpt2, scale=1, dtype=dtype).apply_to(tiny_gpt2)
    assert all(map(torch.equal, before, weights(tiny_gpt2))) and not tiny_gpt2.edits


@pytest.mark.parametrize("facts", ["text", None, 5, [], [None], ["text"], {"a": 1}, iter(small_facts())])
def test_what_is_edited_are_facts(tiny_gpt2, statistics, facts):
    before, editor = weights(tiny_gpt2), Editor(tiny_gpt2, "memit", statistics=statistics, **CHEAP)
    with pytest.raises(KetoolsError):
        editor.apply(facts)
    assert all(map(torch.equal, before, weights(tiny_gpt2))) and not editor.history


@pytest.mark.parametrize("prefixes", [[1], [None], [["a"]]])
def test_prefixes_are_texts(tiny_gpt2, statistics, prefixes):
    with pytest.raises(KetoolsError, match="prefixes"):
        Editor(tiny_gpt2, "memit", statistics=statistics, prefixes=prefixes, **CHEAP)


@pytest.mark.parametrize("size", [1e38, float("inf"), float("nan")])
def test_a_sum_is_finite_or_not_made(tiny_gpt2, size):
    before, edit = weights(tiny_gpt2), some_edit(tiny_gpt2)
    edit = Edit({1: tuple(factor * (size if size != 1e38 else 1e30) for factor in edit.layers[1])}, {})
    with pytest.raises(KetoolsError, match="layer 1"):
        edit.apply_to(tiny_gpt2)
    assert all(map(torch.equal, before, weights(tiny_gpt2))) and not tiny_gpt2.edits


@pytest.mark.parametrize("inside", ["apply", "two", "remove", "an error"])
def test_edited_puts_back_whatever_its_block_did(tiny_gpt2, statistics, inside):
    model, editor = tiny_gpt2, Editor(tiny_gpt2, "memit", statistics=statistics, **CHEAP | {"layers": (2,)})
    first = some_edit(model, 0)
    first.apply_to(model)
    before, contents = weights(model), tuple(model.edits)
    try:
        with edited(model, some_edit(model, 1)):
            editor.apply(small_facts()[:1])
            if inside == "two":
                some_edit(model, 3).apply_to(model)
            if inside == "remove":
                first.remove(model, force=True)
            if inside == "an error":
                raise RuntimeError
    except RuntimeError:
        pass
    assert all(map(torch.equal, before, weights(model)))
    assert tuple(model.edits) == contents and sorted(model.originals) == [0]


@pytest.mark.parametrize("name", ["paraphrases", "neighbours", "trained"])
def test_a_generator_of_prompts_is_kept(name):
    given = {
        "id": "1",
        "relation": "r",
        "prompt": "{} was born in",
        "subject": "Ada",
        "target_true": "Vell",
        "target_new": "Sall",
    }
    assert getattr(Fact(**given, **{name: (text for text in ["Ada was found in"])}), name) == ("Ada was found in",)
