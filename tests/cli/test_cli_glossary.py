"""`ketools glossary`: the list, one entry, one table, a file."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from ketools import KetoolsError
from ketools.cli.report import glossary
from ketools.evaluation.metrics import METRICS


@pytest.fixture
def said():
    app = typer.Typer()
    app.command()(glossary)

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


def test_the_list_names_everything_within_the_width(said):
    text = said()
    assert all(f"  {entry.key}" in text for entry in METRICS)
    assert max(map(len, text.splitlines())) <= 118


def test_one_entry_in_each_table_that_has_it(said):
    text = said("ratio")
    assert "ratio (norms)" in text and "ratio (overfitting)" in text
    assert "ratio (norms)" not in said("ratio", "--table", "overfitting")
    assert "better: higher" in said("ES")


def test_one_table(said):
    text = said("--table", "forgetting")
    assert text.startswith("forgetting:") and "forgotten" in text and "norm_ratio" not in text


def test_a_file(said, tmp_path):
    said("PS", "--table", "checkpoints", "--json", tmp_path / "es.json")
    (entry,) = json.loads((tmp_path / "es.json").read_text())["entries"]
    assert entry["key"] == "PS" and entry["better"] == "higher"


def test_mistakes_travel_as_ours(said):
    with pytest.raises(KetoolsError, match="did you mean"):
        said("perplexty")
    with pytest.raises(KetoolsError, match="no table 'run'"):
        said("--table", "run")


def test_it_answers_without_torch():
    code = "import sys, ketools.cli.report; sys.exit(bool({'torch', 'pandas', 'sklearn'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
