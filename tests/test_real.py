"""A real language model from end to end, in minutes: `make test-real`. Nothing here runs in `make test`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ketools as ke
from ketools.editing.methods import ALL
from ketools.probing.recall import complete

pytestmark = pytest.mark.skipif(not os.environ.get("KETOOLS_REAL"), reason="needs the package index: make test-real")
FACTS = (
    ke.Fact("0", "city", "{} is located in the city of", "The Eiffel Tower", "Paris", "Rome"),
    ke.Fact("1", "language", "The mother tongue of {} is", "Danielle Darrieux", "French", "English"),
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Fetched and converted here, unless KETOOLS_MODELS names a folder that has it."""
    with pytest.MonkeyPatch.context() as patch:
        if "KETOOLS_MODELS" not in os.environ:
            patch.setenv("KETOOLS_MODELS", str(tmp_path_factory.mktemp("models")))
        yield ke.load("smollm2")


def test_it_is_the_model_and_knows_things(model):
    a = model.anatomy
    assert (a.n_layer, a.d_model, a.d_mlp) == (30, 576, 1536)
    scores = ke.evaluate(model, FACTS)
    assert (scores["p_true"] > scores["p_new"]).all()
    assert complete(model, FACTS[0].text, 2).strip().startswith("Paris")


@pytest.mark.parametrize("name", [method.name for method in ALL])
def test_every_method_edits_and_is_undone_to_the_bit(model, name):
    bits = {i: model.weight(i).clone() for i in range(model.anatomy.n_layer)}
    before = ke.evaluate(model, FACTS)["p_new"]
    editor = ke.Editor(model, name)
    editor.apply(FACTS)
    after = ke.evaluate(model, FACTS)["p_new"]
    assert any(not torch.equal(model.weight(i), old) for i, old in bits.items())
    least = 1 if name == "ft-l" else 2  # FT-L keeps every weight within 5e-4 of what it was
    assert (after > least * before).all(), (list(before), list(after))
    editor.undo()
    assert all(torch.equal(model.weight(i), old) for i, old in bits.items())


def test_plain_transformers_reads_an_export_and_says_the_new_object(model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    editor = ke.Editor(model, "encore")
    editor.apply(FACTS)
    try:
        model.export(tmp_path / "edited")
        said = {fact.id: complete(model, fact.text, 3) for fact in FACTS}
    finally:
        editor.undo()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "edited")
    for fact in FACTS:
        ids = tokenizer(fact.text, return_tensors="pt")
        out = plain.generate(**ids, max_new_tokens=3, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        assert text.strip().startswith(fact.target_new) and text.strip() == said[fact.id].strip()


def test_an_edit_made_in_the_chat_template_is_said_in_it(model):
    fact = ke.Fact("0", "city", "In which city is {}? One word.", "the Eiffel Tower", "Paris", "Rome")
    asked = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": fact.text}], add_generation_prompt=True, tokenize=False
    )
    editor = ke.Editor(model, "encore", chat=True)
    editor.apply([fact])
    try:
        ids = model.tokenizer(asked, return_tensors="pt", add_special_tokens=False)
        out = model.model.generate(**ids, max_new_tokens=2, do_sample=False)
        assert model.tokenizer.decode(out[0, ids["input_ids"].shape[1] :]).strip().startswith("Rome")
        assert complete(model, fact.text, 2, chat=True).strip().startswith("Rome")
    finally:
        editor.undo()


def test_a_notebook_runs_on_it(model, tmp_path):
    """Its claims are about pocket and may not hold; that every cell runs is what counts."""
    table = tmp_path / "real.toml"
    table.write_text('[model]\nname = "smollm2"\nfacts = "real"\ndevice = "cpu"\n\n[sizes.00]\n')
    script = (
        "import nbformat, sys; from nbclient import NotebookClient; "
        "NotebookClient(nbformat.read(sys.argv[1], 4), timeout=200).execute()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "notebooks" / "00_first_edit.ipynb")],
        env=os.environ | {"KETOOLS_MODE": "full", "KETOOLS_FULL": str(table)}, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
