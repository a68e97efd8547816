"""The stored model is what the course needs of it: by what `data/make/check.py` measured, and by its size."""

import json

from ketools.io import data_root

LEAST = {
    "trained templates": 0.98,
    "held-out templates": 0.95,
    "behind prefixes of 10 tokens": 0.95,
    "greedy generation": 0.95,
}
TASKS = ("sst2", "mrpc", "nli", "rte", "cola", "mmlu")


def test_the_stored_model_reaches_every_bound():
    folder = data_root() / "models" / "pocket"
    measures = json.loads((folder / "measures.json").read_text(encoding="utf-8"))
    bounds = LEAST | {f"task {task}": 0.90 for task in TASKS}
    assert set(measures["values"]) == set(bounds)
    assert {what: value for what, value in measures["values"].items() if value < bounds[what]} == {}
    assert measures["localised"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["intermediate_size"] / config["hidden_size"] > 8
    assert (folder / "model.safetensors").stat().st_size <= 30e6
