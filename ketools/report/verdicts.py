"""What a table of runs shows, as data, and the one place that turns it into sentences.

A `Verdict` holds the question, the numbers and what they are based on; `str(verdict)` words it for either outcome. What was
not run or measured has no verdict. The paper's figures: Gupta et al., "Lifelong Knowledge Editing requires Better
Regularization", arXiv 2502.01636.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ketools.evaluation.metrics import metric, number, percent
from ketools.plots.style import ends_of
from ketools.runs.records import listed, title
from ketools.runs.reproduce import published

_PAPER = published()
S_GPT2_XL = {
    method: _PAPER["counterfact"]["GPT2-XL"][title(method)][3]
    for method in ("memit", "memit+mpes", "memit+norm", "encore", "alphaedit", "emmet+mpes")
}
"""The score S of GPT2-XL after 10,000 edits of CounterFact, in percent."""
MORE_CONFIDENT = {
    method + part: all(
        row[title(method)][column] > row[title(method)][0]
        for model, row in _PAPER["overfitting"].items()
        if model != "columns"
    )
    for part, column in (("", 1), ("+mpes", 2))
    for method in ("emmet", "memit", "alphaedit")
}
"""Table 1: are edited facts more probable than natural ones, on all three models?"""
NORMS = {"memit": "more than 10×", "alphaedit": "about 2×", "encore": "near 1×"}
"""Figures 1 and 4: the largest norm ratio after 10,000 edits."""
DOWNSTREAM = {"memit": "falls", "alphaedit": "falls", "encore": "holds"}
"""Figures 3 and 6: the course of the downstream F1."""
PARTS = {"sequential-memit": "past keys", "memit+mpes": "MPES", "memit+norm": "the norm constraint"}
"""MEMIT with only one of ENCORE's three changes -> the name of that change."""
# Metrics that the parts are compared by, and the smallest difference between MEMIT and ENCORE worth attributing to them.
_ENOUGH = {
    "unedited_kept": 0.01, "same_subject_kept": 0.01, "norm_ratio": 0.05, "efficacy_accuracy": 0.01, "S": 0.01,
    "perplexity_ratio": 0.02,
}  # fmt: skip
HELD = 0.9
"""A matrix counts as not yet full while this share of its edits is recalled."""

Rows = Mapping[str, Mapping[str, float] | pd.Series]
"""Method -> its metrics, if measured: norm_ratio, S, p_at_edit (of the new object, right after its edit), p_natural, downstream_kept."""


@dataclass(frozen=True)
class Verdict:
    """A finding as data.

    Attributes:
        kind: the question, a key of SENTENCES.
        values: the numbers that answer it, mostly by method.
        n: how many runs, edits, checkpoints or pairs (depending on the kind) they are based on.
        about: the metric or model in question, if there is one.
    """

    kind: str
    values: Mapping[str, Any]
    n: int
    about: str = ""

    def __str__(self) -> str:
        """The verdict as a sentence."""
        return SENTENCES[self.kind](self)


def beside_paper(rows: Rows) -> list[Verdict]:
    """Norm, overfitting, downstream tasks and the order by S, compared with the paper; n: methods compared."""
    verdicts = []
    if ratios := _known(rows, "norm_ratio", NORMS):
        verdicts.append(Verdict("paper: norm", ratios, len(ratios)))
    natural = _known(rows, "p_natural", MORE_CONFIDENT)
    edited = {m: p for m, p in _known(rows, "p_at_edit", MORE_CONFIDENT).items() if m in natural}
    if edited:
        both = {m: {"edited": p, "natural": natural[m]} for m, p in edited.items()}
        verdicts.append(Verdict("paper: overfitting", both, len(both)))
    if kept := _known(rows, "downstream_kept", DOWNSTREAM):
        verdicts.append(Verdict("paper: downstream", kept, len(kept)))
    if len(scores := _known(rows, "S", S_GPT2_XL)) >= 3:
        verdicts.append(Verdict("paper: order", scores, len(scores)))
    return verdicts


def _known(rows: Rows, name: str, of: Mapping[str, object]) -> dict[str, float]:
    """Method -> value, for methods in the paper whose value was measured."""
    values = {m: float(rows[m].get(name, math.nan)) for m in of if m in rows}
    return {m: value for m, value in values.items() if not math.isnan(value)}


def reading(table: pd.DataFrame) -> dict[str, list[Verdict]]:
    """Verdicts on the table of `ketools.runs.compare.by_method`, by model: collapses, the end, parts, time, the paper.

    Methods of which a run ended early appear in the first only. Their n: runs that collapsed; edits; seeds of MEMIT and ENCORE.
    """
    verdicts = {}
    for model, part in table.groupby("model", sort=False):
        rows = {str(row["method"]): row for _, row in part.iterrows()}
        whole = {method: row for method, row in rows.items() if not row["collapsed"]}
        verdicts[str(model)] = [*_collapsed(rows), *_end(whole), *_parts(whole), *_time(whole), *beside_paper(whole)]
    return verdicts


