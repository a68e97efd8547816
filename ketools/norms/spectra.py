"""Singular values of the edited matrices, before and after, and of what was added to them. All in float64."""

from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.errors import KetoolsError
from ketools.models.model import EditableModel

DIRECT = 1024
"""Largest smaller side of a matrix whose singular values are computed from the matrix itself."""

Factors = Mapping[int, tuple[Tensor, Tensor]]


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values of a matrix (m, n), float64 (min(m, n),) on the CPU, descending; never a full SVD.

    Up to a smaller side of `DIRECT` by LAPACK's values-only driver, exact to eps ||W||_2. Beyond that they are the square
    roots of the eigenvalues of the Gram matrix of the smaller side, W W^T or W^T W, in float64 (for 4,096 x 14,336: a
    product of 5e11 operations and a symmetric eigenproblem of 4,096, no singular vectors). The Gram matrix squares the
    condition: values below sqrt(eps) ||W||_2 = 1.5e-8 ||W||_2 are noise there, so that a condition number of 1e7 or more
    says "at least". Nothing is random.

    Raises:
        KetoolsError: the matrix holds NaN or Inf.
    """
    matrix = precise(matrix)
    if not matrix.isfinite().all():
        raise KetoolsError(
            f"a matrix of shape {tuple(matrix.shape)} holds NaN or Inf and has no singular values; undo the edit that "
            "broke it, or load the model again"
        )
    if min(matrix.shape) <= DIRECT:
        return torch.linalg.svdvals(matrix).cpu()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0).sqrt().cpu()


def update_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of Delta = left (d_model, r) right (d_mlp, r)^T, float64, descending, min(r, d_model, d_mlp) of them.

    By QR of both factors and the values of the r x r product of their triangles; the values left out are zero. No
    d_model x d_mlp matrix is formed unless r is as large as its smaller side.
    """
    left, right = precise(left), precise(right)
    if left.shape[1] >= min(len(left), len(right)):
        return singular_values(left @ right.T)
    return singular_values(torch.linalg.qr(left, "r").R @ torch.linalg.qr(right, "r").R.T)


def shape_of(values: Tensor) -> dict[str, float]:
    """Summary of a spectrum (descending singular values s).

    Returns:
        frobenius, sqrt(sum s^2); spectral_norm, s_1; effective_rank, exp(-sum p ln p) with p = s / sum s (Roy and
        Vetterli 2007); stable_rank, sum s^2 / s_1^2 (Rudelson and Vershynin 2007); condition, s_1 / s_min, infinite for a
        singular matrix. For the zero matrix the last three are NaN.
    """
    values = values.double()
    top, frobenius = float(values[0]), float(values.norm())
    if top == 0:
        nothing = dict.fromkeys(("effective_rank", "stable_rank", "condition"), float("nan"))
        return {"frobenius": 0.0, "spectral_norm": 0.0, **nothing}
    share = values / values.sum()
    return {
        "frobenius": frobenius,
        "spectral_norm": top,
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        "stable_rank": (frobenius / top) ** 2,
        "condition": top / float(values[-1]) if values[-1] > 0 else float("inf"),
    }


def spectra(model: EditableModel, layers: Iterable[int] | None = None) -> pd.DataFrame:
    """Spectrum of each MLP output matrix W (d_model, d_mlp) before any edit and now, as numbers.

    Args:
        model: the model in its current state.
        layers: which (None: all).

    Returns:
        Two rows a layer: layer, state ("before", "now"), edited (an edit in `model.edits` touches it) and the columns of
        `shape_of`.

    Raises:
        KetoolsError: a layer that is not there, or weights that are not finite (the layer is named).
    """
    touched = {layer for edit in model.edits for layer in edit.layers}
    return pd.DataFrame(
        [
            {"layer": layer, "state": state, "edited": layer in touched} | shape_of(values)
            for layer, both in _before_and_now(model, layers)
            for state, values in both.items()
        ]
    )


def accumulated(model: EditableModel) -> dict[int, tuple[Tensor, Tensor]]:
    """All edits in the weights as one update: W - W_0 of each touched layer as factors (identity, (W - W_0)^T), float64."""
    found = {}
    for layer in sorted(model.originals):
        delta = precise(model.weight(layer)) - precise(model.originals[layer])
        found[layer] = torch.eye(len(delta), dtype=delta.dtype, device=delta.device), delta.T
    return found


def update_spectra(update: Edit | Factors, model: EditableModel | None = None) -> pd.DataFrame:
    """Spectrum of an update, by its factors.

    Args:
        update: an Edit, or factors per layer such as `accumulated(model)`.
        model: if given, the update is also compared with the unedited matrix.

    Returns:
        A row per layer: layer, rank (columns of the factors, at most the smaller side), the columns of `shape_of` (the
        condition over the first `rank` values) and, with a model, relative_norm (Frobenius, of W_0's) and
        relative_spectral_norm (spectral, of W_0's).

    Raises:
        KetoolsError: an update without layers or with numbers that are not finite.
    """
    rows = []
    for layer, (left, right) in factors_of(update).items():
        values = update_values(left, right)
        row = {"layer": layer, "rank": len(values)} | shape_of(values)
        if model is not None:
            unedited = shape_of(singular_values(original(model, layer)))
            for name, of in (("relative_norm", "frobenius"), ("relative_spectral_norm", "spectral_norm")):
                row[name] = row[of] / unedited[of] if unedited[of] else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def _before_and_now(model: EditableModel, layers: Iterable[int] | None) -> Iterable[tuple[int, dict[str, Tensor]]]:
    for layer in range(model.anatomy.n_layer) if layers is None else layers:
        if not model.weight(layer).isfinite().all():
            raise KetoolsError(
                f"layer {layer}: the MLP output matrix holds NaN or Inf and has no spectrum; undo the edit that broke it"
            )
        now = singular_values(model.weight(layer))
        before = singular_values(model.originals[layer]) if layer in model.originals else now
        yield layer, {"before": before, "now": now}


def original(model: EditableModel, layer: int) -> Tensor:
    """The unedited MLP output matrix (d_model, d_mlp) of a layer, as stored."""
    return model.originals.get(layer, model.weight(layer))


def factors_of(update: Edit | Factors) -> Factors:
    """Factors per layer, in order. Raises KetoolsError if there are none, or numbers that are not finite."""
    factors = update.layers if isinstance(update, Edit) else update
    if not factors:
        raise KetoolsError("no update to look at: nothing has been edited; give an Edit, or apply one first")
    for layer, pair in factors.items():
        if not all(side.isfinite().all() for side in pair):
            raise KetoolsError(f"the update of layer {layer} holds NaN or Inf; it has no spectrum")
    return dict(sorted(factors.items()))


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float64 on its device, or on the CPU where its device has no float64 (mps)."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
