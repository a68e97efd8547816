"""Logit lens: what the model would say if it ended after layer l (nostalgebraist, 2020; Geva et al., arXiv 2203.14680).

The state behind each layer goes through the final norm and the head, as if it were the last one. Behind the last layer
this is the model's output. Early layers write in a basis of their own, so that a target that is not there yet may be
known already: causal tracing (probing.tracing) tells that.

A *tuned* lens (Belrose et al., arXiv 2303.08112) learns an affine map per layer first. It is left out: its library,
tuned-lens 0.2.0, finds the final norm by a list of classes of older models and has had no release for transformers 5.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.states import recorded
from ketools.models.tokens import Row, batches, make_rows, pad_right

_LOGITS_AT_ONCE = 2**24  # entries of one block of logits: 64 MiB in float32
_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def lens(model: EditableModel, prompt: str, k: int = 5) -> pd.DataFrame:
    """The `k` most probable next tokens behind each layer, at each position of `prompt`.

    Columns: layer (-1: what enters layer 0), position, token (the one that stands there), place (1 .. k), predicted
    (text), probability (float, 0..1). Layer by layer, positions and places ascending.
    Raises KetoolsError for a prompt without tokens or longer than the model's window, and k out of range.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise KetoolsError(f"k={k}: expected 1 to {model.config.vocab_size} tokens")
    (row,) = _rows(model, [prompt], None)
    best = [logits.softmax(-1).topk(k) for logits in _logits(model, _states(model, [row.ids]).flatten(0, 2))]
    probability = torch.cat([found.values for found in best]).flatten().tolist()
    tokens = torch.cat([found.indices for found in best]).flatten().tolist()
    n = len(row.ids)
    layer, position, place = _grid(model.anatomy.n_layer + 1, n, k)
    return pd.DataFrame(
        {
            "layer": [i - 1 for i in layer],
            "position": position,
            "token": [_word(model, row.ids[i]) for i in position],
            "place": [i + 1 for i in place],
            "predicted": [_word(model, token) for token in tokens],
            "probability": probability,
        }
    )


@torch.no_grad()
def lens_trace(model: EditableModel, prompts: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    """Probability and rank of each target's first token behind each layer, at each position of its prompt.

    Columns: prompt (its place in `prompts`), layer (-1: what enters layer 0), position, from_end (0: the prompt's last
    token, where the answer is read), token, target (text of its first token), p (0..1), rank (1: the most probable one).
    Raises KetoolsError for no prompts, another number of targets, a prompt without tokens or longer than the model's
    window, and a target without tokens.
    """
    if len(prompts) != len(targets) or not len(prompts):
        raise KetoolsError(
            f"got {len(prompts)} prompts and {len(targets)} targets; expected a target for each, at least one"
        )
    rows = _rows(model, prompts, targets)
    parts: dict[int, pd.DataFrame] = {}
    for some in batches([len(row.ids) for row in rows], _TOKENS_AT_ONCE):
        states = _states(model, [rows[i].ids for i in some])
        layers, _, length, _ = states.shape
        goal = torch.tensor([rows[i].target_ids[0] for i in some])
        found = _scores(model, states.flatten(0, 2), goal[None, :, None].expand(layers, -1, length).flatten())
        p, rank = (scores.view(layers, -1, length) for scores in found)
        for n, i in enumerate(some):
            parts[i] = _trace_frame(model, i, rows[i], p[:, n], rank[:, n])
    return pd.concat([parts[i] for i in range(len(rows))], ignore_index=True)


def _trace_frame(model: EditableModel, index: int, row: Row, p: Tensor, rank: Tensor) -> pd.DataFrame:
    n = len(row.ids)
    layer, position = _grid(len(p), n)
    return pd.DataFrame(
        {
            "prompt": index,
            "layer": [i - 1 for i in layer],
            "position": position,
            "from_end": [n - 1 - i for i in position],
            "token": [_word(model, row.ids[i]) for i in position],
            "target": _word(model, row.target_ids[0]),
            "p": p[:, :n].flatten().tolist(),
            "rank": rank[:, :n].flatten().tolist(),
        }
    )


def _rows(model: EditableModel, prompts: Sequence[str], targets: Sequence[str] | None) -> list[Row]:
    # Rows that end with their prompt.
    for prompt in prompts:
        if not prompt.strip():
            raise KetoolsError(f"prompt {prompt!r} is empty; give it some text")
    if targets is None:
        return make_rows(model, [prompt.rstrip(" ") for prompt in prompts])
    rows = make_rows(model, prompts, targets)
    return [Row(row.ids[: row.target_positions[0] + 1], None, (), row.target_ids) for row in rows]


def _states(model: EditableModel, rows: Sequence[Sequence[int]]) -> Tensor:
    # (layers + 1, rows, longest, d_model): what enters layer 0, and what each layer puts out.
    ids, mask = pad_right(rows, model.device)
    with recorded(model, ["embedding", "hidden"], len(rows)) as got:
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
    there = [got["embedding"][-1], *(got["hidden"][i] for i in range(model.anatomy.n_layer))]
    device = there[-1].device  # a model may be spread over several
    return torch.stack([states.to(device) for states in there])


def _logits(model: EditableModel, states: Tensor) -> Iterator[Tensor]:
    # Blocks of (states, vocabulary), float32.
    for block in states.split(max(1, _LOGITS_AT_ONCE // model.config.vocab_size)):
        yield model.logits(model.final_norm(block)).float()


def _scores(model: EditableModel, states: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    probability, rank, at = [], [], 0
    for logits in _logits(model, states):
        picked = logits.gather(1, goal[at : at + len(logits), None].to(logits.device))
        at += len(logits)
        probability.append((picked[:, 0] - logits.logsumexp(1)).exp())
        rank.append((logits > picked).sum(1) + 1)
    return torch.cat(probability), torch.cat(rank)


def _grid(*sizes: int) -> tuple[list[int], ...]:
    # Columns of the product of ranges, the last one running fastest.
    return tuple(torch.cartesian_prod(*(torch.arange(n) for n in sizes)).T.tolist())


def _word(model: EditableModel, token: int) -> str:
    return model.tokenizer.decode([token])
