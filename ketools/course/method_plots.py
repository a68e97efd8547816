"""Figures of forgetting and of comparisons between methods (ketools.evaluation.forgetting), each with its uncertainty."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import binomtest

from ketools.course.findings import percent
from ketools.course.lines import EDITS
from ketools.course.means import led
from ketools.course.parts import add_line, add_points, between, checked, joined, present
from ketools.course.style import NEUTRAL, OKABE_ITO, dress, label, left_of, plain, styles
from ketools.errors import KetoolsError
from ketools.evaluation.forgetting import half_life
from ketools.runs.names import listed

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
