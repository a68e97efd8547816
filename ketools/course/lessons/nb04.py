"""Notebook 04: a matrix as an edit, two facts in one key, exercises."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of
from ketools.course.lessons.trades import FLAT_LINE, moved_at, trade_lines
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.targets import Targets
from ketools.evaluation.metrics import times
from ketools.facts.fact import Fact, FactSet
from ketools.probing.recall import answers

Closed = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def as_edit(layer: int, delta: Tensor, rank: int) -> Edit:
    """Delta (d_model, d_mlp) of at most `rank` as an Edit of `layer`."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return Edit({layer: ((u * s)[:, :rank].float(), v[:rank].T.float().contiguous())}, {"method": "manual"})


def bargain(frame: pd.DataFrame, chosen: float, context: str) -> go.Figure:
    """The frame of `trades.trade_off`, lines with and without C; `chosen`: the λp in use."""
    at = {}
    for line, mine in frame.groupby("line", sort=False):
        row = mine.loc[(mine["dial"] - chosen).abs().idxmin()]
        at[f"λp in use, {line}"] = (row["moved"], row["missed"])
    (near, missed), _ = at.values()
    # Where the line without C misses as much, how much further it moves background text.
    far = moved_at(frame, FLAT_LINE, missed)
    finding = f"Facts written equally well: without the covariance background text moves {times(far / near)} as far"
    caption = "Each point a λp, small ones on the right."
    return trade_lines(frame, finding, context, stars=at, caption=caption)


def pairs(lab: Lab, n: int) -> FactSet:
    """Two facts each of `n` subjects that the model knows, one after the other; empty where facts come alone."""
    by_subject = lab.facts.by_subject()
    both = [by_subject[fact.subject][:2] for fact in lab.known(n)]
    return FactSet([fact for two in both if len(two) == 2 for fact in two])


def together(lab: Lab, two: FactSet, editor: Editor, targets: Targets | None = None) -> pd.DataFrame:
    """One batch of the first fact of every subject, and one of both, with the same targets; no rows without pairs.

    `targets` of `two`: None if they are still to be found.

    Columns: batch ("one fact a subject", "two facts a subject"), p_new and says_new (means over the batch's facts), size
    (Frobenius norm of the update over that of the matrix). The weights are as before when this returns.
    """
    if not len(two):
        return pd.DataFrame(columns=["batch", "p_new", "says_new", "size"])
    settings: dict[str, Any] = {"prefixes": editor.prefixes, "layers": editor.layers, "statistics": lab.statistics}
    settings["same_subject"] = "alone"  # each fact with a target of its own, as published
    writer, rows = Editor(lab.model, editor.method, seed=lab.seed, **settings), []
    targets = writer.targets(two) if targets is None else targets
    for name, part in (("one fact a subject", slice(0, None, 2)), ("two facts a subject", slice(None))):
        some = two[part]
        edit = writer.apply(some, targets=targets.pick(part))
        said = answers(lab.model, [f.text for f in some], [f.target_new for f in some])
        writer.undo()
        size = max(norm / float(lab.model.weight(i).norm()) for i, norm in edit.norms().items())
        rows.append(
            {"batch": name, "p_new": said["probability"].mean(), "says_new": said["right"].mean(), "size": size}
        )
    return pd.DataFrame(rows)


