"""Figures of what edits do to probabilities and inside the model."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.evaluation.edits import separation
from ketools.evaluation.metrics import number, percent, times
from ketools.norms.residual import edited_share
from ketools.plots.drawers import LAYER, add_line, add_reference, checked, layer_axis
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined, label, layer_names, part_styles, styles
from ketools.runs.records import listed


def probability_curve(
    edited: Sequence[float] | Mapping[str, Sequence[float]], natural: Sequence[float], *, context: str = ""
) -> go.Figure:
    """Distributions of edited and natural probabilities: the share of facts up to each probability.

    `edited`: P(target_new) of edited facts (p_new of `edits.evaluate`), or several by method; `natural`: p of the known
    facts in `edits.natural_probabilities`. Raises KetoolsError if a side has no finite number.
    """
    several = {str(name): p for name, p in edited.items()} if isinstance(edited, Mapping) else {"edited facts": edited}
    apart = {name: separation(p, natural) for name, p in several.items()}
    looks = part_styles(several) | {"natural facts": Style(NEUTRAL, "dot", "circle-open")}
    fig, median = go.Figure(), {}
    for name, probabilities in (*several.items(), ("natural facts", natural)):
        p = np.sort(np.asarray(probabilities, dtype=float))
        p = p[np.isfinite(p)]
        median[name] = float(np.median(p))
        fig.add_scatter(
            x=[0.0, *p, 1.0],
            y=[0.0, *(np.arange(1, len(p) + 1) / len(p)), 1.0],
            mode="lines",
            name=label(name),
            line={"shape": "hv", "color": looks[name].colour, "dash": looks[name].dash, "width": 2.5},
            hovertemplate=f"{label(name)}: %{{y:.1%}} up to %{{x:.3f}}<extra></extra>",
        )
    over = [label(name) for name, row in apart.items() if row["auroc"] > 0.5 and row["ks_p"] < 0.05]
    under = [name for name, row in apart.items() if row["auroc"] < 0.5 and row["ks_p"] < 0.05]
    if over:
        head = f"Edited facts are more probable than natural ones{f' with {listed(over)} only' if len(over) < len(apart) else ''}"
    else:
        head = f"Edited facts are {'less probable than' if len(under) == len(apart) else 'no more probable than'} natural ones"
    values = "; ".join(
        f"{label(name)}: median {number(median[name])}, {percent(row['above_natural'])} above 95% of natural facts"
        for name, row in apart.items()
    )
    fig.update_xaxes(title="probability (0 to 1)", range=[-0.02, 1.02])
    fig.update_yaxes(title="facts up to this probability (%)", tickformat=".0%", range=[0, 1.02])
    facts = int(next(iter(apart.values()))["n_natural"])
    caption = f"Further right: more probable; {facts} natural facts, median {number(median['natural facts'])}."
    if excluded := max(int(row["excluded"]) for row in apart.values()):
        caption += f" Left out, not finite: {excluded}."
    fig = dress(fig, f"{head} ({values})", joined(caption, context), f"Cumulative distributions. {values}.")
    return fig.update_layout(hovermode="closest")


def target_curve(frame: pd.DataFrame, natural: float | None = None, *, context: str = "") -> go.Figure:
    """The overfitting curve: the target's mean probability per step, with the range from 5% to 95% of facts.

    From `ketools.evaluation.edits.overfitting_curve`; a column method tells several methods apart. `natural`: mean probability
    of natural facts, to compare with. Raises KetoolsError for another table or fewer than two steps.
    """
    columns = ("step", "p_mean", "p05", "p95", "running", "n")
    frame = checked(frame, *columns, of="evaluation.edits.overfitting_curve", least=2)
    frame = frame if "method" in frame else frame.assign(method="targets")
    looks = styles(dict.fromkeys(frame["method"]))
    fig, lines = go.Figure(), []
    for method, look in looks.items():
        rows = frame[frame["method"] == method].sort_values("step")
        add_line(
            fig, rows["step"], rows["p_mean"], label(method), look, low=rows["p05"], high=rows["p95"],
            interval="5% to 95% of facts", band=True,
        )  # fmt: skip
        last = rows.iloc[-1]
        end = f"{number(float(last['p_mean']))} after {int(last['step'])} steps"
        if 0 < last["running"] < 1:
            end += f", {percent(float(last['running']))} of facts still running"
        alone = len(looks) == 1
        name = "Targets" if alone else label(method)
        if natural is None:
            lines.append(f"{name} reach a mean probability of {end}" if alone else f"{name}: mean probability {end}")
        elif last["p_mean"] > natural:
            step = int(rows.loc[rows["p_mean"] > natural, "step"].iloc[0])
            verb, ends = ("pass", "end") if alone else ("passes", "ends")
            lines.append(f"{name} {verb} natural facts ({number(natural)}) at step {step} and {ends} at {end}")
        else:
            lines.append(f"{name} {'do' if alone else 'does'} not pass natural facts ({number(natural)}): {end}")
    if natural is not None:
        add_reference(fig, [0, int(frame["step"].max())], [natural, natural], "natural facts", ".3f")
    fig.update_xaxes(title="step of the optimisation (count)", rangemode="tozero")
    fig.update_yaxes(title="probability of the target (0 to 1)", range=[0, 1.04])
    caption = (
        f"Mean over {int(frame['n'].max())} facts; a stopped fact keeps its last probability. Band: 5% to 95% of facts."
    )
    if excluded := int(frame["excluded"].max()) if "excluded" in frame else 0:
        caption += f" Left out, not finite: {excluded}."
    return dress(fig, "; ".join(lines), joined(caption, context), f"Line chart over steps. {'; '.join(lines)}.")


def spectra_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Singular values of matrices before any edit and now, one panel per layer (four at most).

    Columns: layer, state ("before", "now"), index (1 is the largest), value. Raises KetoolsError for another table, an empty
    one, or more than four layers.
    """
    frame = checked(frame, "layer", "state", "index", "value", of="singular values", least=2)
    layers = sorted(set(frame["layer"]))
    if len(layers) > 4:
        raise KetoolsError(f"singular values of {len(layers)} layers do not fit in one figure; give up to 4")
    fig = make_subplots(
        1, len(layers), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[f"layer {i}" for i in layers]
    )
    lines, unmoved = [], []
    for panel, layer in enumerate(layers, 1):
        values = {}
        for state, look in part_styles(("before", "now")).items():
            rows = frame[(frame["layer"] == layer) & (frame["state"] == state)].sort_values("index")
            values[state] = rows["value"].to_numpy(dtype=float)
            positive = rows["value"].where(rows["value"] > 0)
            place = {"row": 1, "col": panel}
            add_line(fig, rows["index"], positive, state, look, show=".4g", mode="lines", at=place, legend=panel == 1)
        before, now = values["before"], values["now"]
        with np.errstate(divide="ignore", invalid="ignore"):
            top, middle = float(now[0] / before[0]), float(np.median(now) / np.median(before))
        if abs(top - 1) > 0.01 or abs(middle - 1) > 0.01:
            lines.append(
                f"layer {layer}: the largest singular value is {times(top)} its original value, the median {times(middle)}"
            )
        else:
            unmoved.append(layer)
    finding = f"Singular values are as before the edits in {layer_names(unmoved)}" if not lines else ""
    if unmoved:
        lines.append(f"{layer_names(unmoved)} as before")
    finding = finding or "; ".join(lines)
    # Write out round numbers on the logarithmic axis: plotly would label 20 as "2" and nothing else in the decade.
    values = frame["value"]
    low, high = float(values[values > 0].min()), float(values[np.isfinite(values)].max())
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    steps = (1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in powers for step in steps]
    fig.update_xaxes(title="singular value (place, largest first)", type="log")
    fig.update_yaxes(type="log", tickvals=ticks).update_yaxes(title="singular value (absolute)", col=1)
    caption = joined("All singular values of the MLP output matrix, in order of size; both axes logarithmic.", context)
    text = f"Line charts of singular values. {'; '.join(lines)}."
    return dress(fig, finding[0].upper() + finding[1:], caption, text).update_layout(legend={"y": 1.09})


