"""Contributions to the residual stream: they sum to it in every architecture, and shares are what they say."""

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ketools import Edit, Fact, KetoolsError, load
from ketools.norms import residual
from ketools.norms.residual import (
    Sample,
    before_and_now,
    contributions,
    edited_share,
    subject_sample,
    text_sample,
)
from ketools.norms.weights import norms
from tests.conftest import SENTENCES

SIZE = {
    "vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"intermediate_size": 40, "num_key_value_heads": 1}
# Sequential and parallel layers, norms behind sublayers, sublayers that are handed the stream, a layer without an MLP
# of its own, and one that scales what it adds.
KINDS = {
    "gpt2": {"n_inner": 40},
    "llama": GROUPED,
    "gptj": {"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4},
    "gpt_neox": {"intermediate_size": 40, "use_parallel_residual": True},
    "gpt_neox ": {"intermediate_size": 40, "use_parallel_residual": False},
    "falcon": {},
    "falcon new": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "falcon alibi": {"alibi": True, "parallel_attn": False},
    "bloom": {"n_layer": 3, "n_head": 2},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 16},
    "gemma2": GROUPED | {"head_dim": 8},
    "olmo2": {"intermediate_size": 40},
    "phi3": {"intermediate_size": 40},
    "granite": GROUPED | {"residual_multiplier": 0.3, "embedding_multiplier": 2.0},
}


def made(kind, tokenizer, **more):
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.split()[0], **(SIZE | KINDS[kind] | more)))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return load(network, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_sum_to_the_stream(kind, tiny_tokenizer):
    model = made(kind, tiny_tokenizer)
    sample = text_sample(model, SENTENCES)
    frame = contributions(model, sample)  # refuses a layer whose parts do not sum to what it adds
    assert list(frame["kind"]) == ["embedding", *["attention", "mlp"] * 3] and (frame["norm"] > 0).all()
    assert frame["share"].sum() == pytest.approx(1) and frame["projection"].sum() == pytest.approx(1, abs=1e-4)


def test_the_norms_are_those_of_a_plain_pass(tiny_llama):
    text = SENTENCES[0]
    heard = {}
    layer = tiny_llama.layer(2)
    handles = [
        layer.self_attn.register_forward_hook(lambda _, __, out: heard.update(attention=out[0])),
        layer.mlp.register_forward_hook(lambda _, __, out: heard.update(mlp=out)),
    ]
    ids = tiny_llama.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = tiny_llama.model(input_ids=ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    frame = contributions(tiny_llama, text_sample(tiny_llama, [text], skip=0)).set_index(["layer", "kind"])
    for kind in ("attention", "mlp"):
        assert frame.loc[(2, kind), "norm"] == pytest.approx(float(heard[kind][0].norm(dim=-1).mean()), rel=1e-5)
        relative = (heard[kind][0].norm(dim=-1) / states[2][0].norm(dim=-1)).mean()
        assert frame.loc[(2, kind), "relative"] == pytest.approx(float(relative), rel=1e-5)
    assert frame.loc[(-1, "embedding"), "norm"] == pytest.approx(float(states[0][0].norm(dim=-1).mean()), rel=1e-5)
    assert frame["tokens"].iloc[0] == ids.shape[1]


def test_batches_and_padding_change_nothing(tiny_gpt2, monkeypatch):
    whole = contributions(tiny_gpt2, text_sample(tiny_gpt2, SENTENCES))
    original = residual.batches
    monkeypatch.setattr(residual, "batches", lambda lengths, tokens: original(lengths, 1))
    single = contributions(tiny_gpt2, text_sample(tiny_gpt2, SENTENCES))
    assert (whole["norm"] - single["norm"]).abs().max() < 1e-4


def test_importance_hacking(tiny_model, tiny_facts):
    before = {layer: tiny_model.weight(layer).clone() for layer in range(4)}
    size = norms(tiny_model)[1]
    left, right = tiny_model.weight(1)[:, :4].clone(), torch.randn(tiny_model.anatomy.d_mlp, 4)
    edit = Edit({1: (left, 10 * size * right / right.norm())}, {"fingerprint": tiny_model.fingerprint})
    edit.apply_to(tiny_model)
    edited_bits = tiny_model.weight(1).clone()
    for sample in (text_sample(tiny_model, SENTENCES), subject_sample(tiny_model, list(tiny_facts))):
        frame = before_and_now(tiny_model, sample)
        assert torch.equal(tiny_model.weight(1), edited_bits), "the weights are not those from before"
        share = edited_share(frame).set_index("state")
        assert share.loc["now", "share"] > 1.5 * share.loc["before", "share"]
        assert share.loc["now", "layers"] == 1 and share.loc["now", "even"] == pytest.approx(1 / 9)
        below = frame[(frame["layer"] < 1)].groupby("state")["norm"].sum()
        assert below["before"] == pytest.approx(below["now"], rel=1e-6)
    edit.remove(tiny_model)
    assert all(torch.equal(tiny_model.weight(layer), bits) for layer, bits in before.items())


def test_long_texts_are_read_in_windows_and_blank_ones_left_out(tiny_gpt2):
    long = " ".join(SENTENCES * 4)
    n = len(tiny_gpt2.tokenizer(long)["input_ids"])
    assert n > 128
    sample = text_sample(tiny_gpt2, ["", "  \n", long, SENTENCES[0]], tokens=10_000)
    windows = -(-n // 128)
    assert sample.tokens == n - windows + len(tiny_gpt2.tokenizer(SENTENCES[0])["input_ids"]) - 1
    assert all(reads[0] == 1 for reads in sample.reads)
    short = text_sample(tiny_gpt2, [long, *SENTENCES], tokens=20)
    assert short.tokens == 20 and len(short.ids) == 1


def test_bad_samples_are_refused(tiny_gpt2):
    for texts in ([], [""], ["a"]):
        with pytest.raises(KetoolsError, match="without a token to read"):
            text_sample(tiny_gpt2, texts)
    with pytest.raises(KetoolsError, match="tokens=0"):
        text_sample(tiny_gpt2, SENTENCES, tokens=0)
    with pytest.raises(KetoolsError, match="0 facts"):
        subject_sample(tiny_gpt2, [])
    long = Fact("long", "r", "The tower of " * 60 + "{} is", "Ada Lorn", "Vell", "Sall")
    with pytest.raises(KetoolsError, match="context window holds 128"):
        subject_sample(tiny_gpt2, [long])


def test_subjects_are_read_at_their_last_token(tiny_gpt2):
    fact = Fact("1", "r", "The mother tongue of {} is", "Bo Tarn", "Vell", "Sall")
    sample = subject_sample(tiny_gpt2, [fact])
    ((ids,), ((at,),)) = sample.ids, sample.reads
    assert at == len(ids) - 1 and tiny_gpt2.tokenizer.decode(ids).endswith("Bo Tarn")
    assert tuple(tiny_gpt2.tokenizer(fact.text)["input_ids"][: at + 1]) == ids


def test_a_layer_that_adds_something_else_is_refused(tiny_gpt2):
    handle = tiny_gpt2.layer(2).register_forward_hook(
        lambda _, __, out: (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1
    )
    with pytest.raises(KetoolsError, match="layer 2 do not sum"):
        contributions(tiny_gpt2, text_sample(tiny_gpt2, SENTENCES))
    handle.remove()


def test_a_broken_model_is_named(tiny_gpt2):
    tiny_gpt2.weight(1)[0, 0] = float("nan")
    sample = text_sample(tiny_gpt2, SENTENCES)
    with pytest.raises(KetoolsError, match="layer 1"):
        contributions(tiny_gpt2, sample)
    with pytest.raises(KetoolsError, match="no layer is marked"):
        edited_share(contributions_of_nothing())


def contributions_of_nothing():
    return pd.DataFrame({"layer": [0], "kind": ["mlp"], "edited": [False], "share": [1.0], "projection": [1.0]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_to_its_own_rounding(dtype, tiny_tokenizer):
    model = made("llama", tiny_tokenizer)
    model.model.to(dtype)
    frame = contributions(model, text_sample(model, SENTENCES))
    assert frame["projection"].sum() == pytest.approx(1, abs=0.1)


def test_a_sample_knows_its_tokens():
    assert Sample(((1, 2, 3), (4, 5)), ((1, 2), (1,))).tokens == 3
