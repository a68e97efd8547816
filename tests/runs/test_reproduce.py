"""The paper's experiment in miniature: random models of its architectures with its layers, through the command itself."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ketools import cli
from ketools.editing.editor import Editor
from ketools.runs.reproduce import asked, beside, published
from ketools.runs.store import RunRecord
from tests.cli.test_cli_whole import record
from tests.runs.fakes import fake_record
from tests.small_world import small_facts


def gpt2(vocabulary):
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_positions=160, n_embd=16, n_layer=20, n_head=2, n_inner=24)
    )


def llama(vocabulary):
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=160, hidden_size=16, intermediate_size=24,
                         num_hidden_layers=10, num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("build", "name", "settings", "paper"),
    [
        (gpt2, "gpt2-xl", {"layers": [13, 14, 15, 16, 17], "lambda_p": 20000, "lambda_n": 10, "patience": 3, "steps": 20}, 93.21),
        (llama, "Meta-Llama-3-8B", {"layers": [4, 5, 6, 7, 8], "lambda_p": 15000, "lambda_n": 20, "patience": 1, "steps": 25}, 88.77),
    ],
    ids=["gpt2", "llama"],
)  # fmt: skip
def test_the_papers_experiment_in_miniature(build, name, settings, paper, tiny_tokenizer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    build(len(tiny_tokenizer)).save_pretrained(name)
    tiny_tokenizer.save_pretrained(name)
    facts = [record(fact) for fact in small_facts()]
    facts[0]["generation_prompts"] = ["The city is"]  # the others' subjects are continued
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    (tmp_path / "text.txt").write_text("\n".join(f"{fact.text} {fact.target_true}." for fact in small_facts()))
    items = [
        {"task": f"t{i % 2}", "prompt": fact.text, "choices": [" Vell", " Dunmark"], "answer": i % 2}
        for i, fact in enumerate(small_facts())
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = f"reproduce encore --model {name} --edits 6 --facts facts.json --tasks items.jsonl --text text.txt --quiet --yes"
    ran = CliRunner().invoke(cli.app, words.split())
    assert ran.exit_code == 0, ran.output
    out = tmp_path / "build" / "reproduce" / f"encore-{name}"
    run = RunRecord.load(out)
    asked_for = run.provenance["settings"]
    assert {key: asked_for["hyper"][key] for key in settings} == settings
    assert (asked_for["batch"], asked_for["seed"], asked_for["edits"], asked_for["sizes"]["openings"]) == (
        100,
        37,
        6,
        100,
    )
    assert asked_for["method"]["name"] == "encore" and (out / "statistics.safetensors").is_file()
    config = asked("encore", name, facts="facts.json", edits=6, out=str(out))
    table = beside(run, config).set_index("measure")
    assert table.index.tolist() == ["ES", "PS", "NS", "S", "GE", "f1_t0", "f1_t1"]
    assert table["here"].notna().all() and table["here"]["GE"] > 0
    assert table["paper"]["ES"] == paper and math.isnan(table["paper"]["f1_t0"])
    assert table["difference"]["ES"] == pytest.approx(table["here"]["ES"] - paper)
    assert table["here"]["ES"] == pytest.approx(100 * run.checkpoints["ES"].iloc[-1])
    monkeypatch.setattr(Editor, "apply", None)  # it is complete: the same command only reads it
    again = CliRunner().invoke(cli.app, words.split())
    assert again.exit_code == 0 and again.output.splitlines()[-8:] == ran.output.splitlines()[-8:]


def test_zsre_is_compared_by_accuracy():
    run = fake_record("encore")
    found = {"efficacy_accuracy": 0.9, "paraphrase_accuracy": 0.8, "locality_accuracy": 0.5}
    run = replace(run, checkpoints=run.checkpoints.assign(**found))
    table = beside(run, asked("encore", "gpt2-xl", facts="zsre", out="o")).set_index("measure")
    assert table["here"][["ES", "PS", "NS"]].tolist() == pytest.approx([90.0, 80.0, 50.0])
    assert table["paper"][["ES", "PS", "NS"]].tolist() == published()["zsre"]["GPT2-XL"]["ENCORE"]


def test_what_is_asked_for_is_the_papers():
    config = asked("encore", "llama-3-8b", out="o")
    assert (config.model, config.edits, config.batch, config.seed) == ("meta-llama/Meta-Llama-3-8B", 10_000, 100, 37)
    assert (config.checkpoint_every, config.tasks, config.settings) == (1000, "paper", {})
    assert asked("encore", "gpt2-xl", facts="zsre").settings == {"lambda_n": 40.0, "patience": 4}
    assert asked("encore", "/data/gpt2-xl", facts="zsre", settings={"patience": 1}).settings == {
        "lambda_n": 40.0,
        "patience": 1,
    }
    assert asked("encore", "smollm2").edits == 2400
    assert {entry["rows"] for entry in published()["models"].values() if "rows" in entry} == set(
        published()["zsre"]
    ) - {"columns"}
