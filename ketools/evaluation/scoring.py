"""(prompt, target) pairs -> probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ketools.errors import KetoolsError
from ketools.evaluation.packing import row_scores
from ketools.model import EditableModel
from ketools.prompts import Row, make_rows

Pair = tuple[str, str]


def score_pairs(model: EditableModel, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced probability of each target after its prompt, and whether it is the argmax throughout.

    Equal pairs are scored once: the neighbours of a thousand facts repeat each other.

    Args:
        model: the model as it stands, edits included.
        pairs: n pairs (prompt, target); the target without leading space.

    Returns:
        p: float64 (n,), P(o) = exp(-mean token NLL of o); 0 where the model's output is NaN, for a model that has
            collapsed gives no probability to anything and must not drop out of a mean.
        hit: bool (n,), every token of the target is the argmax at its position.
    """
    if not pairs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    rows = make_rows(model, [prompt for prompt, _ in place], [target for _, target in place])
    logprob, hit = row_scores(model, rows)
    p = np.exp(logprob / [len(row.target_ids) for row in rows])
    back = np.array([place[pair] for pair in pairs])
    return np.nan_to_num(p, nan=0.0)[back], (hit & ~np.isnan(p))[back]


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
