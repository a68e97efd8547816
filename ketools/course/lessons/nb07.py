"""Notebook 07: what is asked of edits with different stopping rules, exercises."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.evaluation.edits import evaluate
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.plots.drawers import add_line, add_reference, checked
from ketools.plots.style import OKABE_ITO, Style, dress, joined
from ketools.probing.recall import answers

_LOOKS = {
    "accuracy": ("edited prompts say the new object", Style(OKABE_ITO["blue"], "solid", "circle")),
    "paraphrases": ("paraphrases say the new object", Style(OKABE_ITO["orange"], "dash", "square")),
    "p_edited": ("mean probability of the new object", Style(OKABE_ITO["vermillion"], "dot", "diamond")),
    "beside": ("the subjects' other facts still right", Style(OKABE_ITO["green"], "dashdot", "cross")),
}


def known_answer(facts: Iterable[Fact]) -> list[Fact]:
    """The facts with their true object as the target: an edit that has nothing to change."""
    bare: dict[str, Any] = {"target_true": None, "neighbours": (), "two_hop": ()}
    return [replace(fact, target_new=fact.need_true("a known answer as target"), **bare) for fact in facts]


def beside(lab: Lab, facts: Iterable[Fact]) -> list[Fact]:
    """The subjects' other facts, those that the model as it stands answers right (none where facts come alone)."""
    by_subject = lab.facts.by_subject()
    found = [other for fact in facts for other in by_subject[fact.subject] if other.relation != fact.relation]
    found = [other for other in found if other.target_true is not None]
    if not found:
        return []
    right = answers(lab.model, [o.text for o in found], [str(o.target_true) for o in found])["right"]
    return [other for other, hit in zip(found, right, strict=True) if hit]


def asked(model: EditableModel, facts: Sequence[Fact], others: Sequence[Fact]) -> dict[str, float]:
    """The model as it stands: p_edited (mean probability of the new objects), accuracy and paraphrases (shares whose every
    token of the new object is first), beside (share of `others` answered right; NaN without any).
    """
    means = evaluate(model, facts, neighbours=0, two_hop=0, locality=0)[
        ["p_new", "efficacy_accuracy", "paraphrase_accuracy"]
    ].mean()
    kept = (
        answers(model, [f.text for f in others], [str(f.target_true) for f in others])["right"].mean()
        if others
        else np.nan
    )
    return dict(zip(("p_edited", "accuracy", "paraphrases", "beside"), [*means.tolist(), float(kept)], strict=True))


def ablation_lines(frame: pd.DataFrame, natural: float, context: str) -> go.Figure:
    """A row of `asked` per stopping rule (column stopping), a line per measure, with the natural level."""
    frame = checked(frame, "stopping", *_LOOKS, of="nb07.asked", least=2)
    fig = go.Figure()
    for column, (name, look) in _LOOKS.items():
        if frame[column].notna().any():
            add_line(fig, frame["stopping"], frame[column], name, look)
    add_reference(fig, list(frame["stopping"].iloc[[0, -1]]), [natural, natural], "natural probability", ".3f")
    fig.update_xaxes(title="stopping (steps after the target first is most probable)", type="category")
    fig.update_yaxes(title="share or probability (0 to 1)", range=[0, 1.04])
    first, last = frame.iloc[0], frame.iloc[-1]
    said = (
        f"edits from {first['p_edited']:.2f} to {last['p_edited']:.2f} in probability, from {first['accuracy']:.0%} to "
        f"{last['accuracy']:.0%} in efficacy"
    )
    caption = joined("MEMIT each time, its target optimisation stopped earlier or later.", context)
    if not math.isnan(last["beside"]):
        said += f"; the subjects' other facts from {first['beside']:.0%} to {last['beside']:.0%}"
    return dress(fig, f"More patience: {said}", caption, f"Lines over stopping rules: {said}.", 440)


_TRACE = np.array([[0.1, 0.5, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4], [0.9, 0.2, 0.9, 0.9]])
Stop = Callable[[np.ndarray, float], np.ndarray]


at_level = Exercise(
    "Stop at the natural level",
    "medium",
    10,
    properties=(
        Property(
            "one number of steps a fact",
            lambda answer: np.shape(answer(_TRACE, 0.7)) == (3,),
            "p is (facts, passes): the answer has one entry a fact.",
        ),
        Property(
            "a fact stops at the first pass above the level",
            lambda answer: list(np.asarray(answer(_TRACE, 0.7))[[0, 2]]) == [2, 0],
            "A fact may begin above the level and dip below it later. It stops at the first pass above: argmax of a "
            "boolean row gives the place of its first True.",
        ),
        Property(
            "a fact that never gets there takes all steps",
            lambda answer: int(answer(_TRACE, 0.7)[1]) == 3,
            "argmax of a row without any True is 0: no step at all, and nothing is written. Such a fact has to go on to "
            "the last pass, p.shape[1] - 1.",
        ),
    ),
)

Differs = Callable[[np.ndarray], bool]


def _hits(positions: int, *wrong: tuple[int, int]) -> np.ndarray:
    hits = np.ones((6, positions), dtype=bool)
    for at in wrong:
        hits[at] = False
    return hits


differs = Exercise(
    "Find the official defect",
    "hard",
    20,
    properties=(
        Property(
            "one position, all right: both stop",
            lambda answer: not answer(_hits(1)),
            "Five prefixes are right and so is the bare prompt: the count is 5 and the definition holds. They agree.",
        ),
        Property(
            "the bare prompt alone is wrong: they differ",
            lambda answer: bool(answer(_hits(1, (0, 0)))),
            "The count leaves row 0 out, so it says stop; the definition asks all six contexts.",
        ),
        Property(
            "two positions, all right: they differ",
            lambda answer: bool(answer(_hits(2))),
            "Ten pairs behind prefixes are right, and ten is not five: the count goes on where the definition stops.",
        ),
        Property(
            "two positions, five hits by chance: they differ",
            lambda answer: bool(answer(_hits(2, *((row, 1) for row in range(1, 6))))) and not answer(_hits(2, (1, 0))),
            "First tokens right and second ones wrong give five hits: the count stops although the object is not said yet.",
        ),
    ),
)
