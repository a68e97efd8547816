"""Figures of lifelong editing, from tables of `ketools.runs` with a column `method` (see `stack`)."""

from collections.abc import Mapping
from typing import Protocol

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.plots import style as findings
from ketools.plots.drawers import EDITS, add_lines, add_reference, holes, measured, need, scale
from ketools.plots.drawers import describe as told
from ketools.plots.style import dress, label, left_of, styles

_SCORES = {"ES": "efficacy (ES)", "PS": "paraphrases (PS)", "NS": "neighbours (NS)"}
_PHASES = {
    "seconds_targets": ("targets", ""),
    "seconds_keys": ("keys", "/"),
    "seconds_solve": ("solve", "x"),
    "seconds_write": ("write", "."),
}


class Tables(Protocol):
    """What `ketools.runs.store.RunRecord` has; only the tables are used here."""

    batches: pd.DataFrame
    norms: pd.DataFrame
    checkpoints: pd.DataFrame


def stack(records: Mapping[str, Tables], table: str) -> pd.DataFrame:
    """The table ("batches", "norms" or "checkpoints") of several runs in one, first column `method` (the key)."""
    parts = [getattr(record, table).assign(method=name) for name, record in records.items()]
    if not parts:
        raise KetoolsError("no runs to draw: give at least one record")
    frame = pd.concat(parts, ignore_index=True)
    return frame[["method", *frame.columns.drop("method")]]


def norm_growth(norms: pd.DataFrame) -> go.Figure:
    """Frobenius norm of the most grown edited matrix, relative to before any edit (ratio), over edits, by method.

    Needs columns method, edits, layer, edited (bool), ratio. The unedited matrices are one grey line: their largest
    ratio. Raises KetoolsError if a column is missing or nothing was measured. Gupta et al., 2502.01636, figure 1.
    """
    need(norms, "ratio", "layer", "edited")
    touched, others = norms[norms["edited"].astype(bool)], norms[~norms["edited"].astype(bool)]
    measured(touched, "ratio")
    most = touched.sort_values("ratio").groupby(["method", "edits"], sort=False).tail(1).sort_index()
    ends, span = findings.last(most, "ratio")
    fig = go.Figure()
    add_lines(fig, most, "ratio", ".3f", note="layer")
    if len(others):
        rest = others.groupby("edits", as_index=False)["ratio"].max()
        add_reference(fig, rest["edits"], rest["ratio"], "unedited matrices", ".3f")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="Frobenius norm (ratio to before any edit)", **scale(most["ratio"]))
    caption = (
        "Each line follows the MLP output matrix that grew most among the edited layers; the grey line is the most "
        "changed of all other layers, with any method."
    )
    return dress(fig, findings.NORM.sentence(ends, span), caption, told(most, "ratio", "norm ratio", findings.times))


def unedited_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Share of unedited facts (of other subjects; right before) still right, over edits; columns method, edits, unedited_kept."""
    caption = "Facts about subjects that no edit names, of those that the model answered right before the first edit."
    return _share(checkpoints, "unedited_kept", findings.UNEDITED, "unedited facts still right (%)", caption)


def same_subject_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Share of the *other* facts of edited subjects still right; columns method, edits, same_subject_kept."""
    caption = "Facts about the subjects edited so far, other than the edited ones, of those answered right before."
    return _share(checkpoints, "same_subject_kept", findings.SAME_SUBJECT, "other facts still right (%)", caption)


