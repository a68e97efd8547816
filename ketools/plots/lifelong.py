"""Figures of lifelong editing, from tables of `ketools.runs` with a column `method` (see `stack`)."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric, number, percent, times
from ketools.norms.weights import growing, growth
from ketools.plots.drawers import EDITS, add_lines, describe, holes, measured, need, over_edits
from ketools.plots.style import OUTCOMES, Outcome, dress, every, joined, label, last, left_of, listed_values, styles
from ketools.runs.records import listed
from ketools.runs.store import RunRecord

_PHASES = {  # column: (name, hatching)
    "seconds_targets": ("targets", ""),
    "seconds_keys": ("keys", "/"),
    "seconds_solve": ("solve", "x"),
    "seconds_write": ("write", "."),
}


def stack(records: Mapping[str, RunRecord], table: str) -> pd.DataFrame:
    """One table ("batches", "norms" or "checkpoints") of several runs, with the key as first column `method`."""
    parts = [getattr(record, table).assign(method=name) for name, record in records.items()]
    if not parts:
        raise KetoolsError("no runs to draw: give at least one record")
    frame = pd.concat(parts, ignore_index=True)
    return frame[["method", *frame.columns.drop("method")]]


def _most_grown(norms: pd.DataFrame) -> pd.DataFrame:
    """For each method and number of edits, the row of the edited matrix with the largest ratio."""
    need(norms, "ratio", "layer", "edited")
    edited = norms[norms["edited"].astype(bool)]
    measured(edited, "ratio")
    return edited.sort_values("ratio").groupby(["method", "edits"], sort=False).tail(1).sort_index()


def norm_growth(norms: pd.DataFrame) -> go.Figure:
    """Frobenius norm of the most-changed edited matrix, relative to the unedited model (ratio), over edits, by method.

    Needs columns method, edits, layer, edited (bool), ratio. One grey line is the largest ratio of the unedited matrices.
    Raises KetoolsError if a column is missing or nothing was measured. Gupta et al., 2502.01636, figure 1.
    """
    caption = (
        "At each point, a line shows the edited MLP output matrix whose norm grew most; the grey line is the largest ratio of "
        "any unedited matrix, with any method."
    )
    most = _most_grown(norms)
    others = norms[~norms["edited"].astype(bool)].groupby("edits", as_index=False)["ratio"].max()
    reference = ("unedited matrices", others["edits"], others["ratio"]) if len(others) else None
    finding = OUTCOMES["norm_ratio"].sentence
    return over_edits(most, metric("norm_ratio"), finding, caption, column="ratio", reference=reference, note="layer")


def norm_fit_curve(norms: pd.DataFrame, *, context: str = "") -> go.Figure:
    """`norm_growth` with a fitted law for each method; takes the same table.

    The law of `ketools.norms.weights` is sqrt(||W_n||^2 - ||W_0||^2) = a n^b; the norm that follows from it is drawn. b near
    1/2: a random walk; near 1: all edits add in one direction. Raises KetoolsError if a column is missing, nothing was
    measured, or the norms do not begin before the first edit.
    """
    most = _most_grown(norms)
    if most["edits"].nunique() < 2:
        raise KetoolsError("nothing to fit: the norms were measured at fewer than two numbers of edits")
    fig, lines, still_growing = go.Figure(), [], []
    add_lines(fig, most, "ratio", metric("norm_ratio").spec, note="layer")
    for method, look in styles(dict.fromkeys(most["method"])).items():
        ratio = most[most["method"] == method].sort_values("edits").set_index("edits")["ratio"].dropna()
        name, law, end = label(method), growth(ratio), int(ratio.index[-1])
        lines.append(f"{name} {_law(law)} ({times(float(ratio.iloc[-1]))} after {end:,} edits)")
        if growing(ratio):
            still_growing.append(name)
        if np.isfinite(law["exponent"]):
            n = np.linspace(0, end, 60)
            fitted = np.sqrt(ratio.iloc[0] ** 2 + (law["scale"] * n ** law["exponent"]) ** 2)
            fig.add_scatter(
                x=n.tolist(), y=fitted.tolist(), mode="lines", name=f"law of {name}", opacity=0.55, hoverinfo="skip",
                line={"color": look.colour, "width": 1.5, "dash": "solid"}, legendgroup=name, showlegend=False,
            )  # fmt: skip
    verdict = "no longer growing at the end"
    if still_growing:
        verdict = f"still growing at the end with {listed(still_growing)}"
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title=metric("norm_ratio").axis)
    caption = "Thin lines: fitted law, added norm = a × edits^b (b = 1/2: a random walk, 1: all edits add in one direction); 95% intervals of b."
    caption += holes(norms[norms["edited"].astype(bool)], "ratio")
    text = f"Line chart over edits. {'; '.join(lines)}; {verdict}."
    return dress(fig, f"Norm growth: {'; '.join(lines)}; {verdict}", joined(caption, context), text)


def _law(law: pd.Series) -> str:
    exponent, low, high = (float(law[name]) for name in ("exponent", "exponent_low", "exponent_high"))
    if not math.isfinite(exponent):
        return "does not grow" if law["law"] == "none" else "follows no law that fits"
    span = f" [{low:.2f} to {high:.2f}]" if math.isfinite(low) else ""
    return f"adds as edits^{exponent:.2f}{span}"


def unedited_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Retention of unedited facts about other subjects, over edits; columns method, edits, unedited_kept."""
    caption = "Facts about subjects that no edit names, among those that the unedited model answered correctly."
    return over_edits(checkpoints, metric("unedited_kept"), OUTCOMES["unedited_kept"].sentence, caption)


