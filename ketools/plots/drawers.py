"""Bars for single edits: what the model said before and what it says after."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import interval
from ketools.plots.style import (
    NEUTRAL,
    OKABE_ITO,
    At,
    bar_gap,
    checked,
    dress,
    gaps,
    label,
    part_styles,
    percent,
    styles,
)
from ketools.runs.records import listed

_ORDER = {
    "prompt": "the prompt",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "same subject": "same subject",
}


def before_after(before: pd.DataFrame, after: pd.DataFrame, new: str, context: str) -> go.Figure:
    """Mean probability of the new answer by kind of prompt, before and after an edit.

    Args:
        before, after: two frames of `probing.recall.surroundings` over the same prompts.
        new: the new answer, for the title.
        context: mode, model, n and seed, for the caption.

    """
    kinds = [kind for kind in _ORDER if kind in set(before["kind"])]
    values = {
        name: frame.groupby("kind")["p_new"].mean().reindex(kinds)
        for name, frame in (("before", before), ("after", after))
    }
    fig = go.Figure()
    looks = (("before", NEUTRAL, ""), ("after", OKABE_ITO["blue"], "/"))
    for name, colour, pattern in looks:
        fig.add_bar(
            name=f"{name} the edit", x=[_ORDER[k] for k in kinds], y=values[name], marker_color=colour,
            marker_pattern_shape=pattern, text=[f"{v:.2f}" for v in values[name]], textposition="outside",
        )  # fmt: skip
    spill = values["after"].drop("prompt").drop("paraphrase", errors="ignore")
    where = f"and leaks most to the {_ORDER[spill.idxmax()]} ({spill.max():.2f})" if len(spill) else ""
    prompt = values["before"]["prompt"], values["after"]["prompt"]
    verb = "rises" if prompt[1] > prompt[0] else "falls"
    finding = f'"{new}" {verb} from {prompt[0]:.2f} to {prompt[1]:.2f} at the edited prompt {where}'.strip()
    fig.update_yaxes(title_text="probability of the new answer (0 to 1)", range=[0, 1.12])
    fig.update_xaxes(title_text="kind of prompt (mean over its prompts)")
    fig.update_layout(barmode="group")
    said = "; ".join(f"{_ORDER[k]}: {values['before'][k]:.2f} before, {values['after'][k]:.2f} after" for k in kinds)
    caption = f"The edit should lift the prompt and its paraphrases and nothing else. {context}"
    return dress(fig, finding, caption, f"Grouped bars. {said}.")


# Parts of the figures: checked rows, one line a method, a grey line of reference, a description in words.


EDITS = "edits so far (count)"


def need(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame itself; KetoolsError if it has no rows or lacks `method`, `edits` or one of `columns`."""
    missing = [name for name in ("method", "edits", *columns) if name not in frame]
    if missing:
        raise KetoolsError(
            f"nothing to draw: the table lacks {', '.join(missing)} (it has {', '.join(map(str, frame.columns))}); "
            "expected a table of a lifelong run with a method column, see ketools.plots.stack"
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


# Bars of means over facts with bootstrap intervals, one set a method or moment: what the figures of evaluation share.


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
