"""Figures of how far hidden states move (ketools.norms.drift): their norms, their drift, and the directions of it."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent, times
from ketools.course.lines import scale
from ketools.course.parts import LAYER, add_line, checked, joined, layer_axis, present
from ketools.course.style import NEUTRAL, OKABE_ITO, Style, dress, part_styles

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
