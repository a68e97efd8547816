"""A figure for lessons: one point a prompt, a row per kind of prompt, the median of each."""

import pandas as pd
import plotly.graph_objects as go

from ketools.evaluation.metrics import number
from ketools.plots.drawers import checked
from ketools.plots.style import NEUTRAL, OKABE_ITO, dress, joined, left_of, plain

_COLOURS = ("blue", "sky", "orange", "vermillion", "purple", "green")
_SYMBOLS = ("circle", "diamond", "square", "x", "star", "cross")


def kind_points(
    frame: pd.DataFrame, value: str, finding: str, *, axis: str, caption: str, log: bool = False, context: str = ""
) -> go.Figure:
    """`value` of each row as a point, a row of the figure per `kind` (in order of appearance), medians as grey bars.

    finding: the title, computed by the caller. log: a logarithmic axis. Raises KetoolsError for a table without the
    columns kind and `value`, or an empty one.
    """
    frame = checked(frame, "kind", value, of="this lesson")
    kinds = list(dict.fromkeys(map(str, frame["kind"])))
    fig = go.Figure()
    for i, kind in enumerate(kinds):
        mine = frame.loc[frame["kind"] == kind, value].astype(float).tolist()
        # Rows spread evenly within the kind's band, so that points of equal value can be told apart.
        places = [i + 0.56 * (j / max(1, len(mine) - 1) - 0.5) for j in range(len(mine))]
        fig.add_scatter(
            x=mine, y=places, mode="markers", name=plain(kind), showlegend=False,
            marker={"color": OKABE_ITO[_COLOURS[i % 6]], "symbol": _SYMBOLS[i % 6], "size": 6, "opacity": 0.7},
            hovertemplate=f"{plain(kind)}: %{{x:.4g}}<extra></extra>",
        )  # fmt: skip
    medians = frame.groupby("kind", sort=False)[value].median().reindex(kinds)
    fig.add_scatter(
        x=medians.tolist(), y=list(range(len(kinds))), mode="markers", name="median",
        marker={"color": NEUTRAL, "symbol": "line-ns", "size": 26, "line": {"color": NEUTRAL, "width": 4}},
        hovertemplate="median %{x:.4g}<extra></extra>",
    )  # fmt: skip
    names = [f"{plain(kind)} ({int((frame['kind'] == kind).sum())})" for kind in kinds]
    fig.update_yaxes(
        title="kind of prompt (number of prompts)", autorange="reversed", tickmode="array",
        tickvals=list(range(len(kinds))), ticktext=names, showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_xaxes(
        title=axis, **({"type": "log", "dtick": 1, "exponentformat": "power", "tickfont_size": 11} if log else {})
    )
    said = "; ".join(f"{kind} {number(float(middle))}" for kind, middle in medians.items())
    text = f"One point a prompt, by kind. Medians: {said}."
    fig = dress(fig, finding, joined(caption, context), text, 150 + 62 * len(kinds), left_of(names))
    return fig.update_layout(hovermode="closest")
