"""Notebook 08: norms by the package, norm against loss in stored runs, exercises."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.models.weights import fresh
from ketools.norms.weights import norms
from ketools.plots.style import dress, joined, label, styles
from ketools.runs.store import RunRecord


def package_ratio(lab: Lab, edits: Sequence[Edit], layer: int) -> float:
    """Norm of the layer's matrix with `edits` in the weights over that without, by `ketools.norms`."""
    before = norms(lab.model)[layer]
    with fresh(lab.model):
        for edit in edits:
            edit.apply_to(lab.model)
        return norms(lab.model)[layer] / before


def norm_and_loss(records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """A row per method and checkpoint: method, edits, norm_ratio (of the most-changed edited matrix), unedited_kept."""
    parts = []
    for method, record in records.items():
        table = record.norms[record.norms["edited"].astype(bool)]
        grown = table.groupby("edits")["ratio"].max().rename("norm_ratio")
        part = record.checkpoints[["edits", "unedited_kept"]].merge(grown, on="edits")
        parts.append(part.assign(method=method))
    return pd.concat(parts, ignore_index=True)


def norm_against_loss(frame: pd.DataFrame, context: str) -> go.Figure:
    """The frame of `norm_and_loss`, a point per checkpoint, a colour per method."""
    fig, said = go.Figure(), []
    for method, look in styles(dict.fromkeys(frame["method"])).items():
        rows = frame[frame["method"] == method].sort_values("edits")
        fig.add_scatter(
            x=rows["norm_ratio"].tolist(), y=rows["unedited_kept"].tolist(), mode="lines+markers", name=label(method),
            line={"color": look.colour, "dash": look.dash, "width": 1}, marker={"symbol": look.symbol, "size": 7},
            text=[f"{n:,} edits" for n in rows["edits"]], hovertemplate="%{text}: %{x:.2f}x, %{y:.0%}<extra></extra>",
        )  # fmt: skip
        said.append(f"{label(method)} {rows['norm_ratio'].iloc[-1]:.2f}x and {rows['unedited_kept'].iloc[-1]:.0%}")
    fig.update_xaxes(title="Frobenius norm (ratio to before any edit)")
    fig.update_yaxes(title="unedited facts still right", tickformat=".0%", range=[0, 1.04])
    caption = joined("Each point a checkpoint; lines follow the edits from left to right.", context)
    return dress(fig, f"Norm and unedited facts at the end: {'; '.join(said)}", caption, f"Points. {'; '.join(said)}.")


Norm = Callable[[Tensor, Tensor, Tensor], float]


def _factors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 10), (6, 2), (10, 2))
    weight, left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return weight, left, right


def _nothing(answer: Norm) -> bool:
    weight, left, right = _factors()
    return abs(float(answer(weight, 0 * left, right)) - float(weight.norm())) < 1e-9


def _alone(answer: Norm) -> bool:
    weight, left, right = _factors()
    return abs(float(answer(0 * weight, left, right)) - float((left @ right.T).norm())) < 1e-9


def _whole(answer: Norm) -> bool:
    return all(
        abs(float(answer(*three)) - float((three[0] + three[1] @ three[2].T).norm())) < 1e-9
        for three in (_factors(0), _factors(1))
    )


norm_after = Exercise(
    "The norm without the matrix",
    "medium",
    12,
    properties=(
        Property("an update of zero changes nothing", _nothing, "With L = 0 the norm is that of W."),
        Property(
            "the update's own norm is right",
            _alone,
            "||L R^T||^2 is the trace of (L^T L)(R^T R), the sum of the entries' products of two small matrices; the "
            "product of both norms is right for rank one only.",
        ),
        Property(
            "W and the update may have a direction in common",
            _whole,
            "||W + D||^2 = ||W||^2 + 2 <W, D> + ||D||^2. Pythagoras alone holds if W and D are orthogonal. With factors "
            "<W, L R^T> is the sum of the entries of (W R) * L.",
        ),
    ),
)


stable_rank = Exercise(
    "Count directions",
    "easy",
    5,
    properties=(
        Property(
            "seven equal values count as seven",
            lambda answer: abs(float(answer(torch.ones(7, dtype=torch.float64))) - 7) < 1e-9,
            "Seven directions of equal strength: the rank is 7.",
        ),
        Property(
            "one value counts as one",
            lambda answer: abs(float(answer(torch.tensor([3.0, 0.0, 0.0]))) - 1) < 1e-9,
            "Zeros do not count, and the scale does not matter.",
        ),
        Property(
            "weak directions count for less",
            lambda answer: abs(float(answer(torch.tensor([2.0, 1.0, 1.0]))) - 1.5) < 1e-6,
            "Values 2, 1, 1 come to (4 + 1 + 1) / 4 = 1.5: the sum of the squares over the largest square.",
        ),
    ),
)
