"""What passes compute, recorded: hidden states, and what attention and MLPs write to the residual stream.

A layer of a decoder adds two things to the stream, h' = h + a + m: what its attention and what its MLP computed
(`EditableModel.sublayer` says where). Tracing and the norms of the residual stream all start here.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn

from ketools.models.model import EditableModel
from ketools.models.replay import Enough


@contextmanager
def recorded(model: EditableModel, what: Iterable[str], rows: int) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Within the block, what passes of `rows` rows compute: {name: {layer: (rows, length, d_model)}}.

    `what` names "embedding" (what enters layer 0, as layer -1), "hidden" (a layer's output), "attention" or "mlp" (what
    they add to the stream, before `residual_scale`). A layer that the pass does not reach is not there; a second pass
    overwrites the first.
    """
    states: dict[str, dict[int, Tensor]] = {name: {} for name in what}

    def keep(into: dict[int, Tensor], layer: int, out: Tensor) -> None:
        # A clone: Falcon adds the attention's output to the MLP's in place.
        into[layer] = out.detach().reshape(rows, -1, out.shape[-1]).clone()

    with ExitStack() as stack:
        for name, into in states.items():
            if name == "embedding":

                def enter(_: nn.Module, args: tuple, kwargs: dict, into: dict = into) -> None:
                    keep(into, -1, args[0] if args else kwargs["hidden_states"])

                stack.callback(model.layer(0).register_forward_pre_hook(enter, with_kwargs=True).remove)
                continue
            for layer in range(model.anatomy.n_layer):
                module = model.layer(layer) if name == "hidden" else model.sublayer(layer, name)

                def leave(_: nn.Module, __: object, out: Tensor | tuple, layer: int = layer, into: dict = into) -> None:
                    keep(into, layer, out[0] if isinstance(out, tuple) else out)

                stack.callback(module.register_forward_hook(leave).remove)
        yield states


@torch.no_grad()
def embedded(model: EditableModel, ids: Tensor, mask: Tensor, change: Tensor | None = None) -> Tensor:
    """What enters layer 0, (rows, length, d_model), for token ids padded on the right.

    `change` (rows, length, width of the embedding) is added to the token embeddings, before whatever the architecture
    does with them (positions, scales, norms).
    """

    def stop(*_: object) -> None:
        raise Enough

    def add(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out if change is None else out + change.to(out)

    with recorded(model, ["embedding"], len(ids)) as states, ExitStack() as stack:
        stack.callback(model.layer(0).register_forward_pre_hook(stop).remove)
        stack.callback(model.model.get_input_embeddings().register_forward_hook(add).remove)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with suppress(Enough):
            model.body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return states["embedding"][-1]
