"""What a run measures: each batch right after its edit and, at checkpoints, all edits so far and what they should not change.

The panel is what they should not change: facts, tasks and texts that are drawn and measured before the first edit.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd

from ketools.editing.edit import Edit
from ketools.errors import KetoolsError
from ketools.evaluation.downstream import f1_of, load_heldout, load_tasks, perplexity
from ketools.evaluation.edits import SHORT, evaluate, overfit, recall, summary
from ketools.evaluation.generation import continuations, generation_entropy
from ketools.facts.fact import Fact, FactSet
from ketools.io import knows_world
from ketools.models.model import EditableModel
from ketools.norms.residual import contributions, text_sample
from ketools.norms.weights import frobenius, norms, spectra

BEFORE = 200
"""At most this many facts of a sequence are scored before its first edit."""
_WRITTEN, _TOP_K = 100, 5  # for generation entropy, as in ROME: tokens of a text, and the top k each is drawn from


@dataclass(frozen=True)
class Sizes:
    """How much is measured at each checkpoint; the defaults cost the pocket model a few seconds on two cores.

    unedited, same_subject: facts drawn; per_task: items of each downstream task; documents: of held-out text;
    neighbours: neighbours scored per fact at edit time and at checkpoints before the last; neighbours_end: at the
    last one (None: all); openings: past edits whose first opening for free text, or else subject, is continued, for
    generation entropy; past_edits: score all edits so far also at checkpoints before the last; spectra: singular values of the edited
    matrices; residual_tokens: tokens of the documents at which the sublayers' shares in the residual stream are
    measured. 0 or False leaves a measure out.

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
    openings: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and value < 0:
                raise KetoolsError(f"{each.name}={value}: expected a number of at least 0")


