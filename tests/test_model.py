"""Loading and the anatomy of models."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ketools import KetoolsError, load
from ketools.model import anatomy_of, fingerprint_of

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def test_anatomy_of_gpt2(tiny_gpt2):
    a = tiny_gpt2.anatomy
    assert (a.layers, a.mlp, a.mlp_out, a.final_norm, a.head) == (
        "transformer.h",
        "mlp",
        "mlp.c_proj",
        "transformer.ln_f",
        "lm_head",
    )
    assert (a.n_layer, a.d_model, a.d_mlp, a.tied, a.transposed) == (4, 32, 64, True, True)


def test_anatomy_of_llama(tiny_llama):
    a = tiny_llama.anatomy
    assert (a.layers, a.mlp, a.mlp_out, a.final_norm, a.head) == (
        "model.layers",
        "mlp",
        "mlp.down_proj",
        "model.norm",
        "lm_head",
    )
    assert (a.n_layer, a.d_model, a.d_mlp, a.tied, a.transposed) == (4, 32, 48, False, False)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("gpt_neox", {"intermediate_size": 40}),
        ("mistral", {"intermediate_size": 40, "num_key_value_heads": 1}),
        ("qwen2", {"intermediate_size": 40, "num_key_value_heads": 1}),
        ("gemma2", {"intermediate_size": 40, "num_key_value_heads": 1, "head_dim": 8}),
        ("phi3", {"intermediate_size": 40, "pad_token_id": 0}),
        ("bloom", {"n_layer": 3, "n_head": 2}),
        ("opt", {"ffn_dim": 40, "word_embed_proj_dim": 16}),
        ("falcon", {}),
        ("gptj", {"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4}),
    ],
)
def test_other_architectures_by_structure(kind, extra):
    from transformers import AutoConfig

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | extra)))
    a = anatomy_of(model)
    assert a.n_layer == 3 and a.d_model == 16 and a.d_mlp in (40, 64)
    out = model.get_submodule(a.layers)[0].get_submodule(a.mlp_out)
    assert sorted(out.weight.shape) == sorted((a.d_model, a.d_mlp))
    assert not list(model.get_submodule(a.final_norm).children())


def test_weight_is_a_view_in_one_orientation(tiny_model):
    w = tiny_model.weight(2)
    assert w.shape == (tiny_model.anatomy.d_model, tiny_model.anatomy.d_mlp)
    k = torch.randn(tiny_model.anatomy.d_mlp)
    out = tiny_model.mlp_out(2)
    assert torch.allclose(out(k) - (out.bias if getattr(out, "bias", None) is not None else 0), w @ k, atol=1e-5)
    w.zero_()
    assert not tiny_model.mlp_out(2).weight.any()


def test_parameters_need_no_gradient(tiny_model):
    assert not any(p.requires_grad for p in tiny_model.model.parameters()) and not tiny_model.model.training


def test_fingerprint_sees_every_weight_and_setting(tiny_gpt2):
    first = fingerprint_of(tiny_gpt2.model)
    assert first == tiny_gpt2.fingerprint
    tiny_gpt2.weight(3)[5, 7] += 1e-3
    assert fingerprint_of(tiny_gpt2.model) != first
    tiny_gpt2.weight(3)[5, 7] -= 1e-3
    tiny_gpt2.model.config.layer_norm_epsilon = 1e-4
    assert fingerprint_of(tiny_gpt2.model) != first


def test_saved_and_loaded_from_a_folder(tiny_llama, tmp_path):
    tiny_llama.model.save_pretrained(tmp_path / "m")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.fingerprint == tiny_llama.fingerprint and again.path == tmp_path / "m"
    half = load(str(tmp_path / "m"), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_pocket_models_load_as_float32(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    tiny_llama.model.to(torch.bfloat16).save_pretrained(tmp_path / "models" / "toy")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "models" / "toy")
    toy = load("toy")
    assert toy.dtype == torch.float32 and toy.name == "toy"
    (tmp_path / "toy").mkdir()  # a folder of the same name where one works
    monkeypatch.chdir(tmp_path)
    assert load("toy").fingerprint == toy.fingerprint
    with pytest.raises(KetoolsError, match="no model named 'toi'.*there are: toy"):
        load("toi")
    with pytest.raises(KetoolsError, match="no config.json"):
        load(tmp_path)


def test_refused_models(tiny_tokenizer):
    wrapped = {"tokenizer": tiny_tokenizer}
    moe = MixtralForCausalLM(MixtralConfig(**SMALL, intermediate_size=16, num_key_value_heads=1, num_local_experts=2))
    with pytest.raises(KetoolsError, match="mixture of experts"):
        load(moe, **wrapped)
    quantised = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(KetoolsError, match="quantised"):
        load(quantised, **wrapped)
    bare = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=16))
    with pytest.raises(KetoolsError, match="tokenizer"):
        load(bare)
    for layer in bare.model.layers:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(KetoolsError, match="no matrix of a layer's MLP"):
        load(bare, **wrapped)


def test_layers_out_of_range(tiny_gpt2):
    for index in (-1, 4):
        with pytest.raises(KetoolsError, match="layers 0 to 3"):
            tiny_gpt2.layer(index)
