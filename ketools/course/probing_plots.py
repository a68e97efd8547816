"""Figures of what a model knows and where it recalls it: each takes a frame of ketools.probing and returns a go.Figure.

As in ketools.course.plots: the title is the finding, computed from the data, and says so where there is none.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent
from ketools.course.parts import add_line, checked, joined, layer_axis
from ketools.course.style import NEUTRAL, OKABE_ITO, Style, dress, left_of, plain, styles

_ENTERED = {-1: "in"}
_KINDS = {
    "prompt": "the prompt",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "same subject": "same subject",
}
_MANY = 6  # prompts that a figure draws one by one


def top_token_bars(frame: pd.DataFrame, prompt: str, target: str | None = None, *, context: str = "") -> go.Figure:
    """The most probable next tokens after `prompt`, from `recall.top_tokens` (columns token, probability; two at least).

    The bar of `target`'s beginning is marked. `context` (mode, model, n, seed) ends the caption. Raises KetoolsError for
    another table or fewer than two rows.
    """
    frame = checked(frame, "token", "probability", of="probing.recall.top_tokens", least=2)
    p, tokens = frame["probability"].tolist(), frame["token"].tolist()
    words = [plain(token, 24) for token in tokens]
    hit = _begins(tokens, target)
    colours = [OKABE_ITO["blue"] if i == hit else NEUTRAL for i in range(len(p))]
    fig = go.Figure()
    fig.add_bar(
        x=p, y=list(range(len(p))), orientation="h", name="probability", showlegend=False, text=[f"{v:.3f}" for v in p],
        textposition="outside", cliponaxis=False, marker={"color": colours, "pattern": {"shape": ["/" if i == hit else "" for i in range(len(p))]}},
        hovertemplate="%{x:.4f}<extra></extra>",
    )  # fmt: skip
    asked = f'After "{plain(prompt, 70)}" '
    if target is None:
        finding = f'{asked}the model says "{words[0]}" ({number(p[0])}), before "{words[1]}" ({number(p[1])})'
    elif hit == 0:
        finding = f'{asked}"{plain(target)}" comes first ({number(p[0])}), before "{words[1]}" ({number(p[1])})'
    elif hit is None:
        finding = f'{asked}"{plain(target)}" is none of the {len(p)} most probable; "{words[0]}" is the first ({number(p[0])})'
    else:
        finding = f'{asked}"{plain(target)}" comes only at place {hit + 1} ({number(p[hit])}); the first is "{words[0]}" ({number(p[0])})'
    fig.update_xaxes(title="probability of the next token (0 to 1)", range=[0, min(1.12, max(p) * 1.2)])
    _rows(fig, words, "next token (text)")
    caption = joined(f"The {len(p)} most probable next tokens; together {percent(sum(p))} of the probability.", context)
    said = "; ".join(f'"{word}" {number(value)}' for word, value in zip(words, p, strict=True))
    return dress(fig, finding, caption, f"Bar chart of next tokens: {said}.", 110 + 34 * len(p), left_of(words))


def answer_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """How probable given answers are after their prompts, from `recall.answers` (prompt, target, probability, right).

    Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "prompt", "target", "probability", "right", of="probing.recall.answers")
    names = [f"{plain(a, 42)} … {plain(b, 18)}" for a, b in zip(frame["prompt"], frame["target"], strict=True)]
    right, p = frame["right"].astype(bool).tolist(), frame["probability"].tolist()
    fig = go.Figure()
    for ok, name, colour, shape in (
        (True, "top answer", OKABE_ITO["blue"], "/"),
        (False, "not the top answer", NEUTRAL, ""),
    ):
        rows = [i for i in range(len(p)) if right[i] == ok]
        fig.add_bar(
            x=[p[i] for i in rows], y=rows, orientation="h", name=name, marker={"color": colour, "pattern": {"shape": shape}},
            text=[f"{p[i]:.2f}" for i in rows], textposition="outside", cliponaxis=False, hovertemplate="%{x:.4f}<extra></extra>",
        )  # fmt: skip
    known = sum(right)
    said = "none of the" if not known else "all of the" if known == len(p) else f"{known} of the"
    finding = (
        f"The model gives {said} {len(p)} answers as its first choice (mean probability {number(sum(p) / len(p))})"
    )
    fig.update_xaxes(title="probability of the answer (0 to 1)", range=[0, 1.12])
    _rows(fig, names, "prompt and answer (text)")
    caption = joined(
        "exp of the mean token log-probability; top answer: every token is the most probable one.", context
    )
    text = "; ".join(
        f"{n}: {number(v)}{', the top answer' if ok else ''}" for n, v, ok in zip(names, p, right, strict=True)
    )
    fig = dress(fig, finding, caption, f"Bar chart of answers: {text}.", 130 + 34 * len(p), left_of(names))
    return fig.update_layout(barmode="overlay", hovermode="closest")