def stream_profile(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Shares of attentions and MLPs in the residual stream by layer, before and after edits; edited layers are shaded.

    From `residual.before_and_now`, or `contributions` for one state. Raises KetoolsError for another table or fewer
    than two rows.
    """
    of = "norms.residual.before_and_now"
    frame = checked(frame, "layer", "kind", "edited", "share", "tokens", of=of, least=2)
    frame = frame if "state" in frame else frame.assign(state="now")
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=["attention", "MLP"])
    for state, look in part_styles(dict.fromkeys(frame["state"])).items():
        for panel, kind in enumerate(("attention", "mlp"), 1):
            rows = frame[(frame["state"] == state) & (frame["kind"] == kind)].sort_values("layer")
            place = {"row": 1, "col": panel}
            add_line(fig, rows["layer"].tolist(), rows["share"], state, look, show=".0%", at=place, legend=panel == 1)
    edited = sorted(set(frame.loc[frame["edited"].astype(bool), "layer"]))
    for layer in edited:
        fig.add_vrect(layer - 0.4, layer + 0.4, fillcolor=OKABE_ITO["sky"], opacity=0.18, line_width=0, row=1, col=2)
    fig.update_xaxes(title=LAYER, **layer_axis(frame.loc[frame["layer"] >= 0, "layer"]))
    fig.update_yaxes(tickformat=".0%", rangemode="tozero").update_yaxes(
        title="share of the stream (% of all norms)", col=1
    )

    both = frame.pivot_table(index=["layer", "kind"], columns="state", values="share", sort=False)
    if not {"before", "now"} <= set(both):
        top = frame[frame["layer"] >= 0].sort_values("share").iloc[-1]
        part = "The MLP" if top["kind"] == "mlp" else "The attention"
        finding = (
            f"{part} of layer {int(top['layer'])} has the largest share of the stream ({percent(float(top['share']))})"
        )
    elif not edited:
        gap = float((both["now"] - both["before"]).abs().max())
        finding = f"No layer is edited, and no sublayer's share of the stream moves by more than {percent(gap)}"
    else:
        ends = edited_share(frame).set_index("state")["share"]
        before, now = float(ends["before"]), float(ends["now"])
        finding = f"The share of the stream of the edited MLP{'s' if len(edited) > 1 else ''} ({layer_names(edited)}) "
        if now > 1.05 * before or now < before / 1.05:
            finding += f"{'grows' if now > before else 'falls'} from {percent(before)} to {percent(now)}"
        else:
            finding += f"stays at {percent(now)} (before {percent(before)})"
    shaded = f" Shaded: edited MLPs ({layer_names(edited)})." if edited else ""
    caption = joined(f"Mean over {int(frame['tokens'].iloc[0]):,} tokens; embedding not drawn.{shaded}", context)
    text = "; ".join(
        f"layer {layer} " + ", ".join(f"{row['state']} {percent(float(row['share']))}" for _, row in rows.iterrows())
        for layer, rows in frame[frame["kind"] == "mlp"].groupby("layer")
    )
    return dress(fig, finding, caption, f"Line charts over layers. MLPs: {text}.").update_layout(legend={"y": 1.09})
