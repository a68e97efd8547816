"""How every figure looks: a palette that colour-blind readers can tell apart, dashes and markers beside it, and words.

A figure carries its text in `fig.layout.meta`: `finding` (also its title), `caption` (also printed below it) and
`description` (what a reader who cannot see it is told).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import plotly.graph_objects as go

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


@dataclass(frozen=True)
class Style:
    """How one method is drawn, the same in every figure: colour, dash of its line, symbol of its points."""

    colour: str
    dash: str
    symbol: str


_LABELS = {
    "memit": "MEMIT",
    "sequential-memit": "MEMIT, sequential",
    "alphaedit": "AlphaEdit",
    "encore": "ENCORE",
    "rome": "ROME",
    "r-rome": "R-ROME",
    "emmet": "EMMET",
}
_KNOWN = {
    "memit": Style(OKABE_ITO["vermillion"], "dash", "square"),
    "sequential-memit": Style(OKABE_ITO["orange"], "longdash", "triangle-up"),
    "alphaedit": Style(OKABE_ITO["purple"], "dot", "diamond"),
    "encore": Style(OKABE_ITO["blue"], "solid", "circle"),
}
# Black and yellow are left out: one is lost on a dark page, the other on a white one.
_COLOURS = tuple(OKABE_ITO[name] for name in ("green", "sky", "orange", "purple", "vermillion", "blue"))
_DASHES = ("dashdot", "longdashdot", "longdash", "dot", "dash", "solid")
_SYMBOLS = ("x", "star", "triangle-down", "cross", "hexagon", "pentagon")


def label(method: str) -> str:
    """The method's name as readers know it; escaped, because plotly reads HTML in text."""
    return _LABELS.get(_key(method), escape(str(method)))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method: fixed for the well-known ones, distinct for the others in order of appearance."""
    chosen: dict[str, Style] = {}
    others = 0
    for method in methods:
        if _key(method) in _KNOWN:
            chosen[method] = _KNOWN[_key(method)]
        elif method not in chosen:
            i, shift = others % len(_COLOURS), others // len(_COLOURS)
            chosen[method] = Style(
                _COLOURS[i], _DASHES[(i + shift) % len(_DASHES)], _SYMBOLS[(i + shift) % len(_SYMBOLS)]
            )
            others += 1
    return chosen


def dress(fig: go.Figure, finding: str, caption: str, description: str, height: int = 460) -> go.Figure:
    """Give a figure its words and the common look; returns the same figure. Axes must be titled with units already."""
    below = wrap(caption, _CAPTION_WIDTH)
    above = wrap(finding, _TITLE_WIDTH)
    fig.update_layout(
        template="plotly_white",
        title={"text": "<br>".join(above), "x": 0.0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top"},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0.0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        margin={"t": 70 + 22 * len(above), "b": 80 + 18 * len(below), "l": 70, "r": 45},
        # Beside the figure, not over its title; without the button that would send the data to a company's servers.
        modebar={"orientation": "v", "remove": ["sendChartToCloud", "select2d", "lasso2d"]},
        height=height + 22 * len(above) + 18 * len(below),
        hovermode="x unified",
        meta={"finding": finding, "caption": caption, "description": description},
    )
    fig.update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    fig.add_annotation(
        name="caption", text="<br>".join(below), showarrow=False, align="left", font={"size": 12},
        xref="paper", yref="paper", x=0.0, y=0.0, xanchor="left", yanchor="top", yshift=-58,
    )  # fmt: skip
    return fig


def words(fig: go.Figure) -> dict[str, str]:
    """The figure's finding, caption and description."""
    return dict(fig.layout.meta)


def undressed(fig: go.Figure) -> go.Figure:
    """A copy without title and caption, for a page that sets them as text of its own."""
    copy = go.Figure(fig)
    copy.layout.annotations = [note for note in copy.layout.annotations if note.name != "caption"]
    copy.update_layout(title=None, margin={"t": 40, "b": 60, "l": 70, "r": 20}, height=400)
    return copy


def listed(items: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _key(method: str) -> str:
    return str(method).lower().replace("_", "-")
