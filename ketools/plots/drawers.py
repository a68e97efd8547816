"""Generic drawers shared by the figures: lines with intervals, bars, maps, quantities over edits.

Each draws rows of a table into a figure; labels, units and formats of reported numbers come from the table of metrics.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import Metric, metric
from ketools.plots.style import MAGNITUDE, NEUTRAL, SIGNED, Style, dress, label, last, styles
from ketools.runs.records import listed

EDITS = metric("edits", "shared").axis
LAYER = metric("layer", "shared").axis

LOW, HIGH, SEEDS = "_low", "_high", "_seeds"
"""Suffixes of the columns beside a mean over seeds: its range, and how many seeds have a value."""

Panel: TypeAlias = Mapping[str, int]
"""Row and column of a panel, from 1."""

# Tables.


def checked(frame: pd.DataFrame, *columns: str, of: str, least: int = 1) -> pd.DataFrame:
    """The frame itself. Raises KetoolsError if it lacks a column or has fewer than `least` rows; `of` names its source."""
    if not isinstance(frame, pd.DataFrame):
        raise KetoolsError(f"nothing to draw: got {type(frame).__name__}, expected the table of {of}")
    if missing := [name for name in columns if name not in frame]:
        raise KetoolsError(
            f"nothing to draw: the table lacks {', '.join(missing)} (it has {', '.join(map(str, frame.columns)) or 'none'}); "
            f"expected the table of {of}"
        )
    if len(frame) < least:
        rows = "no rows" if frame.empty else f"{len(frame)} row, where {least} are needed to compare"
        raise KetoolsError(f"nothing to draw: the table of {of} has {rows}")
    return frame


def need(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """`checked` for a table of lifelong runs with a column `method`, from `ketools.plots.stack`."""
    return checked(frame, *dict.fromkeys(("method", "edits", *columns)), of="a lifelong run with a method column")


def measured(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which the first of `columns` was measured (is not NaN); KetoolsError if there is none.

    Where a value is missing between two of a method, one row with NaN stays, so that its line breaks there; `holes` counts
    these.
    """
    column = columns[0]
    present = need(frame, *columns)[column].notna()
    if not present.any():
        raise KetoolsError(f"nothing to draw: {column} was not measured in this run (all values are missing)")
    ends = frame[present].groupby("method", sort=False)["edits"].agg(["min", "max"])
    low, high = (frame["method"].map(ends[end]) for end in ("min", "max"))
    empty = ~present.groupby([frame["method"], frame["edits"]]).transform("any")
    gap = empty & (frame["edits"] > low) & (frame["edits"] < high) & ~frame.duplicated(["method", "edits"])
    return frame[present | gap]


def holes(frame: pd.DataFrame, *columns: str, since: float = 0) -> str:
    """For a caption: a sentence per column that lacks points, with how many each line lacks; "" if none does.

    Only points after `since` count: at 0 edits there are no edits to score.
    """
    sentences = []
    for column in columns:
        present = frame[frame["edits"] > since].groupby(["method", "edits"], sort=False)[column].count() > 0
        lines = [
            f"{(~points).sum():,} of {len(points):,} with {label(str(method))}"
            for method, points in present.groupby("method", sort=False)
            if not points.all()
        ]
        if lines:
            sentences.append(f" Points of {column} that were not measured: {listed(lines)}.")
    return "".join(sentences)


# Lines.


def gaps(values: Iterable[float]) -> list[float | None]:
    """Numbers for plotly, which draws None as a gap; non-finite ones become None."""
    return [float(value) if np.isfinite(value) else None for value in values]


