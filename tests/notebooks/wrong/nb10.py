"""Plausible wrong answers to the exercises of notebook 10: what each does, the answer, and the property that catches it."""

from collections.abc import Sequence

import numpy as np


def _mean_only(seconds: Sequence[float], batch: int, edits: int) -> float:
    return float(np.mean(seconds)) * edits / batch


def _by_edit(seconds: Sequence[float], batch: int, edits: int) -> float:
    return float(np.mean(seconds)) * edits


def _difference(at_edit: Sequence[float], at_end: Sequence[float]) -> float:
    return float(np.mean(at_edit) - np.mean(at_end))


def _missing(at_edit: Sequence[float], at_end: Sequence[float]) -> float:
    return float(1 - np.mean(at_end))


WRONG = {
    "Forecast the long run": [
        ("takes batches for edits", _by_edit, "equal batches cost alike"),
        ("takes the mean of the beginning", _mean_only, "growth is carried on"),
    ],
    "Count what was forgotten": [
        ("subtracts two means", _difference, "what never took cannot be forgotten"),
        ("counts all that are wrong at the end", _missing, "what never took cannot be forgotten"),
    ],
}
