"""Choose settings (layers, lr, patience, lambda) for your model and facts by trial edits of facts that are set aside."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
import torch

from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import MPES, FixedSteps, Method
from ketools.editing.targets import Pass, Targets
from ketools.errors import KetoolsError
from ketools.evaluation.edits import evaluate, harmonic_mean, recall, summary
from ketools.facts.fact import Fact, FactSet
from ketools.models.model import EditableModel
from ketools.probing.layers import suggest

PATIENCES = (2, 1, 4)
FACTORS = {
    "lr": (1.0, 0.5, 2.0), "lambda_p": (1.0, 0.1, 10.0), "lambda_n": (1.0, 0.1, 10.0), "null_threshold": (1.0, 0.3, 3.0),
    "l2": (1.0, 0.1, 10.0), "shift_lr": (1.0, 0.3, 3.0), "ft_lr": (1.0, 0.3, 3.0),
}  # fmt: skip
"""Factors for the method's own value of a setting. The value itself comes first, since the first of equal scores wins."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """`settings` to edit with; `trials`, a row per trial edit (see `tune`); `layers`, the evidence from
    `ketools.probing.layers.suggest` (None if the layers were given).
    """

    settings: dict[str, Any]
    trials: pd.DataFrame
    layers: pd.DataFrame | None


def stopped(facts: Sequence[Fact], editor: Editor) -> Callable[[int | None], Targets]:
    """From one full optimisation, a function: patience -> the targets that MPES with it would give (None: all steps).

    The method of `editor` must take all steps (`FixedSteps`).
    """
    z: list[list[torch.Tensor]] = [[] for _ in facts]
    first: list[int | None] = [None] * len(facts)

    def hear(seen: Pass) -> None:
        for fact, now, top in zip(seen.facts.tolist(), seen.z, seen.top.tolist(), strict=True):
            if top and first[fact] is None:
                first[fact] = len(z[fact])
            z[fact].append(now.clone())

    whole = editor.targets(facts, callback=hear)

    def at(patience: int | None) -> Targets:
        ends = [len(states) - 1 for states in z]
        if patience is not None:
            ends = [end if at is None else min(end, at + patience) for end, at in zip(ends, first, strict=True)]
        kept = torch.stack([states[end] for states, end in zip(z, ends, strict=True)])
        return replace(whole, z=kept, steps=torch.tensor(ends), delta_norm=(kept - whole.h0).norm(dim=1))

    return at


def split(
    model: EditableModel, facts: FactSet, others: FactSet, size: int, seed: int
) -> tuple[FactSet, FactSet, FactSet]:
    """(facts for trial edits, at most `size` and a third of all; known facts that should be kept; the rest of `facts`).

    The known facts, at most `size`, are about other subjects than the trial edits; `others` fill up if `facts` have too few.
    Raises KetoolsError for facts about fewer than six subjects.
    """
    if (n := len({fact.subject.lower() for fact in facts})) < 6:
        raise KetoolsError(
            f"tuning needs facts about at least 6 subjects, got {n}; give more, or choose settings yourself"
        )
    trial = facts.sample(min(size, n // 3), seed)
    subjects, ids = {fact.subject.lower() for fact in trial}, {fact.id for fact in trial}
    left = facts.filter(lambda fact: fact.id not in ids)
    known: list[Fact] = []
    for source in (left, others):
        asked = source.filter(lambda fact: fact.target_true is not None and fact.subject.lower() not in subjects)
        if len(known) < 10 and len(asked):
            asked = asked.sample(min(len(asked), 5 * size), seed, unique_subjects=False)
            right = recall(model, asked)["accuracy"] == 1.0
            known += [fact for fact, ok in zip(asked, right, strict=True) if ok]
    return trial, FactSet(known[:size]), left


def tune(
    model: EditableModel,
    facts: FactSet,
    known: FactSet,
    method: Method,
    *,
    statistics: Statistics | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Tuned:
    """Choose settings of `method` for `model` by trial edits of `facts`, one batch per trial; the model is left as it was.

    First the layers (tracing and trial edits of `known`, unless given), then lr and the patience of MPES together, then what
    protects the weights (lambda_p and lambda_n; AlphaEdit's threshold and ridge; the rates of methods without targets),
    scaled by `FACTORS`. The score is the harmonic mean of ES, PS (accuracies where no fact has a target_true, as on zsRE) and the
    share of `known` that is still right, as far as they exist. One optimisation per learning rate gives the targets for all patiences.

    Args:
        facts, known: from `split`; statistics: C of the candidate layers, for methods that need it.
        progress: called with a line about each trial.

    Returns:
        The settings, as an `Editor` takes them; trials: a column per setting, then steps (mean), ES, PS, NS, kept, the accuracies
        if they take the place of ES and PS, score.

    Raises:
        KetoolsError: no known fact and no layers given, and as `Editor.apply`.
    """
    evidence = None
    if layers is None:
        if not len(known):
            raise KetoolsError("the model knows none of these facts, so no layers can be chosen; give --layers")
        picked = suggest(model, known, method, trials=3, statistics=statistics, seed=seed)
        layers, evidence = picked.layers, picked.evidence
    fixed: dict[str, Any] = {"layers": list(layers)}
    hyper, rows = method.settings(model, **fixed), []
    names = [name for name in method.counting(hyper) if name.removesuffix("_relative") in FACTORS]
    grid = {
        name: [float(f"{factor * getattr(hyper, name):.6g}") for factor in FACTORS[name.removesuffix("_relative")]]
        for name in names
    }
    waits = isinstance(method.stopping, MPES) and method.stopping.patience is None and method.has_targets
    prefixes: Sequence[str] | None = None

    def editor(how: Method, setting: dict[str, Any]) -> Editor:
        nonlocal prefixes
        made = Editor(model, how, statistics=statistics, prefixes=prefixes, seed=seed, **setting)
        prefixes = made.prefixes if method.has_targets else None
        return made

    def tried(setting: dict[str, Any], targets: Targets | None) -> float:
        edit = editor(method, setting).apply(facts, targets=targets)
        try:
            scores = summary(evaluate(model, facts))
            kept = float(recall(model, known)["accuracy"].mean()) if len(known) else float("nan")
        finally:
            edit.remove(model)
        row = {name: scores[name] for name in ("ES", "PS", "NS")} | {"kept": kept}
        written = ("efficacy_accuracy", "paraphrase_accuracy") if math.isnan(row["ES"]) else ("ES", "PS")
        row |= {name: scores[name] for name in written}
        row["score"] = harmonic_mean([row[name] for name in (*written, "kept") if not math.isnan(row[name])])
        steps = pd.Series(edit.record["steps"] if targets is None else targets.steps, dtype=float).mean()
        rows.append({name: value for name, value in setting.items() if name != "layers"} | {"steps": steps} | row)
        if progress is not None:
            progress(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
        return float(row["score"])

    targets: Targets | None = None
    best = -1.0
    if "lr" in grid:
        for lr in grid.pop("lr"):
            setting = fixed | {"lr": lr}
            if waits:
                at = stopped(facts, editor(replace(method, stopping=FixedSteps()), setting))
                trials = [(setting | {"patience": patience}, at(patience)) for patience in PATIENCES]
            else:
                trials = [(setting, editor(method, setting).targets(facts))]
            for setting, found in trials:
                if (score := tried(setting, found)) > best:
                    best, chosen, targets = score, setting, found
        fixed = chosen
    for place, setting in enumerate(fixed | dict(zip(grid, values, strict=True)) for values in product(*grid.values())):
        # The first setting has the method's own values; if there are targets, it was tried above.
        score = best if place == 0 and targets is not None else tried(setting, targets)
        if place == 0 or score > best:
            best, chosen = score, setting
    return Tuned(chosen, pd.DataFrame(rows), evidence)
