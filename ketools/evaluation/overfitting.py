"""The editing overfit: edited facts more probable than anything the model learnt by itself.

Gupta et al. (2502.01636), table 1: natural facts have a mean probability of .39 to .52, edited ones of .65 to .99, and
early stopping (MPES) brings them back to or below the natural level. EVOKE (2410.07819) names the same thing from its
other end: a disproportionate probability of the edit target wherever the subject occurs.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ketools.evaluation.edits import evaluate, recall
from ketools.facts import Fact
from ketools.model import EditableModel


def natural_probability(model: EditableModel, facts: Iterable[Fact]) -> float:
    """Mean P(target_true) on the edit prompts of facts that the model answers right; ask before any edit.

    Facts that the model does not know are left out: their probability says how hard they are, not how sure the model
    is of what it knows. NaN if it knows none.
    """
    frame = recall(model, facts, prompts="prompt")
    return float(frame.loc[frame["accuracy"] == 1.0, "p_true"].mean())


def edited_probability(model: EditableModel, facts: Iterable[Fact]) -> float:
    """Mean P(target_new) on the edit prompts of edited facts, whether the edit succeeded or not."""
    return float(evaluate(model, facts, paraphrases=0, neighbours=0)["p_new"].mean())


def overfit(p_edited: float, p_natural: float) -> pd.Series:
    """Edited against natural probability.

    Returns:
        p_edited, p_natural, ratio (edited / natural; > 1: surer of what was edited in than of what was learnt) and
        overfit (bool, ratio > 1).
    """
    ratio = p_edited / p_natural if p_natural > 0 else float("nan")
    return pd.Series({"p_edited": p_edited, "p_natural": p_natural, "ratio": ratio, "overfit": bool(ratio > 1.0)})
