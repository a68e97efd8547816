"""Whether edits succeed, generalise and stay specific: ES, PS, NS and their magnitudes and accuracies.

Definitions of Meng et al. (ROME, 2202.05262; MEMIT, 2210.07229): P(o) = exp(-mean token NLL of o), teacher-forced;
an edit succeeds on a prompt when P(new) > P(true); a neighbour (same relation and true object, another subject)
is kept when P(true) > P(new). Equality is a failure on either side. Accuracy is stricter: every token of the wanted
object is the model's first choice.

Scores depend on when they are taken: *at edit time* (right after the batch) and *at the end* (all past edits on the final
model) differ widely. `evaluate` scores the model in its present state; runs name the moment.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from ketools.editing.targets import Targets
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.scoring import argmaxes, score_pairs
from ketools.models.tokens import in_chat, make_rows

KINDS = ("efficacy", "paraphrase", "neighbourhood")
BESIDE = ("two_hop", "locality")
"""Kinds of prompts that have columns only if some fact has such prompts."""
SHORT = {"efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS"}
MEASURES = ("success", "accuracy", "magnitude")
LOCALITY = ("accuracy", "probability", "unchanged")


def evaluate(
    model: EditableModel,
    facts: Iterable[Fact],
    *,
    paraphrases: int | None = None,
    neighbours: int | None = None,
    two_hop: int | None = None,
    locality: int | None = None,
    chat: bool = False,
) -> pd.DataFrame:
    """Score facts on the model in its present state: edit prompt, paraphrases, neighbours and all other prompts.

    Args:
        model: the model, edits included.
        facts: the facts, edited or not.
        paraphrases: paraphrases of each fact, at most (None: all).
        neighbours: neighbours of each fact, at most (None: all); neighbours are most of the cost.
        two_hop, locality: likewise for questions that follow from the fact, and prompts that the edit must not change.
        chat: ask in the form of the tokenizer's chat template (`ketools.models.tokens.in_chat`).

    Returns:
        One row per fact, in order: id, relation, subject; p_new, p_true on the edit prompt (float64, 0..1); and for
        each KIND the means over its prompts of success, accuracy (fractions) and magnitude (difference of
        probabilities, wanted minus unwanted): `efficacy_success` .. `neighbourhood_magnitude`. If some fact has
        two-hop questions, the same for these (`two_hop_success` .., wanted is the answer after the edit); if some fact has
        locality prompts, `locality_accuracy` (the answer is still given, every token the argmax),
        `locality_probability`, and `locality_unchanged`: whether the argmax of every token of the answer, right or not,
        is the same as before the edits in the weights (NaN without edits). NaN where the fact has no such prompt;
        success, magnitude and p_true (but not accuracy) also where the answer before the edit is unknown.

    Raises KetoolsError for no facts or a negative limit.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> facts = ke.facts("world").sample(2, seed=0)
        >>> _ = ke.Editor(model, "encore").apply(facts)
        >>> ke.evaluate(model, facts, neighbours=2)["efficacy_success"].tolist()
        [1.0, 1.0]
    """
    facts = list(in_chat(model, facts) if chat else facts)
    if not facts:
        raise KetoolsError("nothing to evaluate: got 0 facts, expected at least one")
    limits = {"paraphrases": paraphrases, "neighbours": neighbours, "two_hop": two_hop, "locality": locality}
    for name, limit in limits.items():
        if limit is not None and limit < 0:
            raise KetoolsError(f"{name}={limit}: expected a number of prompts >= 0, or None for all")
    asked = pd.DataFrame(_prompts(facts, limits), columns=["fact", "kind", "prompt", "wanted", "unwanted", "glue"])
    rival, glue = asked["unwanted"].notna().to_numpy(), np.array(asked["glue"], dtype=object)
    pairs = [*zip(asked["prompt"], asked["wanted"], strict=True)]
    pairs += zip(asked.loc[rival, "prompt"], asked.loc[rival, "unwanted"], strict=True)
    p, hit = score_pairs(model, pairs, [*glue, *glue[rival]])
    wanted, unwanted = p[: len(asked)], np.full(len(asked), np.nan)
    unwanted[rival] = p[len(asked) :]
    scored = asked.assign(
        success=np.where(rival, wanted > unwanted, np.nan),
        accuracy=hit[: len(asked)].astype(float),
        magnitude=wanted - unwanted,
        probability=wanted,
        other=unwanted,
        unchanged=np.nan,
    )
    if (kept := asked["kind"] == "locality").any() and model.edits:
        rows = make_rows(model, list(asked.loc[kept, "prompt"]), list(asked.loc[kept, "wanted"]), glue=[*glue[kept]])
        now = argmaxes(model, rows)
        with model.edits.at(0):
            before = argmaxes(model, rows)
        scored.loc[kept, "unchanged"] = [float(a == b) for a, b in zip(now, before, strict=True)]
    return _per_fact(facts, scored)


def unscorable(model: EditableModel, facts: Iterable[Fact]) -> list[str]:
    """The prompts used by `evaluate` that the model cannot read (longer than its window, no tokens), one line each with
    fact and kind; nothing is run.
    """
    facts = list(facts)
    limits = dict.fromkeys(("paraphrases", "neighbours", "two_hop", "locality"))
    asked = [(i, kind, prompt, goal, glue) for i, kind, prompt, *goals, glue in _prompts(facts, limits)
             for goal in goals if goal is not None]  # fmt: skip

    def read(rows: Sequence[tuple[int, str, str, str, bool | None]]) -> None:
        make_rows(model, [row[2] for row in rows], [row[3] for row in rows], glue=[row[4] for row in rows])

    try:
        read(asked)
    except KetoolsError:  # try each, to name them all
        unreadable: dict[str, None] = {}
        for row in asked:
            try:
                read([row])
            except KetoolsError as error:
                unreadable.setdefault(f"fact {facts[row[0]].id!r}: {row[1]}: {error}")
        return list(unreadable)
    return []


def _prompts(
    facts: list[Fact], limits: Mapping[str, int | None]
) -> Iterator[tuple[int, str, str, str | None, str | None, bool | None]]:
    """(index of the fact, kind, prompt, wanted and unwanted answer, their glue) for all prompts."""
    for i, fact in enumerate(facts):
        true, new = fact.target_true, fact.target_new
        yield i, "efficacy", fact.text, new, true, fact.glue
        for prompt in fact.paraphrases[: limits["paraphrases"]]:
            yield i, "paraphrase", prompt, new, true, fact.glue
        for prompt in fact.neighbours[: limits["neighbours"]]:  # here the true object is wanted
            yield i, "neighbourhood", prompt, true, new, fact.glue
        for hop in fact.two_hop[: limits["two_hop"]]:
            yield i, "two_hop", hop.question, hop.answer_new, hop.answer_true, hop.glue
        for kept in fact.locality[: limits["locality"]]:
            yield i, "locality", kept.prompt, kept.answer, None, kept.glue


def _per_fact(facts: list[Fact], scored: pd.DataFrame) -> pd.DataFrame:
    """Means over the prompts of each fact and kind."""
    means = scored.groupby(["kind", "fact"])[[*MEASURES, *LOCALITY[1:]]].mean()
    frame = pd.DataFrame({name: [getattr(f, name) for f in facts] for name in ("id", "relation", "subject")})
    edit_prompt = (scored["kind"] == "efficacy").to_numpy()  # exactly one per fact, in order
    for name, column in (("p_new", "probability"), ("p_true", "other")):
        frame[name] = scored.loc[edit_prompt, column].to_numpy()
    there = set(means.index.get_level_values("kind"))
    for kind in (*KINDS, *(kind for kind in BESIDE if kind in there)):
        some = means.loc[kind] if kind in there else means.iloc[:0].droplevel("kind")
        for measure in MEASURES if kind != "locality" else LOCALITY:
            frame[f"{kind}_{measure}"] = some[measure].reindex(range(len(facts))).to_numpy(dtype=float)
    return frame


def harmonic_mean(values: Iterable[float]) -> float:
    """n / sum(1/x); 0 if any x is 0, NaN if any is unknown."""
    array = np.asarray(list(values), dtype=float)
    if np.isnan(array).any():
        return float("nan")
    return 0.0 if (array <= 0).any() else float(len(array) / np.sum(1.0 / array))


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """The means of `evaluate`'s frame under their usual names.

    Returns:
        ES, PS, NS (fractions), S their harmonic mean (NaN if one could not be measured); efficacy_accuracy,
        paraphrase_accuracy, neighbourhood_accuracy; the three magnitudes; the columns of two-hop questions and locality
        prompts, if any; p_new, p_true; n (facts). Means leave out NaN; measured_NAME then gives the number of facts in
        the mean. Each fact has weight 1, however many paraphrases and neighbours it has, as in published code.
    """
    columns = {SHORT[kind]: f"{kind}_success" for kind in KINDS}
    scores = {name: float(frame[column].mean()) for name, column in columns.items()}
    scores["S"] = harmonic_mean(scores.values())
    others = [f"{kind}_{measure}" for measure in MEASURES[1:] for kind in KINDS]
    others += [*(name for name in frame if name.startswith(BESIDE)), "p_new", "p_true"]
    scores |= {name: float(frame[name].mean()) for name in others}
    columns |= {name: name for name in others}
    counts = {name: int(frame[column].count()) for name, column in columns.items()}
    # The mean over no fact at all is NaN.
    partly = {f"measured_{name}": count for name, count in counts.items() if 0 < count < len(frame)}
    return scores | {"n": len(frame)} | partly


def recall(model: EditableModel, facts: Iterable[Fact]) -> pd.DataFrame:
    """Whether the model says target_true of each fact after its edit prompt.

    Returns:
        One row per fact: id, relation, subject, accuracy (1.0 if every token of the object is the argmax, else 0.0),
        p_true (its probability).

    Raises KetoolsError for a fact without target_true.
    """
    facts = list(facts)
    p, hit = score_pairs(model, [(f.text, f.need_true("recall")) for f in facts], [f.glue for f in facts])
    frame = pd.DataFrame({name: [getattr(f, name) for f in facts] for name in ("id", "relation", "subject")})
    return frame.assign(accuracy=hit.astype(float), p_true=p)


# Overfitting of edits: edited facts are more probable than anything the model learned in training.
#
# Gupta et al. (2502.01636), table 1: natural facts have a mean probability of .39 to .52, edited ones of .65 to .99, and
# early stopping (MPES) brings those of MEMIT and AlphaEdit back to the natural level or below; EMMET's stay above.

Numbers: TypeAlias = Sequence[float] | np.ndarray | pd.Series


def natural_probabilities(model: EditableModel, facts: Iterable[Fact]) -> pd.DataFrame:
    """P(target_true) on the edit prompt of each fact, and whether the model answers correctly; for the unedited model.

    Returns:
        id, relation, subject, p, known (bool). The natural level is that of the known facts: the probability of the
        others shows how hard they are, not how confident the model is in what it knows.

    Raises KetoolsError for a fact without target_true.
    """
    frame = recall(model, facts)
    return frame[["id", "relation", "subject"]].assign(p=frame["p_true"], known=frame["accuracy"] == 1.0)


def overfit(p_edited: float, p_natural: float) -> pd.Series:
    """Compare edited with natural probability.

    Returns:
        p_edited, p_natural, ratio (edited / natural; > 1: more confident in edited facts than in learned ones) and
        overfit (bool, ratio > 1).
    """
    ratio = p_edited / p_natural if p_natural > 0 else float("nan")
    return pd.Series({"p_edited": p_edited, "p_natural": p_natural, "ratio": ratio, "overfit": bool(ratio > 1.0)})


def separation(edited: Numbers, natural: Numbers) -> pd.Series:
    """How far apart two distributions of probabilities are: a mean hides that some edits are at 1 and others at 0.

    Args:
        edited: P(target_new) of edited facts (the column p_new of `evaluate`).
        natural: p of the known facts in `natural_probabilities`.

    Returns:
        above_natural, auroc, ks and ks_p, as in the glossary's table "overfitting"; n_edited, n_natural, and excluded
        (entries of both that are not finite).

    Raises KetoolsError if one of the two has no finite number.
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


def overfitting_curve(targets: Targets) -> pd.DataFrame:
    """The target's probability per step over all facts: where the optimisation passes the natural level.

    The target's probability exceeds that of natural facts before any weight changes (Gupta et al., 2502.01636, section
    3), which MPES prevents.

    Returns:
        One row per step: step, p_mean, p05, median, p95 over all facts (a stopped fact counts with its last
        probability); running (share of facts still optimised), n, excluded (facts whose trace has NaN or Inf; they are
        in no other column).

    Raises KetoolsError if no fact has a finite trace.
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
