"""The student's version of a notebook: the same lesson, stubs for solutions, no outputs to peek at."""

import os
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from ketools.course import cells
from ketools.files import write_atomic

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
