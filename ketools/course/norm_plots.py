"""Figures of what edits do to the weights: their norms and spectra (ketools.norms.weights, spectra).

As in ketools.course.plots: the title is the finding, computed from the data, and says so where there is none.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, times
from ketools.course.lines import EDITS, add_lines, holes, measured
from ketools.course.parts import LAYER, checked, gaps, joined, layer_axis, layer_names
from ketools.course.style import NEUTRAL, OKABE_ITO, dress, label, part_styles, styles
from ketools.errors import KetoolsError
from ketools.norms.growth import growth
from ketools.norms.weights import growing
from ketools.runs.names import listed

_SHAPE = {
    "spectral_norm": "spectral norm",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "condition": "condition number",
}


def norm_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Frobenius norm of each layer's MLP output matrix, edited against unedited, from `weights.frobenius`.

    Relative to before any edit where there is a baseline (column ratio), else absolute. Raises KetoolsError for another
    table or an empty one.
    """
    frame = checked(frame, "layer", "edited", "norm", "ratio", of="norms.weights.frobenius")
    relative = bool(frame["ratio"].notna().any())
    column, axis = (
        ("ratio", "Frobenius norm (ratio to before any edit)") if relative else ("norm", "Frobenius norm (absolute)")
    )
    show = times if relative else number
    fig, said = go.Figure(), {}
    for edited, name, colour, shape in ((True, "edited", OKABE_ITO["blue"], "/"), (False, "unedited", NEUTRAL, "")):
        rows = frame[frame["edited"].astype(bool) == edited]
        said[edited] = rows[column]
        fig.add_bar(
            x=rows["layer"].tolist(), y=gaps(rows[column]), name=name, marker={"color": colour, "pattern": {"shape": shape}},
            texttemplate="%{y:.3g}", textposition="outside", cliponaxis=False, hovertemplate=f"{name}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    touched = sorted(set(frame.loc[frame["edited"].astype(bool), "layer"]))
    finding = _norm_words(said[True], said[False], touched, relative)
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title=axis, rangemode="tozero")
    text = "; ".join(
        f"layer {row['layer']}{' (edited)' if row['edited'] else ''} {show(row[column])}" for _, row in frame.iterrows()
    )
    caption = joined("MLP output matrix of each layer.", context)
    return dress(fig, finding, caption, f"Bar chart by layer: {text}.", 400).update_layout(barmode="overlay")


