"""A widened model computes the same function with more keys."""

import torch
from widen import widened

import ketools as ke
from ketools.course.lessons.keys import keys_of


def test_a_widened_model_is_the_same_function_with_more_keys_that_differ():
    pocket = ke.load("pocket")
    d, width = pocket.anatomy.d_mlp, 5000  # more than two rounds of new neurons
    wide = widened(pocket.model, width)
    text = ke.facts("world")[0].text
    ids = pocket.tokenizer([text], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, pocket.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert keys_of(ke.load(wide, tokenizer=pocket.tokenizer), text, 0).shape[1] == width
    mlp = wide.model.layers[0].mlp
    assert mlp.down_proj.weight.shape == (pocket.anatomy.d_model, width) and not mlp.down_proj.weight[:, d:].any()
    pairs = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight], 1)
    assert len(pairs.unique(dim=0)) == width
