"""Sentences that say what a figure's data show: computed, never assumed, and worded for whichever way it came out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from ketools.course.style import label
from ketools.runs.names import listed

Values = Mapping[str, float]

_SAID = 4  # methods whose values a sentence holds


@dataclass(frozen=True)
class Verdict:
    """How one measure is judged and worded: `what` is `good` with the methods for which `ok` holds, else `bad`.

    `measure` names the values that follow in brackets, written by `show`. The bounds in `ok` are those of the
    project's main claim (norm at most 1.5 times, 95% of unedited facts, 97% of downstream F1, 95% of the edits).
    """

    what: str
    good: str
    bad: str
    measure: str
    ok: Callable[[float], bool]
    show: Callable[[float], str]

    def sentence(self, ends: Values, edits: str) -> str:
        """One sentence about `ends` (method -> value after `edits` edits; NaN counts as bad)."""
        fine = [label(m) for m, value in ends.items() if self.ok(value)]
        poor = [label(m) for m, value in ends.items() if not self.ok(value)]
        if fine and poor:
            head = f"{self.what} {self.bad} with {listed(poor)}, {self.good} with {listed(fine)}"
        else:
            head = f"{self.what} {self.good if fine else self.bad} with {_all(ends)}"
        return f"{head} ({self.measure} after {edits} edits: {_values(ends, self.show)})"


def _all(ends: Values) -> str:
    return label(next(iter(ends))) if len(ends) == 1 else "every method"


def _values(ends: Values, show: Callable[[float], str]) -> str:
    # Of many methods the two at the ends: the figure and the table hold them all.
    if len(ends) > _SAID and all(math.isfinite(value) for value in ends.values()):
        low, high = (pick(ends, key=ends.__getitem__) for pick in (min, max))
        return f"from {label(low)} {show(ends[low])} to {label(high)} {show(ends[high])}"
    return ", ".join((f"{label(m)} " if len(ends) > 1 else "") + show(value) for m, value in ends.items())


def percent(value: float) -> str:
    """A fraction as a percentage; one decimal from 95% on, where it is what tells methods apart."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.1%}" if 0.95 <= value < 0.9995 else f"{value:.0%}"


def times(value: float) -> str:
    """A ratio to the value before any edit."""
    return f"{value:,.2f}×" if math.isfinite(value) else "beyond measure"


def number(value: float) -> str:
    """A probability, a count of steps, seconds: three figures."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else "unknown"


def p_value(p: float) -> str:
    """A p-value with four decimals."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


NORM = Verdict(
    "Edited matrices", "keep near their original norm", "outgrow their norm", "largest ratio", lambda v: v <= 1.5, times
)
UNEDITED = Verdict("Unedited facts", "survive", "get lost", "still right", lambda v: v >= 0.95, percent)
SAME_SUBJECT = Verdict(
    "Other facts about edited subjects", "survive", "get lost", "still right", lambda v: v >= 0.95, percent
)
DOWNSTREAM = Verdict("Downstream skill", "survives", "declines", "F1 of before", lambda v: v >= 0.97, percent)
PERPLEXITY = Verdict(
    "Ordinary text", "is predicted as before", "is predicted worse", "perplexity ratio", lambda v: v <= 1.1, times
)
EFFICACY = Verdict("Edits", "hold", "fail in part", "efficacy", lambda v: v >= 0.95, percent)


def last(frame: pd.DataFrame, column: str) -> tuple[dict[str, float], str]:
    """(method -> value in its last row, "1,000" or "200 to 1,000": how many edits that was after)."""
    rows = frame.sort_values("edits").groupby("method", sort=False).tail(1).set_index("method")
    methods = list(dict.fromkeys(frame["method"]))
    counts = sorted({int(rows.loc[m, "edits"]) for m in methods})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return {m: float(rows.loc[m, column]) for m in methods}, span


def ends_of(values: Values) -> tuple[list[str], list[str]]:
    """The methods with the highest and with the lowest value, each with all that lie within a percentage point of it.

    To name one of those alone would say too much. None is in both; the second is empty where all are in the first.
    """
    most, least = max(values.values()), min(values.values())
    first = [m for m, value in values.items() if value >= most - 0.01]
    return first, [m for m, value in values.items() if value <= least + 0.01 and m not in first]


def probability(edited: Values, natural: float, edits: str) -> str:
    """Is the model surer of what was edited in than of what it learnt?"""
    over = [label(m) for m, value in edited.items() if value > natural]
    if over:
        head = f"The model is surer of edited facts than of natural ones with {listed(over) if len(over) < len(edited) else _all(edited)}"
    else:
        head = f"The model is no surer of edited facts than of natural ones with {_all(edited).replace('every', 'any')}"
    return f"{head} (after {edits} edits: {_values(edited, number)}; natural {number(natural)})"


def cost(steps: Values, seconds: Values) -> str:
    """Which method's targets take the fewest steps; seconds stand beside them, uncompared: they belong to a machine."""
    order = sorted(steps, key=lambda m: steps[m])
    few, many = order[0], order[-1]
    head = f"{label(few)} takes {number(steps[few])} steps per fact ({number(seconds[few])} s)"
    if few == many:
        return head
    saved, other = 1 - steps[few] / steps[many], f"{label(many)} ({number(steps[many])}; {number(seconds[many])} s)"
    return f"{head}, no fewer than {other}" if saved < 0.01 else f"{head}, {percent(saved)} fewer than {other}"
