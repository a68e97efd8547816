"""Figures of what edits do to the weights: their norms and spectra (ketools.norms.weights, spectra).

As in ketools.plots: the title is the finding, computed from the data, and says so where there is none.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.norms.residual import edited_share
from ketools.norms.weights import growing, growth
from ketools.plots.drawers import EDITS, add_lines, holes, measured
from ketools.plots.style import (
    LAYER,
    OKABE_ITO,
    add_line,
    checked,
    dress,
    joined,
    label,
    layer_axis,
    layer_names,
    number,
    part_styles,
    percent,
    styles,
    times,
)
from ketools.runs.records import listed


def norm_fit_curve(norms: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Growth of the most grown edited matrix over edits with its law, by method; tables of `plots.stack`.

    The law is that of `ketools.norms.weights`: sqrt(||W_n||^2 - ||W_0||^2) = a n^b, drawn as the norm that follows from
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


# Figures of the residual stream before and after edits (ketools.norms.residual): importance hacking.


_SHARES = {
    "share": ("share of the stream (% of all norms)", ".0%", percent),
    "projection": ("part of the last state (%, signed)", ".0%", percent),
    "relative": ("norm over that of the state it is added to (%)", ".0%", percent),
    "norm": ("norm of what is written (L2)", ".3~g", number),
}
_OF = "norms.residual.before_and_now"


def stream_profile(frame: pd.DataFrame, measure: str = "share", *, context: str = "") -> go.Figure:
    """What attentions and MLPs write to the residual stream by layer, before and after edits; edited layers are shaded.

    From `residual.before_and_now` (or `contributions`, one state alone). `measure`: share, projection, relative or norm.
    Raises KetoolsError for another table, an empty one, or an unknown measure.
    """
    if measure not in _SHARES:
        raise KetoolsError(f"measure={measure!r}: expected one of {', '.join(map(repr, _SHARES))}")
    frame = checked(frame, "layer", "kind", "edited", measure, "tokens", of=_OF, least=2)
    frame = frame if "state" in frame else frame.assign(state="now")
    title, form, show = _SHARES[measure]
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=["attention", "MLP"])
    for state, look in part_styles(dict.fromkeys(frame["state"])).items():
        for panel, kind in enumerate(("attention", "mlp"), 1):
            rows = frame[(frame["state"] == state) & (frame["kind"] == kind)].sort_values("layer")
            add_line(
                fig,
                rows["layer"].tolist(),
                rows[measure],
                state,
                look,
                show=form,
                at={"row": 1, "col": panel},
                legend=panel == 1,
            )
    edited = sorted(set(frame.loc[frame["edited"].astype(bool), "layer"]))
    for layer in edited:
        fig.add_vrect(layer - 0.4, layer + 0.4, fillcolor=OKABE_ITO["sky"], opacity=0.18, line_width=0, row=1, col=2)
    fig.update_xaxes(title=LAYER, **layer_axis(frame.loc[frame["layer"] >= 0, "layer"]))
    fig.update_yaxes(tickformat=form, rangemode="tozero").update_yaxes(title=title, col=1)
    finding = _stream_words(frame, measure, edited, show)
    shaded = f" Shaded: edited MLPs ({layer_names(edited)})." if edited else ""
    caption = joined(f"Mean over {int(frame['tokens'].iloc[0]):,} tokens; embedding not drawn.{shaded}", context)
    text = _by_layer(frame[frame["kind"] == "mlp"], measure, show)
    return dress(fig, finding, caption, f"Line charts over layers. MLPs: {text}.").update_layout(legend={"y": 1.09})


def _stream_words(frame: pd.DataFrame, measure: str, edited: list[int], show: Callable[[float], str]) -> str:
    what = {
        "share": "share of the stream",
        "projection": "part of the last state",
        "relative": "weight beside the state",
        "norm": "output",
    }[measure]
    both = frame.pivot_table(index=["layer", "kind"], columns="state", values=measure, sort=False)
    if not {"before", "now"} <= set(both):
        top = frame[frame["layer"] >= 0].sort_values(measure).iloc[-1]
        return f"{_name(top['kind'])} of layer {int(top['layer'])} has the largest {what} ({show(float(top[measure]))})"
    if not edited:
        gap = float((both["now"] - both["before"]).abs().max())
        return f"No layer is edited, and no sublayer's {what} moves by more than {show(gap)}"
    if measure == "share":
        ends = edited_share(frame).set_index("state")["share"]
        before, now = float(ends["before"]), float(ends["now"])
    else:
        chosen = both.loc[[(layer, "mlp") for layer in edited]].mean()
        before, now = float(chosen["before"]), float(chosen["now"])
    verb = "grows" if now > 1.05 * before else "falls" if now < before / 1.05 else "stays"
    who = f"The {what} of the edited MLP{'s' if len(edited) > 1 else ''} ({layer_names(edited)})"
    return (
        f"{who} {verb} from {show(before)} to {show(now)}"
        if verb != "stays"
        else f"{who} stays at {show(now)} (before {show(before)})"
    )


def _name(kind: str) -> str:
    return "The MLP" if kind == "mlp" else "The attention"


def _by_layer(frame: pd.DataFrame, measure: str, show: Callable[[float], str]) -> str:
    parts = []
    for layer, rows in frame.groupby("layer"):
        parts.append(
            f"layer {layer} " + ", ".join(f"{r['state']} {show(float(r[measure]))}" for _, r in rows.iterrows())
        )
    return "; ".join(parts)


# Figures of how far hidden states move (ketools.norms.drift): their norms, their drift, and the directions of it.
