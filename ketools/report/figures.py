"""The figures of a report: which there are, from which table each is drawn, and those that only runs side by side have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.course import findings, plots
from ketools.course.findings import Verdict
from ketools.course.lines import EDITS, add_lines, describe, holes, measured, scale
from ketools.course.style import dress, label
from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import forgetting_by_age, forgetting_curve
from ketools.evaluation.glossary import hover_text
from ketools.report.seeds import Rows, pooled, ranged, thinned
from ketools.runs.gather import Group
from ketools.runs.names import listed
from ketools.runs.store import RunRecord

SHARE = Verdict(
    "The edited layers' part of the residual stream", "grows by a quarter at most", "grows by more than a quarter",
    "share relative to before", lambda v: v <= 1.25, findings.times,
)  # fmt: skip
KEPT = Verdict(
    "What took", "is still there", "is undone in part by later edits", "share right, relative to right after each batch",
    lambda v: v >= 0.95, findings.percent,
)  # fmt: skip
OLD = Verdict(
    "The oldest tenth of the edits", "holds", "is lost in part", "share right, relative to right after each batch",
    lambda v: v >= 0.95, findings.percent,
)  # fmt: skip
PACE = Verdict(
    "An edit's time", "grows by a quarter at most", "grows by more than a quarter",
    "last tenth of the run relative to the first", lambda v: v <= 1.25, findings.times,
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One figure: `title` names what it shows, `rows` takes it from a record, `draw` draws the pooled rows.

    `columns` are those that its panels show, for the ranges; `over` the column along the axis; `of` the table of the
    glossary that explains `columns`.
    """

    title: str
    rows: Rows
    draw: Callable[[pd.DataFrame], go.Figure]
    columns: tuple[str, ...] = ()
    over: str = "edits"
    keep: tuple[str, ...] = ()
    of: str = "checkpoints"

    def about(self) -> str:
        """What the glossary says of the quantities that it shows, as plain text; "" where it shows no column as it is."""
        return "\n".join(hover_text(name, self.of) for name in self.columns)

    def figure(self, groups: Sequence[Group]) -> go.Figure:
        """Drawn for groups of one model. Raises KetoolsError, with the reason, where nothing of it was recorded."""
        frame = pooled(groups, self.rows, self.over, keep=self.keep)
        if frame.empty:
            raise KetoolsError("nothing to draw: it was not recorded in these runs, or not yet")
        if self.columns:
            frame = thinned(frame, self.over)
        return ranged(self.draw(frame), frame, self.columns, self.over)


def residual_share(frame: pd.DataFrame) -> go.Figure:
    """Share (fraction) of the edited layers' MLPs in the residual stream, over edits, one line a method.

    Needs columns method, edits, share. Gupta et al., 2502.01636, figure 5 ("importance hacking").
    """
    rows = measured(frame, "share")
    first = rows.sort_values("edits").groupby("method", sort=False)["share"].first()
    ends, span = findings.last(rows, "share")
    fig = go.Figure()
    add_lines(fig, rows, "share", ".1%")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="share of the residual stream (%)", tickformat=".0%", range=[0, 1.1 * rows["share"].max()])
    caption = (
        "Norms of what the edited layers' MLPs add to the residual stream, together, over the sum of the norms of all that "
        "is added to it; mean over tokens of ordinary text."
    )
    text = describe(rows, "share", "the edited layers' share", findings.percent)
    relative = {method: value / first[method] for method, value in ends.items()}
    return dress(fig, SHARE.sentence(relative, span), caption + holes(frame, "share"), text)


def forgetting(frame: pd.DataFrame) -> go.Figure:
    """What is left of the edits so far: efficacy now over efficacy right after their batches, over edits; column kept."""
    caption = (
        "Efficacy of all edits so far, scored now, divided by that of the same edits right after their own batches: 100% "
        "where later edits undo nothing."
    )
    return _kept(frame, KEPT, EDITS, caption)


