"""Figures of the residual stream before and after edits (ketools.norms.residual): importance hacking."""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent
from ketools.course.lines import add_reference
from ketools.course.parts import LAYER, add_line, bar_gap, checked, gaps, joined, layer_axis, layer_names
from ketools.course.style import NEUTRAL, OKABE_ITO, PATTERNS, Style, dress, label, part_styles
from ketools.errors import KetoolsError
from ketools.norms.residual import TOLERANCE, edited_share

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
