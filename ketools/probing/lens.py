"""Logit lens: what the model would say if it ended after layer l (nostalgebraist, 2020; Geva et al., arXiv 2203.14680).

The state after each layer goes through the final norm and the head, as if that layer were the last. After the last
layer this is the model's output. Early layers write in a basis of their own, so the target may be known before it shows
here: causal tracing (probing.tracing) finds it.

A *tuned* lens (Belrose et al., arXiv 2303.08112) first learns an affine map per layer. It is left out: its library,
tuned-lens 0.2.0, finds the final norm by a list of older model classes and has no release for transformers 5.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.replay import recorded
from ketools.models.scoring import LOGITS
from ketools.models.tokens import batches, make_rows, pad_right, prompt_rows
from ketools.probing.recall import check_k

_TOKENS = 4096  # in one pass


@torch.no_grad()
def lens(model: EditableModel, prompt: str, k: int = 5) -> pd.DataFrame:
    """The `k` most probable next tokens after each layer, at each position of `prompt`.

    Columns: layer (-1: the input of layer 0), position, token (at this position), place (1 .. k), predicted (text),
    probability (float, 0..1). Sorted by layer, position and place. Raises KetoolsError for a prompt without tokens or
    longer than the model's window, and k out of range.
    """
    check_k(model, k)
    (row,) = prompt_rows(model, [prompt])
    top = [logits.softmax(-1).topk(k) for logits in _logits(model, _states(model, [row.ids]).flatten(0, 2))]
    predicted = torch.cat([block.indices for block in top]).flatten().tolist()
    shape = (model.anatomy.n_layer + 1, len(row.ids), k)
    layer, position, place = (index.reshape(-1) for index in np.indices(shape))
    words = {token: str(model.tokenizer.decode([token])) for token in {*row.ids, *predicted}}
    return pd.DataFrame(
        {
            "layer": layer - 1,
            "position": position,
            "token": [words[row.ids[i]] for i in position],
            "place": place + 1,
            "predicted": [words[token] for token in predicted],
            "probability": torch.cat([block.values for block in top]).flatten().tolist(),
        }
    )


@torch.no_grad()
def lens_trace(model: EditableModel, prompts: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    """Probability and rank of each target's first token after each layer, at each position of its prompt.

    Columns: prompt (its place in `prompts`), layer (-1: the input of layer 0), position, from_end (0: the prompt's last
    token, where the answer is read), token, target (text of its first token), p (0..1), rank (1: the most probable
    one). Raises KetoolsError for no prompts, a different number of targets, a prompt without tokens or longer than the
    model's window, and a target without tokens.
    """
    if len(prompts) != len(targets) or not len(prompts):
        raise KetoolsError(
            f"got {len(prompts)} prompts and {len(targets)} targets; expected a target for each, at least one"
        )
    prompt_rows(model, prompts)  # refuses blank ones
    rows = [row.first_token() for row in make_rows(model, prompts, targets)]
    parts: dict[int, pd.DataFrame] = {}
    for batch in batches([len(row.ids) for row in rows], _TOKENS):
        states = _states(model, [rows[i].ids for i in batch])
        layers, n, length, _ = states.shape
        goals = torch.tensor([rows[i].target_ids[0] for i in batch])[None, :, None].expand(layers, n, length).flatten()
        ps, ranks, at = [], [], 0
        for logits in _logits(model, states.flatten(0, 2)):
            picked = logits.gather(1, goals[at : at + len(logits), None].to(logits.device))
            at += len(logits)
            ps.append((picked[:, 0] - logits.logsumexp(1)).exp())
            ranks.append((logits > picked).sum(1) + 1)
        p, rank = (torch.cat(blocks).view(layers, n, length).cpu().numpy() for blocks in (ps, ranks))
        for r, i in enumerate(batch):
            row = rows[i]
            layer, position = (index.reshape(-1) for index in np.indices((layers, len(row.ids))))
            words = [str(model.tokenizer.decode([token])) for token in row.ids]
            columns = {
                "prompt": i,
                "layer": layer - 1,
                "position": position,
                "from_end": len(row.ids) - 1 - position,
                "token": [words[at] for at in position],
                "target": str(model.tokenizer.decode([row.target_ids[0]])),
                "p": p[:, r, : len(row.ids)].reshape(-1).astype(float),
                "rank": rank[:, r, : len(row.ids)].reshape(-1),
            }
            parts[i] = pd.DataFrame(columns)
    return pd.concat([parts[i] for i in range(len(rows))], ignore_index=True)


def _states(model: EditableModel, rows: Sequence[Sequence[int]]) -> Tensor:
    # (layers + 1, rows, longest, d_model): the input of layer 0 and the output of each layer.
    ids, mask = pad_right(rows, model.device)
    with recorded(model, ["embedding", "hidden"], len(rows)) as states:
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
    stream = [states["embedding"][-1], *(states["hidden"][i] for i in range(model.anatomy.n_layer))]
    return torch.stack([state.to(stream[-1].device) for state in stream])  # a model may be spread over several devices


def _logits(model: EditableModel, states: Tensor) -> Iterator[Tensor]:
    # Blocks of (states, vocabulary), float32.
    for block in states.split(max(1, LOGITS // model.config.vocab_size)):
        yield model.logits(model.final_norm(block)).float()
