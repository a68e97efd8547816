"""Notebook 03: the rank-one update written out, who else reads a key, exercises."""

from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of, keys_of, moved
from ketools.course.lessons.points import kind_points
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.evaluation.metrics import number
from ketools.facts.fact import Fact
from ketools.models.weights import edited
from ketools.probing.recall import answers

RankOne = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Spill = Callable[[Tensor, Tensor, Tensor], float]


def said(lab: Lab, fact: Fact, edit: Edit) -> float:
    """P(target_new) after the fact's prompt with `edit` in the weights; they are as before when this returns."""
    with edited(lab.model, edit):
        return float(answers(lab.model, [fact.text], [fact.target_new])["probability"][0])


def other_facts(lab: Lab, facts: Sequence[Fact], editor: Editor) -> pd.DataFrame:
    """Each fact edited alone and taken out again: what becomes of other facts. A row per other fact asked.

    Columns: fact (the edited one), kind ("the subject's other facts", "neighbours"), before, after (P of the answer that
    was right before the edit). The subject's other facts are those of `lab.facts` in all their wordings.
    """
    by_subject, parts = lab.facts.by_subject(), []
    for fact in facts:
        others = [f for f in by_subject[fact.subject] if f.id != fact.id]
        asked = [
            ("the subject's other facts", text, f.target_true) for f in others for text in (f.text, *f.paraphrases)
        ]
        asked += [("neighbours", text, fact.target_true) for text in fact.neighbours]
        frame = pd.DataFrame(asked, columns=["kind", "prompt", "answer"]).assign(fact=fact.id)
        frame["before"] = answers(lab.model, frame["prompt"], frame["answer"])["probability"]
        editor.apply([fact])
        try:
            frame["after"] = answers(lab.model, frame["prompt"], frame["answer"])["probability"]
        finally:
            editor.undo()
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def rank_one_update(weight: Tensor, key: Tensor, value: Tensor, covariance: Tensor) -> Tensor:
    """Delta (d_model, d_mlp) with (weight + Delta) key = value, smallest in tr(Delta C Delta^T).

    weight (d_model, d_mlp), key (d_mlp,), value (d_model,), covariance C (d_mlp, d_mlp); all float64.
    """
    u = torch.linalg.solve(covariance, key)
    return torch.outer(value - weight @ key, u) / (u @ key)


def as_edit(layer: int, delta: Tensor, fact: Fact) -> Edit:
    """A rank-one matrix Delta (d_model, d_mlp) as an Edit of `layer`."""
    row = delta[int(delta.norm(dim=1).argmax())]  # all rows are multiples of one
    right = (row / row.norm())[:, None]
    return Edit({layer: ((delta @ right).float(), right.float())}, {"method": "by hand", "facts": [fact.id]})


def readers(lab: Lab, fact: Fact, editor: Editor, others: Sequence[Fact]) -> pd.DataFrame:
    """Who else reads a fact's key: a row a prompt, columns kind, prompt, share.

    share: of what an update with the key of `fact` writes, the part that the prompt's most concerned token receives,
    max over tokens of k'^T C^-1 k / k^T C^-1 k. Kinds: the prompt, paraphrases, the subject's other facts, neighbours
    (other subjects with the same answer), other subjects (those of `others`).
    """
    assert editor.statistics is not None
    layer = editor.layers[-1]
    key = key_of(lab.model, fact, layer)
    u = torch.linalg.solve(editor.statistics.layers[layer], key)
    same = [f for f in lab.facts.by_subject()[fact.subject] if f.id != fact.id]
    texts = {
        "the prompt": [fact.text],
        "paraphrases": fact.paraphrases,
        "the subject's other facts": [text for f in same for text in (f.text, *f.paraphrases)],
        "neighbours": fact.neighbours,
        "other subjects": [f.text for f in others if f.subject != fact.subject],
    }
    rows = [
        {"kind": kind, "prompt": text, "share": float((keys_of(lab.model, text, layer) @ u).max() / (key @ u))}
        for kind, some in texts.items()
        for text in some
    ]
    return pd.DataFrame(rows)


def reader_points(frame: pd.DataFrame, context: str) -> go.Figure:
    """The frame of `readers`, of one fact or several, as points by kind."""
    middle = frame.groupby("kind", sort=False)["share"].median()
    reached, spared = (
        ", ".join(f"{kind} {number(float(value))}" for kind, value in some.items())
        for some in (middle[middle >= 0.5], middle[middle < 0.5])
    )
    return kind_points(
        frame, "share", f"Most of the change arrives at: {reached or 'none'}; little at: {spared or 'none'} (median shares)",
        axis="share of the written change that arrives (1: all of it)",
        caption="Each point a prompt, its most concerned token; grey: the median.", context=context,
    )  # fmt: skip


