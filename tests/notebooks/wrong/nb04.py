"""Plausible wrong answers to the exercises of notebook 04: what each does, the answer, and the property that catches it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _closed(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    inner = lambda_p * torch.eye(keys.shape[1], dtype=keys.dtype) + keys.T @ x
    return torch.linalg.solve(inner, residuals.T).T @ x.T


def _transposed(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    return _closed(keys, residuals, x, lambda_p).T


def _unweighted(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    return _closed(keys, residuals, x, 1.0)


def _unprotected(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    return residuals @ torch.linalg.pinv(keys)


def _ridge(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    return _closed(keys, residuals, keys, lambda_p)


def _alone(keys: Tensor, residuals: Tensor, x: Tensor, lambda_p: float) -> Tensor:
    one = [_closed(keys[:, [i]], residuals[:, [i]], x[:, [i]], lambda_p) for i in range(keys.shape[1])]
    return torch.stack(one).sum(0)


def _once(total: float, delivered: Sequence[float]) -> list[float]:
    return [total / len(delivered)] * len(delivered)


def _same_divisor(total: float, delivered: Sequence[float]) -> list[float]:
    asked, left = [], total
    for share in delivered:
        asked.append(left / len(delivered))
        left -= share * asked[-1]
    return asked


WRONG = {
    "Invert n by n": [
        ("gives the transpose", _transposed, "the update has the matrix's shape"),
        ("adds up single updates", _alone, "with nearly no protection every fact is written"),
        ("leaves lambda_p out", _unweighted, "with nearly no protection every fact is written"),
        ("protects nothing", _unprotected, "the gradient is zero there"),
        ("takes the keys for X", _ridge, "the gradient is zero there"),
    ],
    "Share the work among layers": [
        ("shares out once and for all", _once, "what a layer leaves undone falls to those above"),
        ("divides by all layers each time", _same_divisor, "layers that deliver all are asked for equal parts"),
    ],
}
