"""For lessons 04 and 05: facts against background text. What updates miss of the facts, and how far they move the text."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.widgets.base import View, slider
from ketools.evaluation.metrics import percent, times
from ketools.plots.drawers import add_line, checked
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined

C_LINE, FLAT_LINE, NULL_LINE, RANDOM_LINE = "with the covariance", "without it", "null space", "random space"
_LOOKS = {
    C_LINE: Style(OKABE_ITO["blue"], "solid", "circle"),
    FLAT_LINE: Style(OKABE_ITO["vermillion"], "dash", "square"),
    NULL_LINE: Style(OKABE_ITO["green"], "dashdot", "diamond"),
    RANDOM_LINE: Style(OKABE_ITO["vermillion"], "dot", "x"),
}
# Line -> name of its control, and what is written beside it.
_DIALS = {
    C_LINE: ("lambda_p", "lambda_p, with C"),
    FLAT_LINE: ("flat", "lambda_p, without"),
    NULL_LINE: ("ridge", "ridge, null space"),
    RANDOM_LINE: ("random", "ridge, random"),
}


def _curve(
    name: str, x: Tensor, keys: Tensor, residuals: Tensor, weight: Tensor, covariance: Tensor, values: Sequence[float]
) -> pd.DataFrame:
    # Delta = R (value I + K1^T X)^-1 X^T for each value: all is n x n, since Delta = m X^T moves text by tr(m (X^T C X) m^T).
    gram, text, whole = keys.T @ x, x.T @ covariance @ x, ((weight @ covariance) * weight).sum()
    rows = []
    for value in values:
        m = torch.linalg.solve(gram.T + value * torch.eye(len(gram), dtype=gram.dtype), residuals.T).T
        missed = float((m @ gram.T - residuals).norm() / residuals.norm())
        rows.append((name, float(value), missed, float((((m @ text) * m).sum() / whole).sqrt())))
    return pd.DataFrame(rows, columns=["line", "dial", "missed", "moved"])


def trade_off(
    keys: Tensor, residuals: Tensor, weight: Tensor, covariance: Tensor, lambdas: Sequence[float]
) -> pd.DataFrame:
    """MEMIT's closed form with many lambda_p: with C, and with the identity of the same trace in its place.

    K1 (d_mlp, n), R (d_model, n), W (d_model, d_mlp), C (d_mlp, d_mlp), float64. Columns: line, dial (lambda_p), missed
    (||Delta K1 - R|| / ||R||), moved (sqrt(E ||Delta k||^2 / E ||W k||^2) over the texts behind C).
    """
    given, unit = (keys, residuals, weight, covariance, lambdas), covariance.trace() / len(covariance)
    with_c = _curve(C_LINE, torch.linalg.solve(covariance, keys), *given)
    return pd.concat([with_c, _curve(FLAT_LINE, keys / unit, *given)], ignore_index=True)


def null_trade_off(
    keys: Tensor,
    residuals: Tensor,
    weight: Tensor,
    covariance: Tensor,
    basis: Tensor,
    ridges: Sequence[float],
    line: str,
) -> pd.DataFrame:
    """AlphaEdit's update in the span of the orthonormal `basis` U (d_mlp, r) with many ridges; columns as in `trade_off`."""
    return _curve(line, basis @ (basis.T @ keys), keys, residuals, weight, covariance, ridges)


def moved_at(frame: pd.DataFrame, line: str, missed: float) -> float:
    """How far background text moves on `line` where it misses `missed` of the facts, interpolated."""
    rows = frame[frame["line"] == line].sort_values("missed")
    return float(np.interp(missed, rows["missed"], rows["moved"]))