def _collapsed(rows: Mapping[str, pd.Series]) -> list[Verdict]:
    ended = {m: {"runs": int(row["collapsed"]), "of": int(row["seeds"])} for m, row in rows.items() if row["collapsed"]}
    return [Verdict("collapsed", ended, sum(each["runs"] for each in ended.values()))] if ended else []


def _end(rows: Mapping[str, pd.Series]) -> list[Verdict]:
    """Which method keeps most unedited facts, and which has the highest score."""
    known = {m: row for m, row in rows.items() if pd.notna(row["unedited_kept"]) and pd.notna(row["S"])}
    if len(known) < 2:
        return []
    values = {name: {m: float(row[name]) for m, row in known.items()} for name in ("unedited_kept", "S")}
    return [Verdict("end", values, max(int(row["edits"]) for row in rows.values()))]


def _parts(rows: Mapping[str, pd.Series]) -> list[Verdict]:
    """For each metric, its value with MEMIT, with ENCORE, and with each of ENCORE's parts alone added to MEMIT."""
    if not {"memit", "encore"} <= set(rows) or not set(PARTS) & set(rows):
        return []
    verdicts = []
    for name in _ENOUGH:
        values = {m: float(rows[m][name]) for m in ("memit", *PARTS, "encore") if m in rows}
        values = {m: value for m, value in values.items() if math.isfinite(value)}
        if {"memit", "encore"} <= set(values):
            seeds = sum(int(rows[m]["seeds"]) for m in ("memit", "encore"))
            verdicts.append(Verdict("parts", values, seeds, name))
    return verdicts


def progress(parts: Verdict) -> dict[str, float]:
    """For a verdict on parts: how far each part alone goes from MEMIT (0) to ENCORE (1); {} if these hardly differ."""
    start, end = parts.values["memit"], parts.values["encore"]
    if abs(end - start) < _ENOUGH[parts.about]:
        return {}
    return {m: (value - start) / (end - start) for m, value in parts.values.items() if m in PARTS}


def _time(rows: Mapping[str, pd.Series]) -> list[Verdict]:
    # Seconds are comparable only on one processor.
    if not {"memit", "encore"} <= set(rows) or not rows["memit"]["processor"] == rows["encore"]["processor"] != "":
        return []
    seconds = {m: float(rows[m]["seconds_per_edit"]) for m in ("memit", "encore")}
    seeds = sum(int(rows[m]["seeds"]) for m in seconds)
    return [Verdict("time", seconds, seeds)] if all(value > 0 for value in seconds.values()) else []


def capacity_reached(frame: pd.DataFrame) -> list[Verdict]:
    """Up to what load each method's edits are recalled (a share of HELD), from `ketools.report.figures.capacity`.

    A verdict per model. values: by method, load (of the last checkpoint at which they are; None: at none), first (load of the
    first checkpoint) and then (share recalled at the first checkpoint below HELD; None: never below). n: the number of
    independent keys of a matrix.
    """
    verdicts = []
    for model, part in frame.dropna(subset="held").groupby("model", sort=False):
        values = {}
        for method, line in part.groupby("method", sort=False):
            line = line.sort_values("edits")
            fallen = line[line["held"] < HELD]
            holding = line[line["edits"] < fallen["edits"].iloc[0]] if len(fallen) else line
            values[str(method)] = {
                "load": float(holding["load"].iloc[-1]) if len(holding) else None,
                "first": float(line["load"].iloc[0]),
                "then": float(fallen["held"].iloc[0]) if len(fallen) else None,
            }
        verdicts.append(Verdict("capacity", {"share": HELD, "methods": values}, int(part["d_mlp"].iloc[0]), str(model)))
    return verdicts


def _titles(methods: Sequence[str]) -> str:
    return listed([title(m) for m in methods])


def _say_norm(verdict: Verdict) -> str:
    each = [f"{title(m)} {metric('norm_ratio').brief(value)} ({NORMS[m]})" for m, value in verdict.values.items()]
    return f"Largest norm ratio (in brackets: the paper's after 10,000 edits): {listed(each)}."


def _say_overfitting(verdict: Verdict) -> str:
    each = [f"{title(m)} {number(p['edited'])} against {number(p['natural'])}" for m, p in verdict.values.items()]
    same = [m for m, p in verdict.values.items() if (p["edited"] > p["natural"]) == MORE_CONFIDENT[m]]
    other = [m for m in verdict.values if m not in same]
    agree = [f"{how} the paper's table 1 with {_titles(ms)}" for ms, how in ((same, "as in"), (other, "unlike")) if ms]
    return f"Mean probability of edited facts right after their edit, against natural facts: {listed(each)}; {listed(agree)}."


def _say_downstream(verdict: Verdict) -> str:
    each = [f"{title(m)} {percent(value)} (in the paper it {DOWNSTREAM[m]})" for m, value in verdict.values.items()]
    return f"Relative downstream F1: {listed(each)}."


