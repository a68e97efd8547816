"""Plausible wrong answers to the exercises of notebook 09: what each does, the answer, and the property that catches it."""

import pandas as pd
import torch
from torch import Tensor


def _transposed(K1: Tensor, R: Tensor, A0: Tensor) -> Tensor:
    return _large(K1, R, A0).T


def _large(K1: Tensor, R: Tensor, A0: Tensor) -> Tensor:
    return torch.linalg.solve(A0 + K1 @ K1.T, K1 @ R.T).T


def _without_new(K1: Tensor, R: Tensor, A0: Tensor) -> Tensor:
    return R @ torch.linalg.solve(A0, K1).T


def _no_identity(K1: Tensor, R: Tensor, A0: Tensor) -> Tensor:
    X = torch.linalg.solve(A0, K1)
    return R @ torch.linalg.solve(K1.T @ X, X.T)


def _inverts(K1: Tensor, R: Tensor, A0: Tensor) -> Tensor:
    X = torch.linalg.inv(A0) @ K1
    return R @ torch.linalg.solve(torch.eye(K1.shape[1], dtype=K1.dtype) + K1.T @ X, X.T)


def _gentlest(grid: pd.DataFrame, least: float) -> pd.Series:
    return grid.loc[grid["same_subject_kept"].idxmax()]


def _most_effective(grid: pd.DataFrame, least: float) -> pd.Series:
    return grid.loc[grid["efficacy"].idxmax()]


_CHEAP = "no large system with many right-hand sides"
WRONG = {
    "Solve the small system": [
        ("gives the transpose", _transposed, "the update has the matrix's shape"),
        ("leaves the new keys out of A", _without_new, "the gradient vanishes"),
        ("forgets the identity: EMMET's update", _no_identity, "the gradient vanishes"),
        ("solves the large system", _large, _CHEAP),
        ("inverts A0", _inverts, _CHEAP),
    ],
    "Choose the knobs": [
        ("takes what keeps most", _gentlest, "enough edits hold"),
        ("takes the most effective", _most_effective, "of these it keeps most"),
    ],
}
