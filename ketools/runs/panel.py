"""What is measured at a checkpoint beside the edits: everything that the edits should have left alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd

from ketools.errors import KetoolsError
from ketools.evaluation.downstream import downstream, load_heldout, load_tasks, perplexity
from ketools.evaluation.edits import recall
from ketools.evaluation.overfitting import overfit
from ketools.facts.fact import Fact, FactSet
from ketools.models.model import EditableModel
from ketools.norms.weights import frobenius, norms


@dataclass(frozen=True)
class Sizes:
    """How much is asked at each checkpoint; the defaults cost a pocket model a few seconds on two cores.

    unedited, same_subject: facts drawn; per_task: items of each downstream task; documents: of held-out text;
    neighbours: neighbours scored per fact at edit time and at checkpoints before the last; neighbours_end: at the
    last one (None: all); past_edits: score all edits so far at checkpoints before the last (the last one always does);
    spectra: singular values of the edited matrices; residual_tokens: tokens of the documents at which the sublayers'
    shares in the residual stream are read. 0, or False, leaves a measure out.

    Raises KetoolsError for a negative number.
    """

    unedited: int = 1000
    same_subject: int = 300
    per_task: int = 60
    documents: int = 50
    neighbours: int = 1
    neighbours_end: int | None = None
    past_edits: bool = True
    spectra: bool = True
    residual_tokens: int = 1024

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and value < 0:
                raise KetoolsError(f"{each.name}={value}: expected a number of at least 0")


@dataclass(frozen=True)
class Panel:
    """Facts, items and texts, with what the unedited model made of them.

    unedited: facts of subjects that are never edited, answered right before the first edit.
    same_subject: other facts of edited subjects, answered right before the first edit.
    natural: P(target_true) of the unedited facts, before; p_natural: its mean.
    asked: how many of each were asked before the first edit, right or not; {} in runs of earlier versions.
    """

    unedited: tuple[Fact, ...]
    same_subject: tuple[Fact, ...]
    tasks: pd.DataFrame
    texts: tuple[str, ...]
    sizes: Sizes
    seed: int
    unedited_right: float
    natural: tuple[float, ...]
    f1: dict[str, float]
    perplexity: float
    norms: dict[int, float]
    asked: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        model: EditableModel,
        facts: FactSet,
        edited: Iterable[Fact],
        *,
        sizes: Sizes | None = None,
        seed: int = 0,
        tasks: pd.DataFrame | None = None,
        texts: Sequence[str] | None = None,
    ) -> Panel:
        """Draw the panel and measure the model before any edit.

        Args:
            model: the unedited model.
            facts: all facts known of the world.
            edited: the facts that will be edited.
            sizes: how much of each; seed: of the draws.
            tasks: downstream items (None: the world's test split; an empty table: none).
            texts: documents for perplexity (None: the world's held-out text; empty: none).
        """
        sizes = sizes or Sizes()
        pairs = {(_name(fact), fact.relation) for fact in edited}
        subjects = {subject for subject, _ in pairs}
        others = _draw(facts.filter(lambda fact: _name(fact) not in subjects), sizes.unedited, seed)
        beside = facts.filter(lambda fact: _name(fact) in subjects and (_name(fact), fact.relation) not in pairs)
        right, natural, share = _right(model, others)
        beside = _draw(beside, sizes.same_subject, seed)
        right_beside, _, _ = _right(model, beside)
        tasks = tasks if tasks is not None else load_tasks() if sizes.per_task else pd.DataFrame()
        if texts is None:
            texts = load_heldout(documents=sizes.documents) if sizes.documents else ()
        texts = tuple(texts)
        return cls(
            unedited=right,
            same_subject=right_beside,
            tasks=tasks,
            texts=texts,
            sizes=sizes,
            seed=seed,
            unedited_right=share,
            natural=natural,
            f1=_f1(model, tasks, sizes.per_task, seed),
            perplexity=perplexity(model, texts) if texts else math.nan,
            norms=norms(model),
            asked={"unedited": len(others), "same_subject": len(beside)},
        )

    @property
    def p_natural(self) -> float:
        """Mean of `natural`; NaN if the model knew none of the facts."""
        return float(np.mean(self.natural)) if self.natural else math.nan

    def kept(self) -> dict[str, Any]:
        """What `again` needs, as JSON can hold it."""
        ids = {name: [fact.id for fact in getattr(self, name)] for name in ("unedited", "same_subject")}
        numbers = {name: getattr(self, name) for name in ("unedited_right", "natural", "f1", "perplexity")}
        return ids | numbers | {"norms": {str(i): norm for i, norm in self.norms.items()}, "asked": dict(self.asked)}

    @classmethod
    def again(cls, kept: Mapping[str, Any], facts: FactSet, sizes: Sizes, seed: int) -> Panel:
        """The panel that `kept` is of, with the world's own tasks and text, without measuring anything again.

        Raises KetoolsError if `facts` lack one of its facts.
        """
        by_id = {fact.id: fact for fact in facts}
        if lost := [i for name in ("unedited", "same_subject") for i in kept[name] if i not in by_id]:
            raise KetoolsError(
                f"the run compares with {len(lost)} facts that are not among these, the first of them {lost[0]!r}: the facts "
                "were changed since it began; give those that it began with"
            )
        chosen = {name: tuple(by_id[i] for i in kept[name]) for name in ("unedited", "same_subject")}
        numbers = {name: math.nan if kept[name] is None else kept[name] for name in ("unedited_right", "perplexity")}
        return cls(
            **chosen, **numbers, natural=tuple(kept["natural"]), f1=kept["f1"], sizes=sizes, seed=seed,
            norms={int(layer): norm for layer, norm in kept["norms"].items()}, asked=kept.get("asked", {}),
            tasks=load_tasks() if sizes.per_task else pd.DataFrame(),
            texts=tuple(load_heldout(documents=sizes.documents)) if sizes.documents else (),
        )  # fmt: skip

    def above_natural(self, p_edited: Iterable[float]) -> float:
        """Share of the edited probabilities above the natural 95% quantile (.05 where alike); NaN without either."""
        found = np.asarray(list(p_edited), dtype=float)
        if not self.natural or not len(found):
            return math.nan
        return float((found > np.quantile(self.natural, 0.95)).mean())

    def measure(
        self, model: EditableModel, past: Collection[Fact], p_edited: float, layers: Collection[int]
    ) -> dict[str, float]:
        """The row of a checkpoint, relative to before any edit.

        Args:
            model: the model now.
            past: the facts edited so far.
            p_edited: their mean P(target_new) on the edit prompts.
            layers: the edited layers.

        Returns:
            unedited_kept, same_subject_kept: shares still right of those right before (same_subject: of the subjects
            edited so far); unedited_p: mean P(target_true) of the unedited facts now, lost ones included;
            downstream_f1 (mean over tasks), downstream_kept (relative to before), f1_TASK; perplexity,
            perplexity_ratio; norm_ratio (largest ratio of an edited matrix), norm_ratio_unedited (largest of the
            others); p_edited, p_natural, p_ratio. NaN where there is nothing to measure. NAME_asked, NAME_known of
            unedited and same_subject: how many of the panel were asked before the first edit, and how many of them were
            right and count.
        """
        if not past:  # nothing has changed: what `take` measured, not measured again
            kept, p = (1.0, self.p_natural) if self.unedited else (math.nan, math.nan)
            return self._row(model, layers, p_edited, (kept, p), math.nan, self.f1, self.perplexity)
        subjects = {_name(fact) for fact in past}
        beside, _ = _kept(model, [fact for fact in self.same_subject if _name(fact) in subjects])
        f1 = _f1(model, self.tasks, self.sizes.per_task, self.seed)
        now = perplexity(model, self.texts) if self.texts else math.nan
        return self._row(model, layers, p_edited, _kept(model, self.unedited), beside, f1, now)

    def _row(
        self, model: EditableModel, layers: Collection[int], p_edited: float, unedited: tuple[float, float],
        beside: float, f1: Mapping[str, float], perplexed: float,
    ) -> dict[str, float]:  # fmt: skip
        mean, before = _mean(f1), _mean(self.f1)
        ratios = frobenius(model, self.norms, edited=layers).groupby("edited")["ratio"].max()
        return {
            "unedited_kept": unedited[0],
            "unedited_p": unedited[1],
            "same_subject_kept": beside,
            "downstream_f1": mean,
            "downstream_kept": mean / before if before > 0 else math.nan,
            "perplexity": perplexed,
            "perplexity_ratio": perplexed / self.perplexity,
            "norm_ratio": float(ratios.get(True, math.nan)),
            "norm_ratio_unedited": float(ratios.get(False, math.nan)),
            "p_edited": p_edited,
            "p_natural": self.p_natural,
            "p_ratio": float(overfit(p_edited, self.p_natural)["ratio"]),
            **self._counts(),
            **{f"f1_{task}": value for task, value in f1.items()},
        }

    def _counts(self) -> dict[str, int]:
        """What the model did not know before is in no share: a record says how much that is."""
        known = {f"{name}_known": len(getattr(self, name)) for name in self.asked}
        return {f"{name}_asked": count for name, count in self.asked.items()} | known


def _name(fact: Fact) -> str:
    """Subjects are the same subject whatever their case."""
    return fact.subject.lower()


def _draw(facts: FactSet, n: int, seed: int) -> FactSet:
    """n facts, or all where there are fewer; several facts of one subject are allowed."""
    n = min(n, len(facts))
    return facts.sample(n, seed, unique_subjects=False) if n > 0 else facts[:0]


def _right(model: EditableModel, facts: FactSet) -> tuple[tuple[Fact, ...], tuple[float, ...], float]:
    """(the facts answered right, their P(target_true), the share that is right)."""
    if not facts:
        return (), (), math.nan
    frame = recall(model, facts, prompts="prompt")
    right = frame["accuracy"] == 1.0
    chosen = tuple(fact for fact, ok in zip(facts, right, strict=True) if ok)
    return chosen, tuple(frame.loc[right, "p_true"]), float(right.mean())


def _kept(model: EditableModel, facts: Sequence[Fact]) -> tuple[float, float]:
    """(share answered right, mean P(target_true))."""
    if not facts:
        return math.nan, math.nan
    frame = recall(model, facts, prompts="prompt")
    return float(frame["accuracy"].mean()), float(frame["p_true"].mean())


def _f1(model: EditableModel, tasks: pd.DataFrame, per_task: int, seed: int) -> dict[str, float]:
    """{task: weighted F1}."""
    if tasks.empty or not per_task:
        return {}
    return downstream(model, tasks, per_task, seed).set_index("task")["f1"].to_dict()


def _mean(f1: Mapping[str, float]) -> float:
    return sum(f1.values()) / len(f1) if f1 else math.nan
