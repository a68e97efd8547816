"""What is done to an update after it is solved for: the third, optional choice of a method.

PRUNE, RECT and SPHERE change Delta = left right^T (left (d_model, r), right (d_mlp, r), float64) of a layer, given the
matrix W (d_model, d_mlp) to which it is added and the unedited W_0. They run before Delta is added, so that the layers
above see the result. NAS changes the targets z instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ketools.errors import KetoolsError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prune:
    """PRUNE: singular values of the accumulated update that exceed sigma_max(W_0) are reduced.

    sigma -> ln(sigma) - ln(sigma_max) + sigma_max for sigma > sigma_max, the singular values of W + Delta - W_0; the
    others stay (Ma et al., arXiv 2405.16821, section 4, with the logarithm as F). `when`: "end", as published, once
    after all batches (`Editor.finish`; `ketools.editing.editor.finished` to measure on the way); "batch": after every
    batch, on what the earlier batches have left, so that the weights are always pruned and later targets are found on
    pruned weights. The change is a sum of as many rank-one terms as there are such values.
    """

    when: str = "end"

    def __post_init__(self) -> None:
        if self.when not in ("end", "batch"):
            raise KetoolsError(f"Prune(when={self.when!r}): expected 'end' or 'batch'")

    def __call__(self, left: Tensor, right: Tensor, W: Tensor, W0: Tensor) -> Pair:
        """Factors of the pruned update."""
        total = W - W0 + left @ right.T
        # The Gram matrix has d_model columns instead of d_mlp; its accuracy, eps sigma_max(total), equals that of an SVD
        # for the large values, the only ones needed.
        top = torch.linalg.eigvalsh(W0 @ W0.T)[-1].clamp_min(0).sqrt()
        squares, vectors = torch.linalg.eigh(total @ total.T)
        values = squares.clamp_min(0).sqrt()
        large = values > top
        if not large.any():
            return left, right
        sigma, u = values[large], vectors[:, large]
        reduced = sigma.log() - top.log() + top
        return torch.cat([left, u * (reduced / sigma - 1)], 1), torch.cat([right, total.T @ u], 1)


@dataclass(frozen=True)
class Rect:
    """RECT: the share `keep` of Delta's entries with the largest relative change |Delta / W| stays, the rest is zero.

    Gu et al., arXiv 2401.04700; 0.4 is the published share. The result is not of low rank: left is the identity.
    """

    keep: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise KetoolsError(f"Rect(keep={self.keep}): expected a share above 0 and up to 1")

    def __call__(self, left: Tensor, right: Tensor, W: Tensor, W0: Tensor) -> Pair:
        """Factors of the update without its smaller relative changes."""
        delta = left @ right.T
        change = delta.abs() / W.abs()
        change[delta == 0] = 0  # 0 / 0 is no change
        drop = change.numel() - max(1, round(self.keep * change.numel()))
        if drop:
            delta[change <= change.flatten().kthvalue(drop).values] = 0
        return torch.eye(len(delta), dtype=delta.dtype, device=delta.device), delta.T.contiguous()


@dataclass(frozen=True)
class Sphere:
    """SPHERE: Delta (I - strength U U^T), U the principal directions of W's rows on the unit sphere.

    U are the leading eigenvectors of the uncentred covariance of the rows, scaled to length one: the first whose
    eigenvalues sum to more than the share `top` of the trace (Liu et al., arXiv 2510.01172, and its code: W is the
    matrix before this update; 0.5 and 0.5 with AlphaEdit, strength 0.8 with MEMIT).
    """

    top: float = 0.5
    strength: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.top < 1 and 0 <= self.strength <= 1):
            raise KetoolsError(
                f"Sphere(top={self.top}, strength={self.strength}): expected shares of at most 1, top strictly between"
            )

    def __call__(self, left: Tensor, right: Tensor, W: Tensor, W0: Tensor) -> Pair:
        """Factors of the projected update."""
        rows = W / W.norm(dim=1, keepdim=True).clamp_min(1e-30)
        squares, vectors = torch.linalg.eigh(rows @ rows.T)  # the same eigenvalues as rows^T rows, d_model of them
        squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
        count = int((squares.cumsum(0) / squares.sum() <= self.top).sum()) + 1
        u = rows.T @ (vectors[:, :count] / squares[:count].clamp_min(1e-30).sqrt())
        return left, right - self.strength * (u @ (u.T @ right))


@dataclass(frozen=True)
class Nas:
    """NAS (norm-anchor scaling): each value v* = v_0 + delta is rescaled to the norm that such values have in the
    unedited model.

    v_0 (d_model) is the output of the edited matrix of the target layer L at the subject's last token of the bare
    prompt, delta the result of the target optimisation: z = h_0 - v_0 + v* norm / ||v*|| (Liu et al., arXiv
    2602.02543). `norm`: the anchor; None: the mean of ||v*|| over the facts of the first batch of the sequence, found
    on the unedited weights. (The published anchor is the mean over a sample of CounterFact without its largest 5%. The
    published code drops facts whose v* is more than twice as long; here they are rescaled like the others.)
    """

    norm: float | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and not self.norm > 0:
            raise KetoolsError(f"Nas(norm={self.norm}): expected a positive norm, or None for the first batch's mean")

    @staticmethod
    def values(z: Tensor, h0: Tensor, v0: Tensor) -> Tensor:
        """v* (facts, d_model) of targets z, from states h_0 and outputs v_0 of the matrix, all (facts, d_model)."""
        return v0 + z - h0

    def targets(self, z: Tensor, h0: Tensor, v0: Tensor, anchor: float) -> Tensor:
        """z (facts, d_model) with each v* rescaled to the norm `anchor`."""
        value = self.values(z, h0, v0)
        return h0 - v0 + value * (anchor / value.norm(dim=1, keepdim=True).clamp_min(1e-30))


Post = Prune | Rect | Sphere | Nas


def processed(post: Post | None, pair: Pair, W: Tensor, W0: Tensor) -> Pair:
    """`pair` after `post`, as float32 on the CPU; W and W_0 (d_model, d_mlp) may be on any device, in any precision."""
    left, right = pair
    if post is not None and not isinstance(post, Nas) and not (isinstance(post, Prune) and post.when == "end"):
        precise = torch.float64 if W.device.type != "mps" else torch.float32
        left, right = (factor.to(W.device, precise) for factor in pair)
        left, right = post(left, right, W.to(precise), W0.to(W.device, precise))
    return left.float().cpu(), right.float().cpu()
