"""Step 1 through the replay engine against the plain loop, on every kind of attention, position and MLP there is."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ketools import load
from ketools.editing.methods import FixedSteps, Hyper
from ketools.editing.targets import compute_targets
from tests.reference.plain_targets import plain_target

SMALL = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
GROUPED = {"intermediate_size": 40, "num_key_value_heads": 1}
KINDS = {
    "gpt_neox": {"intermediate_size": 40},
    "gptj": {"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "num_layers": 3,
        "num_heads": 2,
        "intermediate_size": 40,
        "window_size": 4,
    },
    "mistral": GROUPED | {"sliding_window": 6},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 6},
    "phi3": {"intermediate_size": 40, "pad_token_id": 0},
    "olmo2": {"intermediate_size": 40},
    "stablelm": GROUPED,
    "falcon": {},
    "falcon alibi": {"alibi": True},
    "bloom": {"n_layer": 3, "n_head": 2},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 16},
}
CONTEXTS = ["", "The tower of Vell. ", "Therefore you sang because. "]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_equal_the_plain_loop(kind, tiny_tokenizer, tiny_facts):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split()[0], **(SMALL | KINDS[kind]))
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    model = load(network, tokenizer=tiny_tokenizer)
    hyper = Hyper(layers=(1,), steps=6, clamp_norm_factor=4.0)
    got = compute_targets(model, tiny_facts, CONTEXTS, FixedSteps(), hyper)
    for i, fact in enumerate(tiny_facts):
        want = plain_target(model, fact, CONTEXTS, FixedSteps(), hyper)
        assert (got.h0[i] - want.h0).norm() <= 1e-5 * want.h0.norm()
        assert (got.z[i] - want.z).norm() <= 1e-4 * want.z.norm()
        assert got.loss[i] == pytest.approx(want.loss, rel=1e-3)
