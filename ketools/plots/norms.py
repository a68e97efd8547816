"""Figures of what edits do to the weights: their norms and spectra (ketools.norms.weights, spectra).

As in ketools.plots.figures: the title is the finding, computed from the data, and says so where there is none.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.norms.residual import TOLERANCE, edited_share
from ketools.norms.weights import growing, growth
from ketools.plots.drawers import EDITS, add_lines, add_reference, holes, measured, scale
from ketools.plots.style import (
    LAYER,
    NEUTRAL,
    OKABE_ITO,
    PATTERNS,
    Style,
    add_line,
    bar_gap,
    checked,
    dress,
    gaps,
    joined,
    label,
    layer_axis,
    layer_names,
    number,
    part_styles,
    percent,
    present,
    styles,
    times,
)
from ketools.runs.records import listed

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


def stream_share_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """What the edited layers' MLPs write together, before and now, beside an even share, from `residual.edited_share`.

    Several methods one below the other with a column method. Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "state", "share", "projection", "even", "layers", "tokens", of="norms.residual.edited_share")
    frame = frame if "method" in frame else frame.assign(method="edits")
    fig, said = go.Figure(), []
    methods = [label(method) for method in dict.fromkeys(frame["method"])]
    for state, look in part_styles(dict.fromkeys(frame["state"])).items():
        rows = frame[frame["state"] == state]
        fig.add_bar(
            x=[label(method) for method in rows["method"]], y=gaps(rows["share"]), name=state, texttemplate="%{y:.1%}", textposition="outside",
            cliponaxis=False, marker={"color": look.colour, "pattern": {"shape": PATTERNS.get(state, "")}}, hovertemplate=f"{state}: %{{y:.2%}}<extra></extra>",
        )  # fmt: skip
    even = float(frame["even"].iloc[0])
    fig.add_hline(even, line={"color": NEUTRAL, "dash": "dot", "width": 2})
    for method, rows in frame.groupby("method", sort=False):
        ends = rows.set_index("state")["share"]
        told = " to ".join(percent(float(ends[state])) for state in ("before", "now") if state in ends)
        said.append(f"{label(str(method))} {told}" if len(methods) > 1 else told)
    head = _share_head(frame)
    fig.update_xaxes(title="what was edited (method)")
    fig.update_yaxes(title="share of the edited MLPs (% of all norms)", tickformat=".0%", rangemode="tozero")
    count = int(frame["layers"].iloc[0])
    caption = f"The {f'{count} edited MLPs' if count > 1 else 'edited MLP'}, mean over {int(frame['tokens'].iloc[0]):,} tokens; dotted: all summands alike."
    return dress(
        fig,
        f"{head} ({'; '.join(said)}; even share {percent(even)})",
        joined(caption, context),
        f"Bars of the edited layers' share of the stream: {'; '.join(said)}.",
        400,
    ).update_layout(barmode="group", bargap=bar_gap(len(methods)))


