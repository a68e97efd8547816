"""What later edits take from earlier ones, and whether two methods differ on the same facts.

Forgetting reads the tables of a run (ketools.runs.store.RunRecord): `checkpoints`, `facts`, `batches`. Rows without a
number are counted (`excluded`).
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from ketools.errors import KetoolsError


def forgetting_curve(checkpoints: pd.DataFrame) -> pd.DataFrame:
    """The share of successful edits that is still recalled, at each checkpoint of a run.

    Args:
        checkpoints: those of a run, with columns ES (of all edits so far) and at_edit_ES.

    Returns:
        The glossary's table "forgetting", one row per checkpoint after the first edit: edits, now, at_edit, forgotten,
        kept (NaN where no edit succeeded), finite.

    Raises KetoolsError if there is no checkpoint after an edit, or a column is missing.
    """
    _need(checkpoints, "edits", "ES", "at_edit_ES")
    done = checkpoints[checkpoints["edits"] > 0]
    if done.empty:
        raise KetoolsError(
            "the run has no checkpoint after an edit, so that nothing is known about forgetting; run it to its end, or with "
            "a smaller checkpoint_every"
        )
    now, at_edit = (done[name].to_numpy(dtype=float) for name in ("ES", "at_edit_ES"))
    kept = np.divide(now, at_edit, out=np.full(len(now), np.nan), where=at_edit > 0)
    frame = pd.DataFrame({"edits": done["edits"].to_numpy(), "now": now, "at_edit": at_edit})
    return frame.assign(forgotten=at_edit - now, kept=kept, finite=np.isfinite(kept))


def forgetting_by_age(facts: pd.DataFrame, batches: pd.DataFrame) -> pd.DataFrame:
    """Edits by their age at the end of the run, the number of later edits, and the share still recalled.

    Args:
        facts: those of a complete run, with efficacy_success at_edit_ and end_; batches: its batches.

    Returns:
        One row per batch, youngest first: age (edits made after the batch), batch, at_edit, now, kept, n (facts with both
        numbers), excluded (facts without).

    Raises KetoolsError for a run that is empty or not complete, and a batch missing from `batches`.
    """
    if facts.empty:
        raise KetoolsError("the run has no facts: no batch is finished")
    then, end = "at_edit_efficacy_success", "end_efficacy_success"
    if end not in facts:
        raise KetoolsError(
            f"the run's facts have no column {end}: they are scored at the end once the run is complete; resume it"
        )
    _need(facts, "batch", then)
    _need(batches, "batch", "edits")
    edits = batches.set_index("batch")["edits"]
    if lacking := sorted(set(facts["batch"]) - set(edits.index)):
        raise KetoolsError(f"the table of batches lacks batch {lacking[0]}, which facts belong to; the run is damaged")
    rows = []
    for batch, group in sorted(facts.groupby("batch"), reverse=True):
        pair = group[[then, end]].to_numpy(dtype=float)
        good = pair[np.isfinite(pair).all(axis=1)]
        first, now = good.mean(0) if len(good) else (np.nan, np.nan)
        row = {"age": int(edits.max() - edits[batch]), "batch": batch, "at_edit": first, "now": now}
        kept = now / first if first > 0 else np.nan
        rows.append(row | {"kept": kept, "n": len(good), "excluded": len(pair) - len(good)})
    return pd.DataFrame(rows)


def mcnemar(a: pd.DataFrame, b: pd.DataFrame, column: str = "end_efficacy_success") -> pd.Series:
    """Whether one of two methods is right on more of the same facts (McNemar's exact test, two-sided binomial, scipy).

    Args:
        a, b: tables with one row per fact: id and `column`, a success of 0 or 1 (values in between, such as a share of
            paraphrases, count as success from 1/2 up).

    Returns:
        only_a, only_b (facts on which only one succeeds), both, neither, share_a, share_b, p_value (1 where they
        never differ), n (facts compared), excluded (facts in one table only, or without a finite value in one).

    Raises KetoolsError for no fact in common, or an id that occurs twice in a table.
    """
    for name, frame in (("first", a), ("second", b)):
        _need(frame, "id", column)
        if frame["id"].duplicated().any():
            twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
            raise KetoolsError(f"fact {twice!r} occurs twice in the {name} table; give one row per fact")
    pair = a[["id", column]].merge(b[["id", column]], on="id", how="outer", suffixes=("_a", "_b"))
    values = pair[[f"{column}_a", f"{column}_b"]].to_numpy(dtype=float)
    good = values[np.isfinite(values).all(axis=1)]
    if not len(good):
        raise KetoolsError(f"the two tables ({len(a)} and {len(b)} facts) have no scored fact in common")
    has_a, has_b = (good >= 0.5).T
    only_a, only_b = int((has_a & ~has_b).sum()), int((~has_a & has_b).sum())
    differ = only_a + only_b
    return pd.Series(
        {"only_a": only_a, "only_b": only_b, "both": int((has_a & has_b).sum()), "neither": int((~has_a & ~has_b).sum()),
         "share_a": float(has_a.mean()), "share_b": float(has_b.mean()),
         "p_value": float(binomtest(only_a, differ).pvalue) if differ else 1.0,
         "n": len(good), "excluded": len(values) - len(good)}
    )  # fmt: skip


def _need(frame: pd.DataFrame, *columns: str) -> None:
    if lacking := [name for name in columns if name not in frame]:
        raise KetoolsError(f"the table lacks the columns {', '.join(lacking)}; it has {', '.join(frame) or 'none'}")
