"""The one table of metrics: the name, format and meaning of every reported number.

The command line, figures, reports and `ketools glossary` all read it; the data is metrics.toml. A key may have
different meanings in different tables ("ratio" of norms, "ratio" of probabilities), so an entry belongs to a table;
columns that mean the same everywhere are in the table "shared". Importing this module needs neither torch nor pandas.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ketools.errors import KetoolsError
from ketools.io import packaged

BETTER = ("higher", "lower", "near 1", "near 0", "near 0.5", "none")
SHARED = "shared"
MISSING = "–"
"""Shown where nothing was measured."""
# Prefixes of the columns of `evaluate` in the tables of a run, which say when they were scored.
_MOMENTS = {
    "before_": ("before any edit", "before"),
    "at_edit_": ("right after each edit", "then"),
    "end_": ("at the end", "at the end"),
}
# Tables that also have columns of other tables.
_HOLDS = {
    "checkpoints": ("evaluate",),
    "batches": ("evaluate",),
    "facts": ("evaluate",),
    "demo": ("checkpoints", "evaluate", "batches"),
}
# Abbreviations of the scores of `evaluate`, as a whole heading or in brackets within one.
_SCORE = re.compile(r"\(([A-Z]{1,2})\)|^([A-Z]{1,2})$")


def percent(value: float) -> str:
    """A fraction as a percentage, for sentences; one decimal from 95% on, where it distinguishes methods."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.1%}" if 0.95 <= value < 0.9995 else f"{value:.0%}"


def times(value: float) -> str:
    """A ratio to the value before any edit, for sentences."""
    return f"{value:,.2f}×" if math.isfinite(value) else "beyond measure"


def number(value: float) -> str:
    """A probability, a count of steps or seconds, for sentences: three figures."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else "unknown"


def duration(seconds: float) -> str:
    """Seconds in a readable unit: "0.41 s", "16 s", "3.2 minutes", "31 hours"."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:#.2g} s"


