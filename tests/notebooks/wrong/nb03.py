"""Plausible wrong answers to the exercises of notebook 03: what each does, the answer, and the property that catches it."""

import torch
from torch import Tensor

from ketools.course.lessons.nb03 import rank_one_update


def _by_norm(weight: Tensor, key: Tensor, value: Tensor, covariance: Tensor) -> Tensor:
    u = torch.linalg.solve(covariance, key)
    return torch.outer(value - weight @ key, u) / (key @ key)


def _whole_value(weight: Tensor, key: Tensor, value: Tensor, covariance: Tensor) -> Tensor:
    u = torch.linalg.solve(covariance, key)
    return torch.outer(value, u) / (u @ key)


def _plain(weight: Tensor, key: Tensor, value: Tensor, covariance: Tensor) -> Tensor:
    return torch.outer(value - weight @ key, key) / (key @ key)


def _transposed(weight: Tensor, key: Tensor, value: Tensor, covariance: Tensor) -> Tensor:
    return rank_one_update(weight, key, value, covariance).T


def _cosine(key: Tensor, other: Tensor, covariance: Tensor) -> float:
    return float(key @ other / (key.norm() * other.norm()))


def _no_covariance(key: Tensor, other: Tensor, covariance: Tensor) -> float:
    return float(key @ other / (key @ key))


WRONG = {
    "Write the rank-one update": [
        ("gives the transpose", _transposed, "the update has the matrix's shape"),
        ("divides by the key's squared norm", _by_norm, "the key maps to the value"),
        ("writes the whole value, not what is missing", _whole_value, "the key maps to the value"),
        ("leaves the covariance out", _plain, "no other such update moves prose less"),
    ],
    "Foretell what another key receives": [
        ("takes the cosine", _cosine, "twice the key receives twice as much"),
        ("leaves the covariance out", _no_covariance, "Delta k' is the share times what was written"),
    ],
}