def _problem(seed: int = 0, d_model: int = 5, d_mlp: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Random W, k, v and a covariance that is far from the identity.
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(d_mlp, 3 * d_mlp, generator=generator, dtype=torch.float64)
    draw *= torch.linspace(0.1, 3, d_mlp, dtype=torch.float64)[:, None]
    weight = torch.randn(d_model, d_mlp, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (d_mlp, d_model))
    return weight, key, value, draw @ draw.T / (3 * d_mlp)


def _shape(answer: RankOne, editor: Editor, fact: Fact) -> bool:
    weight, *rest = _problem()
    return answer(weight, *rest).shape == weight.shape


def _maps(answer: RankOne, editor: Editor, fact: Fact) -> bool:
    weight, key, value, covariance = _problem()
    return torch.allclose((weight + answer(weight, key, value, covariance)) @ key, value)


def _least(answer: RankOne, editor: Editor, fact: Fact) -> bool:
    # Any other update that maps the key to the value moves prose more.
    weight, key, value, covariance = _problem()
    delta = answer(weight, key, value, covariance)
    other = torch.outer(value - weight @ key, key) / (key @ key)
    return all(
        moved(delta, weight, covariance) <= moved(delta + step * (other - delta), weight, covariance) + 1e-12
        for step in (-0.1, 0.1, 1.0)
    ) and not torch.allclose(delta, other)


def _packages(answer: RankOne, editor: Editor, fact: Fact) -> bool:
    assert editor.statistics is not None
    layer, model = editor.layers[-1], editor.model
    found = editor.targets([fact])
    edit = editor.apply([fact])
    editor.undo()
    weight, key = model.weight(layer).double().cpu(), key_of(model, fact, layer)
    value = weight @ key + (found.z[0] - found.h0[0]).double()
    want, delta = edit.delta(layer), answer(weight, key, value, editor.statistics.layers[layer])
    return float((delta - want).norm() / want.norm()) < 1e-3


rank_one = Exercise(
    "Write the rank-one update",
    "medium",
    15,
    properties=(
        Property(
            "the update has the matrix's shape",
            _shape,
            "Delta is added to W (d_model, d_mlp): an outer product of something in d_model (what is written) with "
            "something in d_mlp (which keys receive it).",
        ),
        Property(
            "the update has rank one",
            lambda answer, editor, fact: int(torch.linalg.matrix_rank(answer(*_problem()), rtol=1e-8)) == 1,
            "One outer product has rank one. Did you add a second term?",
        ),
        Property(
            "the key maps to the value",
            _maps,
            "W' k is not v. What is missing is v - W k, not v; and the denominator is k^T C^-1 k, not k^T k.",
        ),
        Property(
            "no other such update moves prose less",
            _least,
            "The key maps to the value, but a direction other than k moves prose less: u = C^-1 k, by solving C u = k.",
        ),
        Property(
            "the package writes the same",
            _packages,
            "Right on random matrices, yet not what the Editor writes. Does your function use its arguments alone?",
        ),
    ),
)


def _to_itself(answer: Spill) -> bool:
    _, key, _, covariance = _problem()
    return abs(float(answer(key, key, covariance)) - 1) < 1e-9


def _is_linear(answer: Spill) -> bool:
    _, key, _, covariance = _problem()
    _, other, _, _ = _problem(1)
    return abs(float(answer(key, 2 * other, covariance)) - 2 * float(answer(key, other, covariance))) < 1e-9


def _predicts(answer: Spill) -> bool:
    weight, key, value, covariance = _problem()
    _, other, _, _ = _problem(1)
    arrived = rank_one_update(weight, key, value, covariance) @ other
    return torch.allclose(arrived, float(answer(key, other, covariance)) * (value - weight @ key))


spill = Exercise(
    "Foretell what another key receives",
    "medium",
    10,
    properties=(
        Property(
            "the key itself receives everything",
            _to_itself,
            "With k' = k the whole of v - W k arrives: a share of 1. Divide by k^T C^-1 k.",
        ),
        Property(
            "twice the key receives twice as much",
            _is_linear,
            "Delta k' is linear in k': no norm of k' stands in the denominator. A cosine measures an angle, not an effect.",
        ),
        Property(
            "Delta k' is the share times what was written",
            _predicts,
            "Delta = (v - W k) u^T / (u^T k) with u = C^-1 k. Multiply by k' from the right: the share is u^T k' / u^T k.",
        ),
    ),
)
