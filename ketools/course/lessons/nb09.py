"""Notebook 09: ENCORE's step 2 and its ablations (lessons.arms), exercises."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.arms import (
    Arm,
    Asked,
    Written,
    ablation_bars,
    side_by_side,
    stops,
    strength,
    table,
    written,
)
from ketools.course.mode import Lab
from ketools.course.widgets import EncoreDial
from ketools.errors import KetoolsError
from ketools.runs.sweep import ALL_STEPS, stored

__all__ = [
    "Arm", "Asked", "Written", "ablation_bars", "choose", "closed_form", "dial", "side_by_side", "stops", "strength", "table",
    "update", "written",
]  # fmt: skip

Update = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]
Matrices = tuple[Tensor, Tensor, Tensor, Tensor]


def _problem() -> Matrices:
    # K1 (6, 3), R (4, 3), C (6, 6), K_p (6, 2), float64.
    generator = torch.Generator().manual_seed(3)
    draw = [
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3), (4, 3), (6, 20), (6, 2))
    ]
    return draw[0], draw[1], draw[2] @ draw[2].T / 20, draw[3]


def closed_form(
    keys: Tensor, residuals: Tensor, covariance: Tensor, past: Tensor, lambda_p: float, lambda_n: float
) -> Tensor:
    """Delta (d_model, d_mlp) of ENCORE's step 2; keys (d_mlp, n), residuals (d_model, n), past (d_mlp, m)."""
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    a = lambda_p * covariance + lambda_n * eye + past @ past.T + keys @ keys.T
    return torch.linalg.solve(a, keys @ residuals.T).T


def _memit(answer: Update) -> bool:
    keys, residuals, covariance, past = _problem()
    got = answer(keys, residuals, covariance, past[:, :0], 2.0, 0.0)
    return torch.allclose(got, residuals @ keys.T @ torch.linalg.inv(2.0 * covariance + keys @ keys.T))


def _flat(answer: Update) -> bool:
    keys, residuals, covariance, past = _problem()
    delta = answer(keys, residuals, covariance, past, 2.0, 0.5)
    slope = 2.0 * delta @ covariance + 0.5 * delta + delta @ past @ past.T + (delta @ keys - residuals) @ keys.T
    return float(slope.norm()) < 1e-9 * float((residuals @ keys.T).norm())


def _smaller(answer: Update) -> bool:
    sizes = [float(answer(*_problem(), 2.0, weight).norm()) for weight in (0.0, 1.0, 10.0, 100.0)]
    return sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


update = Exercise(
    "Write ENCORE's step 2",
    "medium",
    10,
    properties=(
        Property("the update has the matrix's shape", lambda answer: tuple(answer(*_problem(), 2.0, 0.5).shape) == (4, 6), "Delta is added to W (d_model, d_mlp): R K1^T A^-1, in that order."),
        Property(
            "without past keys and with lambda_n = 0 it is MEMIT's",
            _memit,
            "MEMIT's A is lambda_p C + K1 K1^T. Did you leave the new keys out of A?",
        ),
        Property(
            "the gradient vanishes",
            _flat,
            "Some term of the objective does not stand in A. lambda_n stands on the diagonal alone; past keys enter as K_p K_p^T.",
        ),
        Property("more lambda_n, a smaller update", _smaller, "The norm of Delta has to fall as lambda_n rises."),
    ),
    )  # fmt: skip


def dial(lab: Lab, live: pd.DataFrame, n: str) -> EncoreDial:
    """The ENCORE dial over whole runs of the lab's model, where a grid of them is stored; else over `live` (n: "32 facts")."""
    try:
        grid, about = stored(lab.model)
    except KetoolsError:  # none, or one of another model of this name
        return EncoreDial(live, context=lab.context(n=n))
    made = f"Mode {lab.mode}, model {lab.model.name}, n = {about['edits']:,} edits in batches of {about['batch']}, seed {about['seed']}, stored."
    return EncoreDial(grid, context=made)


Choose = Callable[[pd.DataFrame, float], "pd.Series"]
_GRID = pd.DataFrame(
    {
        "lambda_n": [0.0, 0.0, 1.0, 1.0, 5.0], "patience": [2, ALL_STEPS, 2, ALL_STEPS, ALL_STEPS],
        "accuracy": [0.95, 1.0, 0.6, 0.97, 0.3], "moved": [0.3, 0.5, 0.1, 0.2, 0.05],
    }
)  # fmt: skip


def _holds(answer: Choose) -> bool:
    return float(answer(_GRID, 0.9)["accuracy"]) >= 0.9 and float(answer(_GRID, 0.99)["accuracy"]) >= 0.99


choose = Exercise(
    "Choose the knobs",
    "easy",
    5,
    properties=(
        Property(
            "enough edits hold",
            _holds,
            "The smallest change of weights is the one that writes nothing. First keep the rows whose edits hold.",
        ),
        Property(
            "of these the change is smallest",
            lambda answer: float(answer(_GRID, 0.9)["moved"]) == 0.2 and float(answer(_GRID, 0.2)["moved"]) == 0.05,
            "Any row that meets the bar will do; among them take the smallest `moved`, not the largest accuracy.",
        ),
    ),
)
