"""What the paper saw beside what these runs saw: sentences worded from the numbers, whichever way they came out.

The paper's figures: Gupta et al., "Lifelong Knowledge Editing requires Better Regularization", arXiv 2502.01636.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from ketools.course.findings import number, percent, times
from ketools.runs.names import listed, title

S_GPT2_XL = {
    "memit": 0.7422, "memit+mpes": 0.7368, "memit+norm": 0.7453, "encore": 0.7458, "alphaedit": 0.6920, "emmet+mpes": 0.7343,
}  # fmt: skip
"""Table 2: the score S of GPT2-XL after 10,000 edits of CounterFact."""
SURER = {
    "emmet": True, "memit": True, "alphaedit": True, "emmet+mpes": True, "memit+mpes": False, "alphaedit+mpes": False,
}  # fmt: skip
"""Table 1: are edited facts more probable than natural ones? On the three models alike, but for a tie of AlphaEdit + MPES (GPT2-XL)."""
_NORMS = {"memit": "more than 10×", "alphaedit": "about 2×", "encore": "near 1×"}  # figures 1 and 4
_DOWNSTREAM = {"memit": "falls", "alphaedit": "falls", "encore": "holds"}  # figures 3 and 6

Rows = Mapping[str, Mapping[str, float] | pd.Series]
"""Method -> its measures: norm_ratio, S, p_at_edit (of the new object, right after its edit), p_natural, downstream_kept; what was not measured may be missing."""


def beside_paper(rows: Rows) -> list[str]:
    """A sentence each on the norm, on overfitting, on the downstream tasks and on the order by S, where there are numbers for it."""
    return [text for text in (norms(rows), overfitting(rows), downstream(rows), order(rows)) if text]


def norms(rows: Rows) -> str:
    """The paper: MEMIT beyond 10 times, AlphaEdit about 2, ENCORE near the original norm."""
    here = [f"{title(m)} {times(value)} (there {_NORMS[m]})" for m, value in _known(rows, "norm_ratio", _NORMS)]
    return f"The largest norm ratio, against the paper's after 10,000 edits: {listed(here)}." if here else ""


def overfitting(rows: Rows) -> str:
    """Edited facts surer than natural ones: as in the paper's table 1, or not."""
    natural = dict(_known(rows, "p_natural", SURER))
    both = [(m, value, natural[m]) for m, value in _known(rows, "p_at_edit", SURER) if m in natural]
    if not both:
        return ""
    same = [m for m, edited, before in both if (edited > before) == SURER[m]]
    other = [m for m, *_ in both if m not in same]
    each = [f"{title(m)} {number(edited)} against {number(before)}" for m, edited, before in both]
    verdicts = [
        f"{how} the paper's table 1 with {listed([title(m) for m in part])}"
        for part, how in ((same, "as in"), (other, "unlike"))
        if part
    ]
    return f"Edited facts right after their edit against natural ones, mean probability: {listed(each)}; {listed(verdicts)}."


def downstream(rows: Rows) -> str:
    """How much of the downstream score is left, beside the paper's curves."""
    here = [
        f"{title(m)} {percent(value)} (there it {_DOWNSTREAM[m]})"
        for m, value in _known(rows, "downstream_kept", _DOWNSTREAM)
    ]
    return f"Downstream F1, of before: {listed(here)}." if here else ""


def order(rows: Rows) -> str:
    """The order of methods by S, here and in the paper."""
    scores = dict(_known(rows, "S", S_GPT2_XL))
    if len(scores) < 3:
        return ""
    here = sorted(scores, key=lambda m: -scores[m])
    there = sorted(scores, key=lambda m: -S_GPT2_XL[m])
    if here == there:
        return f"The order by S is the paper's on GPT2-XL: {', '.join(map(title, here))}."
    pairs = [(a, b) for i, a in enumerate(here) for b in here[i + 1 :]]
    same = sum(S_GPT2_XL[a] > S_GPT2_XL[b] for a, b in pairs)
    return (
        f"The order by S is {', '.join(map(title, here))}; in the paper on GPT2-XL it is "
        f"{', '.join(map(title, there))}: {same} of {len(pairs)} pairs stand the same way round."
    )


def _known(rows: Rows, name: str, of: Mapping[str, object]) -> Sequence[tuple[str, float]]:
    """(method, value) where the paper speaks of the method and the value was measured."""
    found = [(m, float(rows[m].get(name, math.nan))) for m in of if m in rows]
    return [(m, value) for m, value in found if not math.isnan(value)]
