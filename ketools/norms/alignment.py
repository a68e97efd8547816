"""Where an update puts its energy: along the leading directions of W, and on the keys of running text.

An update Delta = left right^T (d_model, d_mlp) is small in rank and large in norm. Whether it harms what was there shows
in the share of it that lies along the leading singular directions of W (Liu et al., arXiv 2510.01172), and in the share
that falls on the keys of prose, whose second moment C has the leading eigenvectors where prose lives and a null space
where it does not (AlphaEdit, arXiv 2410.02355). All in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.editing.methods import ALPHAEDIT
from ketools.editing.statistics import Statistics
from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.norms.spectra import Factors, accumulated, factors_of, original, precise, update_values

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class KeyBasis:
    """Eigenvectors of a layer's C (d_mlp, d_mlp), taken once: values (d_mlp,) ascending, vectors in columns, float64.

    The first `null` of them have eigenvalues below `threshold`: AlphaEdit's null space.
    """

    values: Tensor
    vectors: Tensor
    null: int
    threshold: float


def key_bases(
    model: EditableModel, statistics: Statistics, layers: Iterable[int], threshold: float | None = None
) -> dict[int, KeyBasis]:
    """C's eigenvectors for `layers`: one symmetric eigenproblem of d_mlp each, seconds to minutes, once per model.

    `threshold`: eigenvalues below it count as the null space; None: AlphaEdit's setting for this model (absolute, or
    relative to the mean eigenvalue tr(C) / d_mlp, as `Editor` has it). Raises KetoolsError for another model's
    statistics or a layer that they lack.
    """
    layers, hyper = list(layers), ALPHAEDIT.settings(model)
    found = {}
    for layer in layers:
        covariance = precise(statistics.of(model, layers).layers[layer])
        values, vectors = torch.linalg.eigh(covariance)
        limit = threshold
        if limit is None:
            limit = hyper.value("null_threshold", float(covariance.trace()) / len(covariance))
        found[layer] = KeyBasis(values, vectors, int((values < limit).sum()), limit)
    return found


def alignment(
    model: EditableModel,
    update: Edit | Factors | None = None,
    *,
    bases: Mapping[int, KeyBasis] | None = None,
    top: float = 0.05,
) -> pd.DataFrame:
    """Where an update's energy ||Delta||_F^2 lies, as shares of it, beside what a random update would have there.

    Args:
        model: the model; directions are those of its unedited matrices W_0 (d_model, d_mlp).
        update: an Edit or factors per layer; None: everything in the weights, `accumulated(model)`.
        bases: from `key_bases`; without them the columns on C are left out.
        top: share of all directions that count as leading (at least one).

    Returns:
        A row per layer: layer; top_left, the share in the leading left singular directions of W_0 (what the update
        writes), and top_left_chance; top_right and top_right_chance, the same for the right ones (what it reads). With
        bases: c_top and c_top_chance (leading eigenvectors of C), c_mean (tr(Delta C Delta^T) over its value for a
        random update of the same norm: below 1 prose is spared), null_energy, null_chance (null space of C), null_dim,
        null_threshold. Shares of a zero update are NaN.

    Raises:
        KetoolsError: nothing to align (an unedited model), `top` outside 0 to 1, or a layer without a basis.
    """
    if not 0 < top <= 1:
        raise KetoolsError(f"top={top}: expected a share of the directions, above 0 and up to 1")
    factors = factors_of(accumulated(model) if update is None else update)
    rows = []
    for layer, (left, right) in factors.items():
        weight = precise(original(model, layer))
        left, right = (precise(side).to(weight.device) for side in (left, right))
        rows.append({"layer": layer} | _along_weights(weight, left, right, top))
        if bases is not None:
            if layer not in bases:
                raise KetoolsError(f"no eigenvectors of C for layer {layer}; make them with key_bases(..., [{layer}])")
            rows[-1] |= _along_keys(bases[layer], left, right, top)
    return pd.DataFrame(rows)


def _along_weights(weight: Tensor, left: Tensor, right: Tensor, top: float) -> dict[str, float]:
    squares, vectors = torch.linalg.eigh(weight @ weight.T)
    rank = int((squares > len(squares) * _EPS * squares[-1]).sum())  # beyond it there is no direction
    count = max(1, min(rank, round(top * min(weight.shape))))
    u = vectors[:, -count:]
    v = weight.T @ (u / squares[-count:].clamp_min(1e-300).sqrt())
    whole = float(update_values(left, right).square().sum())
    return {
        "top_left": _share((u.T @ left) @ right.T, whole),
        "top_left_chance": count / weight.shape[0],
        "top_right": _share(left @ (right.T @ v), whole),
        "top_right_chance": count / weight.shape[1],
    }


def _along_keys(basis: KeyBasis, left: Tensor, right: Tensor, top: float) -> dict[str, float]:
    # Rows with the same Gram matrix as Delta's, at most r of them; their energy by eigenvector of C.
    rows = left if left.shape[1] >= len(left) else torch.linalg.qr(left, "r").R
    energy = ((rows @ right.T).cpu() @ basis.vectors.cpu()).square().sum(0)
    whole, d, values = float(energy.sum()), len(energy), basis.values.cpu()
    count = max(1, round(top * d))
    return {
        "c_top": _ratio(float(energy[-count:].sum()), whole),
        "c_top_chance": count / d,
        "c_mean": _ratio(float(energy @ values), whole * float(values.mean())),
        "null_energy": _ratio(float(energy[: basis.null].sum()), whole),
        "null_chance": basis.null / d,
        "null_dim": basis.null,
        "null_threshold": basis.threshold,
    }


def _share(part: Tensor, whole: float) -> float:
    return _ratio(float(part.square().sum()), whole)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
