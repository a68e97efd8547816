"""Teacher-forced scores of targets after prompts: the one way in which anything here asks a model for probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.replay import fused, only, window_of
from ketools.models.tokens import Row, batches, make_rows, pad_right

# Reading many texts that begin alike: each shared beginning goes through the model once.
#
# A thousand facts with their paraphrases, ten neighbours and two targets each are some 26,000 texts, but they are made
# of few templates: as a tree of tokens they have about half as many. The tree is laid out depth first in rows of
# `WIDTH` tokens; a mask lets each token see its ancestors only, and its position is its depth. So the model computes
# for every token what it computes in the plain text, to rounding.
#
# The MLP of the last layer works at the places that are read alone, a third of a tree's tokens.
#
# Architectures for which this is tested pack; all others, and texts longer than a window of attention, are read one by
# one, a text that another begins with excepted. A UserWarning says so.


WIDTH = 128  # tokens of a packed row; wide enough that repeating a beginning in the next row costs little
TOKENS = 8192  # of a forward pass: enough to fill an accelerator, little memory
TOKENS_CPU = 2048  # the activations of an MLP stay in the cache: a third faster than 8192 on wide MLPs
LOGITS = 2**24  # entries of one block of logits: 64 MiB in float32
# Positions are given as ids, a mask of four dimensions reaches all layers as it is.
TREES = ("gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2",
         "stablelm", "falcon")  # fmt: skip
Place = tuple[int, int]  # (sequence, token in it)


@dataclass
class Sequences:
    """What goes through the model, and where each row's predictions are read."""

    tokens: list[list[int]] = field(default_factory=list)
    parents: list[list[int]] | None = None  # parent of each token in its sequence, -1 at a beginning; None: plain texts
    reads: list[list[Place]] = field(default_factory=list)


