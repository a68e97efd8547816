"""The editing overfit: edited facts more probable than anything the model learned by itself.

Gupta et al. (2502.01636), table 1: natural facts have a mean probability of .39 to .52, edited ones of .65 to .99, and
early stopping (MPES) brings them back to or below the natural level.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from ketools.errors import KetoolsError
from ketools.evaluation.edits import recall
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel

Numbers: TypeAlias = Sequence[float] | np.ndarray | pd.Series


def natural_probabilities(model: EditableModel, facts: Iterable[Fact]) -> pd.DataFrame:
    """P(target_true) on the edit prompt of each fact, and whether the model answers it right; ask before any edit.

    Returns:
        id, relation, subject, p, known (bool). The natural level is that of the known ones: the probability of others
        says how hard they are, not how confident the model is in what it knows.

    Raises:
        KetoolsError: a fact without target_true.
    """
    facts = list(facts)
    for fact in facts:
        fact.need_true("the natural probability")
    frame = recall(model, facts, prompts="prompt")
    return frame[["id", "relation", "subject"]].assign(p=frame["p_true"], known=frame["accuracy"] == 1.0)


def overfit(p_edited: float, p_natural: float) -> pd.Series:
    """Edited against natural probability.

    Returns:
        p_edited, p_natural, ratio (edited / natural; > 1: more confident in edited facts than in learned ones) and
        overfit (bool, ratio > 1).
    """
    ratio = p_edited / p_natural if p_natural > 0 else float("nan")
    return pd.Series({"p_edited": p_edited, "p_natural": p_natural, "ratio": ratio, "overfit": bool(ratio > 1.0)})


def separation(edited: Numbers, natural: Numbers) -> pd.Series:
    """How far apart the two distributions of probabilities are: means hide that some edits are at 1 and others at 0.

    Args:
        edited: P(target_new) of edited facts (the column p_new of `evaluate`).
        natural: p of the known facts in `natural_probabilities`.

    Returns:
        above_natural (share of edited facts beyond the natural 95% quantile; .05 or less where they are alike), auroc
        (chance that a random edited fact is more probable than a random natural one, ties half; .5 where alike; the area
        under scikit-learn's ROC curve), ks and ks_p (Kolmogorov and Smirnov's distance and its p-value, scipy), n_edited,
        n_natural, excluded (entries that are not finite, on both sides together).

    Raises:
        KetoolsError: no finite number on a side.
    """
    given = {"edited": np.asarray(edited, dtype=float), "natural": np.asarray(natural, dtype=float)}
    good = {name: side[np.isfinite(side)] for name, side in given.items()}
    for name, side in good.items():
        if not len(side):
            raise KetoolsError(f"{name} probabilities: {len(given[name])} given, none finite; expected at least one")
    a, b = good.values()
    test = ks_2samp(a, b)
    return pd.Series(
        {
            "above_natural": float((a > np.quantile(b, 0.95)).mean()),
            "auroc": float(roc_auc_score(np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b])),
            "ks": float(test.statistic),
            "ks_p": float(test.pvalue),
            "n_edited": len(a),
            "n_natural": len(b),
            "excluded": sum(map(len, given.values())) - len(a) - len(b),
        }
    )