def norm_fit_curve(norms: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Growth of the most grown edited matrix over edits with its law, by method; tables of `plots.stack`.

    The law is that of `ketools.norms.growth`: sqrt(||W_n||^2 - ||W_0||^2) = a n^b, drawn as the norm that follows from
    it. b near 1/2: as a random walk; near 1: every edit adds alike. Needs columns method, edits, layer, edited, ratio.
    Raises KetoolsError if one is missing, nothing was measured, or the norms do not begin before the first edit.
    """
    touched = measured(norms, "ratio", "layer", "edited")
    touched = touched[touched["edited"].astype(bool)]
    most = touched.sort_values("ratio").groupby(["method", "edits"], sort=False).tail(1).sort_index()
    if most["edits"].nunique() < 2:
        raise KetoolsError("nothing to fit: the norms were measured at fewer than two numbers of edits")
    fig, lines, on = go.Figure(), [], []
    add_lines(fig, most, "ratio", ".3f", note="layer")
    for method, look in styles(dict.fromkeys(most["method"])).items():
        mine = most[most["method"] == method].sort_values("edits").set_index("edits")["ratio"].dropna()
        name, law, end = label(method), growth(mine), int(mine.index[-1])
        lines.append(f"{name} {_law(law)} ({times(float(mine.iloc[-1]))} after {end:,} edits)")
        if growing(mine):
            on.append(name)
        if np.isfinite(law["exponent"]):
            x = np.linspace(0, end, 60)
            y = np.sqrt(mine.iloc[0] ** 2 + (law["scale"] * x ** law["exponent"]) ** 2)
            fig.add_scatter(
                x=x.tolist(), y=y.tolist(), mode="lines", name=f"law of {name}", opacity=0.55, hoverinfo="skip",
                line={"color": look.colour, "width": 1.5, "dash": "solid"}, legendgroup=name, showlegend=False,
            )  # fmt: skip
    still = f"still growing at the end with {listed(on)}" if on else "no longer growing at the end"
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="Frobenius norm (ratio to before any edit)")
    caption = "Thin lines: what was added has norm a × edits^b (b 1/2: a random walk, 1: every edit adds alike); 95% intervals of the fit."
    caption += holes(norms[norms["edited"].astype(bool)], "ratio")
    text = f"Line chart over edits. {'; '.join(lines)}; {still}."
    return dress(fig, f"Norm growth: {'; '.join(lines)}; {still}", joined(caption, context), text)


def spectra_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Singular values of matrices before any edit and now, one panel a layer (four at most), from `spectra.value_table`.

    Raises KetoolsError for another table, an empty one, or more than four layers.
    """
    frame = checked(frame, "layer", "state", "index", "value", of="norms.spectra.value_table", least=2)
    layers = sorted(set(frame["layer"]))
    if len(layers) > 4:
        raise KetoolsError(
            f"singular values of {len(layers)} layers do not fit one figure; give value_table layers=[...], up to 4"
        )
    fig = make_subplots(
        1, len(layers), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[f"layer {i}" for i in layers]
    )
    lines = []
    for panel, layer in enumerate(layers, 1):
        values = {}
        for state, look in part_styles(("before", "now")).items():
            rows = frame[(frame["layer"] == layer) & (frame["state"] == state)].sort_values("index")
            values[state] = rows["value"].to_numpy(dtype=float)
            line = go.Scatter(
                x=rows["index"].tolist(), y=rows["value"].where(rows["value"] > 0).tolist(), name=state, legendgroup=state, showlegend=panel == 1,
                mode="lines", line={"color": look.colour, "dash": look.dash, "width": 2.5}, hovertemplate=f"{state}: %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(line, row=1, col=panel)
        lines.append((layer, *_compared(values["before"], values["now"])))
    fig.update_xaxes(title="singular value (place, largest first)", type="log")
    fig.update_yaxes(type="log", tickvals=_ticks(frame["value"])).update_yaxes(title="singular value (absolute)", col=1)
    moved = [line for line in lines if abs(line[1] - 1) > 0.01 or abs(line[2] - 1) > 0.01]
    still = [line[0] for line in lines if line not in moved]
    said = [
        f"layer {layer}: the largest singular value is {times(top)} of before, the median {times(middle)}"
        for layer, top, middle in moved
    ]
    if still:
        said.append(f"{layer_names(still)} as before")
    finding = "; ".join(said) if moved else f"Singular values are as before the edits in {layer_names(still)}"
    caption = joined("All singular values of the MLP output matrix, in order of size; both axes logarithmic.", context)
    text = f"Line charts of singular values. {'; '.join(said)}."
    return dress(fig, finding[0].upper() + finding[1:], caption, text).update_layout(legend={"y": 1.09})


def _ticks(values: pd.Series) -> list[float]:
    # Round numbers of a logarithmic axis, written out: plotly's own would say "2" for 20, and nothing else in one decade.
    low, high = float(values[values > 0].min()), float(values[np.isfinite(values)].max())
    steps = (1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps]


def spectra_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """What became of each matrix' spectrum: ratio now to before of its norms and ranks, by layer, from `spectra.spectra`.

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "layer", "state", "edited", *_SHAPE, of="norms.spectra.spectra", least=2)
    both = frame.set_index(["state", "layer"])
    ratio = both.loc["now", list(_SHAPE)] / both.loc["before", list(_SHAPE)]
    ratio = ratio.replace([np.inf, -np.inf], np.nan)
    fig = go.Figure()
    looks = zip(_SHAPE.items(), ("orange", "blue", "sky", "green"), ("", "/", ".", "x"), strict=True)
    for (column, name), colour, shape in looks:
        fig.add_bar(
            x=ratio.index.tolist(), y=gaps(ratio[column]), name=name, marker={"color": OKABE_ITO[colour], "pattern": {"shape": shape}},
            hovertemplate=f"{name}: %{{y:.3f}}×<extra></extra>",
        )  # fmt: skip
    fig.add_hline(1.0, line={"color": NEUTRAL, "dash": "dot"})
    edited = sorted(set(frame.loc[frame["edited"].astype(bool), "layer"]))
    if edited:
        at = ratio.loc[edited]
        top = int(at["spectral_norm"].idxmax())
        row = ratio.loc[top]
        finding = (
            f"In edited layer {top} the spectral norm {_moved(row['spectral_norm'], 'grows', 'shrinks')} of before, "
            f"the effective rank {_moved(row['effective_rank'], 'rises', 'falls')}"
        )
    else:
        finding = "No layer is edited: every spectrum is as before"
    fig.update_xaxes(title=LAYER, **layer_axis(ratio.index))
    fig.update_yaxes(title="now to before any edit (ratio)", rangemode="tozero")
    which = f"Edited: {layer_names(edited)}. " if edited else ""
    caption = joined(
        f"{which}Effective rank: exp of the entropy of the singular values; a bar is missing where a matrix is singular.",
        context,
    )
    text = "; ".join(
        f"layer {i}: " + ", ".join(f"{_SHAPE[c]} {times(v)}" for c, v in row.items()) for i, row in ratio.iterrows()
    )
    return dress(fig, finding, caption, f"Grouped bars, ratios to before: {text}.").update_layout(barmode="group")


def _norm_words(edited: pd.Series, rest: pd.Series, touched: list[int], relative: bool) -> str:
    show = times if relative else number
    if not touched:
        return f"No layer is edited; the matrices' norms are {_span(rest, show)}"
    others = f"; unedited ones {_span(rest, show)}" if len(rest) else ""
    several = len(touched) > 1
    who = f"The edited {'matrices' if several else 'matrix'} of {layer_names(touched)}"
    if not relative:
        return f"{who} {'have' if several else 'has'} norm {_span(edited, show)}{others}"
    if edited.max() > 1.5:
        return f"{who} {'outgrow their' if several else 'outgrows its'} norm ({_span(edited, show)}{others})"
    return f"{who} {'keep' if several else 'keeps'} near the original norm ({_span(edited, show)}{others})"


def _moved(ratio: float, up: str, down: str) -> str:
    if abs(ratio - 1) < 0.005:
        return f"stays at {times(ratio)}"
    return f"{up if ratio > 1 else down} to {times(ratio)}"


def _span(values: pd.Series, show: Callable[[float], str]) -> str:
    low, high = show(float(values.min())), show(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _law(law: pd.Series) -> str:
    exponent, low, high = (float(law[name]) for name in ("exponent", "exponent_low", "exponent_high"))
    if not math.isfinite(exponent):
        return "does not grow" if law["law"] == "none" else "follows no law that can be fitted"
    span = f" [{low:.2f} to {high:.2f}]" if math.isfinite(low) else ""
    return f"adds as edits^{exponent:.2f}{span}"


def _compared(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    # Largest and median singular value, now to before.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(now[0] / before[0]), float(np.median(now) / np.median(before))
