"""Notebook 02: the figure of transplanted states, exercises."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.evaluation.metrics import number
from ketools.io import data_root, read_json
from ketools.plots.drawers import LAYER, add_line, add_means, layer_axis
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined, over_facts
from ketools.probing.tracing import average

States = Mapping[str, Sequence[Tensor]]
Replacement = tuple[str, int, Tensor]
Severed = Callable[[int, States, States], Sequence[Replacement]]
_ANSWERS = {
    "own": ("answer of the prompt's subject", Style(OKABE_ITO["blue"], "solid", "circle")),
    "other": ("answer of the other subject", Style(OKABE_ITO["vermillion"], "dash", "square")),
}


_PLACES = {
    ("hidden", "last of the subject"): (
        "state at the subject's last token",
        Style(OKABE_ITO["blue"], "solid", "circle"),
    ),
    ("mlp", "last of the subject"): (
        "MLPs at the subject's last token",
        Style(OKABE_ITO["vermillion"], "dash", "square"),
    ),
    ("hidden", "last token"): ("state at the prompt's last token", Style(OKABE_ITO["sky"], "dashdot", "x")),
    ("attention", "last token"): ("attentions at the prompt's last token", Style(OKABE_ITO["green"], "dot", "diamond")),
}


def stored_trace() -> tuple[pd.DataFrame, dict[str, Any]]:
    """SmolLM2's trace as `shares`, and how it was made: facts, window, ..., and the layers that are edited."""
    folder = data_root() / "real"
    about = read_json(folder / "trace.json")
    edited = read_json(folder / "settings.json")["memit"]["layers"]
    rows = pd.read_csv(folder / "trace.csv")
    return shares(rows, about["p_clean"] - about["p_corrupted"]), about | {"edited": edited}


def shares(rows: pd.DataFrame, lost: float) -> pd.DataFrame:
    """Rows of `average`, their effects as shares of the probability that noise takes."""
    return rows.assign(**{name: rows[name] / lost for name in ("mean", "low", "high")})


def traces_beside(
    models: Mapping[str, pd.DataFrame], edited: Mapping[str, Sequence[int]], *, context: str = ""
) -> go.Figure:
    """What a restored part brings back, by layer, a panel a model; shaded: the layers that are `edited`."""
    fig = make_subplots(1, len(models), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=list(models))
    found, said = [], []
    for column, (name, rows) in enumerate(models.items(), 1):
        at = {"row": 1, "col": column}
        for place, (label, look) in _PLACES.items():
            line = rows[(rows["kind"] == place[0]) & (rows["role"] == place[1])].sort_values("layer")
            spread = {"low": line["low"], "high": line["high"], "band": True}
            add_line(fig, line["layer"], line["mean"], label, look, show=".0%", at=at, legend=column == 1, **spread)
            best = line.loc[line["mean"].idxmax()]
            said.append(f"{name}, {label}: most at layer {best['layer']}, {best['mean']:.0%}")
            if place == ("mlp", "last of the subject"):
                found.append(f"{best['mean']:.0%} around layer {best['layer']} of {len(line)} in {name}")
        first, last = edited[name][0] - 0.5, edited[name][-1] + 0.5
        fig.add_vrect(first, last, **at, line_width=0, fillcolor=NEUTRAL, opacity=0.15, layer="below")
        fig.update_xaxes(title=LAYER, **at, **layer_axis(rows["layer"]))
    fig.update_yaxes(title="share of the lost probability", tickformat=".0%", col=1)
    finding = f"MLPs at the subject's last token bring the answer back: {', '.join(found)}"
    caption = (
        "Mean share of what noise takes that one restored part brings back, with 95% bootstrap intervals over facts. MLPs and "
        "attentions: a window of layers around the one named. Shaded: the edited layers."
    )
    text = f"Line charts over layers. {'; '.join(said)}."
    return dress(fig, finding, joined(caption, context), text).update_layout(legend={"y": 1.09})


