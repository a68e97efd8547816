"""Step 1 under the glass: how far targets lie from natural states, and the overfitting curve of their optimisation.

Step 1 pushes a state until the new object is all but certain. Two things go wrong there before any weight is touched:
the target's probability runs past that of natural facts (Gupta et al., 2502.01636, section 3, which MPES stops), and its
norm leaves the range of natural activations (norm-anchor scaling, arXiv 2602.02543).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.editing.targets import Targets
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.norms.drift import hidden_states
from ketools.norms.sample import subject_sample

_COLUMNS = ("steps", "p_target", "loss", "delta_norm", "h0_norm", "z_norm", "z_ratio", "known")
_MEASURES = ("steps", "p_target", "delta_norm", "z_norm", "z_ratio")


def per_fact(found: Targets | Edit, facts: Sequence[Fact] | Sequence[str] | None = None) -> pd.DataFrame:
    """What step 1 came to, a row per fact.

    Args:
        found: from `compute_targets` or `Editor.targets`, or an Edit, whose record keeps steps, p_target and delta_norm.
        facts: the facts (or their ids) in the order of `found`; None: an Edit's own ids, else 0, 1, ...

    Returns:
        id, steps, p_target (the target's probability when stopped), loss, delta_norm (||delta||), h0_norm (||h_0||, the
        state before), z_norm (||z||), z_ratio (||z|| / ||h_0||), known (the target was the top answer before), finite
        (all numbers that there are). What an Edit's record does not hold is NaN.

    Raises:
        KetoolsError: as many facts as there are not, or a record of no facts.
    """
    values, ids = (_of_edit(found), found.record.get("facts")) if isinstance(found, Edit) else (_of(found), None)
    n = max((len(column) for column in values.values()), default=0)
    if n == 0:
        raise KetoolsError("no targets to look at: the record holds none of steps, p_target and delta_norm")
    if facts is not None:
        ids = [fact.id if isinstance(fact, Fact) else fact for fact in facts]
    ids = list(range(n)) if ids is None else list(ids)
    if any(len(column) != len(ids) for column in values.values()):
        raise KetoolsError(f"{len(ids)} facts for targets of {n}; give the facts that the targets were computed for")
    frame = pd.DataFrame({"id": ids} | {name: values.get(name, np.full(n, np.nan)) for name in _COLUMNS})
    there = [name for name in values if name != "known"]
    return frame.assign(finite=np.isfinite(frame[there].to_numpy(dtype=float)).all(axis=1))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantiles over facts of `per_fact`'s or `against_natural`'s frame.

    Returns:
        A row per measure that was recorded: measure, mean, p05, median, p95, n, excluded (facts with NaN or Inf, in none
        of the others).

    Raises:
        KetoolsError: no fact has finite numbers.
    """
    good = frame[frame["finite"]]
    if good.empty:
        raise KetoolsError(f"none of {len(frame)} targets is finite; the optimisation or the record is broken")
    rows = []
    for measure in _MEASURES:
        values = good[measure].to_numpy(dtype=float)
        if np.isnan(values).all():
            continue
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        row = {"measure": measure, "mean": values.mean(), "p05": low, "median": middle, "p95": high}
        rows.append(row | {"n": len(good), "excluded": len(frame) - len(good)})
    return pd.DataFrame(rows)


def natural_norms(model: EditableModel, facts: Sequence[Fact], layer: int) -> Tensor:
    """Norms (facts,) float32 of the states that the model itself has at the subjects' last tokens behind `layer`.

    Take them on the unedited model, of facts that are not edited, at the layer of the targets (the last edited one).
    """
    return hidden_states(model, subject_sample(model, facts), [layer])[layer].norm(dim=1)


