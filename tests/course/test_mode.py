"""The switch: quick is pocket, full is what full.toml names; a stand-in shows that both ways work."""

import json
import tomllib
from importlib.resources import files

import pytest
import torch

import ketools as ke
from ketools.course import mode, setup
from ketools.editing.covariance import Statistics

FULL = """
[model]
name = "model"
facts = "facts.jsonl"
statistics = "covariance.safetensors"
device = "cpu"

[sizes.03]
facts = 4
"""


@pytest.fixture
def stand_in(tmp_path, tiny_gpt2, tiny_facts, monkeypatch):
    """A full.toml that names a tiny model, its statistics and a facts file beside it; KETOOLS_MODE=full."""
    tiny_gpt2.model.save_pretrained(tmp_path / "model")
    tiny_gpt2.tokenizer.save_pretrained(tmp_path / "model")
    loaded = ke.load(tmp_path / "model")
    Statistics.compute(loaded, ["I sang in Vell. Therefore you know it."] * 40, [0, 1], 200).save(
        tmp_path / "covariance.safetensors"
    )
    rows = [
        {"subject": f.subject, "prompt": f.prompt, "target_new": f.target_new, "ground_truth": f.target_true}
        for f in tiny_facts
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "full.toml").write_text(FULL, encoding="utf-8")
    monkeypatch.setenv("KETOOLS_MODE", "full")
    monkeypatch.setenv("KETOOLS_FULL", str(tmp_path / "full.toml"))
    return tmp_path


def test_full_takes_model_facts_statistics_and_sizes_from_the_file(stand_in):
    lab = setup("03", facts=40, seed=7)
    assert (lab.mode, lab.device, lab.sizes.facts, lab.seed, len(lab.facts)) == ("full", "cpu", 4, 7, 7)
    assert set(lab.statistics.layers) == {0, 1} and "Mode full" in str(lab) and "seed 7" in str(lab)
    assert lab.context(n="4 facts").startswith("Mode full, model ") and lab.context(n="4 facts").endswith("seed 7.")


def test_full_takes_statistics_from_the_models_folder_or_none(stand_in):
    bare = FULL.replace('statistics = "covariance.safetensors"\n', "")
    (stand_in / "full.toml").write_text(bare, encoding="utf-8")
    assert setup("03", facts=40).statistics is None
    (stand_in / "covariance.safetensors").rename(stand_in / "model" / "covariance.safetensors")
    assert set(setup("03", facts=40).statistics.layers) == {0, 1}


def test_an_edit_works_on_the_stand_in_and_clean_tells_the_truth(stand_in):
    lab = setup("03", facts=40)
    editor = lab.editor("encore", layers=[0], prefixes=[], steps=2)  # lambda_n makes up for few tokens
    assert lab.clean() == 1.0
    editor.apply(lab.facts[:2])
    assert lab.clean() == 0.0
    editor.undo()
    assert lab.clean() == 1.0
    with torch.no_grad():
        lab.model.weight(1)[0, 0] += 1
    assert lab.clean() == 0.0, "no edit is listed, and yet a weight has changed"


@pytest.mark.parametrize(("table", "given"), [("facts = 4\nsteps = 2", {"facts": 40}), ("", {"facts": 40})])
def test_a_size_on_one_side_only_is_refused(stand_in, table, given):
    (stand_in / "full.toml").write_text(FULL.replace("facts = 4", table), encoding="utf-8")
    with pytest.raises(ke.KetoolsError, match="name it in both"):
        setup("03", **given)


def test_what_is_wrong_with_the_file_is_said(stand_in, monkeypatch):
    (stand_in / "full.toml").write_text('[model]\nname = "model"', encoding="utf-8")
    with pytest.raises(ke.KetoolsError, match="lacks facts"):
        setup("03", facts=40)
    (stand_in / "full.toml").write_text(FULL + "x", encoding="utf-8")
    with pytest.raises(ke.KetoolsError, match="expected a file like"):
        setup("03", facts=40)
    monkeypatch.setenv("KETOOLS_FULL", str(stand_in / "none.toml"))
    with pytest.raises(ke.KetoolsError, match="there is no such file; expected a file like"):
        setup("03", facts=40)
    monkeypatch.setenv("KETOOLS_MODE", "slow")
    with pytest.raises(ke.KetoolsError, match="quick"):
        setup("03", facts=40)


def test_known_are_those_that_the_model_says_and_fewer_are_the_beginning(stand_in):
    lab = setup("03", facts=40)
    right = mode.answers(lab.model, [f.text for f in lab.facts], [f.target_true for f in lab.facts])["right"]
    there = int(right.sum())
    if there:
        assert {f.id for f in lab.known(there)} <= {f.id for f, hit in zip(lab.facts, right) if hit}
        assert lab.known(1)[0] == lab.known(there)[0]
    with pytest.raises(ke.KetoolsError, match=f"answers {there} of {len(lab.facts)}"):
        lab.known(there + 1)
    with pytest.raises(ke.KetoolsError, match="no facts of relation 'mood'"):
        lab.known(1, relation="mood")


def test_quick_is_pocket_on_the_cpu(monkeypatch):
    monkeypatch.delenv("KETOOLS_MODE", raising=False)
    lab = setup("03", facts=5)
    assert (lab.mode, lab.model.name, lab.device, lab.sizes.facts) == ("quick", "pocket", "cpu", 5)
    assert len(lab.known(5)) == 5 and lab.known(2)[0] == lab.known(5)[0]
    editors = [lab.editor("memit"), lab.editor("alphaedit")]
    assert all(editor.statistics is lab.statistics for editor in editors), "each editor unpacks C again"


def test_the_file_that_comes_along_is_whole():
    table = tomllib.loads(files("ketools.course").joinpath("full.toml").read_text(encoding="utf-8"))
    assert {"name", "facts"} <= set(table["model"])
    assert all(isinstance(size, int) for sizes in table["sizes"].values() for size in sizes.values())