def downstream_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Mean F1 over the downstream tasks relative to before any edit; columns method, edits, downstream_kept."""
    caption = "Weighted F1, mean over the downstream tasks, divided by its value before the first edit."
    return _share(checkpoints, "downstream_kept", findings.DOWNSTREAM, "downstream F1 (% of before)", caption)


def perplexity(checkpoints: pd.DataFrame) -> go.Figure:
    """Perplexity on held-out text relative to before any edit (ratio); columns method, edits, perplexity_ratio."""
    rows = measured(checkpoints, "perplexity_ratio")
    ends, span = findings.last(rows, "perplexity_ratio")
    fig = go.Figure()
    add_lines(fig, rows, "perplexity_ratio", ".2f")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="perplexity (ratio to before any edit)", **scale(rows["perplexity_ratio"]))
    caption = "Perplexity on held-out documents; 1 is the unedited model, lower is better."
    text = told(rows, "perplexity_ratio", "perplexity ratio", findings.times)
    return dress(fig, findings.PERPLEXITY.sentence(ends, span), caption + holes(checkpoints, "perplexity_ratio"), text)


def edit_scores(checkpoints: pd.DataFrame) -> go.Figure:
    """Success of all edits so far, scored on the model as it then was: ES, PS, NS (%), one panel each, over edits.

    Needs columns method, edits, ES, PS, NS; rows before the first edit may be NaN.
    """
    rows = measured(checkpoints, "ES", *_SCORES)
    ends, span = findings.last(rows, "ES")
    fig = make_subplots(1, 3, shared_yaxes=True, subplot_titles=list(_SCORES.values()), horizontal_spacing=0.03)
    for column, score in enumerate(_SCORES, 1):
        add_lines(fig, rows, score, ".1%", panel=column)
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title="prompts won (%)", col=1)
    caption = (
        "All edits so far, scored again at each checkpoint: what later edits undo is lost. Won: the wanted object is the more probable one. ES: the edit's "
        "own prompt; PS: other wordings; NS: other subjects with the old object, which must keep it."
    )
    text = " ".join(told(rows, score, name, findings.percent) for score, name in _SCORES.items())
    fig = dress(fig, findings.EFFICACY.sentence(ends, span), caption + holes(checkpoints, *_SCORES), text)
    return fig.update_layout(legend={"y": 1.09})


def probability(checkpoints: pd.DataFrame) -> go.Figure:
    """Mean probability (0 to 1) of the edited facts' new objects against that of natural facts, over edits, by method.

    Needs columns method, edits, p_edited, p_natural (before any edit). The overfit of Gupta et al., 2502.01636, table 1.
    """
    rows = measured(measured(checkpoints, "p_edited"), "p_natural")
    ends, span = findings.last(rows, "p_edited")
    natural = float(rows["p_natural"].mean())
    fig = go.Figure()
    add_lines(fig, rows, "p_edited", ".3f")
    reach = [0, int(rows["edits"].max())]
    add_reference(fig, reach, [natural, natural], "natural facts, before any edit", ".3f")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title="mean probability (0 to 1)", range=[0, 1.04])
    caption = (
        "Edited facts: probability of the new object on the edit's own prompt, all edits so far. Natural facts: that of "
        "the true object where the unedited model answers right. Above the grey line is overfitting."
    )
    text = told(rows, "p_edited", "mean probability of edited facts", findings.number)
    text += f" Natural facts: {findings.number(natural)}."
    return dress(fig, findings.probability(ends, natural, span), caption + holes(checkpoints, "p_edited"), text)


def cost(batches: pd.DataFrame) -> go.Figure:
    """Optimisation steps and seconds per fact, by method, seconds split by phase (targets, keys, solve, write).

    Needs columns method, edits, facts (in the batch), steps_mean, seconds and any seconds_PHASE.
    """
    need(batches, "facts", "steps_mean", "seconds")
    phases = {name: of for name, of in _PHASES.items() if name in batches}
    total = {m: rows["facts"].sum() for m, rows in batches.groupby("method", sort=False)}
    steps = {
        m: float((rows["steps_mean"] * rows["facts"]).sum() / total[m])
        for m, rows in batches.groupby("method", sort=False)
    }
    seconds = {m: float(rows["seconds"].sum() / total[m]) for m, rows in batches.groupby("method", sort=False)}
    methods, names = list(total), [label(m) for m in total]
    colours = [style.colour for style in styles(methods).values()]
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)  # the axes say what each half is
    fig.add_bar(
        y=names, x=list(steps.values()), orientation="h", marker={"color": colours}, name="steps", showlegend=False,
        texttemplate="%{x:.1f}", hovertemplate="%{y}: %{x:.2f} steps<extra></extra>", row=1, col=1,
    )  # fmt: skip
    shares = batches.groupby("method", sort=False)[list(phases)].sum()
    for column, (phase, pattern) in phases.items():
        fig.add_bar(
            y=names, x=[shares.loc[m, column] / total[m] for m in methods], orientation="h", name=phase, legendgroup=phase,
            marker={"color": colours, "pattern": {"shape": pattern, "fgcolor": "white"}},
            hovertemplate=f"%{{y}}, {phase}: %{{x:.4f}} s<extra></extra>", row=1, col=2,
        )  # fmt: skip
    fig.update_xaxes(title="optimisation steps per fact (count)", row=1, col=1)
    fig.update_xaxes(title="time per fact (s)", row=1, col=2)
    fig.update_yaxes(title="method (name)", autorange="reversed", col=1)
    caption = "Means over all batches: steps of step 1, and time by phase, which compares runs of one machine only."
    each = (f"{label(m)}: {findings.number(steps[m])} steps and {findings.number(seconds[m])} s per fact." for m in methods)  # fmt: skip
    text = f"Bar chart. {' '.join(each)}"
    fig = dress(fig, findings.cost(steps, seconds), caption, text, 300, left_of(names))
    return fig.update_layout(barmode="stack", hovermode="closest", legend={"x": 1.0, "xanchor": "right", "y": 1.12})


def _share(frame: pd.DataFrame, column: str, verdict: findings.Verdict, axis: str, caption: str) -> go.Figure:
    """A fraction over edits, one line a method."""
    rows = measured(frame, column)
    ends, span = findings.last(rows, column)
    fig = go.Figure()
    add_lines(fig, rows, column, ".1%")
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title=axis, tickformat=".0%", range=[0, max(1.04, 1.04 * rows[column].max())])
    text = told(rows, column, axis, findings.percent)
    return dress(fig, verdict.sentence(ends, span), caption + holes(frame, column), text)
