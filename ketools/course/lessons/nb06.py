"""Notebook 06: what a sequence of edits does to edits, to the same subjects, to others; past keys; exercises."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of
from ketools.course.lessons.sequence import Sequence as Edits
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.evaluation.downstream import downstream
from ketools.evaluation.edits import evaluate, recall, summary
from ketools.facts.fact import Fact, FactSet
from ketools.models.weights import fresh
from ketools.norms.weights import frobenius, norms

Measure = Callable[[FactSet], dict[str, object]]


def rings(lab: Lab, beside: Sequence[Fact], others: Sequence[Fact]) -> Measure:
    """A measure for `sequence.in_batches`, from the edited facts outwards; beside and others are known before.

    Row: ES, PS, NS, p_edited (of all edits so far; NaN before the first), p (their probabilities), same_subject_kept (of
    the facts in `beside` whose subject was edited so far), unedited_kept (of `others`), others (right or not, each), norms.
    """
    base = norms(lab.model)

    def measure(done: FactSet) -> dict[str, object]:
        subjects = {fact.subject for fact in done}
        near = [fact for fact in beside if fact.subject in subjects]
        hits, beside_kept = _right(lab, others), _right(lab, near)
        row: dict[str, object] = {
            "unedited_kept": _part(hits),
            "same_subject_kept": _part(beside_kept),
            "others": hits,
        }
        row |= dict.fromkeys(("ES", "PS", "NS", "p_edited"), np.nan) | {"p": ()}
        row["norms"] = frobenius(lab.model, base).to_dict("records")
        if len(done):
            frame = evaluate(lab.model, done, neighbours=1, two_hop=0, locality=0)
            scores = summary(frame)
            row |= {name: scores[name] for name in ("ES", "PS", "NS")}
            row |= {"p_edited": scores["p_new"], "p": tuple(frame["p_new"])}
        return row

    return measure


def _right(lab: Lab, facts: Sequence[Fact]) -> tuple[float, ...]:
    return tuple(recall(lab.model, facts, prompts="prompt")["accuracy"]) if facts else ()


def _part(hits: Sequence[float]) -> float:
    # Nothing asked, nothing lost.
    return float(np.mean(hits)) if hits else 1.0


def paired(one: Edits, two: Edits) -> float:
    """p of McNemar's exact test between the ends of two sequences on the facts of other subjects that `rings` asked."""
    a, b = (np.asarray(edits.table["others"].iloc[-1]) == 1 for edits in (one, two))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def checkpoints(found: Mapping[str, Edits]) -> pd.DataFrame:
    """The measurements of several sequences, one below the other, with a first column method."""
    frames = [
        sequence.table.drop(columns=["p", "norms", "others"]).assign(method=name) for name, sequence in found.items()
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["method", *frame.columns.drop("method")]]


def records(found: Mapping[str, Edits]) -> dict[str, SimpleNamespace]:
    """The same as the tables that a stored run has: batches (empty), norms, checkpoints; for the lifelong scrubber."""
    made = {}
    for name, sequence in found.items():
        touched = {layer for edit in sequence.edits for layer in edit.layers}
        rows = [
            {**row, "edits": edits, "edited": row["layer"] in touched}
            for edits, rows in zip(sequence.table["edits"], sequence.table["norms"], strict=True)
            for row in rows
        ]
        points = sequence.table.drop(columns=["p", "norms", "others"])
        made[name] = SimpleNamespace(batches=pd.DataFrame(), norms=pd.DataFrame(rows), checkpoints=points)
    return made


def by_age(found: Mapping[str, Edits]) -> pd.DataFrame:
    """Edits by how many came after them: method, age, at_edit, now (mean probability of the new objects), kept (now /
    at_edit), for `forgetting_lines`.
    """
    rows = []
    for name, sequence in found.items():
        looks = sequence.table[sequence.table["edits"] > 0]
        last, start = looks["p"].iloc[-1], 0
        for stop, p in zip(looks["edits"], looks["p"], strict=True):
            first, now = float(np.mean(p[start:stop])), float(np.mean(last[start:stop]))
            rows.append({"method": name, "age": len(last) - stop, "at_edit": first, "now": now, "kept": now / first})
            start = stop
    return pd.DataFrame(rows).sort_values(["method", "age"], ignore_index=True)


