"""The trace explorer: causal traces that were computed before, fact by fact and kind by kind."""

from __future__ import annotations

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.course.widgets.base import View
from ketools.errors import KetoolsError
from ketools.plots import trace_heat
from ketools.plots.drawers import checked
from ketools.plots.probing import named
from ketools.plots.style import numbers

_OF = "probing.tracing.trace"
_ALL = ""  # not None, which a dropdown shows as no choice at all; no fact has an empty id
_COLUMNS = ("fact", "kind", "layer", "position", "token", "role", "effect", "p", "p_clean", "p_corrupted")


class TraceExplorer(View):
    """Which state carries a fact: a map of layers by tokens for each kind of restored state; hover for token and effect."""

    kind, title, height = "tracer", "Trace explorer", 300

    def __init__(self, frame: pd.DataFrame, *, context: str = "") -> None:
        """`frame`: from `probing.tracing.trace` at="each"; `context` (mode, model, seed) ends the caption.

        Raises KetoolsError for another table, an empty one, or one that restored several positions together.
        """
        checked(frame, *_COLUMNS, of=_OF)
        if (frame["position"] < 0).any():
            raise KetoolsError('the trace restored several positions together; the explorer needs one with at="each"')
        self.frame, self.context = frame, context
        facts = list(dict.fromkeys(frame["fact"]))
        every = [(f"mean over {len(facts)} facts, by part of the prompt", _ALL)] if len(facts) > 1 else []
        kinds = list(dict.fromkeys(map(str, frame["kind"])))
        layers = sorted({int(layer) for layer in frame["layer"]})
        style = {"description_width": "6rem"}
        controls = {
            "fact": W.Dropdown(
                options=[*((_spelt(frame, fact), fact) for fact in facts), *every],
                value=facts[0], description="fact", style=style, layout=W.Layout(width="min(34rem, 100%)"),
            ),
            "kind": W.Dropdown(
                options=[("all kinds, side by side", _ALL), *((named(kind), kind) for kind in kinds)],
                value=_ALL, description="restored", style=style, layout=W.Layout(width="20rem"),
            ),
            "layers": W.IntRangeSlider(
                value=(layers[0], layers[-1]), min=layers[0], max=layers[-1], description="layers", style=style,
                continuous_update=False, layout=W.Layout(width="min(34rem, 100%)"),
            ),
        }  # fmt: skip
        super().__init__(controls, [["fact", "kind"], ["layers"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The rows of the trace in the picture: those of the chosen fact (or all), kind (or all) and layers."""
        fact, kind, (low, high) = (self.controls[name].value for name in ("fact", "kind", "layers"))
        rows = self.frame[self.frame["layer"].between(low, high)]
        rows = rows if fact == _ALL else rows[rows["fact"] == fact]
        return rows if kind == _ALL else rows[rows["kind"] == kind]

    def figure(self) -> go.Figure:
        """Maps of the effect, layers by tokens; over several facts by the tokens' part in the prompt."""
        return trace_heat(self.data, context=self.context)

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        return numbers(fig)

    def _height(self, fig: go.Figure) -> int:
        return max(self.height, 130 + 26 * len(fig.data[0].y))  # rows stay readable however long the prompt


def _spelt(frame: pd.DataFrame, fact: str) -> str:
    rows = frame[frame["fact"] == fact].drop_duplicates("position").sort_values("position")
    return f"{''.join(rows['token']).strip()} ({fact})"
