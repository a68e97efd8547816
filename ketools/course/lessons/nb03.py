"""Notebook 03: prompts around a fact, a matrix as an edit, exercises."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of, with_added
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel

__all__ = ["as_edit", "key_at_first", "prompts_around", "sparing", "spill", "with_added"]

Spill = Callable[[Tensor, Tensor, Tensor], float]
Sparing = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def key_at_first(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    """The key (d_mlp,) float64 at the first token of the fact's subject, in its bare prompt."""
    return key_of(model, fact, layer, "first")


def as_edit(layer: int, delta: Tensor, fact: Fact) -> Edit:
    """A rank-one matrix Delta (d_model, d_mlp) as an Edit of `layer`."""
    row = delta[int(delta.norm(dim=1).argmax())]  # all rows are multiples of one
    right = (row / row.norm())[:, None]
    return Edit({layer: ((delta @ right).float(), right.float())}, {"method": "manual", "facts": [fact.id]})


def prompts_around(lab: Lab, fact: Fact, others: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    """(kind, prompt) of what may read the fact's key: its paraphrases, its subject's other facts, neighbours, `others`."""
    yield from (("paraphrases", text) for text in fact.paraphrases)
    same = [other for other in lab.facts.by_subject()[fact.subject] if other.id != fact.id]
    yield from (("the subject's other facts", text) for f in same for text in (f.text, *f.paraphrases))
    yield from (("neighbours", text) for text in fact.neighbours)
    yield from (("other subjects", f.text) for f in others if f.subject != fact.subject)


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Two keys, what the first is to receive, and a covariance that is far from the identity.
    generator, d_model, d_mlp = torch.Generator().manual_seed(0), 5, 9
    draw = torch.randn(d_mlp, 3 * d_mlp, generator=generator, dtype=torch.float64)
    draw *= torch.linspace(0.1, 3, d_mlp, dtype=torch.float64)[:, None]
    key, other, delta = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (d_mlp, d_mlp, d_model))
    return key, other, delta, draw @ draw.T / (3 * d_mlp)


def _to_itself(answer: Spill) -> bool:
    key, _, _, covariance = _problem()
    return abs(float(answer(key, key, covariance)) - 1) < 1e-9


def _is_linear(answer: Spill) -> bool:
    key, other, _, covariance = _problem()
    return abs(float(answer(key, 2 * other, covariance)) - 2 * float(answer(key, other, covariance))) < 1e-9


def _predicts(answer: Spill) -> bool:
    key, other, _, covariance = _problem()
    return abs(float(answer(key, other, covariance)) - float(other @ torch.linalg.solve(covariance, key)) / float(key @ torch.linalg.solve(covariance, key))) < 1e-9  # fmt: skip


spill = Exercise(
    "Predict what another key receives",
    "medium",
    10,
    properties=(
        Property(
            "the key itself receives everything",
            _to_itself,
            "With k' = k the whole of delta arrives: a share of 1. Divide by k^T C^-1 k.",
        ),
        Property(
            "twice the key receives twice as much",
            _is_linear,
            "Delta k' is linear in k': no norm of k' stands in the denominator. A cosine measures an angle, not an effect.",
        ),
        Property(
            "Delta k' is the share times delta",
            _predicts,
            "Delta = delta u^T / (u^T k) with u = C^-1 k. Multiply by k' from the right: the share is u^T k' / u^T k.",
        ),
    ),
)


def _maps(answer: Sparing) -> bool:
    key, spared, delta, covariance = _problem()
    return torch.allclose(answer(key, spared, delta, covariance) @ key, delta)


def _spares(answer: Sparing) -> bool:
    key, spared, delta, covariance = _problem()
    return float((answer(key, spared, delta, covariance) @ spared).norm()) < 1e-9 * float(delta.norm())


def _least(answer: Sparing) -> bool:
    # At the least, no change that both keys are blind to lowers tr(Delta C Delta^T): its gradient has no such part.
    key, spared, delta, covariance = _problem()
    made, keys = answer(key, spared, delta, covariance), torch.stack([key, spared], 1)
    unseen = torch.eye(len(key), dtype=key.dtype) - keys @ torch.linalg.pinv(keys)
    slope = made @ covariance
    return float((slope @ unseen).norm()) < 1e-6 * float(slope.norm())


sparing = Exercise(
    "Spare one key",
    "hard",
    25,
    properties=(
        Property(
            "the update has the matrix's shape",
            lambda answer: tuple(answer(*_problem()).shape) == (5, 9),
            "Delta is added to W (d_model, d_mlp): something in d_model times something in d_mlp, summed over two constraints.",
        ),
        Property(
            "the key maps to the value",
            _maps,
            "Delta k is not delta. A projection that takes the spared key out of u also changes what k receives; divide again.",
        ),
        Property(
            "the spared key receives nothing",
            _spares,
            "Delta k_spared is not 0. The rank-one update knows one constraint; the second needs a multiplier of its own.",
        ),
        Property(
            "no other such update moves text less",
            _least,
            "Both constraints hold, but another update moves text less: the directions are C^-1 k and C^-1 k_spared, not the keys.",
        ),
    ),
)
