"""Figures of forgetting and of comparisons between methods (ketools.evaluation.forgetting), each with its uncertainty."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import binomtest

from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import half_life
from ketools.plots.drawers import EDITS, add_lines, add_reference, describe, holes, led, measured
from ketools.plots.style import (
    LAYER,
    NEUTRAL,
    OKABE_ITO,
    Style,
    Verdict,
    add_line,
    add_points,
    bar_gap,
    between,
    checked,
    dress,
    gaps,
    joined,
    label,
    last,
    layer_axis,
    layer_names,
    left_of,
    number,
    percent,
    plain,
    present,
    styles,
    times,
)
from ketools.runs.records import listed

_SURE = 0.05
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


def interval_forest(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Means with their intervals, a row a measure, from `forgetting.intervals` (measure, mean, low, high, n).

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "measure", "mean", "low", "high", "n", of="evaluation.forgetting.intervals")
    names = [plain(str(measure).replace("_", " "), 40) for measure in frame["measure"]]
    fig = go.Figure()
    add_points(fig, names, frame["mean"], frame["low"], frame["high"])
    rows = [
        f"{name} {between(r['mean'], r['low'], r['high'])}"
        for name, (_, r) in zip(names, frame.iterrows(), strict=True)
    ]
    low, high = frame["mean"].idxmin(), frame["mean"].idxmax()
    called = dict(zip(frame.index, rows, strict=True))
    finding = f"Highest: {called[high]}; lowest: {called[low]}" if len(frame) > 1 else rows[0]
    fig.update_xaxes(title="mean over facts (own unit of each measure)")
    out = int(frame["excluded"].max()) if "excluded" in frame else 0
    caption = f"Mean over {int(frame['n'].max())} facts with bootstrap intervals{f'; up to {out} without a number left out' if out else ''}."
    return dress(
        fig,
        finding,
        joined(caption, context),
        f"Points with intervals: {'; '.join(rows)}.",
        130 + 34 * len(frame),
        left_of(names),
    )


def mcnemar_forest(pairs: Pairs, *, context: str = "") -> go.Figure:
    """Methods against each other on the same facts, a row a pair: of the facts that one alone has, the share of the first.

    `pairs`: {(first, second): series of `forgetting.mcnemar`}. The interval is Clopper and Pearson's (95%), which agrees
    with the exact test: it leaves out one half where p < .05. Raises KetoolsError for no pairs or other series.
    """
    rows = [_against(a, b, row) for (a, b), row in pairs.items()]
    if not rows:
        raise KetoolsError("nothing to draw: no pairs of methods; give {(first, second): mcnemar(...)} of at least one")
    frame = pd.DataFrame(rows)
    names = [f"{r['a']} against {r['b']} ({int(r['differ'])} facts)" for _, r in frame.iterrows()]
    fig = go.Figure()
    add_points(fig, names, frame["share"], frame["low"], frame["high"], show=".1%")
    fig.add_vline(0.5, line={"color": NEUTRAL, "dash": "dot", "width": 2})
    fig.update_xaxes(
        title="facts that the first alone has, of those that one alone has (%)", tickformat=".0%", range=[-0.03, 1.03]
    )
    fig.update_yaxes(title="methods (pair)")
    said = [_verdict(row) for _, row in frame.iterrows()]
    sure = [line for line, p in zip(said, frame["p_value"], strict=True) if p < _SURE]
    finding = "; ".join(sure) if sure else f"No two methods differ for certain ({'; '.join(said)})"
    caption = joined(
        "McNemar's exact test on the same facts; 95% intervals of Clopper and Pearson; dotted: no difference.", context
    )
    return dress(
        fig, finding, caption, f"Points with intervals. {'; '.join(said)}.", 130 + 44 * len(frame), left_of(names)
    )


def mcnemar_heat(row: pd.Series, first: str, second: str, *, context: str = "") -> go.Figure:
    """The four counts of `forgetting.mcnemar` as a table: facts that both methods have, one alone, neither.

    Raises KetoolsError for another series.
    """
    checked(
        pd.DataFrame([row]), "both", "only_a", "only_b", "neither", "p_value", "n", of="evaluation.forgetting.mcnemar"
    )
    a, b = label(first), label(second)
    counts = [[int(row["both"]), int(row["only_a"])], [int(row["only_b"]), int(row["neither"])]]
    fig = go.Figure(
        go.Heatmap(
            z=counts, x=[f"{b} right", f"{b} wrong"], y=[f"{a} right", f"{a} wrong"], texttemplate="%{z:,}", textfont={"size": 18},
            colorscale="Blues", showscale=False, xgap=2, ygap=2, hovertemplate="%{y}, %{x}: %{z:,} facts<extra></extra>",
        )
    )  # fmt: skip
    shown = {"a": a, "b": b, "differ": counts[0][1] + counts[1][0], **row}
    fig.update_xaxes(title=f"{b} (facts)").update_yaxes(title=f"{a} (facts)", autorange="reversed")
    out = int(row["excluded"]) if "excluded" in row else 0
    caption = joined(
        f"{int(row['n'])} facts scored under both methods{f'; {out} in one only left out' if out else ''}. McNemar's exact test looks at the two cells where they differ.",
        context,
    )
    text = f"Both {counts[0][0]}, only {a} {counts[0][1]}, only {b} {counts[1][0]}, neither {counts[1][1]}."
    return dress(
        fig, _verdict(pd.Series(shown)), caption, text, 300, left_of([f"{a} right", f"{a} wrong"])
    ).update_layout(hovermode="closest")


def damage_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Does damage go with the norm: rank correlation of each measure with the norm, from `forgetting.norm_damage`.

    Bars whose p-value is below .05 are marked. Raises KetoolsError for another table, or one without a correlation.
    """
    of = "evaluation.forgetting.norm_damage"
    rows = present(
        checked(frame, "measure", "spearman", "spearman_p", "pearson", "n", of=of), "spearman", of
    ).reset_index(drop=True)
    names = [plain(str(measure).replace("_", " "), 34) for measure in rows["measure"]]
    sure = (rows["spearman_p"] < _SURE).to_numpy()
    fig = go.Figure()
    for ok, name, colour, shape in ((True, "p < .05", OKABE_ITO["blue"], "/"), (False, "p at least .05", NEUTRAL, "")):
        at = np.flatnonzero(sure == ok)
        fig.add_bar(
            x=rows.loc[at, "spearman"].tolist(), y=at.tolist(), orientation="h", name=name, texttemplate="%{x:+.2f}", textposition="outside", cliponaxis=False,
            marker={"color": colour, "pattern": {"shape": shape}}, customdata=rows.loc[at, ["spearman_p", "n"]].to_numpy().tolist(),
            hovertemplate="%{x:+.3f} (p %{customdata[0]:.2g}, %{customdata[1]} checkpoints)<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="rank correlation with the norm (Spearman, -1 to 1)", range=[-1.25, 1.25])
    fig.update_yaxes(
        title="measure (name)", autorange="reversed", tickmode="array", tickvals=list(range(len(names))), ticktext=names
    )
    said = [f"{name} {r['spearman']:+.2f}" for name, (_, r) in zip(names, rows.iterrows(), strict=True)]
    strong = [line for line, ok in zip(said, sure, strict=True) if ok]
    finding = (
        f"With the norm go: {', '.join(strong)} (rank correlations)"
        if strong
        else f"No measure goes with the norm for certain ({', '.join(said)})"
    )
    caption = joined(
        f"Over up to {int(rows['n'].max())} checkpoints; those of one run follow each other and are no independent draws.",
        context,
    )
    fig = dress(
        fig, finding, caption, f"Bars of rank correlations: {', '.join(said)}.", 140 + 34 * len(rows), left_of(names)
    )
    return fig.update_layout(barmode="overlay", hovermode="closest")


def _against(first: str, second: str, row: pd.Series) -> dict[str, object]:
    # What one alone has, as a share with its interval.
    of = "evaluation.forgetting.mcnemar"
    checked(pd.DataFrame([row]), "only_a", "only_b", "share_a", "share_b", "p_value", "n", of=of)
    differ, share, ends = int(row["only_a"] + row["only_b"]), math.nan, (math.nan, math.nan)
    if differ:
        share, ends = row["only_a"] / differ, binomtest(int(row["only_a"]), differ).proportion_ci(0.95)
    return {
        "a": label(first),
        "b": label(second),
        "share": share,
        "low": ends[0],
        "high": ends[1],
        "differ": differ,
        **row,
    }


def _half(rows: pd.DataFrame, x: str) -> str:
    # How much is kept at the end, and the half-life.
    found, end = half_life(rows), rows.iloc[-1]
    kept = f"{percent(float(end['kept']))} kept after {int(end[x]):,} edits"
    if found["reached"]:
        return f"{kept}, half-life {found['half_life']:,.0f}"
    fit = found["half_life_fit"]
    far = not fit <= _BEYOND * float(end[x])
    return f"{kept}, no half-life in sight" if far else f"{kept}, half-life {fit:,.0f} by extrapolation"


def _verdict(row: pd.Series) -> str:
    # Which of two methods has more facts, if that is sure; p as McNemar's test has it.
    p = f"p {row['p_value']:.2g}" if row["p_value"] >= 0.001 else "p below .001"
    counts = f"{int(row['only_a'])} against {int(row['only_b'])} facts alone, {p}"
    if row["p_value"] >= _SURE:
        return f"{row['a']} and {row['b']} do not differ for certain ({counts})"
    ahead, behind = (row["a"], row["b"]) if row["only_a"] > row["only_b"] else (row["b"], row["a"])
    low, high = sorted((int(row["only_a"]), int(row["only_b"])))
    return f"{ahead} has more facts than {behind} ({high} against {low} alone, {p})"


# Figures of step 1 (ketools.norms.drift): the overfitting curve of the optimisation, and targets against natural states.


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


# Figures of an update itself: its spectrum, where its energy lies, and how much text the covariance behind it needs.
#
# Frames of ketools.norms (spectra.update_spectra, alignment.alignment) and ketools.editing.covariance.


_ALONG = {
    "top_left": ("writes along top directions of W", "top_left_chance"),
    "top_right": ("reads along top directions of W", "top_right_chance"),
    "c_top": ("reads top directions of prose keys", "c_top_chance"),
    "null_energy": ("reads the null space of prose keys", "null_chance"),
}
_QUANTITIES = {
    "change_c": ("C, change since the look before", Style(NEUTRAL, "dot", "circle-open")),
    "change_update": ("update, change since the look before", Style(OKABE_ITO["orange"], "dash", "square")),
    "distance_update": ("update, distance to the last look", Style(OKABE_ITO["blue"], "solid", "circle")),
}
_ENOUGH = 0.1  # relative change of the update below which more text is of little use


def update_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Size of an update relative to the matrix it is added to, by layer: Frobenius and spectral norm.

    From `spectra.update_spectra(update, model)`; without the model there is nothing to compare with. Raises KetoolsError
    for another table or an empty one.
    """
    of = "norms.spectra.update_spectra with a model"
    frame = checked(frame, "layer", "rank", "effective_rank", "relative_norm", "relative_spectral_norm", of=of)
    fig = go.Figure()
    bars = (
        ("relative_norm", "Frobenius norm", NEUTRAL, ""),
        ("relative_spectral_norm", "spectral norm", OKABE_ITO["blue"], "/"),
    )
    for column, name, colour, shape in bars:
        fig.add_bar(
            x=frame["layer"].tolist(), y=gaps(frame[column]), name=name, marker={"color": colour, "pattern": {"shape": shape}},
            texttemplate="%{y:.1%}", textposition="outside", cliponaxis=False, hovertemplate=f"{name}: %{{y:.2%}}<extra></extra>",
        )  # fmt: skip
    row = frame.loc[frame["relative_norm"].idxmax()]
    few = row["relative_spectral_norm"] > row["relative_norm"]
    finding = (
        f"The update of layer {int(row['layer'])} has {percent(row['relative_norm'])} of the matrix' norm "
        f"{'but' if few else 'and'} {percent(row['relative_spectral_norm'])} of its spectral norm: "
        f"{'few but strong directions' if few else 'many weak directions'} "
        f"(effective rank {number(row['effective_rank'])})"
    )
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title="update (% of the unedited matrix)", tickformat=".0%", rangemode="tozero")
    text = "; ".join(
        f"layer {int(r['layer'])} {percent(r['relative_norm'])} and {percent(r['relative_spectral_norm'])}"
        for _, r in frame.iterrows()
    )
    caption = joined("Norms of the update over those of the unedited MLP output matrix.", context)
    fig = dress(fig, finding, caption, f"Grouped bars, Frobenius and spectral norm of the update: {text}.", 400)
    return fig.update_layout(barmode="group", bargap=bar_gap(len(frame)))


def alignment_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Where an update's energy lies, beside chance (grey), from `alignment.alignment`; the mean over its layers.

    Columns on C are drawn where they are there. Raises KetoolsError for another table or one of zero updates.
    """
    frame = checked(
        frame, "layer", "top_left", "top_left_chance", "top_right", "top_right_chance", of="norms.alignment.alignment"
    )
    frame = present(frame, "top_left", "norms.alignment.alignment")
    kinds = {name: what for name, what in _ALONG.items() if name in frame}
    found = {name: (float(frame[name].mean()), float(frame[chance].mean())) for name, (_, chance) in kinds.items()}
    names = [what for what, _ in kinds.values()]
    fig = go.Figure()
    bars = (("update", 0, OKABE_ITO["blue"], "/"), ("a random update", 1, NEUTRAL, ""))
    for name, side, colour, shape in bars:
        fig.add_bar(
            y=names, x=[both[side] for both in found.values()], orientation="h", name=name, texttemplate="%{x:.1%}", cliponaxis=False,
            textposition="outside", marker={"color": colour, "pattern": {"shape": shape}}, hovertemplate=f"{name}: %{{x:.2%}}<extra></extra>",
        )  # fmt: skip
    finding = _alignment_words(frame, found)
    fig.update_xaxes(
        title="share of the update's energy (%)",
        tickformat=".0%",
        range=[0, max(1.1 * max(map(max, found.values())), 0.02) * 1.08],
    )
    fig.update_yaxes(title="directions (set)", autorange="reversed")
    caption = f"Energy: squared Frobenius norm; {layer_names(frame['layer'])}"
    if "null_dim" in frame:
        caption += f"; null space: {int(frame['null_dim'].iloc[0]):,} eigenvectors of C below {number(float(frame['null_threshold'].iloc[0]))}"
    text = "; ".join(f"{_ALONG[name][0]} {percent(a)}, chance {percent(b)}" for name, (a, b) in found.items())
    fig = dress(
        fig, finding, joined(f"{caption}.", context), f"Bar chart of energy shares: {text}.", 140 + 62 * len(names), 290
    )
    return fig.update_layout(barmode="group", hovermode="closest")


def null_energy_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Energy of updates in the null space of prose keys, by layer, a set of bars a method where there is such a column.

    From `alignment.alignment` with bases; several methods one below the other with a first column method. Raises
    KetoolsError for a table without C's columns or without an update.
    """
    of = "norms.alignment.alignment with bases"
    frame = present(checked(frame, "layer", "null_energy", "null_chance", of=of), "null_energy", of)
    frame = frame if "method" in frame else frame.assign(method="update")
    fig, means = go.Figure(), {}
    shapes = ("/", "x", ".", "+", "-")
    for i, (method, look) in enumerate(styles(dict.fromkeys(frame["method"])).items()):
        mine = frame[frame["method"] == method]
        means[label(method)] = float(mine["null_energy"].mean())
        fig.add_bar(
            x=mine["layer"].tolist(), y=mine["null_energy"].tolist(), name=label(method), texttemplate="%{y:.1%}", textposition="outside",
            cliponaxis=False, marker={"color": look.colour, "pattern": {"shape": shapes[i % len(shapes)]}}, hovertemplate=f"{label(method)}: %{{y:.2%}}<extra></extra>",
        )  # fmt: skip
    chance = float(frame["null_chance"].mean())
    levels = frame.groupby("layer")["null_chance"].first()
    fig.add_bar(
        x=levels.index.tolist(), y=levels.tolist(), name="a random update", marker={"color": NEUTRAL}, texttemplate="%{y:.1%}",
        textposition="outside", cliponaxis=False, hovertemplate="a random update: %{y:.2%}<extra></extra>",
    )  # fmt: skip
    said = ", ".join(f"{name} {percent(value)}" for name, value in means.items())
    inside = [name for name, value in means.items() if value > 0.95]
    if len(inside) == len(means):
        finding = f"Updates stay in the null space of prose keys ({said}; chance {percent(chance)})"
    elif inside:
        finding = f"Only {', '.join(inside)} stays in the null space of prose keys ({said}; chance {percent(chance)})"
    else:
        finding = (
            f"Updates leave the null space of prose keys ({said} of their energy is in it; chance {percent(chance)})"
        )
    fig.update_xaxes(title=LAYER, **layer_axis(frame["layer"]))
    fig.update_yaxes(title="energy in the null space of C (%)", tickformat=".0%", range=[0, 1.1])
    caption = joined("Share of the update's squared norm that no prose key reads.", context)
    return dress(
        fig, finding, caption, f"Bars by layer: {said}; a random update {percent(chance)}.", 400
    ).update_layout(barmode="group", bargap=bar_gap(len(frame)))


def convergence_curve(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """How much C and the update computed with it still change with more text, over tokens, from `convergence.convergence`.

    Each line is the layer that changes most. Raises KetoolsError for another table or fewer than two looks.
    """
    of = "editing.convergence.convergence"
    frame = checked(frame, "layer", "tokens", "multiple", *_QUANTITIES, of=of, least=2)
    if frame["tokens"].nunique() < 2:
        checked(frame.iloc[:1], "tokens", of=of, least=2)
    worst = frame.groupby("tokens")[list(_QUANTITIES)].max()
    fig = go.Figure()
    for column, (name, look) in _QUANTITIES.items():
        add_line(fig, worst.index.tolist(), worst[column].where(worst[column] > 0), name, look, show=".2%")
    last, multiple = int(worst.index[-1]), float(frame["multiple"].max())
    change_c, change = float(worst["change_c"].iloc[-1]), float(worst["change_update"].iloc[-1])
    if not np.isfinite(change):
        finding = f"C is singular still for the update after {last:,} tokens: more text is needed (C itself changes by {percent(change_c)})"
    else:
        verdict = "is settled" if change <= _ENOUGH else "has not settled"
        finding = (
            f"The update {verdict} after {last:,} tokens ({number(multiple)} times d_mlp): the last look changed it by "
            f"{percent(change)} and C by {percent(change_c)}"
        )
        near = worst.index[(worst["distance_update"] <= _ENOUGH).to_numpy()]
        if change <= _ENOUGH and len(near) and near[0] < last:
            finding += f"; from {int(near[0]):,} tokens on it is within {percent(_ENOUGH)} of the last one"
    fig.update_xaxes(title="tokens read (count)", type="log", dtick="D2")
    fig.update_yaxes(title="relative change (%)", type="log", tickformat=".2~%")
    caption = joined(
        "Frobenius norm of the difference, relative; each line is the layer that changes most. Settled: at most 10%.",
        context,
    )
    said = "; ".join(
        f"{tokens:,} tokens: C {percent(r['change_c'])}, update {percent(r['change_update'])}"
        for tokens, r in worst.iterrows()
    )
    return dress(fig, finding, caption, f"Line chart over tokens. {said}.")


def _alignment_words(frame: pd.DataFrame, found: dict[str, tuple[float, float]]) -> str:
    more = {name: share / chance if chance > 0 else math.nan for name, (share, chance) in found.items()}
    far = max(more["top_left"], more["top_right"]) > 2
    head = "lies along the matrix' top directions" if far else "does not favour the matrix' top directions"
    said = f"The update {head} ({times(more['top_left'])} chance in what it writes, {times(more['top_right'])} in what it reads)"
    if "c_mean" not in frame:
        return said
    mean = float(frame["c_mean"].mean())
    spared = (
        "prose is spared" if mean < 0.95 else "prose is hit as by a random one" if mean < 1.05 else "prose is hit more"
    )
    return f"{said}; {spared} ({times(mean)} of a random update's energy on prose keys)"
