"""Notebook 07: what stopping step 1 earlier costs and saves, the patience dial, exercises."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.passes import Watched
from ketools.course.mode import Lab
from ketools.course.widgets.base import View
from ketools.editing.editor import Editor
from ketools.evaluation.edits import evaluate, recall
from ketools.evaluation.overfitting import natural_probabilities
from ketools.facts.fact import Fact
from ketools.models.weights import fresh
from ketools.norms.drift import overfitting_curve, trace
from ketools.plots import target_trace_lines
from ketools.plots.drawers import add_line, add_reference, checked
from ketools.plots.style import OKABE_ITO, Style, dress, joined
from ketools.probing.recall import answers

__all__ = [
    "PatienceDial", "ablation", "ablation_lines", "at_level", "beside", "chance", "known_answer", "natural_probabilities",
    "overfitting_curve",
]  # fmt: skip

Rule = Callable[[np.ndarray, int], np.ndarray]
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


def _scored(editor: Editor, watched: Watched, steps: np.ndarray, others: Sequence[Fact]) -> dict[str, float]:
    # The edit with targets stopped after `steps`, evaluated and taken out again.
    targets = watched.stopped(steps)
    editor.apply(watched.facts, targets=targets)
    frame = evaluate(editor.model, watched.facts, neighbours=0, two_hop=0, locality=0)
    kept = recall(editor.model, others, prompts="prompt")["accuracy"].mean() if others else np.nan
    editor.undo()
    means = frame[["p_new", "efficacy_accuracy", "paraphrase_accuracy"]].mean().tolist()
    found = [np.mean(steps), targets.p_target.mean(), *means, kept]
    return dict(
        zip(("steps", "p_step1", "p_edited", "accuracy", "paraphrases", "beside"), map(float, found), strict=True)
    )


def ablation(
    lab: Lab, watched: Watched, rule: Rule, patiences: Sequence[int], fixed: np.ndarray, others: Sequence[Fact]
) -> pd.DataFrame:
    """The same targets stopped earlier and later, written by MEMIT and evaluated.

    `rule(right, patience)` gives the steps (n,), never more than `fixed` (n,), those without it; `others`: the subjects'
    other facts, known before.

    Returns:
        A row per stopping: stopping ("+0", "+1", ..., "fixed steps"), patience (NaN for the last), steps (mean), p_step1,
        p_edited (mean probability of the new object at the end of step 1, and after the edit), accuracy, paraphrases
        (shares whose every token of the new object is first), beside (share of `others` still right).
    """
    editor = Editor(lab.model, "memit", statistics=lab.statistics, seed=lab.seed)
    rows: list[dict[str, object]] = []
    with fresh(lab.model):
        for n in patiences:
            steps = np.minimum(rule(watched.right, n), fixed)
            rows.append({"stopping": f"+{n}", "patience": n, **_scored(editor, watched, steps, others)})
        rows.append({"stopping": "fixed steps", **_scored(editor, watched, fixed, others)})
    return pd.DataFrame(rows)


def ablation_lines(frame: pd.DataFrame, natural: float, context: str) -> go.Figure:
    """The frame of `ablation`, a line per measure, with the natural level."""
    frame = checked(frame, "stopping", "steps", *_LOOKS, of="nb07.ablation", least=2)
    fig = go.Figure()
    for column, (name, look) in _LOOKS.items():
        if frame[column].notna().any():
            add_line(fig, frame["stopping"], frame[column], name, look)
    add_reference(fig, list(frame["stopping"].iloc[[0, -1]]), [natural, natural], "natural probability", ".3f")
    fig.update_xaxes(title="stopping (steps after the target first is most probable)", type="category")
    fig.update_yaxes(title="share or probability (0 to 1)", range=[0, 1.04])
    first, last = frame.iloc[0], frame.iloc[-1]
    said = (
        f"from {first['stopping']} to {last['stopping']} the mean probability goes from {first['p_edited']:.2f} to "
        f"{last['p_edited']:.2f}, edits that hold from {first['accuracy']:.0%} to {last['accuracy']:.0%}"
    )
    caption = joined("The same step 1, stopped earlier or later; step 2 is MEMIT's each time.", context)
    return dress(fig, f"Patience buys certainty: {said}", caption, f"Lines over stopping rules: {said}.", 440)


class PatienceDial(View):
    """Step 1 with a patience to choose: each fact's probability up to where it stops. Nothing is computed anew."""

    kind, title = "patience", "Patience dial"

    def __init__(
        self, watched: Watched, rule: Rule, fixed: np.ndarray, frame: pd.DataFrame, *, context: str = ""
    ) -> None:
        """`rule`, `fixed` as in `ablation`; `frame`: its table, whose rows are what can be chosen."""
        self.watched, self.rule, self.fixed, self.frame, self.context = watched, rule, fixed, frame, context
        options = [(str(name), i) for i, name in enumerate(frame["stopping"])]
        layout = W.Layout(width="min(40rem, 100%)")
        slider = W.SelectionSlider(options=options, description="stopping", continuous_update=False, layout=layout)
        super().__init__({"stopping": slider}, [["stopping"]])
        self._listen("stopping")
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """`norms.targets.trace` of the facts, each up to where it stops."""
        patience = self.frame["patience"].iloc[self.controls["stopping"].value]
        steps = self.fixed
        if np.isfinite(patience):
            steps = np.minimum(self.rule(self.watched.right, int(patience)), steps)
        return trace(self.watched.stopped(steps), self.watched.facts)

    def figure(self) -> go.Figure:
        """The lines of `target_trace_lines`."""
        row = self.frame.iloc[self.controls["stopping"].value]
        after = f"After step 2: mean probability {row['p_edited']:.2f}, {row['accuracy']:.0%} of edits hold."
        return target_trace_lines(self.data, context=f"{after} {self.context}")


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

Chance = Callable[[Sequence[float], Sequence[float]], float]


def _apart(answer: Chance) -> bool:
    return float(answer([0.8, 0.9], [0.1, 0.2, 0.3])) == 1.0 and float(answer([0.1], [0.5, 0.6])) == 0.0


chance = Exercise(
    "How often is an edited fact the surer one",
    "easy",
    8,
    properties=(
        Property(
            "1 where all are surer, 0 where none is", _apart, "Compare each edited with each natural probability."
        ),
        Property(
            "all pairs count",
            lambda answer: abs(float(answer([0.2, 0.9], [0.1, 0.3, 0.5, 0.7])) - 0.625) < 1e-12,
            "Compare every edited fact with every natural one and take the share of pairs that the edited fact wins: a "
            "comparison of two means is one bit.",
        ),
        Property(
            "equal sides come to one half",
            lambda answer: abs(float(answer([0.1, 0.4, 0.7], [0.1, 0.4, 0.7])) - 0.5) < 1e-12,
            "Ties count one half: p > q, plus half of p == q.",
        ),
    ),
)
