"""Several seeds of one method as one line: their mean, and the range that they span, in any figure of lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools import plots
from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import forgetting_by_age, forgetting_curve
from ketools.evaluation.metrics import hover_text
from ketools.plots import style as findings
from ketools.plots.drawers import EDITS, add_lines, describe, holes, measured, scale
from ketools.plots.style import (
    Verdict,
    add_line,
    dress,
    label,
    plain,
    styles,
)
from ketools.runs.records import Group, Run, listed, title
from ketools.runs.store import RunRecord

Rows = Callable[[RunRecord], pd.DataFrame]
LOW, HIGH, SEEDS = "_low", "_high", "_seeds"
_MOST = 26
"""Points of a line: more than these hide each other's markers."""


def pooled(groups: Sequence[Group], rows: Rows, over: str = "edits", *, keep: Sequence[str] = ()) -> pd.DataFrame:
    """What `rows` makes of each record, over the seeds of its group.

    Args:
        groups: of one model.
        rows: a record's rows; an empty table for a record that has none.
        over: the column along the axis; keep: further columns that tell rows apart.

    Returns:
        A row per group and place that all seeds of it have: method (the group's label), `over`, `keep`, the mean of each
        other column, NAME_low and NAME_high, and seeds (how many). A column of whole numbers that is no count to
        average (layer) has the most frequent. Seeds without rows are left out: where there are some, a column runs says
        how many the group has with them. Where some seeds have NaN in a column, NAME_seeds says how many its mean is of.
    """
    parts = []
    for group in groups:
        frames = [frame for run in group.runs if len(frame := rows(run.record))]
        if not frames:
            continue
        whole = pd.concat(frames, ignore_index=True)
        by = whole.groupby([over, *keep], sort=True)
        shared = by.size() == len(frames)
        numbers = [name for name in whole.select_dtypes(["number", "bool"]).columns if name not in (over, *keep)]
        mean, low, high = by[numbers].mean(), by[numbers].min(), by[numbers].max()
        if "layer" in numbers:
            mean["layer"] = by["layer"].agg(lambda values: values.mode().iloc[0])
        count = by[numbers].count()[shared]
        partly = [name for name in numbers if count[name].between(1, len(frames) - 1).any()]
        ranges = [mean[shared], low[shared].add_suffix(LOW), high[shared].add_suffix(HIGH)]
        about = {"method": group.label, "seeds": len(frames)}
        about |= {"runs": len(group.runs)} if len(frames) < len(group.runs) else {}
        same = pd.DataFrame(about, index=count.index)
        # One concat, then a copy: a column at a time, records with a hundred columns become slow.
        part = pd.concat([*ranges, count[partly].add_suffix(SEEDS), same], axis=1).copy()
        parts.append(part.reset_index())
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method", over, *keep])
    return frame[["method", *frame.columns.drop("method")]]


