"""KETOOLS_MODE turns every notebook: quick on pocket (nbval runs that), full on a stand-in with other layers, facts and sizes.

Full needs a large model and CounterFact. The stand-in is pocket by another name, and so with other settings, with a few facts in CounterFact's form: no other
fact of a subject, no two-step questions, relations by other names. What the notebooks take for granted about the quick
mode fails here. Its claims need not hold, and their lines say whether they do.
"""

import json
import os
import re
import shutil
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import ketools as ke
from ketools.course import build as cells
from ketools.course import setup
from ketools.editing.covariance import Statistics, corpus

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = cells.notebooks(ROOT / "notebooks")
FACTS = 60
SIZE = 4  # of everything that full.toml names, at most; of a batch half of it, since lessons compare batches


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """A full.toml that names the stand-in, its facts beside it."""
    folder = tmp_path_factory.mktemp("full")
    rows = [json.dumps(_counterfact(i, fact)) for i, fact in enumerate(ke.facts("world").sample(FACTS, seed=5))]
    (folder / "facts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    sizes = tomllib.loads(files("ketools.course").joinpath("full.toml").read_text(encoding="utf-8"))["sizes"]
    model = shutil.copytree(ROOT / "data" / "models" / "pocket", folder / "stand-in")
    (model / "covariance.safetensors").unlink()  # of the layers that pocket's own settings edit
    Statistics.compute(ke.load(model), corpus("world"), range(5), 10_000).save(folder / "C.safetensors")
    text = f'[model]\nname = "{model}"\nstatistics = "C.safetensors"\nfacts = "facts.jsonl"\ndtype = "float32"\ndevice = "cpu"\n'
    for number, named in sizes.items():
        small = {name: min(size, SIZE // 2 if name == "batch" else SIZE) for name, size in named.items()}
        text += f"\n[sizes.{number}]\n" + "".join(f"{name} = {size}\n" for name, size in small.items())
    (folder / "full.toml").write_text(text, encoding="utf-8")
    return folder / "full.toml"


def _counterfact(i, fact):
    target = {"target_true": {"str": fact.target_true}, "target_new": {"str": fact.target_new}}
    rewrite = {"prompt": fact.prompt, "subject": fact.subject, "relation_id": f"P{len(fact.relation)}", **target}
    prompts = {
        "paraphrase_prompts": fact.paraphrases,
        "neighborhood_prompts": fact.neighbours,
        "generation_prompts": fact.generation,
    }
    return {"case_id": i, "requested_rewrite": rewrite, **{name: list(texts) for name, texts in prompts.items()}}


@pytest.fixture(scope="module")
def shell():
    """IPython in this process: what the notebooks run in, without a kernel to start and libraries to import for each."""
    options = Config()
    options.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=options)
    InteractiveShell._instance.restore_sys_module_state()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_full_mode_runs_on_a_stand_in_and_says_so(path, full, shell, monkeypatch):
    monkeypatch.setenv("KETOOLS_MODE", "full")
    monkeypatch.setenv("KETOOLS_FULL", str(full))
    monkeypatch.chdir(path.parent)
    shell.reset()
    with capture_output() as shown:
        # Exercises are tested by themselves; here it is the lesson that has to turn.
        for cell in cells.code(cells.read(path)):
            if not cells.tags(cell) & {"exercise", "widget"}:
                shell.run_cell(cell.source).raise_error()
    said = shown.stdout
    model = full.parent / "stand-in"
    assert f"Mode full: model {model}" in said and "Mode quick" not in said
    figures = [out.data[cells.PLOTLY] for out in shown.outputs if cells.PLOTLY in out.data]
    captions = [figure["layout"]["meta"]["caption"] for figure in figures]
    live = [caption for caption in captions if not caption.endswith("stored.")]
    assert live and all(f"Mode full, model {model}" in caption for caption in live)
    assert re.search(r"^holds: every weight has its old bits again", said, re.M), "weights are restored in every mode"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_full_toml_names_the_sizes_of_the_set_up_cell(path):
    table = tomllib.loads(files("ketools.course").joinpath("full.toml").read_text(encoding="utf-8"))["sizes"]
    source = cells.code(cells.read(path), "setup")[0].source
    call = re.search(r"setup\(\s*\"\d\d\"(.*?)\)", source, re.S)[1]
    quick = set(re.findall(r"(\w+)\s*=", call)) - {"seed", "model"}
    assert quick == set(table.get(cells.number(path), {})), "a size on one side only"


def test_without_the_variable_it_is_quick(monkeypatch):
    monkeypatch.delenv("KETOOLS_MODE", raising=False)
    assert os.environ.get("KETOOLS_MODE") is None
    assert setup("00").mode == "quick"
