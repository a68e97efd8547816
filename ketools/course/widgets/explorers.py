"""Explorers of precomputed tables: the ENCORE dial over a grid of runs, and causal traces."""

import math

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.widgets.base import View, dropdown, slider
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric
from ketools.plots import trace_heat
from ketools.plots.drawers import checked, gaps
from ketools.plots.probing import RESTORED
from ketools.plots.style import MAGNITUDE, NEUTRAL, OKABE_ITO, dress, joined, numbers
from ketools.runs.sweep import ALL_STEPS

MEASURES = (
    *("unedited_kept", "same_subject_kept", "downstream_kept", "efficacy", "paraphrase", "neighbourhood", "norm_ratio"),
    *("perplexity_ratio", "p_edited", "steps_mean", "seconds_per_edit"),
)
"""The measures that the map can show."""
_X, _Y = "efficacy", "unedited_kept"
_HOLDING = 0.95  # of the grid's highest efficacy
_ALL = ""  # not None, which a dropdown shows as no choice; no fact has an empty id
_COLUMNS = ("fact", "kind", "layer", "position", "token", "role", "effect", "p", "p_clean", "p_corrupted")


class EncoreDial(View):
    """Turn ENCORE's two knobs; see what the edits achieve and cost, compared with every other pair of settings."""

    kind, title, height = "dial", "ENCORE dial", 420

    def __init__(self, grid: pd.DataFrame, *, context: str = "") -> None:
        """`grid`: a row per pair of settings, from `ketools.runs.sweep.stored`; `context` (mode, model, n, seed) ends the caption.

        Raises KetoolsError for another table, an empty one, or one with a pair of settings twice.
        """
        checked(grid, "lambda_n", "patience", _X, _Y, of="runs.sweep.stored")
        if grid.duplicated(["lambda_n", "patience"]).any():
            raise KetoolsError("the grid has a pair of lambda_n and patience twice; give the runs of one seed")
        self.grid, self.context = grid, context
        self._weights = sorted(set(grid["lambda_n"].astype(float)))
        self._steps = sorted(set(grid["patience"].astype(int)), key=lambda n: math.inf if n == ALL_STEPS else n)
        offered = [(metric(key).label, key) for key in MEASURES if key in grid and grid[key].notna().any()]
        size = {"width": "30rem", "indent": "8rem"}
        controls = {
            "lambda_n": slider(
                "lambda_n", [(f"{v:g}", v) for v in self._weights], self._weights[len(self._weights) // 2], **size
            ),
            "patience": slider(
                "patience", [(_steps(n), n) for n in self._steps], self._steps[len(self._steps) // 2], **size
            ),
            "measure": dropdown(
                "map shows", offered, _Y if grid[_Y].notna().any() else _X, width="min(30rem, 100%)", indent="8rem"
            ),
        }
        super().__init__(controls, [["lambda_n", "patience"], ["measure"]])
        self._listen(*controls)
        self.refresh()

    @property
    def chosen(self) -> pd.Series | None:
        """The grid's row at the present settings; None if that pair was not run."""
        at = (self.grid["lambda_n"] == self.controls["lambda_n"].value) & (
            self.grid["patience"] == self.controls["patience"].value
        )
        return self.grid[at].iloc[0] if at.any() else None

    @property
    def data(self) -> pd.DataFrame:
        """The map: the chosen measure, a row per patience (ALL_STEPS last), a column per lambda_n; NaN where there is no run."""
        table = self.grid.pivot(index="patience", columns="lambda_n", values=self.controls["measure"].value)
        return table.reindex(index=self._steps, columns=self._weights)

    def figure(self) -> go.Figure:
        """Left: every pair of settings by efficacy and retention. Right: the chosen measure as a map."""
        measure = metric(self.controls["measure"].value)
        name = measure.label
        fig = make_subplots(
            1, 2, column_widths=[0.42, 0.58], horizontal_spacing=0.13, subplot_titles=["each point a run", name]
        )
        left, right = {"row": 1, "col": 1}, {"row": 1, "col": 2}
        fig.add_scatter(
            x=gaps(self.grid[_X]),
            y=gaps(self.grid[_Y]),
            mode="markers",
            name="all pairs",
            showlegend=False,
            customdata=[[f"{row.lambda_n:g}", _steps(int(row.patience))] for row in self.grid.itertuples()],
            marker={"color": NEUTRAL, "size": 9},
            hovertemplate="lambda_n %{customdata[0]}, patience %{customdata[1]}<br>"
            "ES %{x:.1%}, unedited %{y:.1%}<extra></extra>",
            **left,
        )
        if (row := self.chosen) is not None:
            ring = {"color": OKABE_ITO["vermillion"], "size": 16, "symbol": "circle-open", "line": {"width": 3}}
            at = {"x": gaps([row[_X]]), "y": gaps([row[_Y]]), "mode": "markers", "name": "chosen"}
            fig.add_scatter(**at, showlegend=False, marker=ring, hoverinfo="skip", **left)
        z = self.data.to_numpy(dtype=float)
        fig.add_heatmap(
            z=[gaps(values) for values in z],
            x=list(range(z.shape[1])),
            y=list(range(z.shape[0])),
            colorscale=MAGNITUDE,
            showscale=False,
            xgap=2,
            ygap=2,
            text=[[measure.format(value) for value in values] for values in z],
            texttemplate="%{text}",
            hovertemplate="%{text}<extra></extra>",
            name="map",
            **right,
        )
        x, y = self._weights.index(self.controls["lambda_n"].value), self._steps.index(self.controls["patience"].value)
        frame = {"color": OKABE_ITO["vermillion"], "width": 4}
        fig.add_shape(x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=frame, **right)
        # Give the axis some range even if all points are at one height.
        reach, kept = None, self.grid[_Y].dropna()
        if len(kept):
            low, high = float(kept.min()), float(kept.max())
            room = max(high - low, 0.1)
            reach = [low - 0.1 * room if high - low > 0.1 else high - 0.1, high + 0.1 * room]
        fig.update_xaxes(title=metric(_X).axis, tickformat=".0%", **left)
        fig.update_yaxes(title=metric(_Y).axis, tickformat=".0%", range=reach, **left)
        for update, text, ticks in (
            (fig.update_xaxes, "lambda_n (times the mean eigenvalue of C)", [f"{v:g}" for v in self._weights]),
            (fig.update_yaxes, "patience (steps)", [_steps(n) for n in self._steps]),
        ):
            update(title=text, tickvals=list(range(len(ticks))), ticktext=ticks, tickmode="array", **right)
        caption = "Each pair is a separate run on the same facts; the ring and the frame mark the chosen one."
        rows = "; ".join(
            f"patience {_steps(n)}: " + ", ".join(f"{v:g} {measure.format(self.data.loc[n, v])}" for v in self._weights)
            for n in self._steps
        )
        text = f"Points of all pairs, and a map of {name} by patience and lambda_n. {rows}."
        return dress(fig, self._finding(), joined(caption, self.context), text, 380).update_layout(hovermode="closest")

    def _finding(self) -> str:
        at = f"lambda_n {self.controls['lambda_n'].value:g}, patience {_steps(self.controls['patience'].value)}"
        row = self.chosen
        if row is None:
            return f"No run with {at}"
        key = self.controls["measure"].value
        shown = [metric(k) for k in dict.fromkeys((_X, key)) if k in row]
        values = ", ".join(f"{each.label} {each.format(row[each.key])}" for each in shown)
        measure, found = metric(key), self.grid[key]
        good = {"higher": found, "lower": -found, "near 1": -(found - 1).abs()}.get(measure.better)
        if good is None or not found.notna().any():
            return f"{at}: {values}"
        # An edit that writes nothing breaks nothing, so only pairs with nearly the highest efficacy may win.
        holds = self.grid[_X] >= _HOLDING * self.grid[_X].max()
        best = self.grid.loc[good[holds].idxmax()]
        if row[key] == best[key]:
            return f"{at}: {values}; no pair whose edits hold does better"
        where = f"lambda_n {best['lambda_n']:g}, patience {_steps(int(best['patience']))}"
        return f"{at}: {values}; best where edits hold: {where} ({measure.format(best[key])})"


def _steps(patience: int) -> str:
    return "all steps" if patience == ALL_STEPS else f"+{patience}"


class TraceExplorer(View):
    """See which states carry a fact: a map of layers by tokens for each kind of restored state, with values on hover."""

    kind, title, height = "tracer", "Trace explorer", 300

    def __init__(self, frame: pd.DataFrame, *, context: str = "") -> None:
        """`frame`: from `probing.tracing.trace` at="each"; `context` (mode, model, seed) ends the caption.

        Raises KetoolsError for another table, an empty one, or a trace that restored several positions together.
        """
        checked(frame, *_COLUMNS, of="probing.tracing.trace")
        if (frame["position"] < 0).any():
            raise KetoolsError('the trace restored several positions together; the explorer needs one with at="each"')
        self.frame, self.context = frame, context
        facts = list(dict.fromkeys(frame["fact"]))
        every = [(f"mean over {len(facts)} facts, by part of the prompt", _ALL)] if len(facts) > 1 else []
        tokens = frame.drop_duplicates(["fact", "position"]).sort_values("position")
        spelt = {fact: "".join(tokens.loc[tokens["fact"] == fact, "token"]).strip() for fact in facts}
        kinds = [(RESTORED[kind][0], kind) for kind in dict.fromkeys(map(str, frame["kind"]))]
        layers = sorted({int(layer) for layer in frame["layer"]})
        prompts = [(f"{text} ({fact})", fact) for fact, text in spelt.items()]
        controls = {
            "fact": dropdown("fact", [*prompts, *every], facts[0], width="min(34rem, 100%)"),
            "kind": dropdown("restored", [("all kinds, side by side", _ALL), *kinds], width="20rem"),
            "layers": W.IntRangeSlider(
                value=(layers[0], layers[-1]),
                min=layers[0],
                max=layers[-1],
                description="layers",
                style={"description_width": "6rem"},
                continuous_update=False,
                layout=W.Layout(width="min(34rem, 100%)"),
            ),
        }
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
        """Maps of the effect, layers by tokens; over several facts, layers by parts of the prompt."""
        return trace_heat(self.data, context=self.context)

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        return numbers(fig)

    def _height(self, fig: go.Figure) -> int:
        return max(self.height, 130 + 26 * len(fig.data[0].y))  # rows stay readable however long the prompt