def stream_error_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Do the summands add up: largest relative error by layer, from `residual.check_sums` (layer, error_layer, error_stream).

    Raises KetoolsError for another table or fewer than two layers.
    """
    frame = checked(frame, "layer", "error_layer", "error_stream", of="norms.residual.check_sums", least=2)
    fig = go.Figure()
    looks = {"error_layer": ("of the layer alone", Style(OKABE_ITO["orange"], "dash", "square")), "error_stream": ("of the whole sum so far", Style(OKABE_ITO["blue"], "solid", "circle"))}  # fmt: skip
    for column, (name, look) in looks.items():
        add_line(fig, frame["layer"], frame[column].where(frame[column] > 0), name, look, show=".1e")
    add_reference(fig, [frame["layer"].min(), frame["layer"].max()], [TOLERANCE] * 2, "allowed in float32", ".0e")
    worst = frame.loc[frame[["error_layer", "error_stream"]].max(axis=1).idxmax()]
    error = float(max(worst["error_layer"], worst["error_stream"]))
    verb = "add up to the stream" if error <= TOLERANCE else "do not add up to the stream"
    finding = f"What the sublayers write {verb} (largest relative error {error:.1e}, layer {int(worst['layer'])})"
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title="largest relative error (ratio)", type="log", exponentformat="power")
    text = "; ".join(f"layer {int(r['layer'])} {r['error_stream']:.1e}" for _, r in frame.iterrows())
    caption = joined("Norm of what is missing over that of the state, largest over the tokens.", context)
    return dress(fig, finding, caption, f"Line chart over layers: {text}.")


def _share_head(frame: pd.DataFrame) -> str:
    both = frame.pivot(index="method", columns="state", values="share")
    if not {"before", "now"} <= set(both):
        return "Edited layers write a part of the stream"
    grown = both["now"] / both["before"] > 1.05
    if grown.all():
        return "Edited layers take over more of the stream"
    return f"Edited layers {'take over more of the stream with some methods' if grown.any() else 'keep their share of the stream'}"


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


_DRIFT = (
    ("cosine", "mean cosine", "cosine to before (-1 to 1)", ".4f", Style(OKABE_ITO["blue"], "solid", "circle")),
    (
        "distance",
        "mean distance",
        "distance (% of the norm before)",
        ".1%",
        Style(OKABE_ITO["vermillion"], "dash", "square"),
    ),
    ("norm_ratio", "mean length", "norm (ratio to before)", ".3f", Style(OKABE_ITO["green"], "dot", "diamond")),
)


def activation_profile(now: pd.DataFrame, before: pd.DataFrame | None = None, *, context: str = "") -> go.Figure:
    """Norms of hidden states by layer, mean with the range from 5% to 95% of tokens, from `drift.activation_norms`.

    `before`: the same of the unedited model. Raises KetoolsError for another table or fewer than two layers.
    """
    of = "norms.drift.activation_norms"
    fig, looks = go.Figure(), part_styles(("before", "now"))
    for state, frame in (("before", before), ("now", now)):
        if frame is not None:
            rows = checked(frame, "layer", "mean", "p05", "p95", "tokens", of=of, least=2)
            add_line(
                fig,
                rows["layer"],
                rows["mean"],
                state,
                looks[state],
                low=rows["p05"],
                high=rows["p95"],
                interval="5% to 95% of tokens",
            )
    last = now.iloc[-1]
    if before is None:
        first = now.iloc[0]
        finding = f"States have norm {number(float(first['mean']))} behind layer {int(first['layer'])} and {number(float(last['mean']))} behind layer {int(last['layer'])}"
    else:
        ratio = now.set_index("layer")["mean"] / before.set_index("layer")["mean"]
        at = int((ratio - 1).abs().idxmax())
        change = float(ratio[at])
        verb = "grow" if change > 1.05 else "shrink" if change < 0.95 else "keep their length"
        finding = f"Hidden states {verb}: {times(change)} of before where that changed most, behind layer {at}"
    fig.update_xaxes(title=LAYER, **layer_axis(now["layer"]))
    fig.update_yaxes(title="norm of the hidden state (L2)", **scale(now["mean"]))
    caption = joined(f"Mean over {int(last['tokens']):,} tokens; bars: from 5% to 95% of them.", context)
    text = "; ".join(f"layer {int(r['layer'])} {number(float(r['mean']))}" for _, r in now.iterrows())
    return dress(fig, finding, caption, f"Line chart over layers, mean norms: {text}.")


def drift_profile(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """How far hidden states moved, by layer: their turn (cosine), distance and length, a panel each, from `drift.drift`.

    Raises KetoolsError for another table, fewer than two layers, or states that have no direction anywhere.
    """
    of = "norms.drift.drift"
    frame = checked(
        frame, "layer", "cosine", "cosine_p05", "distance", "norm_ratio", "tokens", "left_out", of=of, least=2
    )
    rows = present(frame, "cosine", of)
    fig = make_subplots(1, 3, horizontal_spacing=0.12, subplot_titles=["direction", "distance", "length"])
    for panel, (column, name, title, show, look) in enumerate(_DRIFT, 1):
        at = {"row": 1, "col": panel}
        add_line(fig, rows["layer"], rows[column], name, look, show=show, at=at)
        fig.update_yaxes(title=title, col=panel)
    least = Style(NEUTRAL, "dot", "circle-open")
    first = {"row": 1, "col": 1}
    add_line(fig, rows["layer"], rows["cosine_p05"], "5% of tokens below", least, show=".4f", at=first)
    fig.update_yaxes(tickformat=".3~%", rangemode="tozero", col=2)
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    worst = rows.loc[rows["distance"].idxmax()]
    finding = "Hidden states have not drifted in any layer"
    if worst["distance"] > 0.001:
        far, turned = percent(float(worst["distance"])), f"{worst['cosine']:.4f}"
        finding = f"Hidden states drift most behind layer {int(worst['layer'])}: {far} of their norm, cosine {turned}"
    out = int(frame["left_out"].max())
    aside = f"; {out} without a direction left out" if out else ""
    caption = joined(f"Mean over {int(worst['tokens']):,} tokens{aside}.", context)
    text = "; ".join(
        f"layer {int(r['layer'])} cosine {number(float(r['cosine']))}, distance {percent(float(r['distance']))}"
        for _, r in rows.iterrows()
    )
    return dress(fig, finding, caption, f"Line charts over layers: {text}.", 400).update_layout(legend={"y": 1.09})


def drift_points(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """The drift of each token in its first two principal components, from `drift.drift_points` (token, pc1, pc2).

    Raises KetoolsError for another table or fewer than two tokens.
    """
    frame = checked(frame, "token", "pc1", "pc2", of="norms.drift.drift_points", least=2)
    far = np.hypot(frame["pc1"], frame["pc2"])
    fig = go.Figure()
    fig.add_scatter(
        x=frame["pc1"].tolist(), y=frame["pc2"].tolist(), mode="markers", name="tokens", customdata=frame["token"].tolist(),
        marker={"color": OKABE_ITO["blue"], "size": 6, "opacity": 0.5}, hovertemplate="token %{customdata}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    )  # fmt: skip
    ratio = float(frame["pc1"].std() / frame["pc2"].std()) if frame["pc2"].std() > 0 else float("inf")
    few = int((far > 3 * far.median()).sum())
    finding = f"The drift of {len(frame):,} tokens spreads {times(ratio)} as far along its first direction as along its second"
    finding += (
        f"; {few} tokens drift more than three times as far as the median one" if few else "; no token stands out"
    )
    fig.update_xaxes(title="first principal component (L2)").update_yaxes(
        title="second principal component (L2)", zeroline=True
    )
    caption = joined("Hidden state now minus before, a point per token, around the shift common to all.", context)
    return dress(fig, finding, caption, f"Scatter plot. {finding}.").update_layout(hovermode="closest")


def drift_component_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """How few directions the drift has: variance explained by each and by all so far, from `drift.drift_components`.

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "component", "explained", "cumulative", of="norms.drift.drift_components")
    fig = go.Figure()
    fig.add_bar(
        x=frame["component"].tolist(), y=frame["explained"].tolist(), name="this direction", texttemplate="%{y:.0%}", textposition="outside",
        cliponaxis=False, marker={"color": OKABE_ITO["blue"], "pattern": {"shape": "/"}}, hovertemplate="this direction: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    add_line(
        fig,
        frame["component"],
        frame["cumulative"],
        "all so far",
        Style(OKABE_ITO["orange"], "dash", "square"),
        show=".1%",
    )
    n, whole = len(frame), float(frame["cumulative"].iloc[-1])
    first = float(frame["explained"].iloc[0])
    kind = (
        "has one main direction"
        if first > 0.5
        else "lies in few directions"
        if whole > 0.9
        else "is spread over many directions"
    )
    finding = f"The drift {kind}: the first holds {percent(first)} of its variance, the first {n} {percent(whole)}"
    fig.update_xaxes(title="principal component (number)", dtick=1)
    fig.update_yaxes(title="variance of the drift (%)", tickformat=".0%", range=[0, 1.08])
    text = "; ".join(f"component {int(r['component'])} {percent(float(r['explained']))}" for _, r in frame.iterrows())
    caption = joined(
        "Principal components of hidden state now minus before, around the shift common to all tokens.", context
    )
    return dress(fig, finding, caption, f"Bars with a line: {text}.", 400)
