"""How every figure looks: a palette that colour-blind readers can tell apart, dashes and markers beside it, and words.

A figure carries its text in `fig.layout.meta`: `finding` (also its title), `caption` (also printed below it) and
`description` (what a reader who cannot see it is told).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape, unescape
from textwrap import wrap

import plotly.graph_objects as go

from ketools.runs.names import key, title

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
