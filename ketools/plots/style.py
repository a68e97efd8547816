"""How every figure looks: a palette that colour-blind readers can tell apart, dashes and markers beside it, and words.

A figure carries its text in `fig.layout.meta`: `finding` (also its title), `caption` (also printed below it) and
`description` (what a reader who cannot see it is told).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import hover_texts, number, percent, times
from ketools.runs.records import key, listed, title

# Okabe & Ito, "Color Universal Design" (2008).
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
# Lines of reference (before any edit, natural facts): readable on white and on near-black.
NEUTRAL = "#808080"
_TITLE_WIDTH, _CAPTION_WIDTH = 84, 120
LEFT = 70
"""Pixels left of the axes, where title and caption begin too."""
# Of maps: one hue from dark to light for magnitudes, two around white for signed values; both keep their order in grey.
MAGNITUDE, SIGNED = "Cividis", "RdBu_r"


@dataclass(frozen=True)
class Style:
    """How one method is drawn, the same in every figure: colour, dash of its line, symbol of its points."""

    colour: str
    dash: str
    symbol: str


_KNOWN = {
    "memit": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "sequential-memit": Style(OKABE_ITO["orange"], "longdash", "triangle-up"),
    "alphaedit": Style(OKABE_ITO["purple"], "dot", "diamond"),
    "encore": Style(OKABE_ITO["blue"], "solid", "circle"),
    # The ablations of the paper, beside all of the above in one figure; the brown is not of the palette, which has no seventh.
    "memit+mpes": Style(OKABE_ITO["green"], "dashdot", "x"),
    "memit+norm": Style(OKABE_ITO["sky"], "longdashdot", "star"),
    "emmet+mpes": Style("#8C564B", "dot", "triangle-down"),
}
# Parts of a model and the states that are restored in it.
_PARTS = {
    "hidden": Style(OKABE_ITO["blue"], "solid", "circle"),
    "mlp": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "attention": Style(OKABE_ITO["green"], "dot", "diamond"),
    "hidden, mlp severed": Style(OKABE_ITO["orange"], "longdash", "triangle-up"),
    "hidden, attention severed": Style(OKABE_ITO["sky"], "dashdot", "x"),
    "embedding": Style(OKABE_ITO["purple"], "longdashdot", "star"),
    "bias": Style(NEUTRAL, "dot", "cross"),
    "subject": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "other": Style(OKABE_ITO["sky"], "dot", "diamond"),
    # Before and after edits: grey recedes, blue is what is there now.
    "before": Style(NEUTRAL, "dot", "circle-open"),
    "now": Style(OKABE_ITO["blue"], "solid", "circle"),
}
PATTERNS = {"mlp": "/", "attention": ".", "embedding": "x", "now": "/"}
"""Patterns of bars, for those who cannot tell their colours; parts that are not named have none."""
# Black and yellow are left out: one is lost on a dark page, the other on a white one.
_COLOURS = tuple(OKABE_ITO[name] for name in ("green", "sky", "orange", "purple", "vermillion", "blue"))
_DASHES = ("dashdot", "longdashdot", "longdash", "dot", "dash", "solid")
_SYMBOLS = ("x", "star", "triangle-down", "cross", "hexagon", "pentagon")


def label(method: str) -> str:
    """The method's name as readers know it; escaped, because plotly reads HTML in text."""
    return escape(title(method))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method: fixed for the well-known ones, distinct for the others in order of appearance."""
    chosen: dict[str, Style] = {}
    others = 0
    for method in methods:
        if key(method) in _KNOWN:
            chosen[method] = _KNOWN[key(method)]
        elif method not in chosen:
            i, shift = others % len(_COLOURS), others // len(_COLOURS)
            chosen[method] = Style(
                _COLOURS[i], _DASHES[(i + shift) % len(_DASHES)], _SYMBOLS[(i + shift) % len(_SYMBOLS)]
            )
            others += 1
    return chosen


def part_styles(parts: Iterable[str]) -> dict[str, Style]:
    """A style for each part of a model, kind of restored state, or state ("before", "now"); distinct for others."""
    names = list(dict.fromkeys(parts))
    others = styles(name for name in names if name not in _PARTS)
    return {name: _PARTS.get(name) or others[name] for name in names}


def plain(text: object, longest: int = 60) -> str:
    """Text from outside as it may stand in a figure: cut to `longest` characters, no markup, no formulas, no line ends."""
    shown = str(text).replace("\n", "⏎").replace("\t", " ").strip(" ") or "␣"
    shown = shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"
    return escape(shown, quote=False).replace("$", "&#36;")  # plotly takes what stands between $ for TeX


def left_of(labels: Iterable[str]) -> int:
    """Pixels that the longest of `labels` takes left of the axes, its axis' title included; at least `LEFT`."""
    return max(LEFT, 50 + int(6.8 * max(map(len, (unescape(text) for text in labels)), default=0)))


