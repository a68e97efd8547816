"""The figure of the project's README: norm, retention and efficacy over edits, from the reference runs."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric, number, percent
from ketools.io import write_atomic
from ketools.plots.drawers import EDITS, add_lines, add_load, describe, scale
from ketools.plots.pictures import pictures
from ketools.plots.style import LEFT, dress, ends_of, label, last, plain
from ketools.report.figures import Rows, checkpoints, left_out, pooled
from ketools.report.page import picture, render
from ketools.runs.records import Group, listed

PANELS = ("norm_ratio", "unedited_kept", "ES")
"""Metrics of the headline figure."""
_AXIS = 66  # pixels that ticks and titles of the x axes take


def headline(groups: Sequence[Group], rows: Rows = checkpoints) -> go.Figure:
    """The figure of the README: norm, retention and efficacy over edits, a line a method, seeds as mean and range.

    rows: a record's checkpoints, where a study has measured more of them than the record holds.

    Raises KetoolsError where the runs lack one of the three, or are of several models.
    """
    if len({group.model for group in groups}) != 1:
        raise KetoolsError(f"the figure is of one model; got {sorted({group.model for group in groups})}")
    frame = pooled(groups, rows)
    if missing := [name for name in PANELS if name not in frame or frame[name].isna().all()]:
        raise KetoolsError(f"nothing to draw: the runs have no {', '.join(missing)}")
    panels = [metric(name) for name in PANELS]
    fig = make_subplots(1, 3, subplot_titles=[each.axis for each in panels], horizontal_spacing=0.06)
    for panel, each in enumerate(panels, 1):
        add_lines(fig, frame, each.key, each.spec, panel=panel)
        if each.unit == "%":
            fig.update_yaxes(range=[0, 1.04], tickformat=".0%", col=panel)
    fig.update_yaxes(**scale(frame["norm_ratio"], 8.0), col=1)
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    methods: dict[str, list[str]] = {}
    for group in groups:
        seeds = listed([str(seed) for seed in group.seeds])
        what = f"mean of seeds {seeds}, shaded: their range" if len(group.seeds) > 1 else f"seed {seeds}"
        methods.setdefault(what, []).append(label(group.label))
    each_seed = [what if len(methods) == 1 else f"{listed(names)}: {what}" for what, names in methods.items()]
    caption = f"{plain(groups[0].model)}; {'; '.join(each_seed)}. ES: share of edits whose new object is more probable than the old one."
    ends, span = last(frame.dropna(subset=["unedited_kept"]), "unedited_kept")
    first, behind = (listed([label(m) for m in some]) for some in ends_of(ends))
    finding = f"After {span} edits the model retains {percent(max(ends.values()))} of its unedited facts with {first}"
    finding += f", {percent(min(ends.values()))} with {behind}" if behind else ""
    text = " ".join(describe(frame.dropna(subset=[each.key]), each.key, each.axis, number) for each in panels)
    add_load(dress(fig, finding, caption + left_out(frame, PANELS), text), groups[0].runs[0].d_mlp)
    # Title, panels, legend, caption below each other, for a picture of 900 pixels that is read at 800.
    layout, legend = fig.layout, 24 * -(-len(groups) // 4) + 8  # pixels, four methods a line
    top, bottom = 77 + 22 * layout.title.text.count("<br>"), layout.margin.b + legend
    height = layout.height - layout.margin.t + top + legend - 5
    fig.update_layout(
        width=900, height=height, margin={"b": bottom, "t": top, "l": 55, "r": 20},
        legend={"yref": "container", "y": (bottom - _AXIS) / height, "yanchor": "top", "font": {"size": 13}},
    )  # fmt: skip
    for note in fig.layout.annotations:
        if note.name == "caption":
            note.update(yshift=-_AXIS - legend - 4, xshift=LEFT - 55 - 15)
        else:
            note.update(font={"size": 14}, yshift=4)
    return fig.update_xaxes(title_standoff=6, nticks=4, tickformat=",d")


def write_headline(groups: Sequence[Group], folder: str | Path, rows: Rows = checkpoints) -> list[Path]:
    """headline.html (stands alone, opens offline) and headline.png (1,800 pixels wide) in `folder`; returns both.

    Raises KetoolsError as `headline` does; and, when the page is written already, where there is no Chromium to draw the
    picture with.
    """
    fig = headline(groups, rows)
    bare = go.Figure(fig).update_layout(width=None, legend={"yref": "paper", "y": 1.12, "yanchor": "bottom"})
    shown = picture("headline", fig)
    there = write_atomic(Path(folder) / "headline.html", render(shown.finding, {"headline": bare}, headline=shown))
    try:
        (png,) = pictures([json.loads(str(fig.to_json()))], scale=2)
    except KetoolsError as error:
        raise KetoolsError(f"{there} is written, its picture headline.png is not: {error}") from error
    return [there, write_atomic(Path(folder) / "headline.png", base64.b64decode(png))]
