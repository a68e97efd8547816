"""What can be asked of a run that was started from Python: its status, and the model that its numbers are of."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ketools import KetoolsError
from ketools.editing.editor import finished
from ketools.editing.postprocess import Prune
from ketools.runs.config import composed
from ketools.runs.resume import config_of, model_at, model_of
from ketools.runs.store import Store, status
from tests.runs.test_lifelong import undo_all


def test_the_exported_model_is_the_one_that_was_measured(run, tiny_gpt2, tmp_path):
    run(method=composed("memit+prune"))
    with finished(tiny_gpt2, Prune(), (1, 2)):
        measured = {layer: tiny_gpt2.mlp_out(layer).weight.detach().clone() for layer in (1, 2)}
    undo_all(tiny_gpt2)
    with model_at(tmp_path / "run", 8, tiny_gpt2):
        tiny_gpt2.export(tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for layer, weight in measured.items():
        assert torch.equal(exported.transformer.h[layer].mlp.c_proj.weight, weight)


def test_another_model_is_refused(run, tiny_gpt2, tiny_llama, tmp_path):
    run()
    with pytest.raises(KetoolsError, match="is another one"), model_at(tmp_path / "run", 3, tiny_llama):
        pass


def test_status_of_a_run_and_of_one_at_work(run, tmp_path, monkeypatch):
    run()
    now = status(tmp_path / "run")
    assert (now["state"], now["edits"], now["edits_asked"], now["batches"]) == ("complete", 8, 8, 3)
    assert sum(now["bytes"].values()) == sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert now["seconds_left"] is None and now["checkpoint"]["edits"] == 8
    # Without its last batch it is stopped, or running while a process holds it.
    for folder in ("batches", "checkpoints"):
        (tmp_path / "run" / folder / "00003.json").unlink()
    now = status(tmp_path / "run")
    assert now["state"] == "stopped" and now["edits"] == 6
    assert now["seconds_left"] == pytest.approx(2 * now["seconds_per_edit"])
    with Store(tmp_path / "run").locked():
        assert status(tmp_path / "run")["state"] == "running"


def test_a_run_without_a_config_says_what_goes_on_with_it(run, tmp_path):
    run(edits=3)
    with pytest.raises(KetoolsError, match="was not started by `ketools run`"):
        config_of(tmp_path / "run")
    assert model_of(tmp_path / "run")["device"] is None
