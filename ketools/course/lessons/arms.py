"""For lessons: step 2 of several methods with the same targets, its ablations and the grid of ENCORE's two knobs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ketools.course.lessons.keys import key_of
from ketools.course.lessons.passes import Watched, floor_steps
from ketools.course.mode import Lab
from ketools.editing.editor import Editor
from ketools.editing.methods import ENCORE, LeastSquares
from ketools.evaluation.edits import evaluate, recall
from ketools.facts.fact import Fact
from ketools.models.weights import fresh
from ketools.norms.weights import frobenius, norms
from ketools.plots.drawers import checked
from ketools.plots.style import OKABE_ITO, dress, joined
from ketools.runs.sweep import ALL_STEPS

_PANELS = {
    "accuracy": ("edits that hold", "share (0 to 1)"),
    "same_subject_kept": ("subjects' other facts kept", "share (0 to 1)"),
    "unedited_kept": ("unedited facts kept", "share (0 to 1)"),
    "moved": ("norm of the change", "||W' - W|| / ||W||"),
    "overwritten": ("first batch overwritten", "share of what was written"),
    "p_edited": ("probability of edits", "mean (0 to 1)"),
}
_COLOURS = tuple(OKABE_ITO[name] for name in ("vermillion", "orange", "sky", "blue"))


def strength(editor: Editor) -> float:
    """The editor's lambda_n in absolute terms, a mean over its layers where it is given relative to C."""
    hyper = editor.hyper
    if hyper.lambda_n is not None:
        return float(hyper.lambda_n)
    assert editor.statistics is not None
    units = [float(editor.statistics.layers[i].diagonal().mean()) for i in editor.layers]
    return hyper.lambda_n_relative * float(np.mean(units))


def stops(watched: Watched, patience: int, floor: float) -> np.ndarray:
    """Updates (n,) until MPES with `patience` stops, or the loss floor does; ALL_STEPS: the floor alone."""
    fixed = floor_steps(watched, floor)
    if patience == ALL_STEPS:
        return fixed
    last = watched.right.shape[1] - 1
    first = np.where(watched.right.any(1), watched.right.argmax(1), last)
    return np.minimum(first + patience, fixed)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked after each sequence: facts elsewhere, and other facts of the edited subjects, both known before."""

    unedited: Sequence[Fact]
    beside: Sequence[Fact]


class Arm:
    """Step 2 with or without past keys and norm constraint: the watched facts batch after batch, then taken out again."""

    def __init__(
        self, lab: Lab, watched: Watched, batch: int, prefixes: Sequence[str], *, past: bool, lambda_n: float
    ) -> None:
        """`lambda_n` = 0: no norm constraint. The editor, and with it the factors of A, serve all sequences of this arm."""
        how = replace(ENCORE, update=LeastSquares(past_keys=past, norm=lambda_n > 0))
        more: dict[str, Any] = {"lambda_n": lambda_n} if lambda_n else {}
        self.lab, self.watched, self.batch, self.past, self.lambda_n = lab, watched, batch, past, lambda_n
        self.editor = Editor(lab.model, how, statistics=lab.statistics, seed=lab.seed, prefixes=prefixes, **more)

    def batches(self, patience: int, count: int | None = None) -> None:
        """Edit the first `count` batches (None: all) into the weights, targets stopped by `patience`; take them out with `undo`."""
        given = self.watched.stopped(stops(self.watched, patience, self.editor.hyper.loss_floor))
        n = len(self.watched.facts)
        for start in list(range(0, n, self.batch))[:count]:
            part = slice(start, min(start + self.batch, n))
            self.editor.apply(self.watched.facts[part], targets=given.pick(part))

    def undo(self) -> None:
        """Take out whatever this arm has edited."""
        while self.editor.history:
            self.editor.undo()

    def run(self, patience: int, asked: Asked) -> dict[str, float]:
        """One whole sequence, measured at its end and taken out again: a row of `table`."""
        base = norms(self.lab.model)
        with fresh(self.lab.model):
            self.batches(patience)
            row = self._measured(asked) | self._norms(base)
            self.undo()
        steps = stops(self.watched, patience, self.editor.hyper.loss_floor)
        about = {"past_keys": self.past, "lambda_n": self.lambda_n, "patience": patience}
        return about | row | {"steps_mean": float(steps.mean())}

    def _measured(self, asked: Asked) -> dict[str, float]:
        model, facts = self.lab.model, self.watched.facts
        frame = evaluate(model, facts, paraphrases=1, neighbours=0, two_hop=0, locality=0)
        return {
            "efficacy": frame["efficacy_success"].mean(),
            "accuracy": frame["efficacy_accuracy"].mean(),
            "paraphrase": frame["paraphrase_success"].mean(),
            "p_edited": frame["p_new"].mean(),
            "unedited_kept": recall(model, asked.unedited, prompts="prompt")["accuracy"].mean(),
            "same_subject_kept": recall(model, asked.beside, prompts="prompt")["accuracy"].mean()
            if asked.beside
            else math.nan,
        }

    def _norms(self, base: Mapping[int, float]) -> dict[str, float]:
        model, editor, layer = self.lab.model, self.editor, self.editor.layers[-1]
        ratio = frobenius(model, base, edited=editor.layers).set_index("layer")["ratio"]
        total = [sum(edit.delta(i) for edit in editor.history) for i in editor.layers]
        moved = max(float(torch.as_tensor(d).norm()) / base[i] for d, i in zip(total, editor.layers, strict=True))
        with fresh(model):
            keys = torch.stack([key_of(model, fact, layer) for fact in self.watched.facts[: self.batch]], 1).cpu()
        written = editor.history[0].delta(layer) @ keys
        later = torch.as_tensor(total[-1]) @ keys - written
        grown = {"norm_ratio": float(ratio[list(editor.layers)].max()), "moved": moved}
        return grown | {"overwritten": float(later.norm() / written.norm())}


@dataclass(frozen=True, eq=False)
class Written:
    """One batch at one layer, float64 on the CPU: delta (d_model, d_mlp), residuals (d_model, n); keys (d_mlp, n) and the
    earlier batches' past (d_mlp, m), both without columns for an arm that keeps no keys.
    """

    delta: Tensor
    residuals: Tensor
    keys: Tensor
    past: Tensor


def written(arm: Arm, batch: int, layer: int) -> Written:
    """What the arm writes as its batch number `batch` (1, 2, ..) of a sequence without MPES; the weights stay as they were."""
    editor = arm.editor
    with fresh(arm.lab.model):
        arm.batches(ALL_STEPS, batch)
        delta, residuals = editor.history[-1].delta(layer), editor.history[-1].layers[layer][0].double()
        blocks = [block.double().cpu() for block in editor.state.past.get(layer, ())]
        arm.undo()
    none = delta.new_zeros(delta.shape[1], 0)
    return Written(delta, residuals, blocks[-1] if blocks else none, torch.cat([none, *blocks[:-1]], 1))


def side_by_side(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables of `table`, one below the other."""
    return pd.concat(tables, ignore_index=True)


