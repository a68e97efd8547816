"""Scrubbers over edits: two stored runs side by side, and the singular values of one edited matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.widgets.base import View, dropdown, slider
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric, percent, times
from ketools.plots import spectra_lines, stack
from ketools.plots.drawers import EDITS, LAYER, add_line, checked, gaps, layer_axis
from ketools.plots.style import NEUTRAL, Style, dress, joined, label, styles
from ketools.runs.records import title
from ketools.runs.store import RunRecord

_METRICS = ("ES", "PS", "NS", "unedited_kept", "same_subject_kept", "downstream_kept")
_SPECTRAL = {
    "spectral_norm": "largest singular value (unit of the weights)",
    "effective_rank": "effective rank (count)",
    "stable_rank": "stable rank (count)",
    "condition": "condition number (ratio)",
}
_BEFORE = Style(NEUTRAL, "dot", "circle-open")


class LifelongScrubber(View):
    """Slide through the edits of two stored runs: norm, metrics and, if measured, spectrum and residual shares.

    Each run shows its last measurement up to the slider: norms after every batch, the rest at checkpoints.
    """

    kind, title = "scrubber", "Lifelong scrubber"

    def __init__(self, records: Mapping[str, RunRecord], *, context: str = "") -> None:
        """`records`: method -> record of a run (`ketools.runs.store.RunRecord`); `context` ends the caption.

        Raises KetoolsError without runs, for runs without norms, and for tables that lack a column.
        """
        self._norms = checked(stack(records, "norms"), "edits", "layer", "edited", "ratio", of="a lifelong run's norms")
        self._points = stack(records, "checkpoints")
        self._spectra = _optional(records, "spectra", ("edits", "layer", *_SPECTRAL))
        self._shares = _optional(records, "residual", ("edits", "layer", "kind", "share"))
        self.context, self.height = context, 400 if self._spectra.empty and self._shares.empty else 700
        names, steps = [(title(method), method) for method in records], sorted({int(n) for n in self._norms["edits"]})
        edited = self._norms[self._norms["edited"].astype(bool)]
        layers = sorted({int(layer) for layer in (edited if len(edited) else self._norms)["layer"]})
        ratio = edited["ratio"].replace([np.inf, -np.inf], np.nan)
        most_grown = int(edited.loc[ratio.idxmax(), "layer"]) if ratio.notna().any() else layers[0]
        controls = {
            "left": dropdown("method", names, names[0][1]),
            "right": dropdown("beside", names, names[-1][1]),
            "layer": dropdown("layer", [(str(i), i) for i in layers], most_grown),
            "spectral": dropdown("spectrum", [(name, key) for key, name in _SPECTRAL.items()]),
            "edits": slider("edits", [(f"{n:,}", n) for n in steps], steps[-1], width="46rem"),
        }
        below = ["layer", "spectral"] if len(self._spectra) else ["layer"]
        super().__init__(controls, [["left", "right"], below, ["edits"]])
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
        layer's matrix, see `norms.weights.shape_of`) and "share" (item: layer; share of its MLP in the residual stream).
        """
        layer, parts = self.controls["layer"].value, []
        for method in self.methods:
            at = self._norms["edited"].astype(bool)
            parts.append(_tidy(self._last(self._norms[at], method), "norm", "layer", "ratio"))
            points = self._last(self._points, method)
            shown = [name for name in _METRICS if name in points]
            parts.append(_tidy(_long(points, shown), "metric", "item", "value"))
            spectrum = self._spectra[self._spectra["layer"] == layer] if len(self._spectra) else self._spectra
            parts.append(_tidy(_long(self._last(spectrum, method), [*_SPECTRAL]), "spectrum", "item", "value"))
            shares = self._shares[self._shares["kind"] == "mlp"] if len(self._shares) else self._shares
            parts.append(_tidy(self._last(shares, method), "share", "layer", "share"))
        return pd.concat([part for part in parts if len(part)], ignore_index=True)

    def figure(self) -> go.Figure:
        """Up to four panels: norm over edits, metrics, spectrum and residual shares at the slider."""
        frame, layer, edits = self.data, self.controls["layer"].value, self.controls["edits"].value
        looks = styles(dict.fromkeys(self._norms["method"]))
        rows = 1 if self.height == 400 else 2
        titles = [f"norm of layer {layer}", "metrics", f"spectrum of layer {layer}", "MLPs in the residual stream"]
        fig = make_subplots(rows, 2, subplot_titles=titles[: 2 * rows], horizontal_spacing=0.16, vertical_spacing=0.2)

        def over_edits(table: pd.DataFrame, column: str, axis: str, place: Mapping[str, int], show: str) -> None:
            """Draw the chosen layer's `column` over edits, one line per method, and the slider's position."""
            for method in self.methods if len(table) else ():
                points = table[(table["method"] == method) & (table["layer"] == layer)].sort_values("edits")
                line, look = (points["edits"], points[column], label(method)), looks[method]
                add_line(fig, *line, look, show=show, at=place, legend=place["row"] == 1)
            fig.add_vline(x=edits, line={"color": NEUTRAL, "width": 2}, **place)
            fig.update_xaxes(title=EDITS, rangemode="tozero", **place).update_yaxes(title=axis, **place)

        over_edits(self._norms, "ratio", "Frobenius norm (ratio to before)", {"row": 1, "col": 1}, ".3f")
        place, metrics = {"row": 1, "col": 2}, frame[frame["panel"] == "metric"]
        for method in self.methods:
            bars, name = metrics[metrics["method"] == method], label(method)
            hatching = "/" if method == self.methods[-1] else ""
            fig.add_bar(
                y=[metric(item).short for item in bars["item"]],
                x=gaps(bars["value"]),
                orientation="h",
                name=name,
                legendgroup=name,
                showlegend=False,
                marker={"color": looks[method].colour, "pattern": {"shape": hatching}},
                hovertemplate=f"{name}: %{{x:.1%}}<extra></extra>",
                **place,
            )
        # A missing bar would read as 0%.
        counts = metrics.groupby("item", sort=False)["value"].count()
        for item in counts.index[counts == 0]:
            note = {"font": {"size": 11, "color": NEUTRAL}, "showarrow": False, "xanchor": "left"}
            fig.add_annotation(x=0.02, y=metric(item).short, text="not measured yet", **note, **place)
        fig.update_xaxes(title="fraction (%)", tickformat=".0%", range=[0, 1.05], **place)
        fig.update_yaxes(autorange="reversed", automargin=True, **place)
        if rows == 2:
            measure = self.controls["spectral"].value
            over_edits(self._spectra, measure, _SPECTRAL[measure], {"row": 2, "col": 1}, ".4g")
            place, shares = {"row": 2, "col": 2}, frame[frame["panel"] == "share"]
            if len(self._shares):
                start = self._shares[(self._shares["edits"] == 0) & (self._shares["kind"] == "mlp")]
                start = start.drop_duplicates("layer")
                add_line(fig, start["layer"], start["share"], "before any edit", _BEFORE, at=place)
            for method in self.methods:
                points = shares[shares["method"] == method]
                add_line(fig, points["item"], points["value"], label(method), looks[method], at=place, legend=False)
            fig.update_xaxes(title=LAYER, **(layer_axis(shares["item"].astype(int)) if len(shares) else {}), **place)
            fig.update_yaxes(title="share of the residual stream (0 to 1)", rangemode="tozero", **place)

        findings, texts = [], []
        for method in self.methods:
            of = frame[frame["method"] == method]
            norms, scores = of[of["panel"] == "norm"], of[(of["panel"] == "metric") & of["value"].notna()]
            norm = norms.loc[norms["item"] == layer, "value"]
            parts = [f"norm of layer {layer} {times(float(norm.iloc[0]))}"] if len(norm) else []
            kept = scores[scores["item"].isin(("unedited_kept", "ES"))]
            parts += [f"{metric(row.item).short} {percent(row.value)} after {row.edits:,}" for row in kept.itertuples()]
            findings.append(f"{label(method)}: {', '.join(parts) or 'nothing measured yet'}")
            grown = [f"layer {row.item} {times(row.value)}" for row in norms[norms["value"].notna()].itertuples()]
            reached = [f"{metric(row.item).label} {percent(row.value)}" for row in scores.itertuples()]
            if len(norms):
                texts.append(f"{label(method)}, norm ratios: {', '.join(grown) or 'not measured'}.")
            if (of["panel"] == "metric").any():
                texts.append(f"{label(method)}, metrics: {', '.join(reached) or 'not measured'}.")
        caption = (
            "Each run shows its last measurement up to the slider: norms after every batch, the rest at checkpoints."
        )
        description = f"Panels at the slider. {' '.join(texts)}"
        finding = f"At {edits:,} edits, {'; '.join(findings)}"
        fig = dress(fig, finding, f"{caption} {self.context}".strip(), description, self.height)
        return fig.update_layout(barmode="group", hovermode="closest", legend={"y": 1.0 + 30 / (self.height - 100)})

    def _last(self, table: pd.DataFrame, method: str) -> pd.DataFrame:
        """The rows of a run's last measurement up to the slider."""
        if table.empty:
            return table
        rows = table[(table["method"] == method) & (table["edits"] <= self.controls["edits"].value)]
        return rows[rows["edits"] == rows["edits"].max()]

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        rows = self.data.astype({"item": str})
        return rows.pivot_table(index=["panel", "item"], columns="method", values="value", sort=False, dropna=False)


