"""Loading and the anatomy of models."""

import copy
import json
import re
from contextlib import ExitStack

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    modeling_utils,
)

from ketools import KetoolsError, load
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.models.anatomy import refuse_config
from ketools.models.model import anatomy_of, fingerprint_of
from ketools.models.tokens import make_rows

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
    with pytest.raises(KetoolsError, match=r"no model named 'toi'.*\(toy, "):
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


def small(kind, **more):
    config = AutoConfig.for_model(kind, **(SMALL | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | more))
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_experts_of_every_kind_are_refused(kind, tiny_tokenizer):
    config = AutoConfig.for_model(kind)
    with pytest.raises(KetoolsError, match=r"mixture of experts \(\w+ = \d+\).*use a dense model"):
        refuse_config(config, kind)
    moe = small("mixtral", intermediate_size=16, num_key_value_heads=1, num_local_experts=2)
    moe.config.num_local_experts = 1  # a config that does not tell
    with pytest.raises(KetoolsError, match="is a list of experts"):
        load(moe, tokenizer=tiny_tokenizer)


def test_a_quantised_folder_is_refused_before_its_weights_are_read(tiny_llama, tmp_path):
    tiny_llama.model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for bits in ("load_in_8bit", "load_in_4bit"):
        config["quantization_config"] = {"quant_method": "bitsandbytes", bits: True}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(KetoolsError, match=r"is quantised.*bfloat16, float16 or float32"):
            load(tmp_path)  # there are no weights at all


def test_quantised_weights_are_refused_by_their_type(tiny_gpt2):
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        out = tiny_gpt2.mlp_out(1)
        out.weight = torch.nn.Parameter(torch.zeros(64, 32).to(dtype), requires_grad=False)
        with pytest.raises(KetoolsError, match=r"is quantised \(transformer.h.1.mlp.c_proj.weight is"):
            load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_recurrent_models_are_refused(kind, tiny_tokenizer):
    with pytest.raises(KetoolsError, match="recurrent state"):
        load(small(kind), tokenizer=tiny_tokenizer)


def test_layers_that_are_not_alike_are_refused(tiny_llama):
    tiny_llama.layer(2).mlp.down_proj = torch.nn.Linear(40, 32)
    with pytest.raises(
        KetoolsError, match=r"layer 2 has no MLP output matrix 'mlp.down_proj' like layer 0's \(32, 48\)"
    ):
        anatomy_of(tiny_llama.model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_broken_weights_are_named_by_layer(tiny_gpt2, tmp_path, bad):
    tiny_gpt2.model.transformer.h[3].attn.c_attn.weight[2, 1] = bad
    tiny_gpt2.model.save_pretrained(tmp_path)
    tiny_gpt2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(KetoolsError, match=r"layer 3, transformer.h.3.attn.c_attn.weight hold NaN or Inf"):
        load(tmp_path)


def test_offloaded_weights_are_refused(tiny_gpt2):
    with torch.device("meta"):
        empty = type(tiny_gpt2.model)(tiny_gpt2.model.config)
    with pytest.raises(KetoolsError, match="offloaded"):
        load(empty, tokenizer=tiny_gpt2.tokenizer)


def test_a_spread_model_stays_where_it_is(tiny_gpt2):
    tiny_gpt2.model.hf_device_map = {"transformer.wte": "cpu", "transformer.h": 0}
    with pytest.raises(KetoolsError, match="spread over several devices"):
        load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer, device="cpu")
    assert load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer).fingerprint == tiny_gpt2.fingerprint


def test_a_model_that_sees_pictures_too():
    text = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "intermediate_size": 40, "vocab_size": 400, "max_position_embeddings": 64, "sliding_window": 6}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    model = AutoModelForCausalLM.from_config(config)
    a = anatomy_of(model)
    assert "vision" not in a.layers and (a.n_layer, a.d_model, a.d_mlp, a.mlp_out) == (3, 16, 40, "mlp.down_proj")


