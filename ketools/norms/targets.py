"""How the target's probability rises over the steps of target optimisation, past the level of natural facts."""

import numpy as np
import pandas as pd

from ketools.editing.targets import Targets
from ketools.errors import KetoolsError


def overfitting_curve(targets: Targets) -> pd.DataFrame:
    """The target's probability per step over all facts: where the optimisation passes the natural level.

    The target's probability runs past that of natural facts before any weight is touched (Gupta et al., 2502.01636,
    section 3), which MPES stops.

    Returns:
        A row per step: step, p_mean, p05, median, p95 over all facts, one that has stopped counting with the probability
        at which it stopped; running (share of facts still optimised), n, excluded (facts whose trace has NaN or Inf, in
        no other column).

    Raises:
        KetoolsError: no fact has a finite trace.
    """
    p, passes = targets.trace.double().numpy().copy(), targets.steps.numpy() + 1
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