def dress(
    fig: go.Figure, finding: str, caption: str, description: str, height: int = 460, left: int = LEFT
) -> go.Figure:
    """Give a figure its words and the common look; returns the same figure. Axes must be titled with units already.

    `left`: pixels left of the axes, where labels are long; title and caption begin at `LEFT` all the same.
    """
    below = wrap(caption, _CAPTION_WIDTH)
    above = _balanced(finding, _TITLE_WIDTH)
    fig.update_layout(
        template="plotly_white",
        title={"text": "<br>".join(above), "xanchor": "left", "y": 1.0, "yref": "container", "yanchor": "top"}
        | _where(left, len(above)),
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0.0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        margin={"t": 70 + 22 * len(above), "b": 80 + 18 * len(below), "l": left, "r": 45},
        # Beside the figure, not over its title; without the button that would send the data to a company's servers.
        modebar={"orientation": "v", "remove": ["sendChartToCloud", "select2d", "lasso2d"]},
        height=height + 22 * len(above) + 18 * len(below),
        hovermode="x unified",
        meta={"finding": finding, "caption": caption, "description": description},
    )
    fig.update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    fig.add_annotation(
        name="caption", text="<br>".join(below), showarrow=False, align="left", font={"size": 12},
        xref="paper", yref="paper", x=0.0, y=0.0, xanchor="left", yanchor="top", yshift=-58, xshift=LEFT - left,
    )  # fmt: skip
    return fig


def themed(fig: go.Figure, dark: bool) -> go.Figure:
    """A copy for a dark page, or for a light one; colours of lines and bars are readable on both and stay."""
    copy = go.Figure(fig)
    return copy.update_layout(template="plotly_dark" if dark else "plotly_white")


def words(fig: go.Figure) -> dict[str, str]:
    """The figure's finding, caption and description."""
    return dict(fig.layout.meta)


def undressed(fig: go.Figure) -> go.Figure:
    """A copy without title and caption, for a page that sets them as text of its own."""
    copy = go.Figure(fig)
    copy.layout.annotations = [note for note in copy.layout.annotations if note.name != "caption"]
    copy.update_layout(title=None, margin={"t": 40, "b": 60, "l": 70, "r": 20}, height=400)
    return copy


