"""The command `ketools glossary`: what every reported number is.

Mistakes travel as KetoolsError; the program around it turns them into one line and exit code 2.
"""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from ketools.evaluation.glossary import Entry, entries, look_up, of_table
from ketools.files import write_json

_WIDTH = 118


def glossary(
    name: Annotated[str | None, typer.Argument(help="A column or figure, such as ES or norm_ratio.")] = None,
    table: Annotated[str | None, typer.Option(help="Only what this table reports, such as checkpoints.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the entries shown to this file.")] = None,
) -> None:
    """What a reported number is: formula, range, which direction is better, source; without NAME all of them."""
    if name is not None:
        chosen = look_up(name, table)
        typer.echo("\n\n".join(entry.text() for entry in chosen))
    else:
        chosen = entries() if table is None else of_table(table)
        typer.echo("\n\n".join(_listed(key, list(group)) for key, group in groupby(chosen, lambda e: e.table)))
    if json is not None:
        write_json(json, {"entries": [asdict(entry) for entry in chosen]})


def _listed(table: str, held: list[Entry]) -> str:
    width = max(len(entry.name) for entry in held)
    lines = [f"{table}:"]
    for entry in held:
        better = f" [{entry.better}]" if entry.better != "none" else ""
        first, *more = wrap(f"{entry.title}{better}: {entry.formula}", _WIDTH - width - 4)
        lines += [f"  {entry.name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
    return "\n".join(lines)
