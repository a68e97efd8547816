"""Edits outside ketools: a plain folder of transformers, and an adapter that peft loads."""

import copy
import json
import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ketools import KetoolsError, load
from ketools.editing import export as module
from ketools.editing.edit import Edit
from ketools.editing.export import as_lora, export
from ketools.editing.methods import ALPHAEDIT, ENCORE
from ketools.models.weights import edited

TEXT = "Ada Lorn was born in Port Sall. The mother tongue of Bo Tarn is"


def made(model, ranks, **record):
    g = torch.Generator().manual_seed(3)
    d = model.anatomy
    draw = lambda *shape: torch.randn(*shape, generator=g) / 5  # noqa: E731
    pairs = {i: (draw(d.d_model, r), draw(d.d_mlp, r)) for i, r in ranks.items()}
    return Edit(pairs, {"fingerprint": model.fingerprint, "facts": ["1", "7"], "method": "encore"} | record)


@torch.no_grad()
def logits(network, tokenizer):
    return network(**tokenizer(TEXT, return_tensors="pt")).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_model_is_the_same_model(tiny_model, tmp_path, dtype):
    # By way of a folder: a model cast in memory rounds the frequencies of its rotary positions too, a loaded one does not.
    model = load(export(tiny_model, tmp_path / "base"), dtype=dtype)
    model.model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False, bos_token_id=0, eos_token_id=0)
    plain = logits(model.model, model.tokenizer)
    for edit in (made(model, {0: 2, 2: 2}), made(model, {1: 1}, method="memit", on_top_of=1)):
        edit.apply_to(model)
    path = export(model, tmp_path / "deep" / "out")
    network = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(path)
    want = logits(model.model, model.tokenizer)
    assert network.dtype == dtype and torch.equal(logits(network, tokenizer), want) and not torch.equal(want, plain)
    assert network.generation_config.max_new_tokens == 7
    assert tokenizer(TEXT)["input_ids"] == model.tokenizer(TEXT)["input_ids"]
    about = json.loads((path / "ketools.json").read_text(encoding="utf-8"))
    assert about["base"] == {"name": model.name, "fingerprint": model.fingerprint}
    assert [(e["method"], e["facts"], e["layers"]) for e in about["edits"]] == [
        ("encore", ["1", "7"], [0, 2]),
        ("memit", ["1", "7"], [1]),
    ]
    assert set(about["edits"][0]["rounding"]) == {"0", "2"} and about["versions"]["ketools"]
    assert [p.name for p in path.parent.iterdir()] == ["out"]
    again = load(path)
    assert again.edits == [] and torch.equal(again.weight(0), model.weight(0)) and again.dtype == dtype


def test_an_exported_model_keeps_the_settings_of_its_base(tiny_gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_gpt2, "name", "openai-community/gpt2-xl")  # a name with published settings
    first = load(export(tiny_gpt2, tmp_path / "first"))
    again = load(export(first, tmp_path / "again"))
    for model in (first, again):
        assert model.known_as == "openai-community/gpt2-xl" and model.name != model.known_as
        assert (ALPHAEDIT.settings(model, layers=[1]).null_threshold, ENCORE.settings(model, layers=[1]).patience) == (
            0.02,
            3,
        )
    assert tiny_gpt2.known_as == tiny_gpt2.name
    (tmp_path / "again" / "ketools.json").write_text("{", encoding="utf-8")
    with pytest.raises(KetoolsError, match=r"again.ketools\.json: no record of an export"):
        load(tmp_path / "again")


