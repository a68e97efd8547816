"""How every figure looks and what it says: styles, palette, layout, the wording of titles, and the numbers behind it.

The palette is safe for colour-blind readers, and every method also has its own dash and marker. A figure carries its text in
`fig.layout.meta`: `finding` (also its title), `caption` (also printed below it) and `description` (for readers who cannot
see it).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape, unescape
from itertools import count
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from scipy.stats import binomtest

from ketools.evaluation.metrics import UNITS, hover_texts, number
from ketools.io import packaged
from ketools.runs.records import key, listed, title

# Okabe & Ito, "Color Universal Design" (2008).
OKABE_ITO = {
    "black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442", "blue": "#0072B2",
    "vermillion": "#D55E00", "purple": "#CC79A7",
}  # fmt: skip
NEUTRAL = "#808080"
"""Reference lines (before any edit, natural facts): readable on white and on near-black."""
MAGNITUDE, SIGNED = "Cividis", "RdBu_r"
"""Colour scales of maps: dark to light for magnitudes, two hues around white for signed values."""
LEFT = 70
"""Pixels left of the axes; title and caption start here too."""
_TITLE_WIDTH, _CAPTION_WIDTH = 84, 120  # characters per line
_LEGEND_WIDTH = 780  # pixels


@dataclass(frozen=True)
class Style:
    """How a method is drawn in every figure: colour, dash of its line, symbol of its points."""

    colour: str
    dash: str
    symbol: str


_METHODS = {
    "memit": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "sequential-memit": Style(OKABE_ITO["orange"], "longdash", "triangle-up"),
    "alphaedit": Style(OKABE_ITO["purple"], "dot", "diamond"),
    "encore": Style(OKABE_ITO["blue"], "solid", "circle"),
    # The paper's ablations share a figure with the methods above. The brown is from outside the palette, which has no colour left.
    "memit+mpes": Style(OKABE_ITO["green"], "dashdot", "x"),
    "memit+norm": Style(OKABE_ITO["sky"], "longdashdot", "star"),
    "emmet+mpes": Style("#8C564B", "dot", "triangle-down"),
}
_PARTS = {
    "hidden": Style(OKABE_ITO["blue"], "solid", "circle"),
    "mlp": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "attention": Style(OKABE_ITO["green"], "dot", "diamond"),
    "hidden, mlp severed": Style(OKABE_ITO["orange"], "longdash", "triangle-up"),
    "hidden, attention severed": Style(OKABE_ITO["sky"], "dashdot", "x"),
    "subject": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "other": Style(OKABE_ITO["sky"], "dot", "diamond"),
    # Before edits: grey recedes. Now: blue.
    "before": Style(NEUTRAL, "dot", "circle-open"),
    "now": Style(OKABE_ITO["blue"], "solid", "circle"),
}
# Without black and yellow: one is invisible on a dark page, the other on a white one.
_COLOURS = tuple(OKABE_ITO[name] for name in ("green", "sky", "orange", "purple", "vermillion", "blue"))
_DASHES = ("dashdot", "longdashdot", "longdash", "dot", "dash", "solid")
_SYMBOLS = ("x", "star", "triangle-down", "cross", "hexagon", "pentagon")


def label(method: str) -> str:
    """The method's display name, escaped because plotly interprets HTML in text."""
    return escape(title(method))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style per method: fixed for known ones, distinct for the others in order of appearance."""
    names = list(dict.fromkeys(methods))
    chosen = {method: _METHODS[key(method)] for method in names if key(method) in _METHODS}
    turns = len(_COLOURS)
    spare = (
        Style(_COLOURS[i % turns], _DASHES[(i + i // turns) % turns], _SYMBOLS[(i + i // turns) % turns])
        for i in count()
    )
    free = (look for look in spare if look not in chosen.values())
    return {method: chosen.get(method) or next(free) for method in names}


def part_styles(parts: Iterable[str]) -> dict[str, Style]:
    """A style per part of a model, kind of restored state, or state ("before", "now"); distinct for others."""
    names = list(dict.fromkeys(parts))
    others = styles(name for name in names if name not in _PARTS)
    return {name: _PARTS.get(name) or others[name] for name in names}


def plain(text: object, longest: int = 60) -> str:
    """Outside text, safe for a figure: cut to `longest` characters, without markup, formulas or line breaks."""
    shown = str(text).replace("\n", "⏎").replace("\t", " ").strip(" ") or "␣"
    shown = shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"
    return escape(shown, quote=False).replace("$", "&#36;")  # plotly reads text between two $ as TeX


def left_of(labels: Iterable[str]) -> int:
    """Pixels that the longest of `labels` and the axis title need left of the axes; at least `LEFT`."""
    return max(LEFT, 50 + int(6.8 * max((len(unescape(text)) for text in labels), default=0)))


def dress(
    fig: go.Figure, finding: str, caption: str, description: str, height: int = 460, left: int = LEFT
) -> go.Figure:
    """Give a figure its text and the common look; returns the same figure. Its axes must already name their units.

    Args:
        fig: the figure.
        finding: its title, what the data show; caption: printed below; description: for readers who cannot see it.
        height: in pixels, with one line of title and no caption.
        left: pixels left of the axes, for long labels; title and caption still begin at `LEFT`.
    """
    below = wrap(caption, _CAPTION_WIDTH)
    above = wrap(finding, _TITLE_WIDTH)
    for narrower in range(_TITLE_WIDTH - 1, _TITLE_WIDTH // 2, -1):  # balance the lines
        if len(balanced := wrap(finding, narrower)) > len(above):
            break
        above = balanced
    # A legend of several rows grows upwards; the top margin grows with it, so that it does not cover the title.
    entries = {trace.name for trace in fig.data if trace.name and trace.showlegend is not False}
    rows = max(1, -(-sum(52 + int(7.2 * len(unescape(name))) for name in entries) // _LEGEND_WIDTH))
    # plotly.js places a title of several lines one line higher, over the picture's edge.
    top = 14 if len(above) == 1 else 28
    place: dict[str, Any] = {"xref": "paper", "pad": {"t": top}}
    if left != LEFT:
        place = {"xref": "container", "pad": {"l": LEFT, "t": top}}
    fig.update_layout(
        template="plotly_white",
        title={"text": "<br>".join(above), "x": 0.0, "xanchor": "left", "y": 1.0, "yref": "container", "yanchor": "top"}
        | place,
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0.0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        margin={"t": 48 + 22 * (len(above) + rows), "b": 80 + 18 * len(below), "l": left, "r": 45},
        # Beside the figure, not over its title; without the button that sends the data to plotly's servers.
        modebar={"orientation": "v", "remove": ["sendChartToCloud", "select2d", "lasso2d"]},
        height=height + 22 * (len(above) + rows - 1) + 18 * len(below),
        hovermode="x unified",
        meta={"finding": finding, "caption": caption, "description": description},
    )
    fig.update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    fig.add_annotation(
        name="caption", text="<br>".join(below), showarrow=False, align="left", font={"size": 12},
        xref="paper", yref="paper", x=0.0, y=0.0, xanchor="left", yanchor="top", yshift=-58, xshift=LEFT - left,
    )  # fmt: skip
    return fig


def joined(caption: str, context: str) -> str:
    """The caption, followed by the notebook's context (mode, model, n, seed)."""
    return f"{caption} {plain(context, 200)}".strip() if context else caption


