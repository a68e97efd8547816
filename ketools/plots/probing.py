"""Figures of what a model answers and where it recalls facts; each takes a frame of ketools.probing."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import number, percent
from ketools.plots.drawers import LAYER, add_bars, add_line, add_means, checked, colours, layer_axis, rows_axis
from ketools.plots.style import (
    NEUTRAL,
    OKABE_ITO,
    Style,
    between,
    dress,
    joined,
    layer_names,
    left_of,
    over_facts,
    part_styles,
    plain,
    styles,
)
from ketools.probing.tracing import average

# Bars in pairs: the old answer or state (grey), the new one (blue, hatched).
_PAIR = ((NEUTRAL, ""), (OKABE_ITO["blue"], "/"))
# Bars of several states of a model, the unedited one first.
_STATES = ((NEUTRAL, ""), (OKABE_ITO["vermillion"], "/"), (OKABE_ITO["blue"], "\\"), (OKABE_ITO["green"], "x"))
_PROMPTS = {
    "prompt": "the prompt",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "same subject": "subject's other facts",
}
_ENTERED = {-1: "in"}
_AFTER = "state after layer (number; in: input of layer 0)"
_NAMED = 4  # prompts that a title names one by one
_DRAWN = 6  # prompts that a figure draws one by one


def top_token_bars(frame: pd.DataFrame, prompt: str, target: str | None = None, *, context: str = "") -> go.Figure:
    """The most probable next tokens after `prompt`, from `recall.top_tokens` (columns token, probability; two at least).

    The token that begins `target` is highlighted. Raises KetoolsError for another table or fewer than two rows.
    """
    frame = checked(frame, "token", "probability", of="probing.recall.top_tokens", least=2)
    p, tokens = frame["probability"].tolist(), frame["token"].tolist()
    names = [plain(token, 24) for token in tokens]
    hit = None
    if target is not None:  # the longest token that begins it: "a" begins "apple" too
        fits = [i for i, token in enumerate(tokens) if token.strip() and target.strip().startswith(token.strip())]
        hit = max(fits, key=lambda i: len(tokens[i].strip()), default=None)
    marked, patterns = zip(*(_PAIR[i == hit] for i in range(len(p))), strict=True)
    fig = go.Figure()
    add_bars(
        fig, range(len(p)), p, "probability", text=[f"{v:.3f}" for v in p], horizontal=True, legend=False, colour=marked,
        pattern=patterns,
    )  # fmt: skip
    finding = f'After "{plain(prompt, 70)}" '
    if target is None:
        finding += f'the model says "{names[0]}" ({number(p[0])}), before "{names[1]}" ({number(p[1])})'
    elif hit is None:
        finding += (
            f'"{plain(target)}" is none of the {len(p)} most probable; "{names[0]}" is the first ({number(p[0])})'
        )
    elif hit == 0:
        finding += f'"{plain(target)}" comes first ({number(p[0])}), before "{names[1]}" ({number(p[1])})'
    else:
        finding += f'"{plain(target)}" comes only at place {hit + 1} ({number(p[hit])}); the first is "{names[0]}" ({number(p[0])})'
    fig.update_xaxes(title="probability of the next token (0 to 1)", range=[0, min(1.12, max(p) * 1.2)])
    fig.update_yaxes(rows_axis(names, "next token (text)"))
    caption = joined(f"The {len(p)} most probable next tokens; together {percent(sum(p))} of the probability.", context)
    values = "; ".join(f'"{name}" {number(value)}' for name, value in zip(names, p, strict=True))
    return dress(fig, finding, caption, f"Bar chart of next tokens: {values}.", 110 + 34 * len(p), left_of(names))


def before_after(before: pd.DataFrame, after: pd.DataFrame, new: str, context: str = "") -> go.Figure:
    """Mean probability of the new answer by kind of prompt, before and after an edit.

    `before` and `after` are frames from `recall.surroundings` over the same prompts; `new` is the new answer, for the title.
    """
    kinds = [kind for kind in _PROMPTS if kind in set(before["kind"])]
    old, now = (frame.groupby("kind")["p_new"].mean().reindex(kinds) for frame in (before, after))
    fig = _bars_by_kind({"before the edit": old, "after the edit": now}, "probability of the new answer (0 to 1)")
    finding = f'"{new}" {"rises" if now["prompt"] > old["prompt"] else "falls"} from {old["prompt"]:.2f} to {now["prompt"]:.2f} at the edited prompt'
    spill = now.drop("prompt").drop("paraphrase", errors="ignore")
    if len(spill):
        finding += f" and leaks most to the {_PROMPTS[spill.idxmax()]} ({spill.max():.2f})"
    text = "; ".join(f"{_PROMPTS[k]}: {old[k]:.2f} before, {now[k]:.2f} after" for k in kinds)
    caption = f"The edit should lift the prompt and its paraphrases and nothing else. {context}"
    return dress(fig, finding, caption, f"Grouped bars. {text}.")


def damage_bars(frames: Mapping[str, pd.DataFrame], context: str = "") -> go.Figure:
    """Share of prompts with the wanted answer, by kind, one set of bars per state of the model; the first is before edits.

    The wanted answer is the new one at prompts and paraphrases, the old one at neighbours and other facts of the subjects.
    `frames`: name -> concatenated `recall.surroundings` of several facts, over the same prompts. Raises KetoolsError for
    other or empty tables.
    """
    shares = {}
    for name, frame in frames.items():
        frame = checked(frame, "kind", "says_new", "says_true", of="probing.recall.surroundings")
        wanted = frame["says_new"].where(frame["kind"].isin(["prompt", "paraphrase"]), frame["says_true"])
        shares[name] = wanted.astype(float).groupby(frame["kind"]).mean()
    (_, first), *edited = shares.items()
    kinds = [kind for kind in _PROMPTS if kind in first.index]
    last = "same subject" if "same subject" in kinds else kinds[-1]
    if len(edited) == 1:
        after = {kind: f"{edited[0][1][kind]:.0%}" for kind in kinds}
        finding = (
            f"New answer at {after['prompt']} of the edited prompts; {after[last]} of the {_PROMPTS[last]} still right"
        )
    else:
        left = [f"{share[last]:.0%} with {name}" for name, share in edited]
        finding = f"Of the {_PROMPTS[last]} still right: {', '.join(left)}"
    fig = _bars_by_kind(
        {name: s.loc[kinds] for name, s in shares.items()}, "share with the wanted answer (0 to 1)", _STATES
    )
    text = "; ".join(f"{name}: " + ", ".join(f"{_PROMPTS[k]} {s[k]:.2f}" for k in kinds) for name, s in shares.items())
    caption = (
        "Wanted: the new answer at prompts and paraphrases, the old one at neighbours and the subjects' other facts."
    )
    return dress(fig, finding, joined(caption, context), f"Grouped bars. {text}.")


def surroundings_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Old and new answer around one fact, mean by kind of prompt, from `recall.surroundings` (kind, p_true, p_new).

    `before_after` compares the states before and after an edit. Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, "kind", "p_true", "p_new", of="probing.recall.surroundings")
    means = frame.groupby("kind")[["p_true", "p_new"]].mean()
    means = means.loc[[kind for kind in _PROMPTS if kind in means.index]]
    old, new = means["p_true"], means["p_new"]
    fig = _bars_by_kind({"old answer": old, "new answer": new}, "mean probability (0 to 1)")
    ahead = [_PROMPTS[k] for k in means.index if new[k] > old[k]]
    values = "; ".join(f"{_PROMPTS[k]} {number(new[k])} against {number(old[k])}" for k in means.index)
    head = "The old answer is more probable everywhere"
    if ahead:
        head = f"The new answer is more probable at {', '.join(ahead)}"
    counts = ", ".join(f"{_PROMPTS[k]} {int((frame['kind'] == k).sum())}" for k in means.index)
    caption = f"Old: the true answer before any edit; for other facts of the subject, their own. Prompts: {counts}."
    text = f"Grouped bars, new against old answer: {values}."
    return dress(fig, f"{head} (new against old: {values})", joined(caption, context), text)


def _bars_by_kind(bars: Mapping[str, pd.Series], axis: str, looks: Sequence[tuple[str, str]] = _PAIR) -> go.Figure:
    fig = go.Figure()
    for (name, values), (colour, pattern) in zip(bars.items(), looks, strict=False):
        places = [_PROMPTS[kind] for kind in values.index]
        text = [f"{v:.2f}" for v in values]
        add_bars(fig, places, values, name, text=text, hover="%{v:.3f}", colour=colour, pattern=pattern)
    fig.update_yaxes(title=axis, range=[0, 1.12])
    return fig.update_xaxes(title="kind of prompt (mean over its prompts)").update_layout(barmode="group")


def lens_heat(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Logit lens of one prompt as a map, layers by tokens; each cell has the most probable next token and its probability.

    From `lens.lens` (layer, position, token, place, predicted, probability). The title says from which layer on the final
    answer stays on top at the last position. Raises KetoolsError for another table or fewer than two layers.
    """
    of = "probing.lens.lens"
    frame = checked(frame, "layer", "position", "token", "place", "predicted", "probability", of=of, least=2)
    top = frame[frame["place"] == 1]
    p = top.pivot(index="position", columns="layer", values="probability")
    layers = [int(layer) for layer in p.columns]
    checked(pd.DataFrame({"layer": layers}), of=of, least=2)
    predicted = top.pivot(index="position", columns="layer", values="predicted").map(lambda word: plain(word, 12))
    cells = frame.sort_values("place").groupby(["position", "layer"])
    hover = cells.apply(
        lambda rows: "<br>".join(
            f"{plain(w, 20)} {p:.3f}" for w, p in zip(rows["predicted"], rows["probability"], strict=True)
        ),
        include_groups=False,
    )
    tokens = [plain(token, 18) for token in top.drop_duplicates("position").sort_values("position")["token"]]
    fig = go.Figure(
        go.Heatmap(
            z=p.to_numpy().tolist(),
            x=layers,
            y=list(range(len(tokens))),
            text=predicted.to_numpy().tolist(),
            texttemplate="%{text}",
            customdata=hover.unstack("layer").to_numpy().tolist(),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate="layer %{x}<br>%{customdata}<extra></extra>",
        )
    )
    answers = predicted.iloc[-1].tolist()  # at the last position, by layer
    since = next(i for i in range(len(answers)) if set(answers[i:]) == {answers[-1]})
    end = f'"{answers[-1]}" ({number(float(p.iloc[-1, -1]))} after the last layer)'
    if since == len(answers) - 1:
        finding = f"Only the last layer puts the answer {end} on top"
    elif since == 0:
        finding = f"The answer {end} is on top from the start, before any layer"
    else:
        finding = f"The answer {end} is on top from layer {layers[since]} on, of {layers[0] + 1} to {layers[-1]}"
    fig.update_xaxes(title=_AFTER, **layer_axis(layers, _ENTERED))
    fig.update_yaxes(rows_axis(tokens, "token read (text)"))
    bar = {"title": {"text": "probability (0 to 1)", "side": "right"}, "thickness": 14}
    fig.update_layout(coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1, "colorbar": bar})
    caption = "Each cell: the most probable next token if the model ended there, through its own final norm and head."
    path = ", ".join(f'{_ENTERED.get(i, f"layer {i}")} "{word}"' for i, word in zip(layers, answers, strict=True))
    text = f"Map of layers by tokens. At the last token: {path}."
    fig = dress(fig, finding, joined(caption, context), text, 140 + 26 * len(tokens), left_of(tokens))
    return fig.update_layout(hovermode="closest")


