"""The weight update in closed form: matrices only, no model. The second of the two choices that make a method.

Every method minimises a quadratic in Delta = W' - W (d_model, d_mlp), given keys K1 (d_mlp, n) of the new facts and the
residuals R (d_model, n) to add for them:

    ||Delta K1 - R||^2 / slack + tr(Delta A Delta^T),    A = lambda_p C + lambda_n I + K_p K_p^T

    Delta = R (slack I + K1^T X)^-1 X^T,    X = A^-1 K1

`quadratic_form` builds A, a `Protection`. slack = 1 gives MEMIT and related methods (Meng et al., arXiv 2210.07229,
equation 14; Gupta et al., arXiv 2502.01636), slack -> 0 the equality constraint of ROME and EMMET (arXiv 2403.14236,
equation 13). AlphaEdit (arXiv 2410.02355) is the same in the coordinates of a null-space basis U (d_mlp, r), with A =
l2 I + K_p K_p^T there. Delta has the rank of the batch and stays factored: left (d_model, n), right (d_mlp, n), Delta =
left right^T. All in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ketools.editing.methods import Absolute, LeastSquares, NullSpace, Update
from ketools.errors import KetoolsError, NotFinite

_DRIFT = 1e-9  # relative residual of a solve above which it is refined


def quadratic_form(
    C: Tensor, update: Update, hyper: Absolute, K_p: Sequence[Tensor] = (), name: str = "A"
) -> "Protection":
    """A = lambda_p C + lambda_n I + K_p K_p^T: what `update` protects, and with which weight against the new facts.

    C (d_mlp, d_mlp) float64 is the covariance of keys over background text, `K_p` the keys (d_mlp, n) of earlier edits,
    one block per batch. `hyper` comes from Hyper.absolute. Raises KetoolsError where A is not positive definite.
    """
    match update:
        case LeastSquares(norm=True):
            A = Protection(hyper.lambda_p * C + hyper.lambda_n * _eye(C, len(C)), name=name, own=True)
        case NullSpace():
            U = null_space(C, hyper.null_threshold, name)
            A = Protection(hyper.l2 * _eye(C, U.shape[1]), U, name=name, own=True)
        case _:
            A = Protection(hyper.lambda_p * C, name=name, own=True)
    A.add(*K_p)
    return A


def _eye(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


@dataclass
class Protection:
    """A = base + K_p K_p^T, solved through factors that grow with the keys.

    With base = L L^T and whitened keys Y = L^-1 K_p (d, m), A^-1 k = L^-T (I - Y (I + Y^T Y)^-1 Y^T) L^-1 k: a batch of
    n keys costs O(d^2 n + d m n) instead of O(d^3). Once m exceeds half of d the keys are folded: K_p K_p^T goes into
    `base`, which is factored again, and the keys are released. At most 3.25 d^2 numbers are held, however many keys
    were added. `basis` (d_mlp, r) restricts everything to the span of its columns (d = r). Folding writes to `base` if
    `own`, otherwise to a copy.

    Raises KetoolsError, at the first `add` or `solve`, where `base` is not positive definite.
    """

    base: Tensor
    basis: Tensor | None = None
    name: str = "A"
    own: bool = False
    _loose: list[Tensor] = field(default_factory=list)  # keys since the last fold, in the basis' coordinates
    _lower: Tensor | None = None
    # Buffers for all keys between two folds, Y^T (d / 2, d) and the factor of I + Y^T Y, allocated once: the memory of
    # tensors that grow a little with every batch would not be returned to the system.
    _white: Tensor | None = None
    _gram: Tensor | None = None

    def add(self, *blocks: Tensor) -> None:
        """Protect `blocks` of keys (d_mlp, n) of earlier edits, one block per batch, in their order.

        The bits are the same whether blocks come one by one or together; those after the last fold are factored.
        """
        folded = self._last_fold([block.shape[1] for block in blocks])
        if folded:
            self._fold(blocks[:folded])
        elif self._lower is None:
            self._factor()
        for block in blocks[folded:]:
            self._grow(self._coordinates(block))

    def drop(self) -> bool:
        """Remove the keys added last, bit for bit. Returns False, with nothing done, if they were folded: a new
        Protection, built from all the other keys, then has the same bits as one that never held these.
        """
        if not self._loose:
            return False
        self._loose.pop()
        return True

    def solve(self, keys: Tensor) -> Tensor:
        """X = A^-1 keys, (d_mlp, n) float64, from the factors, with one step of refinement where needed.

        Raises KetoolsError if A is singular or the result is not finite.
        """
        k = self._coordinates(keys)
        if self._lower is None:
            self._factor()
        x = self._apply(k)
        gap = k - self._times(x)
        if gap.norm() > _DRIFT * k.norm():
            x = x + self._apply(gap)
        if not x.isfinite().all():
            raise NotFinite(f"the update's linear system for {self.name} has no finite solution: keys hold NaN or Inf")
        return x if self.basis is None else self.basis @ x

    def _coordinates(self, keys: Tensor) -> Tensor:
        keys = keys.double().to(self.base.device)
        return keys if self.basis is None else self.basis.T @ keys

    @property
    def _count(self) -> int:
        return sum(block.shape[1] for block in self._loose)

    def _factor(self) -> None:
        self._lower, self._loose, d = cholesky(self.base, self.name), [], len(self.base)
        if self._white is None:
            self._white, self._gram = self.base.new_empty(d // 2, d), self.base.new_zeros(d // 2, d // 2)

    def _last_fold(self, widths: Sequence[int]) -> int:
        # How many of the new blocks are folded: all up to the last at which the loose keys become too many.
        loose, last = self._count, 0
        for number, width in enumerate(widths, 1):
            loose += width
            if loose > len(self.base) // 2:
                loose, last = 0, number
        return last

    def _fold(self, blocks: Sequence[Tensor]) -> None:
        # Blocks are always added one after another to the same sum, which keeps the bits of separate calls.
        if not self.own:
            self.base, self.own = self.base.clone(), True
        self._lower = None  # free its memory before the next factor is allocated
        for block in (*self._loose, *map(self._coordinates, blocks)):
            self.base.addmm_(block, block.T)
        self._factor()

    def _grow(self, keys: Tensor) -> None:
        assert self._white is not None and self._gram is not None
        n, m = keys.shape[1], self._count
        white, gram, new = self._white[:m], self._gram[:m, :m], slice(m, m + n)
        y = torch.linalg.solve_triangular(self._lower, keys, upper=False)
        # Cholesky factor of I + Y^T Y, one block row at a time.
        corner = torch.eye(n, dtype=y.dtype, device=y.device) + y.T @ y
        side = torch.linalg.solve_triangular(gram, white @ y, upper=False)
        self._gram[new, new] = cholesky(corner - side.T @ side, self.name)
        self._gram[new, :m], self._white[new] = side.T, y.T
        self._loose.append(keys)

    def _apply(self, k: Tensor) -> Tensor:
        assert self._lower is not None and self._white is not None and self._gram is not None
        y = torch.linalg.solve_triangular(self._lower, k, upper=False)
        if m := self._count:
            white = self._white[:m]
            y = y - white.T @ torch.cholesky_solve(white @ y, self._gram[:m, :m])
        return torch.linalg.solve_triangular(self._lower.T, y, upper=True)

    def _times(self, x: Tensor) -> Tensor:
        out = self.base @ x
        for block in self._loose:
            out.addmm_(block, block.T @ x)
        return out


def least_squares(protection: Protection, keys: Tensor, residuals: Tensor, slack: float = 1.0) -> tuple[Tensor, Tensor]:
    """Delta = left right^T for keys K1 (d_mlp, n) and residuals R (d_model, n): (left, right), float64.

    `slack` weights the protected against the new: 1 for MEMIT, sequential MEMIT, AlphaEdit and ENCORE; 0 makes the new
    facts hold exactly (ROME, EMMET). Raises KetoolsError for a system without a finite solution.
    """
    assert keys.shape[1] == residuals.shape[1], "one residual a key"
    x = protection.solve(keys)
    inner = keys.double().to(x.device).T @ x
    inner = (inner + inner.T) / 2 + slack * torch.eye(len(inner), dtype=x.dtype, device=x.device)
    lower, info = torch.linalg.cholesky_ex(inner)
    if info.any() or not lower.isfinite().all():
        raise NotFinite(
            f"the update for {protection.name} has no finite solution: two facts of the batch have the same key "
            "(the same subject in the same words), and both cannot hold exactly; leave one out or use another method"
        )
    return residuals.double().to(x.device), torch.cholesky_solve(x.T.contiguous(), lower).T


def constrained(protection: Protection, keys: Tensor, residuals: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Delta = R (X^T H)^-1 X^T with X = A^-1 K1 as (left, right), float64: Delta H = R holds exactly.

    K1 and H are (d_mlp, n). With H = K1 this is `least_squares` with slack 0, the smallest change in the norm given by
    A. With other keys H it is what ROME's published code computes (rome_main: the direction from averaged keys, the
    denominator from the bare prompt's), which is smallest in no such norm. Raises KetoolsError for a system without a
    finite solution.
    """
    assert keys.shape == held.shape and keys.shape[1] == residuals.shape[1], "one residual and one held key a key"
    x = protection.solve(keys)
    right, info = torch.linalg.solve_ex(x.T @ held.double().to(x.device), x.T)
    if info.any() or not right.isfinite().all():
        raise NotFinite(
            f"the update for {protection.name} has no finite solution: a bare prompt's key is orthogonal to the averaged "
            "one's direction; use R-ROME, which takes the averaged key everywhere"
        )
    return residuals.double().to(x.device), right.T


