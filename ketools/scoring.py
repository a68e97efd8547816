"""Teacher-forced scores of targets after prompts: the one way in which anything here asks a model for probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.packing import row_scores
from ketools.prompts import Row, make_rows

Pair = tuple[str, str]


def target_logprobs(
    model: EditableModel, prompts: Sequence[str], targets: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean token log-probability of `targets` after `prompts` (nats; NaN where the model's output is), and all-argmax.

    `targets` holds one text per prompt, giving two arrays (prompts,), float64 and bool; or k texts per prompt, giving
    (prompts, k). Equal pairs are scored once (the neighbours of a thousand facts repeat each other), and texts share
    their beginnings (ketools.packing).
    """
    nested = len(targets) > 0 and not isinstance(targets[0], str)
    width = len(targets[0]) if nested else 1
    pairs = [(p, t) for p, ts in zip(prompts, targets, strict=True) for t in (ts if nested else (ts,))]
    assert len(pairs) == width * len(prompts), "every prompt needs the same number of targets"
    if not pairs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    rows = make_rows(model, [prompt for prompt, _ in place], [target for _, target in place])
    logprob, hit = row_scores(model, rows)
    logprob /= [len(row.target_ids) for row in rows]
    back = np.array([place[pair] for pair in pairs])
    shape = (len(prompts), width) if nested else (len(prompts),)
    return logprob[back].reshape(shape), hit[back].reshape(shape)


def score_pairs(model: EditableModel, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced probability of each target after its prompt, and whether it is the argmax throughout.

    Args:
        model: the model as it stands, edits included.
        pairs: n pairs (prompt, target); the target without leading space.

    Returns:
        p: float64 (n,), P(o) = exp(-mean token NLL of o); 0 where the model's output is NaN, for a model that has
            collapsed gives no probability to anything and must not drop out of a mean.
        hit: bool (n,), every token of the target is the argmax at its position.
    """
    logprob, hit = target_logprobs(model, [prompt for prompt, _ in pairs], [target for _, target in pairs])
    return np.nan_to_num(np.exp(logprob), nan=0.0), hit & ~np.isnan(logprob)


def choice_logprobs(model: EditableModel, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Log-probability of each choice's first token right after its prompt; ordered as the logits are.

    Args:
        model: the model as it stands.
        prompts: n texts that end where the choice comes.
        choices: for each prompt its choices, with or without their leading space.

    Returns:
        n arrays float64 (nats), one entry per choice.

    Raises:
        KetoolsError: two choices of a prompt begin with the same token.
    """
    asked = [(prompt, choice.strip()) for prompt, options in zip(prompts, choices, strict=True) for choice in options]
    rows = [_first(row) for row in make_rows(model, [p for p, _ in asked], [c for _, c in asked])]
    logprob, _ = row_scores(model, rows)
    found, start = [], 0
    for prompt, options in zip(prompts, choices, strict=True):
        end = start + len(options)
        if len({row.target_ids for row in rows[start:end]}) < len(options):
            raise KetoolsError(
                f"prompt {prompt!r}: two of the choices {list(options)} begin with the same token; "
                "expected choices that differ from their first token on"
            )
        found.append(logprob[start:end])
        start = end
    return found


def _first(row: Row) -> Row:
    """The row with the first token of its target alone."""
    at = row.target_positions[0]
    return Row(row.ids[: at + 1], row.subject_last, (at,), row.target_ids[:1])