def test_nothing_is_overwritten_and_nothing_is_left_half(tiny_gpt2, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for write in (lambda path: export(tiny_gpt2, path), lambda path: as_lora(made(tiny_gpt2, {0: 1}), tiny_gpt2, path)):
        with pytest.raises(KetoolsError, match="full is not empty"):
            write(tmp_path / "full")
        with pytest.raises(KetoolsError, match="is a file"):
            write(tmp_path / "file")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", interrupted)
    monkeypatch.setattr(module, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_gpt2, tmp_path / "new")
    with pytest.raises(KeyboardInterrupt):
        as_lora(made(tiny_gpt2, {0: 1}), tiny_gpt2, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    monkeypatch.undo()
    assert (export(tiny_gpt2, tmp_path / "empty") / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "base"),
    [("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("o/gpt2", "o/gpt2"), ("pocket", None), ("./here", None)],
)
def test_the_card_names_a_base_model_of_the_hub(tiny_gpt2, tmp_path, monkeypatch, name, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tiny_gpt2, "base_name", name)
    _, front, _ = (export(tiny_gpt2, tmp_path / "new") / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front).get("base_model") == base


def test_an_adapter_gives_the_same_logits(tiny_model, tmp_path):
    base, ranks = copy.deepcopy(tiny_model.model), {0: 2, 1: 5, 3: 1}
    edit = made(tiny_model, ranks)
    path = edit.as_lora(tiny_model, tmp_path / "adapter")
    assert sorted(p.name for p in path.iterdir() if p.name != "README.md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    assert sorted(config["rank_pattern"].values()) == [1, 2, 5]
    assert config["fan_in_fan_out"] is tiny_model.anatomy.transposed
    plain = logits(tiny_model.model, tiny_model.tokenizer)
    assert tiny_model.edits == []
    with edited(tiny_model, edit):
        want = logits(tiny_model.model, tiny_model.tokenizer)
    adapted = PeftModel.from_pretrained(base, path)
    got = logits(adapted, tiny_model.tokenizer)
    assert (want - plain).abs().max() > 0.1
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload()
    for i, rank in ranks.items():
        weight = merged.get_submodule(module.module_name(tiny_model, i)).weight
        weight = weight.T if tiny_model.anatomy.transposed else weight
        assert torch.allclose(weight, (tiny_model.weight(i).double() + edit.delta(i)).float(), atol=1e-6), rank


def test_an_adapter_of_more_than_ten_layers_and_of_a_dense_update(tiny_tokenizer, trained_llama, tmp_path):
    config = copy.deepcopy(trained_llama.config)
    config.num_hidden_layers, config.layer_types = 13, None
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    model = load(network, tokenizer=tiny_tokenizer)
    d, edit = model.anatomy, made(model, {1: 2, 11: 4, 12: 3})
    edit.layers[2] = (torch.eye(d.d_model), torch.randn(d.d_mlp, d.d_model) / 20)
    path = as_lora(edit, model, tmp_path / "adapter")
    with edited(model, edit):
        want = logits(network, tiny_tokenizer)
    got = logits(PeftModel.from_pretrained(network, path), tiny_tokenizer)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_what_cannot_become_an_adapter(tiny_gpt2, tiny_llama, tmp_path, monkeypatch):
    with pytest.raises(KetoolsError, match="another model"):
        as_lora(made(tiny_gpt2, {0: 1}), tiny_llama, tmp_path / "a")
    with pytest.raises(KetoolsError, match="changes no layer"):
        as_lora(Edit({}), tiny_gpt2, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert as_lora(made(tiny_gpt2, {0: 1}), tiny_gpt2, tmp_path / "without peft").is_dir()


def test_a_generation_config_that_transformers_refuses_is_named(tiny_gpt2, tmp_path):
    tiny_gpt2.model.generation_config = GenerationConfig()
    tiny_gpt2.model.generation_config.temperature = 0.3
    tiny_gpt2.model.generation_config.do_sample = False
    with pytest.raises(KetoolsError, match="could not be exported"):
        export(tiny_gpt2, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)


def test_an_export_that_does_not_read_back_to_the_edited_weights_is_refused(tiny_llama, tmp_path, monkeypatch):
    unedited = copy.deepcopy(tiny_llama.model)
    made(tiny_llama, {1: 2}).apply_to(tiny_llama)
    monkeypatch.setattr(
        tiny_llama.model, "save_pretrained", unedited.save_pretrained
    )  # as one that writes an adapter only
    with pytest.raises(KetoolsError, match=r"does not hold model.layers.1.mlp.down_proj.weight as it is in memory"):
        export(tiny_llama, tmp_path / "out")
    assert not list(tmp_path.iterdir())
