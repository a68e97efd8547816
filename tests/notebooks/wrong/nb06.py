"""Plausible wrong answers to the exercises of notebook 06: what each does, the answer, and the property that catches it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def _of_matrices(first: Tensor, later: Tensor, keys: Tensor) -> float:
    return float(later.norm() / first.norm())


def _differences(first: Tensor, later: Tensor, keys: Tensor) -> float:
    return float(((later @ keys).norm() - (first @ keys).norm()) / (first @ keys).norm())


def _ratio(before: Sequence[bool], now: Sequence[bool]) -> float:
    return float(np.mean(now) / np.mean(before))


def _share(before: Sequence[bool], now: Sequence[bool]) -> float:
    return float(np.mean(now))


WRONG = {
    "How much is overwritten": [
        ("compares the matrices", _of_matrices, "updates away from the keys do no harm"),
        ("subtracts the norms", _differences, "without later edits nothing is overwritten"),
    ],
    "What is kept": [
        ("divides two means", _ratio, "facts that became right make up for nothing"),
        ("forgets what was wrong before", _share, "nothing lost is 1"),
    ],
}
