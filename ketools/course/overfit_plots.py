"""Figures of overfit and of consequences (ketools.evaluation.overfitting, ripple): what edits do beyond their prompts.

Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
bootstrap intervals. As in ketools.course.plots: the title is the finding, and says so where there is none.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent
from ketools.course.means import Frames, add_mean_bars, later, led, means_of, named_frames, told
from ketools.course.parts import add_line, bar_gap, checked, gaps, joined, present
from ketools.course.style import NEUTRAL, OKABE_ITO, Style, dress, label, left_of, part_styles
from ketools.evaluation.overfitting import separation
from ketools.runs.names import listed

_RIPPLE = {
    "followed": ("follow the edit", OKABE_ITO["blue"], "/"),
    "kept": ("keep the old answer", NEUTRAL, ""),
    "broken": ("broken: neither", OKABE_ITO["vermillion"], "x"),
}


def probability_curve(
    edited: Sequence[float] | Mapping[str, Sequence[float]], natural: Sequence[float], *, context: str = ""
) -> go.Figure:
    """Edited against natural probabilities as distributions: the share of facts up to each probability.

    `edited`: P(target_new) of edited facts (p_new of `edits.evaluate`), or several by method; `natural`: p of the known
    facts in `overfitting.natural_probabilities`. Raises KetoolsError if a side has no finite number.
    """
    several = {str(k): v for k, v in edited.items()} if isinstance(edited, Mapping) else {"edited facts": edited}
    found = {name: separation(values, natural) for name, values in several.items()}
    fig, middle = go.Figure(), {}
    looks = part_styles(several) | {"natural facts": Style(NEUTRAL, "dot", "circle-open")}
    for name, values in (*several.items(), ("natural facts", natural)):
        values = np.sort(np.asarray(values, dtype=float))
        values = values[np.isfinite(values)]
        middle[name] = float(np.median(values))
        fig.add_scatter(
            x=[0.0, *values, 1.0], y=[0.0, *(np.arange(1, len(values) + 1) / len(values)), 1.0], mode="lines", line={"shape": "hv", "color": looks[name].colour, "dash": looks[name].dash, "width": 2.5},
            name=label(name), hovertemplate=f"{label(name)}: %{{y:.1%}} up to %{{x:.3f}}<extra></extra>",
        )  # fmt: skip
    said = "; ".join(
        f"{label(name)}: median {number(middle[name])}, {percent(row['above_natural'])} beyond 95% of natural facts"
        for name, row in found.items()
    )
    head = _surer(found)
    fig.update_xaxes(title="probability (0 to 1)", range=[-0.02, 1.02]).update_yaxes(
        title="facts up to this probability (%)", tickformat=".0%", range=[0, 1.02]
    )
    out = max(int(row["excluded"]) for row in found.values())
    caption = f"Further right is surer; {int(next(iter(found.values()))['n_natural'])} natural facts, median {number(middle['natural facts'])}."
    caption = joined(caption + (f" Left out, not finite: {out}." if out else ""), context)
    return dress(fig, f"{head} ({said})", caption, f"Cumulative distributions. {said}.").update_layout(
        hovermode="closest"
    )


def quantile_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Edited and natural probabilities by quantile, from `overfitting.quantiles` (quantile, edited, natural).

    Raises KetoolsError for another table or fewer than two quantiles.
    """
    frame = checked(
        frame,
        "quantile",
        "edited",
        "natural",
        "difference",
        "n_edited",
        "n_natural",
        of="evaluation.overfitting.quantiles",
        least=2,
    )
    fig = go.Figure()
    add_line(fig, frame["quantile"], frame["edited"], "edited facts", Style(OKABE_ITO["blue"], "solid", "circle"))
    add_line(fig, frame["quantile"], frame["natural"], "natural facts", Style(NEUTRAL, "dot", "circle-open"))
    higher = int((frame["difference"] > 0).sum())
    where = (
        "at every quantile"
        if higher == len(frame)
        else "at no quantile"
        if not higher
        else f"at {higher} of {len(frame)} quantiles"
    )
    gap = frame.loc[frame["difference"].abs().idxmax()]
    finding = f"Edited facts are more probable than natural ones {where} (largest difference {gap['difference']:+.2f}, at the {gap['quantile']:.0%} quantile)"
    fig.update_xaxes(title="quantile (% of facts)", tickformat=".0%").update_yaxes(
        title="probability (0 to 1)", range=[0, 1.04]
    )
    caption = joined(
        f"{int(frame['n_edited'].iloc[0])} edited and {int(frame['n_natural'].iloc[0])} natural facts.", context
    )
    text = "; ".join(
        f"{r['quantile']:.0%}: {number(r['edited'])} against {number(r['natural'])}" for _, r in frame.iterrows()
    )
    return dress(fig, finding, caption, f"Two lines over quantiles, edited against natural. {text}.")


