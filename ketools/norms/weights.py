"""The first symptom of lifelong editing: norm and spectrum of the edited matrices, before and after.

Gupta et al. (2502.01636), figures 1 and 15-20: without a penalty on ||W' - W||_F the norm of the edited matrices grows
with every batch, to ten times that of their unedited neighbours. Spectra are computed in float64.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel

GROWTH = 0.01
"""Relative growth over the last quarter above which a norm counts as still growing."""


def norms(model: EditableModel) -> dict[int, float]:
    """Frobenius norm of each layer's MLP output matrix, summed in float64: {layer: norm}."""
    layers = range(model.anatomy.n_layer)
    return {layer: float(torch.linalg.vector_norm(model.weight(layer), dtype=torch.float64)) for layer in layers}


def frobenius(
    model: EditableModel, baseline: Mapping[int, float] | None = None, *, edited: Collection[int] | None = None
) -> pd.DataFrame:
    """Frobenius norms of the MLP output matrices W (d_model, d_mlp) of all layers.

    Args:
        model: the model in its present state.
        baseline: {layer: norm} before the edits, from `norms`; without it the ratio is NaN.
        edited: the layers that count as edited; None: those of the edits in `model.edits`.

    Returns:
        One row per layer: layer, matrix (name of the parameter's module), edited (bool), norm, ratio (norm / baseline).

    Raises KetoolsError if the baseline lacks a layer or has a norm of zero.
    """
    touched = set(edited) if edited is not None else {layer for edit in model.edits for layer in edit.layers}
    now = norms(model)
    if baseline is not None:
        lacking = [layer for layer in now if not baseline.get(layer, 0.0) > 0.0]
        if lacking:
            raise KetoolsError(
                f"baseline norms: layers {lacking} are missing or zero, expected a positive norm for each of the "
                f"{len(now)} layers; take them with ketools.norms.weights.norms(model) before the first edit"
            )
    place = model.anatomy
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "matrix": f"{place.layers}.{layer}.{place.mlp_out}",
                "edited": layer in touched,
                "norm": norm,
                "ratio": norm / baseline[layer] if baseline is not None else float("nan"),
            }
            for layer, norm in now.items()
        ]
    )


def growing(series: Sequence[float] | pd.Series) -> bool:
    """Whether a norm is still growing at the end of a run.

    It is if over the last quarter of the edits it grew by more than GROWTH relative to its value at three quarters
    (interpolated between the two nearest points). The index of a pandas series gives the edits so far; anything else is
    taken as evenly spaced. A norm that is no longer finite counts as growing.

    Raises KetoolsError for fewer than two points.
    """
    values, edits = _points(series)
    if len(values) < 2:
        raise KetoolsError(f"growing: got {len(values)} points, expected at least two norms over the edits")
    if not np.isfinite(values).all():
        return True
    before = float(np.interp(edits[0] + 0.75 * (edits[-1] - edits[0]), edits, values))
    return bool(values[-1] > before * (1.0 + GROWTH))


