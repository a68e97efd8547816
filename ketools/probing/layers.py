"""Layer picker: which layers to edit, based on where the model recalls its facts and on trial edits there.

Tracing alone is no guide (Hase et al., arXiv 2301.04213: where a fact is recalled says little about where an edit
succeeds), and trial edits cover only the facts they were made for, so the picker shows both and multiplies them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import Method, method
from ketools.errors import KetoolsError
from ketools.evaluation.edits import evaluate, harmonic_mean
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.probing.tracing import Progress, average, known_cases, plan_of, spread_of, trace_cases

_SCORES = {"ES": "efficacy_success", "PS": "paraphrase_success", "NS": "neighbourhood_success"}


@dataclass(frozen=True, eq=False)
class Suggestion:
    """`layers` to edit, ascending, and the `evidence`: one row per layer of the model (see `suggest`)."""

    layers: tuple[int, ...]
    evidence: pd.DataFrame


def suggest(
    model: EditableModel,
    facts: Sequence[Fact],
    how: str | Method = "memit",
    *,
    count: int | None = None,
    trials: int = 5,
    statistics: Statistics | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **overrides: Any,  # noqa: ANN401 - settings of every type
) -> Suggestion:
    """Suggest `count` adjacent layers for editing `facts` with the method `how`.

    Two measurements. Tracing: how much of the answer's probability returns when a window of MLPs is restored at the
    subject's last token, mean over the facts that the model knows. Trials: each of the first `trials` of these facts is
    edited alone in each single layer, scored, and undone. score = (effect relative to the best layer's) x (S of the
    trials); the adjacent layers with the largest sum win, the earliest of equals.

    Args:
        model: the model; its weights are restored when this returns, even by an error.
        facts: some tens of facts of the kind to be edited.
        how: the method, or its name.
        count: number of layers; None: as many as the method's settings edit.
        trials: number of facts for trial edits; 0: use tracing alone.
        statistics: C of the layers to try; None: the file in the model's folder. Layers missing from it are neither tried
            nor suggested. Methods that do not use C ignore it.
        seed: seed of the noise and of the prefixes of trial edits.
        progress: called with 1 after each trial edit.
        overrides: settings of the method, as `Editor` takes them.

    Returns:
        The suggestion. Its evidence has the columns layer; traced, traced_low, traced_high (indirect effect of the MLP
        window, a probability, with its 95% interval); hidden (indirect effect of the hidden state); tried (facts), ES,
        PS, NS, S (harmonic mean of those of the three that the facts allow; fractions), update (norm of a trial's
        update over that of the matrix, mean); score; suggested. NaN where nothing was tried. Attrs: method, count, and
        those of `tracing.trace`.

    Raises KetoolsError for no facts, none that the model knows, a count or number of trials out of range, and if
    statistics are missing for a method that needs them or for `count` adjacent layers.
    """
    way = method(how)
    n_layer = model.anatomy.n_layer
    count = len(way.settings(model, **overrides).layers or ()) if count is None else count
    if not 1 <= count <= n_layer or trials < 0:
        raise KetoolsError(f"count={count}, trials={trials}: expected 1 to {n_layer} layers and trials >= 0")
    layers = list(range(n_layer))
    if trials and way.needs_statistics:
        statistics = load_statistics(model) if statistics is None else statistics
        layers = [layer for layer in layers if layer in statistics.layers]
    starts = [start for start in layers if set(range(start, start + count)) <= set(layers)]
    if not starts:
        raise KetoolsError(
            f"statistics of layers {layers} hold no {count} neighbouring ones; compute them for all layers to try, or ask for "
            "fewer with count="
        )
    cases, attrs = known_cases(model, facts, "true")
    sigma = spread_of(model)
    plan = plan_of(model, ("mlp", "hidden"), None, "subject_last", 1, None, seed, 3.0 * sigma)
    means = average(trace_cases(model, cases, plan), by=("kind", "layer")).set_index(["kind", "layer"])
    mlp = means.loc["mlp"].rename(columns={"mean": "traced", "low": "traced_low", "high": "traced_high"})
    evidence = mlp.drop(columns="facts").assign(hidden=means.loc["hidden"]["mean"]).reset_index()
    known = [case.fact for case in cases[:trials]]
    tried = _tried(model, known, layers, way, statistics, seed, progress, overrides)
    evidence = evidence.merge(tried, on="layer", how="left")
    evidence["score"], chosen = choose(evidence["traced"], evidence["S"], starts, count)
    evidence["suggested"] = evidence["layer"].isin(chosen)
    evidence.attrs = attrs | {"sigma": sigma, "window": plan.window, "method": way.name, "count": count}
    return Suggestion(chosen, evidence)


def choose(
    traced: pd.Series, success: pd.Series, starts: Sequence[int], count: int
) -> tuple[pd.Series, tuple[int, ...]]:
    """The score of every layer, and the `count` adjacent layers with the largest sum, the earliest of equals.

    `traced` is the effect of restoring each layer's MLPs, `success` the S of trial edits there (NaN where nothing was
    tried); `starts` are the first layers that may be chosen.
    """
    recovered = traced.clip(lower=0)
    # If no MLP recovers anything, the trials alone decide; if nothing was tried, tracing alone.
    share = recovered / recovered.max() if recovered.max() > 0 else recovered + 1.0
    score = share if success.isna().all() else share * success
    best = max(starts, key=lambda start: (sum(score.iloc[start : start + count]), -start))
    return score, tuple(range(best, best + count))


def _tried(
    model: EditableModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    way: Method,
    statistics: Statistics | None,
    seed: int,
    progress: Progress | None,
    overrides: dict[str, Any],
) -> pd.DataFrame:
    # One row per layer: means over facts that were edited there one at a time.
    rows, prefixes = [], None
    for layer in layers if facts else ():
        editor = Editor(model, way, statistics=statistics, prefixes=prefixes, layers=[layer], seed=seed, **overrides)
        if way.has_targets:
            prefixes = editor.prefixes  # the same for all layers
        size = float(torch.linalg.vector_norm(model.weight(layer), dtype=torch.float32))
        scores, update = [], []
        for fact in facts:
            edit = editor.apply([fact])
            try:
                scores.append(evaluate(model, [fact]))
                update.append(edit.norms()[layer] / size)
            finally:
                editor.undo()
            if progress is not None:
                progress(1)
        means = pd.concat(scores)[list(_SCORES.values())].mean()
        row = {short: float(means[name]) for short, name in _SCORES.items()}
        success = harmonic_mean([value for value in row.values() if not np.isnan(value)])
        rows.append({"layer": layer, "tried": len(facts), **row, "S": success, "update": np.mean(update)})
    return pd.DataFrame(rows, columns=["layer", "tried", *_SCORES, "S", "update"])