def spill_bars(frames: Frames, *, context: str = "") -> go.Figure:
    """Does the new object come out on other prompts of the subject: share of prompts and its probability, a panel each.

    From `overfitting.spill`: one table, or several by name ("before", "now", methods). Raises KetoolsError for another
    table, or one without other prompts.
    """
    of = "evaluation.overfitting.spill"
    named = named_frames(frames, "id", "prompt", "p_target", "p_own", "spilled", of=of)
    asked = {
        name: checked(frame[frame["prompt"].notna()], "prompt", of=f"{of}, with other prompts")
        for name, frame in named.items()
    }
    means = {name: means_of(frame, ["spilled", "p_target", "p_own"]) for name, frame in asked.items()}
    fig = make_subplots(1, 2, horizontal_spacing=0.12, column_widths=[0.35, 0.65])
    add_mean_bars(fig, means, {"spilled": "spilled"}, at={"row": 1, "col": 1})
    add_mean_bars(
        fig, means, {"p_target": "new object", "p_own": "own answer"}, show=".3f", at={"row": 1, "col": 2}, legend=False
    )
    share = {name: float(rows.loc["spilled", "mean"]) for name, rows in means.items()}
    said = "; ".join(
        led(name, f"{told(rows.loc['spilled'])} of prompts, own answer {number(rows.loc['p_own', 'mean'])}", len(means))
        for name, rows in means.items()
    )
    end = share.get("now", max(share.values()))
    head = _spilled(end, end - share.get("before", 0.0))
    fig.update_yaxes(title="prompts with spill (%)", tickformat=".3~%", rangemode="tozero", col=1).update_yaxes(
        title="mean probability (0 to 1)", rangemode="tozero", col=2
    )
    fig.update_xaxes(title="spill (share)", col=1).update_xaxes(title="answer (kind)", col=2)
    n = len(next(iter(asked.values())))
    caption = joined(
        f"Spilled: the new object is more probable than the prompt's own answer; {n} prompts, 95% bootstrap intervals over facts.",
        context,
    )
    return dress(fig, f"{head} ({said})", caption, f"Bars. Spilled: {said}.", 400)


