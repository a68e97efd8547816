"""Notebook 05: the same targets written by several methods, C's spectrum with keys in it, exercises."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of, moved
from ketools.course.lessons.nb04 import problem
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import Method
from ketools.editing.targets import Targets
from ketools.evaluation.downstream import perplexity
from ketools.evaluation.edits import evaluate, recall
from ketools.evaluation.metrics import percent
from ketools.facts.fact import Fact
from ketools.models.weights import edited
from ketools.norms.drift import KeyBasis
from ketools.plots.drawers import add_line
from ketools.plots.style import NEUTRAL, OKABE_ITO, Style, dress, joined

Exact = Callable[[Tensor, Tensor, Tensor], Tensor]
Project = Callable[[Tensor, float], Tensor]
_POINTS = 160  # of a line over all directions


_SHOWN = {
    "efficacy_accuracy": "says_new", "paraphrase_accuracy": "paraphrases", "neighbourhood_accuracy": "neighbours",
    "p_new": "p_new",
}  # fmt: skip


def keys_of_facts(lab: Lab, facts: Sequence[Fact], layer: int) -> Tensor:
    """K1 (d_mlp, n) float64: the keys of `layer` at the subjects' last tokens, in the bare prompts."""
    return torch.stack([key_of(lab.model, fact, layer) for fact in facts], dim=1)


def outcome(lab: Lab, edits: Mapping[str, Edit | None], facts: Sequence[Fact], texts: Sequence[str]) -> pd.DataFrame:
    """What the model says of `facts` with each edit in its weights (None: unedited); a row an edit.

    Columns: edit; says_new, paraphrases, neighbours (shares of prompts answered as wanted), p_new (mean probability of
    the new object after the prompt), perplexity (of `texts`, if any). The weights are as before when this returns.
    """
    rows = []
    for name, edit in edits.items():
        with edited(lab.model, *([] if edit is None else [edit])):
            found = evaluate(lab.model, facts, neighbours=2, two_hop=0, locality=0).mean(numeric_only=True)
            rows.append({new: found[old] for old, new in _SHOWN.items()})
            rows[-1] |= {"edit": name} | ({"perplexity": perplexity(lab.model, texts)} if texts else {})
    return pd.DataFrame(rows).set_index("edit")


def same_targets(
    lab: Lab, how: str | Method, facts: Sequence[Fact], found: Targets, layer: int, **settings: object
) -> Edit:
    """Step 2 of a method on `layer`, bare prompts' keys, with the targets `found`; the weights are as before."""
    options: dict[str, Any] = {"prefixes": [], "layers": [layer], **settings}
    editor = Editor(lab.model, how, statistics=lab.statistics, seed=lab.seed, **options)
    edit = editor.apply(facts, targets=found)
    editor.undo()
    return edit


def strong_part(basis: KeyBasis) -> Tensor:
    """C (d_mlp, d_mlp) without its null space: the second moment of what is left of prose keys outside of it."""
    strong = basis.vectors[:, basis.null :]
    return (strong * basis.values[basis.null :]) @ strong.T


def random_basis(d: int, r: int, seed: int) -> Tensor:
    """`r` orthonormal directions (d, r) drawn at random, float64: a control for a null space of as many."""
    drawn = torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def measures(
    lab: Lab, edits: Mapping[str, Edit], layer: int, c: Tensor, keys: Tensor, residuals: Tensor
) -> pd.DataFrame:
    """What each edit does to one matrix, indexed by name: missed (share of R), moved (prose), norm (over that of W)."""
    weight = lab.model.weight(layer).double().cpu()
    rows = {}
    for name, edit in edits.items():
        delta = edit.delta(layer)
        missed = float((delta @ keys - residuals).norm() / residuals.norm())
        rows[name] = {"missed": missed, "moved": moved(delta, weight, c), "norm": float(delta.norm() / weight.norm())}
    return pd.DataFrame.from_dict(rows, orient="index")


