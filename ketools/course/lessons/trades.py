"""For lessons 04 and 05: facts against prose. What updates miss of the facts, and how far they move prose, dial by dial."""

from collections.abc import Mapping, Sequence

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.widgets.base import View
from ketools.evaluation.metrics import percent, times
from ketools.norms.drift import KeyBasis
from ketools.plots.drawers import add_line, checked
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined, label

C_LINE, FLAT_LINE, NULL_LINE = "with the covariance", "without it", "null space"
_LOOKS = {
    C_LINE: Style(OKABE_ITO["blue"], "solid", "circle"),
    FLAT_LINE: Style(OKABE_ITO["vermillion"], "dash", "square"),
    NULL_LINE: Style(OKABE_ITO["green"], "dashdot", "diamond"),
}
# Line -> name of its control, and what is written beside it.
_DIALS = {
    C_LINE: ("lambda", "lambda, with C"),
    FLAT_LINE: ("flat", "lambda, without"),
    NULL_LINE: ("free", "free directions"),
}


def _moved(m: Tensor, prose: Tensor, weight: Tensor, covariance: Tensor) -> float:
    # Delta = m X^T moves prose by tr(m (X^T C X) m^T), relative to tr(W C W^T).
    whole = ((weight @ covariance) * weight).sum()
    return float((((m @ prose) * m).sum() / whole).sqrt())


def trade_off(
    keys: Tensor, residuals: Tensor, weight: Tensor, covariance: Tensor, lambdas: Sequence[float]
) -> pd.DataFrame:
    """The closed form with many weights lambda of what is protected: with C, and with the identity of the same trace.

    K1 (d_mlp, n), R (d_model, n), W (d_model, d_mlp), C (d_mlp, d_mlp), float64. Columns: line, dial (lambda), missed
    (||Delta K1 - R|| / ||R||), moved (sqrt(E ||Delta k||^2 / E ||W k||^2) over the texts behind C). After X = C^-1 K1
    all is n x n: Delta = R (lambda I + K1^T X)^-1 X^T.
    """
    unit = covariance.trace() / len(covariance)
    forms = {C_LINE: torch.linalg.solve(covariance, keys), FLAT_LINE: keys / unit}
    rows = []
    for name, x in forms.items():
        gram, prose = keys.T @ x, x.T @ covariance @ x
        for value in lambdas:
            m = torch.linalg.solve(gram.T + value * torch.eye(len(gram), dtype=gram.dtype), residuals.T).T
            missed = float((m @ gram.T - residuals).norm() / residuals.norm())
            rows.append((name, float(value), missed, _moved(m, prose, weight, covariance)))
    return pd.DataFrame(rows, columns=["line", "dial", "missed", "moved"])


