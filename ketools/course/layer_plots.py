"""Figures of which parts answer and which layers to edit (ketools.probing.attribution, layers)."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number
from ketools.course.parts import LAYER, add_line, checked, joined, layer_axis, layer_names
from ketools.course.style import NEUTRAL, OKABE_ITO, PATTERNS, Style, dress, part_styles, plain
from ketools.errors import KetoolsError

_PARTS = {"embedding": "embedding", "attention": "attention", "mlp": "MLP", "bias": "norm and head alone"}
_SCORES = {
    "ES": Style(OKABE_ITO["purple"], "dash", "square"),
    "PS": Style(OKABE_ITO["orange"], "dot", "diamond"),
    "NS": Style(OKABE_ITO["green"], "dashdot", "x"),
    "S": Style(OKABE_ITO["blue"], "solid", "circle"),
}


def attribution_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Shares of the final logit difference by layer and part, from `attribution.attribute` (part, layer, logit; attrs).

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "part", "layer", "logit", of="probing.attribution.attribute", least=2)
    deep = int(frame["layer"].max())
    names = {-1: "embedding", **({deep: "norm, head"} if "bias" in set(frame["part"]) else {})}
    fig = go.Figure()
    for part, look in part_styles(dict.fromkeys(frame["part"])).items():
        mine = frame[frame["part"] == part]
        fig.add_bar(
            name=_PARTS.get(part, plain(part)), x=mine["layer"].tolist(), y=mine["logit"].tolist(),
            marker={"color": look.colour, "pattern": {"shape": PATTERNS.get(part, "")}}, hovertemplate=f"{_PARTS.get(part, plain(part))}: %{{y:+.3f}}<extra></extra>",
        )  # fmt: skip
    target, other = (plain(frame.attrs.get(name, name), 24) for name in ("target", "other"))
    total = float(frame["logit"].sum())
    best, worst = frame.loc[frame["logit"].idxmax()], frame.loc[frame["logit"].idxmin()]
    finding = f'"{target}" {"leads" if total > 0 else "trails"} "{other}" by {number(abs(total))} logits; '
    finding += (
        f"{_part(best)} speaks most for it ({best['logit']:+.3g})" if best["logit"] > 0 else "no part speaks for it"
    )
    finding += (
        f", {_part(worst)} most against it ({worst['logit']:+.3g})" if worst["logit"] < 0 else ", none against it"
    )
    fig.update_xaxes(title="layer (number; both ends: what is in no layer)", **layer_axis(frame["layer"], names))
    fig.update_yaxes(title="share of the logit difference (logits)", zeroline=True)
    prompt = plain(frame.attrs.get("prompt", ""), 70)
    caption = joined(
        f'After "{prompt}": what each part writes to the residual stream itself, through the final norm as it stands; the bars add up.',
        context,
    )
    text = "; ".join(f"{_part(row)} {row['logit']:+.3g}" for _, row in frame.iterrows())
    fig = dress(fig, finding, caption, f"Grouped bars by layer: {text}.")
    return fig.update_layout(barmode="group")


def layer_evidence(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """The layer picker's evidence by layer: what tracing recovers, what trial edits score, and both together.

    From `layers.suggest(...).evidence`; suggested layers are shaded. Raises KetoolsError for another table, a single
    layer, or one without a suggestion.
    """
    frame = checked(frame, "layer", "traced", "traced_low", "traced_high", "hidden", "ES", "PS", "NS", "S", "score", "suggested", of="probing.layers.suggest", least=2)  # fmt: skip
    chosen = frame.loc[frame["suggested"].astype(bool), "layer"].tolist()
    if not chosen:
        raise KetoolsError(
            "nothing to draw: the evidence suggests no layer; expected the table of probing.layers.suggest"
        )
    tried = frame["S"].notna().any()
    fig = _evidence_lines(frame, chosen, tried)
    finding, text = _evidence_words(frame, chosen, tried)
    count = frame.attrs.get("facts")
    caption = f"Score: share of the best layer's tracing effect{', times S of edits in that layer alone' if tried else ''}; shaded: suggested."
    caption += f" Tracing: {count} facts, 95% intervals." if count else ""
    fig = dress(fig, finding, joined(caption, context), text, 380)
    return fig.update_layout(legend={"y": 1.09})


def _evidence_lines(frame: pd.DataFrame, chosen: list[int], tried: bool) -> go.Figure:
    titles = ["tracing", *(["trial edits"] if tried else []), "score"]
    fig = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.07)
    looks, layers, first = part_styles(("mlp", "hidden")), frame["layer"].tolist(), {"row": 1, "col": 1}
    low, high = frame["traced_low"], frame["traced_high"]
    add_line(fig, layers, frame["traced"], "MLPs", looks["mlp"], low=low, high=high, at=first)
    add_line(fig, layers, frame["hidden"], "hidden states", looks["hidden"], at=first)
    for name, look in _SCORES.items():
        if tried and frame[name].notna().any():
            add_line(fig, layers, frame[name], name, look, at={"row": 1, "col": 2})
    add_line(fig, layers, frame["score"], "score", Style(NEUTRAL, "solid", "circle"), at={"row": 1, "col": len(titles)})
    shade = {"fillcolor": OKABE_ITO["sky"], "opacity": 0.18, "line_width": 0, "row": 1}
    for panel in range(1, len(titles) + 1):
        fig.add_vrect(min(chosen) - 0.5, max(chosen) + 0.5, col=panel, **shade)
    fig.update_xaxes(title=LAYER, **layer_axis(layers))
    fig.update_yaxes(title="indirect effect (probability)", col=1)
    if tried:
        fig.update_yaxes(title="success of trials (0 to 1)", range=[-0.04, 1.06], col=2)
    return fig.update_yaxes(title="score (0 to 1)", rangemode="tozero", col=len(titles))


def _part(row: pd.Series) -> str:
    if row["part"] in ("embedding", "bias"):
        return {"embedding": "the embedding", "bias": "what norm and head add"}[row["part"]]
    return f"{'the MLP' if row['part'] == 'mlp' else 'the attention'} of layer {row['layer']}"


def _evidence_words(frame: pd.DataFrame, chosen: list[int], tried: bool) -> tuple[str, str]:
    by_trace = int(frame.loc[frame["traced"].idxmax(), "layer"])
    best = float(frame["traced"].max())
    recalled = (
        f"tracing recovers most in layer {by_trace} ({number(best)})"
        if best > 0
        else "tracing recovers nothing in any layer"
    )
    tests = ""
    if tried:
        top = frame["S"].max()
        winners = frame.loc[np.isclose(frame["S"], top), "layer"].tolist()
        tests = f", trial edits score best in {layer_names(winners)} (S {number(top)})"
        if by_trace not in winners:
            tests += ": the two disagree"
    verb = "is" if len(chosen) == 1 else "are"
    finding = f"{layer_names(chosen).capitalize()} {verb} suggested: {recalled}{tests}"
    rows = "; ".join(
        f"layer {int(row['layer'])}: tracing {number(row['traced'])}, S {number(row['S'])}, score {number(row['score'])}" for _, row in frame.iterrows()
    )  # fmt: skip
    return finding, f"Line charts over layers. {rows}."
