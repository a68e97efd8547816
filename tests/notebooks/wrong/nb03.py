"""Plausible wrong answers to the exercises of notebook 03: what each does, the answer, and the property that catches it."""

import torch
from torch import Tensor


def _cosine(key: Tensor, other: Tensor, covariance: Tensor) -> float:
    return float(key @ other / (key.norm() * other.norm()))


def _no_covariance(key: Tensor, other: Tensor, covariance: Tensor) -> float:
    return float(key @ other / (key @ key))


def _transposed(key: Tensor, spared: Tensor, delta: Tensor, covariance: Tensor) -> Tensor:
    return _one_key(key, spared, delta, covariance).T


def _one_key(key: Tensor, spared: Tensor, delta: Tensor, covariance: Tensor) -> Tensor:
    u = torch.linalg.solve(covariance, key)
    return torch.outer(delta, u) / (u @ key)


def _projected(key: Tensor, spared: Tensor, delta: Tensor, covariance: Tensor) -> Tensor:
    made = _one_key(key, spared, delta, covariance)
    return made - torch.outer(made @ spared, spared) / (spared @ spared)


def _no_text(key: Tensor, spared: Tensor, delta: Tensor, covariance: Tensor) -> Tensor:
    u = key - spared * (spared @ key) / (spared @ spared)
    return torch.outer(delta, u) / (u @ key)


WRONG = {
    "Predict what another key receives": [
        ("takes the cosine", _cosine, "twice the key receives twice as much"),
        ("leaves the covariance out", _no_covariance, "Delta k' is the share times delta"),
    ],
    "Spare one key": [
        ("gives the transpose", _transposed, "the update has the matrix's shape"),
        ("takes the spared key out and leaves the rest", _projected, "the key maps to the value"),
        ("knows one key only", _one_key, "the spared key receives nothing"),
        ("leaves the covariance out", _no_text, "no other such update moves text less"),
    ],
}
