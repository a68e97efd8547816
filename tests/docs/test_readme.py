"""The front page: its commands run, its Python runs, its tables and figures are those of the stored records."""

import re
import shlex

import pandas as pd
import pytest
from typer.testing import CliRunner

from ketools import cli
from ketools.io import data_root
from ketools.runs.records import gather
from tests.conftest import SENTENCES
from tests.docs.test_examples import ROOT, blocks, hooks  # noqa: F401 - a fixture

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
SHOWN = ("memit", "sequential-memit", "alphaedit", "encore")  # of SmolLM2's runs


@pytest.fixture(scope="module")
def demo(hooks):  # noqa: F811
    """(table of the demo, its runs)."""
    return hooks.demo(), gather(hooks.demo_runs())


@pytest.fixture(scope="module")
def home(tmp_path_factory, trained_gpt2, tiny_tokenizer):
    """A folder with what the commands name: a model, the facts as printed, running text."""
    root = tmp_path_factory.mktemp("home")
    trained_gpt2.save_pretrained(root / "my-model")
    tiny_tokenizer.save_pretrained(root / "my-model")
    ((_, facts),) = blocks(README, "csv")
    (root / "facts.csv").write_text(facts, "utf-8")
    (root / "text.txt").write_text("\n".join(f"{a} {b}" for a in SENTENCES for b in SENTENCES), "utf-8")
    return root


def test_commands_run_in_their_order(home, monkeypatch):
    monkeypatch.chdir(home)
    lines = [line for _, text in blocks(README, "sh") for line in text.splitlines() if line.startswith("ketools ")]
    assert {line.split()[1] for line in lines} == {"run", "report", "compare", "inspect", "stats", "edit"}
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "run":  # the same command over fewer facts, with a small panel
            words += ["--edits", "2", "--batch", "2", "--yes", "--measure", "spectra=false"]
            words += [
                part
                for size in ("unedited", "same_subject", "per_task", "documents")
                for part in ("--measure", f"{size}=2")
            ]
        if words[0] == "edit":
            words += ["--yes", "--set", "steps=2", "--set", "prefix_count=0"]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def test_the_example_of_python_runs():
    ((_, code),) = blocks(README, "python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert not names["model"].edits and len(names["edit"].record["steps"]) == 4


def test_tables_are_those_of_the_package_and_the_records(hooks, demo):  # noqa: F811
    for made in (hooks.methods(), demo[0], hooks.real(*SHOWN)):
        assert made in TEXT, f"stale; README.md should have\n{made}"


def test_every_figure_of_the_findings_is_one_of_the_records(hooks, demo):  # noqa: F811
    (table, runs), ours = demo, (data_root() / "results" / "README.md").read_text("utf-8")
    number = re.compile(r"\b\d[\d,.]*\d?(?:%|×)|\b0\.\d+")
    allowed = {*number.findall(table + hooks.real(*SHOWN) + ours)}
    shares, ratios = (re.findall(rf"\| (\d+\.\d{{{digits}}}) ", ours) for digits in (1, 2))  # cells without their unit
    allowed |= {*(f"{share}%" for share in shares), *(f"{ratio}×" for ratio in ratios)}
    wide = max(gather([data_root() / "width"]), key=lambda run: run.d_mlp)
    allowed |= {f"{wide.record.checkpoints[name].iloc[-1]:.0%}" for name in ("ES", "unedited_kept")}
    natural = [run.record.checkpoints["p_natural"].iloc[0] for run in runs]
    allowed.add(f"{sum(natural) / len(natural):.3f}")
    said = TEXT.split("## What it shows")[1].split("**Citing.**")[0].replace(table, "").replace(hooks.real(*SHOWN), "")
    said = number.findall(said)
    assert len(said) >= 8 and set(said) <= allowed, set(said) - allowed


def test_the_loads_are_those_of_the_records():
    real = pd.read_csv(data_root() / "real" / "checkpoints.csv")["load"].max()
    (pocket,) = gather([data_root() / "results" / "pocket-encore-seed0"])
    loads = [f"{real:.2f}", f"{pocket.record.checkpoints['edits'].max() / pocket.d_mlp:.2f}"]
    assert re.findall(r"(\d\.\d\d) edits per key dimension", " ".join(TEXT.split())) == loads


def test_the_time_of_the_demo_is_that_of_the_records(demo):
    seconds = [run.record.batches["seconds"].sum() + run.record.checkpoints["seconds"].sum() for run in demo[1]]
    minutes = int(re.search(r"demo takes about (\d+) minutes on one core", " ".join(TEXT.split()))[1])
    assert sum(seconds) / 3 / 60 == pytest.approx(minutes, abs=0.75)


def test_the_picture_is_stored_and_its_runs_are_there():
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert (ROOT / picture).read_bytes()[:4] == b"\x89PNG"
    runs = gather([data_root() / "real"])
    assert {(run.method, run.seed) for run in runs} == {
        *((method, 0) for method in (*SHOWN, "memit+mpes", "memit+norm", "emmet+mpes")),
        ("encore", 1),
    }


def test_it_fits_on_about_three_screens():
    assert len(TEXT.splitlines()) <= 140