def words(fig: go.Figure) -> dict[str, str]:
    """The figure's finding, caption and description."""
    return dict(fig.layout.meta)


def undressed(fig: go.Figure) -> go.Figure:
    """A copy without title and caption, for a page that shows them as text."""
    copy = go.Figure(fig)
    copy.layout.annotations = [note for note in copy.layout.annotations if note.name != "caption"]
    copy.update_layout(title=None, margin={"t": 40, "b": 60, "l": 70, "r": 20}, height=400)
    return copy


# Titles: computed from the data, never assumed, and worded for either outcome.

Values = Mapping[str, float]
_NAMED = 4  # a sentence names the values of at most this many methods


@dataclass(frozen=True)
class Outcome:
    """How a measure is judged and worded (see outcomes.toml): `what` is `good` from `at_least` to `at_most`, else `bad`."""

    what: str
    good: str
    bad: str
    measure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = "%"

    def sentence(self, ends: Values, edits: str, n: Mapping[str, int] | None = None) -> str:
        """One sentence about `ends` (method -> value after `edits` edits; NaN counts as bad).

        `n`, the number of facts behind each share, is added to the sentence. There is then no verdict unless the 95% interval
        (Wilson's) of each share lies on one side of the bound.
        """
        if n is not None:
            low, high = min(n.values()), max(n.values())
            count = f"n {low:,}" if low == high else f"n {low:,} to {high:,}"
            brief = UNITS[self.unit].brief
            if any(self._open(value, n[method]) for method, value in ends.items()):
                return f"{self.what}, {self.measure} after {edits} edits ({count}): {listed_values(ends, brief)}"
        good = [label(m) for m, value in ends.items() if self.at_least <= value <= self.at_most]
        bad = [label(m) for m in ends if label(m) not in good]
        if good and bad:
            head = f"{self.what} {self.bad} with {listed(bad)}, {self.good} with {listed(good)}"
        else:
            head = f"{self.what} {self.good if good else self.bad} with {every(ends)}"
        of = f", {count}" if n is not None else ""
        return f"{head} ({self.measure} after {edits} edits{of}: {listed_values(ends, UNITS[self.unit].brief)})"

    def _open(self, share: float, n: int) -> bool:
        """Does the interval of a share of `n` contain the bound?"""
        if not (math.isfinite(share) and n):
            return False
        low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
        return low < self.at_least <= high


