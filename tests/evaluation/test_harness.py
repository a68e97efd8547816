"""lm-evaluation-harness on a model in memory, offline: the world's own tasks and a user's, against plain log-probabilities."""

import copy
import importlib.util
import json
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from ketools import Edit, KetoolsError
from ketools.evaluation import downstream as module
from ketools.evaluation.downstream import PRESETS, harness, load_tasks
from ketools.reference import score

needs = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (extra eval)")


def plainly(model, items):
    """Index of each item's most probable choice, its whole text counted."""

    def logprob(prompt, choice):
        tokens = len(model.tokenizer(choice, add_special_tokens=False)["input_ids"])
        return tokens * score(model, prompt, choice.strip())[0]

    return [
        int(np.argmax([logprob(prompt, choice) for choice in choices]))
        for prompt, choices in zip(items["prompt"], items["choices"], strict=True)
    ]


def states():
    """Of the random numbers that are everyone's."""
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), legacy, torch.get_rng_state().tolist()


@needs
def test_the_world_s_tasks_equal_a_plain_computation_on_the_edited_weights(tiny_gpt2, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    factors = {1: (torch.randn(32, 4, generator=draw), torch.randn(64, 4, generator=draw))}
    Edit(factors, {"fingerprint": tiny_gpt2.fingerprint}).apply_to(tiny_gpt2)
    weights = {name: value.clone() for name, value in tiny_gpt2.model.state_dict().items()}
    tokenizer = copy.deepcopy(tiny_gpt2.tokenizer)
    tokenizer.pad_token = None
    monkeypatch.setattr(tiny_gpt2, "tokenizer", tokenizer)
    before = states()
    frame = harness(tiny_gpt2, ["ketools_sst2", "ketools_cola"], limit=8, shots=0)
    assert tokenizer.pad_token is None
    assert states() == before
    assert all(torch.equal(weights[name], value) for name, value in tiny_gpt2.model.state_dict().items())
    found = frame.set_index(["task", "metric"])["value"]
    for task in ("sst2", "cola"):
        items = load_tasks()
        items = items[items["task"] == task][:8]
        said = plainly(tiny_gpt2, items)
        assert found[f"ketools_{task}", "acc"] == pytest.approx(np.mean(np.array(said) == items["answer"]))
        right, text = (
            [c[k] for c, k in zip(items["choices"], column, strict=True)] for column in (items["answer"], said)
        )
        assert found[f"ketools_{task}", "f1"] == pytest.approx(
            f1_score(right, text, average="weighted", zero_division=0.0)
        )
    assert set(frame["n"]) == {8} and set(frame["better"]) == {"higher"}


@needs
def test_the_preset_has_every_task_and_the_group(tiny_gpt2):
    frame = harness(tiny_gpt2, "world", limit=2)
    assert set(frame["task"]) == {f"ketools_{task}" for task in load_tasks()["task"].unique()} | {"ketools_world"}
    whole = frame[frame["task"] == "ketools_world"]
    parts = frame[frame["task"] != "ketools_world"]
    assert set(whole["n"]) == {2 * parts["task"].nunique()}
    assert whole.set_index("metric")["value"]["acc"] == pytest.approx(parts[parts["metric"] == "acc"]["value"].mean())


@needs
def test_a_task_of_one_s_own(tiny_gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = [{"text": "Ada Lorn was born in", "options": [" Vell", " harp"], "label": i % 2} for i in range(6)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        f"""
task: own_task
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "items.jsonl"}
  cache_dir: {tmp_path / "cache"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
""",
        encoding="utf-8",
    )
    frame = harness(tiny_gpt2, "own_task", include=tmp_path)
    assert frame.set_index("metric")["value"]["acc"] == 0.5
    assert set(frame["n"]) == {6}


@needs
def test_names_are_looked_up_and_mistakes_answered(tiny_gpt2, tmp_path):
    for preset in PRESETS.values():
        module._found(preset.tasks, None)
    with pytest.raises(KetoolsError, match="no task named 'ketools_sst3'; did you mean .*ketools_sst2"):
        harness(tiny_gpt2, "ketools_sst3")
    with pytest.raises(KetoolsError, match="no tasks given"):
        harness(tiny_gpt2, [])
    with pytest.raises(KetoolsError, match="limit=0"):
        harness(tiny_gpt2, limit=0)
    with pytest.raises(KetoolsError, match="no such folder"):
        harness(tiny_gpt2, include=tmp_path / "none")


@needs
def test_data_that_cannot_be_fetched_is_one_clear_error(tiny_gpt2, monkeypatch):
    import lm_eval

    def offline(*_, **__):
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr(lm_eval, "simple_evaluate", offline, raising=False)
    with pytest.raises(KetoolsError, match="ketools_sst2.*cannot be fetched.*hub cannot be reached.*'world'"):
        harness(tiny_gpt2, "ketools_sst2")


def test_without_the_package_the_extra_is_named(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(KetoolsError, match=r"\.\[eval\]"):
        harness(tiny_gpt2)
