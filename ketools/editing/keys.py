"""What step 2 reads from the model: the keys of facts at a layer, and the states they lead to now."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ketools.editing.contexts import LEVELS, FactRows, sharing
from ketools.editing.targets import tokens_at_once
from ketools.errors import NotFinite
from ketools.models.model import EditableModel
from ketools.models.replay import read_last, tell_unshared


def keys_and_states(model: EditableModel, rows: Sequence[FactRows], layer: int, top: int) -> tuple[Tensor, Tensor]:
    """Keys K1 (d_mlp, n) at `layer` and states (d_model, n) at the output of layer `top`, float64 on the CPU.

    Both at the subject's last token. A key is half the bare prompt's and half the mean of the prefixed prompts' (MEMIT,
    arXiv 2210.07229, equation 19); states are the bare prompt's. Tokens behind the subject are not run, nor layers
    above `layer` for the prefixed prompts or above `top` for the bare ones.

    Warns (UserWarning, once) of a model whose prompts share no beginnings.
    Raises KetoolsError if either is not finite.
    """
    bare = [fact.contexts[0].ids[: fact.contexts[0].subject_last + 1] for fact in rows]
    prefixed = [row.ids[: row.subject_last + 1] for fact in rows for row in fact.contexts[1:]]
    tell_unshared(model, [*bare, *prefixed], LEVELS)
    own, states = read_parts(model, bare, sharing(rows, [0]), key_layer=layer, state_layer=top)
    assert own is not None and states is not None
    keys = own.double()
    width = len(rows[0].contexts) - 1
    if width:
        other, _ = read_parts(model, prefixed, sharing(rows, range(1, width + 1)), key_layer=layer)
        assert other is not None
        keys = (keys + other.double().view(len(rows), width, -1).mean(1)) / 2
    for what, value in ((f"keys of layer {layer}", keys), (f"states of layer {top}", states)):
        if not value.isfinite().all():
            raise NotFinite(f"{what} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}")
    # Rounded once, so that keys kept in float32 for later batches are the very ones that were used.
    return keys.float().double().T.contiguous().cpu(), states.double().T.contiguous().cpu()


def read_parts(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    levels: Sequence[Sequence[int]] = (),
    *,
    key_layer: int | None = None,
    state_layer: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """As `read_last`, in passes of at most as many tokens, padded, as step 1 computes on at once."""
    limit = tokens_at_once(model, max(layer for layer in (key_layer, state_layer) if layer is not None))
    parts = _parts(rows, levels, limit)
    found = [
        read_last(
            model,
            [rows[i] for i in part],
            [[level[i] for i in part] for level in levels],
            key_layer=key_layer,
            state_layer=state_layer,
        )
        for part in parts
    ]
    order = torch.tensor([i for part in parts for i in part]).argsort()
    keys, states = zip(*found, strict=True)
    return _joined(keys, order), _joined(states, order)


def _parts(rows: Sequence[Sequence[int]], levels: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    # Places of rows, at most `limit` tokens a part, one row at least. By groups, not by length as elsewhere: rows that
    # begin alike stay together, and what they share is run once. Ascending, so that one part is the rows as they are.
    parts: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(rows)), key=lambda i: [level[i] for level in levels]):
        longest = max(longest, len(rows[i]))
        if parts and longest * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(i)
        else:
            parts.append([i])
            longest = len(rows[i])
    return [sorted(part) for part in parts]


def _joined(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known)[order.to(known[0].device)] if known else None


@torch.no_grad()
def before_norm(model: EditableModel, rows: Sequence[FactRows], layer: int, residuals: Tensor) -> Tensor:
    """What the output of the matrix of `layer` has to gain for the layer's output to gain `residuals` (d_model, n).

    The same, unless a norm stands between the MLP and the residual stream (Gemma 2 and 3, OLMo 2): there N(m) =
    g m / rms(m), and d = rms(m) r / g makes N(m + d) parallel to N(m) + r, and equal to it to first order in r. Its
    length is what the norm gives every vector, so that a large r is met in direction only. m is the output for the bare
    prompts at the subject's last token, as the weights are now. float64 on the CPU.
    """
    path = model.anatomy.post_norm
    if path is None:
        return residuals
    bare = [fact.contexts[0].ids[: fact.contexts[0].subject_last + 1] for fact in rows]
    keys, _ = read_parts(model, bare, sharing(rows, [0]), key_layer=layer)
    assert keys is not None
    out = model.mlp_out(layer)(keys)
    gain = model.layer(layer).get_submodule(path)(torch.ones_like(out[:1]))  # of a vector with rms 1: g
    rms = out.double().square().mean(1).sqrt()
    return residuals * rms.cpu() / gain.double().cpu().T
