"""Plausible wrong answers to the exercises of notebook 05: what each does, the answer, and the property that catches it."""

import torch
from torch import Tensor

from ketools.reference.update import memit

DIM = {"dtype": torch.float64}


def _right(keys: Tensor, residuals: Tensor, basis: Tensor) -> Tensor:
    x = basis @ (basis.T @ keys)
    return residuals @ torch.linalg.solve(keys.T @ x, x.T)


def _afterwards(keys: Tensor, residuals: Tensor, basis: Tensor) -> Tensor:
    return residuals @ torch.linalg.pinv(keys) @ basis @ basis.T


def _with_weights(keys: Tensor, residuals: Tensor, basis: Tensor) -> Tensor:
    x = basis @ (torch.arange(1, 6, **DIM)[:, None] * (basis.T @ keys))
    return residuals @ torch.linalg.solve(keys.T @ x, x.T)


def _soft(keys: Tensor, residuals: Tensor, x: Tensor, share: float) -> Tensor:
    return residuals @ torch.linalg.solve(share * torch.eye(keys.shape[1], **DIM) + keys.T @ x, x.T)


def _exact(keys: Tensor, residuals: Tensor, x: Tensor, share: float) -> Tensor:
    return residuals @ torch.linalg.solve(keys.T @ x, x.T)


def _shrunk(keys: Tensor, residuals: Tensor, x: Tensor, share: float) -> Tensor:
    return (1 - share) * _exact(keys, residuals, x, share)


WRONG = {
    "Make both rules hold": [
        ("gives the transpose", lambda k, r, u: _right(k, r, u).T, "the update has the matrix's shape"),
        ("takes MEMIT's", lambda k, r, u: memit(u @ u.T, k, r, 1.0), "every fact holds"),
        ("projects afterwards", _afterwards, "every fact holds"),
        ("forgets the projection", lambda k, r, u: r @ torch.linalg.pinv(k), "protected directions stay"),
        ("weighs the free directions", _with_weights, "no other such update is smaller"),
    ],
    "Move background text as little as possible": [
        ("gives the transpose", lambda k, r, x, s: _exact(k, r, x, s).T, "the update has the matrix's shape"),
        ("takes the share for lambda_p", _soft, "it misses the share that is allowed"),
        ("misses nothing", _exact, "it misses the share that is allowed"),
        ("shrinks EMMET's update", _shrunk, "no other such update moves text less"),
    ],
}
