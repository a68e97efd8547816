"""Parts of the figures of probing, norms and evaluation: checked tables, lines with intervals, maps, words for numbers."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course.findings import number
from ketools.course.style import MAGNITUDE, OKABE_ITO, SIGNED, Style, plain
from ketools.errors import KetoolsError
from ketools.runs.names import listed

LAYER = "layer (number)"
At = Mapping[str, int]


def checked(frame: pd.DataFrame, *columns: str, of: str, least: int = 1) -> pd.DataFrame:
    """The frame itself. KetoolsError if it lacks one of `columns` or has fewer than `least` rows; `of` says whose it is."""
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


def present(frame: pd.DataFrame, column: str, of: str) -> pd.DataFrame:
    """The rows in which `column` is a finite number; KetoolsError if there is none."""
    rows = frame[np.isfinite(frame[column].to_numpy(dtype=float))]
    if rows.empty:
        raise KetoolsError(f"nothing to draw: no row of the table of {of} has a finite {column}")
    return rows


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
    at: At | None = None,
    legend: bool = True,
) -> None:
    """Add a line with markers and, given `low` and `high`, its interval: as bars at the points, or as a band.

    `name` must be escaped already; `interval` says what low and high are, on hover and in the table beside the figure.
    """
    y = np.asarray(y, dtype=float)
    where = at or {}
    more: dict[str, object] = {}
    aside = ""
    if low is not None and high is not None:
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        more = {"customdata": np.stack([low, high], 1).tolist(), "meta": {"interval": interval}}
        aside = f" (%{{customdata[0]:{show}}} to %{{customdata[1]:{show}}}, {interval})"
        if band:
            _add_band(fig, x, low, high, look, name, where)
        else:
            more["error_y"] = {
                "array": gaps(high - y), "arrayminus": gaps(y - low), "color": look.colour, "thickness": 1.5, "width": 4,
            }  # fmt: skip
    line = go.Scatter(
        x=list(x), y=gaps(y), name=name, legendgroup=name, showlegend=legend, mode="lines+markers",
        line={"color": look.colour, "dash": look.dash, "width": 2.5},
        marker={"symbol": look.symbol, "size": 8, "color": look.colour},
        hovertemplate=f"{name}: %{{y:{show}}}{aside}<extra></extra>", **more,
    )  # fmt: skip
    fig.add_trace(line, **where)


def add_points(
    fig: go.Figure,
    names: Sequence[str],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    interval: str = "95% interval",
    show: str = ".3f",
) -> None:
    """A forest: a point with its interval a row, `names` (escaped) from the top; the y axis is set, the x axis is not."""
    value, low, high = (np.asarray(side, dtype=float) for side in (values, low, high))
    ends = {"array": gaps(high - value), "arrayminus": gaps(value - low), "thickness": 2, "width": 5}
    fig.add_scatter(
        x=gaps(value), y=list(range(len(names))), error_x=ends, mode="markers", marker={"size": 10, "color": OKABE_ITO["blue"]},
        name="estimate", showlegend=False, customdata=np.stack([low, high], 1).tolist(), meta={"interval": interval},
        hovertemplate=f"%{{x:{show}}} (%{{customdata[0]:{show}}} to %{{customdata[1]:{show}}}, {interval})<extra></extra>",
    )  # fmt: skip
    fig.update_yaxes(
        title="measure (name)",
        autorange="reversed",
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=list(names),
    )
    fig.update_layout(hovermode="closest")


def add_means(fig: go.Figure, rows: pd.DataFrame, name: str, look: Style, show: str = ".3f") -> None:
    """`add_line` of a frame of means by layer (layer, mean, low, high, facts); one fact has no interval."""
    several = bool((rows["facts"] > 1).any())
    low, high = (rows["low"], rows["high"]) if several else (None, None)
    add_line(fig, rows["layer"], rows["mean"], name, look, low=low, high=high, show=show)


def over_facts(count: int) -> str:
    """What a caption says of a mean over `count` facts."""
    return "one fact, without an interval" if count == 1 else f"mean and 95% bootstrap interval over {count} facts"


def _add_band(
    fig: go.Figure, x: Sequence[float], low: np.ndarray, high: np.ndarray, look: Style, name: str, where: At
) -> None:
    good = np.isfinite(low) & np.isfinite(high)
    x = np.asarray(x)[good]
    r, g, b = (int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
    fig.add_trace(
        go.Scatter(
            x=[*x, *x[::-1]], y=[*low[good], *high[good][::-1]], fill="toself", mode="lines", line={"width": 0},
            fillcolor=f"rgba({r},{g},{b},0.2)", hoverinfo="skip", showlegend=False, legendgroup=name,
        ),
        **where,
    )  # fmt: skip


def gaps(values: Iterable[float]) -> list[float | None]:
    """Numbers as plotly takes them: what is not finite is a gap."""
    return [float(value) if np.isfinite(value) else None for value in values]


def colours(values: np.ndarray, title: str) -> dict[str, object]:
    """A colour axis for a map: signed around 0 where values fall clearly below it, else from 0 (or the least) up."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bar = {"title": {"text": title, "side": "right"}, "thickness": 14}
    if low < -0.1 * abs(high):
        reach = max(-low, high)
        return {"colorscale": SIGNED, "cmin": -reach, "cmax": reach, "colorbar": bar}
    return {"colorscale": MAGNITUDE, "cmin": min(0.0, low), "cmax": high if high > 0 else 1.0, "colorbar": bar}


def layer_axis(layers: Iterable[int], names: Mapping[int, str] | None = None) -> dict[str, object]:
    """Ticks at whole layers, at most some twenty of them; `names` for layers that are none (-1, what enters layer 0)."""
    every = sorted(set(layers))
    step = max(1, -(-len(every) // 20))
    shown = [layer for i, layer in enumerate(every) if i % step == 0 or layer in (names or {})]
    return {"tickmode": "array", "tickvals": shown, "ticktext": [(names or {}).get(i, str(i)) for i in shown]}


def bar_gap(groups: int) -> float:
    """Share of the room between bars: few groups do not fill a whole figure with two blocks."""
    return max(0.2, 0.8 - 0.15 * groups)


def between(mean: float, low: float, high: float) -> str:
    """ "0.41 [0.30 to 0.52]", or the mean alone where there is no interval."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(mean)
    return f"{number(mean)} [{number(low)} to {number(high)}]"


def layer_names(layers: Iterable[int]) -> str:
    """ "layer 3", "layers 1 and 2", "layers 3 to 6"."""
    every = sorted(set(layers))
    if len(every) == 1:
        return f"layer {every[0]}"
    if len(every) > 2 and every[-1] - every[0] == len(every) - 1:
        return f"layers {every[0]} to {every[-1]}"
    return f"layers {listed([str(i) for i in every])}"


def joined(caption: str, context: str) -> str:
    """The caption, and what the notebook says of mode, model, n and seed."""
    return f"{caption} {plain(context, 200)}".strip() if context else caption
