"""How far hidden states move: norms of activations, their drift against a reference, and the directions of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ketools.editing.targets import not_finite
from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.norms.sample import Sample, places
from ketools.probing.sublayers import heard

States = Mapping[int, Tensor]


def hidden_states(model: EditableModel, sample: Sample, layers: Iterable[int] | None = None) -> dict[int, Tensor]:
    """The residual stream behind each layer at the sample's tokens, in their order.

    Args:
        model: the model as it stands; take the reference before any edit, or within `sample.unedited(model)`.
        sample: from `text_sample` or `subject_sample`.
        layers: which (None: all).

    Returns:
        {layer: (tokens, d_model) float32, CPU}: 4 n_layer tokens d_model bytes.

    Raises:
        KetoolsError: a layer that is not there, or states that are not finite.
    """
    wanted = list(range(model.anatomy.n_layer) if layers is None else layers)
    for layer in wanted:
        model.layer(layer)
    found = {layer: torch.zeros(sample.tokens, model.anatomy.d_model) for layer in wanted}
    for batch in places(model, sample):
        with torch.no_grad(), heard(model, ("hidden",), len(batch.ids)) as got:
            model.body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for layer in wanted:
            found[layer][batch.order] = batch.pick(got["hidden"][layer]).cpu()
    for layer, states in found.items():
        if not states.isfinite().all():
            raise KetoolsError(f"states behind layer {layer} of {model.name!r} are not finite; {not_finite(model)}")
    return found


def activation_norms(states: States) -> pd.DataFrame:
    """L2 norms of hidden states: a row per layer with layer, mean, p05, median, p95, max, tokens."""
    rows = []
    for layer, state in states.items():
        norm = state.double().norm(dim=1)
        low, middle, high = torch.quantile(norm, torch.tensor([0.05, 0.5, 0.95], dtype=norm.dtype)).tolist()
        row = {"layer": layer, "mean": float(norm.mean()), "p05": low, "median": middle, "p95": high}
        rows.append(row | {"max": float(norm.max()), "tokens": len(norm)})
    return pd.DataFrame(rows)


def drift(now: States, reference: States) -> pd.DataFrame:
    """How far the states are from their reference, token by token.

    Returns:
        A row per layer: layer, cosine (mean over tokens of cos(h, h_ref)), cosine_p05 (the 5% most turned are below it),
        distance (mean of ||h - h_ref|| / ||h_ref||), norm_ratio (mean norm over that of the reference), common (share of
        ||h - h_ref||^2 that is one shift common to all tokens, ||mean||^2 / mean of squares; NaN without any drift),
        tokens, left_out (tokens whose state is zero on a side, without a direction; in no column but norm_ratio).

    Raises:
        KetoolsError: the two are not of the same layers and tokens.
    """
    rows = []
    for layer in _same(now, reference):
        a, b = now[layer].double(), reference[layer].double()
        norm, norm_b = a.norm(dim=1), b.norm(dim=1)
        live = (norm > 0) & (norm_b > 0)
        cosine = (a[live] * b[live]).sum(1) / (norm[live] * norm_b[live])
        gap = (a - b)[live]
        square = float(gap.square().sum(1).mean()) if live.any() else 0.0
        none = float("nan")
        rows.append(
            {
                "layer": layer,
                "cosine": float(cosine.mean()) if live.any() else none,
                "cosine_p05": float(torch.quantile(cosine, 0.05)) if live.any() else none,
                "distance": float((gap.norm(dim=1) / norm_b[live]).mean()) if live.any() else none,
                "norm_ratio": float(norm.mean() / norm_b.mean()) if norm_b.any() else none,
                "common": float(gap.mean(0).square().sum()) / square if square > 0 else none,
                "tokens": len(a),
                "left_out": int((~live).sum()),
            }
        )
    return pd.DataFrame(rows)


def drift_points(now: States, reference: States, layer: int, components: int = 2) -> pd.DataFrame:
    """h - h_ref of each token in its principal components (scikit-learn): token (place in the sample), pc1, pc2, ..."""
    fitted, gap = _fitted(now, reference, layer, components)
    points = fitted.transform(gap.numpy())
    frame = pd.DataFrame({f"pc{k + 1}": points[:, k] for k in range(components)})
    return frame.assign(token=range(len(frame)))[["token", *frame.columns]]


def drift_components(now: States, reference: States, layer: int, components: int = 2) -> pd.DataFrame:
    """How few directions the drift has: component (1, 2, ...), explained (share of the variance around the common shift),
    cumulative."""
    fitted, _ = _fitted(now, reference, layer, components)
    explained = pd.Series(fitted.explained_variance_ratio_)
    return pd.DataFrame(
        {"component": range(1, components + 1), "explained": explained, "cumulative": explained.cumsum()}
    )


def _fitted(now: States, reference: States, layer: int, components: int) -> tuple[PCA, Tensor]:
    if layer not in _same(now, reference):
        raise KetoolsError(f"no states of layer {layer}; there are layers {sorted(now)}")
    gap = now[layer].double() - reference[layer].double()
    if not 1 <= components <= min(gap.shape):
        raise KetoolsError(
            f"components={components}: expected 1 to {min(gap.shape)} with {gap.shape[0]} tokens of {gap.shape[1]} numbers"
        )
    if not (gap - gap.mean(0)).any():
        raise KetoolsError(f"the states behind layer {layer} have not drifted apart: there is nothing to decompose")
    return PCA(components, svd_solver="full").fit(gap.numpy()), gap


def _same(now: States, reference: States) -> list[int]:
    shapes = [{layer: tuple(state.shape) for layer, state in states.items()} for states in (now, reference)]
    if shapes[0] != shapes[1]:
        raise KetoolsError(
            f"states of {shapes[0]} (layer: tokens, width) against a reference of {shapes[1]}: read both with the same "
            "sample and the same layers"
        )
    return list(now)