def _balanced(text: str, width: int) -> list[str]:
    # As few lines as `width` allows, of like length: no last word alone.
    lines = wrap(text, width)
    for narrower in range(width - 1, width // 2, -1):
        if len(tried := wrap(text, narrower)) > len(lines):
            break
        lines = tried
    return lines


def _where(left: int, lines: int) -> dict[str, object]:
    top = 14 if lines == 1 else 28  # plotly.js sets a title of several lines one line higher, over the picture's edge
    if left == LEFT:
        return {"x": 0.0, "xref": "paper", "pad": {"t": top}}
    return {"x": 0.0, "xref": "container", "pad": {"l": LEFT, "t": top}}


# Sentences that say what a figure's data show: computed, never assumed, and worded for whichever way it came out.


Values = Mapping[str, float]

_SAID = 4  # methods whose values a sentence holds


@dataclass(frozen=True)
class Verdict:
    """How one measure is judged and worded: `what` is `good` with the methods for which `ok` holds, else `bad`.

    `measure` names the values that follow in brackets, written by `show`. The bounds in `ok` are those of the
    project's main claim (norm at most 1.5 times, 95% of unedited facts, 97% of downstream F1, 95% of the edits).
    """

    what: str
    good: str
    bad: str
    measure: str
    ok: Callable[[float], bool]
    show: Callable[[float], str]

    def sentence(self, ends: Values, edits: str) -> str:
        """One sentence about `ends` (method -> value after `edits` edits; NaN counts as bad)."""
        fine = [label(m) for m, value in ends.items() if self.ok(value)]
        poor = [label(m) for m, value in ends.items() if not self.ok(value)]
        if fine and poor:
            head = f"{self.what} {self.bad} with {listed(poor)}, {self.good} with {listed(fine)}"
        else:
            head = f"{self.what} {self.good if fine else self.bad} with {_all(ends)}"
        return f"{head} ({self.measure} after {edits} edits: {_values(ends, self.show)})"


def _all(ends: Values) -> str:
    return label(next(iter(ends))) if len(ends) == 1 else "every method"


def _values(ends: Values, show: Callable[[float], str]) -> str:
    # Of many methods the two at the ends: the figure and the table hold them all.
    if len(ends) > _SAID and all(math.isfinite(value) for value in ends.values()):
        low, high = (pick(ends, key=ends.__getitem__) for pick in (min, max))
        return f"from {label(low)} {show(ends[low])} to {label(high)} {show(ends[high])}"
    return ", ".join((f"{label(m)} " if len(ends) > 1 else "") + show(value) for m, value in ends.items())


def p_value(p: float) -> str:
    """A p-value with four decimals."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


NORM = Verdict(
    "Edited matrices", "keep near their original norm", "outgrow their norm", "largest ratio", lambda v: v <= 1.5, times
)
UNEDITED = Verdict("Unedited facts", "survive", "get lost", "still right", lambda v: v >= 0.95, percent)
SAME_SUBJECT = Verdict(
    "Other facts about edited subjects", "survive", "get lost", "still right", lambda v: v >= 0.95, percent
)
DOWNSTREAM = Verdict("Downstream skill", "survives", "declines", "F1 of before", lambda v: v >= 0.97, percent)
PERPLEXITY = Verdict(
    "Ordinary text", "is predicted as before", "is predicted worse", "perplexity ratio", lambda v: v <= 1.1, times
)
EFFICACY = Verdict("Edits", "hold", "fail in part", "efficacy", lambda v: v >= 0.95, percent)


def last(frame: pd.DataFrame, column: str) -> tuple[dict[str, float], str]:
    """(method -> value in its last row, "1,000" or "200 to 1,000": how many edits that was after)."""
    rows = frame.sort_values("edits").groupby("method", sort=False).tail(1).set_index("method")
    methods = list(dict.fromkeys(frame["method"]))
    counts = sorted({int(rows.loc[m, "edits"]) for m in methods})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return {m: float(rows.loc[m, column]) for m in methods}, span


def ends_of(values: Values) -> tuple[list[str], list[str]]:
    """The methods with the highest and with the lowest value, each with all that lie within a percentage point of it.

    To name one of those alone would say too much. None is in both; the second is empty where all are in the first.
    """
    most, least = max(values.values()), min(values.values())
    first = [m for m, value in values.items() if value >= most - 0.01]
    return first, [m for m, value in values.items() if value <= least + 0.01 and m not in first]


def probability(edited: Values, natural: float, edits: str) -> str:
    """Is the model surer of what was edited in than of what it learnt?"""
    over = [label(m) for m, value in edited.items() if value > natural]
    if over:
        head = f"The model is surer of edited facts than of natural ones with {listed(over) if len(over) < len(edited) else _all(edited)}"
    else:
        head = f"The model is no surer of edited facts than of natural ones with {_all(edited).replace('every', 'any')}"
    return f"{head} (after {edits} edits: {_values(edited, number)}; natural {number(natural)})"


def cost(steps: Values, seconds: Values) -> str:
    """Which method's targets take the fewest steps; seconds stand beside them, uncompared: they belong to a machine."""
    order = sorted(steps, key=lambda m: steps[m])
    few, many = order[0], order[-1]
    head = f"{label(few)} takes {number(steps[few])} steps per fact ({number(seconds[few])} s)"
    if few == many:
        return head
    saved, other = 1 - steps[few] / steps[many], f"{label(many)} ({number(steps[many])}; {number(seconds[many])} s)"
    return f"{head}, no fewer than {other}" if saved < 0.01 else f"{head}, {percent(saved)} fewer than {other}"


# Parts of the figures of probing, norms and evaluation: checked tables, lines with intervals, maps, words for numbers.


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


# The numbers beside a figure, read from the figure itself, and its words: for readers who cannot see it or want more.


@dataclass(frozen=True, eq=False)
class Described:
    """What a figure says (`finding`, `caption`, `description`, plain text) and its numbers; shown in notebooks as HTML.

    There, heads of columns that name a metric of the glossary have its text on hovering.
    """

    finding: str
    caption: str
    description: str
    table: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.finding}. {self.description}"

    def _repr_html_(self) -> str:
        table = self.table.to_html(escape=True, float_format=lambda value: f"{value:.4g}", na_rep="–", border=0)
        for head, text in hover_texts([*self.table.columns, *self.table.index.names]).items():
            shown = escape(head, quote=False)  # as pandas writes it
            table = table.replace(f"<th>{shown}</th>", f'<th><abbr title="{escape(text)}">{shown}</abbr></th>')
        return (
            f"<p>{escape(self.description)}</p>"
            f"<details><summary>The numbers</summary><div style='max-height: 24em; overflow: auto'>{table}</div></details>"
        )


def describe(fig: go.Figure) -> Described:
    """What the figure says and shows. Raises KetoolsError for a figure that has no words."""
    if not isinstance(fig.layout.meta, dict) or "description" not in fig.layout.meta:
        raise KetoolsError("the figure has no description; expected one of ketools.plots")
    said = {name: unescape(text) for name, text in words(fig).items()}
    return Described(said["finding"], said["caption"], said["description"], numbers(fig))