def problem(seed: int = 0, d_model: int = 4, d_mlp: int = 9, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random K1 (d_mlp, n), R (d_model, n) and a C (d_mlp, d_mlp) that is far from the identity; float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(d_mlp, 3 * d_mlp, generator=generator, dtype=torch.float64)
    draw *= torch.linspace(0.2, 3, d_mlp, dtype=torch.float64)[:, None]
    keys, residuals = (torch.randn(d, n, generator=generator, dtype=torch.float64) for d in (d_mlp, d_model))
    return keys, residuals, draw @ draw.T / (3 * d_mlp)


def _shape(answer: Closed, editor: Editor, facts: Sequence[Fact]) -> bool:
    keys, residuals, covariance = problem()
    return answer(keys, residuals, torch.linalg.solve(covariance, keys), 2.0).shape == (len(residuals), len(keys))


def _free(answer: Closed, editor: Editor, facts: Sequence[Fact]) -> bool:
    keys, residuals, covariance = problem()
    delta = answer(keys, residuals, torch.linalg.solve(covariance, keys), 1e-9)
    return torch.allclose(delta @ keys, residuals, atol=1e-5)


def _flat(answer: Closed, editor: Editor, facts: Sequence[Fact]) -> bool:
    for lambda_p in (0.3, 5.0):
        keys, residuals, covariance = problem(1)
        delta = answer(keys, residuals, torch.linalg.solve(covariance, keys), lambda_p)
        slope = (delta @ keys - residuals) @ keys.T + lambda_p * delta @ covariance
        if slope.norm() > 1e-8 * (residuals @ keys.T).norm():
            return False
    return True


def _packages(answer: Closed, editor: Editor, facts: Sequence[Fact]) -> bool:
    assert editor.statistics is not None
    (layer,), model = editor.layers, editor.model
    targets = editor.targets(facts)
    edit = editor.apply(facts, targets=targets)
    editor.undo()
    keys = torch.stack([key_of(model, fact, layer) for fact in facts], dim=1)
    c, residuals = editor.statistics.layers[layer].cpu(), (targets.z - targets.h0).double().cpu().T
    lambda_p, want = editor.hyper.value("lambda_p", len(c)), edit.delta(layer)
    return float((answer(keys, residuals, torch.linalg.solve(c, keys), lambda_p) - want).norm() / want.norm()) < 1e-3


many = Exercise(
    "Invert n by n",
    "hard",
    20,
    properties=(
        Property(
            "the update has the matrix's shape",
            _shape,
            "Delta is added to W, hence (d_model, d_mlp): R times something (n, n) times X^T.",
        ),
        Property(
            "with nearly no protection every fact is written",
            _free,
            "With lambda_p near 0 only the fit is left, and Delta K1 = R. Are the n facts solved for together? A sum of n "
            "single updates writes into keys that overlap more than once.",
        ),
        Property(
            "the gradient is zero there",
            _flat,
            "The gradient (Delta K1 - R) K1^T + lambda_p Delta C is not zero at your Delta. With Delta = M X^T it is "
            "(M (lambda_p I + K1^T X) - R) K1^T.",
        ),
        Property(
            "the package writes the same",
            _packages,
            "Right on random matrices, yet not what the Editor writes. Does your function use its arguments alone?",
        ),
    ),
)

Asked = Callable[[float, Sequence[float]], Sequence[float]]


def _passed_on(answer: Asked) -> bool:
    found = np.asarray(answer(12.0, [0.5, 0.5, 1.0]), dtype=float)
    return len(found) == 3 and np.allclose(found, [4.0, 5.0, 7.5])


asked = Exercise(
    "Share the work among layers",
    "easy",
    8,
    properties=(
        Property(
            "the first of three layers is asked for a third",
            lambda answer: abs(float(answer(12.0, [1.0, 1.0, 1.0])[0]) - 4.0) < 1e-9,
            "Three layers are still to come: 12 / 3.",
        ),
        Property(
            "layers that deliver all are asked for equal parts",
            lambda answer: np.allclose(np.asarray(answer(12.0, [1.0, 1.0, 1.0]), dtype=float), 4.0),
            "12 is missing, then 8, then 4. The divisor is the number of layers still to come, this one included: 3, 2, 1.",
        ),
        Property(
            "what a layer leaves undone falls to those above",
            _passed_on,
            "Take off what was delivered, not what was asked for, and divide what is then left by the layers to come: "
            "the model is read anew before each layer.",
        ),
    ),
)
