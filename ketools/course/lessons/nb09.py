"""Notebook 09: what is asked after a sequence, its bars, the dial, exercises."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of
from ketools.course.mode import Lab
from ketools.course.widgets import EncoreDial
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel, load
from ketools.plots.drawers import checked
from ketools.plots.style import OKABE_ITO, dress, joined
from ketools.probing.recall import answers, surroundings
from ketools.runs.sweep import stored

Small = Callable[[Tensor, Tensor, Tensor], Tensor]
Matrices = tuple[Tensor, Tensor, Tensor, Tensor]
_PANELS = {
    "accuracy": ("efficacy", "share (0 to 1)"),
    "beside": ("subjects' other facts", "share (0 to 1)"),
    "elsewhere": ("unedited facts", "share (0 to 1)"),
    "moved": ("norm of the change", "||W' - W|| / ||W||"),
    "overwritten": ("first batch overwritten", "share of what was written"),
    "p_edited": ("probability of edits", "mean (0 to 1)"),
}
_COLOURS = tuple(OKABE_ITO[name] for name in ("vermillion", "orange", "sky", "blue"))


def keys(model: EditableModel, facts: Sequence[Fact], layer: int) -> Tensor:
    """Keys (d_mlp, n) float64 of the facts' bare prompts in the model as it stands."""
    return torch.stack([key_of(model, fact, layer) for fact in facts], 1)


def right(model: EditableModel, facts: Sequence[Fact]) -> float:
    """Share of the facts that the model as it stands answers right."""
    return float(answers(model, [f.text for f in facts], [str(f.target_true) for f in facts])["right"].mean())


def surroundings_of(lab: Lab, facts: Sequence[Fact]) -> pd.DataFrame:
    """`surroundings` of several facts, other facts of their subjects included, one below the other."""
    subjects = lab.facts.by_subject()
    return pd.concat([surroundings(lab.model, fact, subjects[fact.subject]) for fact in facts], ignore_index=True)


def ablation_bars(frame: pd.DataFrame, measures: Sequence[str], context: str) -> go.Figure:
    """One sequence a row, its name the index, as bars: a panel per measure."""
    frame = checked(frame, *measures, of="notebook 09", least=2)
    names = list(frame.index)
    fig = make_subplots(1, len(measures), subplot_titles=[_PANELS[m][0] for m in measures], horizontal_spacing=0.1)
    for at, measure in enumerate(measures, 1):
        values = [float(v) for v in frame[measure]]
        fig.add_bar(
            x=list(names), y=[None if math.isnan(v) else v for v in values], marker={"color": list(_COLOURS[: len(values)])},
            text=["–" if math.isnan(v) else f"{v:.2g}" for v in values], textposition="outside", cliponaxis=False,
            showlegend=False, name=_PANELS[measure][0], hovertemplate="%{x}: %{y:.3f}<extra></extra>", row=1, col=at,
        )  # fmt: skip
        high = np.nanmax(values) if not all(map(math.isnan, values)) else 1
        fig.update_yaxes(title=_PANELS[measure][1], range=[0, 1.18 * max(high, 1e-9)], row=1, col=at)
    rows = "; ".join(
        f"{name}: " + ", ".join(f"{_PANELS[m][0]} {row[m]:.2g}" for m in measures)
        for name, (_, row) in zip(names, frame.iterrows(), strict=True)
    )
    first, last = frame.iloc[0], frame.iloc[-1]
    changed = [m for m in measures if f"{first[m]:.2g}" != f"{last[m]:.2g}"]
    said = ", ".join(f"{_PANELS[m][0]} {first[m]:.2g} to {last[m]:.2g}" for m in changed) or "no measure changes"
    fig.update_xaxes(title="", tickangle=-25)
    caption = joined("Each bar is a sequence of its own, measured at its end.", context)
    return dress(fig, f"From {names[0]} to {names[-1]}: {said}", caption, f"Bars. {rows}.", 430)


