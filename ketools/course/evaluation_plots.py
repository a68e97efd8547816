"""Figures of what edits did to facts, to generated text and to downstream tasks (ketools.evaluation).

Several of them take one table, or several by name: of methods, or "before" and "now". Means are over facts, with 95%
bootstrap intervals. As in ketools.course.plots: the title is the finding, and says so where there is none.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent
from ketools.course.means import Frames, add_mean_bars, later, led, means_of, named_frames, told
from ketools.course.parts import add_points, checked, joined, present
from ketools.course.style import NEUTRAL, OKABE_ITO, dress, label, left_of, plain
from ketools.errors import KetoolsError
from ketools.runs.names import listed

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
