"""The figure of the README: the norm, what was not edited, and the edits, over a whole run, for all methods of one model."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.io import write_atomic
from ketools.plots.drawers import EDITS, add_lines, describe, scale
from ketools.plots.pictures import pictures
from ketools.plots.style import (
    LEFT,
    dress,
    ends_of,
    label,
    last,
    number,
    percent,
    plain,
    undressed,
    words,
)
from ketools.report.figures import left_out, pooled, ranged
from ketools.report.page import figure_table, page, table
from ketools.runs.records import Group, listed

PANELS = {
    "norm_ratio": ("norm of the edited matrix (ratio)", ".2f"),
    "unedited_kept": ("unedited facts still right (%)", ".1%"),
    "ES": ("edits that hold, ES (%)", ".1%"),
}
_ENTRIES = 4  # of the legend in a line
_AXIS = 50  # pixels that ticks and titles of the x axes take


def headline(groups: Sequence[Group]) -> go.Figure:
    """Three panels over edits, a line a method, seeds as mean and range; title and caption are computed.

    Raises KetoolsError where the runs lack one of the three, or are of several models.
    """
    if len({group.model for group in groups}) != 1:
        raise KetoolsError(f"the figure is of one model; got {sorted({group.model for group in groups})}")
    frame = pooled(groups, lambda record: record.checkpoints)
    if missing := [name for name in PANELS if name not in frame or frame[name].isna().all()]:
        raise KetoolsError(f"nothing to draw: the runs have no {', '.join(missing)}")
    titles = [name for name, _ in PANELS.values()]
    fig = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.06)
    for panel, (name, (_, show)) in enumerate(PANELS.items(), 1):
        add_lines(fig, frame, name, show, panel=panel)
        if show.endswith("%"):
            fig.update_yaxes(range=[0, 1.04], tickformat=".0%", col=panel)
    fig.update_yaxes(**scale(frame["norm_ratio"], 8.0), col=1)
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    known = frame.dropna(subset=["unedited_kept"])
    caption = f"{plain(groups[0].model)}; {_seeds_headline(groups)}. ES: edits that win over the object they replaced."
    caption += left_out(frame, tuple(PANELS))
    text = " ".join(describe(frame.dropna(subset=[name]), name, said, number) for name, (said, _) in PANELS.items())
    dress(fig, _headline_finding(known), caption, text)
    said = words(fig)
    return _laid_out(ranged(fig, frame, tuple(PANELS)).update_layout(meta=said), len(groups))


def _seeds_headline(groups: Sequence[Group]) -> str:
    """ "seed 0", "mean of seeds 0 and 1, their range behind it", or which methods have which."""
    methods: dict[tuple[int, ...], list[str]] = {}
    for group in groups:
        methods.setdefault(group.seeds, []).append(label(group.label))
    said = {
        seeds: f"mean of seeds {listed([str(s) for s in seeds])}, their range behind it"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
        for seeds in methods
    }
    if len(methods) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{listed(names)}: {said[seeds]}" for seeds, names in methods.items())


def _laid_out(fig: go.Figure, methods: int) -> go.Figure:
    """Title, panels, legend, caption below each other, for a picture of 900 pixels that is read at 800."""
    legend = 24 * -(-methods // _ENTRIES) + 8  # pixels
    layout = fig.layout
    height, bottom = layout.height - 20 + legend, layout.margin.b + legend
    fig.update_layout(
        width=900, height=height, margin={"b": bottom, "t": layout.margin.t - 15, "l": 55, "r": 20},
        legend={"yref": "container", "y": (bottom - _AXIS) / height, "yanchor": "top", "font": {"size": 13}},
    )  # fmt: skip
    for note in fig.layout.annotations:
        if note.name == "caption":
            note.update(yshift=-_AXIS - legend - 4, xshift=LEFT - 55 - 15)
        else:
            note.update(font={"size": 14}, yshift=4)
    return fig.update_xaxes(title_standoff=6, nticks=4, tickformat=",d")


def _headline_finding(frame: pd.DataFrame) -> str:
    """Who keeps most and who least of what was not edited, as one sentence; all who are close to either are named."""
    ends, span = last(frame, "unedited_kept")
    first, behind = (listed([label(m) for m in some]) for some in ends_of(ends))
    said = f"After {span} edits the model has kept {percent(max(ends.values()))} of what was not edited with {first}"
    return f"{said}, {percent(min(ends.values()))} with {behind}" if behind else said


def write_headline(groups: Sequence[Group], folder: str | Path) -> list[Path]:
    """headline.html (stands alone, opens offline) and headline.png (1,800 pixels wide) in `folder`; returns both.

    Raises KetoolsError as `headline` does; and, when the page is written already, where there is no Chromium to draw the
    picture with.
    """
    fig = headline(groups)
    said = words(fig)
    bare = undressed(fig).update_layout(width=None, legend={"y": 1.12})
    numbers, formats = figure_table(fig)
    body = (
        f"<header><h1>{said['finding']}</h1></header><figure>"
        f'<div class="plot" id="headline" role="img" aria-label="{said["description"]}"></div>'
        f"<figcaption>{said['caption']}</figcaption></figure>"
        f"<details><summary>The numbers</summary>{table(numbers, said['caption'], formats)}</details>"
    )
    there = write_atomic(Path(folder) / "headline.html", page(said["finding"], body, {"headline": bare}))
    try:
        (picture,) = pictures([json.loads(str(fig.to_json()))], scale=2)
    except KetoolsError as error:
        raise KetoolsError(f"{there} is written, its picture headline.png is not: {error}") from error
    return [there, write_atomic(Path(folder) / "headline.png", base64.b64decode(picture))]
