"""Notebook 05: C's spectrum with keys in it, exercises."""

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.nb04 import problem
from ketools.evaluation.metrics import percent
from ketools.plots.drawers import add_line
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined

Both = Callable[[Tensor, Tensor, Tensor], Tensor]
Cheapest = Callable[[Tensor, Tensor, Tensor, float], Tensor]
_POINTS = 160  # of a line over all directions


def spectrum_lines(values: Tensor, vectors: Tensor, keys: Tensor, free: int, context: str) -> go.Figure:
    """Mean square of background text's and of facts' keys (d_mlp, n) along C's eigenvectors, from the weakest.

    `values` (d_mlp,) ascending, `vectors` (d_mlp, d_mlp) in columns; the first `free` of them make the null space.
    """
    d, along = len(values), (vectors.T @ keys).square().mean(1)
    groups = [torch.as_tensor(group) for group in np.array_split(np.arange(d), min(_POINTS, d))]
    places = [float(group.double().mean()) for group in groups]
    fig = go.Figure()
    for line, name, look in (
        (values, "keys of background text (eigenvalues of C)", Style(OKABE_ITO["blue"], "solid", "circle")),
        (along, "keys of the facts", Style(OKABE_ITO["orange"], "dash", "square")),
    ):
        means = [float(line[group].clamp_min(0).mean() / values.mean()) for group in groups]
        add_line(fig, places, means, name, look, show=".3g", mode="lines")
    fig.add_vline(x=free, line={"color": NEUTRAL, "dash": "dot"})
    text, facts = (percent(float(line[:free].clamp_min(0).sum() / line.sum())) for line in (values, along))
    fig.update_xaxes(title="direction (rank of its eigenvalue, the weakest first)")
    fig.update_yaxes(title="mean square along it (1: mean eigenvalue)", type="log", exponentformat="power", dtick=1)
    finding = f"{free:,} of {d:,} directions are free; they hold {text} of background text's keys and {facts} of the facts' keys"
    caption = (
        "Left of the dotted line: eigenvalues below the threshold, free to edit in. Means of neighbouring directions."
    )
    return dress(fig, finding, joined(caption, context), f"Two rising lines over {d:,} directions. {finding}.")


def _given() -> tuple[Tensor, Tensor, Tensor]:
    # K1 (9, 3), R (4, 3), U (9, 5): the five weakest eigenvectors of a covariance.
    keys, residuals, covariance = problem(1)
    return keys, residuals, torch.linalg.eigh(covariance).eigenvectors[:, :5]


def _written(answer: Both) -> bool:
    keys, residuals, basis = _given()
    return torch.allclose(answer(keys, residuals, basis) @ keys, residuals, atol=1e-8)


def _protected(answer: Both) -> bool:
    delta, basis = answer(*_given()), _given()[2]
    return torch.allclose(delta @ basis @ basis.T, delta, atol=1e-8)


def _smallest(answer: Both) -> bool:
    # At the least, Delta is a combination of the projected keys: whatever is at right angles to them is wasted.
    keys, _, basis = _given()
    used = torch.linalg.qr(basis @ (basis.T @ keys)).Q
    delta = answer(*_given())
    return torch.allclose(delta @ used @ used.T, delta, atol=1e-8)


both = Exercise(
    "Make both rules hold",
    "medium",
    15,
    properties=(
        Property(
            "the update has the matrix's shape",
            lambda answer: tuple(answer(*_given()).shape) == (4, 9),
            "Delta is added to W (d_model, d_mlp): R times an inner matrix (n, n) times X^T (n, d_mlp).",
        ),
        Property(
            "every fact holds",
            _written,
            "Delta K1 is not R. To project an update afterwards takes a part of each fact away: project the keys first, then solve.",
        ),
        Property(
            "protected directions stay",
            _protected,
            "Delta acts on directions outside U. Its rows must be combinations of the columns of U: Delta = M U^T.",
        ),
        Property(
            "no other such update is smaller",
            _smallest,
            "Both rules hold, but a smaller update does it, too: X = U U^T K1, without C. The rule has taken C's place.",
        ),
    ),
)


def _asked(answer: Cheapest, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keys, residuals, covariance = problem(2)
    return answer(keys, residuals, torch.linalg.solve(covariance, keys), share), keys, residuals, covariance


def _uses_all(answer: Cheapest) -> bool:
    for share in (0.1, 0.5, 0.9):
        delta, keys, residuals, _ = _asked(answer, share)
        if abs(float((delta @ keys - residuals).norm() / residuals.norm()) - share) > 1e-3:
            return False
    return True


def _balanced(answer: Cheapest) -> bool:
    # At the least, the gradients of fit and price point in opposite directions.
    for share in (0.1, 0.5):
        delta, keys, residuals, covariance = _asked(answer, share)
        fit, price = (residuals - delta @ keys) @ keys.T, delta @ covariance
        if torch.cosine_similarity(fit.flatten(), price.flatten(), dim=0) < 1 - 1e-6:
            return False
    return True


cheapest = Exercise(
    "Move background text as little as possible",
    "hard",
    25,
    properties=(
        Property(
            "the update has the matrix's shape",
            lambda answer: tuple(_asked(answer, 0.5)[0].shape) == (4, 9),
            "Delta is added to W (d_model, d_mlp): R times an inner matrix (n, n) times X^T (n, d_mlp).",
        ),
        Property(
            "it misses the share that is allowed",
            _uses_all,
            "An update that misses less than it may moves text further than it must; one that misses more breaks the "
            "constraint. Search for the lambda_p at which the two shares are equal.",
        ),
        Property(
            "no other such update moves text less",
            _balanced,
            "It misses as much as it may, but another such update moves text less. EMMET's update times a number shrinks all "
            "directions alike; MEMIT's lambda_p gives up first where the facts cost most.",
        ),
    ),
)