def _points(series: Sequence[float] | pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Norms and edits of a series: the edits are its index, or 0, 1, ... without one."""
    series = pd.Series(series, dtype=float)
    return series.to_numpy(), series.index.to_numpy(dtype=float)


# How a norm grows with the edits: by which law, with which confidence, and how much one edit adds.
#
# Independent updates add up like a random walk: ||W_n - W_0|| grows like sqrt(n). Updates in one direction add up like n;
# under a penalty growth is slower than sqrt(n).


LAWS = {"linear in sqrt(n)": 0.5, "linear in n": 1.0}
"""Laws with their exponents b of ||W_n - W_0|| ~ n^b."""


def growth(series: pd.Series | Sequence[float], *, level: float = 0.95) -> pd.Series:
    """Fit the growth of a matrix's Frobenius norm over the edits.

    The quantity is e_n = sqrt(||W_n||^2 - ||W_0||^2), which equals ||W_n - W_0|| as far as the updates are orthogonal to
    W_0 (their inner product with it is small compared with either square). The law is e_n = a n^b, a line in logarithms
    fitted by least squares (scipy's linregress), with Student's interval for b.

    The points of a run are not independent draws, so the interval says how well the law describes this run, not how other
    runs will go; for that compare exponents over seeds.

    Args:
        series: norms by edits so far (the index); the first is that before any edit, at 0. Without an index: evenly
            spaced, n = 0, 1, ...
        level: confidence level of the interval.

    Returns:
        The glossary's table "growth". b has no interval with two points and is NaN with fewer. The law is "undecided" if
        the interval contains both exponents of `LAWS` or is missing, and "none" if nothing grew. n: points fitted;
        excluded: points that are not finite, or with a norm no larger than the first.

    Raises KetoolsError for fewer than two points, a first norm that is not positive and finite, and edits that do not
    rise from 0.
    """
    if not 0 < level < 1:
        raise KetoolsError(f"level={level}: expected a confidence between 0 and 1, such as 0.95")
    norms, edits = _checked(series)
    later, at = norms[1:], edits[1:]
    with np.errstate(invalid="ignore", over="ignore"):
        square = later**2 - norms[0] ** 2
    good = np.isfinite(square) & (square > 64 * np.finfo(float).eps * norms[0] ** 2)
    n, e = at[good], np.sqrt(square[good])
    fitted = _power(n, e, level)
    fitted |= {"r2_sqrt": _r2(e**2, n), "r2_linear": _r2(e**2, n**2)}
    whole = np.isfinite(norms)
    fitted |= {"per_edit": _slope(edits[whole], norms[whole], 0.0)}
    fitted |= {"per_edit_last": _slope(edits[whole], norms[whole], 0.75)}
    return pd.Series(fitted | {"n": int(good.sum()), "excluded": int((~good).sum())})


def _checked(series: pd.Series | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    norms, edits = _points(series)
    if len(norms) < 2:
        raise KetoolsError(f"growth: got {len(norms)} points, expected the norm before any edit and at least one after")
    if not (np.isfinite(norms[0]) and norms[0] > 0):
        raise KetoolsError(f"growth: the first norm is {norms[0]}, expected that of the unedited matrix, above 0")
    if edits[0] != 0 or not (np.diff(edits) > 0).all():
        raise KetoolsError(
            f"growth: edits {edits[0]:g}, {edits[1]:g}, ... expected numbers that rise from 0, the point before any edit"
        )
    return norms, edits


def _power(n: np.ndarray, e: np.ndarray, level: float) -> dict[str, float | str]:
    nothing = dict.fromkeys(("exponent", "exponent_low", "exponent_high", "scale", "r2"), float("nan"))
    if len(n) < 2:
        return nothing | {"law": "none" if len(n) == 0 else "undecided"}
    line = stats.linregress(np.log(n), np.log(e))
    low = high = float("nan")
    if len(n) > 2:
        half = float(stats.t.ppf(0.5 + level / 2, len(n) - 2)) * line.stderr
        low, high = line.slope - half, line.slope + half
    # A perfect fit has an interval without width.
    inside = [law for law, exponent in LAWS.items() if low - 1e-9 <= exponent <= high + 1e-9]
    law = "undecided" if len(n) == 2 or len(inside) > 1 else inside[0] if inside else "power law"
    fit = {"exponent": line.slope, "exponent_low": low, "exponent_high": high, "scale": np.exp(line.intercept)}
    numbers: dict[str, float | str] = {name: float(value) for name, value in fit.items()}
    return numbers | {"r2": float(line.rvalue**2), "law": law}


def _r2(y: np.ndarray, x: np.ndarray) -> float:
    around = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    if len(y) < 2 or around == 0:
        return float("nan")
    return 1.0 - float(((y - x * (x @ y) / (x @ x)) ** 2).sum()) / around


def _slope(edits: np.ndarray, norms: np.ndarray, since: float) -> float:
    start = edits[0] + since * (edits[-1] - edits[0])
    if edits[-1] <= start:
        return float("nan")
    return float((norms[-1] - np.interp(start, edits, norms)) / (edits[-1] - start) / norms[0])


# Singular values of a matrix.

DIRECT = 1024
"""Smaller side up to which singular values are computed from the matrix itself."""


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values of a matrix (m, n), float64 (min(m, n),) on the CPU, descending; never a full SVD.

    For a smaller side of up to `DIRECT`, LAPACK's values-only driver computes them, exact to eps ||W||_2. Above that
    they are the square roots of the eigenvalues of the Gram matrix of the smaller side, W W^T or W^T W, in float64 (for
    4,096 x 14,336: a product of 5e11 operations and a symmetric eigenproblem of 4,096, no singular vectors). The Gram
    matrix squares the condition number: values below sqrt(eps) ||W||_2 = 1.5e-8 ||W||_2 are noise, so a condition
    number of 1e7 or more is a lower bound. Nothing is random.

    Raises KetoolsError for a matrix that holds NaN or Inf.
    """
    matrix = matrix.detach()
    matrix = (matrix.cpu() if matrix.device.type == "mps" else matrix).double()  # mps has no float64
    if not matrix.isfinite().all():
        raise KetoolsError(
            f"a matrix of shape {tuple(matrix.shape)} holds NaN or Inf and has no singular values; undo the edit that "
            "broke it, or load the model again"
        )
    if min(matrix.shape) <= DIRECT:
        return torch.linalg.svdvals(matrix).cpu()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0).sqrt().cpu()


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
        model: the model in its present state.
        layers: the layers (None: all).

    Returns:
        Two rows per layer: layer, state ("before", "now"), edited (by an edit in `model.edits`) and the columns of
        `shape_of`.

    Raises KetoolsError for a layer that does not exist, and, naming the layer, for weights that are not finite.
    """
    touched = {layer for edit in model.edits for layer in edit.layers}
    rows = []
    for layer in range(model.anatomy.n_layer) if layers is None else layers:
        if not model.weight(layer).isfinite().all():
            raise KetoolsError(
                f"layer {layer}: the MLP output matrix holds NaN or Inf and has no spectrum; undo the edit that broke it"
            )
        now = shape_of(singular_values(model.weight(layer)))
        before = shape_of(singular_values(model.originals[layer])) if layer in model.originals else now
        for state, shape in (("before", before), ("now", now)):
            rows.append({"layer": layer, "state": state, "edited": layer in touched} | shape)
    return pd.DataFrame(rows)
