"""Figures of where a fact is recalled: causal tracing and attention knockout (ketools.probing.tracing, knockout)."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ketools.course.findings import number, percent
from ketools.course.parts import (
    LAYER,
    add_means,
    between,
    checked,
    colours,
    joined,
    layer_axis,
    layer_names,
    over_facts,
)
from ketools.course.style import dress, left_of, part_styles, plain
from ketools.errors import KetoolsError
from ketools.probing.tracing import average

_OF = "probing.tracing.trace"
_KINDS = {
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
    return _KINDS.get(kind, (kind, ""))[0]


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
    kinds = [kind for kind in _KINDS if kind in set(frame["kind"])]
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
    kinds = [kind for kind in _KINDS if kind in set(rows["kind"])]
    fig, said = go.Figure(), []
    for kind, look in part_styles(kinds).items():
        mine = rows[rows["kind"] == kind]
        add_means(fig, mine, _KINDS[kind][0], look)
        best = mine.loc[mine["mean"].idxmax()]
        ends = (best["low"], best["high"]) if best["facts"] > 1 else (math.nan, math.nan)
        where = f"{_KINDS[kind][1]} layer {best['layer']}: {between(best['mean'], *ends)}"
        said.append((kind, bool(best["low"] > 0), where))
    # Intervals, and the severed kinds beside the whole ones, would make the title a table: the description has them.
    told = [
        (kind, sure, where.partition(" [")[0]) for kind, sure, where in said if len(said) < 4 or "severed" not in kind
    ]
    clear = [f"{_KINDS[kind][0]} most {where}" for kind, sure, where in told if sure]
    unclear = [f"{_KINDS[kind][0]} nowhere clearly" for kind, sure, _ in told if not sure]
    at = _ROLES.get(role, plain(role))
    finding = f"Restored at {at}, these bring the answer back: {'; '.join([*clear, *unclear])}"
    if not clear:
        finding = f"Restored at {at}, nothing brings the answer back for certain"
    fig.update_xaxes(title=LAYER, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="indirect effect (probability)", zeroline=True)
    facts = int(rows["facts"].max())
    caption = joined(f"Gain in the answer's probability when clean states are put back; {over_facts(facts)}.", context)
    text = f"Line chart over layers, at {at}. " + " ".join(
        f"{_KINDS[kind][0]}: highest {where}." for kind, _, where in said
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
        vertical_spacing=0.16, subplot_titles=[_KINDS[kind][0] for kind in kinds],
    )  # fmt: skip
    layers = sorted({int(layer) for layer in table.index.get_level_values("layer")})
    for panel, kind in enumerate(kinds):
        z = table[kind].unstack("layer").reindex(places)
        heat = go.Heatmap(
            z=z.to_numpy().tolist(), x=layers, y=list(range(len(places))), coloraxis="coloraxis", xgap=1, ygap=1,
            customdata=[[name] * len(layers) for name in names], name=_KINDS[kind][0],
            hovertemplate=f"{_KINDS[kind][0]}<br>%{{customdata}}, layer %{{x}}<br>effect %{{z:.3f}}<extra></extra>",
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
        mine, (what, where) = table[kind], _KINDS[kind]
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