def figures(value: float) -> str:
    """A number with four significant digits, whole numbers and thousands in full; "–" where nothing was measured."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


@dataclass(frozen=True)
class Unit:
    """How values are written: `name` on axes, `spec` in tables and hover texts, `brief` in sentences."""

    name: str
    spec: str
    brief: Callable[[float], str]
    suffix: str = ""


UNITS = {
    "": Unit("", ".4g", number),
    "%": Unit("%", ".1%", percent),
    "×": Unit("ratio", ".2f", times, "×"),
    "probability": Unit("0 to 1", ".3f", number),
    "s": Unit("s", ".3f", number),
    "steps": Unit("count", ".1f", number),
    "count": Unit("count", ",.0f", number),
    "number": Unit("number", ".0f", number),
}


@dataclass(frozen=True)
class Metric:
    """One number or column: `table` reports it under `key` (which may end in *, for a family).

    `label` names it on axes and in tables, `short` is the heading of a narrow column; `unit` is one of UNITS, `better`
    one of BETTER.
    """

    key: str
    table: str
    label: str
    formula: str
    short: str = ""
    unit: str = ""
    range: str = ""
    better: str = "none"
    source: str = "ketools"

    @property
    def spec(self) -> str:
        """The format of values (the same in Python and d3), such as ".1%"."""
        return UNITS[self.unit].spec

    @property
    def axis(self) -> str:
        """The label with its unit, for an axis or the heading of a table."""
        name = UNITS[self.unit].name
        return f"{self.label} ({name})" if name else self.label

    def format(self, value: float | None) -> str:
        """The value as written in a table, such as "97.4%" or "1.02×"; "–" for None and NaN."""
        if value is None or math.isnan(value):
            return MISSING
        return f"{value:{self.spec}}{UNITS[self.unit].suffix}" if self.unit else figures(value)

    def brief(self, value: float) -> str:
        """The value as written in a sentence, such as "43%" or "1.02×"; in words where it is not finite."""
        return UNITS[self.unit].brief(value)

    def text(self) -> str:
        """The entry in a few lines, shown when a reader hovers over the name."""
        lines = [f"{self.key} ({self.table}): {self.label}", f"  {self.formula}"]
        if self.range:
            lines.append(f"  range: {self.range}")
        if self.better != "none":
            lines.append(f"  better: {self.better}")
        return "\n".join([*lines, f"  source: {self.source}"])


METRICS: tuple[Metric, ...] = tuple(
    Metric(key, table, **entry)
    for table, metrics in packaged("evaluation/metrics.toml").items()
    for key, entry in metrics.items()
)
"""All metrics, in the order of metrics.toml."""


def of_table(table: str) -> tuple[Metric, ...]:
    """The metrics of one table. Raises KetoolsError, listing the known names, for an unknown one."""
    if not (metrics := tuple(metric for metric in METRICS if metric.table == table)):
        known = dict.fromkeys(metric.table for metric in METRICS)
        raise KetoolsError(f"no table {table!r} in the glossary; there are: {', '.join(known)}")
    return metrics


def look_up(key: str, table: str | None = None) -> tuple[Metric, ...]:
    """The meaning of `key`, in `table` or in each table that has it.

    `at_edit_KEY` and `end_KEY` of a run are KEY at that moment; the entry of a family (f1_*) is returned under `key`.

    Raises KetoolsError for a key that is in no table (or not in that one), with similar keys, and for an unknown table.
    """
    among = METRICS
    if table is not None:
        tables = (*_HOLDS.get(table, ()), SHARED)
        among = (*of_table(table), *(m for name in tables if name != table for m in of_table(name)))
    meanings = [replace(metric, key=key) for metric in among if fnmatchcase(key, metric.key)]
    for moment, (when, then) in _MOMENTS.items():
        if not meanings and key.startswith(moment):
            meanings = [
                replace(m, key=key, label=f"{m.label} {when}", short=f"{m.short or m.label} {then}")
                for m in among
                if m.table == "evaluate" and m.key == key.removeprefix(moment)
            ]
    if not meanings:
        near = get_close_matches(key, sorted({metric.key for metric in among}), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `ketools glossary` lists them all"
        raise KetoolsError(f"no entry {key!r} in the glossary{hint}")
    # The meaning in the table itself precedes one shared with other tables.
    return tuple([metric for metric in meanings if metric.table == table] or meanings)


def metric(key: str, table: str = "demo") -> Metric:
    """The metric that `table` reports under `key`, by default in a run (at a checkpoint, a batch or its end).

    Examples:
        >>> metric("unedited_kept").format(0.9741)
        '97.4%'
        >>> metric("ratio", "norms").axis
        'relative norm of a layer (ratio)'

    Raises KetoolsError as `look_up` does.
    """
    return look_up(key, table)[0]


def hover_text(key: str, table: str | None = None) -> str:
    """`Metric.text()` for `key`; "" if there is no entry, or several with different meanings."""
    try:
        meanings = look_up(key, table)
    except KetoolsError:  # a heading may have no explanation
        return ""
    return meanings[0].text() if len({(m.label, m.formula) for m in meanings}) == 1 else ""


def hover_texts(heads: Iterable[object]) -> dict[str, str]:
    """Explanations for those headings of a table that name a metric: heading -> `Metric.text()`; others are left out.

    A heading names a metric by its key ("unedited_kept"), its label ("seconds per edit"), with or without its unit in
    brackets after it, or by the abbreviation of a score ("ES", "efficacy (ES): MEMIT"). Headings with different
    meanings in different tables are left out: a wrong explanation is worse than none.
    """
    known: dict[str, list[Metric]] = {}
    for entry in METRICS:
        for word in {entry.key, entry.label}:
            known.setdefault(word, []).append(entry)
    texts = {}
    for head in dict.fromkeys(head for head in heads if isinstance(head, str)):
        meanings = known.get(head) or known.get(re.sub(r" \([^()]*\)$", "", head), [])
        if score := _SCORE.search(head):
            meanings = [entry for entry in known.get(score[1] or score[2], []) if entry.table == "evaluate"]
        if len({(entry.label, entry.formula) for entry in meanings}) == 1:
            texts[head] = meanings[0].text()
    return texts