def table(arms: Sequence[Arm], patiences: Sequence[int], asked: Asked) -> pd.DataFrame:
    """Every arm with every patience.

    Returns:
        A row per pair: past_keys, lambda_n, patience (ALL_STEPS: no MPES); efficacy (ES), accuracy, paraphrase (PS),
        p_edited of all edits at the end; unedited_kept, same_subject_kept; norm_ratio; moved, ||W' - W|| / ||W|| of the
        most changed edited matrix; overwritten, ||later changes of the first batch's outputs|| / ||what it wrote||, at the
        last edited layer; steps_mean.
    """
    return pd.DataFrame([arm.run(patience, asked) for arm in arms for patience in patiences])


def ablation_bars(frame: pd.DataFrame, names: Sequence[str], measures: Sequence[str], context: str) -> go.Figure:
    """Rows of `table` as bars, a panel per measure; `names` in the order of the rows."""
    frame = checked(frame, *measures, of="nb09.table", least=2)
    fig = make_subplots(1, len(measures), subplot_titles=[_PANELS[m][0] for m in measures], horizontal_spacing=0.1)
    for at, measure in enumerate(measures, 1):
        values = [float(v) for v in frame[measure]]
        fig.add_bar(
            x=list(names), y=[None if math.isnan(v) else v for v in values], marker={"color": list(_COLOURS[: len(values)])},
            text=["–" if math.isnan(v) else f"{v:.2g}" for v in values], textposition="outside", cliponaxis=False,
            showlegend=False, name=_PANELS[measure][0], hovertemplate="%{x}: %{y:.3f}<extra></extra>", row=1, col=at,
        )  # fmt: skip
        high = np.nanmax(values) if not all(map(math.isnan, values)) else 1
        fig.update_yaxes(title=_PANELS[measure][1], range=[0, 1.18 * max(high, 1e-9)], row=1, col=at)
    rows = "; ".join(
        f"{name}: " + ", ".join(f"{_PANELS[m][0]} {row[m]:.2g}" for m in measures)
        for name, (_, row) in zip(names, frame.iterrows(), strict=True)
    )
    first, last = frame.iloc[0], frame.iloc[-1]
    said = ", ".join(f"{_PANELS[m][0]} {first[m]:.2g} to {last[m]:.2g}" for m in measures)
    fig.update_xaxes(title="", tickangle=-25)
    caption = joined("The same targets of step 1 for all; each bar a sequence of its own.", context)
    return dress(fig, f"From {names[0]} to {names[-1]}: {said}", caption, f"Bars. {rows}.", 430)