def trade_lines(
    frame: pd.DataFrame, finding: str, context: str, *, stars: Mapping[str, tuple[float, float]], caption: str
) -> go.Figure:
    """What the facts miss over how far background text moves: a line a kind of protection, a point a setting of its dial.

    stars: name -> (moved, missed), settings in use. finding: the title, computed by the caller.
    """
    frame = checked(frame, "line", "dial", "missed", "moved", of="lessons.trades", least=2)
    fig, said = go.Figure(), []
    for name, mine in frame.groupby("line", sort=False):
        add_line(fig, mine["moved"].tolist(), mine["missed"].tolist(), str(name), _LOOKS[str(name)])
        least, most = mine.loc[mine["moved"].idxmin()], mine.loc[mine["moved"].idxmax()]
        said.append(
            f"{name}: missed {least['missed']:.2f} where text moves {least['moved']:.3f}, {most['missed']:.2f} where it "
            f"moves {most['moved']:.3f}"
        )
    symbols = ("star", "star-square", "star-diamond", "star-triangle-up")
    for symbol, (name, (x, y)) in zip(symbols, stars.items(), strict=False):
        fig.add_scatter(
            x=[x], y=[y], mode="markers", name=name, hovertemplate=f"{name}: moved %{{x:.3f}}, missed %{{y:.3f}}<extra></extra>",
            marker={"color": NEUTRAL, "symbol": symbol, "size": 15},
        )  # fmt: skip
    fig.update_xaxes(title="how far background text moves (share of the matrix's output)", rangemode="tozero")
    fig.update_yaxes(title="what the facts miss (% of R)", tickformat=".0%", range=[-0.04, 1.04])
    fig = dress(fig, finding, joined(caption, context), f"Lines. {'; '.join(said)}.")
    return fig.update_layout(hovermode="closest")


def cost_lines(frame: pd.DataFrame, own: Mapping[str, tuple[float, float]], context: str) -> go.Figure:
    """Lines of `trade_off` and `null_trade_off`, with `own`: the methods' own settings, name -> (moved, missed)."""
    missed = own["MEMIT"][1]
    memit, null, random = (moved_at(frame, line, missed) for line in (C_LINE, NULL_LINE, RANDOM_LINE))
    finding = (
        f"Missing as much as MEMIT ({percent(missed)}), AlphaEdit moves background text {times(null / memit)} as far, "
        f"in a random space {times(random / memit)}"
    )
    caption = "Lines: MEMIT's lambda_p, AlphaEdit's ridge; stars: the methods' own settings."
    return trade_lines(frame, finding, context, stars=own, caption=caption)


class TradeDial(View):
    """A dial for each line of a trade-off that was computed before: what the facts miss and how far background text moves there."""

    kind, title, height = "trade", "Trade-off dial", 400

    def __init__(self, frame: pd.DataFrame, *, context: str = "") -> None:
        """`frame`: of `trade_off` or `null_trade_off`; `context` (mode, model, n, seed) ends the caption."""
        self.frame = checked(frame, "line", "dial", "missed", "moved", of="lessons.trades", least=2)
        self.context, self._of = context, {}
        for line, mine in frame.groupby("line", sort=False):
            name, said = _DIALS[str(line)]
            options = [(_setting(value), value) for value in sorted(mine["dial"])]
            middle = options[len(options) // 2][1]
            self._of[name] = (str(line), slider(said, options, middle, width="30rem", indent="8rem"))
        super().__init__({name: control for name, (_, control) in self._of.items()}, [list(self._of)])
        self._listen(*self._of)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The chosen point of each line: line, dial, missed, moved."""
        rows = [
            self.frame[(self.frame["line"] == line) & (self.frame["dial"] == control.value)]
            for line, control in self._of.values()
        ]
        return pd.concat(rows, ignore_index=True)

    def figure(self) -> go.Figure:
        """The lines of `trade_lines` with the chosen points on them."""
        rows = list(self.data.itertuples())
        said = [
            f"{row.line}: text moves by {row.moved:.3f}, {percent(row.missed)} of the facts is missed" for row in rows
        ]
        stars = {f"chosen, {row.line}": (row.moved, row.missed) for row in rows}
        caption = "Each point a setting of its line's dial."
        said[0] = said[0][0].upper() + said[0][1:]
        return trade_lines(self.frame, "; ".join(said), self.context, stars=stars, caption=caption)


def _setting(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