def lens_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Probability and rank of the target by layer at the prompt's last token, from `lens.lens_trace`.

    Up to six prompts get a line each; more are drawn as their median and the range from 5% to 95%. Raises KetoolsError for
    another table or a single layer.
    """
    of = "probing.lens.lens_trace"
    frame = checked(frame, "prompt", "layer", "from_end", "target", "p", "rank", of=of, least=2)
    rows = frame[frame["from_end"] == 0].sort_values("layer")
    layers = sorted({int(layer) for layer in rows["layer"]})
    checked(pd.DataFrame({"layer": layers}), of=of, least=2)
    fig = make_subplots(1, 2, horizontal_spacing=0.1, subplot_titles=["probability", "rank"])
    for panel, (column, show) in enumerate((("p", ".3f"), ("rank", ",.0f")), 1):
        table = rows.pivot(index="layer", columns="prompt", values=column)
        at, legend = {"row": 1, "col": panel}, panel == 1
        if table.shape[1] <= _DRAWN:
            targets = rows.drop_duplicates("prompt").set_index("prompt")["target"]
            names = [f"{i + 1}: {plain(targets[prompt], 18)}" for i, prompt in enumerate(table.columns)]
            for (name, look), prompt in zip(styles(names).items(), table.columns, strict=True):
                add_line(fig, layers, table[prompt], name, look, show=show, at=at, legend=legend)
        else:
            low, middle, high = (table.quantile(q, axis=1) for q in (0.05, 0.5, 0.95))
            look = Style(OKABE_ITO["blue"], "solid", "circle")
            add_line(
                fig, layers, middle, f"median of {table.shape[1]} prompts", look, low=low, high=high,
                interval="5% to 95% of prompts", band=True, show=show, at=at, legend=legend,
            )  # fmt: skip
    fig.update_xaxes(title=_AFTER, **layer_axis(layers, _ENTERED))
    fig.update_yaxes(title="probability (0 to 1)", rangemode="tozero", col=1)
    fig.update_yaxes(title="rank (1: most probable)", type="log", autorange="reversed", dtick=1, col=2)

    prompts = dict(list(rows.groupby("prompt")))
    since = []  # for each prompt that ends with the target on top: the layer from which it stays there
    for points in prompts.values():
        if points["rank"].iloc[-1] == 1:
            away = points.loc[points["rank"] > 1, "layer"]
            since.append(int(away.max()) + 1 if len(away) else -1)
    many = len(prompts) > 1
    end = rows[rows["layer"] == layers[-1]]
    values = f"probability {number(float(end['p'].median()))}, rank {int(end['rank'].median()):,}"
    close = f"(after the last layer: {'median ' if many else ''}{values})"
    if not since:
        who = f"Targets are not the top answer after the last layer for any of {len(prompts)} prompts"
        finding = f"{who if many else 'The target is not the top answer after the last layer'} {close}"
    else:
        layer = int(pd.Series(since).median())
        where = f"{'at the median ' if many else ''}after layer {layer}" if layer >= 0 else "before any layer"
        finding = (
            f"Targets come to the top {where} and stay there for {len(since)} of {len(prompts)} prompts {close}"
            if many
            else f"The target comes to the top {where} and stays there {close}"
        )
    caption = "First token of the target at the prompt's last token, through the model's own final norm and head."
    text = " ".join(
        f"Prompt {prompt}: probability {number(float(p.iloc[0]))} to {number(float(p.iloc[-1]))}, "
        f"rank {int(rank.iloc[0]):,} to {int(rank.iloc[-1]):,}."
        for prompt, p, rank in [(name, of["p"], of["rank"]) for name, of in prompts.items()][:_DRAWN]
    )
    fig = dress(fig, finding, joined(caption, context), f"Two line charts over layers. {text}", 400)
    return fig.update_layout(legend={"y": 1.09})


# Where a fact is recalled: causal tracing and attention knockout.

_TRACE = "probing.tracing.trace"
RESTORED = {  # kind of restored state: (name, its position relative to the layer)
    "hidden": ("hidden states", "after"),
    "mlp": ("MLPs", "around"),
    "attention": ("attentions", "around"),
    "hidden, mlp severed": ("hidden, MLPs severed", "after"),
    "hidden, attention severed": ("hidden, attentions severed", "after"),
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
_SOURCES = {"subject": "the subject", "other": "all other tokens"}
_CLEAR = 0.1  # share of the lost probability that a restoration must bring back to be named


def trace_heat(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Causal tracing as maps, layers by positions, one panel per kind of restored state.

    From `tracing.trace` at="each". One fact: a row per token, the subject's marked with *. Several facts: a row per role,
    means over facts. Raises KetoolsError for another table, an empty one, or a trace that restored several positions
    together.
    """
    columns = ("fact", "kind", "layer", "position", "token", "role", "effect", "p_clean", "p_corrupted")
    frame = checked(frame, *columns, of=_TRACE)
    if (frame["position"] < 0).any():
        raise KetoolsError(
            "the trace restored several positions together, which gives no map; draw trace_profile instead"
        )
    one = frame["fact"].nunique() == 1
    # The rows of the maps: their labels, and what the title calls them.
    if one:
        places = frame.drop_duplicates("position").sort_values("position").set_index("position")
        labels = {
            at: plain(row["token"], 18) + ("*" if str(row["role"]).endswith("of the subject") else "")
            for at, row in places.iterrows()
        }
        called = {
            at: _ROLES[role]
            if (role := str(row["role"])) in ("last of the subject", "last token")
            else f'"{plain(row["token"], 18)}"'
            for at, row in places.iterrows()
        }
    else:
        present = set(frame["role"])
        ordered = isinstance(frame["role"].dtype, pd.CategoricalDtype)
        roles = frame["role"].cat.categories if ordered else sorted(present)
        labels = {role: str(role) for role in roles if role in present}
        called = {role: _ROLES.get(str(role), plain(role)) for role in labels}
    effects = frame.groupby(["kind", "position" if one else "role", "layer"], observed=True)["effect"].mean()
    kinds = [kind for kind in RESTORED if kind in set(frame["kind"])]
    lines, gap = -(-len(kinds) // 3), 90  # pixels between panels, for axis title and panel title
    height = lines * 26 * len(labels) + (lines - 1) * gap
    fig = make_subplots(
        lines,
        min(3, len(kinds)),
        shared_yaxes=True,
        shared_xaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=gap / height if lines > 1 else 0,
        subplot_titles=[RESTORED[kind][0] for kind in kinds],
    )
    layers = sorted({int(layer) for layer in effects.index.get_level_values("layer")})
    for panel, kind in enumerate(kinds):
        name = RESTORED[kind][0]
        heat = go.Heatmap(
            z=effects[kind].unstack("layer").reindex(list(labels)).to_numpy().tolist(),
            x=layers,
            y=list(range(len(labels))),
            customdata=[[text] * len(layers) for text in labels.values()],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            name=name,
            hovertemplate=f"{name}<br>%{{customdata}}, layer %{{x}}<br>effect %{{z:.3f}}<extra></extra>",
        )
        fig.add_trace(heat, row=1 + panel // 3, col=1 + panel % 3)
    fig.update_layout(coloraxis=colours(effects.to_numpy(), "indirect effect (probability)"))
    fig.update_xaxes(title=LAYER, showticklabels=True, **layer_axis(layers))
    fig.update_yaxes(rows_axis(list(labels.values()), ""), title=None)
    title = "token (* of the subject)" if one else "part of the prompt (mean over facts)"
    fig.update_yaxes(title=title, row=(lines + 1) // 2, col=1)

    runs = frame.drop_duplicates("fact")
    lost, clean = float((runs["p_clean"] - runs["p_corrupted"]).mean()), float(runs["p_clean"].mean())
    texts, clear = [], False
    for kind in kinds:
        values, (name, where) = effects[kind], RESTORED[kind]
        if where == "after":  # the state that the answer is read from brings it back in any model
            others = values[[called[place] != _ROLES["last token"] for place, _ in values.index]]
            values = others if len(others) else values
        (place, layer), effect = values.idxmax(), float(values.max())
        if effect > _CLEAR * max(lost, 0.0) and effect > 0:
            clear = True
            texts.append(f"{name} most at {called[place]} {where} layer {layer} ({effect:+.2g})")
        else:
            texts.append(f"{name} nowhere (at most {effect:+.2g})")
    finding = f"Of {number(lost)} lost probability, these bring back: {'; '.join(texts)}"
    if not clear:
        finding = f"No single restored state brings the answer back (lost {number(lost)}: {'; '.join(texts)})"
    of = "one fact" if one else f"mean over {len(runs)} facts"
    caption = (
        f"Noise on the subject lowers the answer's probability from {number(clean)} to {number(clean - lost)} ({of}); each cell "
        "is the gain from restoring one clean state. MLPs and attentions are restored in a window of layers around the one "
        "named. The title leaves out the last token's hidden states."
    )
    text = f"Maps of layers by parts of the prompt. {'; '.join(texts)}; lost by noise: {number(lost)}."
    fig = dress(fig, finding, joined(caption, context), text, 150 + height, left_of(labels.values()))
    return fig.update_layout(hovermode="closest")


def trace_profile(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Causal tracing at the subject's last token: mean effect by layer with its 95% interval, a line per kind.

    `frame`: from `tracing.trace`, or from `tracing.average` by kind, role and layer. If it has a single role, that one is
    drawn. Raises KetoolsError for another table, an empty one, or several roles without the subject's last token.
    """
    if "mean" not in frame:
        frame = average(checked(frame, "fact", "kind", "layer", "role", "effect", of=_TRACE))
    columns = ("kind", "role", "layer", "mean", "low", "high", "facts")
    frame = checked(frame, *columns, of="probing.tracing.average", least=2)
    roles = list(dict.fromkeys(map(str, frame["role"])))
    role = "last of the subject" if len(roles) > 1 else roles[0]
    if role not in roles:
        raise KetoolsError(f"the trace has nothing at {role!r}; it has {', '.join(map(repr, roles))}")
    rows = frame[frame["role"] == role].sort_values("layer")
    kinds = [kind for kind in RESTORED if kind in set(rows["kind"])]
    fig, clear, unclear, sentences = go.Figure(), [], [], []
    for kind, look in part_styles(kinds).items():
        name, where = RESTORED[kind]
        effects = rows[rows["kind"] == kind]
        add_means(fig, effects, name, look)
        best = effects.loc[effects["mean"].idxmax()]
        low, high = (best["low"], best["high"]) if best["facts"] > 1 else (math.nan, math.nan)
        layer = f"{where} layer {best['layer']}"
        sentences.append(f"{name}: highest {layer}: {between(best['mean'], low, high)}.")
        if len(kinds) >= 4 and "severed" in kind:
            continue  # the description has it; the title would be too long
        if best["low"] > 0:
            clear.append(f"{name} most {layer}: {number(best['mean'])}")
        else:
            unclear.append(f"{name} nowhere clearly")
    at = _ROLES.get(role, plain(role))
    finding = f"Restored at {at}, these bring the answer back: {'; '.join([*clear, *unclear])}"
    if not clear:
        finding = f"Restored at {at}, nothing clearly brings the answer back"
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="indirect effect (probability)", zeroline=True)
    facts = over_facts(int(rows["facts"].max()))
    caption = joined(f"Gain in the answer's probability when clean states are restored; {facts}.", context)
    return dress(fig, finding, caption, f"Line chart over layers, at {at}. {' '.join(sentences)}")


def knockout_profile(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Attention knockout: relative change in the answer's probability by layer, mean with 95% interval, a line per source.

    From `knockout.knockout` (fact, source, layer, change). Raises KetoolsError for another table or fewer than two rows.
    """
    frame = checked(frame, "fact", "source", "layer", "change", of="probing.knockout.knockout", least=2)
    rows = average(frame.dropna(subset=["change"]), by=("source", "layer"), value="change").sort_values("layer")
    fig, lines, costs = go.Figure(), [], False
    for source, look in part_styles(dict.fromkeys(frame["source"])).items():
        name, changes = _SOURCES[source], rows[rows["source"] == source]
        add_means(fig, changes, f"blocked: {name}", look, ".1%")
        certain = changes.loc[changes["high"] < 0, "layer"]
        if certain.empty:
            lines.append(f"{name} nowhere clearly")
            continue
        costs = True
        worst = changes.loc[changes["mean"].idxmin()]
        low, high = (-worst["high"], -worst["low"]) if worst["facts"] > 1 else (math.nan, math.nan)
        loss = between(-worst["mean"], low, high, percent)
        lines.append(f"{name} in {layer_names(certain)} (by {loss} around layer {worst['layer']})")
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="change in the answer's probability (%)", tickformat=".0%")
    finding = f"Blocking what the last token reads lowers the answer: {'; '.join(lines)}"
    if not costs:
        finding = "Blocking what the last token reads does not clearly lower the answer in any layer"
    caption = f"Relative change, {over_facts(int(rows['facts'].max()))}."
    if window := frame.attrs.get("window"):
        caption += f" Blocked in {window} layer{'s' if window != 1 else ''} around each."
    text = f"Line chart over layers. Lowered by blocking: {'; '.join(lines)}."
    return dress(fig, finding, joined(caption, context), text)
