"""Text to rows of tokens, with the subject's last token and the target's positions located; scoring of targets.

Positions are found through the character offsets that a fast tokenizer gives, never by counting tokens of parts that
were tokenised alone: tokens of a name differ with and without a space before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel

Span = tuple[int, int]
_TOKENS_AT_ONCE = 8192  # of a scoring batch: enough to fill two cores, little memory
_LOGITS_AT_ONCE = 2**24  # entries of one block of logits: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class Row:
    """One text as tokens.

    `ids` hold the prompt and all target tokens but the last. `target_positions[i]` is the place whose prediction is
    `target_ids[i]`. `subject_last` is the place of the subject's last token, None if the text has no subject.
    """

    ids: tuple[int, ...]
    subject_last: int | None = None
    target_positions: tuple[int, ...] = ()
    target_ids: tuple[int, ...] = ()


def subject_span(fact: Fact) -> Span:
    """Characters (start, end) of the subject in `fact.text`. Raises KetoolsError unless it stands there once."""
    times = fact.text.count(fact.subject)
    if "{}" not in fact.prompt or times == 0:
        raise KetoolsError(
            f"fact {fact.id!r}: the prompt {fact.prompt!r} does not hold the subject; write '{{}}' in its place"
        )
    if times > 1:
        raise KetoolsError(
            f"fact {fact.id!r}: the subject {fact.subject!r} stands {times} times in {fact.text!r}, so its last token "
            "is ambiguous; word the prompt so that the subject stands in it once"
        )
    start = fact.prompt.index("{}")
    return start, start + len(fact.subject)


def make_rows(
    model: EditableModel,
    prompts: Sequence[str],
    targets: Sequence[str] | None = None,
    spans: Sequence[Span] | None = None,
) -> list[Row]:
    """Tokenise `prompts`, each followed by its target (one space between) and with its subject at `spans`.

    Raises KetoolsError for a target without tokens, a subject without tokens, or a row longer than the model's
    context window.
    """
    tails = [""] * len(prompts)
    if targets is not None:
        prompts = [prompt.rstrip(" ") for prompt in prompts]  # the space belongs to the target's first token
        tails = [
            target if p.endswith("\n") else f" {target.lstrip(' ')}" for p, target in zip(prompts, targets, strict=True)
        ]
    encoded = _encode(model.tokenizer, [prompt + tail for prompt, tail in zip(prompts, tails, strict=True)])
    window = model.window
    rows = []
    for i, (ids, offsets) in enumerate(encoded):
        n_prompt = sum(1 for _, end in offsets if end <= len(prompts[i]))
        ids, n_prompt, goal = _split(model.tokenizer, prompts[i], tails[i], ids, offsets, n_prompt)
        last = None if spans is None else _last_token(offsets, spans[i], prompts[i])
        if window and len(ids) > window:
            raise KetoolsError(
                f"prompt {prompts[i]!r} takes {len(ids)} tokens; the model's context window holds {window}"
            )
        rows.append(Row(tuple(ids), last, tuple(range(n_prompt - 1, n_prompt - 1 + len(goal))), tuple(goal)))
    return rows


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest) padded on the right with 0, and the mask of the same shape (int64, 1 = a token)."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


@torch.no_grad()
def target_logprobs(
    model: EditableModel, prompts: Sequence[str], targets: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced scores of `targets` after `prompts`: mean token log-probability (nats) and all-argmax.

    `targets` holds one text per prompt, giving two arrays (prompts,), float64 and bool; or k texts per prompt, giving
    (prompts, k). A prompt's targets share its forward pass, the head is applied at target positions only.
    """
    nested = len(targets) > 0 and not isinstance(targets[0], str)
    width = len(targets[0]) if nested else 1
    pairs = [(p, t) for p, ts in zip(prompts, targets, strict=True) for t in (ts if nested else (ts,))]
    assert len(pairs) == width * len(prompts), "every prompt needs the same number of targets"
    if not pairs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    rows = make_rows(model, [p for p, _ in pairs], [t for _, t in pairs])
    logprob, correct = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
    for owner, value, best in _token_scores(model, rows):
        np.add.at(logprob, owner, value)
        np.logical_and.at(correct, owner, best)
    logprob /= [len(row.target_ids) for row in rows]
    shape = (len(prompts), width) if nested else (len(prompts),)
    return logprob.reshape(shape), correct.reshape(shape)


