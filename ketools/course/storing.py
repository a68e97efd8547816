"""Notebooks with outputs as they are stored: run from a fresh kernel, a PNG beside each figure, nothing of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ketools.course import cells
from ketools.errors import KetoolsError
from ketools.files import write_atomic

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
        from ketools.course.browser import pictures as draw
    drawn = draw([dict(output.data[cells.PLOTLY]) for output in shown])
    for output, png in zip(shown, drawn, strict=True):
        figure = output.data[cells.PLOTLY]
        output.data["image/png"] = png
        output.data["text/plain"] = figure.get("layout", {}).get("meta", {}).get("description", "")
