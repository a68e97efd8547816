"""The spectrum scrubber: singular values of an edited matrix on the way through a sequence of edits."""

from __future__ import annotations

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.course.widgets.base import View
from ketools.errors import KetoolsError
from ketools.plots import spectra_lines
from ketools.plots.drawers import checked
from ketools.plots.style import joined, label
from ketools.runs.records import title


class SpectrumScrubber(View):
    """Slide through the edits of a method; see which singular values of the edited matrix leave their place."""

    kind, title, height = "spectrum", "Spectrum scrubber", 420

    def __init__(self, values: pd.DataFrame, *, context: str = "") -> None:
        """`values`: a row per method, edits so far (0: before any), layer (one) and index (1: the largest) with the singular
        value; `context` (mode, model, n, seed) ends the caption.

        Raises KetoolsError for another table, an empty one, several layers, or methods without a row before any edit.
        """
        self.values = checked(values, "method", "edits", "layer", "index", "value", of="nb08.on_the_way", least=2)
        if self.values["layer"].nunique() > 1:
            raise KetoolsError("singular values of several layers; give those of one, values[values['layer'] == ...]")
        if (self.values.groupby("method")["edits"].min() > 0).any():
            raise KetoolsError(
                "a method has no singular values at 0 edits, with which to compare; measure before any edit"
            )
        self.context, style = context, {"description_width": "6rem"}
        methods, steps = list(dict.fromkeys(values["method"])), sorted({int(n) for n in values["edits"]})
        controls = {
            "method": W.Dropdown(options=[(title(name), name) for name in methods], description="method", style=style),
            "edits": W.SelectionSlider(
                options=[(f"{n:,}", n) for n in steps], value=steps[-1], description="edits", continuous_update=False,
                style=style, layout=W.Layout(width="min(40rem, 100%)"),
            ),
        }  # fmt: skip
        super().__init__(controls, [["method"], ["edits"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The matrix before any edit and at the slider (its last measurement up to there): layer, state, index, value."""
        mine = self.values[self.values["method"] == self.controls["method"].value]
        at = mine["edits"][mine["edits"] <= self.controls["edits"].value].max()
        parts = [mine[mine["edits"] == n].assign(state=state) for state, n in (("before", 0), ("now", at))]
        return pd.concat(parts, ignore_index=True)[["layer", "state", "index", "value"]]

    def figure(self) -> go.Figure:
        """The lines of `spectra_lines` at the slider."""
        where = f"{label(self.controls['method'].value)} after {self.controls['edits'].value:,} edits."
        return spectra_lines(self.data, context=joined(where, self.context))

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        # The ends and the middle: hundreds of values would be no table for a reader.
        table = self.data.pivot(index="index", columns="state", values="value")[["before", "now"]]
        last = len(table)
        return table.loc[[i for i in dict.fromkeys((1, 2, 3, 5, 10, last // 2, last)) if 1 <= i <= last]]
