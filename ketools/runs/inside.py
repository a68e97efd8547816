"""What is measured inside the model at a checkpoint: spectra of the edited matrices, who writes the residual stream."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence

import pandas as pd

from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.norms.residual import contributions
from ketools.norms.sample import text_sample
from ketools.norms.spectra import spectra


def inside(
    model: EditableModel,
    layers: Collection[int],
    texts: Sequence[str],
    *,
    with_spectra: bool = True,
    residual_tokens: int = 1024,
) -> tuple[dict[str, float], dict[str, pd.DataFrame]]:
    """Spectra and residual shares of the model as it stands.

    Args:
        model: the model, edits included.
        layers: the edited layers.
        texts: running text whose first `residual_tokens` tokens are read (0, or no text: none).
        with_spectra: look at the singular values.

    Returns:
        A checkpoint's columns and tables. Columns: spectral_ratio (largest ||W||_2 / ||W_0||_2 of an edited matrix),
        effective_rank_ratio (smallest), residual_share and residual_projection (of the edited MLPs together); NaN where
        nothing was measured, or the model is not finite. Tables "spectra" and "residual" as in
        `ketools.runs.store.RunRecord`.
    """
    row = dict.fromkeys(("spectral_ratio", "effective_rank_ratio", "residual_share", "residual_projection"), math.nan)
    tables: dict[str, pd.DataFrame] = {}
    if with_spectra:
        tables |= _tried(lambda: {"spectra": spectra(model, sorted(layers))}, "spectra")
        if "spectra" in tables:
            both = tables["spectra"].pivot(index="layer", columns="state", values=["spectral_norm", "effective_rank"])
            row["spectral_ratio"] = float((both["spectral_norm"]["now"] / both["spectral_norm"]["before"]).max())
            row["effective_rank_ratio"] = float(
                (both["effective_rank"]["now"] / both["effective_rank"]["before"]).min()
            )
            now = tables["spectra"]
            tables["spectra"] = now[now["state"] == "now"].drop(columns=["state", "edited"]).reset_index(drop=True)
    if residual_tokens and texts:
        sample = text_sample(model, texts, residual_tokens)
        tables |= _tried(lambda: {"residual": contributions(model, sample, edited=layers)}, "residual shares")
        if "residual" in tables:
            edited = tables["residual"][tables["residual"]["edited"]]
            row["residual_share"] = float(edited["share"].sum())
            row["residual_projection"] = float(edited["projection"].sum())
    return row, tables


def _tried(measure: Callable[[], dict[str, pd.DataFrame]], what: str) -> dict[str, pd.DataFrame]:
    try:
        return measure()
    except KetoolsError as error:  # a collapsed model, or an architecture without such a sum: the run goes on without
        warnings.warn(f"{what} not measured: {error}", stacklevel=3)
        return {}
