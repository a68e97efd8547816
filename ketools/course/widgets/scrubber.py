"""The lifelong scrubber: two stored runs side by side, at any point of their edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.widgets.base import View
from ketools.plots import stack
from ketools.plots.drawers import EDITS, LAYER, add_line, checked, gaps, layer_axis
from ketools.plots.lifelong import Tables
from ketools.plots.style import NEUTRAL, Style, dress, label, percent, styles, times
from ketools.runs.records import title

_METRICS = {
    "ES": "efficacy",
    "PS": "paraphrases",
    "NS": "neighbours",
    "unedited_kept": "unedited facts",
    "same_subject_kept": "same subject",
    "downstream_kept": "downstream",
}
_SPECTRAL = {
    "spectral_norm": "largest singular value (unit of the weights)",
    "effective_rank": "effective rank (count)",
    "stable_rank": "stable rank (count)",
    "condition": "condition number (ratio)",
}
_BEFORE = Style(NEUTRAL, "dot", "circle-open")


class LifelongScrubber(View):
    """Slide through the edits of two stored runs: norm, metrics and, where they were measured, spectrum and residual shares.

    At each point a run shows its last measurement up to there: norms after every batch, the rest at checkpoints.
    """

    kind, title = "scrubber", "Lifelong scrubber"

    def __init__(self, records: Mapping[str, Tables], *, context: str = "") -> None:
        """`records`: method -> record of a run (`ketools.runs.store.RunRecord`); `context` ends the caption.

        Raises KetoolsError without runs, for runs without norms, and for tables that lack a column.
        """
        self._norms = checked(stack(records, "norms"), "edits", "layer", "edited", "ratio", of="a lifelong run's norms")
        self._points = stack(records, "checkpoints")
        self._spectra = _optional(records, "spectra", ("edits", "layer", *_SPECTRAL))
        self._shares = _optional(records, "residual", ("edits", "layer", "kind", "share"))
        self.context, self.height = context, 400 if self._spectra.empty and self._shares.empty else 700
        controls = _controls(list(records), self._norms)
        super().__init__(
            controls, [["left", "right"], ["layer", "spectral"] if len(self._spectra) else ["layer"], ["edits"]]
        )
        self._listen(*self.controls)
        self.refresh()

    @property
    def methods(self) -> list[str]:
        """The one or two methods shown."""
        return list(dict.fromkeys(self.controls[side].value for side in ("left", "right")))

    @property
    def data(self) -> pd.DataFrame:
        """What the picture shows at the slider: method, edits (of the measurement), panel, item, value.

        Panels: "norm" (item: layer; ratio), "metric" (item: name; fraction), "spectrum" (item: measure of the chosen
        layer's matrix, see `norms.spectra.shape_of`) and "share" (item: layer; share of its MLP in the residual stream).
        """
        layer, parts = self.controls["layer"].value, []
        for method in self.methods:
            at = self._norms["edited"].astype(bool)
            parts.append(_tidy(self._last(self._norms[at], method), "norm", "layer", "ratio"))
            points = self._last(self._points, method)
            shown = [name for name in _METRICS if name in points]
            parts.append(_tidy(_long(points, shown).replace({"item": _METRICS}), "metric", "item", "value"))
            spectrum = self._spectra[self._spectra["layer"] == layer] if len(self._spectra) else self._spectra
            parts.append(_tidy(_long(self._last(spectrum, method), [*_SPECTRAL]), "spectrum", "item", "value"))
            shares = self._shares[self._shares["kind"] == "mlp"] if len(self._shares) else self._shares
            parts.append(_tidy(self._last(shares, method), "share", "layer", "share"))
        return pd.concat([part for part in parts if len(part)], ignore_index=True)

    def figure(self) -> go.Figure:
        """Up to four panels: norm over edits, metrics, spectrum and residual shares at the slider."""
        frame = self.data
        looks = styles(dict.fromkeys(self._norms["method"]))
        layer, rows = self.controls["layer"].value, 1 if self.height == 400 else 2
        titles = [f"norm of layer {layer}", "metrics", f"spectrum of layer {layer}", "MLPs in the residual stream"]
        fig = make_subplots(rows, 2, subplot_titles=titles[: 2 * rows], horizontal_spacing=0.16, vertical_spacing=0.2)
        self._draw_norms(fig, looks)
        self._draw_metrics(fig, looks, frame)
        if rows == 2:
            self._draw_spectrum(fig, looks)
            self._draw_shares(fig, looks, frame)
        caption = (
            "Each run shows its last measurement up to the slider: norms after every batch, the rest at checkpoints."
        )
        fig = dress(fig, self._finding(frame), f"{caption} {self.context}".strip(), _described(frame), self.height)
        return fig.update_layout(barmode="group", hovermode="closest", legend={"y": 1.0 + 30 / (self.height - 100)})

    def _draw_metrics(self, fig: go.Figure, looks: Mapping[str, Style], frame: pd.DataFrame) -> None:
        place, shown = {"row": 1, "col": 2}, frame[frame["panel"] == "metric"]
        for method in self.methods:
            mine, name = shown[shown["method"] == method], label(method)
            fig.add_bar(
                y=mine["item"].tolist(), x=gaps(mine["value"]), orientation="h", name=name, legendgroup=name, showlegend=False,
                marker={"color": looks[method].colour, "pattern": {"shape": "/" if method == self.methods[-1] else ""}},
                hovertemplate=f"{name}: %{{x:.1%}}<extra></extra>", **place,
            )  # fmt: skip
        # No bar would read as 0%.
        missing = shown.groupby("item", sort=False)["value"].count()
        for item in missing.index[missing == 0]:
            note = {"font": {"size": 11, "color": NEUTRAL}, "showarrow": False, "xanchor": "left"}
            fig.add_annotation(x=0.02, y=item, text="not measured yet", **note, **place)
        fig.update_xaxes(title="fraction (%)", tickformat=".0%", range=[0, 1.05], **place)
        fig.update_yaxes(autorange="reversed", automargin=True, **place)

    def _draw_norms(self, fig: go.Figure, looks: Mapping[str, Style]) -> None:
        at = self._norms[self._norms["layer"] == self.controls["layer"].value]
        for method in self.methods:
            mine = at[at["method"] == method].sort_values("edits")
            add_line(fig, mine["edits"], mine["ratio"], label(method), looks[method], at={"row": 1, "col": 1})
        self._cursor(fig, {"row": 1, "col": 1})
        fig.update_yaxes(title="Frobenius norm (ratio to before)", row=1, col=1)

    def _draw_spectrum(self, fig: go.Figure, looks: Mapping[str, Style]) -> None:
        name, place = self.controls["spectral"].value, {"row": 2, "col": 1}
        for method in self.methods if len(self._spectra) else ():
            mine = self._spectra[
                (self._spectra["method"] == method) & (self._spectra["layer"] == self.controls["layer"].value)
            ]
            mine = mine.sort_values("edits")
            add_line(fig, mine["edits"], mine[name], label(method), looks[method], show=".4g", at=place, legend=False)
        self._cursor(fig, place)
        fig.update_yaxes(title=_SPECTRAL[name], **place)

    def _draw_shares(self, fig: go.Figure, looks: Mapping[str, Style], frame: pd.DataFrame) -> None:
        place, shares = {"row": 2, "col": 2}, frame[frame["panel"] == "share"]
        if len(self._shares):
            start = self._shares[(self._shares["edits"] == 0) & (self._shares["kind"] == "mlp")].drop_duplicates(
                "layer"
            )
            add_line(fig, start["layer"], start["share"], "before any edit", _BEFORE, at=place)
        for method in self.methods:
            mine = shares[shares["method"] == method]
            add_line(fig, mine["item"], mine["value"], label(method), looks[method], at=place, legend=False)
        fig.update_xaxes(title=LAYER, **(layer_axis(shares["item"].astype(int)) if len(shares) else {}), **place)
        fig.update_yaxes(title="share of the residual stream (0 to 1)", rangemode="tozero", **place)

    def _cursor(self, fig: go.Figure, place: Mapping[str, int]) -> None:
        fig.add_vline(x=self.controls["edits"].value, line={"color": NEUTRAL, "width": 2}, **place)
        fig.update_xaxes(title=EDITS, rangemode="tozero", **place)

    def _last(self, table: pd.DataFrame, method: str) -> pd.DataFrame:
        """The run's rows of its last measurement up to the slider."""
        if table.empty:
            return table
        rows = table[(table["method"] == method) & (table["edits"] <= self.controls["edits"].value)]
        return rows[rows["edits"] == rows["edits"].max()]

    def _finding(self, frame: pd.DataFrame) -> str:
        layer, said = self.controls["layer"].value, []
        kept = frame[(frame["panel"] == "metric") & frame["item"].isin(("unedited facts", "efficacy"))]
        for method in self.methods:
            norm = frame[(frame["method"] == method) & (frame["panel"] == "norm") & (frame["item"] == layer)]["value"]
            parts = [f"norm of layer {layer} {times(float(norm.iloc[0]))}"] if len(norm) else []
            mine = kept[(kept["method"] == method) & kept["value"].notna()]
            parts += [f"{row.item} {percent(row.value)} after {row.edits:,}" for row in mine.itertuples()]
            said.append(f"{label(method)}: {', '.join(parts) or 'nothing measured yet'}")
        return f"At {self.controls['edits'].value:,} edits, {'; '.join(said)}"

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        rows = self.data.astype({"item": str})
        return rows.pivot_table(index=["panel", "item"], columns="method", values="value", sort=False, dropna=False)


def _controls(methods: Sequence[str], norms: pd.DataFrame) -> dict[str, W.DOMWidget]:
    steps = sorted({int(edits) for edits in norms["edits"]})
    edited = norms[norms["edited"].astype(bool)]
    layers = sorted({int(layer) for layer in (edited if len(edited) else norms)["layer"]})
    grown = edited["ratio"].replace([np.inf, -np.inf], np.nan)
    most = int(edited.loc[grown.idxmax(), "layer"]) if grown.notna().any() else layers[0]
    names, style = [(title(method), method) for method in methods], {"description_width": "6rem"}
    return {
        "left": W.Dropdown(options=names, value=methods[0], description="method", style=style),
        "right": W.Dropdown(options=names, value=methods[-1], description="beside", style=style),
        "layer": W.Dropdown(options=[(str(i), i) for i in layers], value=most, description="layer", style=style),
        "spectral": W.Dropdown(options=[(name, key) for key, name in _SPECTRAL.items()], description="spectrum", style=style),
        "edits": W.SelectionSlider(
            options=[(f"{n:,}", n) for n in steps], value=steps[-1], description="edits", continuous_update=False,
            style=style, layout=W.Layout(width="min(46rem, 100%)"),
        ),
    }  # fmt: skip


def _optional(records: Mapping[str, Tables], table: str, columns: Sequence[str]) -> pd.DataFrame:
    """The table of those runs that have it; empty if none has."""
    having = {m: record for m, record in records.items() if len(getattr(record, table, ()))}
    return checked(stack(having, table), *columns, of=f"a lifelong run's {table}") if having else pd.DataFrame()


def _long(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return rows[["method", "edits", *names]].melt(["method", "edits"], var_name="item") if len(rows) else rows


def _tidy(rows: pd.DataFrame, panel: str, item: str, value: str) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame()
    found = rows[["method", "edits", item, value]].set_axis(["method", "edits", "item", "value"], axis=1)
    return found.assign(panel=panel)[["method", "edits", "panel", "item", "value"]]


def _described(frame: pd.DataFrame) -> str:
    said = []
    for (panel, method), rows in frame[frame["panel"].isin(("norm", "metric"))].groupby(
        ["panel", "method"], sort=False
    ):
        show = times if panel == "norm" else percent
        names = (f"layer {item}" if panel == "norm" else str(item) for item in rows["item"])
        values = ", ".join(
            f"{name} {show(value)}" for name, value in zip(names, rows["value"], strict=True) if pd.notna(value)
        )
        said.append(
            f"{label(str(method))}, {'norm ratios' if panel == 'norm' else 'metrics'}: {values or 'not measured'}."
        )
    return f"Panels at the slider. {' '.join(said)}"