def dial(lab: Lab) -> EncoreDial:
    """The dial over the stored grid of the lab's model; where there is none, over that of pocket."""
    model = lab.model
    try:
        grid, about = stored(model)
    except KetoolsError:
        model = load("pocket")
        grid, about = stored(model)
    size = f"{about['edits']:,} edits in batches of {about['batch']}"
    return EncoreDial(grid, context=f"Mode {lab.mode}, model {model.name}, n = {size}, seed {about['seed']}, stored.")


def _problem() -> Matrices:
    # K1 (6, 3), R (4, 3), C (6, 6), K_p (6, 2), float64.
    generator = torch.Generator().manual_seed(3)
    draw = [
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3), (4, 3), (6, 20), (6, 2))
    ]
    return draw[0], draw[1], draw[2] @ draw[2].T / 20, draw[3]


def _answered(answer: Small, past: bool = True) -> tuple[Tensor, Tensor]:
    """(Delta, half the gradient of J at Delta), relative to that at 0, with or without past keys in A0."""
    K1, R, C, Kp = _problem()
    A0 = 2.0 * C + 0.5 * torch.eye(6, dtype=C.dtype) + (Kp @ Kp.T if past else 0)
    delta = answer(K1, R, A0)
    return delta, (delta @ (A0 + K1 @ K1.T) - R @ K1.T) / (R @ K1.T).norm()


class _Counted(torch.overrides.TorchFunctionMode):
    """Notes the sizes of all systems that are solved or inverted."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[tuple[int, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        name = getattr(func, "__name__", "")
        if "inv" in name:
            self.columns.append((len(args[0]), len(args[0])))
        elif "solve" in name:
            at = {"cholesky_solve": 0, "linalg_lu_solve": 2}.get(name, 1)
            self.columns.append((len(args[at]), args[at].shape[-1]))
        return func(*args, **(kwargs or {}))


def _cheap(answer: Small) -> bool:
    with _Counted() as seen:
        _answered(answer)
    return bool(seen.columns) and all(size <= 3 or columns <= 3 for size, columns in seen.columns)


small = Exercise(
    "Solve the small system",
    "hard",
    20,
    properties=(
        Property(
            "the update has the matrix's shape",
            lambda answer: tuple(_answered(answer)[0].shape) == (4, 6),
            "Delta is added to W (d_model, d_mlp): R (I + K1^T A0^-1 K1)^-1 K1^T A0^-1, in that order.",
        ),
        Property(
            "the gradient vanishes",
            lambda answer: all(float(_answered(answer, past)[1].norm()) < 1e-9 for past in (True, False)),
            "This is not the minimum. A0 lacks K1 K1^T: its part is the identity plus K1^T A0^-1 K1 in the small system.",
        ),
        Property(
            "no large system with many right-hand sides",
            _cheap,
            "The update is right, but a system of size d_mlp was solved for more than n right-hand sides, or inverted.",
        ),
    ),
)

Choose = Callable[[pd.DataFrame, float], "pd.Series"]
_GRID = pd.DataFrame({"efficacy": [0.95, 1.0, 0.6, 0.97, 0.3], "same_subject_kept": [0.7, 0.5, 0.9, 0.8, 0.95]})


choose = Exercise(
    "Choose the knobs",
    "easy",
    5,
    properties=(
        Property(
            "enough edits hold",
            lambda answer: all(float(answer(_GRID, least)["efficacy"]) >= least for least in (0.9, 0.99)),
            "The run that keeps most is the one that writes nothing. First keep the rows whose edits hold.",
        ),
        Property(
            "of these it keeps most",
            lambda answer: [float(answer(_GRID, least)["same_subject_kept"]) for least in (0.9, 0.2)] == [0.8, 0.95],
            "Any row that meets the bar will do; among them take the largest `same_subject_kept`, not the largest efficacy.",
        ),
    ),
)
