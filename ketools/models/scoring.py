"""Teacher-forced scores of targets after prompts: the one way in which anything here asks a model for probabilities.

Scores of text. A thousand facts with their paraphrases, ten neighbours and two targets each are some 26,000 texts, but they
are made of few templates: as a tree of tokens they have about half as many. `packed` lays the tree out depth first in rows
of WIDTH tokens; a mask lets each token see its ancestors alone, and its position is its depth, so that the model computes
for every token what it computes in the plain text, to rounding. The MLP of the last layer works only at the places that
are read, a third of a tree's tokens. Architectures for which this is tested read trees; all others, and texts longer than
a window of attention, are read one by one, except a text that another one begins with. A UserWarning says so.
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
TOKENS = 8192  # of a forward pass: enough to fill an accelerator, little memory
TOKENS_CPU = 2048  # the activations of an MLP stay in the cache: a third faster than 8192 on wide MLPs
LOGITS = 2**24  # entries of one block of logits: 64 MiB in float32
# Positions are given as ids, a mask of four dimensions reaches all layers as it is.
TREES = ("gpt2", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2",
         "stablelm", "falcon")  # fmt: skip
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")  # entries of a config that set one


def target_logprobs(
    model: EditableModel,
    prompts: Sequence[str],
    targets: Sequence[str] | Sequence[Sequence[str]],
    glue: Sequence[bool | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean token log-probability of `targets` after `prompts` (nats; NaN where the model's output is), and all-argmax.

    `targets` holds one text per prompt, giving two arrays (prompts,), float64 and bool; or k texts per prompt, giving
    (prompts, k). `glue`: one for each prompt, as for `make_rows`. Equal pairs are scored once (the neighbours of a thousand facts repeat each other), and texts share
    their beginnings.
    """
    nested = len(targets) > 0 and not isinstance(targets[0], str)
    width = len(targets[0]) if nested else 1
    each = [(target,) if isinstance(target, str) else tuple(target) for target in targets]
    glues = glue or [None] * len(prompts)
    pairs = [(p, t, g) for p, ts, g in zip(prompts, each, glues, strict=True) for t in ts]
    assert len(pairs) == width * len(prompts), "every prompt needs the same number of targets"
    if not pairs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    asked, wanted, joints = zip(*place, strict=True)
    rows = make_rows(model, asked, wanted, glue=joints)
    logprob, hit = row_scores(model, rows)
    logprob /= [len(row.target_ids) for row in rows]
    back = np.array([place[pair] for pair in pairs])
    shape = (len(prompts), width) if nested else (len(prompts),)
    return logprob[back].reshape(shape), hit[back].reshape(shape)


def score_pairs(
    model: EditableModel, pairs: Sequence[tuple[str, str]], glue: Sequence[bool | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Teacher-forced probability of each target after its prompt, and whether it is the argmax throughout.

    Args:
        model: the model in its current state, edits included.
        pairs: n pairs (prompt, target).
        glue: for each pair what separates the two (False: a space); None: the text decides.

    Returns:
        p: float64 (n,), P(o) = exp(-mean token NLL of o); 0 where the model's output is NaN, because a model that has
            collapsed gives no probability to anything and must not drop out of a mean.
        hit: bool (n,), every token of the target is the argmax at its position.
    """
    logprob, hit = target_logprobs(model, [prompt for prompt, _ in pairs], [target for _, target in pairs], glue)
    return np.nan_to_num(np.exp(logprob), nan=0.0), hit & ~np.isnan(logprob)


def choice_logprobs(model: EditableModel, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Log-probability of each choice, all its tokens, right after its prompt.

    Args:
        model: the model in its current state.
        prompts: n texts that end where the choice comes.
        choices: for each prompt its choices, with or without their leading space.

    Returns:
        n arrays float64 (nats, the sum over a choice's tokens), one entry per choice.

    Raises:
        KetoolsError: two choices of a prompt are the same tokens.
    """
    asked = [(prompt, choice.strip()) for prompt, options in zip(prompts, choices, strict=True) for choice in options]
    rows = make_rows(model, [p for p, _ in asked], [c for _, c in asked])
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
    """Log-probability of each row's target, and whether all its tokens are the argmax.

    Returns:
        logprob: float64 (rows,), nats, the sum over the target's tokens; NaN where the model's output is.
        hit: bool (rows,).

    Warns (UserWarning, once) if several texts are read one by one.
    """
    logprob, hit, _ = _read(model, rows)
    return logprob, hit


def argmaxes(model: EditableModel, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """For each row the model's most probable token at each place of its target, read after the target's tokens before."""
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
            f"model {model.name!r} ({about}) cannot read these texts as a tree: beginnings of prompts cannot be shared, "
            "so that each text is run by itself, which is slower",
            UserWarning,
            stacklevel=3,
        )
    logprob, hit = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
    first = np.zeros((len(rows), max((len(row.target_ids) for row in rows), default=0)), dtype=np.int64)
    wanted: dict[int, list[tuple[int, int, int, int]]] = {}  # sequence -> (token in it, row, target token, its place)
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
    """What goes through the model: the `tokens` of each sequence, the parent of each token in its sequence (-1 at a
    beginning; `parents` is None for plain texts), and for each row the (sequence, token in it) where its predictions
    are read.
    """

    tokens: list[list[int]]
    parents: list[list[int]] | None
    reads: list[list[tuple[int, int]]]


def window_of(model: EditableModel) -> int | None:
    """Tokens that the narrowest layer of the model attends to; None: all of them, 0: fewer, the config not saying how many."""
    config = model.config
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    sizes = [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size]
    return min(sizes, default=None if kinds <= {"full_attention", "global"} else 0)


def packs(model: EditableModel, rows: Sequence[Row]) -> bool:
    """Whether the model can read `rows` as a tree: a tested architecture with an attention that takes any mask and sees
    all of a text.
    """
    config, window = model.config, window_of(model)
    known = config.model_type in TREES and model.anatomy.mlp is not None and not getattr(config, "alibi", False)
    seen = window is None or max((len(row.ids) for row in rows), default=0) <= window
    return known and seen and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")


def plain(rows: Sequence[Row]) -> Layout:
    """Each distinct text by itself, longest beginnings last; one that another begins with is read there."""
    texts: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
    for text in sorted({row.ids for row in rows}, reverse=True):  # so a text follows right after those that it begins
        if not texts or texts[-1][: len(text)] != text:
            texts.append(text)
        place[text] = len(texts) - 1
    reads = [[(place[row.ids], position) for position in row.target_positions] for row in rows]
    return Layout([list(text) for text in texts], None, reads)


def packed(rows: Sequence[Row], width: int | None = None) -> Layout:
    """The tree of all texts, depth first, in sequences of at most `width` tokens (None: WIDTH) or the longest text."""
    width = max(WIDTH if width is None else width, *(len(row.ids) for row in rows))
    all_tokens: list[list[int]] = [[]]
    all_parents: list[list[int]] = [[]]
    reads: list[list[tuple[int, int]]] = [[] for _ in rows]
    path: list[int] = []  # places in the open sequence of the tokens of the last text
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
        seen[:, np.arange(length), np.arange(length)] = True  # padding sees itself: no empty softmax
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
