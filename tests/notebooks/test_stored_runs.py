"""Notebook 10 where reference runs lie in data/results: its cells on made-up records, without a model.

The stored outputs of the notebook show one situation, with such runs or without; the other one must turn as well.
"""

import ast
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ketools import plots
from ketools.course import build as cells
from ketools.course import check_claim, predict
from ketools.course.lessons import nb10
from ketools.io import data_root
from ketools.plots.style import words
from tests.runs.fakes import fake_run, fake_study

PATH = Path(__file__).resolve().parents[2] / "notebooks" / "10_ten_thousand_edits.ipynb"


@pytest.fixture
def state(tmp_path, monkeypatch):
    """What the notebook knows after its set-up, with the runs of three methods in the data folder."""
    losses = {"memit": 0.5, "alphaedit": 0.45, "encore": 0.3}
    runs = [fake_run(tmp_path / f"pocket-{method}-seed0", method, loss=loss) for method, loss in losses.items()]
    fake_study(tmp_path / "data" / "results", *runs)
    for folder in ("real", "width"):
        shutil.copytree(data_root() / folder, tmp_path / "data" / folder)
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KETOOLS_MODE", "full")  # made-up numbers: a claim may fail, and says so
    model = SimpleNamespace(fingerprint="pocket-fingerprint", name="pocket")
    lab = SimpleNamespace(
        model=model, mode="quick", seed=0, context=lambda n: f"Mode quick, model pocket, n = {n}, seed 0."
    )
    names = {"lab": lab, "model": model, "runs": None, "nb10": nb10, "check_claim": check_claim, "predict": predict}
    exec("\n".join(_imports()), names)
    return names


def _imports():
    source = cells.code(cells.read(PATH), "setup")[0].source
    return [line for line in source.splitlines() if line.startswith(("import ", "from "))]


def _between(first, last):
    code = [cell.source for cell in cells.code(cells.read(PATH))]
    start = next(i for i, source in enumerate(code) if first in source)
    end = next(i for i, source in enumerate(code) if last in source)
    return code[start : end + 1]


def test_the_cells_that_read_records_turn_on_stored_ones(state, capsys):
    said = {}
    for source in _between("nb10.reference(lab)", "cost(stack(records"):
        *body, last = ast.parse(source).body
        if not isinstance(last, ast.Expr):
            body.append(last)
        exec(compile(ast.Module(body, []), "cell", "exec"), state)
        if isinstance(last, ast.Expr):  # what Jupyter would show
            said[ast.unparse(last)] = eval(compile(ast.Expression(last.value), "cell", "eval"), state)
    out = capsys.readouterr().out
    assert "3 runs of 200 edits, 3 methods" in out
    assert (
        "holds: with each seed all methods edited the same facts" in out and "holds: MEMIT's matrix grows more" in out
    )
    figures = [value for value in said.values() if hasattr(value, "to_plotly_json") and "meta" in value.layout]
    captions = [words(figure)["caption"] for figure in figures]
    assert len(captions) == 4 and sum("n = 200 edits in 3 runs, stored" in caption for caption in captions) == 2
    assert sum("model SmolLM2, n = 1,100 edits a method" in caption for caption in captions) == 1
    assert sum("pocket widened, n = up to 10,000 edits a run" in caption for caption in captions) == 1
    assert plots.stack(state["records"], "batches")["method"].nunique() == 3
    (answer,) = [value for last, value in said.items() if "second.reveal" in last]
    assert "It is `encore`" in answer.text and "MEMIT" not in answer.text.split("Why not `memit`?")[0]