def overfit_bars(rows: Mapping[str, pd.Series], *, context: str = "") -> go.Figure:
    """Mean probability of edited facts against natural ones by method, from `overfitting.overfit`: {method: its series}.

    Raises KetoolsError for no methods, or series that are not such.
    """
    frame = pd.DataFrame(dict(rows)).T if rows else pd.DataFrame()
    frame = checked(frame, "p_edited", "p_natural", "ratio", of="evaluation.overfitting.overfit")
    fig = go.Figure()
    bars = (("p_natural", "natural facts", NEUTRAL, ""), ("p_edited", "edited facts", OKABE_ITO["blue"], "/"))
    for column, name, colour, shape in bars:
        fig.add_bar(
            x=[label(method) for method in frame.index], y=gaps(frame[column].astype(float)), name=name, texttemplate="%{y:.2f}", textposition="outside",
            cliponaxis=False, marker={"color": colour, "pattern": {"shape": shape}}, hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    ends = {method: float(value) for method, value in frame["p_edited"].items()}
    natural = float(frame["p_natural"].astype(float).mean())
    over = [label(method) for method, row in frame.iterrows() if row["ratio"] > 1]
    head = (
        f"Surer of edited facts than of natural ones with {listed(over)}"
        if over
        else "No surer of edited facts than of natural ones"
    )
    said = ", ".join(f"{label(method)} {number(value)}" for method, value in ends.items())
    fig.update_xaxes(title="method (name)").update_yaxes(title="mean probability (0 to 1)", range=[0, 1.12])
    caption = joined(
        "Edited: the new object on the edit's prompt. Natural: the true object where the model knew it.", context
    )
    finding = f"{head} ({said}; natural {number(natural)})"
    return dress(fig, finding, caption, f"Grouped bars. {said}; natural {number(natural)}.", 400).update_layout(
        barmode="group", bargap=bar_gap(len(frame))
    )


def two_hop_bars(frames: Frames, *, context: str = "") -> go.Figure:
    """Questions that follow from edits: probabilities of the old and the new answer, from `ripple.two_hop`.

    One table, or several by name ("before", "now", methods). Raises KetoolsError for another table, or no questions.
    """
    of = "evaluation.ripple.two_hop"
    named = named_frames(frames, "id", "question", "p_true", "p_new", "says_new", of=of)
    asked = {
        name: checked(frame[frame["question"].notna()], "question", of=f"{of}, with questions")
        for name, frame in named.items()
    }
    means = {name: means_of(frame, ["p_true", "p_new", "says_new"]) for name, frame in asked.items()}
    fig = go.Figure()
    add_mean_bars(fig, means, {"p_true": "old answer", "p_new": "new answer"}, show=".3f")
    said = "; ".join(
        led(name, f"new {told(rows.loc['p_new'], number)}, old {told(rows.loc['p_true'], number)}", len(later(means)))
        for name, rows in later(means).items()
    )
    last = means.get("now", list(means.values())[-1])
    head = (
        "Consequences follow the edit"
        if last.loc["p_new", "mean"] > last.loc["p_true", "mean"]
        else "Consequences do not follow the edit"
    )
    fig.update_xaxes(title="answer to the two-hop question (kind)").update_yaxes(
        title="mean probability (0 to 1)", rangemode="tozero"
    )
    n = len(next(iter(asked.values())))
    caption = joined(
        f"{n} questions whose answer follows from an edited fact; mean over facts with 95% bootstrap intervals.",
        context,
    )
    return dress(fig, f"{head} ({said})", caption, f"Grouped bars. {said}.")


def ripple_bars(rows: pd.Series | Mapping[str, pd.Series], *, context: str = "") -> go.Figure:
    """What became of consequences that the model knew: followed, kept or broken, from `ripple.ripple`, a bar a method.

    Raises KetoolsError for other series, or if the model knew no consequence before.
    """
    several = {"edits": rows} if isinstance(rows, pd.Series) else dict(rows)
    frame = checked(pd.DataFrame(several).T, *_RIPPLE, "known", "unknown", of="evaluation.ripple.ripple")
    frame = present(frame, "followed", "evaluation.ripple.ripple, with questions answered before")
    fig = go.Figure()
    for column, (name, colour, shape) in _RIPPLE.items():
        fig.add_bar(
            y=[label(method) for method in frame.index], x=frame[column].astype(float).tolist(), orientation="h", name=name, texttemplate="%{x:.0%}", textposition="inside",
            marker={"color": colour, "pattern": {"shape": shape}}, hovertemplate=f"{name}: %{{x:.1%}}<extra></extra>",
        )  # fmt: skip
    followed = frame["followed"].astype(float)
    said = "; ".join(
        led(
            str(method),
            ", ".join(f"{percent(float(row[c]))} {name}" for c, (name, _, _) in _RIPPLE.items()),
            len(frame),
        )
        for method, row in frame.iterrows()
    )
    few, many = followed.max() <= 0.5, followed.min() > 0.5
    head = f"Most consequences {'follow' if many else 'do not follow' if few else 'follow with some methods only'}"
    fig.update_xaxes(title="questions known before (%)", tickformat=".0%", range=[0, 1]).update_yaxes(
        title="what was edited (method)", autorange="reversed"
    )
    known, unknown = int(frame["known"].iloc[0]), int(frame["unknown"].iloc[0])
    caption = joined(
        f"{known} two-hop questions that the model answered before; {unknown} that it did not are left out.", context
    )
    left = left_of([label(method) for method in frame.index])
    return dress(fig, f"{head} ({said})", caption, f"Stacked bars. {said}.", 150 + 44 * len(frame), left).update_layout(
        barmode="stack", hovermode="closest", legend={"traceorder": "normal"}
    )


def _spilled(share: float, rise: float) -> str:
    if rise > 0.05:
        return "The new object spills onto other prompts of the subject"
    return (
        f"The new object {'stays where it was edited in' if share <= 0.05 else 'is no likelier elsewhere than before'}"
    )


def _surer(found: Mapping[str, pd.Series]) -> str:
    over = [label(name) for name, row in found.items() if row["auroc"] > 0.5 and row["ks_p"] < 0.05]
    under = [name for name, row in found.items() if row["auroc"] < 0.5 and row["ks_p"] < 0.05]
    if over:
        return "Edited facts are surer than natural ones" + (
            f" with {listed(over)} only" if len(over) < len(found) else ""
        )
    return f"Edited facts are {'less sure than' if len(under) == len(found) else 'no surer than'} natural ones"
