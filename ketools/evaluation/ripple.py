"""Consequences of an edit: two-hop questions whose answer follows from the fact (RippleEdits, 2307.12976; MQuAKE,
2305.14795). If a person's birthplace was edited, does the country of the birthplace follow? Mostly it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.scoring import score_pairs

_KEYS = ["id", "question"]


def two_hop(model: EditableModel, facts: Iterable[Fact]) -> pd.DataFrame:
    """Ask every two-hop question of the facts; ask before and after the edits.

    Returns:
        A row per question: id, relation, subject, question, answer_true (before the edit; missing if unknown), answer_new;
        p_true, p_new (teacher-forced, 0..1), says_true, says_new (every token is the argmax), success (p_new > p_true).
        What needs an unknown answer is NaN. A fact without questions has one row, with question missing and the rest NaN.

    Raises:
        KetoolsError: no facts, or none with a two-hop question.
    """
    facts = list(facts)
    if not any(fact.two_hop for fact in facts):
        raise KetoolsError(
            f"none of {len(facts)} facts has a two-hop question (field two_hop); there is nothing to ask"
        )
    names = ["id", "relation", "subject", "question", "answer_true", "answer_new"]
    frame = pd.DataFrame(_questions(facts), columns=names)
    for side in ("true", "new"):
        asked = frame["question"].notna() & frame[f"answer_{side}"].notna()
        pairs = list(zip(frame.loc[asked, "question"], frame.loc[asked, f"answer_{side}"], strict=True))
        p, says = score_pairs(model, pairs)
        frame[f"p_{side}"] = frame[f"says_{side}"] = np.nan
        frame.loc[asked, f"p_{side}"], frame.loc[asked, f"says_{side}"] = p, says.astype(float)
    both = frame["p_true"].notna() & frame["p_new"].notna()
    return frame.assign(success=(frame["p_new"] > frame["p_true"]).astype(float).where(both))


def ripple(before: pd.DataFrame, after: pd.DataFrame) -> pd.Series:
    """What became of the consequences, from two frames of `two_hop`: before the edits and now.

    A question shows something only if the model answered it before: of those known (says_true before) each is now
    followed (says the new answer), kept (still says the old one) or broken (neither).

    Returns:
        followed, kept, broken (fractions of the known questions, sum 1); success_before, success (of all questions with
        both answers), p_new_before, p_new; n (questions), known, unknown (old answer not given, or not right before: in
        none of the first three), facts, without (facts that have no question: counted nowhere else).

    Raises:
        KetoolsError: the frames are of different questions.
    """
    if not before[_KEYS].reset_index(drop=True).equals(after[_KEYS].reset_index(drop=True)):
        raise KetoolsError("the frames before and after ask different questions; make both with the same facts")
    before, after = before.reset_index(drop=True), after.reset_index(drop=True)
    asked = after["question"].notna()
    known = asked & (before["says_true"] == 1.0)
    now = after[known]
    followed, kept = now["says_new"] == 1.0, now["says_true"] == 1.0
    shares = {"followed": followed, "kept": kept & ~followed, "broken": ~followed & ~kept}
    return pd.Series(
        {name: float(part.mean()) if len(part) else float("nan") for name, part in shares.items()}
        | {
            "success_before": float(before["success"].mean()),
            "success": float(after["success"].mean()),
            "p_new_before": float(before["p_new"].mean()),
            "p_new": float(after["p_new"].mean()),
            "n": int(asked.sum()),
            "known": int(known.sum()),
            "unknown": int((asked & ~known).sum()),
            "facts": after["id"].nunique(),
            "without": int((~asked).sum()),
        }
    )


def _questions(facts: list[Fact]) -> Iterator[tuple[str | None, ...]]:
    for fact in facts:
        for hop in fact.two_hop:
            yield fact.id, fact.relation, fact.subject, hop.question, hop.answer_true, hop.answer_new
        if not fact.two_hop:
            yield fact.id, fact.relation, fact.subject, None, None, None
