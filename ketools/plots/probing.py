"""Figures of what a model knows and where it recalls it: each takes a frame of ketools.probing and returns a go.Figure.

As in ketools.plots: the title is the finding, computed from the data, and says so where there is none.
"""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.plots.style import (
    LAYER,
    NEUTRAL,
    OKABE_ITO,
    Style,
    add_line,
    add_means,
    between,
    checked,
    colours,
    dress,
    joined,
    layer_axis,
    layer_names,
    left_of,
    number,
    over_facts,
    part_styles,
    percent,
    plain,
    styles,
)
from ketools.probing.tracing import average

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


# Figures of where a fact is recalled: causal tracing and attention knockout (ketools.probing.tracing, knockout).


_OF = "probing.tracing.trace"
_KINDS_tracing_plots = {
    "hidden": ("hidden states", "behind"),
    "mlp": ("MLPs", "around"),
    "attention": ("attentions", "around"),
    "hidden, mlp severed": ("hidden, MLPs severed", "behind"),
    "hidden, attention severed": ("hidden, attentions severed", "behind"),
}
_ROLES = {
    "before the subject": "what stands before the subject",
    "first of the subject": "the subject's first token",
    "middle of the subject": "the subject's middle tokens",
    "last of the subject": "the subject's last token",
    "first after the subject": "the first token after the subject",
    "further": "further tokens",
    "last token": "the last token",
}
_CLEAR = 0.1  # share of the lost probability below which a restoration brings nothing back worth naming
_SOURCES = {"subject": "the subject", "other": "all other tokens"}


def named(kind: str) -> str:
    """What figures call a kind of restored state: "mlp" is "MLPs"."""
    return _KINDS_tracing_plots.get(kind, (kind, ""))[0]