def null_update(keys: Tensor, residuals: Tensor, basis: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """AlphaEdit's Delta = left right^T in the span of the orthonormal `basis` U (d_mlp, r): (left, right), float64.

    Minimises ||Delta K1 - R||^2 + l2 ||Delta||^2 over Delta = Delta U U^T.
    """
    x = basis @ (basis.T @ keys)  # P K1
    inner = keys.T @ x + l2 * torch.eye(keys.shape[1], dtype=keys.dtype)
    return torch.linalg.solve(inner, residuals.T).T, x


def null_trade_off(
    keys: Tensor,
    residuals: Tensor,
    weight: Tensor,
    covariance: Tensor,
    found: KeyBasis,
    sizes: Sequence[int],
    l2: float,
) -> pd.DataFrame:
    """The null-space update with more and more of C's weakest directions free; columns as in `trade_off`, dial: how many."""
    rows = []
    for size in sizes:
        left, right = null_update(keys, residuals, found.vectors[:, :size], l2)
        missed = float((left @ (right.T @ keys) - residuals).norm() / residuals.norm())
        rows.append((NULL_LINE, int(size), missed, _moved(left, right.T @ covariance @ right, weight, covariance)))
    return pd.DataFrame(rows, columns=["line", "dial", "missed", "moved"])


def trade_lines(
    frame: pd.DataFrame, finding: str, context: str, *, stars: Mapping[str, tuple[float, float]], caption: str
) -> go.Figure:
    """What the facts miss over how far prose moves: a line a kind of protection, a point a setting of its dial.

    stars: name -> (moved, missed), settings in use. finding: the title, computed by the caller.
    """
    frame = checked(frame, "line", "dial", "missed", "moved", of="lessons.trades", least=2)
    fig, said = go.Figure(), []
    for name, mine in frame.groupby("line", sort=False):
        add_line(fig, mine["moved"].tolist(), mine["missed"].tolist(), str(name), _LOOKS[str(name)])
        least, most = mine.loc[mine["moved"].idxmin()], mine.loc[mine["moved"].idxmax()]
        said.append(
            f"{name}: missed {least['missed']:.2f} where prose moves {least['moved']:.3f}, {most['missed']:.2f} where it "
            f"moves {most['moved']:.3f}"
        )
    symbols = ("star", "star-square", "star-diamond", "star-triangle-up")
    for symbol, (name, (x, y)) in zip(symbols, stars.items(), strict=False):
        fig.add_scatter(
            x=[x], y=[y], mode="markers", name=name, hovertemplate=f"{name}: moved %{{x:.3f}}, missed %{{y:.3f}}<extra></extra>",
            marker={"color": NEUTRAL, "symbol": symbol, "size": 15},
        )  # fmt: skip
    fig.update_xaxes(title="how far prose moves (share of the matrix' output)", rangemode="tozero")
    fig.update_yaxes(title="what the facts miss (% of R)", tickformat=".0%", range=[-0.04, 1.04])
    fig = dress(fig, finding, joined(caption, context), f"Lines. {'; '.join(said)}.")
    return fig.update_layout(hovermode="closest")


def turned(
    keys: Tensor, residuals: Tensor, weight: Tensor, covariance: Tensor, basis: KeyBasis, lam: float, l2: float
) -> pd.DataFrame:
    """Both dials over their whole range: MEMIT's lambda around `lam`, AlphaEdit's number of free directions up to all.

    Shapes and columns as in `trade_off`; lines C_LINE and NULL_LINE.
    """
    d, r = len(covariance), basis.null
    priced = trade_off(keys, residuals, weight, covariance, (lam * np.logspace(-4, 3, 15)).tolist())
    sizes = sorted({max(1, r * i // 8) for i in range(1, 9)} | {r + (d - r) * i // 6 for i in range(1, 7)})
    ruled = null_trade_off(keys, residuals, weight, covariance, basis, sizes, l2)
    return pd.concat([priced[priced["line"] == C_LINE], ruled], ignore_index=True)


def cost_lines(frame: pd.DataFrame, table: pd.DataFrame, context: str) -> go.Figure:
    """The frame of `turned`, and the methods' own settings in it: `table` has a row a method, with moved and missed."""
    stars = {label(str(name)): (row["moved"], row["missed"]) for name, row in table.iterrows()}
    alpha, memit = table.loc["alphaedit"], table.loc["memit"]
    finding = (
        f"At their own settings AlphaEdit moves prose {times(alpha['moved'] / memit['moved'])} as far as MEMIT and misses "
        f"{percent(alpha['missed'])} of the facts against {percent(memit['missed'])}"
    )
    caption = "Lines: MEMIT's lambda, and AlphaEdit's number of free directions; signs: the methods' own settings."
    return trade_lines(frame, finding, context, stars=stars, caption=caption)


class TradeDial(View):
    """A dial for each line of a trade-off that was computed before: what the facts miss and how far prose moves there."""

    kind, title, height = "trade", "Trade-off dial", 400

    def __init__(self, frame: pd.DataFrame, *, context: str = "") -> None:
        """`frame`: of `trade_off`, `null_trade_off` or `turned`; `context` (mode, model, n, seed) ends the caption."""
        self.frame = checked(frame, "line", "dial", "missed", "moved", of="lessons.trades", least=2)
        self.context, self._of = context, {}
        style, wide = {"description_width": "8rem"}, W.Layout(width="min(30rem, 100%)")
        for line, mine in frame.groupby("line", sort=False):
            name, said = _DIALS[str(line)]
            options = [(_setting(value), value) for value in sorted(mine["dial"])]
            self._of[name] = (str(line), W.SelectionSlider(
                options=options, value=options[len(options) // 2][1], description=said, continuous_update=False, style=style,
                layout=wide,
            ))  # fmt: skip
        super().__init__({name: slider for name, (_, slider) in self._of.items()}, [list(self._of)])
        self._listen(*self._of)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The chosen point of each line: line, dial, missed, moved."""
        rows = [
            self.frame[(self.frame["line"] == line) & (self.frame["dial"] == slider.value)]
            for line, slider in self._of.values()
        ]
        return pd.concat(rows, ignore_index=True)

    def figure(self) -> go.Figure:
        """The lines of `trade_lines` with the chosen points on them."""
        rows = list(self.data.itertuples())
        said = [
            f"{row.line}: prose moves by {row.moved:.3f}, {percent(row.missed)} of the facts is missed" for row in rows
        ]
        stars = {f"chosen, {row.line}": (row.moved, row.missed) for row in rows}
        caption = "Each point a setting of its line's dial."
        said[0] = said[0][0].upper() + said[0][1:]
        return trade_lines(self.frame, "; ".join(said), self.context, stars=stars, caption=caption)


def _setting(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