def overwritten(lab: Lab, sequence: Edits, facts: Sequence[Fact]) -> float:
    """How much of what the first batch wrote for its `facts` later batches write over: ||Delta_later K|| / ||Delta_1 K||.

    K (d_mlp, n): the keys of the facts' prompts in the unedited model, at the last edited layer.
    """
    layer = max(sequence.edits[0].layers)
    keys = torch.stack([key_of(lab.model, fact, layer) for fact in facts], 1)
    first, *later = (edit.delta(layer) @ keys for edit in sequence.edits)
    return float(sum(later, torch.zeros_like(first)).norm() / first.norm())


def shuffled(sequence: Edits, seed: int = 0) -> Edits:
    """The control: the same keys and norms, but what is written has its entries shuffled."""
    generator = torch.Generator().manual_seed(seed)
    edits = [
        Edit({i: (left[torch.randperm(len(left), generator=generator)], right) for i, (left, right) in e.layers.items()}, dict(e.record))
        for e in sequence.edits
    ]  # fmt: skip
    return Edits(tuple(edits), sequence.table)


def after(lab: Lab, sequence: Edits, measure: Measure, facts: FactSet) -> dict[str, object]:
    """`measure` with all edits of the sequence in the weights."""
    with fresh(lab.model):
        sequence.put_in(lab)
        return measure(facts)


def tasks(lab: Lab, found: Mapping[str, Edits], per_task: int) -> dict[str, pd.DataFrame]:
    """`evaluation.downstream.downstream` before, and with all edits of each sequence in the weights."""
    frames = {"before": downstream(lab.model, n_per_task=per_task, seed=lab.seed)}
    for name, sequence in found.items():
        with fresh(lab.model):
            sequence.put_in(lab)
            frames[name] = downstream(lab.model, n_per_task=per_task, seed=lab.seed)
    return frames


Over = Callable[[Tensor, Tensor, Tensor], float]


def _three(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 6), (4, 6), (6, 3))
    first, later, keys = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return first, later, keys


def _none(answer: Over) -> bool:
    first, later, keys = _three()
    return abs(float(answer(first, 0 * later, keys))) < 1e-12


def _elsewhere(answer: Over) -> bool:
    first, later, keys = _three()
    away = later - later @ keys @ torch.linalg.pinv(keys)  # acts on directions that the keys do not have
    return float(answer(first, away, keys)) < 1e-9


def _double(answer: Over) -> bool:
    first, _, keys = _three()
    return abs(float(answer(first, -2 * first, keys)) - 2) < 1e-9


disturbance = Exercise(
    "How much is written over",
    "medium",
    10,
    properties=(
        Property(
            "without later edits nothing is written over",
            _none,
            "A later update of zero writes over nothing: 0, not minus one. A difference of norms is no norm of a difference.",
        ),
        Property(
            "updates away from the keys do no harm",
            _elsewhere,
            "A large update is harmless to keys that it does not act on. Multiply the update by the keys before you take "
            "the norm.",
        ),
        Property(
            "twice the written, in reverse, is 2", _double, "The norm of what is added over that of what was there."
        ),
    ),
)


kept = Exercise(
    "What is kept",
    "easy",
    5,
    properties=(
        Property(
            "nothing lost is 1",
            lambda answer: float(answer([True, True, False], [True, True, False])) == 1.0,
            "What was wrong before cannot be lost: it does not count.",
        ),
        Property(
            "one of two lost is one half",
            lambda answer: float(answer([True, True, False, False], [True, False, False, False])) == 0.5,
            "Of those right before, the share that is still right.",
        ),
        Property(
            "facts that became right make up for nothing",
            lambda answer: float(answer([True, True, False, False], [True, False, True, True])) == 0.5,
            "A fact that is right now and was not before hides a loss. Look only at facts that were right before.",
        ),
    ),
)
