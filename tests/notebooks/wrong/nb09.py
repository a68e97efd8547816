"""Plausible wrong answers to the exercises of notebook 09: what each does, the answer, and the property that catches it."""

import pandas as pd
import torch
from torch import Tensor

from ketools.course.lessons.nb09 import closed_form


def _forgets_past(
    keys: Tensor, residuals: Tensor, covariance: Tensor, past: Tensor, lambda_p: float, lambda_n: float
) -> Tensor:
    return closed_form(keys, residuals, covariance, past[:, :0], lambda_p, lambda_n)


def _ones(
    keys: Tensor, residuals: Tensor, covariance: Tensor, past: Tensor, lambda_p: float, lambda_n: float
) -> Tensor:
    a = lambda_p * covariance + lambda_n + past @ past.T + keys @ keys.T  # adds lambda_n to every entry
    return torch.linalg.solve(a, keys @ residuals.T).T


def _without_new(
    keys: Tensor, residuals: Tensor, covariance: Tensor, past: Tensor, lambda_p: float, lambda_n: float
) -> Tensor:
    return torch.linalg.solve(lambda_p * covariance + lambda_n * torch.eye(6) + past @ past.T, keys @ residuals.T).T


def _gentlest(grid: pd.DataFrame, least: float) -> pd.Series:
    return grid.loc[grid["moved"].idxmin()]


def _most_accurate(grid: pd.DataFrame, least: float) -> pd.Series:
    return grid.loc[grid["accuracy"].idxmax()]


WRONG = {
    "Write ENCORE's step 2": [
        ("leaves the new keys out of A", _without_new, "without past keys and with lambda_n = 0 it is MEMIT's"),
        ("forgets past keys", _forgets_past, "the gradient vanishes"),
        ("adds lambda_n to every entry", _ones, "the gradient vanishes"),
    ],
    "Choose the knobs": [
        ("takes the smallest change", _gentlest, "enough edits hold"),
        ("takes the most accurate", _most_accurate, "of these the change is smallest"),
    ],
}