def by_age(frame: pd.DataFrame) -> go.Figure:
    """Forgetting at the end of a run by how many edits came afterwards; columns method, edits (afterwards), kept."""
    caption = (
        "Efficacy at the end of the run over that right after the batch, by how many edits came after it; each point is "
        "the mean over neighbouring batches. The oldest edits stand on the right."
    )
    oldest = frame[frame["edits"] >= 0.9 * frame.groupby("method")["edits"].transform("max")]
    ends = oldest.groupby("method", sort=False)["kept"].mean().to_dict()
    # The youngest edits have an age of 0, which is a point like any other.
    return _kept(frame, OLD, "edits made afterwards (count)", caption + _excluded(frame), ends, since=-1)


def _excluded(frame: pd.DataFrame) -> str:
    """For a caption: how many edits are in no point, with which method; "" where all are in one."""
    if "excluded" not in frame:
        return ""
    count = (frame["excluded"] * frame.get("seeds", 1)).groupby(frame["method"], sort=False).sum().round()
    lines = [f"{int(n):,} with {label(str(method))}" for method, n in count.items() if n > 0]
    what = "without a finite score at both moments, or of a batch of which none took"
    return f" Edits that are left out, {what}: {listed(lines)}." if lines else ""


def pace(frame: pd.DataFrame) -> go.Figure:
    """Seconds of editing per edit over a run, one line a method; columns method, edits, seconds_per_edit."""
    rows = measured(frame, "seconds_per_edit")
    fig = go.Figure()
    add_lines(fig, rows, "seconds_per_edit", ".3f")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="time per edit (s)", rangemode="tozero", **scale(rows["seconds_per_edit"], 50.0))
    _, span = findings.last(rows, "seconds_per_edit")
    grown = {str(m): _tenths(part.sort_values("edits")) for m, part in rows.groupby("method", sort=False)}
    caption = "Wall time of the edits alone, without any measuring; each point is the mean over neighbouring batches."
    text = describe(rows, "seconds_per_edit", "seconds per edit", findings.number)
    return dress(fig, PACE.sentence(grown, span), caption + holes(frame, "seconds_per_edit"), text)


def _kept(
    frame: pd.DataFrame, verdict: Verdict, axis: str, caption: str, ends: dict[str, float] | None = None, since: int = 0
) -> go.Figure:
    rows = measured(frame, "kept")
    last, span = findings.last(rows, "kept")
    fig = go.Figure()
    add_lines(fig, rows, "kept", ".1%")
    fig.update_xaxes(title=axis, rangemode="tozero")
    top = max(1.04, 1.04 * rows["kept"].max())
    fig.update_yaxes(title="still right, of what took (%)", tickformat=".0%", range=[0, top])
    text = describe(rows, "kept", "what is left", findings.percent)
    return dress(fig, verdict.sentence(ends or last, span), caption + holes(frame, "kept", since=since), text)