OUTCOMES = {name: Outcome(**entry) for name, entry in packaged("plots/outcomes.toml").items()}
"""By metric, or by the quantity that a figure derives from it."""


def every(ends: Values) -> str:
    """The one method's name, or "every method"."""
    return label(next(iter(ends))) if len(ends) == 1 else "every method"


def listed_values(ends: Values, show: Callable[[float], str]) -> str:
    """Each method with its value; of more than four, only the two extremes."""
    if len(ends) > _NAMED and all(math.isfinite(value) for value in ends.values()):
        low, high = (pick(ends, key=ends.__getitem__) for pick in (min, max))
        return f"from {label(low)} {show(ends[low])} to {label(high)} {show(ends[high])}"
    return ", ".join((f"{label(m)} " if len(ends) > 1 else "") + show(value) for m, value in ends.items())


def p_value(p: float) -> str:
    """A p-value with four decimals."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def last(frame: pd.DataFrame, column: str) -> tuple[dict[str, float], str]:
    """(method -> value in its last row, the number of edits there: "1,000" or "200 to 1,000")."""
    rows = frame.sort_values("edits").groupby("method", sort=False).tail(1).set_index("method")
    low, high = int(rows["edits"].min()), int(rows["edits"].max())
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return {method: float(rows.loc[method, column]) for method in dict.fromkeys(frame["method"])}, span


def ends_of(values: Values) -> tuple[list[str], list[str]]:
    """The methods within a percentage point of the highest value, and those within one of the lowest.

    Naming a single method would claim too much. No method is in both; the second list is empty if all are in the first.
    """
    most, least = max(values.values()), min(values.values())
    first = [m for m, value in values.items() if value >= most - 0.01]
    return first, [m for m, value in values.items() if value <= least + 0.01 and m not in first]


def between(mean: float, low: float, high: float, show: Callable[[float], str] = number) -> str:
    """ "0.41 [0.30 to 0.52]", or the mean alone where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return show(mean)
    return f"{show(mean)} [{show(low)} to {show(high)}]"


def layer_names(layers: Iterable[int]) -> str:
    """ "layer 3", "layers 1 and 2", "layers 3 to 6"."""
    every = sorted(set(layers))
    if len(every) == 1:
        return f"layer {every[0]}"
    if len(every) > 2 and every[-1] - every[0] == len(every) - 1:
        return f"layers {every[0]} to {every[-1]}"
    return f"layers {listed([str(i) for i in every])}"


def over_facts(count: int) -> str:
    """For a caption: a mean over `count` facts."""
    return "one fact, without an interval" if count == 1 else f"mean and 95% bootstrap interval over {count} facts"


# The numbers behind a figure, read from the figure itself, for readers who cannot see it or want more.

_FOR_EARS = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"


def described(description: str, numbers: pd.DataFrame) -> str:
    """A figure's description, for screen readers alone, and its numbers as HTML; headings explain metrics on hover."""
    table = numbers.to_html(escape=True, float_format=lambda value: f"{value:.4g}", na_rep="–", border=0)
    for head, text in hover_texts([*numbers.columns, *numbers.index.names]).items():
        shown = escape(head, quote=False)  # as pandas writes it
        table = table.replace(f"<th>{shown}</th>", f'<th><abbr title="{escape(text)}">{shown}</abbr></th>')
    return (
        f'<p style="{_FOR_EARS}">{escape(description)}</p>'
        f"<details><summary>The numbers</summary><div style='max-height: 24em; overflow: auto'>{table}</div></details>"
    )