def trace_heat(frame: pd.DataFrame, fact: str | None = None, *, context: str = "") -> go.Figure:
    """Causal tracing as maps, layers by positions, one panel a kind of restored state.

    From `tracing.trace` at="each". One fact (the only one, or `fact`, its id): a row per token, the subject's marked with
    *. Several: a row per role, means over facts. Raises KetoolsError for another table, an empty one, an id that is not
    in it, or a trace that restored several positions together.
    """
    frame = checked(
        frame, "fact", "kind", "layer", "position", "token", "role", "effect", "p_clean", "p_corrupted", of=_OF
    )
    if fact is not None and fact not in set(frame["fact"]):
        raise KetoolsError(f"the trace has no fact {fact!r}; it has {', '.join(map(repr, frame['fact'].unique()[:8]))}")
    frame = frame if fact is None else frame[frame["fact"] == fact]
    if (frame["position"] < 0).any():
        raise KetoolsError(
            "the trace restored several positions together: no map over them; draw trace_profile instead"
        )
    one = frame["fact"].nunique() == 1
    key = "position" if one else "role"
    table = frame.groupby(["kind", key, "layer"], observed=True)["effect"].mean()
    kinds = [kind for kind in _KINDS_tracing_plots if kind in set(frame["kind"])]
    places, names = _places(frame, one)
    fig = _maps(table, kinds, places, names)
    fig.update_yaxes(title="token (* of the subject)" if one else "part of the prompt (mean over facts)", col=1)
    runs = frame.drop_duplicates("fact")
    lost, clean = float((runs["p_clean"] - runs["p_corrupted"]).mean()), float(runs["p_clean"].mean())
    finding, text = _trace_words(table, kinds, _said(frame, one), lost)
    of = "one fact" if one else f"mean over {len(runs)} facts"
    caption = (
        f"Noise on the subject takes the answer from probability {number(clean)} to {number(clean - lost)} ({of}); each cell is "
        "what putting one clean state back returns of it. MLPs and attentions: a window of layers around the one named. "
        "Title: the last token's own hidden states aside."
    )
    height = 100 + -(-len(kinds) // 3) * (50 + 26 * len(places))
    fig = dress(fig, finding, joined(caption, context), text, height, left_of(names))
    return fig.update_layout(hovermode="closest")


def trace_profile(frame: pd.DataFrame, role: str | None = None, *, context: str = "") -> go.Figure:
    """Causal tracing at one part of the prompt: mean effect by layer with its 95% interval, a line per kind.

    `frame`: of `tracing.trace`, or of `tracing.average` by kind, role and layer. `role` None: "last of the subject", or
    the only one there is. Raises KetoolsError for another table, an empty one, or a role that is not in it.
    """
    if "mean" not in frame:
        frame = average(checked(frame, "fact", "kind", "layer", "role", "effect", of=_OF))
    frame = checked(
        frame, "kind", "role", "layer", "mean", "low", "high", "facts", of="probing.tracing.average", least=2
    )
    roles = list(dict.fromkeys(map(str, frame["role"])))
    role = role or ("last of the subject" if len(roles) > 1 else roles[0])
    if role not in roles:
        raise KetoolsError(f"the trace has nothing at {role!r}; it has {', '.join(map(repr, roles))}")
    rows = frame[frame["role"] == role].sort_values("layer")
    kinds = [kind for kind in _KINDS_tracing_plots if kind in set(rows["kind"])]
    fig, said = go.Figure(), []
    for kind, look in part_styles(kinds).items():
        mine = rows[rows["kind"] == kind]
        add_means(fig, mine, _KINDS_tracing_plots[kind][0], look)
        best = mine.loc[mine["mean"].idxmax()]
        ends = (best["low"], best["high"]) if best["facts"] > 1 else (math.nan, math.nan)
        where = f"{_KINDS_tracing_plots[kind][1]} layer {best['layer']}: {between(best['mean'], *ends)}"
        said.append((kind, bool(best["low"] > 0), where))
    # Intervals, and the severed kinds beside the whole ones, would make the title a table: the description has them.
    told = [
        (kind, sure, where.partition(" [")[0]) for kind, sure, where in said if len(said) < 4 or "severed" not in kind
    ]
    clear = [f"{_KINDS_tracing_plots[kind][0]} most {where}" for kind, sure, where in told if sure]
    unclear = [f"{_KINDS_tracing_plots[kind][0]} nowhere clearly" for kind, sure, _ in told if not sure]
    at = _ROLES.get(role, plain(role))
    finding = f"Restored at {at}, these bring the answer back: {'; '.join([*clear, *unclear])}"
    if not clear:
        finding = f"Restored at {at}, nothing brings the answer back for certain"
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="indirect effect (probability)", zeroline=True)
    facts = int(rows["facts"].max())
    caption = joined(f"Gain in the answer's probability when clean states are put back; {over_facts(facts)}.", context)
    text = f"Line chart over layers, at {at}. " + " ".join(
        f"{_KINDS_tracing_plots[kind][0]}: highest {where}." for kind, _, where in said
    )
    return dress(fig, finding, caption, text)


