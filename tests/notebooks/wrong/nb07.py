"""Plausible wrong answers to the exercises of notebook 07: what each does, the answer, and the property that catches it."""

import numpy as np


def _stop_at_level(p: np.ndarray, level: float) -> np.ndarray:
    return (p > level).argmax(1)


def _last_below(p: np.ndarray, level: float) -> np.ndarray:
    return np.minimum((p <= level).sum(1), p.shape[1] - 1)


def _count(hits: np.ndarray) -> bool:
    return bool(hits[1:].sum() == 5)


def _with_bare(hits: np.ndarray) -> bool:
    return bool((hits.sum() == 6) != hits.all())


def _rows(hits: np.ndarray) -> bool:
    return bool(hits[1:].all() != hits.all())


WRONG = {
    "Stop at the natural level": [
        ("forgets facts that never get there", _stop_at_level, "a fact that never gets there takes all steps"),
        ("counts the passes below", _last_below, "a fact stops at the first pass above the level"),
    ],
    "Find the official defect": [
        ("gives the count itself", _count, "one position, all right: both stop"),
        ("counts the bare prompt too", _with_bare, "the bare prompt alone is wrong: they differ"),
        ("takes the count for all right", _rows, "two positions, all right: they differ"),
    ],
}