def surroundings_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Old and new answer around one fact, mean by kind of prompt, from `recall.surroundings` (kind, p_true, p_new).

    Before and after an edit side by side: `before_after`. Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "kind", "p_true", "p_new", of="probing.recall.surroundings")
    means = frame.groupby("kind")[["p_true", "p_new"]].mean()
    kinds = [kind for kind in _KINDS if kind in means.index]
    fig = go.Figure()
    for column, name, colour, shape in (
        ("p_true", "old answer", NEUTRAL, ""),
        ("p_new", "new answer", OKABE_ITO["blue"], "/"),
    ):
        fig.add_bar(
            name=name, x=[_KINDS[k] for k in kinds], y=means.loc[kinds, column].tolist(), textposition="outside",
            marker={"color": colour, "pattern": {"shape": shape}}, texttemplate="%{y:.2f}", cliponaxis=False,
        )  # fmt: skip
    new = [_KINDS[k] for k in kinds if means.loc[k, "p_new"] > means.loc[k, "p_true"]]
    ends = "; ".join(
        f"{_KINDS[k]} {number(means.loc[k, 'p_new'])} against {number(means.loc[k, 'p_true'])}" for k in kinds
    )
    head = (
        f"The new answer is the more probable one at {', '.join(new)}"
        if new
        else "The old answer is the more probable one everywhere"
    )
    fig.update_yaxes(title="mean probability (0 to 1)", range=[0, 1.12])
    fig.update_xaxes(title="kind of prompt (mean over its prompts)")
    counts = ", ".join(f"{_KINDS[k]} {int((frame['kind'] == k).sum())}" for k in kinds)
    caption = joined(
        f"Old: what was true before any edit, for other facts of the subject their own answer. Prompts: {counts}.",
        context,
    )
    fig = dress(fig, f"{head} (new against old: {ends})", caption, f"Grouped bars, new against old answer: {ends}.")
    return fig.update_layout(barmode="group")


