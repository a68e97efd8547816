"""Plausible wrong answers to the exercises of notebook 04: what each does, the answer, and the property that catches it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ketools.course.lessons.nb04 import closed_form


def _transposed(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    return closed_form(keys, residuals, covariance, weight).T


def _unprotected(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    return residuals @ torch.linalg.pinv(keys)


def _ridge(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    return closed_form(keys, residuals, torch.eye(len(keys), dtype=keys.dtype), weight)


def _alone(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    one = [closed_form(keys[:, [i]], residuals[:, [i]], covariance, weight) for i in range(keys.shape[1])]
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
    "Write many facts at once": [
        ("gives the transpose", _transposed, "the update has the matrix's shape"),
        ("adds up single updates", _alone, "with nearly no protection every fact is written"),
        ("protects nothing", _unprotected, "the gradient is zero there"),
        ("takes the identity for the covariance", _ridge, "the gradient is zero there"),
    ],
    "Share the work among layers": [
        ("shares out once and for all", _once, "what a layer leaves undone falls to those above"),
        ("divides by all layers each time", _same_divisor, "layers that deliver all are asked for equal parts"),
    ],
}
