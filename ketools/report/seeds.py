"""Several seeds of one method as one line: their mean, and the range that they span, in any figure of lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go

from ketools.course.parts import add_line
from ketools.course.style import label, styles
from ketools.runs.gather import Group
from ketools.runs.names import listed
from ketools.runs.store import RunRecord

Rows = Callable[[RunRecord], pd.DataFrame]
LOW, HIGH, SEEDS = "_low", "_high", "_seeds"
_MOST = 26
"""Points of a line: more than these hide each other's markers."""


def pooled(groups: Sequence[Group], rows: Rows, over: str = "edits", *, keep: Sequence[str] = ()) -> pd.DataFrame:
    """What `rows` makes of each record, over the seeds of its group.

    Args:
        groups: of one model.
        rows: a record's rows; an empty table for a record that has none.
        over: the column along the axis; keep: further columns that tell rows apart.

    Returns:
        A row per group and place that all seeds of it have: method (the group's label), `over`, `keep`, the mean of each
        other column, NAME_low and NAME_high, and seeds (how many). A column of whole numbers that is no count to
        average (layer) has the most frequent. Seeds without rows are left out: where there are some, a column runs says
        how many the group has with them. Where some seeds have NaN in a column, NAME_seeds says how many its mean is of.
    """
    parts = []
    for group in groups:
        frames = [frame for run in group.runs if len(frame := rows(run.record))]
        if not frames:
            continue
        whole = pd.concat(frames, ignore_index=True)
        by = whole.groupby([over, *keep], sort=True)
        shared = by.size() == len(frames)
        numbers = [name for name in whole.select_dtypes(["number", "bool"]).columns if name not in (over, *keep)]
        mean, low, high = by[numbers].mean(), by[numbers].min(), by[numbers].max()
        if "layer" in numbers:
            mean["layer"] = by["layer"].agg(lambda values: values.mode().iloc[0])
        count = by[numbers].count()[shared]
        partly = [name for name in numbers if count[name].between(1, len(frames) - 1).any()]
        ranges = [mean[shared], low[shared].add_suffix(LOW), high[shared].add_suffix(HIGH)]
        about = {"method": group.label, "seeds": len(frames)}
        about |= {"runs": len(group.runs)} if len(frames) < len(group.runs) else {}
        same = pd.DataFrame(about, index=count.index)
        # One concat, then a copy: a column at a time, records with a hundred columns become slow.
        part = pd.concat([*ranges, count[partly].add_suffix(SEEDS), same], axis=1).copy()
        parts.append(part.reset_index())
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method", over, *keep])
    return frame[["method", *frame.columns.drop("method")]]


def left_out(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """For a caption: which seeds are in no mean of `columns`; "" where all are in all."""
    said = []
    for method, part in frame.groupby("method", sort=False):
        if "runs" in part and part["runs"].notna().any():
            has, of = int(part["seeds"].iloc[0]), int(part["runs"].iloc[0])
            said.append(f" {label(str(method))}: {has} of {of} seeds; nothing of this was recorded of the others.")
        for name in columns:
            held = part[f"{name}{SEEDS}"].dropna() if f"{name}{SEEDS}" in part else part["seeds"].iloc[:0]
            of = int(part["seeds"].iloc[0])
            if few := sorted({int(n) for n in held if 0 < n < of}):
                counts = listed([str(n) for n in few])
                said.append(
                    f" {label(str(method))}: {name} is at some points that of {counts} of {of} seeds; the others lack it."
                )
    return "".join(said)


def thinned(frame: pd.DataFrame, over: str = "edits") -> pd.DataFrame:
    """Every k-th place of each method, its first and its last among them, so that a line has at most some 26 points."""

    def kept(places: pd.Series) -> pd.Series:
        order = sorted(set(places))
        step = max(1, -(-(len(order) - 1) // (_MOST - 1)))
        return places.isin({*order[::-step], *order[:1]})

    return frame[frame.groupby("method", sort=False)[over].transform(kept).astype(bool)] if len(frame) else frame


def ranged(fig: go.Figure, frame: pd.DataFrame, columns: Sequence[str], over: str = "edits") -> go.Figure:
    """The figure with a band from the lowest to the highest seed behind each line of several seeds; a figure of one is as it was.

    Args:
        fig: lines from `frame`, one a method and panel, named by their labels.
        frame: from `pooled`; columns: what the first, second, ... panel shows.
    """
    several = frame[frame["seeds"] > 1] if "seeds" in frame else frame.iloc[:0]
    if "edited" in several:  # the lines are of edited matrices; the others are one line for all
        several = several[several["edited"].astype(bool)]
    names = {label(method): method for method in dict.fromkeys(several["method"])}
    looks = styles(dict.fromkeys(frame["method"]))
    traces: list[go.Scatter] = []
    for trace in fig.data:
        panel = int((trace.xaxis or "x")[1:] or 1) - 1
        if trace.type != "scatter" or trace.name not in names or panel >= len(columns):
            traces.append(trace)
            continue
        method = names[trace.name]
        mine = several[several["method"] == method].sort_values(over)
        traces += _band_and_line(trace, mine, columns[panel], over, looks[method])
    drawn = [trace for trace in traces if trace.hoverinfo == "skip"]
    lines = [trace for trace in traces if trace.hoverinfo != "skip"]
    fig.data = ()
    fig.add_traces([*drawn, *lines])
    if len(several):
        _say(fig, several, bool(columns))
    if out := left_out(frame, columns or _averaged(frame)) if "seeds" in frame else "":
        said = dict(fig.layout.meta)
        fig.layout.meta = said | {"caption": said["caption"] + out}
    return fig


def _averaged(frame: pd.DataFrame) -> list[str]:
    """All columns of which some seeds have nothing at some place."""
    return [str(name).removesuffix(SEEDS) for name in frame if str(name).endswith(SEEDS)]


def _band_and_line(trace: go.Scatter, mine: pd.DataFrame, column: str, over: str, look: object) -> list[go.Scatter]:
    """The line drawn anew with its range, where the old one was."""
    found = re.search(r"%\{y:([^}]*)\}", trace.hovertemplate or "")
    part = go.Figure()
    add_line(
        part, mine[over].tolist(), mine[column].tolist(), trace.name, look, low=mine[f"{column}{LOW}"].tolist(),
        high=mine[f"{column}{HIGH}"].tolist(), interval=f"range of {_seeds(mine, column)} seeds",
        show=found.group(1) if found else ".3g", band=True, legend=bool(trace.showlegend in (None, True)),
    )  # fmt: skip
    for piece in part.data:
        piece.update(xaxis=trace.xaxis, yaxis=trace.yaxis)
    return list(part.data)


def _seeds(mine: pd.DataFrame, column: str) -> str:
    whole = mine["seeds"].astype(int)
    if f"{column}{SEEDS}" in mine:
        held = mine[f"{column}{SEEDS}"].fillna(whole)
        whole = held[held > 0].astype(int)
    low, high = whole.min(), whole.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _say(fig: go.Figure, several: pd.DataFrame, lines: bool) -> None:
    counts = " or ".join(map(str, sorted(set(several["seeds"].astype(int)))))
    said = dict(fig.layout.meta)
    ranges = f"Lines of several seeds are their mean, with the range of the {counts} behind it."
    said["caption"] += f" {ranges if lines else f'Mean over {counts} seeds where there are several.'}"
    fig.layout.meta = said
