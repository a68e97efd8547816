"""(prompt, target) pairs -> probabilities; equal prompts are read once, the head only where something is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.prompts import make_rows, pad_right, target_logprobs

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
    logprob, argmax = target_logprobs(model, [prompt for prompt, _ in place], [target for _, target in place])
    back = np.array([place[pair] for pair in pairs])
    p = np.exp(logprob)
    return np.nan_to_num(p, nan=0.0)[back], (argmax & ~np.isnan(p))[back]


def choice_logits(model: EditableModel, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Logit of each choice's first token right after its prompt.

    Args:
        model: the model as it stands.
        prompts: n texts that end where the choice comes.
        choices: for each prompt its choices, with or without their leading space.

    Returns:
        n arrays float32, one entry per choice.

    Raises:
        KetoolsError: two choices of a prompt begin with the same token.
    """
    asked = [(i, choice) for i, options in enumerate(choices) for choice in options]
    rows = make_rows(model, [prompts[i] for i, _ in asked], [choice.strip() for _, choice in asked])
    first: list[list[int]] = [[] for _ in prompts]
    texts: list[tuple[int, ...]] = [()] * len(prompts)
    for (i, choice), row in zip(asked, rows, strict=True):
        if row.target_ids[0] in first[i]:
            raise KetoolsError(
                f"prompt {prompts[i]!r}: choice {choice!r} begins with the same token as another of {list(choices[i])}; "
                "expected choices that differ from their first token on"
            )
        first[i].append(row.target_ids[0])
        texts[i] = row.ids[: row.target_positions[0] + 1]
    found: list[np.ndarray] = [np.zeros(0)] * len(prompts)
    for batch in batches(texts):
        logits = _last_logits(model, [texts[i] for i in batch])
        for row, i in zip(logits, batch, strict=True):
            found[i] = row[first[i]].numpy()
    return found


@torch.inference_mode()
def _last_logits(model: EditableModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits (rows, vocabulary) after the last token of each row, float32 on the CPU."""
    ids, mask = pad_right(rows, model.device)
    states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = mask.sum(-1) - 1
    return model.logits(states[torch.arange(len(rows), device=ids.device), last]).float().cpu()


def batches(rows: Sequence[Sequence[int]], tokens: int = 8192) -> Iterator[list[int]]:
    """Indices of rows, shortest first, in batches of at most `tokens` tokens when padded (one row at least)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and len(rows[i]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