def against_natural(found: Targets, natural: Tensor, facts: Sequence[Fact] | None = None) -> pd.DataFrame:
    """Norms of the targets z against natural activations at the same place.

    Args:
        found: the targets.
        natural: norms from `natural_norms`; those that are not finite are not compared with (counted in `excluded`).
        facts: as in `per_fact`.

    Returns:
        The columns of `per_fact`, and natural_mean, z_score ((||z|| - mean) / standard deviation; NaN where natural norms
        do not differ), above (share of natural norms below ||z||: 1 is longer than any), n_natural, excluded.

    Raises:
        KetoolsError: fewer than two natural norms that are finite.
    """
    usable = natural.double()[natural.isfinite()]
    if len(usable) < 2:
        raise KetoolsError(f"{len(usable)} finite natural norms; give at least two facts to compare with")
    frame, spread = per_fact(found, facts), float(usable.std())
    norm = torch.tensor(frame["z_norm"].to_numpy(dtype=float))
    score = (norm - usable.mean()) / spread if spread > 0 else torch.full_like(norm, torch.nan)
    above = (usable[None] < norm[:, None]).double().mean(1)
    return frame.assign(
        natural_mean=float(usable.mean()),
        z_score=score.numpy(),
        above=torch.where(norm.isfinite(), above, torch.nan).numpy(),
        n_natural=len(usable),
        excluded=len(natural) - len(usable),
    )


def trace(found: Targets, facts: Sequence[Fact] | Sequence[str] | None = None) -> pd.DataFrame:
    """The target's probability before each update of step 1: id, step (0: no delta yet), p_target; a row per pass.

    A fact has rows up to the pass in which it stopped.

    Raises:
        KetoolsError: an Edit, whose record does not keep the passes.
    """
    if isinstance(found, Edit):
        raise KetoolsError(
            "an Edit's record keeps the end of step 1 and not its passes; compute the targets with "
            "Editor.targets(facts) and give those"
        )
    ids = per_fact(found, facts)["id"].to_numpy()
    passes = (found.steps + 1).numpy()
    step = np.concatenate([np.arange(n) for n in passes])
    fact = np.repeat(np.arange(len(passes)), passes)
    return pd.DataFrame({"id": ids[fact], "step": step, "p_target": found.trace.double().numpy()[fact, step]})


def overfitting_curve(found: Targets) -> pd.DataFrame:
    """The target's probability per step over all facts: where the optimisation passes the natural level.

    Returns:
        A row per step: step, p_mean, p05, median, p95 over all facts, one that has stopped counting with the probability
        at which it stopped; running (share of facts still optimised), n, excluded (facts whose trace has NaN or Inf, in
        no other column).

    Raises:
        KetoolsError: no fact has a finite trace.
    """
    p, passes = found.trace.double().numpy().copy(), found.steps.numpy() + 1
    column = np.arange(p.shape[1])
    after = column[None] >= passes[:, None]
    last = p[np.arange(len(p)), passes - 1]
    p = np.where(after, last[:, None], p)
    good = np.isfinite(p).all(axis=1)
    if not good.any():
        raise KetoolsError(f"none of {len(p)} traces is finite; the optimisation is broken")
    p, after = p[good], after[good]
    low, middle, high = np.quantile(p, [0.05, 0.5, 0.95], axis=0)
    frame = pd.DataFrame({"step": column, "p_mean": p.mean(0), "p05": low, "median": middle, "p95": high})
    return frame.assign(running=1 - after.mean(0), n=int(good.sum()), excluded=int((~good).sum()))


def _of(found: Targets) -> dict[str, np.ndarray]:
    h0, z = (tensor.double().norm(dim=1) for tensor in (found.h0, found.z))
    plain = {name: getattr(found, name).numpy() for name in ("steps", "p_target", "loss", "delta_norm", "known")}
    return plain | {"h0_norm": h0.numpy(), "z_norm": z.numpy(), "z_ratio": (z / h0).numpy()}


def _of_edit(edit: Edit) -> dict[str, np.ndarray]:
    held = {name: edit.record[name] for name in ("steps", "p_target", "delta_norm") if name in edit.record}
    return {name: np.array([np.nan if x is None else x for x in column], dtype=float) for name, column in held.items()}
