"""Plausible wrong answers to the exercises of notebook 07: what each does, the answer, and the property that catches it."""

from collections.abc import Sequence

import numpy as np


def _stop_at_level(p: np.ndarray, level: float) -> np.ndarray:
    return (p > level).argmax(1)


def _last_below(p: np.ndarray, level: float) -> np.ndarray:
    return np.minimum((p <= level).sum(1), p.shape[1] - 1)


def _means(edited: Sequence[float], natural: Sequence[float]) -> float:
    return float(np.mean(edited) > np.mean(natural))


def _no_ties(edited: Sequence[float], natural: Sequence[float]) -> float:
    return float((np.asarray(edited)[:, None] > np.asarray(natural)[None]).mean())


WRONG = {
    "Stop at the natural level": [
        ("forgets facts that never get there", _stop_at_level, "a fact that never gets there takes all steps"),
        ("counts the passes below", _last_below, "a fact stops at the first pass above the level"),
    ],
    "How often is an edited fact the surer one": [
        ("compares means", _means, "all pairs count"),
        ("lets ties lose", _no_ties, "equal sides come to one half"),
    ],
}