def numbers(fig: go.Figure) -> pd.DataFrame:
    """The numbers that a figure shows, as a table.

    A map: a row per y, a column per x (several panels are concatenated, with the panel as first index). Otherwise a row per x
    (per y for horizontal bars) and a column per line or set of bars, with "low" and "high" beside it if it has intervals. If
    x repeats, as in a cloud of points, a row per point.
    """
    panels = _panels(fig)
    columns: dict[str, pd.Series] = {}
    maps: dict[str, pd.DataFrame] = {}
    for trace in fig.data:
        panel = panels.get(trace.xaxis or "x", "")
        if trace.type == "heatmap":
            maps[panel] = pd.DataFrame(
                list(map(list, trace.z)),
                index=_tick_texts(fig, trace.yaxis or "y", trace.y),
                columns=_tick_texts(fig, trace.xaxis or "x", trace.x),
            ).rename_axis(unescape(fig.layout.xaxis.title.text or ""), axis="columns")
        elif trace.hoverinfo != "skip":
            name = unescape(str(trace.name or trace.type))
            columns |= _series(fig, trace, f"{panel}: {name}" if panel and panel != name else name)
    if maps:
        return next(iter(maps.values())) if len(maps) == 1 else pd.concat(maps, names=["panel"])
    if all(column.index.is_unique for column in columns.values()):
        table = pd.DataFrame(columns)
    else:
        table = pd.concat({name: column.rename_axis("at") for name, column in columns.items()}, names=["series"])
        table = table.rename("value").reset_index()
    horizontal = any(trace.orientation == "h" for trace in fig.data[:1])
    axis = fig.layout.yaxis if horizontal else fig.layout.xaxis
    return table.rename_axis(unescape(axis.title.text or ""), axis=0)


def _panels(fig: go.Figure) -> dict[str, str]:
    """Name of an x axis -> title of its panel (make_subplots names them in order); {} for a single panel."""
    axes = sorted(dict.fromkeys(trace.xaxis or "x" for trace in fig.data), key=lambda axis: int(axis[1:] or 1))
    if len(axes) < 2:
        return {}
    titles = [unescape(note.text) for note in fig.layout.annotations if note.name != "caption" and not note.showarrow]
    of_axes = [fig.layout[f"yaxis{axis[1:]}"].title.text or fig.layout[f"xaxis{axis[1:]}"].title.text for axis in axes]
    own = dict(zip(axes, (unescape(text or "") for text in of_axes), strict=True))
    return own | dict(zip(axes, titles, strict=False))


def _tick_texts(fig: go.Figure, axis: str, places: Iterable[object]) -> list[object]:
    """The tick texts at the places of an axis; the places themselves where it has none."""
    layout = fig.layout[f"{axis[0]}axis{axis[1:]}"]
    if layout.ticktext is None and layout.matches:
        layout = fig.layout[f"{layout.matches[0]}axis{layout.matches[1:]}"]
    ticks = () if layout.type == "linear" else layout.tickvals or ()  # add_load writes texts beside the numbers
    texts = dict(zip(ticks, layout.ticktext or (), strict=False))
    shown = [texts.get(place, place) for place in places]
    return [unescape(text) if isinstance(text, str) else text for text in shown]


def _series(fig: go.Figure, trace: go.Bar | go.Scatter, name: str) -> dict[str, pd.Series]:
    """A trace as columns: its values by tick text, and their intervals."""
    side, value = ("y", "x") if trace.orientation == "h" else ("x", "y")
    places = list(trace[side])
    at = _tick_texts(fig, trace[f"{side}axis"] or side, places)
    if len(set(places)) == len(places) and len(set(map(str, at))) < len(at):
        # Number equal texts at different places, so that they stay separate rows.
        counts: dict[object, int] = {}
        for i, text in enumerate(at):
            counts[text] = counts.get(text, 0) + 1
            at[i] = text if counts[text] == 1 else f"{text} ({counts[text]})"
    index = pd.Index(at, dtype=object)
    series = {name: pd.Series(list(trace[value]), index=index, dtype=object).infer_objects()}
    if isinstance(trace.meta, dict) and "interval" in trace.meta:
        for i, end in enumerate(("low", "high")):
            ends = [None if row is None else row[i] for row in trace.customdata]
            series[f"{name}, {end}"] = pd.Series(ends, index=index, dtype=float)
    return series