def transplant_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Mean probability of both answers by layer, with 95% intervals over facts.

    A row per fact, layer (-1: nothing replaced) and answer ("own", "other"): fact, layer, answer, p.
    """
    rows, fig = average(frame, by=("answer", "layer"), value="p"), go.Figure()
    for answer, (name, look) in _ANSWERS.items():
        add_means(fig, rows[rows["answer"] == answer].sort_values("layer"), name, look)
    table = rows.pivot(index="layer", columns="answer", values="mean")
    best = int(table["other"].idxmax())
    finding = (
        f"With the other subject's state after layer {best} the model gives the other's answer "
        f"(probability {number(table['other'][best])}, its own {number(table['own'][best])}; untouched {number(table['own'][-1])})"
    )
    if table["other"][best] <= table["own"][best]:
        finding = f"Another subject's state does not bring its answer along (at most {number(table['other'][best])})"
    fig.update_xaxes(title=f"{LAYER}; untouched: nothing replaced", **layer_axis(rows["layer"], {-1: "untouched"}))
    fig.update_yaxes(title="probability (0 to 1)", rangemode="tozero")
    caption = f"State after one layer, at the subject's last token, taken from the other subject's run; {over_facts(int(rows['facts'].max()))}."
    said = "; ".join(f"layer {i}: own {number(r['own'])}, other {number(r['other'])}" for i, r in table.iterrows())
    return dress(fig, finding, joined(caption, context), f"Line chart over layers (-1: untouched). {said}.")


share = Exercise(
    "Say how much came back",
    "easy",
    5,
    properties=(
        Property(
            "1 if all came back",
            lambda answer: abs(answer(0.6, 0.1, 0.6) - 1) < 1e-9,
            "Restored to the clean probability, the whole loss is made good: that is a share of 1.",
        ),
        Property(
            "0 if nothing came back",
            lambda answer: abs(answer(0.6, 0.1, 0.1)) < 1e-9,
            "Restored and still as low as the corrupted run: nothing came back. Count from the corrupted run, not from 0.",
        ),
        Property(
            "half if half of the loss came back",
            lambda answer: abs(answer(0.5, 0.1, 0.3) - 0.5) < 1e-9 and answer(0.5, 0.1, 0.05) < 0,
            "The noise took p_clean - p_corrupted; the restoration gave p - p_corrupted of it back. Divide one by the other.",
        ),
    ),
)


def _runs() -> tuple[States, States]:
    draw = torch.Generator().manual_seed(0)
    clean, corrupted = (
        {kind: [torch.randn(6, generator=draw) for _ in range(4)] for kind in ("hidden", "mlp")} for _ in range(2)
    )
    return clean, corrupted


def _places(answer: Severed, layer: int, kind: str) -> dict[int, Tensor]:
    return {i: state for name, i, state in answer(layer, *_runs()) if name == kind}


def _restores(answer: Severed) -> bool:
    hidden, clean = _places(answer, 1, "hidden"), _runs()[0]["hidden"]
    return 1 in hidden and torch.equal(hidden[1], clean[1])


def _severs(answer: Severed) -> bool:
    mlp, corrupted = _places(answer, 1, "mlp"), _runs()[1]["mlp"]
    return all(i in mlp and torch.equal(mlp[i], corrupted[i]) for i in (2, 3))


def _nothing_else(answer: Severed) -> bool:
    places = [(name, i) for name, i, _ in answer(1, *_runs())]
    return sorted(places) == [("hidden", 1), ("mlp", 2), ("mlp", 3)] and len(answer(3, *_runs())) == 1


severed = Exercise(
    "Sever the MLPs",
    "medium",
    15,
    properties=(
        Property(
            "the restored state is the clean one",
            _restores,
            "One replacement restores: kind hidden, the given layer, and the state of the clean run.",
        ),
        Property(
            "the MLPs above add what they added in the corrupted run",
            _severs,
            "An MLP that is severed adds what it would have added without the restoration: its output in the corrupted run, "
            "for every layer above the restored one.",
        ),
        Property(
            "nothing else is replaced",
            _nothing_else,
            "The restored state already holds what its own layer's MLP and those below have added: they are not replaced.",
        ),
    ),
)
