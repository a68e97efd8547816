"""Notebook 06: the rings of a sequence as lines, stored runs of ten thousand edits, exercises."""

from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.io import data_root
from ketools.plots.drawers import add_line, checked
from ketools.plots.style import OKABE_ITO, Style, dress, joined
from ketools.runs.records import Run, gather

_RINGS = {
    "edits_right": ("the edits", Style(OKABE_ITO["blue"], "solid", "circle")),
    "same_subject_kept": ("the same subjects' other facts", Style(OKABE_ITO["vermillion"], "dash", "square")),
    "unedited_kept": ("other subjects", Style(OKABE_ITO["green"], "dot", "diamond")),
}


def ring_lines(frame: pd.DataFrame, context: str) -> go.Figure:
    """Shares of right answers over edits, a line per ring: columns edits, edits_right, same_subject_kept, unedited_kept."""
    frame = checked(frame, "edits", "edits_right", "unedited_kept", of="notebook 06", least=2)
    fig, said = go.Figure(), []
    for column, (name, look) in _RINGS.items():
        if column in frame:
            add_line(fig, frame["edits"], frame[column], name, look)
            said.append(f"{name} {frame[column].iloc[-1]:.0%}")
    fig.update_xaxes(title="edits so far").update_yaxes(
        title="share of right answers", tickformat=".0%", range=[0, 1.04]
    )
    finding = f"Right after {int(frame['edits'].iloc[-1])} edits: {', '.join(said)}"
    caption = joined("New answers for the edits, old ones for all that was right before.", context)
    return dress(fig, finding, caption, f"Lines over edits. {finding}.")


def long_runs(methods: Sequence[str], model: str = "pocket") -> list[Run]:
    """The stored runs of these methods on pocket or smollm2, seed 0."""
    folder = data_root() / {"pocket": "results", "smollm2": "real"}[model]
    return gather([folder / f"{model}-{method}-seed0" for method in methods])


def about(lab: Lab, runs: Sequence[Run]) -> str:
    """The end of a caption about stored runs."""
    most = max(int(run.record.checkpoints["edits"].max()) for run in runs)
    return f"Mode {lab.mode}, model {runs[0].model}, n = {most:,} edits a method, seed 0, stored."


Over = Callable[[Tensor, Tensor, Tensor], float]


def _three() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 6), (4, 6), (6, 3))
    first, later, keys = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return first, later, keys


def _none(answer: Over) -> bool:
    first, later, keys = _three()
    return abs(float(answer(first, 0 * later, keys))) < 1e-12


def _elsewhere(answer: Over) -> bool:
    first, later, keys = _three()
    away = later - later @ keys @ torch.linalg.pinv(keys)  # acts on directions that the keys do not have
    return float(answer(first, away, keys)) < 1e-9


def _double(answer: Over) -> bool:
    first, _, keys = _three()
    return abs(float(answer(first, -2 * first, keys)) - 2) < 1e-9


disturbance = Exercise(
    "How much is overwritten",
    "medium",
    10,
    properties=(
        Property(
            "without later edits nothing is overwritten",
            _none,
            "A later update of zero overwrites nothing: 0, not minus one. A difference of norms is no norm of a difference.",
        ),
        Property(
            "updates away from the keys do no harm",
            _elsewhere,
            "A large update is harmless to keys that it does not act on. Multiply the update by the keys before you take "
            "the norm.",
        ),
        Property(
            "twice the written, in reverse, is 2", _double, "The norm of what is added over that of what was there."
        ),
    ),
)


kept = Exercise(
    "What is kept",
    "easy",
    5,
    properties=(
        Property(
            "nothing lost is 1",
            lambda answer: float(answer([True, True, False], [True, True, False])) == 1.0,
            "What was wrong before cannot be lost: it does not count.",
        ),
        Property(
            "one of two lost is one half",
            lambda answer: float(answer([True, True, False, False], [True, False, False, False])) == 0.5,
            "Of those right before, the share that is still right.",
        ),
        Property(
            "facts that became right make up for nothing",
            lambda answer: float(answer([True, True, False, False], [True, False, True, True])) == 0.5,
            "A fact that is right now and was not before hides a loss. Look only at facts that were right before.",
        ),
    ),
)
