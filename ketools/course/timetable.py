"""The table of times in notebooks/README.md, from what papermill measured."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ketools.course import cells
from ketools.course.site import seconds
from ketools.errors import KetoolsError
from ketools.files import write_atomic

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
