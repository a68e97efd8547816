"""What step 2 reads from the model: the keys of facts at a layer, and the states they lead to now."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ketools.editing.rows import FactRows, sharing
from ketools.errors import NotFinite
from ketools.model import EditableModel
from ketools.replay import read_last


def keys_and_states(model: EditableModel, rows: Sequence[FactRows], layer: int, top: int) -> tuple[Tensor, Tensor]:
    """Keys K1 (d_mlp, n) at `layer` and states (d_model, n) at the output of layer `top`, float64 on the CPU.

    Both at the subject's last token. A key is half the bare prompt's and half the mean of the prefixed prompts' (MEMIT,
    arXiv 2210.07229, equation 19); states are the bare prompt's. Tokens behind the subject are not run, nor layers
    above `layer` for the prefixed prompts or above `top` for the bare ones.

    Raises KetoolsError if either is not finite.
    """
    bare = [fact.contexts[0].ids[: fact.contexts[0].subject_last + 1] for fact in rows]
    own, states = read_last(model, bare, sharing(rows, [0]), key_layer=layer, state_layer=top)
    assert own is not None and states is not None
    keys = own.double()
    width = len(rows[0].contexts) - 1
    if width:
        prefixed = [row.ids[: row.subject_last + 1] for fact in rows for row in fact.contexts[1:]]
        other, _ = read_last(model, prefixed, sharing(rows, range(1, width + 1)), key_layer=layer)
        assert other is not None
        keys = (keys + other.double().view(len(rows), width, -1).mean(1)) / 2
    for what, value in ((f"keys of layer {layer}", keys), (f"states of layer {top}", states)):
        if not value.isfinite().all():
            raise NotFinite(f"{what} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}")
    # Rounded once, so that keys kept in float32 for later batches are the very ones that were used.
    return keys.float().double().T.contiguous().cpu(), states.double().T.contiguous().cpu()


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
    keys, _ = read_last(model, bare, sharing(rows, [0]), key_layer=layer)
    assert keys is not None
    out = model.mlp_out(layer)(keys)
    gain = model.layer(layer).get_submodule(path)(torch.ones_like(out[:1]))  # of a vector with rms 1: g
    rms = out.double().square().mean(1).sqrt()
    return residuals * rms.cpu() / gain.double().cpu().T