def left_out(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """For a caption: which seeds are in no mean of `columns`; "" where all are in all."""
    said = []
    for method, part in frame.groupby("method", sort=False):
        if "runs" in part and part["runs"].notna().any():
            has, of = int(part["seeds"].iloc[0]), int(part["runs"].iloc[0])
            said.append(f" {label(str(method))}: {has} of {of} seeds; nothing of this was recorded of the others.")
        for name in columns:
            held = part[f"{name}{SEEDS}"].dropna() if f"{name}{SEEDS}" in part else part["seeds"].iloc[:0]
            of = int(part["seeds"].iloc[0])
            if few := sorted({int(n) for n in held if 0 < n < of}):
                counts = listed([str(n) for n in few])
                said.append(
                    f" {label(str(method))}: {name} is at some points that of {counts} of {of} seeds; the others lack it."
                )
    return "".join(said)


def thinned(frame: pd.DataFrame, over: str = "edits") -> pd.DataFrame:
    """Every k-th place of each method, its first and its last among them, so that a line has at most some 26 points."""

    def kept(places: pd.Series) -> pd.Series:
        order = sorted(set(places))
        step = max(1, -(-(len(order) - 1) // (_MOST - 1)))
        return places.isin({*order[::-step], *order[:1]})

    return frame[frame.groupby("method", sort=False)[over].transform(kept).astype(bool)] if len(frame) else frame


def ranged(fig: go.Figure, frame: pd.DataFrame, columns: Sequence[str], over: str = "edits") -> go.Figure:
    """The figure with a band from the lowest to the highest seed behind each line of several seeds; a figure of one is as it was.

    Args:
        fig: lines from `frame`, one a method and panel, named by their labels.
        frame: from `pooled`; columns: what the first, second, ... panel shows.
    """
    several = frame[frame["seeds"] > 1] if "seeds" in frame else frame.iloc[:0]
    if "edited" in several:  # the lines are of edited matrices; the others are one line for all
        several = several[several["edited"].astype(bool)]
    names = {label(method): method for method in dict.fromkeys(several["method"])}
    looks = styles(dict.fromkeys(frame["method"]))
    traces: list[go.Scatter] = []
    for trace in fig.data:
        panel = int((trace.xaxis or "x")[1:] or 1) - 1
        if trace.type != "scatter" or trace.name not in names or panel >= len(columns):
            traces.append(trace)
            continue
        method = names[trace.name]
        mine = several[several["method"] == method].sort_values(over)
        traces += _band_and_line(trace, mine, columns[panel], over, looks[method])
    drawn = [trace for trace in traces if trace.hoverinfo == "skip"]
    lines = [trace for trace in traces if trace.hoverinfo != "skip"]
    fig.data = ()
    fig.add_traces([*drawn, *lines])
    if len(several):
        _say(fig, several, bool(columns))
    if out := left_out(frame, columns or _averaged(frame)) if "seeds" in frame else "":
        said = dict(fig.layout.meta)
        fig.layout.meta = said | {"caption": said["caption"] + out}
    return fig


def _averaged(frame: pd.DataFrame) -> list[str]:
    """All columns of which some seeds have nothing at some place."""
    return [str(name).removesuffix(SEEDS) for name in frame if str(name).endswith(SEEDS)]


def _band_and_line(trace: go.Scatter, mine: pd.DataFrame, column: str, over: str, look: object) -> list[go.Scatter]:
    """The line drawn anew with its range, where the old one was."""
    found = re.search(r"%\{y:([^}]*)\}", trace.hovertemplate or "")
    part = go.Figure()
    add_line(
        part, mine[over].tolist(), mine[column].tolist(), trace.name, look, low=mine[f"{column}{LOW}"].tolist(),
        high=mine[f"{column}{HIGH}"].tolist(), interval=f"range of {_seeds(mine, column)} seeds",
        show=found.group(1) if found else ".3g", band=True, legend=bool(trace.showlegend in (None, True)),
    )  # fmt: skip
    for piece in part.data:
        piece.update(xaxis=trace.xaxis, yaxis=trace.yaxis)
    return list(part.data)


def _seeds(mine: pd.DataFrame, column: str) -> str:
    whole = mine["seeds"].astype(int)
    if f"{column}{SEEDS}" in mine:
        held = mine[f"{column}{SEEDS}"].fillna(whole)
        whole = held[held > 0].astype(int)
    low, high = whole.min(), whole.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _say(fig: go.Figure, several: pd.DataFrame, lines: bool) -> None:
    counts = " or ".join(map(str, sorted(set(several["seeds"].astype(int)))))
    said = dict(fig.layout.meta)
    ranges = f"Lines of several seeds are their mean, with the range of the {counts} behind it."
    said["caption"] += f" {ranges if lines else f'Mean over {counts} seeds where there are several.'}"
    fig.layout.meta = said


# How much a matrix can hold: edits that hold against edits per key dimension, d_mlp of each edited layer.
#
# A matrix with d_mlp inputs takes at most d_mlp linearly independent keys: as many facts per layer can be stored exactly, and
# more only at the price of others. Facts share keys in part, so that the bend is no sharp one.


LOAD = "edits per key dimension (edits / (edited layers × d_mlp))"
HELD = 0.9
_MEASURE = "efficacy_accuracy"


def places(run: Run) -> int | None:
    """Edited layers x d_mlp: how many independent keys a run's matrices take; None where the record does not say."""
    model, hyper = run.about.get("model") or {}, run.settings.get("hyper") or {}
    width, layers = model.get("d_mlp") if isinstance(model, dict) else None, hyper.get("layers")
    return int(width) * len(layers) if width and layers else None


def capacity(groups: Sequence[Group]) -> pd.DataFrame:
    """Edits that hold at each checkpoint, by how full the matrices are.

    Args:
        groups: from `ketools.runs.records.arrange`, of any models.

    Returns:
        A row per model, method and checkpoint after an edit: model, method, edits, places (edited layers x d_mlp), load
        (edits / places), held (share of all edits so far whose new object is the model's answer now; mean over seeds; NaN
        where it was not measured), held_low, held_high, seeds, held_edits (held x edits).

    Raises:
        KetoolsError: no record says how wide its model is, or has a checkpoint after an edit.
    """
    parts = []
    for group in groups:
        if (room := places(group.runs[0])) is None:
            continue
        frame = pooled([group], lambda record: record.checkpoints)
        if len(frame) and _MEASURE in frame:
            frame = frame[frame["edits"] > 0]
            names = {f"{_MEASURE}{end}": f"held{end}" for end in ("", LOW, "_high")}
            frame = frame.rename(columns=names)[["method", "edits", *names.values(), "seeds"]]
            parts.append(frame.assign(model=group.model, places=room))
    if not any(part["held"].notna().any() for part in parts):
        raise KetoolsError("nothing to draw: the records do not say how wide the models are, or hold no checkpoint yet")
    frame = pd.concat(parts, ignore_index=True)
    frame["load"] = frame["edits"] / frame["places"]
    frame["held_edits"] = frame["held"] * frame["edits"]
    return frame[["model", *frame.columns.drop("model")]]


def capacity_curve(frame: pd.DataFrame) -> go.Figure:
    """Share of edits that hold over edits per key dimension, a panel a model, a line a method; from `capacity`."""
    models = list(dict.fromkeys(frame["model"]))
    widths = [int(frame.loc[frame["model"] == model, "places"].iloc[0]) for model in models]
    heads = [f"{plain(model)}: {width:,} key dimensions" for model, width in zip(models, widths, strict=True)]
    fig = make_subplots(1, len(models), shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.05)
    told, missing = [], ""
    for panel, model in enumerate(models, 1):
        mine = frame[frame["model"] == model].assign(edits=lambda part: part["load"])
        missing += holes(mine, "held")
        if mine["held"].isna().all():
            continue
        rows = measured(mine, "held")
        part = make_subplots(1, 1)
        add_lines(part, rows, "held", ".1%", panel=1)
        for trace in ranged(_meta(part), rows, ("held",)).data:
            fig.add_trace(trace.update(showlegend=trace.showlegend is not False and panel == 1), row=1, col=panel)
        fig.add_vline(x=1, line={"color": "#808080", "dash": "dot", "width": 2}, row=1, col=panel)
        told.append(
            f"{model}: " + describe(rows.assign(edits=rows["load"]), "held", "edits that hold", findings.percent)
        )
    fig.update_xaxes(title="edits per key dimension (ratio)", rangemode="tozero")
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title="edits that hold (%)", col=1)
    caption = (
        "All edits so far whose new object is the model's answer now. The dotted line is one edit per key dimension, which "
        "is d_mlp of each edited layer: more keys than that cannot be independent."
    ) + missing
    fig = dress(fig, finding(frame), caption, " ".join(told))
    return fig.update_layout(legend={"y": 1.09}, hovermode="closest")


def finding(frame: pd.DataFrame) -> str:
    """What the capacity data say, as one sentence: for each model how full it got and which method still held most."""
    said = []
    for model, part in frame.dropna(subset="held").groupby("model", sort=False):
        ends = part.sort_values("edits").groupby("method", sort=False).tail(1)
        best, worst = ends.loc[ends["held"].idxmax()], ends.loc[ends["held"].idxmin()]
        text = f"{plain(model)} at {best['load']:.2g} edits per key dimension holds {_most(best)}"
        said.append(text if best["method"] == worst["method"] else f"{text}, least {_most(worst)}")
    return "; ".join(said)


def bends(frame: pd.DataFrame, share: float = HELD) -> list[str]:
    """A sentence per model: up to how many edits per key dimension each method holds `share` of its edits."""
    said = []
    for model, part in frame.dropna(subset="held").groupby("model", sort=False):
        words = []
        for method, line in part.groupby("method", sort=False):
            line = line.sort_values("edits")
            fallen = line[line["held"] < share]
            last = line[line["edits"] < fallen["edits"].iloc[0]] if len(fallen) else line
            if fallen.empty:
                words.append(f"{title(str(method))} to the end, {line['load'].iloc[-1]:.2g}")
            elif last.empty:
                words.append(f"{title(str(method))} at no checkpoint, the first at {line['load'].iloc[0]:.2g}")
            else:
                words.append(
                    f"{title(str(method))} up to {last['load'].iloc[-1]:.2g} (then {fallen['held'].iloc[0]:.0%})"
                )
        said.append(
            f"On {model}, whose edited matrices take {int(part['places'].iloc[0]):,} independent keys, {share:.0%} of the "
            f"edits hold, in edits per key dimension: {listed(words)}."
        )
    return said


def _most(row: pd.Series) -> str:
    return f"{findings.percent(row['held'])} of {int(row['edits']):,} with {title(str(row['method']))}"


def _meta(fig: go.Figure) -> go.Figure:
    return fig.update_layout(meta={"finding": "", "caption": "", "description": ""})


# The figures of a report: which there are, from which table each is drawn, and those that only runs side by side have.


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
