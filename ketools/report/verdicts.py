"""What the paper saw beside what these runs saw: sentences worded from the numbers, whichever way they came out.

The paper's figures: Gupta et al., "Lifelong Knowledge Editing requires Better Regularization", arXiv 2502.01636.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from ketools.evaluation.forgetting import norm_damage
from ketools.plots.style import ends_of, number, percent, times
from ketools.runs.records import Run, listed, title

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


# What a table of runs says, in sentences computed from it: which part does which work, and where the paper saw otherwise.


PARTS = {"sequential-memit": "past keys", "memit+mpes": "MPES", "memit+norm": "the norm constraint"}
"""MEMIT with one of ENCORE's three changes alone: what that one does."""
_WAY: dict[str, tuple[str, Callable[[float], str], float]] = {
    "unedited_kept": ("unedited facts still right", percent, 0.01),
    "same_subject_kept": ("other facts of edited subjects still right", percent, 0.01),
    "norm_ratio": ("the norm of the most grown matrix", times, 0.05),
    "efficacy_accuracy": ("edits that are the model's answer at the end", percent, 0.01),
    "S": ("score S at the end", percent, 0.01),
    "perplexity_ratio": ("perplexity", times, 0.02),
}
_DAMAGED = {
    "unedited_kept": "unedited facts kept",
    "same_subject_kept": "other facts of edited subjects kept",
    "downstream_kept": "downstream F1 kept",
    "perplexity_ratio": "perplexity",
}


def reading(table: pd.DataFrame) -> dict[str, list[str]]:
    """Sentences about the table of `ketools.runs.compare.by_method`, by model: parts, costs, the paper.

    Nothing is assumed of how it came out: each sentence is worded from the numbers, and what was not run is not spoken of.
    """
    said = {}
    for model, part in table.groupby("model", sort=False):
        rows = {str(row["method"]): row for _, row in part.iterrows()}
        texts = [_collapsed(rows), _end(rows), *_parts(rows), _faster(rows), *beside_paper(rows)]
        said[str(model)] = [text for text in texts if text]
    return said


def damage(runs: Sequence[Run]) -> list[str]:
    """Does damage go with the norm: a sentence per model, over the checkpoints of its runs."""
    said = []
    for model in dict.fromkeys(run.model for run in runs):
        those = [run.record.checkpoints for run in runs if run.model == model]
        points = pd.concat(those, ignore_index=True)
        points = points[points["edits"] > 0]
        if "norm_ratio" not in points or not set(_DAMAGED) & set(points):
            continue
        found = norm_damage(points, damage=_DAMAGED).dropna(subset=["spearman"])
        each = [f"{_DAMAGED[row.measure]} {row.spearman:+.2f}" for row in found.itertuples()]
        if each:
            said.append(
                f"On {model}, over {len(points)} checkpoints of {len(those)} {'run' if len(those) == 1 else 'runs'}, the norm "
                f"of the most grown matrix goes with {listed(each)} (Spearman; checkpoints follow each other and are no independent draws)."
            )
    return said


def _collapsed(rows: Rows) -> str:
    ended = [
        f"{title(m)} ({int(row['collapsed'])} of {int(row['seeds'])} runs)"
        for m, row in rows.items()
        if row["collapsed"]
    ]
    return f"An update was not finite, and the run ended there, with {listed(ended)}." if ended else ""


def _end(rows: Rows) -> str:
    """Who keeps most of the model, and who most of the edits."""
    known = {m: row for m, row in rows.items() if pd.notna(row["unedited_kept"]) and pd.notna(row["S"])}
    if len(known) < 2:
        return ""
    kept, score = ({m: float(row[name]) for m, row in known.items()} for name in ("unedited_kept", "S"))
    most, least = ends_of(kept)
    edits = max(int(row["edits"]) for row in rows.values())
    head = f"After {edits:,} edits {_titles(most)} {'has' if len(most) == 1 else 'have'} kept"
    tail = f"the highest score S is that of {_titles(ends_of(score)[0])} ({percent(max(score.values()))})."
    if not least:
        return f"{head} about as much of what was not edited ({percent(max(kept.values()))}); {tail}"
    return (
        f"{head} most of what was not edited ({percent(max(kept.values()))}), {_titles(least)} least "
        f"({percent(min(kept.values()))}); {tail}"
    )


def _titles(methods: Sequence[str]) -> str:
    return listed([title(m) for m in methods])


def _parts(rows: Rows) -> list[str]:
    """For each measure, how far each part alone goes on the way from MEMIT to ENCORE."""
    if not {"memit", "encore"} <= set(rows) or not set(PARTS) & set(rows):
        return []
    said = []
    for name, (what, show, least) in _WAY.items():
        start, end = float(rows["memit"][name]), float(rows["encore"][name])
        if not (math.isfinite(start) and math.isfinite(end)):
            continue
        if abs(end - start) < least:
            said.append(f"{_upper(what)}: MEMIT ({show(start)}) and ENCORE ({show(end)}) hardly differ.")
            continue
        values = {m: float(rows[m][name]) for m in PARTS if m in rows and math.isfinite(float(rows[m][name]))}
        ways = {m: (value - start) / (end - start) for m, value in values.items()}
        each = [f"{PARTS[m]} {_way(ways[m])} ({show(value)})" for m, value in values.items()]
        head = f"{_upper(what)}: {show(start)} with MEMIT, {show(end)} with ENCORE"
        if not ways:
            said.append(f"{head}.")
            continue
        most = max(ways, key=lambda m: ways[m])
        tail = f"{PARTS[most]} alone goes furthest" if ways[most] > 0 else "none of them alone goes that way"
        said.append(f"{head}. Of that way each part, added to MEMIT alone, goes: {listed(each)}; {tail}.")
    return said


def _way(way: float) -> str:
    return f"{-way:.0%} the other way" if way < -0.005 else f"{max(way, 0):.0%}"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _faster(rows: Rows) -> str:
    # Seconds belong to a machine.
    if not {"memit", "encore"} <= set(rows) or not rows["memit"]["processor"] == rows["encore"]["processor"] != "":
        return ""
    a, b = float(rows["memit"]["seconds_per_edit"]), float(rows["encore"]["seconds_per_edit"])
    if not (a > 0 and b > 0):
        return ""
    if abs(b / a - 1) < 0.02:
        return f"An edit takes {b:.3f} s with ENCORE and as long with MEMIT ({a:.3f} s)."
    than = f"{percent(1 - b / a)} less" if b < a else f"{percent(b / a - 1)} more"
    return f"An edit takes {b:.3f} s with ENCORE, {than} than with MEMIT ({a:.3f} s)."
