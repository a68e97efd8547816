"""The weight updates in closed form, as in the papers: dense float64 matrices, one `solve` or `inv` each.

W (d_model, d_mlp) maps keys to values. A batch of n facts requires W' = W + Delta with Delta K1 = R, given their keys
K1 (d_mlp, n) and residuals R (d_model, n), and should not change the values of other keys, of which two things are
known:

    C (d_mlp, d_mlp)    E[k k^T] over running text,
    Kp (d_mlp, m)       the keys of all earlier edits.

Every function returns Delta (d_model, d_mlp). The symbols are those of the papers, in the code too.
"""

import torch
from torch import Tensor


def rome(C: Tensor, k: Tensor, r: Tensor, k_held: Tensor | None = None) -> Tensor:
    """ROME, one fact: Delta = r u^T / (u^T k) with u = C^-1 k, so that Delta k = r (arXiv 2202.05262, equation 2).

    k (d_mlp, 1), r (d_model, 1). Of all Delta with Delta k = r it is the smallest in the norm tr(Delta C Delta^T).
    ROME's published code takes u from the averaged key and divides by the bare prompt's, `k_held` (d_mlp, 1): then
    Delta k_held = r. Without it this is R-ROME (Gupta et al., arXiv 2403.07175).
    """
    u = torch.linalg.solve(C, k)
    return r @ u.T / (u.T @ (k if k_held is None else k_held))


def emmet(C: Tensor, K1: Tensor, R: Tensor, ridge: float = 0.0) -> Tensor:
    """EMMET: Delta = R (K1^T C^-1 K1 + ridge I)^-1 K1^T C^-1, ROME for a batch (arXiv 2403.14236, equation 13).

    With ridge 0 Delta K1 = R; the published code adds 0.1 so that the inverse exists.
    """
    X = torch.linalg.solve(C, K1)
    return R @ torch.linalg.inv(K1.T @ X + ridge * torch.eye(K1.shape[1], dtype=C.dtype)) @ X.T


def memit(C: Tensor, K1: Tensor, R: Tensor, lambda_p: float, Kp: Tensor | None = None, lambda_n: float = 0.0) -> Tensor:
    """MEMIT: Delta = R K1^T (A + K1 K1^T)^-1 with A = lambda_p C (arXiv 2210.07229, equation 14).

    With Kp it is MEMIT for a sequence of batches; with lambda_n too it is ENCORE (arXiv 2502.01636), whose Delta
    minimises

        lambda_p tr(Delta C Delta^T) + ||Delta Kp||^2 + lambda_n ||Delta||_F^2 + ||Delta K1 - R||^2.
    """
    A = lambda_p * C + lambda_n * torch.eye(len(C), dtype=C.dtype)
    if Kp is not None:
        A = A + Kp @ Kp.T
    return R @ K1.T @ torch.linalg.inv(A + K1 @ K1.T)


def null_space_projection(C: Tensor, threshold: float) -> Tensor:
    """AlphaEdit's P (d_mlp, d_mlp): onto the eigenvectors of C with eigenvalues below `threshold` (2e-2 as published)."""
    values, vectors = torch.linalg.eigh(C)
    U = vectors[:, values < threshold]
    return U @ U.T


def alphaedit(P: Tensor, K1: Tensor, R: Tensor, l2: float, Kp: Tensor | None = None) -> Tensor:
    """AlphaEdit: Delta^T = (P (Kp Kp^T + K1 K1^T) + l2 I)^-1 P K1 R^T (arXiv 2410.02355).

    Delta P = Delta: it changes nothing along the directions of C that P removes.
    """
    K = K1 if Kp is None else torch.cat([Kp, K1], 1)
    return torch.linalg.solve(P @ K @ K.T + l2 * torch.eye(len(P), dtype=P.dtype), P @ K1 @ R.T).T
