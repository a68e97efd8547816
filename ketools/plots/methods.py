"""Figures of forgetting and of comparisons between methods (ketools.evaluation.forgetting), each with its uncertainty."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from ketools.evaluation.forgetting import half_life
from ketools.plots.drawers import EDITS, add_lines, add_reference, describe, holes, led, measured
from ketools.plots.style import (
    NEUTRAL,
    OKABE_ITO,
    Verdict,
    add_line,
    checked,
    dress,
    gaps,
    joined,
    label,
    last,
    number,
    percent,
    plain,
    present,
    styles,
)
from ketools.runs.records import listed

_BEYOND = 10  # times the run's length: beyond it an extrapolated half-life says nothing
Pairs = Mapping[tuple[str, str], pd.Series]


def forgetting_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """What is left of the edits that took, over edits or by age, with the half-life in the title.

    From `forgetting.forgetting_curve` or `forgetting_by_age`; several methods one below the other with a column method.
    Raises KetoolsError for another table, fewer than two rows, or one that says of no point what was kept.
    """
    of = "evaluation.forgetting.forgetting_curve or forgetting_by_age"
    x = "age" if "age" in frame else "edits"
    frame = present(checked(frame, x, "kept", "now", "at_edit", of=of, least=2), "kept", of)
    frame = frame if "method" in frame else frame.assign(method="edits")
    looks = styles(dict.fromkeys(frame["method"]))
    fig, said = go.Figure(), []
    for method, look in looks.items():
        mine = frame[frame["method"] == method].sort_values(x)
        add_line(fig, mine[x], mine["kept"], label(method), look, show=".1%")
        said.append(led(method, _half(mine, x), len(looks)))
    fig.add_hline(0.5, line={"color": NEUTRAL, "dash": "dot", "width": 2})
    fig.update_xaxes(title="edits made after the batch (count)" if x == "age" else EDITS, rangemode="tozero")
    fig.update_yaxes(
        title="still there of what took (%)", tickformat=".0%", range=[0, max(1.04, 1.04 * float(frame["kept"].max()))]
    )
    gone = [method for method in looks if bool(half_life(frame[frame["method"] == method])["reached"])]
    head = (
        "No half of the edits is lost"
        if not gone
        else "Half of the edits get lost"
        if len(gone) == len(looks)
        else f"Half of the edits get lost with {listed([label(m) for m in gone])}"
    )
    caption = joined("Score now over the score right after each batch; dotted: half.", context)
    return dress(fig, f"{head} ({'; '.join(said)})", caption, f"Line chart. {'; '.join(said)}.")


def _half(rows: pd.DataFrame, x: str) -> str:
    # How much is kept at the end, and the half-life.
    found, end = half_life(rows), rows.iloc[-1]
    kept = f"{percent(float(end['kept']))} kept after {int(end[x]):,} edits"
    if found["reached"]:
        return f"{kept}, half-life {found['half_life']:,.0f}"
    fit = found["half_life_fit"]
    far = not fit <= _BEYOND * float(end[x])
    return f"{kept}, no half-life in sight" if far else f"{kept}, half-life {fit:,.0f} by extrapolation"


# Figures of step 1 (ketools.norms.drift): the overfitting curve of the optimisation, and targets against natural states.


_STEP = "step of the optimisation (count)"
_P = "probability of the target (0 to 1)"


def target_curve(frame: pd.DataFrame, natural: float | None = None, *, context: str = "") -> go.Figure:
    """The overfitting curve: the target's mean probability per step, with the range from 5% to 95% of facts.

    From `targets.overfitting_curve`; several methods one below the other with a column method. `natural`: mean
    probability of natural facts, the level that is passed or not. Raises KetoolsError for another table or fewer than
    two steps.
    """
    frame = checked(
        frame, "step", "p_mean", "p05", "p95", "running", "n", of="norms.targets.overfitting_curve", least=2
    )
    frame = frame if "method" in frame else frame.assign(method="targets")
    looks = styles(dict.fromkeys(frame["method"]))
    fig, said = go.Figure(), []
    for method, look in looks.items():
        mine = frame[frame["method"] == method].sort_values("step")
        add_line(
            fig,
            mine["step"],
            mine["p_mean"],
            label(method),
            look,
            low=mine["p05"],
            high=mine["p95"],
            interval="5% to 95% of facts",
            band=True,
        )
        said.append(_passing(label(method) if len(looks) > 1 else "Targets", mine, natural))
    if natural is not None:
        add_reference(fig, [0, int(frame["step"].max())], [natural, natural], "natural facts", ".3f")
    fig.update_xaxes(title=_STEP, rangemode="tozero")
    fig.update_yaxes(title=_P, range=[0, 1.04])
    out = int(frame["excluded"].max()) if "excluded" in frame else 0
    caption = f"Mean over {int(frame['n'].max())} facts, one that has stopped with the probability at which it did; band: 5% to 95% of facts."
    caption += f" Left out, not finite: {out}." if out else ""
    return dress(fig, "; ".join(said), joined(caption, context), f"Line chart over steps. {'; '.join(said)}.")


def target_probability_lines(frame: pd.DataFrame) -> go.Figure:
    """Mean probability (0 to 1) of the targets when step 1 stopped, over edits, one line a method.

    Needs columns method, edits, p_target_mean (of `RunRecord.batches`); with p_natural, the mean probability of natural
    facts, that is a grey line. Raises KetoolsError if a column is missing or nothing was measured. Gupta et al.,
    2502.01636, table 1 compares edited facts with natural ones so.
    """
    rows = measured(frame, "p_target_mean")
    ends, span = last(rows, "p_target_mean")
    known = rows["p_natural"].dropna() if "p_natural" in rows else rows["edits"].iloc[:0]
    natural = float(known.mean()) if len(known) else None
    fig = go.Figure()
    add_lines(fig, rows, "p_target_mean", ".3f")
    caption = (
        "Probability of the new object at the last step of the target's optimisation, mean over the contexts it is "
        "optimised in and over the facts of neighbouring batches, before anything is written into the weights."
    )
    text = describe(rows, "p_target_mean", "the target's probability when step 1 stopped", number)
    if natural is not None:
        add_reference(fig, [0, int(rows["edits"].max())], [natural, natural], "natural facts, before any edit", ".3f")
        caption += " Natural facts: probability of the true object where the unedited model answers right."
        text += f" Natural facts: {number(natural)}."
    fig.update_xaxes(title=EDITS, rangemode="tozero")
    fig.update_yaxes(title=_P, range=[0, 1.04])
    return dress(fig, _stopping(ends, natural, span), caption + holes(frame, "p_target_mean"), text)


def target_trace_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """The target's probability before each update of step 1, a line per fact, from `targets.trace` (id, step, p_target).

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "id", "step", "p_target", of="norms.targets.trace", least=2)
    fig = go.Figure()
    for name, rows in frame.groupby("id", sort=False):
        fig.add_scatter(
            x=rows["step"].tolist(), y=gaps(rows["p_target"]), mode="lines", name=plain(name, 30), showlegend=False, opacity=0.5,
            line={"color": OKABE_ITO["blue"], "width": 1.5}, hovertemplate=f"{plain(name, 30)}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    ends = frame.sort_values("step").groupby("id", sort=False).tail(1)
    fig.add_scatter(
        x=ends["step"].tolist(), y=gaps(ends["p_target"]), mode="markers", name="stopped", hoverinfo="skip",
        marker={"color": OKABE_ITO["vermillion"], "symbol": "square", "size": 7},
    )  # fmt: skip
    low, high = int(ends["step"].min()), int(ends["step"].max())
    p = number(float(ends["p_target"].median()))
    when = (
        f"after {low} steps, all of them"
        if low == high
        else f"after {low} to {high} steps (median {number(float(ends['step'].median()))})"
    )
    finding = f"{len(ends)} targets stop {when}, with a median probability of {p}"
    fig.update_xaxes(title=_STEP, rangemode="tozero")
    fig.update_yaxes(title=_P, range=[0, 1.04])
    caption = joined("A line per fact; squares: where the optimisation of that fact stopped.", context)
    return dress(fig, finding, caption, f"Line chart over steps, a line per fact. {finding}.").update_layout(
        hovermode="closest"
    )


def _stopping(ends: dict[str, float], natural: float | None, span: str) -> str:
    if natural is not None:
        verdict = Verdict(
            "Step 1", "stops no surer of its targets than of natural facts", "grows surer of its targets than of natural facts",
            f"natural facts {number(natural)}; targets", lambda v: v <= natural, number,
        )  # fmt: skip
        return verdict.sentence(ends, span)
    values = ", ".join(f"{label(method)} {number(value)}" for method, value in ends.items())
    order = sorted(ends, key=lambda method: ends[method])
    low, high = order[0], order[-1]
    if len(ends) == 1:
        return f"Step 1 stops at a target probability of {number(ends[low])} with {label(low)} (after {span} edits)"
    if ends[high] - ends[low] < 0.01:
        return f"Step 1 stops at like target probabilities with every method (after {span} edits: {values})"
    return f"Step 1 stops surest of its targets with {label(high)}, least sure with {label(low)} (after {span} edits: {values})"


def _passing(name: str, rows: pd.DataFrame, natural: float | None) -> str:
    # Where a curve passes the natural level, and where it ends.
    last = rows.iloc[-1]
    end = f"{number(float(last['p_mean']))} after {int(last['step'])} steps"
    left = f", {percent(float(last['running']))} of facts still running" if last["running"] > 0 else ""
    if natural is None:
        return (
            f"{name} reach a mean probability of {end}{left}"
            if name == "Targets"
            else f"{name}: mean probability {end}{left}"
        )
    over = rows.loc[rows["p_mean"] > natural, "step"]
    if last["p_mean"] > natural and len(over):
        return f"{name} {'pass' if name == 'Targets' else 'passes'} natural facts ({number(natural)}) at step {int(over.iloc[0])} and {'end' if name == 'Targets' else 'ends'} at {end}{left}"
    return f"{name} {'do' if name == 'Targets' else 'does'} not pass natural facts ({number(natural)}): {end}{left}"


# Figures of an update itself: its spectrum, where its energy lies, and how much text the covariance behind it needs.
#
# Frames of ketools.norms (spectra.update_spectra, alignment.alignment) and ketools.editing.covariance.