def same_subject_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Retention of the *other* facts of edited subjects over edits; columns method, edits, same_subject_kept."""
    caption = "Other facts about the subjects edited so far, among those that the unedited model answered correctly."
    return over_edits(checkpoints, metric("same_subject_kept"), OUTCOMES["same_subject_kept"].sentence, caption)


def downstream_kept(checkpoints: pd.DataFrame) -> go.Figure:
    """Mean F1 over the downstream tasks relative to before any edit; columns method, edits, downstream_kept."""
    caption = "Weighted F1, mean over the downstream tasks, divided by its value before the first edit."
    return over_edits(checkpoints, metric("downstream_kept"), OUTCOMES["downstream_kept"].sentence, caption)


def perplexity(checkpoints: pd.DataFrame) -> go.Figure:
    """Perplexity on held-out text relative to before any edit (ratio); columns method, edits, perplexity_ratio."""
    caption = "Perplexity on held-out documents; 1 is the unedited model, lower is better."
    return over_edits(checkpoints, metric("perplexity_ratio"), OUTCOMES["perplexity_ratio"].sentence, caption)


def edit_scores(checkpoints: pd.DataFrame) -> go.Figure:
    """Success of all edits so far at each checkpoint: ES, PS, NS (%), one panel each, over edits.

    Needs columns method, edits, ES, PS, NS; rows before the first edit may be NaN.
    """
    scores = [metric(name) for name in ("ES", "PS", "NS")]
    rows = measured(checkpoints, *(score.key for score in scores))
    ends, span = last(rows, "ES")
    fig = make_subplots(
        1, 3, shared_yaxes=True, subplot_titles=[score.label for score in scores], horizontal_spacing=0.03
    )
    for panel, score in enumerate(scores, 1):
        add_lines(fig, rows, score.key, score.spec, panel=panel)
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title="prompts won (%)", col=1)
    caption = (
        "All edits so far, scored again at each checkpoint. Won: the wanted object is the more probable one. ES: the edit's "
        "own prompt; PS: paraphrases; NS: other subjects with the old object, which must keep it."
    )
    text = " ".join(describe(rows, score.key, score.label, score.brief) for score in scores)
    caption += holes(checkpoints, *(score.key for score in scores))
    return dress(fig, OUTCOMES["ES"].sentence(ends, span), caption, text).update_layout(legend={"y": 1.09})


def probability(checkpoints: pd.DataFrame) -> go.Figure:
    """Mean probability (0 to 1) of the edited facts' new objects, compared with natural facts, over edits, by method.

    Needs columns method, edits, p_edited, p_natural (before any edit). Overfitting as in Gupta et al., 2502.01636, table 1.
    """
    measured(checkpoints, "p_edited"), measured(checkpoints, "p_natural")
    frame = checkpoints.assign(p_edited=checkpoints["p_edited"].where(checkpoints["p_natural"].notna()))
    rows = measured(frame, "p_edited")
    natural = float(rows["p_natural"].mean())

    def finding(ends: dict[str, float], span: str) -> str:
        values = f"(after {span} edits: {listed_values(ends, number)}; natural {number(natural)})"
        over = [label(method) for method, value in ends.items() if value > natural]
        if not over:
            methods = every(ends).replace("every", "any")
            return f"The model is no more confident in edited facts than in natural ones with {methods} {values}"
        methods = listed(over) if len(over) < len(ends) else every(ends)
        return f"The model is more confident in edited facts than in natural ones with {methods} {values}"

    caption = (
        "Edited facts: probability of the new object on the edit's own prompt, all edits so far. Natural facts: probability "
        "of the true object where the unedited model answers correctly. Above the grey line is overfitting."
    )
    reference = ("natural facts, before any edit", [0, int(rows["edits"].max())], [natural, natural])
    return over_edits(frame, metric("p_edited"), finding, caption, reference=reference)


def target_probability_lines(batches: pd.DataFrame) -> go.Figure:
    """Mean probability (0 to 1) of the targets when their optimisation stopped, over edits, one line per method.

    Needs columns method, edits, p_target_mean (of `RunRecord.batches`). A column p_natural, the mean probability of natural
    facts, adds a grey line to compare with, as in Gupta et al., 2502.01636, table 1. Raises KetoolsError if a column is
    missing or nothing was measured.
    """
    rows = measured(batches, "p_target_mean")
    known = rows.get("p_natural", pd.Series(dtype=float)).dropna()
    natural = float(known.mean()) if len(known) else None

    def finding(ends: dict[str, float], span: str) -> str:
        if natural is None:
            values = ", ".join(f"{label(method)} {number(value)}" for method, value in ends.items())
            return f"Target optimisation stops at these mean probabilities after {span} edits: {values}"
        good, bad = (f"{verb} more confident in its targets than in natural facts" for verb in ("stops no", "grows"))
        measure = f"natural facts {number(natural)}; targets"
        outcome = Outcome("Target optimisation", good, bad, measure, at_most=natural, unit="probability")
        return outcome.sentence(ends, span)

    caption = (
        "Probability of the new object at the last step of the target optimisation, before any weight changes; mean over the "
        "contexts of the optimisation and over the facts of neighbouring batches."
    )
    reference = None
    if natural is not None:
        caption += " Natural facts: probability of the true object where the unedited model answers correctly."
        reference = ("natural facts, before any edit", [0, int(rows["edits"].max())], [natural, natural])
    return over_edits(batches, metric("p_target_mean"), finding, caption, reference=reference)


def cost(batches: pd.DataFrame) -> go.Figure:
    """Optimisation steps and seconds per fact, by method, seconds split by phase (targets, keys, solve, write).

    Needs columns method, edits, facts (in the batch), steps_mean, seconds and any seconds_PHASE.
    """
    need(batches, "facts", "steps_mean", "seconds")
    by = batches.assign(steps=batches["steps_mean"] * batches["facts"]).groupby("method", sort=False)
    phases = [column for column in _PHASES if column in batches]
    means = by[["steps", "seconds", *phases]].sum().div(by["facts"].sum(), axis=0)
    names = [label(method) for method in means.index]
    colours = [look.colour for look in styles(means.index).values()]
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)  # the axes name the two halves
    fig.add_bar(
        y=names,
        x=means["steps"].tolist(),
        orientation="h",
        marker={"color": colours},
        name="steps",
        showlegend=False,
        texttemplate="%{x:.1f}",
        hovertemplate="%{y}: %{x:.2f} steps<extra></extra>",
        row=1,
        col=1,
    )
    for phase in phases:
        name, hatching = _PHASES[phase]
        fig.add_bar(
            y=names,
            x=means[phase].tolist(),
            orientation="h",
            name=name,
            legendgroup=name,
            row=1,
            col=2,
            marker={"color": colours, "pattern": {"shape": hatching, "fgcolor": "white"}},
            hovertemplate=f"%{{y}}, {name}: %{{x:.4f}} s<extra></extra>",
        )
    fig.update_xaxes(title=metric("steps_mean").axis, row=1, col=1)
    fig.update_xaxes(title="time per fact (s)", row=1, col=2)
    fig.update_yaxes(title="method (name)", autorange="reversed", col=1)
    caption = "Means over all batches: optimisation steps, and time by phase (comparable on one machine only)."
    steps, seconds = means["steps"], means["seconds"]
    each = (f"{label(m)}: {number(steps[m])} steps and {number(seconds[m])} s per fact." for m in means.index)
    # Compare only the steps: seconds depend on the machine.
    order = steps.sort_values(kind="stable").index
    few, many = order[0], order[-1]
    finding = f"{label(few)} takes {number(steps[few])} steps per fact ({number(seconds[few])} s)"
    if few != many:
        saved = 1 - steps[few] / steps[many]
        than = f"than {label(many)} ({number(steps[many])}; {number(seconds[many])} s)"
        finding += f", no fewer {than}" if saved < 0.01 else f", {percent(saved)} fewer {than}"
    fig = dress(fig, finding, caption, f"Bar chart. {' '.join(each)}", 300, left_of(names))
    return fig.update_layout(barmode="stack", hovermode="closest", legend={"x": 1.0, "xanchor": "right", "y": 1.12})
