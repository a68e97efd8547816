"""Did the edits take, do they generalise, do they stay in their place: ES, PS, NS and their magnitudes and accuracies.

Definitions of Meng et al. (ROME, 2202.05262; MEMIT, 2210.07229): P(o) = exp(-mean token NLL of o), teacher-forced;
an edit succeeds on a prompt when P(new) > P(true); a neighbour (same relation and true object, another subject)
is kept when P(true) > P(new). Equality is a failure on either side. Accuracy asks more: every token of the wanted
object is the model's first choice.

Scores say nothing without the moment at which they were taken: *at edit time* (right after the batch) and *at the
end* (all past edits on the final model) differ widely. `evaluate` scores the model as it stands; runs name the moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from ketools.errors import KetoolsError
from ketools.evaluation.scoring import score_pairs
from ketools.facts import Fact
from ketools.model import EditableModel

KINDS = ("efficacy", "paraphrase", "neighbourhood")
SHORT = {"efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS"}
MEASURES = ("success", "accuracy", "magnitude")


def evaluate(
    model: EditableModel, facts: Iterable[Fact], *, paraphrases: int | None = None, neighbours: int | None = None
) -> pd.DataFrame:
    """Score facts on the model as it stands: edit prompt, paraphrases and neighbours.

    Args:
        model: the model, edits included.
        facts: the facts, edited or not.
        paraphrases: at most so many paraphrases of each fact (None: all).
        neighbours: at most so many neighbours of each fact (None: all); neighbours are most of the cost.

    Returns:
        One row per fact, in order: id, relation, subject; p_new, p_true on the edit prompt (float64, 0..1); and for
        each KIND the means over its prompts of success, accuracy (fractions) and magnitude (difference of
        probabilities, wanted minus unwanted): `efficacy_success` .. `neighbourhood_magnitude`. NaN where the fact
        has no such prompt; success, magnitude and p_true also where target_true is unknown (accuracy is not).

    Raises:
        KetoolsError: no facts, or a negative limit.
    """
    facts = list(facts)
    if not facts:
        raise KetoolsError("nothing to evaluate: got 0 facts, expected at least one")
    for name, limit in (("paraphrases", paraphrases), ("neighbours", neighbours)):
        if limit is not None and limit < 0:
            raise KetoolsError(f"{name}={limit}: expected a number of prompts >= 0, or None for all")
    asked = pd.DataFrame(_prompts(facts, paraphrases, neighbours), columns=["fact", "kind", "prompt"])
    new, true = ([getattr(facts[i], f"target_{side}") for i in asked["fact"]] for side in ("new", "true"))
    scored = [t if t is not None else n for t, n in zip(true, new, strict=True)]  # an unknown one only keeps its place
    pairs = [(p, t) for side in (scored, new) for p, t in zip(asked["prompt"], side, strict=True)]
    p, hit = (values.reshape(2, -1) for values in score_pairs(model, pairs))
    p[0] = np.where([t is None for t in true], np.nan, p[0])
    return _per_fact(facts, asked, p, hit)


def _prompts(facts: list[Fact], paraphrases: int | None, neighbours: int | None) -> Iterator[tuple[int, str, str]]:
    """(index of the fact, kind, prompt) for all that is asked."""
    for i, fact in enumerate(facts):
        asked = ((fact.text,), fact.paraphrases[:paraphrases], fact.neighbours[:neighbours])
        for kind, prompts in zip(KINDS, asked, strict=True):
            yield from ((i, kind, prompt) for prompt in prompts)


def _per_fact(facts: list[Fact], asked: pd.DataFrame, p: np.ndarray, hit: np.ndarray) -> pd.DataFrame:
    """Means over the prompts of each fact and kind; p, hit: (2, prompts), row 0 for target_true, row 1 for target_new."""
    keep = (asked["kind"] == "neighbourhood").to_numpy()  # here the true object is the wanted one
    wanted, unwanted = np.where(keep, p[0], p[1]), np.where(keep, p[1], p[0])
    asked = asked.assign(
        success=np.where(np.isnan(wanted + unwanted), np.nan, wanted > unwanted),
        accuracy=np.where(keep, hit[0], hit[1]).astype(float),
        magnitude=wanted - unwanted,
    )
    means = asked.groupby(["kind", "fact"])[list(MEASURES)].mean()
    frame = pd.DataFrame({name: [getattr(f, name) for f in facts] for name in ("id", "relation", "subject")})
    edit_prompt = (asked["kind"] == "efficacy").to_numpy()  # exactly one per fact, in order
    frame["p_new"], frame["p_true"] = p[1][edit_prompt], p[0][edit_prompt]
    for kind in KINDS:
        some = means.loc[kind] if kind in means.index.get_level_values("kind") else means.iloc[:0].droplevel("kind")
        for measure in MEASURES:
            frame[f"{kind}_{measure}"] = some[measure].reindex(range(len(facts))).to_numpy(dtype=float)
    return frame


def harmonic_mean(values: Iterable[float]) -> float:
    """n / sum(1/x); 0 if one is 0, NaN if one is unknown."""
    array = np.asarray(list(values), dtype=float)
    if np.isnan(array).any():
        return float("nan")
    return 0.0 if (array <= 0).any() else float(len(array) / np.sum(1.0 / array))


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """The means of `evaluate`'s frame under their usual names.

    Returns:
        ES, PS, NS (fractions), S their harmonic mean (NaN if one could not be measured); efficacy_accuracy,
        paraphrase_accuracy, neighbourhood_accuracy; the three magnitudes; p_new, p_true; n (facts).
        A fact weighs 1 however many paraphrases or neighbours it has, as in the authors' summaries.
    """
    scores = {SHORT[kind]: float(frame[f"{kind}_success"].mean()) for kind in KINDS}
    scores["S"] = harmonic_mean(scores.values())
    for measure in MEASURES[1:]:
        scores |= {f"{kind}_{measure}": float(frame[f"{kind}_{measure}"].mean()) for kind in KINDS}
    return scores | {"p_new": float(frame["p_new"].mean()), "p_true": float(frame["p_true"].mean()), "n": len(frame)}


def recall(model: EditableModel, facts: Iterable[Fact], prompts: str = "trained") -> pd.DataFrame:
    """Does the model still say what it was trained to say: target_true of each fact.

    Args:
        model: the model, edits included.
        facts: facts whose true object is asked for.
        prompts: "trained" (the templates that training used; the edit prompt where a fact lists none), "prompt"
            (the edit prompt alone) or "paraphrases".

    Returns:
        One row per fact: id, relation, subject, accuracy (mean over prompts of: every token is the argmax),
        p_true (mean probability), n (prompts). Facts without such a prompt have n = 0 and NaN.

    Raises:
        KetoolsError: unknown kind of prompts.
    """
    pick = {
        "trained": lambda fact: fact.trained or (fact.text,),
        "prompt": lambda fact: (fact.text,),
        "paraphrases": lambda fact: fact.paraphrases,
    }
    if prompts not in pick:
        raise KetoolsError(f"prompts={prompts!r}: expected one of {', '.join(map(repr, pick))}")
    facts = list(facts)
    rows = [(i, prompt, fact.need_true("recall")) for i, fact in enumerate(facts) for prompt in pick[prompts](fact)]
    p, hit = score_pairs(model, [(prompt, target) for _, prompt, target in rows])
    scored = pd.DataFrame({"fact": [i for i, _, _ in rows], "accuracy": hit.astype(float), "p_true": p, "n": 1})
    by_fact = scored.groupby("fact").agg({"accuracy": "mean", "p_true": "mean", "n": "sum"}).reindex(range(len(facts)))
    frame = pd.DataFrame({name: [getattr(f, name) for f in facts] for name in ("id", "relation", "subject")})
    return frame.assign(accuracy=by_fact["accuracy"], p_true=by_fact["p_true"], n=by_fact["n"].fillna(0).astype(int))
