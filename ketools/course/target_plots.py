"""Figures of step 1 (ketools.norms.targets): the overfitting curve of the optimisation, and targets against natural states."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import Verdict, last, number, percent
from ketools.course.lines import EDITS, add_lines, add_reference, describe, holes, measured
from ketools.course.parts import add_line, checked, gaps, joined, present
from ketools.course.style import OKABE_ITO, Style, dress, label, plain, styles

_STEP = "step of the optimisation (count)"
_P = "probability of the target (0 to 1)"
_MEASURES = {
    "steps": "steps (count)",
    "p_target": "probability (0 to 1)",
    "delta_norm": "norm of delta (L2)",
    "z_norm": "norm of z (L2)",
    "z_ratio": "length of z (ratio to the state's)",
}


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


def target_norm_points(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Norm of each target z against that of the state it replaces, from `targets.against_natural` (or `per_fact`).

    With natural norms the mean natural one is a line, and the title counts the targets beyond natural states. Raises
    KetoolsError for another table or one without finite norms.
    """
    of = "norms.targets.against_natural"
    frame = checked(frame, "id", "h0_norm", "z_norm", "delta_norm", "finite", of=of, least=2)
    rows = present(frame, "z_norm", of)
    fig = go.Figure()
    fig.add_scatter(
        x=rows["h0_norm"].tolist(), y=rows["z_norm"].tolist(), mode="markers", name="targets", marker={"color": OKABE_ITO["blue"], "size": 9, "opacity": 0.7},
        text=[plain(name, 30) for name in rows["id"]], customdata=rows["delta_norm"].tolist(),
        hovertemplate="%{text}<br>state %{x:.3f}, target %{y:.3f}<br>delta %{customdata:.3f}<extra></extra>",
    )  # fmt: skip
    ends = [float(rows["h0_norm"].min()), float(rows["h0_norm"].max())]
    add_reference(fig, ends, ends, "as long as the state before", ".3f")
    if "above" in rows:
        level = float(rows["natural_mean"].iloc[0])
        red = {"color": OKABE_ITO["vermillion"], "dash": "dash"}
        fig.add_scatter(x=ends, y=[level, level], mode="lines", name="mean natural state", line=red)
    finding = _length_words(rows)
    fig.update_xaxes(title="norm of the state before, h0 (L2)")
    fig.update_yaxes(title="norm of the target, z (L2)")
    out = len(frame) - len(rows)
    caption = joined(
        f"A point per fact, at the subject's last token{f'; {out} left out, not finite' if out else ''}.", context
    )
    text = f"Scatter plot of {len(rows)} facts. {finding}. Norms of z from {number(float(rows['z_norm'].min()))} to {number(float(rows['z_norm'].max()))}."
    return dress(fig, finding, caption, text).update_layout(hovermode="closest")


def target_summary_forest(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Median and the range from 5% to 95% of facts of each measure of step 1, a panel each, from `targets.summary`.

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "measure", "mean", "p05", "median", "p95", "n", of="norms.targets.summary")
    names = [_MEASURES.get(measure, plain(measure)) for measure in frame["measure"]]
    fig = make_subplots(len(frame), 1, vertical_spacing=0.62 / max(1, len(frame)))
    look = Style(OKABE_ITO["blue"], "solid", "circle")
    for i, (_, row) in enumerate(frame.iterrows(), 1):
        ends = {
            "array": [row["p95"] - row["median"]],
            "arrayminus": [row["median"] - row["p05"]],
            "color": look.colour,
            "thickness": 2,
            "width": 6,
        }
        point = go.Scatter(
            x=[row["median"]], y=[0], error_x=ends, mode="markers", name=names[i - 1], marker={"color": look.colour, "size": 10}, showlegend=False,
            customdata=[[row["p05"], row["p95"]]], meta={"interval": "5% to 95% of facts"},
            hovertemplate="median %{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
        )  # fmt: skip
        fig.add_trace(point, row=i, col=1)
        fig.update_xaxes(title=names[i - 1], row=i, col=1)
    fig.update_yaxes(tickmode="array", tickvals=[0], ticktext=["median"], title=None, showgrid=False)
    said = "; ".join(
        f"{name} {number(r['median'])} ({number(r['p05'])} to {number(r['p95'])})"
        for name, (_, r) in zip(names, frame.iterrows(), strict=True)
    )
    n, out = int(frame["n"].max()), int(frame["excluded"].max()) if "excluded" in frame else 0
    caption = joined(
        f"Medians and the range from 5% to 95% of {n} facts{f'; {out} left out, not finite' if out else ''}.", context
    )
    medians = "; ".join(f"{name.split(' (')[0]} {number(m)}" for name, m in zip(names, frame["median"], strict=True))
    finding = f"Step 1 at the median fact: {medians}"
    return dress(fig, finding, caption, f"Points with ranges. {said}.", 70 + 100 * len(frame))


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


def _length_words(rows: pd.DataFrame) -> str:
    middle = float(rows["z_norm"].median())
    if "above" not in rows:
        ratio = float((rows["z_norm"] / rows["h0_norm"]).median())
        verb = "longer than" if ratio > 1.005 else "shorter than" if ratio < 0.995 else "as long as"
        return f"Targets are {verb} the states that they replace (median {number(ratio)} times, {len(rows)} facts)"
    beyond, level = int((rows["above"] >= 0.95).sum()), float(rows["natural_mean"].iloc[0])
    who = f"{beyond} of {len(rows)} targets are" if beyond else f"None of {len(rows)} targets is"
    return f"{who} longer than 95% of natural states (median {number(middle)}, natural mean {number(level)})"


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