def test_export_is_a_plain_folder(tiny_gpt2, tmp_path):
    tiny_gpt2.weight(1).mul_(2)
    again = AutoModelForCausalLM.from_pretrained(tiny_gpt2.export(tmp_path / "m"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(ids).logits, tiny_gpt2.model(ids).logits)


def test_layers_out_of_range(tiny_gpt2):
    for index in (-1, 4):
        with pytest.raises(KetoolsError, match="layers 0 to 3"):
            tiny_gpt2.layer(index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_cast_in_memory_is_the_one_read_in_that_type(tiny_llama, tmp_path, dtype):
    # The frequencies of rotary positions are in no file: reading leaves them as computed, in float32.
    tiny_llama.model.save_pretrained(tmp_path)
    tiny_llama.tokenizer.save_pretrained(tmp_path)
    read = load(tmp_path, dtype=dtype)
    cast = load(tiny_llama.model, tokenizer=tiny_llama.tokenizer, dtype=dtype)
    buffers = dict(cast.model.named_buffers())
    assert buffers and all(buffer.dtype == torch.float32 for buffer in buffers.values())
    for path, buffer in read.model.named_buffers():
        assert torch.equal(buffer, buffers[path])
    assert cast.dtype == dtype and cast.model.state_dict().keys() == read.model.state_dict().keys()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(cast.model(ids).logits, read.model(ids).logits)


def adapted(model, config, **more):
    return peft.get_peft_model(model.model, config(task_type="CAUSAL_LM", **more))


LORA = {"r": 2, "init_lora_weights": False}


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (peft.LoraConfig, LORA | {"target_modules": ["q_proj"]}),
        (peft.LoraConfig, LORA | {"target_modules": ["down_proj"], "use_dora": True}),
        (peft.LoraConfig, LORA | {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        (peft.AdaLoraConfig, {"init_r": 2, "target_r": 1, "total_step": 9, "target_modules": ["down_proj"]}),
        (peft.IA3Config, {"target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}),
        (peft.PrefixTuningConfig, {"num_virtual_tokens": 2}),
    ],
)
def test_an_adapter_that_is_not_merged_is_refused(tiny_llama, config, more):
    wrapped = adapted(tiny_llama, config, **more)
    inside = wrapped if config is peft.PrefixTuningConfig else wrapped.base_model.model
    for given in (wrapped, inside):
        with pytest.raises(KetoolsError, match=r"adapter that is not merged \(.*merge_and_unload"):
            load(given, tokenizer=tiny_llama.tokenizer)


def test_several_adapters_and_a_merged_one(tiny_llama):
    wrapped = adapted(tiny_llama, peft.LoraConfig, **LORA, target_modules=["down_proj"])
    wrapped.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    wrapped.merge_adapter()  # in the weights, the wrappers still around them
    with pytest.raises(KetoolsError, match="adapter"):
        load(wrapped.base_model.model, tokenizer=tiny_llama.tokenizer)
    merged = load(wrapped.merge_and_unload(), tokenizer=tiny_llama.tokenizer)
    assert merged.anatomy == tiny_llama.anatomy and merged.fingerprint != tiny_llama.fingerprint


def test_any_wrapper_of_a_matrix_is_refused(tiny_llama):
    class Scaled(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.base_layer = inside

    attention = tiny_llama.layer(1).self_attn
    attention.q_proj = Scaled(attention.q_proj)
    with pytest.raises(KetoolsError, match=r"model.layers.1.self_attn.q_proj is a .*Scaled"):
        load(tiny_llama.model, tokenizer=tiny_llama.tokenizer)
    attention.q_proj = attention.q_proj.base_layer
    for i in range(4):
        torch.nn.utils.parametrizations.weight_norm(tiny_llama.mlp_out(i))
    with pytest.raises(KetoolsError, match=r"'mlp.down_proj' in layer 0 is computed from parametrizations.weight"):
        load(tiny_llama.model, tokenizer=tiny_llama.tokenizer)


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_with_an_adapter_is_refused(tiny_llama, tmp_path, whole):
    if whole:
        saved(tiny_llama, tmp_path)
    adapted(tiny_llama, peft.LoraConfig, target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(KetoolsError, match=r"adapter that is not merged \(its folder holds an adapter_config.json"):
        load(tmp_path)


def test_the_model_behind_a_wrapper_with_the_same_weights_is_taken(tiny_llama):
    for wrapper in (torch.nn.DataParallel, torch.compile, lambda m: torch.nn.DataParallel(torch.compile(m))):
        assert load(wrapper(tiny_llama.model), tokenizer=tiny_llama.tokenizer).model is tiny_llama.model


@pytest.mark.parametrize("given", [None, 5, [], torch.nn.Linear(2, 2), LlamaForCausalLM])
def test_what_is_no_model_is_refused(given):
    with pytest.raises(KetoolsError, match="expected its name, its folder"):
        load(given)


def saved(model, path):
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def rewritten(path, change):
    """The tensors in the folder after `change` (of a dict of them)."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def set_config(path, **values):
    about = json.loads((path / "config.json").read_text(encoding="utf-8")) | values
    (path / "config.json").write_text(json.dumps(about), encoding="utf-8")


def test_weights_that_are_missing_are_named(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path)
    rewritten(tmp_path, lambda tensors: tensors.pop("model.layers.3.mlp.down_proj.weight"))
    with pytest.raises(KetoolsError, match=r"lack 1 of the tensors .*\(model.layers.3.mlp.down_proj.weight\)"):
        load(tmp_path)
    saved(tiny_llama, tmp_path / "deeper")
    set_config(tmp_path / "deeper", num_hidden_layers=5, layer_types=None)
    with pytest.raises(KetoolsError, match=r"model.layers.4.*and 4 more"):
        load(tmp_path / "deeper")


@pytest.mark.parametrize("outside", ["../other.safetensors", "/tmp/other.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tiny_llama, tmp_path, outside):
    saved(tiny_llama, tmp_path / "m")
    names = load_file(tmp_path / "m" / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, outside)}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(KetoolsError, match=re.escape(f"outside the model's folder ({outside})")):
        load(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_file_with_quantised_weights_is_refused(tiny_llama, tmp_path, dtype):
    saved(tiny_llama, tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    rewritten(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(KetoolsError, match=rf"quantised \({name}"):
        load(tmp_path)


def test_two_layers_with_one_matrix_are_refused(tiny_llama):
    tiny_llama.mlp_out(3).weight = tiny_llama.mlp_out(1).weight
    with pytest.raises(
        KetoolsError, match=r"layers.1.mlp.down_proj.weight and model.layers.3.mlp.down_proj.weight are one"
    ):
        load(tiny_llama.model, tokenizer=tiny_llama.tokenizer)


def test_weights_in_a_pickle_are_refused_with_the_way_to_convert_them(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path)
    torch.save(tiny_llama.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(KetoolsError, match=r"pickle \(pytorch_model.bin\).*save_pretrained\(NEW\)"):
        load(tmp_path)


def test_messages_of_loading_name_no_option_that_is_not_there(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path / "m")
    for file in (tmp_path / "m").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(KetoolsError, match="no tokenizer for") as error:
        load(tmp_path / "m")
    assert "tokenizer=" not in str(error.value) and f"save one in {tmp_path / 'm'}" in str(error.value)
    set_config(tmp_path / "m", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    (tmp_path / "m" / "own.py").write_text("raise SystemExit('run')", encoding="utf-8")
    with pytest.raises(KetoolsError, match="code in its own folder") as error:
        load(tmp_path / "m")
    assert "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize("named", ["owner/repo", "owner/repo@v1:forward", "flash_attention_2"])
def test_no_kernel_is_fetched_whatever_the_config_names(tiny_llama, tmp_path, monkeypatch, named):
    fetched = []
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *a, **_: fetched.append(a))
    monkeypatch.setattr(modeling_utils, "is_kernels_available", lambda: True)
    set_config(saved(tiny_llama, tmp_path), _attn_implementation=named)
    model = load(tmp_path)
    assert not fetched and model.config._attn_implementation == "sdpa"


def test_a_tokenizer_larger_than_the_embeddings(tiny_llama):
    rows = len(tiny_llama.embedding)
    tiny_llama.model.resize_token_embeddings(rows - 7)
    beyond = tiny_llama.tokenizer.convert_ids_to_tokens([*range(rows - 7, rows)])
    with pytest.raises(KetoolsError, match="another model's") as error:
        load(tiny_llama.model, tokenizer=tiny_llama.tokenizer)
    assert sum(repr(token)[1:-1] in str(error.value) or token in str(error.value) for token in beyond) == 3
    tiny_llama.model.resize_token_embeddings(rows)
    added = copy.deepcopy(tiny_llama.tokenizer)
    added.add_tokens(["<pad>"], special_tokens=True)
    with pytest.warns(UserWarning, match="<pad>"):
        model = load(tiny_llama.model, tokenizer=added)
    with pytest.raises(KetoolsError, match=r"'Ada <pad> sang' holds the token '<pad>'"):
        make_rows(model, ["Ada sang", "Ada <pad> sang"])
    with pytest.raises(KetoolsError, match="holds the token '<pad>'"):
        Statistics.compute(model, ["Ada <pad> sang"], [0], 10)


@pytest.mark.parametrize("state", ["training", "checkpointing", "inference", "float64", "meta"])
def test_a_state_in_which_no_pass_can_be_repeated_is_refused(tiny_llama, tiny_facts, state):
    network, before = tiny_llama.model, tiny_llama.weight(1).clone()
    with ExitStack() as stack:
        if state in ("training", "checkpointing"):
            network.train()
            stack.callback(network.eval)
        if state == "checkpointing":
            network.gradient_checkpointing_enable()
            stack.callback(network.gradient_checkpointing_disable)
        if state == "inference":
            stack.enter_context(torch.inference_mode())
        if state == "float64":
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, torch.float32)
        if state == "meta":
            torch.set_default_device("meta")
            stack.callback(torch.set_default_device, None)
        word = {"training": "training mode", "checkpointing": "training mode", "inference": "inference_mode"}.get(
            state, state
        )
        with pytest.raises(KetoolsError, match=word):
            Editor(tiny_llama, "ft", layers=[1]).apply(tiny_facts[:1])
    assert torch.equal(tiny_llama.weight(1), before) and not tiny_llama.edits
