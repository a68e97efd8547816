"""Notebooks as data: reading, tags, headings, exercises with their solutions marked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from ketools.course import build as cells
from ketools.errors import KetoolsError
from ketools.io import write_atomic

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
_NAME = re.compile(r"(\d\d)_[a-z0-9_]+")


def notebooks(folder: str | Path) -> list[Path]:
    """The course's notebooks in `folder` (NN_words.ipynb), in order. Raises KetoolsError if there is none."""
    found = sorted(path for path in Path(folder).glob("*.ipynb") if _NAME.fullmatch(path.stem))
    if not found:
        raise KetoolsError(f"no notebooks in {folder}; expected files such as 00_first_edit.ipynb")
    return found


def number(path: Path) -> str:
    """ "03" of 03_write_one_fact.ipynb."""
    match = _NAME.fullmatch(path.stem)
    assert match is not None, path
    return match[1]


def read(path: str | Path) -> NotebookNode:
    """The notebook in `path`. Raises KetoolsError for a file that is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError) as error:
        raise KetoolsError(f"no notebook in {path}: {error}") from error


def tags(cell: NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", ()))


def code(nb: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """The code cells, all or those with `tag`."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and (tag is None or tag in tags(cell))]


def prose(nb: NotebookNode) -> str:
    """All markdown, cell after cell."""
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def title(nb: NotebookNode) -> str:
    """The text of the first H1. Raises KetoolsError if there is none."""
    match = re.search(r"^# +(.+)$", prose(nb), re.M)
    if match is None:
        raise KetoolsError("a notebook without a title: its first cell begins with '# '")
    return match[1].strip()


def objectives(nb: NotebookNode) -> list[str]:
    """The numbered list below **You will be able to**."""
    _, found, rest = prose(nb).partition("**You will be able to**")
    items = re.split(r"^\d+\. +", rest.partition("\n**")[0], flags=re.M)[1:] if found else []
    return [" ".join(item.split()) for item in items]


def minutes(nb: NotebookNode) -> int | None:
    """What **Time** says, in minutes; None if it says nothing."""
    match = re.search(r"\*\*Time\*\*:? *(\d+) minutes", prose(nb))
    return int(match[1]) if match else None


def figures(nb: NotebookNode) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    """(cell, output) of every plotly figure that the notebook shows."""
    for cell in code(nb):
        for output in cell.outputs:
            if PLOTLY in output.get("data", {}):
                yield cell, output


def solution(source: str) -> tuple[str, str]:
    """(what the student gets, the solution) of an exercise's cell; the stub raises NotImplementedError.

    Raises KetoolsError unless there is exactly one marked solution with something in it.
    """
    lines = source.splitlines()
    marks = [[i for i, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END)]
    if [len(found) for found in marks] != [1, 1] or marks[0][0] + 1 >= marks[1][0]:
        raise KetoolsError(f"an exercise holds one solution between lines {BEGIN!r} and {END!r}; got:\n{source}")
    first, last = marks[0][0], marks[1][0]
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    stub = [*lines[:first], f'{indent}raise NotImplementedError("your turn")', *lines[last + 1 :]]
    inside = [line.removeprefix(indent) for line in lines[first + 1 : last]]
    return "\n".join(stub), "\n".join(inside)


# Notebooks with outputs as they are stored: run from a fresh kernel, a PNG beside each figure, nothing of this machine.


CELL_SECONDS = 120
_WIDGET_TEXT = "A widget: run the notebook to use it."
Draw = Callable[[Sequence[dict[str, Any]]], list[str]]


def store(path: str | Path, draw: Draw | None = None, seconds: int = CELL_SECONDS) -> Path:
    """Run the notebook in `path` from a fresh kernel and write it back with its outputs, ready to be committed.

    draw: figures -> PNGs (base64); None: `browser.pictures`. `seconds`: the most that a cell may take. The file is written only if every cell ran. Raises
    KetoolsError naming the cell that failed, and without a browser.
    """
    path = Path(path)
    nb = cells.read(path)
    run(nb, path.parent, seconds=seconds)
    tidy(nb)
    picture(nb, draw)
    nbformat.validate(nb)
    return write_atomic(path, nbformat.writes(nb) + "\n")


