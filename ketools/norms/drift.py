"""What edits do inside: how far hidden states drift, where updates put their energy, how far targets leave natural states.

An update Delta = left right^T (d_model, d_mlp) is small in rank and large in norm. Whether it harms what was there shows
in the share of it along the leading singular directions of W (Liu et al., arXiv 2510.01172), and in the share
that falls on the keys of background text, whose covariance C has its leading eigenvectors where such text lives and a
null space where it does not (AlphaEdit, arXiv 2410.02355). Alignment is computed in float64.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ketools.editing.covariance import Statistics
from ketools.editing.edit import Edit
from ketools.editing.methods import ALPHAEDIT
from ketools.editing.targets import Targets, not_finite
from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.replay import recorded
from ketools.norms.residual import Sample, places
from ketools.norms.weights import Factors, accumulated, factors_of, original, precise, update_values

States = Mapping[int, Tensor]


def hidden_states(model: EditableModel, sample: Sample, layers: Iterable[int] | None = None) -> dict[int, Tensor]:
    """The residual stream after each layer at the sample's tokens, in their order.

    Args:
        model: the model in its current state; take the reference before any edit, or within `model.edits.at(0)`.
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
        with torch.no_grad(), recorded(model, ["hidden"], len(batch.ids)) as got:
            model.body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for layer in wanted:
            found[layer][batch.order] = batch.pick(got["hidden"][layer]).cpu()
    for layer, states in found.items():
        if not states.isfinite().all():
            raise KetoolsError(f"states after layer {layer} of {model.name!r} are not finite; {not_finite(model)}")
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
        The glossary's table "drift", a row per layer. Tokens whose state is zero on a side have no direction: left_out
        counts them, and they are in no column but norm_ratio.

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


def drift_components(now: States, reference: States, layer: int, components: int = 2) -> pd.DataFrame:
    """How few directions h - h_ref has (scikit-learn's PCA).

    Returns:
        A row per component: component (1, 2, ...), explained (share of the variance around the common shift), cumulative.

    Raises:
        KetoolsError: a layer without states, more components than there can be, or states without any drift.
    """
    if layer not in _same(now, reference):
        raise KetoolsError(f"no states of layer {layer}; there are layers {sorted(now)}")
    gap = now[layer].double() - reference[layer].double()
    if not 1 <= components <= min(gap.shape):
        raise KetoolsError(
            f"components={components}: expected 1 to {min(gap.shape)} with {gap.shape[0]} tokens of {gap.shape[1]} numbers"
        )
    if not (gap - gap.mean(0)).any():
        raise KetoolsError(f"the states after layer {layer} have not drifted apart: there is nothing to decompose")
    explained = pd.Series(PCA(components, svd_solver="full").fit(gap.numpy()).explained_variance_ratio_)
    frame = pd.DataFrame({"component": range(1, components + 1), "explained": explained})
    return frame.assign(cumulative=explained.cumsum())


def _same(now: States, reference: States) -> list[int]:
    shapes = [{layer: tuple(state.shape) for layer, state in states.items()} for states in (now, reference)]
    if shapes[0] != shapes[1]:
        raise KetoolsError(
            f"states of {shapes[0]} (layer: tokens, width) against a reference of {shapes[1]}: read both with the same "
            "sample and the same layers"
        )
    return list(now)


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
        The glossary's table "alignment", a row per layer: shares in the leading left and right singular directions of W_0
        (what the update writes and reads) and, with bases, along C's leading eigenvectors and its null space; NAME_chance
        is what a random update has. Shares of a zero update are NaN.

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
        "top_left": _ratio(float(((u.T @ left) @ right.T).square().sum()), whole),
        "top_left_chance": count / weight.shape[0],
        "top_right": _ratio(float((left @ (right.T @ v)).square().sum()), whole),
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


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")


def overfitting_curve(targets: Targets) -> pd.DataFrame:
    """The target's probability per step over all facts: where the optimisation passes the natural level.

    The target's probability runs past that of natural facts before any weight is touched (Gupta et al., 2502.01636,
    section 3), which MPES stops.

    Returns:
        A row per step: step, p_mean, p05, median, p95 over all facts, one that has stopped counting with the probability
        at which it stopped; running (share of facts still optimised), n, excluded (facts whose trace has NaN or Inf, in
        no other column).

    Raises:
        KetoolsError: no fact has a finite trace.
    """
    p, passes = targets.trace.double().numpy().copy(), targets.steps.numpy() + 1
    column = np.arange(p.shape[1])
    after = column[None] >= passes[:, None]
    last = p[np.arange(len(p)), passes - 1]
    p = np.where(after, last[:, None], p)
    good = np.isfinite(p).all(axis=1)
    if not good.any():
        raise KetoolsError(f"none of {len(p)} traces is finite; the optimisation is broken")
    p, after = p[good], after[good]
    low, middle, high = np.quantile(p, [0.05, 0.5, 0.95], axis=0)
    frame = pd.DataFrame({"step": column, "p_mean": p.mean(0), "p05": low, "median": middle, "p95": high})
    return frame.assign(running=1 - after.mean(0), n=int(good.sum()), excluded=int((~good).sum()))
