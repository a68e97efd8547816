"""Figures of an update itself: its spectrum, where its energy lies, and how much text the covariance behind it needs.

Frames of ketools.norms (spectra.update_spectra, alignment.alignment) and ketools.editing.convergence.
"""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course.findings import number, percent, times
from ketools.course.parts import LAYER, add_line, bar_gap, checked, gaps, joined, layer_axis, layer_names, present
from ketools.course.style import NEUTRAL, OKABE_ITO, Style, dress, label, styles

_ALONG = {
    "top_left": ("writes along top directions of W", "top_left_chance"),
    "top_right": ("reads along top directions of W", "top_right_chance"),
    "c_top": ("reads top directions of prose keys", "c_top_chance"),
    "null_energy": ("reads the null space of prose keys", "null_chance"),
}
_QUANTITIES = {
    "change_c": ("C, change since the look before", Style(NEUTRAL, "dot", "circle-open")),
    "change_update": ("update, change since the look before", Style(OKABE_ITO["orange"], "dash", "square")),
    "distance_update": ("update, distance to the last look", Style(OKABE_ITO["blue"], "solid", "circle")),
}
_ENOUGH = 0.1  # relative change of the update below which more text is of little use


def update_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Size of an update relative to the matrix it is added to, by layer: Frobenius and spectral norm.

    From `spectra.update_spectra(update, model)`; without the model there is nothing to compare with. Raises KetoolsError
    for another table or an empty one.
    """
    of = "norms.spectra.update_spectra with a model"
    frame = checked(frame, "layer", "rank", "effective_rank", "relative_norm", "relative_spectral_norm", of=of)
    fig = go.Figure()
    bars = (
        ("relative_norm", "Frobenius norm", NEUTRAL, ""),
        ("relative_spectral_norm", "spectral norm", OKABE_ITO["blue"], "/"),
    )
    for column, name, colour, shape in bars:
        fig.add_bar(
            x=frame["layer"].tolist(), y=gaps(frame[column]), name=name, marker={"color": colour, "pattern": {"shape": shape}},
            texttemplate="%{y:.1%}", textposition="outside", cliponaxis=False, hovertemplate=f"{name}: %{{y:.2%}}<extra></extra>",
        )  # fmt: skip
    row = frame.loc[frame["relative_norm"].idxmax()]
    few = row["relative_spectral_norm"] > row["relative_norm"]
    finding = (
        f"The update of layer {int(row['layer'])} has {percent(row['relative_norm'])} of the matrix' norm "
        f"{'but' if few else 'and'} {percent(row['relative_spectral_norm'])} of its spectral norm: "
        f"{'few but strong directions' if few else 'many weak directions'} "
        f"(effective rank {number(row['effective_rank'])})"
    )
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title="update (% of the unedited matrix)", tickformat=".0%", rangemode="tozero")
    text = "; ".join(
        f"layer {int(r['layer'])} {percent(r['relative_norm'])} and {percent(r['relative_spectral_norm'])}"
        for _, r in frame.iterrows()
    )
    caption = joined("Norms of the update over those of the unedited MLP output matrix.", context)
    fig = dress(fig, finding, caption, f"Grouped bars, Frobenius and spectral norm of the update: {text}.", 400)
    return fig.update_layout(barmode="group", bargap=bar_gap(len(frame)))


def alignment_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Where an update's energy lies, beside chance (grey), from `alignment.alignment`; the mean over its layers.

    Columns on C are drawn where they are there. Raises KetoolsError for another table or one of zero updates.
    """
    frame = checked(
        frame, "layer", "top_left", "top_left_chance", "top_right", "top_right_chance", of="norms.alignment.alignment"
    )
    frame = present(frame, "top_left", "norms.alignment.alignment")
    kinds = {name: what for name, what in _ALONG.items() if name in frame}
    found = {name: (float(frame[name].mean()), float(frame[chance].mean())) for name, (_, chance) in kinds.items()}
    names = [what for what, _ in kinds.values()]
    fig = go.Figure()
    bars = (("update", 0, OKABE_ITO["blue"], "/"), ("a random update", 1, NEUTRAL, ""))
    for name, side, colour, shape in bars:
        fig.add_bar(
            y=names, x=[both[side] for both in found.values()], orientation="h", name=name, texttemplate="%{x:.1%}", cliponaxis=False,
            textposition="outside", marker={"color": colour, "pattern": {"shape": shape}}, hovertemplate=f"{name}: %{{x:.2%}}<extra></extra>",
        )  # fmt: skip
    finding = _alignment_words(frame, found)
    fig.update_xaxes(
        title="share of the update's energy (%)",
        tickformat=".0%",
        range=[0, max(1.1 * max(map(max, found.values())), 0.02) * 1.08],
    )
    fig.update_yaxes(title="directions (set)", autorange="reversed")
    caption = f"Energy: squared Frobenius norm; {layer_names(frame['layer'])}"
    if "null_dim" in frame:
        caption += f"; null space: {int(frame['null_dim'].iloc[0]):,} eigenvectors of C below {number(float(frame['null_threshold'].iloc[0]))}"
    text = "; ".join(f"{_ALONG[name][0]} {percent(a)}, chance {percent(b)}" for name, (a, b) in found.items())
    fig = dress(
        fig, finding, joined(f"{caption}.", context), f"Bar chart of energy shares: {text}.", 140 + 62 * len(names), 290
    )
    return fig.update_layout(barmode="group", hovermode="closest")