def run(nb: NotebookNode, folder: Path, *, go_on: bool = False, seconds: int = CELL_SECONDS) -> None:
    """Execute all cells in place, in a fresh kernel that works in `folder`; at most `seconds` a cell.

    go_on: errors are outputs like others. Raises KetoolsError at the first cell that fails, times out or kills the kernel.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(
        nb,
        timeout=seconds,
        kernel_name="python3",
        allow_errors=go_on,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise KetoolsError(f"a cell of {cells.title(nb)!r} failed: {error}") from error


def tidy(nb: NotebookNode) -> None:
    """Take out what must not be stored: widgets and their state, times, the machine's Python, warnings on stderr."""
    nb.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in nb.cells:
        cell.metadata = NotebookNode({"tags": sorted(cells.tags(cell))} if cells.tags(cell) else {})
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if data.pop(cells.WIDGET, None) is not None:
                data["text/plain"] = _WIDGET_TEXT


def picture(nb: NotebookNode, draw: Draw | None = None) -> None:
    """Put a PNG and a description in words beside every plotly figure; the words are the output's plain text."""
    shown = [output for _, output in cells.figures(nb)]
    if draw is None:
        from ketools.plots.pictures import pictures

        draw = pictures
    drawn = draw([dict(output.data[cells.PLOTLY]) for output in shown])
    for output, png in zip(shown, drawn, strict=True):
        figure = output.data[cells.PLOTLY]
        output.data["image/png"] = png
        output.data["text/plain"] = figure.get("layout", {}).get("meta", {}).get("description", "")


# The student's version of a notebook: the same lesson, stubs for solutions, no outputs to peek at.


_LINK = re.compile(r"\]\((?!#)(?![a-z]+:)([^)\s]+)")


def student(nb: NotebookNode) -> NotebookNode:
    """A copy whose exercises are stubs, each solution folded up below; outputs and counts are gone.

    Run All goes on behind a stub: its cell carries the tag raises-exception. Raises KetoolsError for an exercise
    without one marked solution.
    """
    made = deepcopy(nb)
    made.cells = list(_cells(made))
    return made


def write_students(folder: str | Path, out: str | Path) -> list[Path]:
    """Write the student's version of every notebook in `folder` into `out`; returns the paths, in order."""
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for path in cells.notebooks(folder):
        made = student(cells.read(path))
        relink(made, folder, out)
        written.append(out / path.name)
        write_atomic(written[-1], nbformat.writes(made) + "\n")
    return written


def relink(nb: NotebookNode, old: Path, new: Path) -> None:
    """Let the relative links of markdown cells lead from `new` where they led from `old`; those to notebooks stay."""

    def moved(match: re.Match[str]) -> str:
        target = match[1]
        if "/" not in target:
            return match[0]
        return f"]({Path(os.path.relpath(old / target, new)).as_posix()}"

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(moved, cell.source)


def _cells(nb: NotebookNode) -> Iterator[NotebookNode]:
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        yield cell
        if cell.cell_type == "code" and "exercise" in cells.tags(cell):
            cell.source, hidden = cells.solution(cell.source)
            cell.metadata["tags"] = [*cell.metadata["tags"], "raises-exception"]
            text = f"<details><summary>Solution</summary>\n\n```python\n{hidden}\n```\n\n</details>"
            yield new_markdown_cell(text, id=f"{cell.id}-solution", metadata={"tags": ["solution"]})


# The course as a site that opens offline: every notebook run by papermill, figures alive, mathematics as MathML.


_SCRIPT = "plotly.min.js"
# Code first, so that a $ in it stays what it is; then display and inline mathematics.
_MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", re.S)


def build(folder: str | Path, out: str | Path) -> dict[str, float]:
    """Run every notebook in `folder` into `out` (NN.ipynb and NN.html), with an index page: name -> seconds.

    Raises KetoolsError naming the notebook and the cell that failed; those before it are there.
    """
    from plotly.offline import get_plotlyjs

    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / _SCRIPT, get_plotlyjs())
    for path in cells.notebooks(folder):
        nb = execute(path, out / path.name)
        relink(nb, folder, out)
        write_atomic(out / f"{path.stem}.html", page(nb))
    write_atomic(out / "index.html", index(out))
    return seconds(out)


def execute(path: Path, out: Path) -> NotebookNode:
    """Run one notebook by papermill, writing `out`; returns what was run."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        return papermill.execute_notebook(
            path, out, cwd=path.parent, kernel_name="python3", progress_bar=False, execution_timeout=CELL_SECONDS
        )
    except PapermillExecutionError as error:
        raise KetoolsError(f"{path.name}, cell {error.cell_index}: {error.ename}: {error.evalue}") from error


def seconds(folder: str | Path) -> dict[str, float]:
    """Seconds that each notebook in `folder` took, from papermill's metadata: name -> seconds."""
    found = {}
    for path in cells.notebooks(folder):
        duration = cells.read(path).metadata.get("papermill", {}).get("duration")
        if duration is None:
            raise KetoolsError(f"{path} was not run by papermill; run `make course`")
        found[path.stem] = float(duration)
    return found


