"""Where a layer's attention and MLP write into the residual stream: the modules whose outputs are its summands.

A layer of a decoder adds two things to the stream, h' = h + a + m: what its attention and what its MLP computed. `site`
finds the module that puts out a or m: the last matrix of the part, or the norm behind it where an architecture has one
(Gemma 2 and 3, OLMo 2 and 3). Measuring, replacing and summing contributions all start here.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.replay import Enough

SUBLAYERS = ("attention", "mlp")
# The norm behind the attention, by the norm behind the MLP that the anatomy names.
_POST_ATTENTION = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}


def site(model: EditableModel, layer: int, sublayer: str) -> nn.Module:
    """The module of `layer` whose output is the summand of its "attention" or "mlp".

    Raises KetoolsError for a layer that is not there or has no attention that writes to the residual stream.
    """
    assert sublayer in SUBLAYERS, f"no sublayer {sublayer!r}"
    block, post = model.layer(layer), model.anatomy.post_norm
    if post is not None:
        path = post if sublayer == "mlp" else _POST_ATTENTION.get(post, "")
        return block.get_submodule(path) if path else _attention_out(model, layer)
    return model.mlp_out(layer) if sublayer == "mlp" else _attention_out(model, layer)


def scale(model: EditableModel) -> float:
    """The number that a layer multiplies its summands with before adding them (Granite's; 1 elsewhere)."""
    return float(getattr(model.config, "residual_multiplier", 1.0))


@contextmanager
def heard(
    model: EditableModel, what: Iterable[str], rows: int, first: int = 0
) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Within the block, what passes are heard to compute: {name: {layer: (rows, length, d_model)}}.

    `what` names "hidden" (a layer's output), "attention" or "mlp" (its summands, without `scale`); layers from `first`
    on are heard, a layer that the pass does not reach is not there. A second pass overwrites the first.
    """
    got: dict[str, dict[int, Tensor]] = {name: {} for name in what}
    with ExitStack() as stack:
        for name, into in got.items():
            for layer in range(first, model.anatomy.n_layer):
                module = model.layer(layer) if name == "hidden" else site(model, layer, name)

                def hear(_: nn.Module, __: object, out: Tensor | tuple, layer: int = layer, into: dict = into) -> None:
                    states = out[0] if isinstance(out, tuple) else out
                    # A clone: Falcon adds the attention's output to the MLP's in place.
                    into[layer] = states.detach().reshape(rows, -1, states.shape[-1]).clone()

                stack.callback(module.register_forward_hook(hear).remove)
        yield got


@contextmanager
def heard_entering(model: EditableModel) -> Iterator[list[Tensor]]:
    """Within the block, what enters layer 0 in each pass, (rows, length, d_model), in a list."""
    got: list[Tensor] = []

    def hear(_: nn.Module, args: tuple, kwargs: dict) -> None:
        got.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = model.layer(0).register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield got
    finally:
        handle.remove()


@torch.no_grad()
def entering(model: EditableModel, ids: Tensor, mask: Tensor, change: Tensor | None = None) -> Tensor:
    """What enters layer 0, (rows, length, d_model), for token ids padded on the right.

    `change` (rows, length, width of the embedding) is added to the token embeddings, before whatever the architecture
    does with them (positions, scales, norms).
    """

    def stop(*_: object) -> None:
        raise Enough

    def add(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out if change is None else out + change.to(out)

    with heard_entering(model) as got, ExitStack() as stack:
        stack.callback(model.layer(0).register_forward_pre_hook(stop).remove)
        stack.callback(model.model.get_input_embeddings().register_forward_hook(add).remove)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with suppress(Enough):
            model.body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return got[0]


def _attention_out(model: EditableModel, layer: int) -> nn.Module:
    found = None
    for path, module in model.layer(layer).named_modules():
        if isinstance(module, nn.Linear | Conv1D) and "att" in path.lower() and "cross" not in path.lower():
            width = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
            found = module if width == model.anatomy.d_model else found
    if found is None:
        raise KetoolsError(
            f"model {model.name!r}: layer {layer} has no attention that ends in a matrix to the model's width "
            f"{model.anatomy.d_model}; tracing and attribution of attention need one, those of the MLP and of hidden "
            "states do not"
        )
    return found
