"""What the pages and docstrings show: examples run, commands parse, and what the site's script makes is true."""

import ast
import doctest
import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement

import ketools
from ketools import KetoolsError
from ketools.cli import app
from ketools.evaluation.metrics import METRICS
from ketools.plots import diagrams
from ketools.runs.reproduce import published

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w+)( \w+)?\n(.*?)^```$", re.M | re.S)
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "ketools").rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.M)
)


def page(path):
    return path.relative_to(ROOT / "docs").as_posix()


def blocks(path, language):
    """(word after the language, text) of each fenced block."""
    return [(word.strip(), text) for kind, word, text in FENCE.findall(path.read_text("utf-8")) if kind == language]


@pytest.fixture(autouse=True, scope="module")
def one_world():
    """The built-in world is read once for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ketools, "facts", cache(ketools.facts))
        yield


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed


def test_every_public_name_has_an_example():
    bare = [n for n in ketools.__all__ if n[0] != "_" and ">>>" not in (getattr(ketools, n).__doc__ or "")]
    assert not bare


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=page)
def test_python_on_the_pages_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for word, text in blocks(path, "python"):
        assert word in ("", "figure", "norun")
        tree = ast.parse(text)
        if word == "norun" or path.name == "gallery.md":  # whose blocks are run when the site is built
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, page(path), "exec"), names)


def commands():
    """(page, command) of every `ketools ...` line in a shell block."""
    for path in [*PAGES, ROOT / "README.md"]:
        for _, text in blocks(path, "sh"):
            for line in text.splitlines():
                if line.startswith("ketools "):
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{path.stem}: {line[:60]}")


@pytest.mark.parametrize("words", [*commands()])
def test_commands_on_the_pages_parse(words):
    command, name = typer.main.get_command(app), "ketools"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    with command.make_context(name, words) as context:
        assert context.command is command and not context.args


def test_make_targets_on_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = {
        name for path in PAGES for _, text in blocks(path, "sh") for name in re.findall(r"^make ([a-z-]+)", text, re.M)
    }
    assert {"env", "demo"} <= named <= targets


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r": ([\w/-]+\.md)", yaml.safe_dump(yaml.safe_load(config)["nav"])))
    assert listed == {page(path) for path in PAGES}


def test_names_in_the_reference_exist():
    for path in PAGES:
        for name, options in re.findall(
            r"^::: ([\w.]+)\n(?:    options: \{members: \[(.*?)\])?", path.read_text("utf-8"), re.M
        ):
            found = resolve_name(name)
            assert all(hasattr(found, member) for member in re.findall(r"\w+", options)), name


def test_what_pages_ask_for_can_be_made(hooks):
    asked = {name for path in PAGES for name in re.findall(r"<!-- made: (\w+) -->", path.read_text("utf-8"))}
    assert asked == set(hooks.MADE)


def test_the_metrics_page_has_every_metric(hooks):
    made = hooks.metrics()
    assert made.count("<br>`") == len(METRICS)
    assert all(f"{metric.label}<br>`{metric.key}`" in made for metric in METRICS)


def test_published_tables_are_complete_and_consistent():
    data = published()
    for kind in ("counterfact", "overfitting", "zsre"):
        columns = data[kind].pop("columns")
        assert len(data[kind]) == 3
        assert all(len(row) == len(columns) for rows in data[kind].values() for row in rows.values())
    # S is the harmonic mean of ES, PS and NS: a slip of the pen in one of them shows.
    for rows in data["counterfact"].values():
        for es, ps, ns, s, _ in rows.values():
            assert abs(3 / (1 / es + 1 / ps + 1 / ns) - s) < 0.03


def test_mathematics_and_figures_are_made_for_a_reader_without_network(hooks):
    html = hooks.on_page_content(r'<p><span class="arithmatex">\(\lambda_n\)</span></p>')
    assert "<math" in html and "arithmatex" not in html
    made = hooks.with_figures('```python figure\nimport plotly.graph_objects as go\nfig = go.Figure(go.Bar(x=["a"], y=[1]), '
                              'layout={"meta": {"finding": "F", "caption": "C", "description": "D"}})\nfig\n```\n')  # fmt: skip
    assert "<b>F</b>" in made and 'src="http' not in made


def test_a_drawing_highlights_what_it_is_asked_for():
    everything, some = diagrams.transformer(), diagrams.transformer("key", "W")
    assert everything.count('opacity="0.2"') == 0
    assert some.count('opacity="0.2"') == len(diagrams.PARTS) - 2
    assert "<title>" in diagrams.quadratic_form() and "http://www.w3.org/2000/svg" in some
    with pytest.raises(KetoolsError, match="'query'"):
        diagrams.transformer("query")


def test_the_pins_of_the_site_satisfy_what_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["docs"]
    lines = [
        *(ROOT / "docs" / "requirements.txt").read_text("utf-8").split("\n"),
        *(ROOT / "requirements.lock").read_text("utf-8").split(),
    ]
    pins = dict(line.split("==") for line in lines if "==" in line)
    for line in map(Requirement, declared):
        assert line.specifier.contains(pins[line.name])