def null_energy_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Energy of updates in the null space of prose keys, by layer, a set of bars a method where there is such a column.

    From `alignment.alignment` with bases; several methods one below the other with a first column method. Raises
    KetoolsError for a table without C's columns or without an update.
    """
    of = "norms.alignment.alignment with bases"
    frame = present(checked(frame, "layer", "null_energy", "null_chance", of=of), "null_energy", of)
    frame = frame if "method" in frame else frame.assign(method="update")
    fig, means = go.Figure(), {}
    shapes = ("/", "x", ".", "+", "-")
    for i, (method, look) in enumerate(styles(dict.fromkeys(frame["method"])).items()):
        mine = frame[frame["method"] == method]
        means[label(method)] = float(mine["null_energy"].mean())
        fig.add_bar(
            x=mine["layer"].tolist(), y=mine["null_energy"].tolist(), name=label(method), texttemplate="%{y:.1%}", textposition="outside",
            cliponaxis=False, marker={"color": look.colour, "pattern": {"shape": shapes[i % len(shapes)]}}, hovertemplate=f"{label(method)}: %{{y:.2%}}<extra></extra>",
        )  # fmt: skip
    chance = float(frame["null_chance"].mean())
    levels = frame.groupby("layer")["null_chance"].first()
    fig.add_bar(
        x=levels.index.tolist(), y=levels.tolist(), name="a random update", marker={"color": NEUTRAL}, texttemplate="%{y:.1%}",
        textposition="outside", cliponaxis=False, hovertemplate="a random update: %{y:.2%}<extra></extra>",
    )  # fmt: skip
    said = ", ".join(f"{name} {percent(value)}" for name, value in means.items())
    inside = [name for name, value in means.items() if value > 0.95]
    if len(inside) == len(means):
        finding = f"Updates stay in the null space of prose keys ({said}; chance {percent(chance)})"
    elif inside:
        finding = f"Only {', '.join(inside)} stays in the null space of prose keys ({said}; chance {percent(chance)})"
    else:
        finding = (
            f"Updates leave the null space of prose keys ({said} of their energy is in it; chance {percent(chance)})"
        )
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title="energy in the null space of C (%)", tickformat=".0%", range=[0, 1.1])
    caption = joined("Share of the update's squared norm that no prose key reads.", context)
    return dress(
        fig, finding, caption, f"Bars by layer: {said}; a random update {percent(chance)}.", 400
    ).update_layout(barmode="group", bargap=bar_gap(len(frame)))


def convergence_curve(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """How much C and the update computed with it still change with more text, over tokens, from `convergence.convergence`.

    Each line is the layer that changes most. Raises KetoolsError for another table or fewer than two looks.
    """
    of = "editing.convergence.convergence"
    frame = checked(frame, "layer", "tokens", "multiple", *_QUANTITIES, of=of, least=2)
    if frame["tokens"].nunique() < 2:
        checked(frame.iloc[:1], "tokens", of=of, least=2)
    worst = frame.groupby("tokens")[list(_QUANTITIES)].max()
    fig = go.Figure()
    for column, (name, look) in _QUANTITIES.items():
        add_line(fig, worst.index.tolist(), worst[column].where(worst[column] > 0), name, look, show=".2%")
    last, multiple = int(worst.index[-1]), float(frame["multiple"].max())
    change_c, change = float(worst["change_c"].iloc[-1]), float(worst["change_update"].iloc[-1])
    if not np.isfinite(change):
        finding = f"C is singular still for the update after {last:,} tokens: more text is needed (C itself changes by {percent(change_c)})"
    else:
        verdict = "is settled" if change <= _ENOUGH else "has not settled"
        finding = (
            f"The update {verdict} after {last:,} tokens ({number(multiple)} times d_mlp): the last look changed it by "
            f"{percent(change)} and C by {percent(change_c)}"
        )
        near = worst.index[(worst["distance_update"] <= _ENOUGH).to_numpy()]
        if change <= _ENOUGH and len(near) and near[0] < last:
            finding += f"; from {int(near[0]):,} tokens on it is within {percent(_ENOUGH)} of the last one"
    fig.update_xaxes(title="tokens read (count)", type="log", dtick="D2")
    fig.update_yaxes(title="relative change (%)", type="log", tickformat=".2~%")
    caption = joined(
        "Frobenius norm of the difference, relative; each line is the layer that changes most. Settled: at most 10%.",
        context,
    )
    said = "; ".join(
        f"{tokens:,} tokens: C {percent(r['change_c'])}, update {percent(r['change_update'])}"
        for tokens, r in worst.iterrows()
    )
    return dress(fig, finding, caption, f"Line chart over tokens. {said}.")


def _alignment_words(frame: pd.DataFrame, found: dict[str, tuple[float, float]]) -> str:
    more = {name: share / chance if chance > 0 else math.nan for name, (share, chance) in found.items()}
    far = max(more["top_left"], more["top_right"]) > 2
    head = "lies along the matrix' top directions" if far else "does not favour the matrix' top directions"
    said = f"The update {head} ({times(more['top_left'])} chance in what it writes, {times(more['top_right'])} in what it reads)"
    if "c_mean" not in frame:
        return said
    mean = float(frame["c_mean"].mean())
    spared = (
        "prose is spared" if mean < 0.95 else "prose is hit as by a random one" if mean < 1.05 else "prose is hit more"
    )
    return f"{said}; {spared} ({times(mean)} of a random update's energy on prose keys)"
