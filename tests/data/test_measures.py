"""The stored models are what the course needs of them: by what `data/make/check.py` measured, and by their size."""

import json

import pytest

from ketools.io import data_root

LEAST = {
    "trained templates": 0.98,
    "held-out templates": 0.95,
    "behind prefixes of 10 tokens": 0.95,
    "greedy generation": 0.95,
}
TASKS = ("sst2", "mrpc", "nli", "rte", "cola", "mmlu")


@pytest.mark.parametrize("name", ["pocket", "pocket-llama", "pocket-llama-v2"])
def test_a_stored_model_reaches_every_bound(name):
    folder = data_root() / "models" / name
    measures = json.loads((folder / "measures.json").read_text(encoding="utf-8"))
    bounds = LEAST | {f"task {task}": 0.90 for task in TASKS}
    assert set(measures["values"]) == set(bounds)
    assert {what: value for what, value in measures["values"].items() if value < bounds[what]} == {}
    assert measures["localised"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width, inner = (
        config.get(long) or config[short]
        for long, short in (("hidden_size", "n_embd"), ("intermediate_size", "n_inner"))
    )
    assert 8 <= inner / width <= 16
    assert (folder / "model.safetensors").stat().st_size <= 30e6
