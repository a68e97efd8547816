"""Figures of what edits did to facts, to generated text and to downstream tasks (ketools.evaluation).

Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
bootstrap intervals. As in ketools.plots: the title is the finding, and says so where there is none.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.evaluation.overfitting import separation
from ketools.plots.drawers import Frames, add_mean_bars, later, led, means_of, named_frames, told
from ketools.plots.style import (
    NEUTRAL,
    OKABE_ITO,
    Style,
    checked,
    dress,
    gaps,
    joined,
    label,
    left_of,
    number,
    part_styles,
    percent,
    plain,
)
from ketools.runs.records import listed

_KINDS = {
    "efficacy": "the prompt (ES)",
    "paraphrase": "paraphrases (PS)",
    "neighbourhood": "neighbours (NS)",
    "two_hop": "consequences",
    "locality": "locality",
}


def score_bars(frames: Frames, measure: str = "success", *, context: str = "") -> go.Figure:
    """Success (or accuracy) of edits by kind of prompt, from `edits.evaluate`: one table, or several by name.

    Raises KetoolsError for another table, an empty one, or an unknown measure.
    """
    if measure not in ("success", "accuracy"):
        raise KetoolsError(f"measure={measure!r}: expected 'success' or 'accuracy'")
    named = named_frames(frames, "id", f"efficacy_{measure}", of="evaluation.edits.evaluate")
    kinds = [
        kind
        for kind in _KINDS
        if any(f"{kind}_{measure}" in frame and frame[f"{kind}_{measure}"].notna().any() for frame in named.values())
    ]
    names = {f"{kind}_{measure}": _KINDS[kind] for kind in kinds}
    means = {name: means_of(frame.reindex(columns=["id", *names]), list(names), None) for name, frame in named.items()}
    fig = go.Figure()
    add_mean_bars(fig, means, names)
    said = {
        name: ", ".join(f"{_KINDS[kind].split(' (')[0]} {told(rows.loc[f'{kind}_{measure}'])}" for kind in kinds)
        for name, rows in means.items()
    }
    shown = later(said)
    verb = _held({name: float(means[name]["mean"].iloc[0]) for name in shown})
    finding = f"{verb} ({'; '.join(led(name, text, len(shown)) for name, text in shown.items())})"
    fig.update_xaxes(title="kind of prompt (name)")
    fig.update_yaxes(title=f"{measure} (% of prompts)", tickformat=".0%", range=[0, 1.08])
    what = (
        "the wanted answer is more probable than the other"
        if measure == "success"
        else "every token of the wanted answer is the top one"
    )
    counts = max(int(rows["n"].max()) for rows in means.values())
    caption = joined(
        f"Share of prompts at which {what}; mean over facts ({counts}) with 95% bootstrap intervals.", context
    )
    return dress(fig, finding, caption, f"Grouped bars. {'. '.join(led(n, t, len(said)) for n, t in said.items())}.")


def task_bars(frames: Frames, *, context: str = "") -> go.Figure:
    """Weighted F1 of downstream tasks, from `downstream.downstream`: one table, or several by name ("before", methods).

    With its bootstrap intervals, where the tables have them. With "before" the title compares. Raises KetoolsError for
    another table or an empty one.
    """
    named = named_frames(frames, "task", "n", "accuracy", "f1", of="evaluation.downstream.downstream")
    tasks = list(dict.fromkeys(task for frame in named.values() for task in frame["task"]))
    rows = {
        name: frame.set_index("task").reindex(tasks).rename(columns={"f1": "mean"}) for name, frame in named.items()
    }
    fig, mean = go.Figure(), {name: float(table["mean"].mean()) for name, table in rows.items()}
    add_mean_bars(fig, rows, {task: plain(task, 20) for task in tasks}, show=".3f")
    said = "; ".join(led(name, f"mean F1 {number(value)}", len(mean)) for name, value in mean.items())
    head = "Downstream tasks"
    if "before" in mean and len(mean) > 1 and mean["before"] > 0:
        kept = {name: value / mean["before"] for name, value in mean.items() if name != "before"}
        verb = (
            "survives"
            if min(kept.values()) >= 0.97
            else "declines"
            if max(kept.values()) < 0.97
            else "survives with some methods only"
        )
        head = f"Downstream skill {verb}"
    fig.update_xaxes(title="task (name)").update_yaxes(title="weighted F1 (0 to 1)", range=[0, 1.04])
    items = sorted({int(n) for n in next(iter(named.values()))["n"]})
    intervals = all({"low", "high"} <= set(frame) for frame in named.values())
    caption = joined(
        f"Zero-shot multiple choice, {items[0] if len(items) == 1 else f'{items[0]} to {items[-1]}'} items a task"
        f"{', with 95% bootstrap intervals' if intervals else ''}.",
        context,
    )
    return dress(fig, f"{head} ({said})", caption, f"Grouped bars by task. {said}.")


def _held(first: dict[str, float]) -> str:
    held = [label(name) for name, value in first.items() if value >= 0.95]
    if len(held) == len(first):
        return "Edits hold"
    return f"Edits hold with {listed(held)} only" if held else "Edits do not all hold"


# Figures of overfit and of consequences (ketools.evaluation.overfitting, ripple): what edits do beyond their prompts.
#
# Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
# bootstrap intervals. As in ketools.plots: the title is the finding, and says so where there is none.


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


def _surer(found: Mapping[str, pd.Series]) -> str:
    over = [label(name) for name, row in found.items() if row["auroc"] > 0.5 and row["ks_p"] < 0.05]
    under = [name for name, row in found.items() if row["auroc"] < 0.5 and row["ks_p"] < 0.05]
    if over:
        return "Edited facts are surer than natural ones" + (
            f" with {listed(over)} only" if len(over) < len(found) else ""
        )
    return f"Edited facts are {'less sure than' if len(under) == len(found) else 'no surer than'} natural ones"


# The figure of one fact asked in many ways (`probing.recall.recalled`).


_COLUMNS = ("kind", "context", "prompt", "true", "new", "p_true", "p_new", "rank_true", "rank_new")
_NAMED = 4  # prompts that a title names one by one


def recalled_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Probability of the true and of the new answer of one fact, prompt by prompt, from `recall.recalled`.

    `context` (mode, model, n, seed) ends the caption. Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, *_COLUMNS, of="probing.recall.recalled")
    names = _names(frame)
    fig = go.Figure()
    for side, colour, shape in (("true", NEUTRAL, ""), ("new", OKABE_ITO["blue"], "/")):
        fig.add_bar(
            x=gaps(frame[f"p_{side}"]), y=list(range(len(names))), orientation="h", textposition="outside", cliponaxis=False,
            name=f"{side} answer: {plain(frame[side].iloc[0], 24)}", marker={"color": colour, "pattern": {"shape": shape}},
            text=[f"rank {rank:,}" for rank in frame[f"rank_{side}"]], hovertemplate="%{x:.4f}, %{text}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="probability of the answer (0 to 1)", range=[0, 1.15])
    fig.update_yaxes(
        title="prompt (text)", autorange="reversed", tickmode="array", tickvals=list(range(len(names))), ticktext=names
    )
    caption = joined(
        "exp of the mean token log-probability; rank: of the answer's first token among all next tokens, 1 is the most "
        "probable one.",
        context,
    )
    rows = zip(names, frame["p_new"], frame["rank_new"], frame["p_true"], frame["rank_true"], strict=True)
    said = [f"{name}: new {number(p)} (rank {r:,}), true {number(q)} (rank {s:,})" for name, p, r, q, s in rows]
    text = f"Grouped bars, new against true answer: {'; '.join(said)}."
    fig = dress(fig, _finding(frame, names), caption, text, 130 + 50 * len(names), left_of(names))
    return fig.update_layout(barmode="group", hovermode="closest")


def _names(frame: pd.DataFrame) -> list[str]:
    # What tells a prompt from the others: a context where there is one, else its own text.
    rows = zip(frame["kind"], frame["context"], frame["prompt"], strict=True)
    return [
        f'after "{plain(context, 36)}"' if kind == "context" else f'"{plain(prompt, 44)}"'
        for kind, context, prompt in rows
    ]


def _finding(frame: pd.DataFrame, names: list[str]) -> str:
    ahead = (frame["p_new"] > frame["p_true"]).tolist()
    means = f"mean probability: new {number(frame['p_new'].mean())}, true {number(frame['p_true'].mean())}"
    count, of = sum(ahead), len(ahead)
    if of == 1:
        return f"The {'new' if count else 'true'} answer is the more probable one ({means.removeprefix('mean ')})"
    if count in (0, of):
        side = "new" if count else "true"
        return f"The {side} answer is the more probable one however the fact is asked ({of} prompts; {means})"
    fewer = [name for name, new in zip(names, ahead, strict=True) if new == (count <= of - count)]
    side = "at" if count <= of - count else "at all but"
    where = f", {side} {listed(fewer)}" if len(fewer) <= _NAMED else ""
    return f"The new answer is the more probable one at {count} of {of} prompts{where} ({means})"
