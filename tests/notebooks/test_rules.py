"""Every notebook keeps every rule, and every rule can be broken."""

from copy import deepcopy
from pathlib import Path

import pytest

from ketools.course import build as cells
from tests.notebooks import rules
from tests.notebooks.mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = cells.notebooks(ROOT / "notebooks")


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    """(notebook, path) of each that is there."""
    return cells.read(request.param), request.param


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_notebook_keeps_the_rule(notebook, rule):
    assert rule(*notebook) == []


def test_its_name_is_one_of_the_twelve(notebook):
    assert notebook[1].stem in rules.EXPECTED


def test_it_makes_the_claims_that_mutations_must_break(notebook):
    nb, path = notebook
    source = "\n".join(cell.source for cell in cells.code(nb, "claim"))
    asked = {m.claim for m in MUTATIONS if m.notebook == cells.number(path)}
    assert [claim for claim in sorted(asked) if f'"{claim}"' not in source] == []


# What breaks which rule: a change of notebook 00, made in place.
def _code(nb, tag):
    return cells.code(nb, tag)[0]


def _retag(nb, old, *new):
    cell = _code(nb, old)
    cell.metadata["tags"] = [tag for tag in cell.metadata["tags"] if tag != old] + list(new)


def _replace(nb, old, new):
    hits = 0
    for cell in nb.cells:
        hits += old in cell.source
        cell.source = cell.source.replace(old, new)
    assert hits, f"notebook 00 does not say {old!r}"


def _figure(nb):
    return next(cells.figures(nb))[1]


BREAKS = {
    "a second title": ("one_title_first", lambda nb: _replace(nb, "## Limits", "# Limits")),
    "code before the title": ("one_title_first", lambda nb: nb.cells.insert(0, nb.cells[1])),
    "no prerequisites": ("head", lambda nb: _replace(nb, "**You need**", "You need")),
    "no minutes": ("head", lambda nb: _replace(nb, "minutes; the code", "or so; the code")),
    "objectives not in a list": ("head", lambda nb: [_replace(nb, f"\n{i}. ", "\n- ") for i in (1, 2)]),
    "no limits": ("end", lambda nb: _replace(nb, "## Limits", "## Other")),
    "sections out of order": ("end", lambda nb: (_replace(nb, "## Limits", "## Y"), _replace(nb, "## Next", "## Limits"), _replace(nb, "## Y", "## Next"))),
    "reading without links": ("end", lambda nb: _replace(nb, "](https://arxiv", "](arxiv")),
    "too few cells": ("size", lambda nb: nb.cells.__setitem__(slice(8, None), [])),
    "a long cell": ("size", lambda nb: _code(nb, "figure").update(source="x = 1\n" * 31)),
    "many words": ("size", lambda nb: nb.cells[0].update(source="# word" + " word" * 2000)),
    "large outputs": ("size", lambda nb: _figure(nb).data.update({"text/html": "x" * 1_000_000})),
    "out of order": ("run_in_order", lambda nb: cells.code(nb)[1].update(execution_count=7)),
    "never run": ("run_in_order", lambda nb: cells.code(nb)[3].update(execution_count=None)),
    "widget state": ("nothing_of_a_machine", lambda nb: nb.metadata.update(widgets={})),
    "a stored widget": ("nothing_of_a_machine", lambda nb: _figure(nb).data.update({cells.WIDGET: {}})),
    "a path of this machine": ("nothing_of_a_machine", lambda nb: _code(nb, "claim").outputs[0].update(text="/home/someone/x")),
    "a warning": ("nothing_of_a_machine", lambda nb: _code(nb, "claim").outputs[0].update(name="stderr")),
    "a mistyped tag": ("tags_are_known", lambda nb: _retag(nb, "figure", "figures")),
    "a marker in a comment": ("tags_are_known", lambda nb: _code(nb, "claim").update(source="x = 1  # NBVAL_SKIP")),
    "another's number": ("set_up", lambda nb: _replace(nb, 'setup("00"', 'setup("01"')),
    "a late import": ("set_up", lambda nb: _code(nb, "claim").update(source="import os")),
    "a path hack": ("set_up", lambda nb: _code(nb, "claim").update(source="sys.path.append('..')")),
    "no hygiene": ("hygiene", lambda nb: _retag(nb, "hygiene")),
    "hygiene that asks nothing": ("hygiene", lambda nb: _replace(nb, "lab.clean()", "1")),
    "an ignored claim": ("claims", lambda nb: _retag(nb, "claim", "claim", "nbval-ignore-output")),
    "a claim not tagged": ("claims", lambda nb: _retag(nb, "claim")),
    "an objective without a claim": ("claims", lambda nb: _retag(nb, "objective-2")),
    "a claim never run": ("claims", lambda nb: _code(nb, "claim").update(outputs=[])),
    "a claim that fails": ("claims", lambda nb: _code(nb, "claim").outputs[0].update(text="does not hold: x")),
    "nothing compared": ("claims", lambda nb: [c.metadata.update(tags=["nbval-ignore-output"]) for c in cells.code(nb)]),
    "no description": ("figures", lambda nb: _figure(nb).data[cells.PLOTLY]["layout"]["meta"].update(description="")),
    "a caption without context": ("figures", lambda nb: _figure(nb).data[cells.PLOTLY]["layout"]["meta"].update(caption="Bars.")),
    "no picture": ("figures", lambda nb: _figure(nb).data.pop("image/png")),
    "a compared figure": ("figures", lambda nb: _retag(nb, "figure", "figure") or _code(nb, "figure").metadata["tags"].remove("nbval-ignore-output")),
    "an image without words": ("figures", lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n![](x.png)")),
    "a widget first": ("figures", lambda nb: cells.code(nb)[1].metadata["tags"].append("widget")),
    "a dead link": ("links", lambda nb: _replace(nb, "../data/README.md", "../data/NOTHING.md")),
    "a dead anchor": ("links", lambda nb: _replace(nb, "](../data/README.md)", "](#nowhere)")),
    "plain http": ("links", lambda nb: _replace(nb, "https://arxiv", "http://arxiv")),
    "no next": ("links", lambda nb: _replace(nb, "01_ask_the_model", "02_locate_a_fact")),
    "one prediction": ("teaching", lambda nb: _replace(nb, "second = predict(", "second = dict(")),
    "no control": ("teaching", lambda nb: _retag(nb, "control")),
    "no failure": ("teaching", lambda nb: _retag(nb, "failure")),
    "one exercise": ("exercises", lambda nb: _retag(nb, "exercise")),
    "other minutes": ("exercises", lambda nb: _replace(nb, "(easy, 3 minutes)", "(easy, 4 minutes)")),
    "no marks": ("exercises", lambda nb: _replace(nb, cells.BEGIN, "# here")),
    "no hint": ("exercises", lambda nb: _replace(nb, "<summary>Hint", "<summary>Look")),
    "not checked": ("exercises", lambda nb: _replace(nb, "nb00.both.check(", "both(")),
}  # fmt: skip


@pytest.fixture(scope="module")
def first():
    """Notebook 00, which keeps all rules."""
    return cells.read(NOTEBOOKS[0])


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_rule_is_noticed(first, what):
    name, change = BREAKS[what]
    nb = deepcopy(first)
    change(nb)
    assert getattr(rules, name)(nb, NOTEBOOKS[0]) != []


def test_every_rule_is_broken_once():
    assert {name for name, _ in BREAKS.values()} == {rule.__name__ for rule in rules.RULES}