def page(nb: NotebookNode) -> str:
    """A notebook as one page of HTML beside plotly.min.js; nothing in it asks the network."""
    from nbconvert import HTMLExporter

    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
        for output in cell.get("outputs", ()):
            _alive(output)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nb)
    return _whole(cells.title(nb), f'<p><a href="index.html">The course</a></p>\n{_to_pages(body)}', figures=True)


def index(out: Path) -> str:
    """The list of notebooks in `out`: title, minutes for the reader, seconds of the run, what one learns."""
    rows = []
    took = seconds(out)
    for path in cells.notebooks(out):
        nb = cells.read(path)
        learnt = "".join(f"<li>{escape(re.sub(r'[*`$]', '', each))}</li>" for each in cells.objectives(nb))
        time = f"{cells.minutes(nb)} minutes to read and do, {took[path.stem]:.0f} s to run"
        rows.append(
            f'<li value="{int(cells.number(path))}"><a href="{path.stem}.html">{escape(cells.title(nb))}</a> '
            f"<small>({time})</small><ul>{learnt}</ul></li>"
        )
    return _whole("ketools: the course", f"<h1>The course</h1><ol>{''.join(rows)}</ol>", figures=False)


def mathml(text: str) -> str:
    """Markdown with its TeX ($...$ and $$...$$) as MathML, which browsers draw without a library."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        tex, display = (match[2], "block") if match[2] else (match[3], "inline")
        # Markdown must not take parts of a formula for emphasis, nor an empty line in it for a new paragraph.
        made = convert(" ".join(tex.split()), display=display)
        return made.replace("*", "&#42;").replace("_", "&#95;").replace("\n", " ")

    return _MATH.sub(drawn, text)


def _alive(output: NotebookNode) -> None:
    # A figure in place of its data, a word in place of a widget.
    from plotly.io import to_html

    data = output.get("data", {})
    if cells.PLOTLY in data:
        figure: dict[str, Any] = {k: v for k, v in data[cells.PLOTLY].items() if k in ("data", "layout")}
        words = figure["layout"].get("meta") or {}
        drawn = to_html(figure, full_html=False, include_plotlyjs=False, validate=False, config={"responsive": True})
        label = escape(str(words.get("description", "a figure")), quote=True)
        output.data = NotebookNode({"text/html": f'<div role="img" aria-label="{label}">{drawn}</div>'})
    elif cells.WIDGET in data:
        output.data = NotebookNode({"text/html": "<p><em>A widget: run the notebook to use it.</em></p>"})


def _to_pages(body: str) -> str:
    return re.sub(r'href="([0-9]{2}_[a-z0-9_]+)\.ipynb"', r'href="\1.html"', body)


def _whole(title: str, body: str, *, figures: bool) -> str:
    from pygments.formatters import HtmlFormatter

    look = files("ketools.course").joinpath("site.css").read_text(encoding="utf-8")
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    script = f'<script src="{_SCRIPT}"></script>' if figures else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{look}{colours}</style>{script}</head>\n<body><main>{body}</main></body></html>\n"
    )


# The table of times in notebooks/README.md, from what papermill measured.


_BEGIN, _END = "<!-- times: written by `make times` -->", "<!-- end of times -->"


def write_times(folder: str | Path, built: str | Path) -> str:
    """Put the table of times between the marks of README.md in `folder`; `built` is what `make course` made.

    Returns the table. Raises KetoolsError without marks, or if a notebook of `folder` was not built.
    """
    readme = Path(folder) / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise KetoolsError(f"{readme} lacks the lines {_BEGIN!r} and {_END!r}, between which the table goes")
    made = table(folder, seconds(built))
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.S)
    write_atomic(readme, pattern.sub(lambda _: f"{_BEGIN}\n{made}\n{_END}", text))
    return made


def table(folder: str | Path, took: Mapping[str, float]) -> str:
    """Markdown: a row a notebook (minutes for the reader, seconds for the machine), and their sums."""
    rows, total = [], 0
    for path in cells.notebooks(folder):
        if path.stem not in took:
            raise KetoolsError(f"{path.name} was not built; run `make course` first")
        nb = cells.read(path)
        minutes = cells.minutes(nb) or 0
        total += minutes
        rows.append(f"| {cells.number(path)} | [{cells.title(nb)}]({path.name}) | {minutes} | {took[path.stem]:.0f} |")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    head = ["| nr | notebook | minutes for you | seconds for the machine |", "|---|---|---|---|"]
    last = f"| | all | {total} | {sum(took.values()):.0f} |"
    return "\n".join(
        ["", *head, *rows, last, "", f"Quick mode on {cores} cores of a CPU, each notebook from a fresh kernel.", ""]
    )
