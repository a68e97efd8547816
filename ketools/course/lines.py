"""Parts of the figures: checked rows, one line a method, a grey line of reference, a description in words."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course.style import NEUTRAL, label, styles
from ketools.errors import KetoolsError
from ketools.runs.names import listed

EDITS = "edits so far (count)"


def need(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame itself; KetoolsError if it has no rows or lacks `method`, `edits` or one of `columns`."""
    missing = [name for name in ("method", "edits", *columns) if name not in frame]
    if missing:
        raise KetoolsError(
            f"nothing to draw: the table lacks {', '.join(missing)} (it has {', '.join(map(str, frame.columns))}); "
            "expected a table of a lifelong run with a method column, see ketools.course.plots.stack"
        )
    if frame.empty:
        raise KetoolsError("nothing to draw: the table has no rows; the run stopped before its first measurement")
    return frame


def measured(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which the first of `columns` was measured (is not NaN); KetoolsError if there is none.

    Where a method has no value between two that it has, one row with NaN stays, so that its line breaks there; `holes`
    says how many are missing.
    """
    column = columns[0]
    there = need(frame, *columns)[column].notna()
    if not there.any():
        raise KetoolsError(f"nothing to draw: {column} was not measured in this run (all values are missing)")
    ends = frame[there].groupby("method", sort=False)["edits"].agg(["min", "max"])
    low, high = (frame["method"].map(ends[end]) for end in ("min", "max"))
    empty = ~there.groupby([frame["method"], frame["edits"]]).transform("any")
    gap = empty & (frame["edits"] > low) & (frame["edits"] < high) & ~frame.duplicated(["method", "edits"])
    return frame[there | gap]


def holes(frame: pd.DataFrame, *columns: str, since: float = 0) -> str:
    """For a caption: how many points of which line are missing in `columns`, a sentence each; "" where none is.

    Counted are places after `since`: at 0 edits, scores of edits have no value by their nature.
    """
    said = []
    for column in columns:
        places = frame[frame["edits"] > since].groupby(["method", "edits"], sort=False)[column].count() > 0
        by = [(label(str(method)), mine) for method, mine in places.groupby("method", sort=False)]
        lines = [f"{(~mine).sum():,} of {len(mine):,} with {name}" for name, mine in by if not mine.all()]
        if lines:
            said.append(f" Points of {column} that were not measured and are left out: {listed(lines)}.")
    return "".join(said)


def add_lines(
    fig: go.Figure,
    rows: pd.DataFrame,
    column: str,
    show: str,
    *,
    panel: int | None = None,
    note: str | None = None,
) -> None:
    """Add `column` over edits, one trace a method in its style; `show` formats y on hover.

    panel: column of a figure of several (only the first shows in the legend); note: a column shown on hover as
    "(note value)". Infinite values are gaps in the line, not points.
    """
    looks = styles(dict.fromkeys(rows["method"]))
    for method, look in looks.items():
        mine = rows[rows["method"] == method].sort_values("edits")
        aside = f" ({note} %{{customdata}})" if note else ""
        line = go.Scatter(
            x=mine["edits"].tolist(),
            y=mine[column].replace([np.inf, -np.inf], np.nan).tolist(),
            name=label(method),
            legendgroup=label(method),
            showlegend=panel in (None, 1),
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2.5},
            marker={"symbol": look.symbol, "size": 8, "color": look.colour},
            customdata=mine[note].tolist() if note else None,
            hovertemplate=f"{label(method)}: %{{y:{show}}}{aside}<extra></extra>",
        )
        fig.add_trace(line, row=None if panel is None else 1, col=panel)


def add_reference(fig: go.Figure, x: Sequence[float], y: Sequence[float], name: str, show: str) -> None:
    """Add a grey dotted line that the methods are compared with."""
    fig.add_scatter(
        x=list(x), y=list(y), name=name, mode="lines", line={"color": NEUTRAL, "dash": "dot", "width": 2},
        hovertemplate=f"{name}: %{{y:{show}}}<extra></extra>",
    )  # fmt: skip


def scale(values: pd.Series, span: float = 20.0) -> dict[str, str]:
    """A logarithmic axis where the values span more than a factor of `span`, else a linear one."""
    finite = values[np.isfinite(values) & (values > 0)]
    wide = len(finite) > 0 and finite.max() > span * finite.min()
    return {"type": "log" if wide else "linear"}


def describe(rows: pd.DataFrame, column: str, what: str, show: Callable[[float], str]) -> str:
    """What a reader who cannot see the lines is told: where each begins and ends, and its extremes between."""
    said = [f"Line chart of {what} over edits."]
    for method, mine in rows.sort_values("edits").groupby("method", sort=False):
        edits, values = mine["edits"].tolist(), mine[column].tolist()
        text = f"{label(str(method))}: {show(values[0])} at {edits[0]:,} edits, {show(values[-1])} at {edits[-1]:,}"
        finite = [value for value in values if math.isfinite(value)]
        if finite and (max(finite), min(finite)) != (max(values[0], values[-1]), min(values[0], values[-1])):
            text += f", between {show(min(finite))} and {show(max(finite))} on the way"
        said.append(text + ".")
    return " ".join(said)
