"""Plausible wrong answers to the exercises of notebook 08: what each does, the answer, and the property that catches it."""

from torch import Tensor


def _pythagoras(weight: Tensor, left: Tensor, right: Tensor) -> float:
    return float((weight.square().sum() + ((left.T @ left) * (right.T @ right)).sum()).sqrt())


def _product(weight: Tensor, left: Tensor, right: Tensor) -> float:
    cross = ((weight @ right) * left).sum()
    return float((weight.square().sum() + 2 * cross + left.square().sum() * right.square().sum()).sqrt())


WRONG = {
    "The norm without the matrix": [
        ("leaves out what both have in common", _pythagoras, "W and the update may have a direction in common"),
        ("multiplies the norms of the factors", _product, "the update's own norm is right"),
    ],
    "Count directions": [
        ("counts values above zero", lambda s: float((s > 0).sum()), "weak directions count for less"),
        ("forgets the squares", lambda s: float(s.sum() / s[0]), "weak directions count for less"),
    ],
}