def numbers(fig: go.Figure) -> pd.DataFrame:
    """The numbers that a figure shows.

    Of a map: a row per y, a column per x (several panels: below each other, the panel first). Else a row per x (of lying
    bars per y) and a column per line or set of bars, with "low" and "high" beside it where it has intervals; where x
    repeats, as in a cloud of points, a row per point. Text is plain, not escaped.
    """
    panels = _panels(fig)
    maps = {panels.get(trace.xaxis or "x", ""): _map(fig, trace) for trace in fig.data if trace.type == "heatmap"}
    if maps:
        return next(iter(maps.values())) if len(maps) == 1 else pd.concat(maps, names=["panel"])
    shown = [trace for trace in fig.data if trace.hoverinfo != "skip"]
    columns: dict[str, pd.Series] = {}
    for trace in shown:
        panel = panels.get(trace.xaxis or "x", "")
        name = unescape(str(trace.name or trace.type))
        _add(columns, f"{panel}: {name}" if panel and panel != name else name, *_values_tables(fig, trace), trace)
    if all(column.index.is_unique for column in columns.values()):
        table = pd.DataFrame(columns)
    else:
        table = pd.concat({name: column.rename_axis("at") for name, column in columns.items()}, names=["series"])
        table = table.rename("value").reset_index()
    first = fig.layout.yaxis if shown and _lying(shown[0]) else fig.layout.xaxis
    return table.rename_axis(unescape(first.title.text or ""), axis=0)


def _panels(fig: go.Figure) -> dict[str, str]:
    # Title of each panel by the name of its x axis; make_subplots names them in order.
    titles = [unescape(note.text) for note in fig.layout.annotations if note.name != "caption" and not note.showarrow]
    axes = sorted(dict.fromkeys(trace.xaxis or "x" for trace in fig.data), key=lambda axis: int(axis[1:] or 1))
    if len(axes) < 2:
        return {}
    of_axis = {
        axis: fig.layout[f"yaxis{axis[1:]}"].title.text or fig.layout[f"xaxis{axis[1:]}"].title.text for axis in axes
    }
    own = {axis: unescape(text or "") for axis, text in of_axis.items()}
    return own | dict(zip(axes, titles, strict=False))


def _map(fig: go.Figure, trace: go.Heatmap) -> pd.DataFrame:
    frame = pd.DataFrame(list(map(list, trace.z)))
    for axis, side, given in (("y", "index", trace.y), ("x", "columns", trace.x)):
        frame = frame.set_axis(_labels(fig, getattr(trace, f"{axis}axis") or axis, given), axis=side)
    return frame.rename_axis(unescape(fig.layout.xaxis.title.text or ""), axis="columns")


def _lying(trace: go.Bar | go.Scatter) -> bool:
    return trace.orientation == "h" or bool(trace.error_x and trace.error_x.array is not None)


def _values_tables(fig: go.Figure, trace: go.Bar | go.Scatter) -> tuple[list[object], list[float]]:
    key, value = ("y", "x") if _lying(trace) else ("x", "y")
    axis = getattr(trace, f"{key}axis") or key
    return _labels(fig, axis, getattr(trace, key)), list(getattr(trace, value))


def _labels(fig: go.Figure, axis: str, places: object) -> list[object]:
    # The texts that stand at the places of an axis.
    found = fig.layout[f"{axis[0]}axis{axis[1:]}"]
    if found.ticktext is None and found.matches:
        found = fig.layout[f"{found.matches[0]}axis{found.matches[1:]}"]
    texts = dict(zip(found.tickvals or (), found.ticktext or (), strict=False))
    shown = [texts.get(at, at) for at in list(places)]
    return [unescape(text) if isinstance(text, str) else text for text in shown]


def _add(
    columns: dict[str, pd.Series], name: str, keys: list[object], values: list[float], trace: go.Bar | go.Scatter
) -> None:
    seen: dict[object, int] = {}
    if _repeats(trace, keys):  # equal labels at different places are different rows
        for i, key in enumerate(keys):
            seen[key] = seen.get(key, 0) + 1
            keys[i] = key if seen[key] == 1 else f"{key} ({seen[key]})"
    columns[name] = pd.Series(values, index=pd.Index(keys, dtype=object), dtype=object).infer_objects()
    if isinstance(trace.meta, dict) and "interval" in trace.meta:
        for place, side in enumerate(("low", "high")):
            ends = [None if row is None else row[place] for row in trace.customdata]
            columns[f"{name}, {side}"] = pd.Series(ends, index=columns[name].index, dtype=float)


def _repeats(trace: go.Bar | go.Scatter, keys: list[object]) -> bool:
    places = list(trace.y if _lying(trace) else trace.x)
    return len(set(places)) == len(places) and len(set(map(str, keys))) < len(keys)