def _tenths(rows: pd.DataFrame) -> float:
    """The mean of the last tenth of a line over that of its first; NaN for a line of one point."""
    values = rows["seconds_per_edit"].dropna().to_numpy()  # a gap in the line is no time
    n = max(1, len(values) // 10)
    return float(values[-n:].mean() / values[:n].mean()) if len(values) > 1 else float("nan")


def _most_grown(record: RunRecord) -> pd.DataFrame:
    """Of the edited matrices the one that grew most, of the others the one that changed most, at each batch."""
    norms = record.norms
    if not {"edits", "edited", "layer", "ratio"} <= set(norms):
        return pd.DataFrame()
    most = norms.sort_values("ratio").groupby(["edits", "edited"]).tail(1)
    return most[["edits", "edited", "layer", "ratio"]].sort_values("edits")


def _checkpoints(record: RunRecord) -> pd.DataFrame:
    return record.checkpoints


def _shares(record: RunRecord) -> pd.DataFrame:
    frame = getattr(record, "residual", None)
    if frame is None or not {"edits", "edited", "share"} <= set(frame) or not frame["edited"].astype(bool).any():
        return pd.DataFrame()
    return frame[frame["edited"].astype(bool)].groupby("edits", as_index=False)["share"].sum()


def _left(record: RunRecord) -> pd.DataFrame:
    try:
        return forgetting_curve(record.checkpoints)[["edits", "kept"]]
    except KetoolsError:  # no checkpoint after an edit: the chart says that nothing was recorded
        return pd.DataFrame()


def _ages(record: RunRecord) -> pd.DataFrame:
    try:
        ages = forgetting_by_age(record.facts, record.batches)
    except KetoolsError:  # facts are scored at the end once the run is complete
        return pd.DataFrame()
    ages = ages.rename(columns={"age": "edits"}).sort_values("edits")
    # A batch without a ratio is in no mean, with all its edits.
    ages["excluded"] += ages["n"].where(ages["kept"].isna(), 0)
    return _binned(ages, "kept", total="excluded")


def _times(record: RunRecord) -> pd.DataFrame:
    batches = record.batches
    if not {"edits", "facts", "seconds"} <= set(batches) or batches.empty:
        return pd.DataFrame()
    return _binned(batches.assign(seconds_per_edit=batches["seconds"] / batches["facts"]), "seconds_per_edit")


def _stopped(record: RunRecord) -> pd.DataFrame:
    batches = record.batches
    if not {"edits", "p_target_mean"} <= set(batches) or batches.empty:
        return pd.DataFrame()
    rows = _binned(batches, "p_target_mean")
    natural = record.checkpoints["p_natural"].dropna() if "p_natural" in record.checkpoints else ()
    return rows.assign(p_natural=natural.iloc[0]) if len(natural) else rows


def _batches(record: RunRecord) -> pd.DataFrame:
    return record.batches


def _binned(rows: pd.DataFrame, column: str, most: int = 25, total: str | None = None) -> pd.DataFrame:
    """Neighbouring rows as one: the mean of `column` at the last of their edits, and the sum of `total`."""
    size = -(-len(rows) // most)
    number = np.arange(len(rows))[::-1] // size  # whole from the end on: the last point is the last batch's
    by = rows.groupby(number)
    sums = {} if total is None else {total: by[total].sum()}
    return pd.DataFrame({"edits": by["edits"].max(), column: by[column].mean(), **sums}).sort_values("edits")


CHARTS: dict[str, Chart] = {
    "norm": Chart(
        "Norm of the edited matrices", _most_grown, plots.norm_growth, ("ratio",), keep=("edited",), of="norms"
    ),
    "residual": Chart("The edited layers in the residual stream", _shares, residual_share, ("share",), of="residual"),
    "unedited": Chart("Unedited facts", _checkpoints, plots.unedited_kept, ("unedited_kept",)),
    "same-subject": Chart(
        "Other facts of edited subjects", _checkpoints, plots.same_subject_kept, ("same_subject_kept",)
    ),
    "downstream": Chart("Downstream tasks", _checkpoints, plots.downstream_kept, ("downstream_kept",)),
    "perplexity": Chart("Perplexity", _checkpoints, plots.perplexity, ("perplexity_ratio",)),
    "scores": Chart("The edits", _checkpoints, plots.edit_scores, ("ES", "PS", "NS")),
    "forgetting": Chart("Forgetting", _left, forgetting, ("kept",), of="forgetting"),
    "age": Chart("Forgetting by age", _ages, by_age, ("kept",), of="forgetting"),
    "probability": Chart("Probability of edited facts", _checkpoints, plots.probability, ("p_edited",)),
    "stopped": Chart(
        "Targets when step 1 stopped", _stopped, plots.target_probability_lines, ("p_target_mean",), of="batches"
    ),
    "pace": Chart("Time per edit over the run", _times, pace, ("seconds_per_edit",), of="demo"),
    "cost": Chart("Cost of an edit", _batches, plots.cost),
}
"""The figures of a report, in its order."""