def add_line(
    fig: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    look: Style,
    *,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    interval: str = "95% interval",
    show: str = ".3f",
    band: bool = False,
    at: Panel | None = None,
    legend: bool = True,
    mode: str = "lines+markers",
) -> None:
    """Add a line and, given `low` and `high`, its interval as error bars or as a band.

    `name` must already be escaped; `interval` says what low and high are, on hover and in the table of numbers; `show` formats
    y on hover; `at` is the row and column of a panel.
    """
    middle = np.asarray(y, dtype=float)
    more: dict[str, object] = {}
    hover = f"{name}: %{{y:{show}}}"
    if low is not None and high is not None:
        bottom, top = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        more = {"customdata": np.stack([bottom, top], 1).tolist(), "meta": {"interval": interval}}
        hover += f" (%{{customdata[0]:{show}}} to %{{customdata[1]:{show}}}, {interval})"
        if band:
            there = np.isfinite(bottom) & np.isfinite(top)
            around = np.asarray(x)[there]
            r, g, b = (int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
            shade = go.Scatter(
                x=[*around, *around[::-1]],
                y=[*bottom[there], *top[there][::-1]],
                fill="toself",
                mode="lines",
                line={"width": 0},
                fillcolor=f"rgba({r},{g},{b},0.2)",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
            fig.add_trace(shade, **(at or {}))
        else:
            more["error_y"] = {
                "array": gaps(top - middle),
                "arrayminus": gaps(middle - bottom),
                "color": look.colour,
                "thickness": 1.5,
                "width": 4,
            }
    if "markers" in mode:
        more["marker"] = {"symbol": look.symbol, "size": 8, "color": look.colour}
    line = go.Scatter(
        x=list(x),
        y=gaps(middle),
        name=name,
        legendgroup=name,
        showlegend=legend,
        mode=mode,
        line={"color": look.colour, "dash": look.dash, "width": 2.5},
        hovertemplate=f"{hover}<extra></extra>",
        **more,
    )
    fig.add_trace(line, **(at or {}))


def add_means(fig: go.Figure, rows: pd.DataFrame, name: str, look: Style, show: str = ".3f") -> None:
    """`add_line` of means by layer (columns layer, mean, low, high, facts); one fact has no interval."""
    several = bool((rows["facts"] > 1).any())
    low, high = (rows["low"], rows["high"]) if several else (None, None)
    add_line(fig, rows["layer"], rows["mean"], name, look, low=low, high=high, show=show)


def add_lines(
    fig: go.Figure, rows: pd.DataFrame, column: str, show: str, *, panel: int | None = None, note: str | None = None
) -> None:
    """Add `column` over edits, one line per method in its style; `show` formats y on hover.

    If a line is the mean of several seeds (columns seeds, COLUMN_low, COLUMN_high and, if some points have fewer seeds,
    COLUMN_seeds), their range is a band behind the lines.

    panel: column of a figure with several panels (only the first shows in the legend); note: a column shown on hover as
    "(note value)". Infinite values are gaps in the line.
    """
    at = None if panel is None else {"row": 1, "col": panel}
    ranged = {"seeds", f"{column}{LOW}", f"{column}{HIGH}"} <= set(rows)
    for method, look in styles(dict.fromkeys(rows["method"])).items():
        points = rows[rows["method"] == method].sort_values("edits")
        name, edits, legend = label(method), points["edits"].tolist(), panel in (None, 1)
        if ranged and (points["seeds"] > 1).any():
            seeds = points["seeds"]
            if f"{column}{SEEDS}" in points:
                seeds = points[f"{column}{SEEDS}"].fillna(seeds)
            low, high = int(seeds[seeds > 0].min()), int(seeds.max())
            add_line(
                fig, edits, points[column], name, look, low=points[f"{column}{LOW}"], high=points[f"{column}{HIGH}"],
                interval=f"range of {low if low == high else f'{low} to {high}'} seeds", show=show, band=True, at=at,
                legend=legend,
            )  # fmt: skip
            continue
        add_line(fig, edits, points[column], name, look, show=show, at=at, legend=legend)
        if note:
            hover = f"{name}: %{{y:{show}}} ({note} %{{customdata}})<extra></extra>"
            fig.data[-1].update(customdata=points[note].tolist(), hovertemplate=hover)
    fig.data = sorted(fig.data, key=lambda trace: trace.fill is None)  # bands behind all lines


def add_reference(fig: go.Figure, x: Sequence[float], y: Sequence[float], name: str, show: str) -> None:
    """Add a grey dotted line to compare the methods with."""
    fig.add_scatter(
        x=list(x),
        y=list(y),
        name=name,
        mode="lines",
        line={"color": NEUTRAL, "dash": "dot", "width": 2},
        hovertemplate=f"{name}: %{{y:{show}}}<extra></extra>",
    )


def scale(values: pd.Series, span: float = 20.0) -> dict[str, str]:
    """A logarithmic axis where the values span more than a factor of `span`, else a linear one."""
    finite = values[np.isfinite(values) & (values > 0)]
    wide = len(finite) > 0 and finite.max() > span * finite.min()
    return {"type": "log" if wide else "linear"}


def describe(rows: pd.DataFrame, column: str, what: str, show: Callable[[float], str]) -> str:
    """Lines over edits in words: where each begins and ends, and its extremes in between."""
    sentences = [f"Line chart of {what} over edits."]
    for method, points in rows.sort_values("edits").groupby("method", sort=False):
        edits, values = points["edits"].tolist(), points[column].tolist()
        text = f"{label(str(method))}: {show(values[0])} at {edits[0]:,} edits, {show(values[-1])} at {edits[-1]:,}"
        finite = [value for value in values if math.isfinite(value)]
        if finite and (max(finite), min(finite)) != (max(values[0], values[-1]), min(values[0], values[-1])):
            text += f", between {show(min(finite))} and {show(max(finite))} on the way"
        sentences.append(text + ".")
    return " ".join(sentences)


def add_load(fig: go.Figure, d_mlp: float) -> go.Figure:
    """Write the load (edits / d_mlp) under the numbers of an axis of edits; returns the figure."""
    axes = [axis for axis in fig.select_xaxes() if axis.title.text == EDITS]
    if not axes or math.isnan(d_mlp):
        return fig
    load, edits = metric("load", "shared"), max(1, *(max(trace.x) for trace in fig.data if trace.x))
    rough = edits / (5 if len(axes) == 1 else 2)
    unit = 10 ** math.floor(math.log10(rough))
    step = max(1, max(unit * n for n in (1, 2, 5) if unit * n <= rough))
    places = [step * n for n in range(int(edits // step) + 1)]
    for axis in axes:
        axis.update(type="linear", tickvals=places, ticktext=[f"{n:,}<br>{n / d_mlp:.2g}" for n in places])
        axis.title.text = f"{EDITS}; below, {load.axis}" if len(axes) == 1 else f"edits; below, {load.short}"
    lower = 16  # pixels of the second line
    fig.update_layout(margin_b=fig.layout.margin.b + lower, height=fig.layout.height + lower)
    fig.for_each_annotation(lambda note: note.update(yshift=note.yshift - lower), {"name": "caption"})
    return fig


def over_edits(
    frame: pd.DataFrame,
    quantity: Metric,
    finding: Callable[[dict[str, float], str], str],
    caption: str,
    *,
    column: str | None = None,
    reference: tuple[str, Sequence[float], Sequence[float]] | None = None,
    note: str | None = None,
    x: str = EDITS,
    axis: Mapping[str, object] | None = None,
    since: float = 0,
) -> go.Figure:
    """A complete figure of one metric over edits, one line per method.

    Args:
        frame: rows with columns method, edits and the metric's key.
        quantity: the metric, which gives the axis its title and range, and values their format.
        finding: makes the title from (method -> last value, number of edits).
        caption: what is measured; missing points are added to it.
        column: the column of `frame`, if it is not the metric's key.
        reference: name, x and y of a grey line to compare with.
        note: a column shown on hover.
        x: title of the x axis; axis: settings of the y axis.
        since: up to this number of edits, points without a value do not count as missing.

    Raises:
        KetoolsError: a column is missing or nothing was measured.
    """
    column = column or quantity.key
    rows = measured(frame, column)
    fig = go.Figure()
    add_lines(fig, rows, column, quantity.spec, note=note)
    text = describe(rows, column, quantity.label, quantity.brief)
    if reference:
        name, _, values = reference
        add_reference(fig, *reference[1:], name, quantity.spec)
        text += f" {name.capitalize()}: {quantity.brief(list(values)[-1])}."
    fig.update_xaxes(title=x, rangemode="tozero")
    if axis is None and quantity.unit == "%":
        axis = {"range": [0, max(1.04, 1.04 * rows[column].max())]}
    elif axis is None:
        axis = {"range": [0, 1.04]} if quantity.unit == "probability" else scale(rows[column])
    fig.update_yaxes(tickformat=".0%" if quantity.unit == "%" else None, title=quantity.axis).update_yaxes(**axis)
    return dress(fig, finding(*last(rows, column)), caption + holes(frame, column, since=since), text)


# Bars and maps.


def add_bars(
    fig: go.Figure,
    places: Sequence[object],
    values: Iterable[float],
    name: str,
    *,
    colour: str | Sequence[str],
    pattern: str | Sequence[str],
    text: Sequence[str],
    hover: str = "%{v:.4f}",
    horizontal: bool = False,
    legend: bool = True,
) -> None:
    """Add a set of bars: `values` at `places`, with `text` at their ends.

    `colour` and `pattern` (hatching) apply to all bars or are given per bar; `name` must already be escaped; `hover` shows a
    bar's value as %{v}.
    """
    value, place = ("x", "y") if horizontal else ("y", "x")
    bars = go.Bar(
        name=name,
        legendgroup=name,
        showlegend=legend,
        orientation="h" if horizontal else "v",
        **{place: list(places), value: gaps(values)},
        marker={"color": colour, "pattern": {"shape": pattern}},
        hovertemplate=f"{hover.replace('%{v', f'%{{{value}')}<extra></extra>",
        text=list(text),
        textposition="outside",
        cliponaxis=False,
    )
    fig.add_trace(bars)


def rows_axis(labels: Sequence[str], title: str) -> dict[str, object]:
    """A y axis with `labels` (escaped) at 0, 1, ... from the top, so that equal labels stay separate rows."""
    places = list(range(len(labels)))
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": list(labels)}
    return {"title": title, "autorange": "reversed", **ticks}


def layer_axis(layers: Iterable[int], names: Mapping[int, str] | None = None) -> dict[str, object]:
    """Ticks at whole layers, about twenty at most; `names` label positions that are no layer (-1: the input of layer 0)."""
    every = sorted(set(layers))
    step = max(1, -(-len(every) // 20))
    shown = [layer for i, layer in enumerate(every) if i % step == 0 or layer in (names or {})]
    return {"tickmode": "array", "tickvals": shown, "ticktext": [(names or {}).get(i, str(i)) for i in shown]}


def colours(values: np.ndarray, title: str) -> dict[str, object]:
    """A colour axis for a map: centred on 0 if values are clearly negative, else from 0 (or the minimum) up."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bar = {"title": {"text": title, "side": "right"}, "thickness": 14}
    if low < -0.1 * abs(high):
        reach = max(-low, high)
        return {"colorscale": SIGNED, "cmin": -reach, "cmax": reach, "colorbar": bar}
    return {"colorscale": MAGNITUDE, "cmin": min(0.0, low), "cmax": high if high > 0 else 1.0, "colorbar": bar}