@dataclass(frozen=True)
class Panel:
    """Facts, tasks and texts, with the unedited model's results on them.

    unedited: facts about subjects that are never edited, answered correctly by the unedited model.
    same_subject: other facts about edited subjects, answered correctly by the unedited model.
    natural: P(target_true) of the unedited facts in the unedited model; p_natural: its mean.
    asked: how many of each the unedited model was asked, right or not; {} in runs of earlier versions.
    norms: Frobenius norm of each MLP output matrix before the first edit.
    """

    unedited: tuple[Fact, ...]
    same_subject: tuple[Fact, ...]
    tasks: pd.DataFrame | tuple[str, ...]
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
        tasks: pd.DataFrame | tuple[str, ...] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Panel:
        """Draw the panel and measure the model before any edit.

        Args:
            model: the unedited model.
            facts: all facts to draw from; those without target_true are never drawn.
            edited: the facts that will be edited.
            sizes: how much of each; seed: of the draws.
            tasks: downstream items, or names of lm-eval tasks; None: those of `asked_of`; an empty table: none.
            texts: documents for perplexity; None: those of `asked_of`; empty: none.

        Tasks and texts are measured here as at a checkpoint, so whatever cannot be measured fails before the first edit.
        """
        sizes = sizes or Sizes()
        pairs = {(_subject(fact), fact.relation) for fact in edited}
        subjects = {subject for subject, _ in pairs}
        facts = facts.filter(lambda fact: fact.target_true is not None)  # zsRE has none: nothing to recall
        draws: dict[str, tuple[FactSet, int]] = {
            "unedited": (facts.filter(lambda fact: _subject(fact) not in subjects), sizes.unedited),
            "same_subject": (
                facts.filter(lambda fact: _subject(fact) in subjects and (_subject(fact), fact.relation) not in pairs),
                sizes.same_subject,
            ),
        }
        right: dict[str, Any] = {}  # the facts
        asked: dict[str, int] = {}
        natural, share = (), math.nan
        for name, (among, wanted) in draws.items():
            n = min(wanted, len(among))
            drawn = among.sample(n, seed, unique_subjects=False) if n > 0 else among[:0]
            asked[name], right[name] = len(drawn), ()
            if not drawn:
                continue
            scores = recall(model, drawn)
            is_right = scores["accuracy"] == 1.0
            right[name] = tuple(fact for fact, ok in zip(drawn, is_right, strict=True) if ok)
            if name == "unedited":
                natural, share = tuple(scores.loc[is_right, "p_true"]), float(is_right.mean())
        tasks, texts = asked_of(model, sizes, tasks, texts)
        f1, text = f1_of(model, tasks, sizes.per_task, seed), perplexity(model, texts) if texts else math.nan
        return cls(
            **right, tasks=tasks, texts=texts, sizes=sizes, seed=seed, unedited_right=share, natural=natural, f1=f1,
            perplexity=text, norms=norms(model), asked=asked,
        )  # fmt: skip

    @property
    def p_natural(self) -> float:
        """Mean of `natural`; NaN if the model knew none of the facts."""
        return float(np.mean(self.natural)) if self.natural else math.nan

    def kept(self) -> dict[str, Any]:
        """What `again` needs, as plain values for JSON."""
        ids = {name: [fact.id for fact in getattr(self, name)] for name in ("unedited", "same_subject")}
        numbers = {name: getattr(self, name) for name in ("unedited_right", "natural", "f1", "perplexity")}
        return ids | numbers | {"norms": {str(i): norm for i, norm in self.norms.items()}, "asked": dict(self.asked)}

    @classmethod
    def again(
        cls,
        kept: Mapping[str, Any],
        model: EditableModel,
        facts: FactSet,
        sizes: Sizes,
        seed: int,
        tasks: pd.DataFrame | tuple[str, ...] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Panel:
        """The panel from its `kept()`, without measuring anything; the other arguments are those of `take`.

        Raises KetoolsError if `facts` lack one of the panel's facts.
        """
        by_id = {fact.id: fact for fact in facts}
        if lost := [i for name in ("unedited", "same_subject") for i in kept[name] if i not in by_id]:
            raise KetoolsError(
                f"{len(lost)} facts of the run's panel are missing, first {lost[0]!r}: the facts were changed since it began; "
                "give those that it began with"
            )
        tasks, texts = asked_of(model, sizes, tasks, texts)
        same: dict[str, Any] = {name: tuple(by_id[i] for i in kept[name]) for name in ("unedited", "same_subject")}
        for name in ("unedited_right", "perplexity"):
            same[name] = math.nan if kept[name] is None else kept[name]
        before = {int(layer): norm for layer, norm in kept["norms"].items()}
        return cls(
            **same, tasks=tasks, texts=texts, sizes=sizes, seed=seed, natural=tuple(kept["natural"]), f1=kept["f1"],
            norms=before, asked=kept.get("asked", {}),
        )  # fmt: skip

    def norm_rows(
        self, model: EditableModel, layers: Collection[int], batch: int, edits: int, edit: Edit | None = None
    ) -> pd.DataFrame:
        """Rows of `RunRecord.norms`, for all MLP output matrices, after a batch (0: before the first) whose update is `edit`."""
        update = edit.record["update_norm"] if edit is not None else {}
        frame = frobenius(model, self.norms, edited=layers)
        frame["update_norm"] = [float(update.get(layer, np.nan)) for layer in frame["layer"]]
        return frame.assign(batch=batch, edits=edits)

    def batch_rows(
        self, model: EditableModel, facts: FactSet, edit: Edit, *, batch: int, edits: int, seconds: float, cpu: float
    ) -> dict[str, pd.DataFrame]:
        """The rows of a batch: one of `RunRecord.batches`, one of `facts` per fact, and its `norms`.

        Args:
            model: the model right after the batch; facts: the batch's; edit: its update.
            batch: its number; edits: how many facts are edited so far; seconds: wall time of the editing; cpu: processor
                time of the editing, over all threads.
        """
        start = time.perf_counter()
        scores = evaluate(model, facts, neighbours=self.sizes.neighbours)
        means, record, about = summary(scores), edit.record, ["id", "relation", "subject"]
        steps, p_target = (np.asarray(record[name], dtype=float) for name in ("steps", "p_target"))
        row = {
            "batch": batch,
            "edits": edits,
            "facts": len(scores),
            "seconds": seconds,
            "seconds_cpu": cpu,
            **{f"seconds_{phase}": float(value) for phase, value in record["seconds"].items()},
            "steps_mean": steps.mean(),
            "steps_max": steps.max(),
            "p_target_mean": p_target.mean(),
            **{f"at_edit_{name}": means[name] for name in ("ES", "PS", "NS", "S", "p_new", "efficacy_accuracy")},
            "known": sum(record["known"]),
            "seconds_scoring": time.perf_counter() - start,
        }
        fact_rows = scores[about].assign(batch=batch, steps=record["steps"], p_target=record["p_target"])
        return {
            "batches": pd.DataFrame([row]),
            "facts": pd.concat([fact_rows, scores.drop(columns=about).add_prefix("at_edit_")], axis=1),
            "norms": self.norm_rows(model, sorted(edit.layers), batch, edits, edit),
        }

    def checkpoint(
        self,
        model: EditableModel,
        past: FactSet,
        layers: Collection[int],
        *,
        batch: int,
        last: bool,
        at_edit: pd.DataFrame,
        todo: FactSet,
    ) -> dict[str, pd.DataFrame]:
        """Measure everything that belongs to a checkpoint.

        Args:
            model: the model now; past: the facts edited so far; layers: the edited layers.
            batch: how many batches are done; last: the sequence ends here.
            at_edit: `RunRecord.facts` of the past facts.
            todo: all facts of the sequence; before the first edit the first `BEFORE` of them are scored (columns before_*).

        Returns:
            "checkpoints" (one row), "spectra", "residual"; at the last one "ends", the scores of all facts as columns end_*.
        """
        start, tables = time.perf_counter(), {}
        row: dict[str, Any] = {"edits": len(past), "load": len(past) / model.anatomy.d_mlp, "batch": batch}
        if batch and (self.sizes.past_edits or last):
            limit = self.sizes.neighbours_end if last else self.sizes.neighbours
            scores = evaluate(model, past, neighbours=limit)
            row["neighbours"] = max(len(fact.neighbours[:limit]) for fact in past)
            row |= summary(scores)
            row |= {f"at_edit_{SHORT[kind]}": float(at_edit[f"at_edit_{kind}_success"].mean()) for kind in SHORT}
            if last:
                tables["ends"] = scores.drop(columns=["id", "relation", "subject"]).add_prefix("end_")
            # Share of edited probabilities above the 95% quantile of natural ones; 0.05 if both have the same distribution.
            p_new = scores["p_new"].to_numpy(dtype=float)
            row["p_above_natural"] = (
                float((p_new > np.quantile(self.natural, 0.95)).mean()) if self.natural and len(p_new) else math.nan
            )
        if not batch:
            before = summary(evaluate(model, todo[:BEFORE], neighbours=self.sizes.neighbours_end))
            row |= {f"before_{name}": before[name] for name in ("ES", "PS", "NS", "S", "p_new")}
        if batch and self.sizes.openings:
            openings = [(*fact.generation, fact.subject)[0] for fact in past][: self.sizes.openings]
            texts = continuations(model, openings, _WRITTEN, top_k=_TOP_K, seed=self.seed)
            row["GE"] = generation_entropy(map("".join, zip(openings, texts, strict=True)))
        row |= self.measure(model, past, row.get("p_new", math.nan), layers)
        inside_row, inside_tables = self.inside(model, layers)
        tables |= {name: frame.assign(edits=len(past), batch=batch) for name, frame in inside_tables.items()}
        row |= inside_row | {"seconds": time.perf_counter() - start}
        return tables | {"checkpoints": pd.DataFrame([row])}

    def measure(
        self, model: EditableModel, past: Collection[Fact], p_edited: float, layers: Collection[int]
    ) -> dict[str, float]:
        """The rest of the model relative to the unedited one, in columns of the glossary's table "checkpoints".

        Args:
            model: the model now; past: the facts edited so far; p_edited: their mean P(target_new) on the edit prompts.
            layers: the edited layers.

        NaN where there is nothing to measure. Without past facts the results from before the first edit are used.
        """
        beside, near = (math.nan, math.nan), self.same_subject
        if past:
            subjects = {_subject(fact) for fact in past}
            near = tuple(fact for fact in near if _subject(fact) in subjects)
            unedited, beside = _kept(model, self.unedited), _kept(model, near)
            f1 = f1_of(model, self.tasks, self.sizes.per_task, self.seed)
            now = perplexity(model, self.texts) if self.texts else math.nan
        else:
            unedited = (1.0, self.p_natural) if self.unedited else (math.nan, math.nan)
            f1, now = self.f1, self.perplexity
        mean, before = (sum(each.values()) / len(each) if each else math.nan for each in (f1, self.f1))
        ratios = frobenius(model, self.norms, edited=layers).groupby("edited")["ratio"].max()
        return {
            "unedited_kept": unedited[0],
            "unedited_p": unedited[1],
            "same_subject_kept": beside[0],
            "downstream_f1": mean,
            "downstream_kept": mean / before if before > 0 else math.nan,
            "perplexity": now,
            "perplexity_ratio": now / self.perplexity,
            "norm_ratio": float(ratios.get(True, math.nan)),
            "norm_ratio_unedited": float(ratios.get(False, math.nan)),
            "p_edited": p_edited,
            "p_natural": self.p_natural,
            "p_ratio": float(overfit(p_edited, self.p_natural)["ratio"]),
            **{f"{name}_asked": count for name, count in self.asked.items()},
            **({"unedited_known": len(self.unedited), "same_subject_known": len(near)} if self.asked else {}),
            **{f"f1_{task}": value for task, value in f1.items()},
        }

    def inside(self, model: EditableModel, layers: Collection[int]) -> tuple[dict[str, float], dict[str, pd.DataFrame]]:
        """Spectra of the edited matrices and shares in the residual stream: a checkpoint's columns and tables.

        Columns: spectral_ratio (largest ||W||_2 / ||W_0||_2 of an edited matrix), effective_rank_ratio (smallest),
        residual_share and residual_projection (of the edited MLPs together, at the first `sizes.residual_tokens` tokens of
        the panel's texts). NaN, with a warning, where they cannot be measured: a model that is not finite, or an
        architecture whose residual stream is not such a sum.
        """
        row = dict.fromkeys(
            ("spectral_ratio", "effective_rank_ratio", "residual_share", "residual_projection"), math.nan
        )
        tables: dict[str, pd.DataFrame] = {}
        if self.sizes.spectra:
            try:
                frame = spectra(model, sorted(layers))
                both = frame.pivot(index="layer", columns="state", values=["spectral_norm", "effective_rank"])
                ratios = {
                    name: both[name]["now"] / both[name]["before"] for name in ("spectral_norm", "effective_rank")
                }
                row["spectral_ratio"] = float(ratios["spectral_norm"].max())
                row["effective_rank_ratio"] = float(ratios["effective_rank"].min())
                now = frame[frame["state"] == "now"]
                tables["spectra"] = now.drop(columns=["state", "edited"]).reset_index(drop=True)
            except KetoolsError as error:  # the run continues without
                warnings.warn(f"spectra not measured: {error}", stacklevel=2)
        if self.sizes.residual_tokens and self.texts:
            try:
                sample = text_sample(model, self.texts, self.sizes.residual_tokens)
                tables["residual"] = contributions(model, sample, edited=layers)
                edited = tables["residual"][tables["residual"]["edited"]]
                row["residual_share"] = float(edited["share"].sum())
                row["residual_projection"] = float(edited["projection"].sum())
            except KetoolsError as error:
                warnings.warn(f"residual shares not measured: {error}", stacklevel=2)
        return row, tables


def asked_of(
    model: EditableModel,
    sizes: Sizes,
    tasks: pd.DataFrame | tuple[str, ...] | None = None,
    texts: Sequence[str] | None = None,
) -> tuple[pd.DataFrame | tuple[str, ...], tuple[str, ...]]:
    """The tasks and texts of a run: those given, else the model's own if `sizes` asks for any.

    A model that knows the fictional world gets that world's. Any other model, which never read about it, gets no tasks, and
    as text the file heldout.txt in its folder (ketools.models.smollm2), if there is one.
    """
    world = knows_world(model.path or model.known_as)
    if tasks is None:
        tasks = load_tasks() if world and sizes.per_task else pd.DataFrame()
    if texts is None:
        beside = None if model.path is None else model.path / "heldout.txt"
        source = "world" if world else beside if beside is not None and beside.is_file() else None
        texts = load_heldout(source, sizes.documents) if source is not None and sizes.documents else ()
    return tasks, tuple(texts)


def _subject(fact: Fact) -> str:
    """The subject, compared without regard to case."""
    return fact.subject.lower()


def _kept(model: EditableModel, facts: Sequence[Fact]) -> tuple[float, float]:
    """(share answered right, mean P(target_true))."""
    if not facts:
        return math.nan, math.nan
    frame = recall(model, facts)
    return float(frame["accuracy"].mean()), float(frame["p_true"].mean())