def kept(lab: Lab, edits: Mapping[str, Edit], groups: Mapping[str, Sequence[Fact]]) -> pd.DataFrame:
    """Mean probability of the true object of facts that nobody edited: a row an edit, a column a group of facts."""
    rows = {}
    for name, edit in {"unedited": None, **edits}.items():
        with edited(lab.model, *([] if edit is None else [edit])):
            rows[name] = {
                group: recall(lab.model, some, "prompt")["p_true"].mean() if len(some) else np.nan
                for group, some in groups.items()
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def spectrum_lines(basis: KeyBasis, keys: Tensor, context: str) -> go.Figure:
    """Energy of prose keys and of facts' keys (d_mlp, n) along C's eigenvectors, from the weakest; a line at the threshold."""
    d = len(basis.values)
    unit = float(basis.values.mean())
    along = (basis.vectors.T @ keys).square().mean(1)
    groups = np.array_split(np.arange(d), min(_POINTS, d))
    places = [float(group.mean()) for group in groups]
    prose, facts = (
        [float(line[group].clamp_min(0).mean()) / unit for group in map(torch.as_tensor, groups)]
        for line in (basis.values, along)
    )
    fig = go.Figure()
    add_line(
        fig, places, prose, "keys of prose (eigenvalues of C)", Style(OKABE_ITO["blue"], "solid", "circle"), show=".3g"
    )
    add_line(fig, places, facts, "keys of the facts", Style(OKABE_ITO["orange"], "dash", "square"), show=".3g")
    fig.update_traces(mode="lines")
    fig.add_vline(x=basis.null, line={"color": NEUTRAL, "dash": "dot"})
    share = [float(line[: basis.null].clamp_min(0).sum() / line.sum()) for line in (basis.values, along)]
    fig.update_xaxes(title="direction (rank of its eigenvalue, the weakest first)")
    fig.update_yaxes(title="mean square along it (1: mean eigenvalue)", type="log", exponentformat="power", dtick=1)
    finding = (
        f"The null space: {basis.null:,} of {d:,} directions, with {percent(share[0])} of what prose keys hold and "
        f"{percent(share[1])} of what the facts' keys hold"
    )
    caption = joined(
        "Left of the dotted line: eigenvalues below the threshold, free to edit in. Means of neighbouring directions.",
        context,
    )
    text = f"Two rising lines over {d:,} directions. {finding}."
    return dress(fig, finding, caption, text)


def exact_update(keys: Tensor, residuals: Tensor, covariance: Tensor) -> Tensor:
    """Delta (d_model, d_mlp) with Delta K1 = R that is smallest in tr(Delta C Delta^T); K1 (d_mlp, n), R (d_model, n)."""
    x = torch.linalg.solve(covariance, keys)
    return residuals @ torch.linalg.solve(keys.T @ x, x.T)


def _shape(answer: Exact, editor: Editor, facts: Sequence[Fact]) -> bool:
    keys, residuals, covariance = problem()
    return answer(keys, residuals, covariance).shape == (len(residuals), len(keys))


def _holds(answer: Exact, editor: Editor, facts: Sequence[Fact]) -> bool:
    keys, residuals, covariance = problem(1)
    return torch.allclose(answer(keys, residuals, covariance) @ keys, residuals, atol=1e-8)


def _least(answer: Exact, editor: Editor, facts: Sequence[Fact]) -> bool:
    # A change that leaves the constraint as it is costs more whichever way it goes.
    keys, residuals, covariance = problem(1)
    delta = answer(keys, residuals, covariance)
    free = torch.eye(len(keys), dtype=keys.dtype) - keys @ torch.linalg.pinv(keys)
    step = 1e-2 * torch.randn(delta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ free
    cost = [((m @ covariance) * m).sum() for m in (delta, delta + step, delta - step)]
    return bool(cost[0] <= cost[1] and cost[0] <= cost[2])


def _packages(answer: Exact, editor: Editor, facts: Sequence[Fact]) -> bool:
    assert editor.statistics is not None
    (layer,) = editor.layers
    found = editor.targets(facts)
    settings: dict[str, Any] = {
        "layers": [layer],
        "prefixes": editor.prefixes,
        "constraint_ridge": editor.hyper.constraint_ridge,
    }
    writer = Editor(editor.model, editor.method, statistics=editor.statistics, **settings)
    edit = writer.apply(facts, targets=found)
    writer.undo()
    keys = torch.stack([key_of(editor.model, fact, layer) for fact in facts], dim=1)
    c, residuals = editor.statistics.layers[layer].cpu(), (found.z - found.h0).double().T
    want, delta = edit.delta(layer), answer(keys, residuals, c)
    return float((delta - want).norm() / want.norm()) < 1e-3


exact = Exercise(
    "Make all facts hold exactly",
    "medium",
    15,
    properties=(
        Property("the update has the matrix's shape", _shape, "R is (d, n), the inner matrix (n, n), X^T is (n, d_mlp): in this order."),
        Property(
            "every fact holds",
            _holds,
            "Delta K1 is not R. Between R and X^T stands the inverse of K1^T X, n x n, which undoes the overlaps of keys; "
            "no identity is added to it.",
        ),
        Property(
            "no other such update moves prose less",
            _least,
            "The facts hold, yet another update that writes them moves prose less. X is C^-1 K1, not K1 itself.",
        ),
        Property("the package writes the same", _packages, "Right on random matrices, yet not what the Editor writes. Does your function use its arguments alone?"),
    ),
    )  # fmt: skip


def _covariance() -> tuple[Tensor, Tensor, Tensor]:
    # C with eigenvalues 0.01, 0.02, 0.03, 1, 2, 3, 4 in a turned basis.
    drawn = torch.randn(7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q, values = torch.linalg.qr(drawn).Q, torch.tensor([0.01, 0.02, 0.03, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    return (q * values) @ q.T, q[:, :3], q[:, 3:]


def _strong(answer: Project) -> bool:
    covariance, _, strong = _covariance()
    return bool((answer(covariance, 0.1) @ strong).norm() < 1e-8)


def _weak(answer: Project) -> bool:
    covariance, weak, _ = _covariance()
    return bool((answer(covariance, 0.1) @ weak - weak).norm() < 1e-8)


def _follows(answer: Project) -> bool:
    covariance = _covariance()[0]
    counts = [float(answer(covariance, threshold).trace()) for threshold in (0.015, 0.1, 2.5)]
    return np.allclose(counts, [1, 3, 5])


project = Exercise(
    "Project on the null space",
    "easy",
    8,
    properties=(
        Property("P is a square matrix", lambda answer: answer(_covariance()[0], 0.1).shape == (7, 7), "U holds the chosen eigenvectors as columns, (d_mlp, r); P = U U^T is (d_mlp, d_mlp)."),
        Property(
            "directions that prose uses are taken out",
            _strong,
            "An eigenvector with an eigenvalue above the threshold must come out as zero, exactly: choose those below, "
            "and leave no weight on the rest.",
        ),
        Property("directions that prose does not use stay", _weak, "An eigenvector with an eigenvalue below the threshold must come out as it went in."),
        Property("the threshold decides how many", _follows, "The trace of P is the number of directions kept; it follows from the threshold."),
    ),
    )  # fmt: skip