def knockout_profile(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Attention knockout: relative change of the answer's probability by layer, mean with 95% interval, a line per source.

    From `knockout.knockout` (fact, source, layer, change). Raises KetoolsError for another table or fewer than two rows.
    """
    of = "probing.knockout.knockout"
    frame = checked(frame, "fact", "source", "layer", "change", of=of, least=2)
    rows = average(frame.dropna(subset=["change"]), by=("source", "layer"), value="change").sort_values("layer")
    fig, found = go.Figure(), {}
    for source, look in part_styles(dict.fromkeys(frame["source"])).items():
        mine = rows[rows["source"] == source]
        add_means(fig, mine, f"blocked: {_SOURCES[source]}", look, ".1%")
        found[source] = mine
    lines = [_cost(_SOURCES[source], mine) for source, mine in found.items()]
    window = frame.attrs.get("window")
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="change of the answer's probability (%)", tickformat=".0%")
    finding = f"Blocking what the last token reads lowers the answer: {'; '.join(lines)}"
    if not any(" (by " in line for line in lines):
        finding = "Blocking what the last token reads costs the answer nothing for certain, in any layer"
    wide = f" Blocked in {window} layer{'s' if window != 1 else ''} around each." if window else ""
    caption = joined(f"Relative change, {over_facts(int(rows['facts'].max()))}.{wide}", context)
    return dress(fig, finding, caption, f"Line chart over layers. Lowered by blocking: {'; '.join(lines)}.")


def _cost(source: str, rows: pd.DataFrame) -> str:
    # Where blocking a source costs for certain, and how much at most.
    worst, sure = rows.loc[rows["mean"].idxmin()], rows.loc[rows["high"] < 0, "layer"]
    if sure.empty:
        return f"{source} nowhere for certain"
    span = f" [{percent(-worst['high'])} to {percent(-worst['low'])}]" if worst["facts"] > 1 else ""
    return f"{source} in {layer_names(sure)} (by {percent(-worst['mean'])}{span} around layer {worst['layer']})"


def _maps(table: pd.Series, kinds: list[str], places: list[object], names: list[str]) -> go.Figure:
    # `table`: effects by kind, place and layer.
    fig = make_subplots(
        -(-len(kinds) // 3), min(3, len(kinds)), shared_yaxes=True, shared_xaxes="all", horizontal_spacing=0.03,
        vertical_spacing=0.16, subplot_titles=[_KINDS_tracing_plots[kind][0] for kind in kinds],
    )  # fmt: skip
    layers = sorted({int(layer) for layer in table.index.get_level_values("layer")})
    for panel, kind in enumerate(kinds):
        z = table[kind].unstack("layer").reindex(places)
        heat = go.Heatmap(
            z=z.to_numpy().tolist(), x=layers, y=list(range(len(places))), coloraxis="coloraxis", xgap=1, ygap=1,
            customdata=[[name] * len(layers) for name in names], name=_KINDS_tracing_plots[kind][0],
            hovertemplate=f"{_KINDS_tracing_plots[kind][0]}<br>%{{customdata}}, layer %{{x}}<br>effect %{{z:.3f}}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(heat, row=1 + panel // 3, col=1 + panel % 3)
    fig.update_layout(coloraxis=colours(table.to_numpy(), "indirect effect (probability)"))
    fig.update_xaxes(title=LAYER, showticklabels=True, **layer_axis(layers))
    return fig.update_yaxes(autorange="reversed", tickmode="array", tickvals=list(range(len(places))), ticktext=names)


def _places(frame: pd.DataFrame, one: bool) -> tuple[list[object], list[str]]:
    if not one:
        there = set(frame["role"])
        roles = frame["role"].cat.categories if isinstance(frame["role"].dtype, pd.CategoricalDtype) else sorted(there)
        places = [role for role in roles if role in there]
        return places, [str(role) for role in places]
    rows = frame.drop_duplicates("position").sort_values("position")
    stars = ["*" if str(role).endswith("of the subject") else "" for role in rows["role"]]
    return rows["position"].tolist(), [plain(t, 18) + star for t, star in zip(rows["token"], stars, strict=True)]


def _said(frame: pd.DataFrame, one: bool) -> dict[object, str]:
    # How the title calls a place.
    if not one:
        return {role: _ROLES.get(str(role), plain(role)) for role in set(frame["role"])}
    rows = frame.drop_duplicates("position")
    told = ("last of the subject", "last token")
    return {
        at: _ROLES[str(role)] if str(role) in told else f'"{plain(token, 18)}"'
        for at, role, token in zip(rows["position"], rows["role"], rows["token"], strict=True)
    }


def _trace_words(table: pd.Series, kinds: list[str], names: dict[object, str], lost: float) -> tuple[str, str]:
    said = []
    for kind in kinds:
        mine, (what, where) = table[kind], _KINDS_tracing_plots[kind]
        if where == "behind":  # the state that the answer is read from brings it back whatever the model is like
            before = mine[[names[place] != _ROLES["last token"] for place, _ in mine.index]]
            mine = before if len(before) else mine
        (place, layer), effect = mine.idxmax(), float(mine.max())
        if effect > _CLEAR * max(lost, 0.0) and effect > 0:
            said.append((True, f"{what} most at {names[place]} {where} layer {layer} ({effect:+.2g})"))
        else:
            said.append((False, f"{what} nowhere (at most {effect:+.2g})"))
    list_ = "; ".join(line for _, line in said)
    text = f"Maps of layers by parts of the prompt. {list_}; lost by noise: {number(lost)}."
    if not any(sure for sure, _ in said):
        return f"No single restored state brings the answer back (lost {number(lost)}: {list_})", text
    return f"Of {number(lost)} lost probability, these bring back: {list_}", text


# Figures of which parts answer and which layers to edit (ketools.probing.attribution, layers).