def _say_order(verdict: Verdict) -> str:
    here = sorted(verdict.values, key=lambda m: -verdict.values[m])
    there = sorted(verdict.values, key=lambda m: -S_GPT2_XL[m])
    if here == there:
        return f"The order by S is the paper's on GPT2-XL: {', '.join(map(title, here))}."
    pairs = [(a, b) for i, a in enumerate(here) for b in here[i + 1 :]]
    same = sum(S_GPT2_XL[a] > S_GPT2_XL[b] for a, b in pairs)
    return (
        f"The order by S is {', '.join(map(title, here))}; in the paper on GPT2-XL it is "
        f"{', '.join(map(title, there))}: {same} of {len(pairs)} pairs are in the same order."
    )


def _say_collapsed(verdict: Verdict) -> str:
    each = [f"{title(m)} ({runs['runs']} of {runs['of']} runs)" for m, runs in verdict.values.items()]
    return f"Runs ended early with an update that was not finite: {listed(each)}."


def _say_end(verdict: Verdict) -> str:
    kept, score = verdict.values["unedited_kept"], verdict.values["S"]
    most, least = ends_of(kept)
    head = f"After {verdict.n:,} edits {_titles(most)} {'has' if len(most) == 1 else 'have'} kept"
    tail = f"{_titles(ends_of(score)[0])} reached the highest score S ({percent(max(score.values()))})."
    if not least:
        return f"{head} about as much of what was not edited ({percent(max(kept.values()))}); {tail}"
    return (
        f"{head} most of what was not edited ({percent(max(kept.values()))}), {_titles(least)} least "
        f"({percent(min(kept.values()))}); {tail}"
    )


def _say_parts(verdict: Verdict) -> str:
    about = metric(verdict.about)
    what = about.label[0].upper() + about.label[1:]
    shown = {m: about.brief(value) for m, value in verdict.values.items()}
    ways = progress(verdict)
    if abs(verdict.values["encore"] - verdict.values["memit"]) < _ENOUGH[verdict.about]:
        return f"{what}: MEMIT ({shown['memit']}) and ENCORE ({shown['encore']}) hardly differ."
    head = f"{what}: {shown['memit']} with MEMIT, {shown['encore']} with ENCORE"
    if not ways:
        return f"{head}."
    far = {m: f"{-way:.0%} the other way" if way < -0.005 else f"{max(way, 0):.0%}" for m, way in ways.items()}
    most = max(ways, key=lambda m: ways[m])
    tail = f"{PARTS[most]} alone goes furthest" if ways[most] > 0 else "none of them alone goes in that direction"
    each = [f"{PARTS[m]} {far[m]} ({shown[m]})" for m in ways]
    return f"{head}. Each part, added to MEMIT alone, goes this share of the way: {listed(each)}; {tail}."


def _say_time(verdict: Verdict) -> str:
    memit, encore = verdict.values["memit"], verdict.values["encore"]
    if abs(encore / memit - 1) < 0.02:
        return f"An edit takes {encore:.3f} s with ENCORE and about as long with MEMIT ({memit:.3f} s)."
    than = f"{percent(1 - encore / memit)} less" if encore < memit else f"{percent(encore / memit - 1)} more"
    return f"An edit takes {encore:.3f} s with ENCORE, {than} than with MEMIT ({memit:.3f} s)."


def _say_capacity(verdict: Verdict) -> str:
    each = []
    for method, reached in verdict.values["methods"].items():
        if reached["load"] is None:
            each.append(f"{title(method)} at no checkpoint, the first at {reached['first']:.2g}")
        elif reached["then"] is None:
            each.append(f"{title(method)} to the end, {reached['load']:.2g}")
        else:
            each.append(f"{title(method)} up to {reached['load']:.2g} (then {reached['then']:.0%})")
    return (
        f"On {verdict.about}, whose edited matrices have room for {verdict.n:,} independent keys, "
        f"{verdict.values['share']:.0%} of the edits are recalled, by load (edits / d_mlp): {listed(each)}."
    )


def _say_unknown(verdict: Verdict) -> str:
    seeds = f" (seed {listed([str(seed) for seed in verdict.values['seeds']])})" if verdict.values["seeds"] else ""
    return (
        f"The unedited model answered {verdict.values['known']:,} of {verdict.n:,} {verdict.about} correctly; the others "
        f"are not counted{seeds}."
    )


def _say_pairs(verdict: Verdict) -> str:
    return (
        f"{verdict.values['differ']:,} of {verdict.n:,} pairs of runs on the same facts differ in efficacy at the end "
        "(adjusted p below 0.05)."
    )


SENTENCES: Mapping[str, Callable[[Verdict], str]] = {
    "paper: norm": _say_norm,
    "paper: overfitting": _say_overfitting,
    "paper: downstream": _say_downstream,
    "paper: order": _say_order,
    "collapsed": _say_collapsed,
    "end": _say_end,
    "parts": _say_parts,
    "time": _say_time,
    "capacity": _say_capacity,
    "unknown": _say_unknown,
    "pairs": _say_pairs,
}
"""How to word each kind of verdict."""
