"""Figures of what edits did to facts, to generated text and to downstream tasks (ketools.evaluation).

Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
bootstrap intervals. As in ketools.plots.figures: the title is the finding, and says so where there is none.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.evaluation.overfitting import separation
from ketools.plots.drawers import Frames, add_mean_bars, later, led, means_of, named_frames, told
from ketools.plots.style import (
    NEUTRAL,
    OKABE_ITO,
    Style,
    add_line,
    add_points,
    bar_gap,
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
    present,
)
from ketools.runs.records import listed

_KINDS = {
    "efficacy": "the prompt (ES)",
    "paraphrase": "paraphrases (PS)",
    "neighbourhood": "neighbours (NS)",
    "two_hop": "consequences",
    "locality": "locality",
}
_FORMS = {
    "forced": "teacher-forced",
    "starts": "generated: begins with it",
    "exact": "generated: is it exactly",
    "contains": "generated: contains it",
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


def recall_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Share of facts that the model still says, by relation with 95% intervals, from `edits.recall` (relation, accuracy).

    Raises KetoolsError for another table, or one in which nothing was asked.
    """
    of = "evaluation.edits.recall"
    frame = checked(frame, "id", "relation", "accuracy", of=of).dropna(subset=["accuracy"])
    checked(frame, "accuracy", of=f"{of}, with prompts")
    rows = (
        pd.concat({relation: means_of(part, ["accuracy"], None) for relation, part in frame.groupby("relation")})
        .droplevel(1)
        .sort_values("mean")
    )
    names = [plain(relation, 28) for relation in rows.index]
    fig = go.Figure()
    ends = {
        "array": (rows["high"] - rows["mean"]).tolist(),
        "arrayminus": (rows["mean"] - rows["low"]).tolist(),
        "color": NEUTRAL,
        "thickness": 1.5,
        "width": 4,
    }
    fig.add_bar(
        x=rows["mean"].tolist(), y=list(range(len(rows))), orientation="h", name="said rightly", showlegend=False, error_x=ends, marker={"color": OKABE_ITO["blue"], "pattern": {"shape": "/"}},
        customdata=rows[["low", "high"]].to_numpy().tolist(), meta={"interval": "95% interval"}, hovertemplate="%{x:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})<extra></extra>",
    )  # fmt: skip
    whole = means_of(frame, ["accuracy"], None).loc["accuracy"]
    worst = f"; least of relation {names[0]} ({percent(float(rows['mean'].iloc[0]))})" if len(rows) > 1 else ""
    finding = f"The model says {told(whole)} of {len(frame):,} facts rightly{worst}"
    fig.update_xaxes(title="facts said rightly (%)", tickformat=".0%", range=[0, 1.04])
    fig.update_yaxes(title="relation (name)", tickmode="array", tickvals=list(range(len(rows))), ticktext=names)
    caption = joined(
        "Every token of the true answer is the most probable one; mean over facts with 95% bootstrap intervals.",
        context,
    )
    text = "; ".join(f"{name} {told(row)}" for name, (_, row) in zip(names, rows.iterrows(), strict=True))
    return dress(
        fig, finding, caption, f"Bars by relation: {text}.", 130 + 30 * len(rows), 60 + 7 * max(map(len, names))
    ).update_layout(hovermode="closest")


def kept_bars(before: pd.DataFrame, now: Frames, *, context: str = "") -> go.Figure:
    """Of the facts that the model said before the edits, how many it still says, by relation: same-subject damage, forgetting.

    Tables of `edits.recall` on the same facts; `now` may be several by method. Raises KetoolsError for another table,
    tables of other facts, or if the model knew none of them.
    """
    of = "evaluation.edits.recall"
    right = checked(before, "id", "relation", "accuracy", of=of).set_index("id")["accuracy"] >= 0.5
    if not right.any():
        raise KetoolsError(f"nothing to draw: the model said none of the {len(right)} facts before the edits")
    named, means = named_frames(now, "id", "relation", "accuracy", of=of), {}
    relations = list(dict.fromkeys(before["relation"]))
    for name, frame in named.items():
        if set(frame["id"]) != set(before["id"]):
            raise KetoolsError(f"the tables before and {name} are of different facts; make both with the same ones")
        known = frame[frame["id"].map(right)]
        parts = {
            f"r{i}": known["accuracy"].where(known["relation"] == relation) for i, relation in enumerate(relations)
        }
        table = pd.DataFrame({"all": known["accuracy"], **parts})
        means[name] = means_of(table, list(table), None)
    names = {"all": "all", **({f"r{i}": plain(r, 20) for i, r in enumerate(relations)} if len(relations) > 1 else {})}
    fig = go.Figure()
    add_mean_bars(fig, means, names, lying=True)
    said = "; ".join(led(name, told(rows.loc["all"]), len(means)) for name, rows in means.items())
    ends = [float(rows.loc["all", "mean"]) for rows in means.values()]
    head = "survive" if min(ends) >= 0.95 else "get lost" if max(ends) < 0.95 else "survive with some methods only"
    fig.update_yaxes(title="relation (name)", autorange="reversed")
    fig.update_xaxes(title="facts still said (%)", tickformat=".0%", range=[0, 1.08])
    out = int((~right).sum())
    caption = f"Of {int(right.sum())} facts that the model said before{f' ({out} that it did not are left out)' if out else ''}; 95% bootstrap intervals."
    finding = f"Facts that the model knew {head} ({said} still said)"
    height = 140 + (20 + 14 * len(means)) * len(names)
    text = f"Bars by relation. Still said: {said}."
    fig = dress(fig, finding, joined(caption, context), text, height, left_of(names.values()))
    return fig.update_layout(hovermode="closest")


