"""Teacher-forced scores of targets after prompts: the only code that asks a model for probabilities.

Texts are scored as a tree. A thousand facts with their paraphrases, ten neighbours and two targets each are some 26,000
texts made from few templates; a tree of their tokens is about half as large. `packed` lays the tree out depth first in
rows of WIDTH tokens. A mask lets each token see only its ancestors, and its position is its depth, so that the model
computes the same for every token as in the plain text, up to rounding. The MLP of the last layer runs only at the
places that are read, a third of a tree's tokens. Trees are used for the architectures for which this is tested. All
others, and texts longer than an attention window, are run one by one, except a text that another one begins with; a
UserWarning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.replay import only
from ketools.models.tokens import Row, batches, make_rows, pad_right

WIDTH = 128  # tokens of a packed row; wide enough that repeating a beginning in the next row costs little
TOKENS = 8192  # in a forward pass: enough to fill an accelerator, little memory
TOKENS_CPU = 2048  # keeps the activations of an MLP in the cache: a third faster than 8192 on wide MLPs
LOGITS = 2**24  # entries of one block of logits: 64 MiB in float32
# Architectures that take positions as ids and pass a four-dimensional mask to all layers unchanged.
TREES = ("gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2",
         "stablelm", "falcon")  # fmt: skip
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")  # entries of a config that limit attention


def target_logprobs(
    model: EditableModel,
    prompts: Sequence[str],
    targets: Sequence[str] | Sequence[Sequence[str]],
    glue: Sequence[bool | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean token log-probability of `targets` after `prompts` (nats; NaN where the model's output is), and all-argmax.

    `targets` holds one text per prompt, giving two arrays (prompts,), float64 and bool; or k texts per prompt, giving
    (prompts, k). `glue`: one per prompt, as for `make_rows`. Equal pairs are scored once (the neighbours of a thousand
    facts repeat), and texts share their prefixes.
    """
    nested = len(targets) > 0 and not isinstance(targets[0], str)
    width = len(targets[0]) if nested else 1
    options = [(target,) if isinstance(target, str) else tuple(target) for target in targets]
    glues = glue or [None] * len(prompts)
    pairs = [(p, t, g) for p, ts, g in zip(prompts, options, glues, strict=True) for t in ts]
    assert len(pairs) == width * len(prompts), "every prompt needs the same number of targets"
    if not pairs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    texts, wanted, glues_once = zip(*place, strict=True)
    rows = make_rows(model, texts, wanted, glue=glues_once)
    logprob, hit = row_scores(model, rows)
    logprob /= [len(row.target_ids) for row in rows]
    back = np.array([place[pair] for pair in pairs])
    shape = (len(prompts), width) if nested else (len(prompts),)
    return logprob[back].reshape(shape), hit[back].reshape(shape)


