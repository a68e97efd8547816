"""Notebooks as data: reading, tags, headings, exercises with their solutions marked."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ketools.errors import KetoolsError

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
