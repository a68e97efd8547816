"""Plausible wrong answers to the exercises of notebook 05: what each does, the answer, and the property that catches it."""

import torch
from torch import Tensor

from ketools.course.lessons.nb05 import exact_update
from ketools.reference.update import memit


def _singles(keys: Tensor, residuals: Tensor, covariance: Tensor) -> Tensor:
    n = keys.shape[1]
    return torch.stack([exact_update(keys[:, [i]], residuals[:, [i]], covariance) for i in range(n)]).sum(0)


def _other_way(covariance: Tensor, threshold: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, values >= threshold] @ vectors[:, values >= threshold].T


def _no_product(covariance: Tensor, threshold: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors[:, values < threshold]


def _soft(covariance: Tensor, threshold: float) -> Tensor:
    return threshold * torch.linalg.inv(covariance + threshold * torch.eye(len(covariance), dtype=covariance.dtype))


def _three(covariance: Tensor, threshold: float) -> Tensor:
    vectors = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, :3] @ vectors[:, :3].T


WRONG = {
    "Make all facts hold exactly": [
        ("gives the transpose", lambda k, r, c: exact_update(k, r, c).T, "the update has the matrix's shape"),
        ("takes MEMIT's", lambda k, r, c: memit(c, k, r, 1.0), "every fact holds"),
        ("adds up single updates", _singles, "every fact holds"),
        ("takes the pseudo-inverse", lambda k, r, c: r @ torch.linalg.pinv(k), "no other such update moves prose less"),
    ],
    "Project on the null space": [
        ("gives U alone", _no_product, "P is a square matrix"),
        ("keeps the large eigenvalues", _other_way, "directions that prose uses are taken out"),
        ("shrinks instead of projecting", _soft, "directions that prose uses are taken out"),
        ("keeps a fixed number", _three, "the threshold decides how many"),
    ],
}
