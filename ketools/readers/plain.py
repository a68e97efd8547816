"""The plain layout: a Fact's own fields, as the columns of a CSV file or the fields of JSON lines."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ketools.errors import KetoolsError
from ketools.fact import LISTS, Fact, short
from ketools.readers.fields import Fields

COLUMNS = ("subject", "prompt", "target_new", "id", "relation", "target_true", *LISTS, "two_hop", "locality")
_MISSING = ("nan", "NaN")  # how pandas and numpy write a value that is not there


def from_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """One row of a table as a record; empty cells are left out.

    Raises KetoolsError for a cell that begins as a JSON list and is none, or that holds "NaN".
    """
    record: dict[str, Any] = {}
    for name, cell in cells.items():
        cell = cell.strip()
        if cell in _MISSING:
            raise KetoolsError(f"field {name!r} is {cell} (a missing value); leave the cell empty or fill it in")
        if not cell:
            if name in COLUMNS[:3]:
                record[name] = ""
            continue
        record[name] = _listed(name, cell) if name in (*LISTS, "two_hop", "locality") else cell
    return record


def _listed(name: str, cell: str) -> object:
    if not cell.startswith("["):
        return [text.strip() for text in cell.split(" | ")]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise KetoolsError(f"field {name!r} begins as a JSON list and is none ({error}): {short(cell)}") from None


def plain(take: Fields) -> None:
    """A record of the plain layout -> `take.values`."""
    unknown = [name for name in take.record if name not in COLUMNS]
    if unknown:
        take.fail(unknown[0], f"is unknown; the plain layout has {', '.join(COLUMNS)}")
    subject = take.text("subject")
    take.put(
        subject=subject,
        prompt=take.prompt("prompt", subject),
        target_new=take.text("target_new"),
        relation=take.relation("relation"),
    )
    take.true("target_true")
    take.put(**{name: take.texts(name) for name in LISTS})
    take.ours()


def as_record(fact: Fact) -> dict[str, Any]:
    """`fact` as a record of the plain layout, without what is empty; reading it gives an equal Fact."""
    return {name: value for name, value in asdict(fact).items() if value is not None and value != ()}
