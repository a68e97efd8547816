"""The first symptom of lifelong editing: the Frobenius norm of the edited matrices.

Gupta et al. (2502.01636), figures 1 and 15-20: without a penalty on ||W' - W||_F the norm of the edited matrices grows
with every batch, to ten times that of their unedited neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from ketools.errors import KetoolsError
from ketools.model import EditableModel

GROWTH = 0.01
"""Relative growth over the last quarter above which a norm counts as still growing."""


def norms(model: EditableModel) -> dict[int, float]:
    """Frobenius norm of each layer's MLP output matrix, summed in float64: {layer: norm}."""
    with torch.no_grad():
        return {
            layer: float(torch.linalg.vector_norm(model.weight(layer).detach(), dtype=torch.float64))
            for layer in range(model.anatomy.n_layer)
        }


def frobenius(
    model: EditableModel, baseline: Mapping[int, float] | None = None, *, edited: Collection[int] | None = None
) -> pd.DataFrame:
    """Frobenius norms of the MLP output matrices W (d_model, d_mlp) of all layers.

    Args:
        model: the model as it stands.
        baseline: {layer: norm} before the edits, from `norms`; without it the ratio is NaN.
        edited: the layers that count as edited; None: those that the edits in `model.edits` touch.

    Returns:
        A row per layer: layer, matrix (name of the parameter's module), edited (bool), norm, ratio (norm / baseline).

    Raises:
        KetoolsError: the baseline lacks a layer or has a norm of zero.
    """
    touched = set(edited) if edited is not None else {layer for edit in model.edits for layer in edit.layers}
    now = norms(model)
    if baseline is not None:
        lacking = [layer for layer in now if not baseline.get(layer, 0.0) > 0.0]
        if lacking:
            raise KetoolsError(
                f"baseline norms: layers {lacking} are missing or zero, expected a positive norm for each of the "
                f"{len(now)} layers; take it with ketools.norms.weights.norms(model) before the first edit"
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


def growing(series: Sequence[float] | pd.Series, threshold: float = GROWTH) -> bool:
    """Is a norm still growing at the end of a run?

    Rule: over the last quarter of the edits the norm grew by more than `threshold` relative to its value at three
    quarters (interpolated between the two nearest points). A pandas series is read against its index (edits so far),
    anything else as evenly spaced. A norm that is no longer finite counts as growing: it has left the scale.

    Raises:
        KetoolsError: fewer than two points.
    """
    values = np.asarray(series, dtype=float)
    if len(values) < 2:
        raise KetoolsError(f"growing: got {len(values)} points, expected at least two norms over the edits")
    if not np.isfinite(values).all():
        return True
    edits = (
        np.asarray(series.index, dtype=float) if isinstance(series, pd.Series) else np.arange(len(values), dtype=float)
    )
    before = float(np.interp(edits[0] + 0.75 * (edits[-1] - edits[0]), edits, values))
    return bool(values[-1] > before * (1.0 + threshold))