def null_space(covariance: Tensor, threshold: float, name: str = "C") -> Tensor:
    """Orthonormal basis U (d_mlp, r), float64, of the eigenvectors of C with eigenvalues below `threshold`.

    AlphaEdit's projection is P = U U^T (arXiv 2410.02355, section 3.2), which is never formed. Raises KetoolsError if
    no eigenvalue is that small.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    r = int((values < threshold).sum())
    if r == 0:
        raise KetoolsError(
            f"{name} has no eigenvalue below null_threshold = {threshold:.3g} (its smallest is {values[0]:.3g}): there is "
            "no null space to edit in; raise null_threshold"
        )
    return vectors[:, :r].contiguous()


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """Lower factor of a symmetric positive definite matrix; for any other raises KetoolsError with its rank."""
    if not matrix.isfinite().all():
        raise NotFinite(f"{name} holds NaN or Inf; compute the statistics again")
    lower, info = torch.linalg.cholesky_ex(matrix)
    if info.any():
        values = torch.linalg.eigvalsh(matrix)
        rank = int((values > values[-1] * len(matrix) * torch.finfo(matrix.dtype).eps).sum())
        raise KetoolsError(
            f"{name} is singular: rank {rank} of {len(matrix)}; its covariance needs the keys of at least "
            f"{len(matrix)} different tokens, better ten times as many"
        )
    return lower


def merged(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of several updates of one layer as one pair: side by side, or a dense matrix where that is smaller."""
    left, right = (torch.cat([pair[side] for pair in pairs], 1) for side in (0, 1))
    if len(pairs) > 1 and left.shape[1] > len(left):
        total = left.double() @ right.double().T
        return torch.eye(len(left)), total.T.float().contiguous()
    return left, right


def frobenius(left: Tensor, right: Tensor) -> float:
    """||left right^T||_F from the Gram matrices of the factors in float64: no matrix (d_model, d_mlp) is formed."""
    left, right = left.double(), right.double()
    return float(((left.T @ left) * (right.T @ right)).sum().clamp_min(0).sqrt())