def row_scores(model: EditableModel, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each row's target, and whether all its tokens are the argmax.

    Returns:
        logprob: float64 (rows,), nats, the sum over the target's tokens; NaN where the model's output is.
        hit: bool (rows,).

    Warns (UserWarning, once) if several texts are read one by one.
    """
    layout = packed(rows) if packs(model, rows) else plain(rows)
    if layout.parents is None and len(layout.tokens) > 1:
        _tell(model)
    logprob, hit = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
    wanted: dict[int, list[tuple[int, int, int]]] = {}  # sequence -> (token in it, row, target token)
    for i, (row, places) in enumerate(zip(rows, layout.reads, strict=True)):
        for (s, t), target in zip(places, row.target_ids, strict=True):
            wanted.setdefault(s, []).append((t, i, target))
    with fused(model):
        for batch in batches(
            map(len, layout.tokens), min(TOKENS, TOKENS_CPU) if model.device.type == "cpu" else TOKENS
        ):
            reads = [(b, *read) for b, s in enumerate(batch) for read in wanted.get(s, ())]
            if not reads:
                continue
            places = list(dict.fromkeys(read[:2] for read in reads))
            row, token = torch.tensor(places, device=model.device).T
            states = _states(model, layout, batch, row, token)
            for owner, value, best in _read(model, states, places, reads):
                np.add.at(logprob, owner, value)
                np.logical_and.at(hit, owner, best)
    return logprob, hit


def packs(model: EditableModel, rows: Sequence[Row]) -> bool:
    """Can this model read `rows` as a tree: a tested architecture, an attention that takes any mask and sees all of a text."""
    config, window = model.config, window_of(model)
    known = config.model_type in TREES and model.anatomy.mlp is not None and not getattr(config, "alibi", False)
    seen = window is None or max((len(row.ids) for row in rows), default=0) <= window
    return known and seen and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def _tell(model: EditableModel) -> None:
    about = f"{model.config.model_type}, {getattr(model.config, '_attn_implementation', None)} attention"
    warnings.warn(
        f"model {model.name!r} ({about}) cannot read these texts as a tree: beginnings of prompts cannot be shared, so that "
        "each text is run by itself, which is slower",
        UserWarning,
        stacklevel=3,
    )


def plain(rows: Sequence[Row]) -> Sequences:
    """Each distinct text by itself, longest beginnings last; one that another begins with is read there."""
    texts: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    for text in sorted({row.ids for row in rows}, reverse=True):  # so a text follows right after those that it begins
        if not texts or texts[-1][: len(text)] != text:
            texts.append(text)
        place[text] = len(texts) - 1
    reads = [[(place[row.ids], position) for position in row.target_positions] for row in rows]
    return Sequences([list(text) for text in texts], None, reads)


def packed(rows: Sequence[Row], width: int = WIDTH) -> Sequences:
    """The tree of all texts, depth first, in sequences of at most `width` tokens (or the longest text)."""
    out = Sequences([[]], [[]], [[] for _ in rows])
    width = max(width, *(len(row.ids) for row in rows))
    path: list[int] = []  # places in the open sequence of the tokens of the last text
    before: tuple[int, ...] = ()
    for i in sorted(range(len(rows)), key=lambda i: rows[i].ids):
        ids = rows[i].ids
        shared = _shared(before, ids)
        if len(out.tokens[-1]) + len(ids) - shared > width:
            out.tokens.append([])
            out.parents.append([])
            shared = 0
        tokens, parents = out.tokens[-1], out.parents[-1]
        del path[shared:]
        for token in ids[shared:]:
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(token)
        out.reads[i] = [(len(out.tokens) - 1, path[position]) for position in rows[i].target_positions]
        before = ids
    return out


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))


@torch.inference_mode()
def _states(model: EditableModel, layout: Sequences, batch: Sequence[int], row: Tensor, token: Tensor) -> Tensor:
    """Final states (reads, d_model) behind the last norm, at the places row, token (reads,) of the batch."""
    ids, mask = pad_right([layout.tokens[s] for s in batch], model.device)
    if layout.parents is None:
        states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states[row.to(states.device), token.to(states.device)]
    seen = np.zeros((len(batch), ids.shape[1], ids.shape[1]), dtype=bool)
    seen[:, np.arange(ids.shape[1]), np.arange(ids.shape[1])] = True  # padding sees itself: no empty softmax
    for b, s in enumerate(batch):
        for t, parent in enumerate(layout.parents[s]):
            if parent >= 0:
                seen[b, t] |= seen[b, parent]
    depth = torch.from_numpy(seen.sum(-1) - 1).to(ids.device)
    hidden = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(
        torch.from_numpy(~seen), torch.finfo(model.dtype).min
    )
    with only(model, model.anatomy.n_layer - 1, row * ids.shape[1] + token):  # elsewhere the last MLP is never read
        states = model.body(
            input_ids=ids, attention_mask=hidden[:, None].to(ids.device), position_ids=depth, use_cache=False
        ).last_hidden_state
    return states[row.to(states.device), token.to(states.device)]


@torch.inference_mode()
def _read(
    model: EditableModel, states: Tensor, places: Sequence[Place], reads: Sequence[tuple[int, int, int, int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row, log-probability, is argmax) of target tokens; states (places, d_model); reads: (sequence, token in it, row,
    target token).
    """
    index = {place: n for n, place in enumerate(places)}
    at = np.array([index[read[:2]] for read in reads])
    owner, token = np.array([read[2] for read in reads]), np.array([read[3] for read in reads])
    step = max(1, LOGITS // model.config.vocab_size)
    for start in range(0, len(places), step):
        logits = model.logits(states[start : start + step]).float()
        here = np.flatnonzero((at >= start) & (at < start + step))
        n, target = (torch.from_numpy(x).to(logits.device) for x in (at[here] - start, token[here]))
        value = logits[n, target]
        best = value >= logits.amax(-1)[n]
        value = value - logits.logsumexp(-1)[n]
        yield owner[here], value.double().cpu().numpy(), best.cpu().numpy()


# From final states to losses: log-probabilities of tokens and divergence from a reference distribution.
#
# With a plain head the gradient with respect to the states is computed along with the loss, block by block, so that
# neither logits nor probabilities of more than one block are ever held (a vocabulary is hundreds of times wider than
# the states).


_ENTRIES = {"cpu": 2**23}  # of one block of logits, 32 MiB in float32: the head's matrix is then read seldom
_ENTRIES_ELSEWHERE = 2**28  # 1 GiB: on an accelerator all rows of a pass


def token_losses(model: EditableModel, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability (nats, float32) of `tokens` (n,) after `states` (n, d_model), and whether each is argmax.

    `states` are before the final norm. The loss is differentiable with respect to them.
    """
    normed = model.final_norm(states)
    if model.plain_head:
        return _Tokens.apply(normed, model.head.weight, model.head.bias, tokens)
    logits = model.logits(normed).float()
    picked = logits.gather(1, tokens[:, None])[:, 0]
    return torch.logsumexp(logits, 1) - picked, picked >= logits.detach().amax(1)


def log_distribution(model: EditableModel, states: Tensor) -> Tensor:
    """Log-probabilities (n, vocabulary), float32, after `states` (n, d_model) before the final norm."""
    return torch.log_softmax(model.logits(model.final_norm(states)).float(), dim=1)


def divergences(model: EditableModel, states: Tensor, reference: Tensor, direction: str) -> Tensor:
    """KL divergence (n,), nats, between `reference` (log-probabilities (n, vocabulary)) and what `states` predict.

    `direction` "reference" is KL(p_0 || p_delta), the published objective; "edited" is KL(p_delta || p_0), what the
    authors' code computes.
    """
    if model.plain_head:
        return _Divergence.apply(model.final_norm(states), model.head.weight, model.head.bias, reference, direction)
    now = log_distribution(model, states)
    p, q = (reference, now) if direction == "reference" else (now, reference)
    return (p.exp() * (p - q)).sum(1)


def _rows_at_once(weight: Tensor) -> int:
    return max(1, _ENTRIES.get(weight.device.type, _ENTRIES_ELSEWHERE) // len(weight))


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(states, weight, bias).float()


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        losses, best, slopes = [], [], []
        step = _rows_at_once(weight)
        for start in range(0, len(states), step):
            block, goal = states[start : start + step], tokens[start : start + step, None]
            logits = _logits(block, weight, bias)
            top, picked = logits.amax(1, keepdim=True), logits.gather(1, goal)
            logits.sub_(top).exp_()
            total = logits.sum(1, keepdim=True)
            losses.append((total.log() + top - picked)[:, 0])
            best.append((picked >= top)[:, 0])
            if ctx.needs_input_grad[0]:
                logits.div_(total).scatter_add_(1, goal, torch.full_like(picked, -1.0))
                slopes.append(logits.to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        correct = torch.cat(best)
        ctx.mark_non_differentiable(correct)
        return torch.cat(losses), correct

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return slopes * slope[:, None].to(slopes.dtype), None, None, None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor, direction: str) -> Tensor:  # noqa: ANN401
        losses, slopes = [], []
        step = _rows_at_once(weight)
        for start in range(0, len(states), step):
            now = torch.log_softmax(_logits(states[start : start + step], weight, bias), dim=1)
            old = base[start : start + step]
            if direction == "reference":
                p = old.exp()
                losses.append((p * (old - now)).sum(1))
                slope = now.exp_().sub_(p)
            else:
                p, gap = now.exp(), now.sub_(old)
                losses.append((p * gap).sum(1))
                slope = p.mul_(gap.sub_(losses[-1][:, None]))
            if ctx.needs_input_grad[0]:
                slopes.append(slope.to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return slopes * slope[:, None].to(slopes.dtype), None, None, None, None


Pair = tuple[str, str]


def target_logprobs(
    model: EditableModel, prompts: Sequence[str], targets: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean token log-probability of `targets` after `prompts` (nats; NaN where the model's output is), and all-argmax.

    `targets` holds one text per prompt, giving two arrays (prompts,), float64 and bool; or k texts per prompt, giving
    (prompts, k). Equal pairs are scored once (the neighbours of a thousand facts repeat each other), and texts share
    their beginnings (ketools.models.scoring).
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
