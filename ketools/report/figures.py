"""The figures of a report, from any set of runs. Several seeds of one method are drawn as one line, their mean, with their range.

`CHARTS` lists the figures and the rows that each draws; `capacity` is separate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools import plots
from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import forgetting_by_age, forgetting_curve
from ketools.evaluation.metrics import hover_text, metric, percent
from ketools.plots.drawers import HIGH, LOW, SEEDS, add_lines, add_load, describe, holes, measured, over_edits, scale
from ketools.plots.style import OUTCOMES, dress, label, last, plain, words
from ketools.runs.records import Group, listed, title
from ketools.runs.store import RunRecord

Rows = Callable[[RunRecord], pd.DataFrame]
POINTS = 26
"""The most points on a line; with more, markers overlap."""


def pooled(groups: Sequence[Group], rows: Rows, keep: Sequence[str] = ()) -> pd.DataFrame:
    """The tables that `rows` takes from the records, pooled over the seeds of each group.

    Args:
        groups: of one model.
        rows: takes a table from a record; an empty one if the record has none.
        keep: columns that tell rows apart, besides edits.

    Returns:
        A row per group and point that all its seeds have: method (the group's label), edits, `keep`, each other column's mean,
        NAME_low and NAME_high, and seeds (how many). Of layer the most frequent value is taken instead of the mean. Seeds
        without rows are left out; a column runs then says how many seeds the group has. If some seeds have NaN in a column,
        NAME_seeds says how many are in its mean.
    """
    parts = []
    for group in groups:
        frames = [frame for run in group.runs if not run.ended_at_once and len(frame := rows(run.record))]
        if not frames:
            continue
        whole = pd.concat(frames, ignore_index=True)
        by = whole.groupby(["edits", *keep], sort=True)
        shared = by.size() == len(frames)
        numbers = [name for name in whole.select_dtypes(["number", "bool"]).columns if name not in ("edits", *keep)]
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
        parts.append(pd.concat([*ranges, count[partly].add_suffix(SEEDS), same], axis=1).copy().reset_index())
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method", "edits", *keep])
    return frame[["method", *frame.columns.drop("method")]]


def left_out(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """For a caption: how many seeds are missing from the means of `columns`; "" if none is."""
    sentences = []
    for method, part in frame.groupby("method", sort=False):
        seeds = int(part["seeds"].iloc[0])
        if "runs" in part and part["runs"].notna().any():
            runs = int(part["runs"].iloc[0])
            sentences.append(f" {label(str(method))}: {seeds} of {runs} seeds; the others have no record of this.")
        for name in columns:
            counts = part[f"{name}{SEEDS}"].dropna() if f"{name}{SEEDS}" in part else part["seeds"].iloc[:0]
            if few := sorted({int(count) for count in counts if 0 < count < seeds}):
                sentences.append(
                    f" {label(str(method))}: {name} is, at some points, the mean of {listed([str(n) for n in few])} of "
                    f"{seeds} seeds; the others lack it."
                )
    return "".join(sentences)


def thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """Every k-th point of each method, including its first and last: at most about `POINTS` points per line."""

    def kept(places: pd.Series) -> pd.Series:
        order = sorted(set(places))
        step = max(1, -(-(len(order) - 1) // (POINTS - 1)))
        return places.isin({*order[::-step], *order[:1]})

    return frame[frame.groupby("method", sort=False)["edits"].transform(kept).astype(bool)] if len(frame) else frame


def about_seeds(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """For a caption: how the lines (bars, without `columns`) show several seeds, and which seeds they leave out."""
    if "seeds" not in frame:
        return ""
    several = sorted(set(frame.loc[frame["seeds"] > 1, "seeds"].astype(int)))
    counts, text = " or ".join(map(str, several)), ""
    if several:
        text = f" A line of several seeds is their mean; the band behind it is the range of the {counts}."
        text = text if columns else f" Means over {counts} seeds where there are several."
    partly = [str(name).removesuffix(SEEDS) for name in frame if str(name).endswith(SEEDS)]
    return text + left_out(frame, columns or partly)


def residual_share(frame: pd.DataFrame) -> go.Figure:
    """Share (fraction) of the edited layers' MLPs in the residual stream, over edits; columns method, edits, share.

    Gupta et al., 2502.01636, figure 5 ("importance hacking").
    """

    def finding(ends: dict[str, float], span: str) -> str:
        first = measured(frame, "share").sort_values("edits").groupby("method", sort=False)["share"].first()
        return OUTCOMES["residual_share"].sentence(
            {method: value / first[method] for method, value in ends.items()}, span
        )

    caption = (
        "Norms of what the edited layers' MLPs add to the residual stream, summed and divided by the sum over everything that "
        "is added to it; mean over tokens of ordinary text."
    )
    axis = {"range": [0, 1.1 * frame["share"].max()]}
    return over_edits(frame, metric("share", "residual"), finding, caption, axis=axis)


def forgetting(frame: pd.DataFrame) -> go.Figure:
    """Efficacy of all edits so far, now, relative to right after their batches, over edits; column kept."""
    caption = (
        "Efficacy of all edits so far, divided by that of the same edits right after their own batches; 100%: later edits undo "
        "nothing."
    )
    return over_edits(frame, metric("kept", "forgetting"), OUTCOMES["kept"].sentence, caption)


def by_age(frame: pd.DataFrame) -> go.Figure:
    """Forgetting at the end of a run by the number of later edits; columns method, edits (later ones), kept."""

    def finding(_: dict[str, float], span: str) -> str:
        oldest = frame[frame["edits"] >= 0.9 * frame.groupby("method")["edits"].transform("max")]
        return OUTCOMES["oldest_kept"].sentence(
            oldest.groupby("method", sort=False)["kept"].mean().to_dict(), f"up to {span} later"
        )

    caption = (
        "Efficacy at the end of the run divided by that right after the batch, by the number of later edits; each point is the "
        "mean over neighbouring batches. The oldest edits are on the right."
    )
    if "excluded" in frame:
        count = (frame["excluded"] * frame.get("seeds", 1)).groupby(frame["method"], sort=False).sum().round()
        if lines := [f"{int(n):,} with {label(str(method))}" for method, n in count.items() if n > 0]:
            what = "without a finite score at both moments, or in a batch without a successful edit"
            caption += f" Edits left out ({what}): {listed(lines)}."
    # The youngest edits, of age 0, are a point like any other.
    x = "later edits (count)"
    return over_edits(frame, metric("kept", "forgetting"), finding, caption, x=x, since=-1)


def pace(frame: pd.DataFrame) -> go.Figure:
    """Editing time per edit over a run, one line per method; columns method, edits, seconds_per_edit."""

    def finding(_: dict[str, float], span: str) -> str:
        grown = {}  # mean of a line's last tenth over that of its first tenth
        for method, part in measured(frame, "seconds_per_edit").groupby("method", sort=False):
            values = part.sort_values("edits")["seconds_per_edit"].dropna().to_numpy()
            n = max(1, len(values) // 10)
            if len(values) > 1:
                grown[str(method)] = float(values[-n:].mean() / values[:n].mean())
        return (
            OUTCOMES["pace"].sentence(grown, span) if grown else "Time per edit: one batch, nothing to compare it with"
        )

    caption = "Wall time of editing alone, without measuring; each point is the mean over neighbouring batches."
    axis = {"rangemode": "tozero"} | scale(frame["seconds_per_edit"].dropna(), 50.0)
    return over_edits(frame, metric("seconds_per_edit"), finding, caption, axis=axis)


def _most_grown(record: RunRecord) -> pd.DataFrame:
    """At each batch the edited matrix and the unedited one with the largest ratio."""
    norms = record.norms
    if not {"edits", "edited", "layer", "ratio"} <= set(norms):
        return pd.DataFrame()
    most = norms.sort_values("ratio").groupby(["edits", "edited"]).tail(1)
    return most[["edits", "edited", "layer", "ratio"]].sort_values("edits")


def checkpoints(record: RunRecord) -> pd.DataFrame:
    """The rows that most figures draw."""
    return record.checkpoints


def _shares(record: RunRecord) -> pd.DataFrame:
    frame = record.residual
    if not {"edits", "edited", "share"} <= set(frame) or not frame["edited"].astype(bool).any():
        return pd.DataFrame()
    return frame[frame["edited"].astype(bool)].groupby("edits", as_index=False)["share"].sum()


def _left(record: RunRecord) -> pd.DataFrame:
    try:
        return forgetting_curve(record.checkpoints)[["edits", "kept"]]
    except KetoolsError:  # no checkpoint after an edit
        return pd.DataFrame()


def _ages(record: RunRecord) -> pd.DataFrame:
    try:
        ages = forgetting_by_age(record.facts, record.batches)
    except KetoolsError:  # facts are scored at the end only once the run is complete
        return pd.DataFrame()
    ages = ages.rename(columns={"age": "edits"}).sort_values("edits")
    # A batch without a ratio is left out with all its edits.
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
    natural = record.checkpoints.get("p_natural", pd.Series(dtype=float)).dropna()
    return rows.assign(p_natural=natural.iloc[0]) if len(natural) else rows


def _binned(rows: pd.DataFrame, column: str, total: str | None = None) -> pd.DataFrame:
    """Neighbouring rows merged into 25 at most: the mean of `column` at their last number of edits, and the sum of `total`."""
    size = -(-len(rows) // 25)
    place = np.arange(len(rows))[::-1] // size  # full bins from the end: the last point ends with the last batch
    by = rows.groupby(place)
    sums = {} if total is None else {total: by[total].sum()}
    return pd.DataFrame({"edits": by["edits"].max(), column: by[column].mean(), **sums}).sort_values("edits")


@dataclass(frozen=True)
class Chart:
    """One figure: `title` names what it shows, `rows` takes its rows from a record, `draw` draws them once pooled.

    `columns`: those that its panels show; `table`: the table of metrics that explains them; `keep`: further columns that
    tell rows apart; `n`: the column with the number of facts behind the first column's shares.
    """

    title: str
    rows: Rows
    draw: Callable[[pd.DataFrame], go.Figure]
    columns: tuple[str, ...] = ()
    table: str = "checkpoints"
    keep: tuple[str, ...] = ()
    n: str = ""

    def about(self) -> str:
        """The metrics' explanations of the columns shown; "" if it has none."""
        return "\n".join(hover_text(name, self.table) for name in self.columns)

    def figure(self, groups: Sequence[Group]) -> go.Figure:
        """The figure for groups of one model. Raises KetoolsError, with the reason, if nothing was recorded for it."""
        frame = pooled(groups, self.rows, keep=self.keep)
        if frame.empty:
            raise KetoolsError("nothing to draw: not recorded in these runs, or not yet")
        if self.columns:
            frame = thinned(frame)
        fig = self.draw(frame)
        add_load(fig, groups[0].runs[0].d_mlp)
        fig.layout.meta = words(fig) | {"caption": words(fig)["caption"] + about_seeds(frame, self.columns)}
        if self.n and self.n in frame:
            rows = frame.dropna(subset=[self.columns[0]])
            (ends, span), (counts, _) = last(rows, self.columns[0]), last(rows, self.n)
            n = {method: int(count) for method, count in counts.items() if not math.isnan(count)}
            if len(n) == len(ends):
                fig.layout.meta |= {"finding": OUTCOMES[self.columns[0]].sentence(ends, span, n)}
        return fig


CHARTS: dict[str, Chart] = {
    "norm": Chart("Norm of the edited matrices", _most_grown, plots.norm_growth, ("ratio",), "norms", ("edited",)),
    "residual": Chart("The edited layers in the residual stream", _shares, residual_share, ("share",), "residual"),
    "unedited": Chart("Unedited facts", checkpoints, plots.unedited_kept, ("unedited_kept",), n="unedited_known"),
    "same-subject": Chart(
        "Other facts about edited subjects",
        checkpoints,
        plots.same_subject_kept,
        ("same_subject_kept",),
        n="same_subject_known",
    ),
    "downstream": Chart("Downstream tasks", checkpoints, plots.downstream_kept, ("downstream_kept",)),
    "perplexity": Chart("Perplexity", checkpoints, plots.perplexity, ("perplexity_ratio",)),
    "scores": Chart("The edits", checkpoints, plots.edit_scores, ("ES", "PS", "NS"), n="edits"),
    "forgetting": Chart("Forgetting", _left, forgetting, ("kept",), "forgetting"),
    "age": Chart("Forgetting by age", _ages, by_age, ("kept",), "forgetting"),
    "probability": Chart("Probability of edited facts", checkpoints, plots.probability, ("p_edited",)),
    "stopped": Chart(
        "Targets when their optimisation stopped",
        _stopped,
        plots.target_probability_lines,
        ("p_target_mean",),
        "batches",
    ),
    "pace": Chart("Time per edit over the run", _times, pace, ("seconds_per_edit",), "demo"),
    "cost": Chart("Cost of an edit", lambda record: record.batches, plots.cost),
}
"""The figures of a report, in order."""


def capacity(groups: Sequence[Group]) -> pd.DataFrame:
    """Edits recalled at each checkpoint, by load.

    A matrix with d_mlp inputs has room for at most d_mlp linearly independent keys, one per edit. So many facts can be stored
    exactly, more only at the expense of others. Since keys of facts overlap, there is no sharp bend.

    Args:
        groups: from `ketools.runs.records.arrange`, of any models.

    Returns:
        A row per model, method and checkpoint after an edit: model, method, edits, d_mlp, load (edits / d_mlp), held (share
        of all edits so far whose new object is the model's answer now; mean over seeds; NaN where not measured), held_low,
        held_high, seeds.

    Raises:
        KetoolsError: no record with d_mlp has a checkpoint after an edit.
    """
    parts = []
    for group in groups:
        if math.isnan(d_mlp := group.runs[0].d_mlp):
            continue
        frame = pooled([group], checkpoints)
        if len(frame) and "efficacy_accuracy" in frame:
            names = {f"efficacy_accuracy{end}": f"held{end}" for end in ("", LOW, HIGH)}
            frame = frame[frame["edits"] > 0].rename(columns=names)[["method", "edits", *names.values(), "seeds"]]
            parts.append(frame.assign(model=group.model, d_mlp=int(d_mlp)))
    if not any(part["held"].notna().any() for part in parts):
        raise KetoolsError("nothing to draw: the records lack d_mlp of their models, or a checkpoint after an edit")
    frame = pd.concat(parts, ignore_index=True)
    frame["load"] = frame["edits"] / frame["d_mlp"]
    return frame[["model", *frame.columns.drop("model")]]


def capacity_curve(frame: pd.DataFrame) -> go.Figure:
    """Share of edits recalled over load, a panel per model, a line per method; from `capacity`."""
    models = list(dict.fromkeys(frame["model"]))
    widths = [int(frame.loc[frame["model"] == model, "d_mlp"].iloc[0]) for model in models]
    heads = [f"{plain(model)}: d_mlp {width:,}" for model, width in zip(models, widths, strict=True)]
    fig = make_subplots(1, len(models), shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.05)
    findings, descriptions, missing = [], [], ""
    for panel, model in enumerate(models, 1):
        part = frame[frame["model"] == model]
        over_load = part.assign(edits=part["load"])
        missing += holes(over_load, "held")
        if over_load["held"].isna().all():
            continue
        rows = measured(over_load, "held")
        add_lines(fig, rows, "held", ".1%", panel=panel)
        fig.add_vline(x=1, line={"color": "#808080", "dash": "dot", "width": 2}, row=1, col=panel)
        descriptions.append(f"{model}: " + describe(rows, "held", "edits recalled", percent))
        ends = part.dropna(subset="held").sort_values("edits").groupby("method", sort=False).tail(1)
        best, worst = (ends.loc[getattr(ends["held"], which)()] for which in ("idxmax", "idxmin"))
        most, least = (
            f"{percent(r['held'])} of {int(r['edits']):,} with {title(str(r['method']))}" for r in (best, worst)
        )
        text = f"{plain(model)} at load {best['load']:.2g} holds {most}"
        findings.append(text if best["method"] == worst["method"] else f"{text}, least {least}")
    fig.update_xaxes(title=metric("load", "shared").axis, rangemode="tozero")
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title="edits recalled (%)", col=1)
    caption = (
        "Share of all edits so far whose new object is the model's answer now. The dotted line is load 1, one edit per key "
        "dimension: more keys than that cannot be linearly independent."
    )
    fig = dress(fig, "; ".join(findings), caption + missing, " ".join(descriptions))
    return fig.update_layout(legend={"y": 1.09}, hovermode="closest")
