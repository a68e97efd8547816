"""What the fact surgeon shows: an operation, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from ketools.editing.edit import Edit
from ketools.facts import Fact


@dataclass(frozen=True, eq=False)
class Operation:
    """What the surgeon shows: a fact, what the model said around it, and, once it is edited, the edit and its effects.

    before, after: `probing.recall.surroundings`; norms: a row per edited layer: layer, before, after, ratio (Frobenius
    norms of its MLP output matrix), update_norm.
    """

    fact: Fact
    before: pd.DataFrame
    edit: Edit | None = None
    after: pd.DataFrame | None = None
    norms: pd.DataFrame = field(default_factory=pd.DataFrame)


def grown(before: Mapping[int, float], after: Mapping[int, float], edit: Edit) -> pd.DataFrame:
    """`Operation.norms` from the norms of all layers before and after the edit."""
    rows = [
        {"layer": i, "before": before[i], "after": after[i], "ratio": after[i] / before[i], "update_norm": size}
        for i, size in edit.norms().items()
    ]
    return pd.DataFrame(rows)


def trial(done: Operation) -> dict[str, object]:
    """What an operation with an edit came to: a row of `FactSurgeon.trials`, without its seconds."""
    assert done.edit is not None and done.after is not None
    return {
        "method": done.edit.record["method"],
        "subject": done.fact.subject,
        "new": done.fact.target_new,
        **_answers(done.before, done.after),
        "norm_ratio": done.norms["ratio"].max(),
        "steps": done.edit.record.get("steps", [float("nan")])[0],
    }


def _answers(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    # NaN where there is no such prompt.
    mean = after.groupby("kind")["p_new"].mean()
    right = before["says_true"]
    kept = after.loc[right].groupby("kind")["says_true"].mean()
    unknown = float("nan")
    return {
        "p_before": float(before.loc[before["kind"] == "prompt", "p_new"].iloc[0]),
        "p_after": float(mean["prompt"]),
        "paraphrases": float(mean.get("paraphrase", unknown)),
        "neighbours_kept": float(kept.get("neighbour", unknown)),
        "same_subject_kept": float(kept.get("same subject", unknown)),
    }
