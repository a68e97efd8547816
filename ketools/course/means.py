"""Bars of means over facts with bootstrap intervals, one set a method or moment: what the figures of evaluation share."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import pandas as pd
import plotly.graph_objects as go

from ketools.course.findings import percent
from ketools.course.parts import At, bar_gap, checked, gaps
from ketools.course.style import NEUTRAL, label, part_styles
from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import interval

SHAPES = ("", "/", "x", ".", "+", "-", "\\", "|")
"""Patterns of sets of bars, in their order."""
Table = TypeVar("Table")
Frames = pd.DataFrame | Mapping[str, pd.DataFrame]


def named_frames(frames: Frames, *columns: str, of: str, alone: str = "now") -> dict[str, pd.DataFrame]:
    """Tables by name (of a method, or "before" and "now"), each checked for `columns`; a single one is called `alone`."""
    named = {alone: frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    if not named:
        raise KetoolsError(f"nothing to draw: no tables; give one of {of}, or several by name")
    return {str(name): checked(frame, *columns, of=of) for name, frame in named.items()}


def means_of(frame: pd.DataFrame, columns: list[str], by: str | None = "id") -> pd.DataFrame:
    """Mean and 95% bootstrap interval of each column over facts (rows of one `by` averaged first): index measure.

    Columns mean, low, high, n, excluded; NaN, with n = 0, for a column that no fact has.
    """
    table = (
        frame[columns].astype(float)
        if by is None
        else frame.astype(dict.fromkeys(columns, float)).groupby(by, sort=False)[columns].mean()
    )
    rows = {}
    for column in columns:
        if table[column].notna().any():
            rows[column] = interval(table[column], resamples=2000)
        else:
            rows[column] = pd.Series(
                {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0, "excluded": len(table)}
            )
    return pd.DataFrame(rows).T.rename_axis("measure")


def add_mean_bars(
    fig: go.Figure,
    means: Mapping[str, pd.DataFrame],
    names: Mapping[str, str],
    *,
    show: str = ".1%",
    at: At | None = None,
    legend: bool = True,
    lying: bool = False,
) -> None:
    """A set of bars a table of `means_of`, a bar a measure of `names` (index -> how the axis calls it, escaped).

    A table without low and high has no intervals.
    """
    value, place = ("x", "y") if lying else ("y", "x")
    for i, (which, look) in enumerate(part_styles(means).items()):
        rows = means[which].loc[list(names)]
        called, ranged, aside = label(which), {}, ""
        if {"low", "high"} <= set(rows):
            ends = {
                "array": gaps(rows["high"] - rows["mean"]), "arrayminus": gaps(rows["mean"] - rows["low"]), "thickness": 2,
                "width": 4, "color": NEUTRAL,
            }  # fmt: skip
            ranged = {f"error_{value}": ends, "customdata": rows[["low", "high"]].to_numpy().tolist()}
            ranged["meta"] = {"interval": "95% interval"}
            aside = f" (%{{customdata[0]:{show}}} to %{{customdata[1]:{show}}})"
        bar = go.Bar(
            name=called, legendgroup=called, showlegend=legend, orientation="h" if lying else "v",
            **{place: list(names.values()), value: gaps(rows["mean"])}, **ranged,
            marker={"color": look.colour, "pattern": {"shape": SHAPES[i % len(SHAPES)]}},
            hovertemplate=f"{called}: %{{{value}:{show}}}{aside}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(bar, **(at or {}))
    fig.update_layout(barmode="group", bargap=bar_gap(len(names) * max(1, len(means) - 1)))


def told(row: pd.Series, show: Callable[[float], str] = percent) -> str:
    """ "85% [80% to 90%]", the mean alone where there is no interval, or one without width."""
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return show(mean)
    return f"{show(mean)} [{show(low)} to {show(high)}]"


def led(name: str, text: str, many: int) -> str:
    """The text, led by the name of its method or moment where there are several."""
    return f"{label(name)}: {text}" if many > 1 else text


def later(named: Mapping[str, Table]) -> dict[str, Table]:
    """Those that are not "before", which a title judges; all if there is no other."""
    return {name: held for name, held in named.items() if name != "before"} or dict(named)