def generation_bars(frames: Frames, *, context: str = "") -> go.Figure:
    """Answers teacher-forced and generated side by side, from `generation.answers`: one table, or several by name.

    Raises KetoolsError for another table or an empty one.
    """
    named = named_frames(frames, "id", *_FORMS, of="evaluation.generation.answers")
    means = {name: means_of(frame, list(_FORMS)) for name, frame in named.items()}
    fig = go.Figure()
    add_mean_bars(fig, means, _FORMS)
    pairs = {name: (rows.loc["forced"], rows.loc["starts"]) for name, rows in later(means).items()}
    said = "; ".join(
        led(name, f"{told(a)} teacher-forced, {told(b)} generated", len(pairs)) for name, (a, b) in pairs.items()
    )
    gap = max(float(a["mean"] - b["mean"]) for a, b in pairs.values())
    head = (
        "Teacher forcing promises more than the model writes"
        if gap > 0.05
        else "The model writes what teacher forcing promises"
    )
    fig.update_xaxes(title="how the answer is judged (rule)")
    fig.update_yaxes(title="facts answered as wanted (%)", tickformat=".0%", range=[0, 1.08])
    n = int(next(iter(means.values()))["n"].max())
    caption = joined(f"Greedy continuations, judged by whole words; {n} facts, 95% bootstrap intervals.", context)
    return dress(fig, f"{head} ({said})", caption, f"Grouped bars. {said}.")


def free_text_bars(frames: Frames, *, context: str = "") -> go.Figure:
    """Entropy (GE) and likeness to references (RS) of free text, a panel each, from `generation.free_text`.

    One table, or several by name ("before", "now", methods). Raises KetoolsError for another table or an empty one.
    """
    named = named_frames(frames, "id", "GE", "RS", of="evaluation.generation.free_text")
    means = {name: means_of(frame, ["GE", "RS"], None) for name, frame in named.items()}
    fig = make_subplots(1, 2, horizontal_spacing=0.14)
    add_mean_bars(fig, means, {"GE": "GE"}, show=".1f", at={"row": 1, "col": 1})
    add_mean_bars(fig, means, {"RS": "RS"}, show=".3f", at={"row": 1, "col": 2}, legend=False)
    fig.update_yaxes(title="entropy of n-grams, GE (100 × bits)", rangemode="tozero", col=1)
    fig.update_yaxes(title="likeness to references, RS (0 to 1)", rangemode="tozero", col=2)
    fig.update_xaxes(title="score (name)")
    said = "; ".join(
        led(name, f"GE {told(rows.loc['GE'], number)}, RS {told(rows.loc['RS'], number)}", len(means))
        for name, rows in means.items()
    )
    head = "Free text"
    if {"before", "now"} <= set(means):
        ends = means["before"].loc["GE"], means["now"].loc["GE"]
        apart = ends[1]["high"] < ends[0]["low"] or ends[1]["low"] > ends[0]["high"]
        head = (
            "Free text repeats itself more than before"
            if apart and ends[1]["mean"] < ends[0]["mean"]
            else "Free text is more varied than before"
            if apart
            else "Free text is as varied as before, within its intervals"
        )
    caption = joined(
        "Low GE: the text repeats itself. RS: cosine of tf-idf. 95% bootstrap intervals over facts.", context
    )
    return dress(fig, f"{head} ({said})", caption, f"Bars in two panels. {said}.", 400)


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


def harness_forest(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Tasks of lm-evaluation-harness with 1.96 standard errors, from `harness.harness` (task, metric, value, stderr).

    Raises KetoolsError for another table or one without finite values.
    """
    of = "evaluation.harness.harness"
    rows = present(checked(frame, "task", "metric", "value", "stderr", "n", of=of), "value", of)
    names = [
        f"{plain(task, 26)}, {plain(metric, 16)}" for task, metric in zip(rows["task"], rows["metric"], strict=True)
    ]
    fig = go.Figure()
    add_points(fig, names, rows["value"], rows["value"] - 1.96 * rows["stderr"], rows["value"] + 1.96 * rows["stderr"])
    best, worst = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
    finding = f"{len(rows)} scores from {number(float(worst['value']))} ({plain(worst['task'], 26)}) to {number(float(best['value']))} ({plain(best['task'], 26)})"
    fig.update_xaxes(title="score (value of the metric)")
    text = "; ".join(f"{name} {number(float(v))}" for name, v in zip(names, rows["value"], strict=True))
    caption = joined("Points with 1.96 standard errors where the harness gives one.", context)
    return dress(fig, finding, caption, f"Points by task: {text}.", 130 + 32 * len(rows), left_of(names))


def _held(first: dict[str, float]) -> str:
    held = [label(name) for name, value in first.items() if value >= 0.95]
    if len(held) == len(first):
        return "Edits hold"
    return f"Edits hold with {listed(held)} only" if held else "Edits do not all hold"


# Figures of overfit and of consequences (ketools.evaluation.overfitting, ripple): what edits do beyond their prompts.
#
# Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
# bootstrap intervals. As in ketools.plots.figures: the title is the finding, and says so where there is none.


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