def score_pairs(
    model: EditableModel, pairs: Sequence[tuple[str, str]], glue: Sequence[bool | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced probability of each target after its prompt, and whether it is the argmax throughout.

    `pairs` are n (prompt, target); `glue` says what separates each pair (False: a space; None: the text decides).
    Returns p, float64 (n,), P(o) = exp(-mean token NLL of o), and hit, bool (n,): every token of the target is the
    argmax at its position. p is 0 where the model's output is NaN: a collapsed model gives no probability to anything
    and must not drop out of a mean.
    """
    logprob, hit = target_logprobs(model, [prompt for prompt, _ in pairs], [target for _, target in pairs], glue)
    return np.nan_to_num(np.exp(logprob), nan=0.0), hit & ~np.isnan(logprob)


def choice_logprobs(model: EditableModel, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Log-probability (nats, the sum over all its tokens) of each choice after its prompt.

    `prompts` are n texts, which the choices continue, with or without a leading space. Returns n float64 arrays with
    one entry per choice. Raises KetoolsError if two choices of a prompt are the same tokens.
    """
    pairs = [(prompt, choice.strip()) for prompt, options in zip(prompts, choices, strict=True) for choice in options]
    rows = make_rows(model, [p for p, _ in pairs], [c for _, c in pairs])
    logprob, _ = row_scores(model, rows)
    scores, start = [], 0
    for prompt, options in zip(prompts, choices, strict=True):
        end = start + len(options)
        if len({row.target_ids for row in rows[start:end]}) < len(options):
            raise KetoolsError(
                f"prompt {prompt!r}: two of the choices {list(options)} are the same to the model; expected choices that differ"
            )
        scores.append(logprob[start:end])
        start = end
    return scores


def row_scores(model: EditableModel, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each row's target (nats, the sum over its tokens; NaN where the model's output is), float64
    (rows,), and whether all its tokens are the argmax, bool (rows,). Warns (UserWarning, once) if several texts are
    read one by one.
    """
    logprob, hit, _ = _read(model, rows)
    return logprob, hit


def argmaxes(model: EditableModel, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """For each row the most probable token at each position of its target, given the target's earlier tokens."""
    _, _, first = _read(model, rows, choices=True)
    return [tuple(ids[: len(row.target_ids)].tolist()) for ids, row in zip(first, rows, strict=True)]


def _read(
    model: EditableModel, rows: Sequence[Row], choices: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # logprob and hit of `row_scores`; with `choices` the argmax at each place of the targets, int64 (rows, longest target).
    layout = packed(rows) if packs(model, rows) else plain(rows)
    if layout.parents is None and len(layout.tokens) > 1:
        about = f"{model.config.model_type}, {getattr(model.config, '_attn_implementation', None)} attention"
        warnings.warn(
            f"model {model.name!r} ({about}) cannot read these texts as a tree: prefixes of prompts cannot be shared, "
            "so that each text is run separately, which is slower",
            UserWarning,
            stacklevel=3,
        )
    logprob, hit = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
    first = np.zeros((len(rows), max((len(row.target_ids) for row in rows), default=0)), dtype=np.int64)
    # sequence -> (position in it, row, target token, its number)
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}
    for i, (row, places) in enumerate(zip(rows, layout.reads, strict=True)):
        for n, ((sequence, at), target) in enumerate(zip(places, row.target_ids, strict=True)):
            wanted.setdefault(sequence, []).append((at, i, target, n))
    limit = min(TOKENS, TOKENS_CPU) if model.device.type == "cpu" else TOKENS
    step = max(1, LOGITS // model.config.vocab_size)
    with torch.inference_mode():
        for batch in batches(map(len, layout.tokens), limit):
            reads = [(b, *read) for b, sequence in enumerate(batch) for read in wanted.get(sequence, ())]
            if not reads:
                continue
            index = {place: n for n, place in enumerate(dict.fromkeys(read[:2] for read in reads))}
            states = _final_states(model, layout, batch, torch.tensor(list(index), device=model.device))
            slot = np.array([index[read[:2]] for read in reads])
            owner, token, nth = np.array([read[2:] for read in reads]).T
            for start in range(0, len(index), step):
                logits = model.logits(states[start : start + step]).float()
                here = np.flatnonzero((slot >= start) & (slot < start + step))
                entry, answer = (torch.from_numpy(x).to(logits.device) for x in (slot[here] - start, token[here]))
                value = logits[entry, answer]
                best = value >= logits.amax(-1)[entry]
                value = value - logits.logsumexp(-1)[entry]
                np.add.at(logprob, owner[here], value.double().cpu().numpy())
                np.logical_and.at(hit, owner[here], best.cpu().numpy())
                if choices:
                    first[owner[here], nth[here]] = logits.argmax(-1)[entry].cpu().numpy()
    return logprob, hit, first


@dataclass
class Layout:
    """The input of the model: the `tokens` of each sequence, the parent of each token in it (-1 at a beginning;
    `parents` is None for plain texts), and for each row the (sequence, position) where its predictions are read.
    """

    tokens: list[list[int]]
    parents: list[list[int]] | None
    reads: list[list[tuple[int, int]]]


def window_of(model: EditableModel) -> int | None:
    """Tokens to which the narrowest layer attends; None: all, 0: limited, by a number that the config does not give."""
    config = model.config
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    sizes = [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size]
    return min(sizes, default=None if kinds <= {"full_attention", "global"} else 0)


def packs(model: EditableModel, rows: Sequence[Row]) -> bool:
    """Whether the model can read `rows` as a tree: a tested architecture, with attention to all of a text by any mask."""
    config, window = model.config, window_of(model)
    known = config.model_type in TREES and model.anatomy.mlp is not None and not getattr(config, "alibi", False)
    seen = window is None or max((len(row.ids) for row in rows), default=0) <= window
    return known and seen and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def plain(rows: Sequence[Row]) -> Layout:
    """Each distinct text by itself, except that a text with which another one begins is read there."""
    texts: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    for text in sorted({row.ids for row in rows}, reverse=True):  # a text directly follows those that begin with it
        if not texts or texts[-1][: len(text)] != text:
            texts.append(text)
        place[text] = len(texts) - 1
    reads = [[(place[row.ids], position) for position in row.target_positions] for row in rows]
    return Layout([list(text) for text in texts], None, reads)


def packed(rows: Sequence[Row], width: int | None = None) -> Layout:
    """The tree of all texts, depth first, in sequences of at most `width` tokens (None: WIDTH) or the longest text."""
    width = max([WIDTH if width is None else width, *(len(row.ids) for row in rows)])
    all_tokens: list[list[int]] = [[]]
    all_parents: list[list[int]] = [[]]
    reads: list[list[tuple[int, int]]] = [[] for _ in rows]
    path: list[int] = []  # positions of the tokens of the last text in the open sequence
    before: tuple[int, ...] = ()
    for i in sorted(range(len(rows)), key=lambda i: rows[i].ids):
        ids = rows[i].ids
        shared = next(
            (n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        if len(all_tokens[-1]) + len(ids) - shared > width:
            all_tokens.append([])
            all_parents.append([])
            shared = 0
        tokens, parents = all_tokens[-1], all_parents[-1]
        del path[shared:]
        for token in ids[shared:]:
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(token)
        reads[i] = [(len(all_tokens) - 1, path[position]) for position in rows[i].target_positions]
        before = ids
    return Layout(all_tokens, all_parents, reads)


def _final_states(model: EditableModel, layout: Layout, batch: Sequence[int], places: Tensor) -> Tensor:
    # States (places, d_model) after the final norm, at `places` (places, 2): row of the batch and token in it.
    ids, mask = pad_right([layout.tokens[sequence] for sequence in batch], model.device)
    if layout.parents is None:
        states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    else:
        n, length = ids.shape
        seen = np.zeros((n, length, length), dtype=bool)
        seen[:, np.arange(length), np.arange(length)] = True  # padding sees itself, to avoid an empty softmax
        for b, sequence in enumerate(batch):
            for at, parent in enumerate(layout.parents[sequence]):
                if parent >= 0:
                    seen[b, at] |= seen[b, parent]
        depth = torch.from_numpy(seen.sum(-1) - 1).to(ids.device)
        hidden = torch.zeros(seen.shape, dtype=model.dtype)
        hidden = hidden.masked_fill_(torch.from_numpy(~seen), torch.finfo(model.dtype).min)[:, None].to(ids.device)
        inputs = {"input_ids": ids, "attention_mask": hidden, "position_ids": depth, "use_cache": False}
        with only(model, model.anatomy.n_layer - 1, places[:, 0] * length + places[:, 1]):
            states = model.body(**inputs).last_hidden_state
    row, at = places.to(states.device).T
    return states[row, at]