def lens_heat(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Logit lens of one prompt as a map, layers by tokens; a cell has the most probable next token and its probability.

    From `lens.lens` (layer, position, token, place, predicted, probability). The title follows the last position: from
    which layer on the final answer stays on top. Raises KetoolsError for another table or fewer than two layers.
    """
    frame = checked(
        frame, "layer", "position", "token", "place", "predicted", "probability", of="probing.lens.lens", least=2
    )
    top = frame[frame["place"] == 1]
    z = top.pivot(index="position", columns="layer", values="probability")
    words = top.pivot(index="position", columns="layer", values="predicted").map(lambda word: plain(word, 12))
    all_of = frame.sort_values("place").groupby(["position", "layer"])
    more = all_of.apply(lambda rows: "<br>".join(f"{plain(w, 20)} {p:.3f}" for w, p in zip(rows["predicted"], rows["probability"], strict=True)), include_groups=False)  # fmt: skip
    tokens = [plain(token, 18) for token in top.drop_duplicates("position").sort_values("position")["token"]]
    layers = [int(layer) for layer in z.columns]
    _several(layers, "probing.lens.lens")
    fig = go.Figure(
        go.Heatmap(
            z=z.to_numpy().tolist(), x=layers, y=list(range(len(tokens))), text=words.to_numpy().tolist(), texttemplate="%{text}",
            customdata=more.unstack("layer").to_numpy().tolist(), coloraxis="coloraxis", xgap=1, ygap=1,
            hovertemplate="layer %{x}<br>%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    last = words.iloc[-1].tolist()
    finding = _lens_finding(last, layers, float(z.iloc[-1, -1]))
    fig.update_xaxes(title="state behind layer (number; in: what enters layer 0)", **layer_axis(layers, _ENTERED))
    _rows(fig, tokens, "token read (text)")
    fig.update_layout(coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "probability (0 to 1)", "side": "right"}, "thickness": 14}})  # fmt: skip
    caption = joined(
        "Each cell: the most probable next token if the model ended there, through its own final norm and head.",
        context,
    )
    path = ", ".join(f'{_ENTERED.get(i, f"layer {i}")} "{word}"' for i, word in zip(layers, last, strict=True))
    text = f"Map of layers by tokens. At the last token: {path}."
    fig = dress(fig, finding, caption, text, 140 + 26 * len(tokens), left_of(tokens))
    return fig.update_layout(hovermode="closest")


def lens_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Probability and rank of the target by layer at the prompt's last token, from `lens.lens_trace`.

    Up to six prompts are a line each; of more, the median with the range from 5% to 95% of prompts. Raises KetoolsError
    for another table or a single layer.
    """
    frame = checked(frame, "prompt", "layer", "from_end", "target", "p", "rank", of="probing.lens.lens_trace", least=2)
    rows = frame[frame["from_end"] == 0]
    layers = sorted({int(layer) for layer in rows["layer"]})
    _several(layers, "probing.lens.lens_trace")
    fig = make_subplots(1, 2, horizontal_spacing=0.1, subplot_titles=["probability", "rank"])
    for panel, (column, show) in enumerate((("p", ".3f"), ("rank", ",.0f")), 1):
        table = rows.pivot(index="layer", columns="prompt", values=column)
        at = {"row": 1, "col": panel}
        if table.shape[1] <= _MANY:
            targets = rows.drop_duplicates("prompt").set_index("prompt")["target"]
            names = {prompt: f"{i + 1}: {plain(targets[prompt], 18)}" for i, prompt in enumerate(table.columns)}
            for (prompt, name), look in zip(names.items(), styles(map(str, names)).values(), strict=True):
                add_line(fig, layers, table[prompt], name, look, show=show, at=at, legend=panel == 1)
        else:
            low, middle, high = (table.quantile(q, axis=1) for q in (0.05, 0.5, 0.95))
            name = f"median of {table.shape[1]} prompts"
            look = Style(OKABE_ITO["blue"], "solid", "circle")
            add_line(fig, layers, middle, name, look, low=low, high=high, interval="5% to 95% of prompts", show=show, band=True, at=at, legend=panel == 1)  # fmt: skip
    fig.update_xaxes(title="state behind layer (number; in: what enters layer 0)", **layer_axis(layers, _ENTERED))
    fig.update_yaxes(title="probability (0 to 1)", rangemode="tozero", col=1)
    fig.update_yaxes(title="rank (1: most probable)", type="log", autorange="reversed", dtick=1, col=2)
    finding, text = _lens_words(rows, layers[-1])
    caption = joined(
        "First token of the target at the prompt's last token, through the model's own final norm and head.", context
    )
    return dress(fig, finding, caption, f"Two line charts over layers. {text}", 400).update_layout(legend={"y": 1.09})


def _lens_finding(last: list[str], layers: list[int], p: float) -> str:
    # `last`: the most probable next token at the last position, by layer.
    since = next(i for i in range(len(last)) if all(word == last[-1] for word in last[i:]))
    end = f'"{last[-1]}" ({number(p)} behind the last layer)'
    if since == len(last) - 1:
        return f"Only the last layer puts the answer {end} on top"
    if since == 0:
        return f"The answer {end} is on top from the start, before any layer"
    return f"The answer {end} is on top from layer {layers[since]} on, of {layers[0] + 1} to {layers[-1]}"


def _lens_words(rows: pd.DataFrame, last: int) -> tuple[str, str]:
    # Since when the target is on top to the end, in how many prompts.
    first, end = {}, rows[rows["layer"] == last].set_index("prompt")
    for prompt, mine in rows.sort_values("layer").groupby("prompt"):
        away = mine.loc[mine["rank"] > 1, "layer"]
        first[prompt] = None if end.loc[prompt, "rank"] > 1 else int(away.max()) + 1 if len(away) else -1
    there = [layer for layer in first.values() if layer is not None]
    p, rank = number(float(end["p"].median())), int(end["rank"].median())
    what, many = ("The target", "") if len(first) == 1 else ("Targets", f" for {len(there)} of {len(first)} prompts")
    close = f"behind the last layer: {'median ' if many else ''}probability {p}, rank {rank:,}"
    if there:
        layer = int(pd.Series(there).median())
        since = (
            "before any layer"
            if layer < 0
            else f"{'behind layer' if not many else 'at the median behind layer'} {layer}"
        )
        finding = (
            f"{what} come{'' if many else 's'} to the top {since} and stay{'' if many else 's'} there{many} ({close})"
        )
    else:
        finding = f"{what} {'are' if many else 'is'} not the top answer behind the last layer{many.replace('for 0 of', 'for any of')} ({close})"
    lines = [
        f"Prompt {prompt}: probability {number(float(mine['p'].iloc[0]))} to {number(float(mine['p'].iloc[-1]))}, rank {int(mine['rank'].iloc[0]):,} to {int(mine['rank'].iloc[-1]):,}."
        for prompt, mine in list(rows.sort_values("layer").groupby("prompt"))[:_MANY]
    ]
    return finding, " ".join(lines)


def _begins(tokens: list[str], target: str | None) -> int | None:
    # Which token is the beginning of the target: the longest such one, since "a" begins "apple" too.
    if target is None:
        return None
    fits = [i for i, token in enumerate(tokens) if token.strip() and target.strip().startswith(token.strip())]
    return max(fits, key=lambda i: len(tokens[i].strip()), default=None)


def _rows(fig: go.Figure, labels: list[str], title: str) -> None:
    fig.update_yaxes(
        title=title, autorange="reversed", tickmode="array", tickvals=list(range(len(labels))), ticktext=labels
    )


def _several(layers: list[int], of: str) -> None:
    if len(layers) < 2:
        checked(pd.DataFrame({"layer": layers}), "layer", of=of, least=2)