def _optional(records: Mapping[str, RunRecord], table: str, columns: Sequence[str]) -> pd.DataFrame:
    """One table of all runs that have it; empty if none has."""
    having = {m: record for m, record in records.items() if len(getattr(record, table))}
    return checked(stack(having, table), *columns, of=f"a lifelong run's {table}") if having else pd.DataFrame()


def _long(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return rows[["method", "edits", *names]].melt(["method", "edits"], var_name="item") if len(rows) else rows


def _tidy(rows: pd.DataFrame, panel: str, item: str, value: str) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame()
    found = rows[["method", "edits", item, value]].set_axis(["method", "edits", "item", "value"], axis=1)
    return found.assign(panel=panel)[["method", "edits", "panel", "item", "value"]]


class SpectrumScrubber(View):
    """Slide through the edits of a method and see which singular values of the edited matrix change."""

    kind, title, height = "spectrum", "Spectrum scrubber", 420

    def __init__(self, values: pd.DataFrame, *, context: str = "") -> None:
        """`values`: singular values of one layer, a row per method, edits so far (0: before any) and index (1: the largest),
        with columns method, edits, layer, index, value; `context` (mode, model, n, seed) ends the caption.

        Raises KetoolsError for another table, an empty one, several layers, or methods without a row before any edit.
        """
        self.values = checked(values, "method", "edits", "layer", "index", "value", of="a sequence", least=2)
        if self.values["layer"].nunique() > 1:
            raise KetoolsError("singular values of several layers; give those of one, values[values['layer'] == ...]")
        if (self.values.groupby("method")["edits"].min() > 0).any():
            raise KetoolsError("a method has no singular values at 0 edits to compare with; measure before any edit")
        self.context = context
        methods, steps = list(dict.fromkeys(values["method"])), sorted({int(n) for n in values["edits"]})
        controls = {
            "method": dropdown("method", [(title(name), name) for name in methods]),
            "edits": slider("edits", [(f"{n:,}", n) for n in steps], steps[-1], width="40rem"),
        }
        super().__init__(controls, [["method"], ["edits"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The matrix before any edit and at the slider (its last measurement up to it): layer, state, index, value."""
        rows = self.values[self.values["method"] == self.controls["method"].value]
        at = rows["edits"][rows["edits"] <= self.controls["edits"].value].max()
        parts = [rows[rows["edits"] == n].assign(state=state) for state, n in (("before", 0), ("now", at))]
        return pd.concat(parts, ignore_index=True)[["layer", "state", "index", "value"]]

    def figure(self) -> go.Figure:
        """The lines of `spectra_lines` at the slider."""
        where = f"{label(self.controls['method'].value)} after {self.controls['edits'].value:,} edits."
        return spectra_lines(self.data, context=joined(where, self.context))

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        # The ends and the middle; nobody reads hundreds of values.
        table = self.data.pivot(index="index", columns="state", values="value")[["before", "now"]]
        last = len(table)
        return table.loc[[i for i in dict.fromkeys((1, 2, 3, 5, 10, last // 2, last)) if 1 <= i <= last]]
