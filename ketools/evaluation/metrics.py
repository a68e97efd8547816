"""What every reported number is: name, formula, range, which direction is better, source. The data is glossary.toml.

A name may mean different things in different tables ("ratio" of norms, "ratio" of probabilities), so an entry belongs to
a table; columns that mean the same everywhere are in the table "shared".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import TYPE_CHECKING

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    import pandas as pd


BETTER = ("higher", "lower", "near 1", "near 0", "near 0.5", "none")
SHARED = "shared"
# A run scores the columns of `evaluate` at two moments and says so in front of the name.
_MOMENTS = {"at_edit_": "right after the fact's own batch", "end_": "on the final model, after all edits"}
# Tables whose rows hold columns of others.
_HOLDS = {
    "checkpoints": ("evaluate",),
    "batches": ("evaluate",),
    "facts": ("evaluate",),
    "demo": ("checkpoints", "evaluate"),
}

# The scores of `evaluate` are known by their capitals, as a head or in brackets within one.
_SCORE = re.compile(r"\(([A-Z]{1,2})\)|^([A-Z]{1,2})$")


@dataclass(frozen=True)
class Entry:
    """One number or column: `table` reports it under `name` (which may end in *, a family); `better` is one of BETTER."""

    name: str
    table: str
    title: str
    formula: str
    range: str = ""
    better: str = "none"
    source: str = "ketools"

    def text(self) -> str:
        """The entry in a few lines; what a reader sees when hovering over the name."""
        lines = [f"{self.name} ({self.table}): {self.title}", f"  {self.formula}"]
        if self.range:
            lines.append(f"  range: {self.range}")
        if self.better != "none":
            lines.append(f"  better: {self.better}")
        return "\n".join([*lines, f"  source: {self.source}"])


def entries() -> tuple[Entry, ...]:
    """All entries, in the order of glossary.toml."""
    text = files("ketools.evaluation").joinpath("glossary.toml").read_text(encoding="utf-8")
    return tuple(
        Entry(name, table, **about) for table, held in tomllib.loads(text).items() for name, about in held.items()
    )


def table_names() -> list[str]:
    """The tables there are, in the order of glossary.toml."""
    return list(dict.fromkeys(entry.table for entry in entries()))


def of_table(table: str) -> tuple[Entry, ...]:
    """The entries of one table. Raises KetoolsError, with the names there are, for an unknown one."""
    return _of(table, entries())


def _of(table: str, among: Sequence[Entry]) -> tuple[Entry, ...]:
    if not (own := tuple(entry for entry in among if entry.table == table)):
        known = dict.fromkeys(entry.table for entry in among)
        raise KetoolsError(f"no table {table!r} in the glossary; there are: {', '.join(known)}")
    return own


def to_frame(chosen: Iterable[Entry] | None = None) -> pd.DataFrame:
    """Entries (None: all) as a table: name, table, title, formula, range, better, source."""
    import pandas as pd  # the command line answers without it

    rows = [asdict(entry) for entry in (entries() if chosen is None else chosen)]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Entry)])


def look_up(name: str, table: str | None = None) -> tuple[Entry, ...]:
    """What `name` means, in `table` or in each table that has it.

    `at_edit_NAME` and `end_NAME` of a run are NAME at that moment; a family's entry (f1_*) comes under the name asked for.

    Raises:
        KetoolsError: a name that is in no table (or not in that one), with names that are alike, or an unknown table.
    """
    among = entries()
    if table is not None:
        among = (
            *_of(table, among),
            *(e for e in among if e.table in (*_HOLDS.get(table, ()), SHARED) and e.table != table),
        )
    found = [replace(entry, name=name) for entry in among if fnmatchcase(name, entry.name)]
    for moment, when in _MOMENTS.items():
        if not found and name.startswith(moment):
            inner = [e for e in among if e.table == "evaluate" and e.name == name.removeprefix(moment)]
            found = [replace(e, name=name, title=f"{e.title}, {when}") for e in inner]
    if not found:
        near = get_close_matches(name, sorted({entry.name for entry in among}), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `ketools glossary` lists them all"
        raise KetoolsError(f"no entry {name!r} in the glossary{hint}")
    # A table's own meaning wins over one that it shares with others.
    own = [entry for entry in found if entry.table == table]
    return tuple(own or found)


def hover_text(name: str, table: str | None = None) -> str:
    """`Entry.text()` of what `name` means, for hovering over it; "" where no entry, or several of different meaning, fit."""
    try:
        found = look_up(name, table)
    except KetoolsError:  # a head without an explanation is shown as it is
        return ""
    return found[0].text() if len({(entry.title, entry.formula) for entry in found}) == 1 else ""


def hover_texts(heads: Iterable[object]) -> dict[str, str]:
    """The text to show over those of a table's heads that name a metric: head -> `Entry.text()`; others are left out.

    A head names a metric by its name ("unedited_kept"), its title ("seconds per edit"), with or without its unit in
    brackets behind it, or by the abbreviation of a score ("ES", "efficacy (ES): MEMIT"). What means different things in
    different tables is left out: a wrong explanation is worse than none.
    """
    known: dict[str, list[Entry]] = {}
    for entry in entries():
        for word in {entry.name, entry.title}:
            known.setdefault(word, []).append(entry)
    texts = {}
    for head in dict.fromkeys(head for head in heads if isinstance(head, str)):
        found = known.get(head) or known.get(re.sub(r" \([^()]*\)$", "", head), [])
        if score := _SCORE.search(head):
            found = [entry for entry in known.get(score[1] or score[2], []) if entry.table == "evaluate"]
        if len({(entry.title, entry.formula) for entry in found}) == 1:
            texts[head] = found[0].text()
    return texts


def missing(columns: Iterable[str], table: str) -> list[str]:
    """Those of `columns` that the glossary does not explain for `table`."""
    lacking = []
    for column in columns:
        try:
            look_up(column, table)
        except KetoolsError:
            lacking.append(column)
    return lacking
