"""How much a matrix can hold: edits that hold against edits per key dimension, d_mlp of each edited layer.

A matrix with d_mlp inputs takes at most d_mlp linearly independent keys: as many facts per layer can be stored exactly, and
more only at the price of others. Facts share keys in part, so that the bend is no sharp one.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course import findings
from ketools.course.lines import add_lines, describe, holes, measured
from ketools.course.style import dress, plain
from ketools.errors import KetoolsError
from ketools.report.seeds import LOW, pooled, ranged
from ketools.runs.gather import Group, Run
from ketools.runs.names import listed, title

LOAD = "edits per key dimension (edits / (edited layers × d_mlp))"
HELD = 0.9
_MEASURE = "efficacy_accuracy"


def places(run: Run) -> int | None:
    """Edited layers x d_mlp: how many independent keys a run's matrices take; None where the record does not say."""
    model, hyper = run.about.get("model") or {}, run.settings.get("hyper") or {}
    width, layers = model.get("d_mlp") if isinstance(model, dict) else None, hyper.get("layers")
    return int(width) * len(layers) if width and layers else None


def capacity(groups: Sequence[Group]) -> pd.DataFrame:
    """Edits that hold at each checkpoint, by how full the matrices are.

    Args:
        groups: from `ketools.runs.gather.arrange`, of any models.

    Returns:
        A row per model, method and checkpoint after an edit: model, method, edits, places (edited layers x d_mlp), load
        (edits / places), held (share of all edits so far whose new object is the model's answer now; mean over seeds; NaN
        where it was not measured), held_low, held_high, seeds, held_edits (held x edits).

    Raises:
        KetoolsError: no record says how wide its model is, or has a checkpoint after an edit.
    """
    parts = []
    for group in groups:
        if (room := places(group.runs[0])) is None:
            continue
        frame = pooled([group], lambda record: record.checkpoints)
        if len(frame) and _MEASURE in frame:
            frame = frame[frame["edits"] > 0]
            names = {f"{_MEASURE}{end}": f"held{end}" for end in ("", LOW, "_high")}
            frame = frame.rename(columns=names)[["method", "edits", *names.values(), "seeds"]]
            parts.append(frame.assign(model=group.model, places=room))
    if not any(part["held"].notna().any() for part in parts):
        raise KetoolsError("nothing to draw: the records do not say how wide the models are, or hold no checkpoint yet")
    frame = pd.concat(parts, ignore_index=True)
    frame["load"] = frame["edits"] / frame["places"]
    frame["held_edits"] = frame["held"] * frame["edits"]
    return frame[["model", *frame.columns.drop("model")]]


def capacity_curve(frame: pd.DataFrame) -> go.Figure:
    """Share of edits that hold over edits per key dimension, a panel a model, a line a method; from `capacity`."""
    models = list(dict.fromkeys(frame["model"]))
    widths = [int(frame.loc[frame["model"] == model, "places"].iloc[0]) for model in models]
    heads = [f"{plain(model)}: {width:,} key dimensions" for model, width in zip(models, widths, strict=True)]
    fig = make_subplots(1, len(models), shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.05)
    told, missing = [], ""
    for panel, model in enumerate(models, 1):
        mine = frame[frame["model"] == model].assign(edits=lambda part: part["load"])
        missing += holes(mine, "held")
        if mine["held"].isna().all():
            continue
        rows = measured(mine, "held")
        part = make_subplots(1, 1)
        add_lines(part, rows, "held", ".1%", panel=1)
        for trace in ranged(_meta(part), rows, ("held",)).data:
            fig.add_trace(trace.update(showlegend=trace.showlegend is not False and panel == 1), row=1, col=panel)
        fig.add_vline(x=1, line={"color": "#808080", "dash": "dot", "width": 2}, row=1, col=panel)
        told.append(
            f"{model}: " + describe(rows.assign(edits=rows["load"]), "held", "edits that hold", findings.percent)
        )
    fig.update_xaxes(title="edits per key dimension (ratio)", rangemode="tozero")
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title="edits that hold (%)", col=1)
    caption = (
        "All edits so far whose new object is the model's answer now. The dotted line is one edit per key dimension, which "
        "is d_mlp of each edited layer: more keys than that cannot be independent."
    ) + missing
    fig = dress(fig, finding(frame), caption, " ".join(told))
    return fig.update_layout(legend={"y": 1.09}, hovermode="closest")


def finding(frame: pd.DataFrame) -> str:
    """What the capacity data say, as one sentence: for each model how full it got and which method still held most."""
    said = []
    for model, part in frame.dropna(subset="held").groupby("model", sort=False):
        ends = part.sort_values("edits").groupby("method", sort=False).tail(1)
        best, worst = ends.loc[ends["held"].idxmax()], ends.loc[ends["held"].idxmin()]
        text = f"{plain(model)} at {best['load']:.2g} edits per key dimension holds {_most(best)}"
        said.append(text if best["method"] == worst["method"] else f"{text}, least {_most(worst)}")
    return "; ".join(said)


def bends(frame: pd.DataFrame, share: float = HELD) -> list[str]:
    """A sentence per model: up to how many edits per key dimension each method holds `share` of its edits."""
    said = []
    for model, part in frame.dropna(subset="held").groupby("model", sort=False):
        words = []
        for method, line in part.groupby("method", sort=False):
            line = line.sort_values("edits")
            fallen = line[line["held"] < share]
            last = line[line["edits"] < fallen["edits"].iloc[0]] if len(fallen) else line
            if fallen.empty:
                words.append(f"{title(str(method))} to the end, {line['load'].iloc[-1]:.2g}")
            elif last.empty:
                words.append(f"{title(str(method))} at no checkpoint, the first at {line['load'].iloc[0]:.2g}")
            else:
                words.append(
                    f"{title(str(method))} up to {last['load'].iloc[-1]:.2g} (then {fallen['held'].iloc[0]:.0%})"
                )
        said.append(
            f"On {model}, whose edited matrices take {int(part['places'].iloc[0]):,} independent keys, {share:.0%} of the "
            f"edits hold, in edits per key dimension: {listed(words)}."
        )
    return said


def _most(row: pd.Series) -> str:
    return f"{findings.percent(row['held'])} of {int(row['edits']):,} with {title(str(row['method']))}"


def _meta(fig: go.Figure) -> go.Figure:
    return fig.update_layout(meta={"finding": "", "caption": "", "description": ""})