def _token_scores(model: EditableModel, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    # Yields (row, log-probability, is argmax) of target tokens, one array entry a token.
    texts, home = _merge([row.ids for row in rows])
    reads: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for i, row in enumerate(rows):
        at = reads.setdefault(home[i], {})
        for position, token in zip(row.target_positions, row.target_ids, strict=True):
            at.setdefault(position, []).append((i, token))
    for batch in _batches(texts):
        ids, mask = pad_right([texts[t] for t in batch], model.device)
        states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        places = [(b, position) for b, t in enumerate(batch) for position in reads[t]]
        wanted = [(n, *pair) for n, (b, position) in enumerate(places) for pair in reads[batch[b]][position]]
        b, position = (torch.tensor(column, device=ids.device) for column in zip(*places, strict=True))
        n, owner, token = (np.array(column) for column in zip(*wanted, strict=True))
        picked = states[b, position]
        step = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
        for start in range(0, len(places), step):
            here = (n >= start) & (n < start + step)
            value, best = _read(model, picked[start : start + step], n[here] - start, token[here])
            yield owner[here], value, best


def _read(model: EditableModel, states: Tensor, at: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits = model.logits(states).float()
    at_, token_ = torch.from_numpy(at).to(logits.device), torch.from_numpy(token).to(logits.device)
    value = logits[at_, token_]
    best = value >= logits.amax(-1)[at_]
    value = value - torch.logsumexp(logits, -1)[at_]
    return value.double().cpu().numpy(), best.cpu().numpy()


def _merge(texts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    # Distinct texts, without those that another one begins with: causal attention makes their states the same there.
    order = sorted(range(len(texts)), key=lambda i: texts[i], reverse=True)
    kept: list[tuple[int, ...]] = []
    home = [0] * len(texts)
    for i in order:  # in this order a text follows right after the longer ones that it begins
        if not kept or kept[-1][: len(texts[i])] != texts[i]:
            kept.append(texts[i])
        home[i] = len(kept) - 1
    return kept, home


def _batches(texts: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    # Sorted by length, so that little is padding.
    batch: list[int] = []
    for t in sorted(range(len(texts)), key=lambda t: len(texts[t])):
        if batch and len(texts[t]) * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(t)
    if batch:
        yield batch


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[tuple[list[int], list[Span]]]:
    if not texts:
        return
    got = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    for ids, offsets in zip(got["input_ids"], got["offset_mapping"], strict=True):
        n = len(ids)
        while n > 1 and offsets[n - 1] == (0, 0):  # an end-of-text token that the tokenizer appends
            n -= 1
        yield ids[:n], offsets[:n]


def _split(
    tokenizer: PreTrainedTokenizerBase, prompt: str, tail: str, ids: list[int], offsets: list[Span], n_prompt: int
) -> tuple[list[int], int, list[int]]:
    # (prompt and target but its last token, tokens of the prompt, tokens of the target)
    if not tail:
        return ids, len(ids), []
    if n_prompt < len(ids) and offsets[n_prompt][0] < len(prompt):
        # A token straddles the border: the prompt and the target as tokens of their own.
        ((prompt_ids, _),) = _encode(tokenizer, [prompt])
        ids, n_prompt = prompt_ids + _tail_ids(tokenizer, tail), len(prompt_ids)
    goal = ids[n_prompt:]
    if not goal or not tail.strip():
        raise KetoolsError(f"the target after {prompt!r} is {tail!r}, which has no tokens; give it some text")
    return ids[:-1], n_prompt, goal


def _tail_ids(tokenizer: PreTrainedTokenizerBase, tail: str) -> list[int]:
    # Behind a letter and not alone: tokenizers in sentencepiece's manner put a space of their own before a text.
    alone, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a{tail}"))
    if tail.startswith(" ") and behind[: len(alone)] == alone:
        return behind[len(alone) :]
    return tokenizer(tail, add_special_tokens=False)["input_ids"]


def _last_token(offsets: list[Span], span: Span, prompt: str) -> int:
    start, end = span
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > max(start, a)]
    if not inside:
        raise KetoolsError(f"no token of {prompt!r} covers the subject {prompt[start:end]!r}")
    return inside[-1]
