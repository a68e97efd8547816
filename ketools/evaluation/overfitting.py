"""The editing overfit: edited facts more probable than anything the model learnt by itself.

Gupta et al. (2502.01636), table 1: natural facts have a mean probability of .39 to .52, edited ones of .65 to .99, and
early stopping (MPES) brings them back to or below the natural level. EVOKE (2410.07819) names the same thing from its
other end: a disproportionate probability of the edit target wherever the subject occurs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from ketools.errors import KetoolsError
from ketools.evaluation.edits import evaluate, recall
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.scoring import score_pairs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Numbers = Sequence[float] | np.ndarray | pd.Series


def natural_probabilities(model: EditableModel, facts: Iterable[Fact]) -> pd.DataFrame:
    """P(target_true) on the edit prompt of each fact, and whether the model answers it right; ask before any edit.

    Returns:
        id, relation, subject, p, known (bool). The natural level is that of the known ones: the probability of others
        says how hard they are, not how sure the model is of what it knows.

    Raises:
        KetoolsError: a fact without target_true.
    """
    facts = list(facts)
    for fact in facts:
        fact.need_true("the natural probability")
    frame = recall(model, facts, prompts="prompt")
    return frame[["id", "relation", "subject"]].assign(p=frame["p_true"], known=frame["accuracy"] == 1.0)


def natural_probability(model: EditableModel, facts: Iterable[Fact]) -> float:
    """Mean of `natural_probabilities` over the facts that the model knows; NaN if it knows none.

    Warns of how many it doesn't know, which are not in the mean.
    """
    frame = natural_probabilities(model, facts)
    if out := int((~frame["known"]).sum()):
        warnings.warn(
            f"{out:,} of {len(frame):,} facts left out of the natural probability, the model does not answer them rightly",
            stacklevel=2,
        )
    return float(frame.loc[frame["known"], "p"].mean())


def edited_probability(model: EditableModel, facts: Iterable[Fact]) -> float:
    """Mean P(target_new) on the edit prompts of edited facts, whether the edit succeeded or not."""
    return float(evaluate(model, facts, paraphrases=0, neighbours=0, two_hop=0, locality=0)["p_new"].mean())


def overfit(p_edited: float, p_natural: float) -> pd.Series:
    """Edited against natural probability.

    Returns:
        p_edited, p_natural, ratio (edited / natural; > 1: surer of what was edited in than of what was learnt) and
        overfit (bool, ratio > 1).
    """
    ratio = p_edited / p_natural if p_natural > 0 else float("nan")
    return pd.Series({"p_edited": p_edited, "p_natural": p_natural, "ratio": ratio, "overfit": bool(ratio > 1.0)})


def quantiles(edited: Numbers, natural: Numbers, at: Sequence[float] = QUANTILES) -> pd.DataFrame:
    """Both distributions of probabilities by quantile: means hide that some edits are at 1 and others at 0.

    Args:
        edited: P(target_new) of edited facts (the column p_new of `evaluate`).
        natural: p of the known facts in `natural_probabilities`.
        at: the quantiles.

    Returns:
        quantile, edited, natural, difference (edited - natural), and the numbers behind them: n_edited, n_natural,
        excluded (entries that are not finite, on both sides together).

    Raises:
        KetoolsError: no finite number on a side.
    """
    (a, b), excluded = _both(edited, natural)
    frame = pd.DataFrame({"quantile": list(at), "edited": np.quantile(a, at), "natural": np.quantile(b, at)})
    frame["difference"] = frame["edited"] - frame["natural"]
    return frame.assign(n_edited=len(a), n_natural=len(b), excluded=excluded)


def separation(edited: Numbers, natural: Numbers) -> pd.Series:
    """How far apart the two distributions are.

    Returns:
        above_natural (share of edited facts beyond the natural 95% quantile; .05 or less where they are alike), auroc
        (chance that a random edited fact is more probable than a random natural one, ties half; .5 where alike; the area
        under scikit-learn's ROC curve), ks and ks_p (Kolmogorov and Smirnov's distance and its p-value, scipy), n_edited,
        n_natural, excluded (as in `quantiles`).

    Raises:
        KetoolsError: no finite number on a side.
    """
    (a, b), excluded = _both(edited, natural)
    test = ks_2samp(a, b)
    return pd.Series(
        {
            "above_natural": float((a > np.quantile(b, 0.95)).mean()),
            "auroc": float(roc_auc_score(np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b])),
            "ks": float(test.statistic),
            "ks_p": float(test.pvalue),
            "n_edited": len(a),
            "n_natural": len(b),
            "excluded": excluded,
        }
    )


def spill(model: EditableModel, facts: Iterable[Fact], around: Iterable[Fact]) -> pd.DataFrame:
    """Does the new object come out wherever the subject occurs: asked on the subject's other facts (EVOKE).

    Args:
        model: the model as it stands; ask before the edits too, some objects are probable everywhere.
        facts: the edited facts.
        around: facts among which others of the same subjects are looked for (case ignored, other prompts only).

    Returns:
        A row per edited fact and other prompt of its subject: id, subject, other (id), prompt, target (the edited fact's
        new object), own (the prompt's own answer: the other fact's true object, its new one if it was edited too),
        p_target, p_own, says_target, says_own (every token is the argmax), spilled (p_target > p_own; EVOKE's Editing
        Overfit Score is 1 - its mean). NaN where own is unknown or is the target itself, so that nothing can spill. A
        fact whose subject has no other prompt has one row, with other and prompt missing and the rest NaN.

    Raises:
        KetoolsError: no edited facts.
    """
    facts = list(facts)
    if not facts:
        raise KetoolsError("nothing to look for: got 0 edited facts, expected at least one")
    frame = pd.DataFrame(_around(facts, list(around)), columns=["id", "subject", "other", "prompt", "target", "own"])
    for side in ("target", "own"):
        asked = frame["prompt"].notna() & frame[side].notna()
        p, says = score_pairs(model, list(zip(frame.loc[asked, "prompt"], frame.loc[asked, side], strict=True)))
        frame.loc[asked, f"p_{side}"], frame.loc[asked, f"says_{side}"] = p, says.astype(float)
    rival = frame["p_own"].notna() & (frame["own"] != frame["target"])
    return frame.assign(spilled=(frame["p_target"] > frame["p_own"]).astype(float).where(rival))


def spill_change(before: pd.DataFrame, after: pd.DataFrame) -> pd.Series:
    """Two frames of `spill` on the same prompts: what the edits did.

    Returns:
        spilled_before, spilled (means of the column), p_target_before, p_target (means), p_target_ratio, n (prompts),
        facts, without (facts that have no other prompt: in no mean), no_rival (prompts whose own answer is unknown or is
        the target: in the means of p_target only).

    Raises:
        KetoolsError: the two frames ask different prompts, or no fact has another prompt.
    """
    keys = ["id", "other", "prompt"]
    if not before[keys].reset_index(drop=True).equals(after[keys].reset_index(drop=True)):
        raise KetoolsError("the frames before and after ask different prompts; make both with the same facts")
    asked = after["prompt"].notna()
    if not asked.any():
        raise KetoolsError(f"none of {after['id'].nunique()} facts has another prompt of its subject to look at")
    p, p_before = float(after["p_target"].mean()), float(before["p_target"].mean())
    return pd.Series(
        {
            "spilled_before": float(before["spilled"].mean()),
            "spilled": float(after["spilled"].mean()),
            "p_target_before": p_before,
            "p_target": p,
            "p_target_ratio": p / p_before if p_before > 0 else float("nan"),
            "n": int(asked.sum()),
            "facts": after["id"].nunique(),
            "without": int((~asked).sum()),
            "no_rival": int((asked & after["spilled"].isna()).sum()),
        }
    )


def _around(
    facts: list[Fact], around: list[Fact]
) -> Iterator[tuple[str, str, str | None, str | None, str, str | None]]:
    edited = {fact.id for fact in facts}
    by_subject: dict[str, list[Fact]] = {}
    for other in around:
        by_subject.setdefault(other.subject.lower(), []).append(other)
    for fact in facts:
        beside = [o for o in by_subject.get(fact.subject.lower(), ()) if o.id != fact.id and o.text != fact.text]
        for other in beside:
            own = other.target_new if other.id in edited else other.target_true
            yield fact.id, fact.subject, other.id, other.text, fact.target_new, own
        if not beside:
            yield fact.id, fact.subject, None, None, fact.target_new, None


def _both(edited: Numbers, natural: Numbers) -> tuple[list[np.ndarray], int]:
    whole = [np.asarray(side, dtype=float) for side in (edited, natural)]
    good = [side[np.isfinite(side)] for side in whole]
    for name, side, given in zip(("edited", "natural"), good, whole, strict=True):
        if not len(side):
            raise KetoolsError(f"{name} probabilities: {len(given)} given, none finite; expected at least one")
    return good, sum(map(len, whole)) - sum(map(len, good))
