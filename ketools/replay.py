"""Run a model from the middle: shared and frozen prefixes, captured states, the layers above replayed.

Attention is causal. So whatever one changes at one token, the keys and values of all tokens before it stay; and a
change behind layer L leaves all layers up to L alone. The engine therefore

1. runs the tokens that a group of rows begins with once (ketools.prefix),
2. runs the rest of each row up to `start` on top of those, keeping keys and values of every layer,
3. runs the suffix from `start` on against that cache, frozen, and records what the model passes to each layer above L.

`Frozen.run` then calls the model's own layers above L with the model's own arguments, as often as one likes. Nothing
of an architecture is written again here: masks, rotations and caches are those that transformers made.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ketools.model import EditableModel
from ketools.prefix import Enough, FrozenLayer, Prefix, extend, prefill, stopped_at

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer


@dataclass
class Frozen:
    """Rows of a model, frozen before their suffix and up to layer L.

    `hidden` (rows, longest suffix, d_model) is what the model passes to layer L+1, suffixes padded on the right;
    `lengths` are the suffixes' true lengths. `calls` holds for each layer above L the other arguments of its call.
    """

    model: EditableModel
    layer: int
    hidden: Tensor
    lengths: Tensor
    calls: list[Call]
    cache: Cache

    def run(self, hidden: Tensor, reads: Tensor) -> Tensor:
        """States (n, d_model) before the final norm at `reads`, flat places row * longest + position, int64.

        `hidden` is of the shape of `self.hidden`. In the top layer the MLP is applied at `reads` only.
        """
        top = self.model.anatomy.n_layer - 1
        for offset, (args, kwargs) in enumerate(self.calls):
            index = self.layer + 1 + offset
            with _only(self.model, index, reads) if index == top else ExitStack():
                hidden = _first(self.model.layer(index)(hidden, *args, **kwargs))
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, reads.to(hidden.device))

    def select(self, rows: Tensor) -> "Frozen":
        """The same for some of the rows (int64 indices), in the order given."""
        cache = Cache(
            layers=[FrozenLayer(*(t[rows.to(t.device)] for t in (c.keys, c.values))) for c in self.cache.layers]
        )
        chosen: dict[int, Any] = {id(self.cache): cache}
        calls = [_select(call, rows, len(self.hidden), chosen) for call in self.calls]
        own = rows.to(self.hidden.device)
        return Frozen(self.model, self.layer, self.hidden[own], self.lengths[own], calls, cache)


@torch.no_grad()
def freeze(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    layer: int,
    levels: Sequence[Sequence[int]] = (),
) -> Frozen:
    """Freeze `rows` (token ids) before position `starts[i]` and at the output of `layer`; `levels` as in `prefill`."""
    prefix = prefill(model, [row[:start] for row, start in zip(rows, starts, strict=True)], levels)
    suffixes = [row[start:] for row, start in zip(rows, starts, strict=True)]
    top = model.anatomy.n_layer - 1
    above = range(layer + 1, top + 1)
    cache = Cache(layers=[FrozenLayer(c.keys, c.values) for c in prefix.cache.layers])
    heard: dict[int, Call] = {}
    with ExitStack() as stack:
        for index in above or (top + 1,):
            module = model.layer(index) if index <= top else model.final_norm

            def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                heard[index] = (args, kwargs)

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        if above:
            stack.enter_context(stopped_at(model, top))
        extend(model, Prefix(cache, prefix.mask), suffixes, left=False)
    hidden = _hidden(*heard[layer + 1])
    lengths = torch.tensor([len(s) for s in suffixes], device=hidden.device)
    # Layers up to `layer` are never asked again.
    kept = [c if i in above else FrozenLayer(c.keys[:, :, :0], c.values[:, :, :0]) for i, c in enumerate(cache.layers)]
    known = {id(cache): Cache(layers=kept)}
    calls = [_select(_others(*heard[index]), None, 0, known) for index in above]
    return Frozen(model, layer, hidden, lengths, calls, known[id(cache)])


@torch.no_grad()
def read_last(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    levels: Sequence[Sequence[int]] = (),
    *,
    key_layer: int | None = None,
    state_layer: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """At the last token of `rows`: the key of `key_layer` (rows, d_mlp), the output of `state_layer` (rows, d_model).

    The pass ends at the higher of the two layers, whose MLP sees the last tokens only; None for a layer not asked for.
    """
    top = max(-1 if layer is None else layer for layer in (key_layer, state_layer))
    got: dict[str, Tensor] = {}

    def key(_: nn.Module, args: tuple[Any, ...]) -> None:
        got["key"] = _last(args[0], len(rows))
        if state_layer is None or state_layer < top:
            raise Enough

    def state(_: nn.Module, args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        got["state"] = _last(_first(out), len(rows))
        if state_layer == top:
            raise Enough

    prefix = prefill(model, [row[:-1] for row in rows], levels, upto=top, whole=False)
    rests = [row[stem:] for row, stem in zip(rows, prefix.mask.sum(1).tolist(), strict=True)]
    longest = max(map(len, rests))
    with ExitStack() as stack:
        if key_layer is not None:
            stack.callback(model.mlp_out(key_layer).register_forward_pre_hook(key).remove)
        if state_layer is not None:
            stack.callback(model.layer(state_layer).register_forward_hook(state).remove)
        ends = torch.arange(longest - 1, len(rows) * longest, longest, device=model.device)
        stack.enter_context(_only(model, top, ends))
        extend(model, prefix, rests, left=True)
    return got.get("key"), got.get("state")


@torch.no_grad()
def run_until(model: EditableModel, layer: int, **inputs: Tensor) -> None:
    """A forward pass of the model's body that ends behind `layer`; hooks see what they want to see."""

    def stop(*_: object) -> None:
        raise Enough

    handle = model.layer(layer).register_forward_hook(stop)
    try:
        with suppress(Enough):
            model.body(**inputs, use_cache=False)
    finally:
        handle.remove()


@contextmanager
def _only(model: EditableModel, index: int, reads: Tensor) -> Iterator[None]:
    # The MLP works token by token: it is given the read ones only, and answers 0 elsewhere, where nobody looks.
    path = model.anatomy.mlp
    if path is None:
        yield
        return
    shapes: list[torch.Size] = []

    def gather(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor], dict] | None:
        if len(args) != 1 or kwargs or args[0].dim() != 3:
            return None
        shapes.append(args[0].shape)
        return (args[0].reshape(-1, args[0].shape[-1]).index_select(0, reads.to(args[0].device)),), {}

    def scatter(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if not shapes:
            return None
        rows, length, width = shapes.pop()
        return out.new_zeros(rows * length, width).index_copy(0, reads.to(out.device), out).view(rows, length, width)

    mlp = model.layer(index).get_submodule(path)
    with ExitStack() as stack:
        stack.callback(mlp.register_forward_pre_hook(gather, with_kwargs=True).remove)
        stack.callback(mlp.register_forward_hook(scatter).remove)
        yield


def _last(states: Tensor, rows: int) -> Tensor:
    # (rows, length, width); OPT's MLP sees (rows * length, width); (rows, width) where only last tokens were computed.
    return states.reshape(rows, -1, states.shape[-1])[:, -1].clone()


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    # A decoder layer returns a tensor in transformers 5 and a tuple in 4.
    return out[0] if isinstance(out, tuple) else out


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _others(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}


def _select(value: Any, rows: Tensor | None, n_rows: int, chosen: dict[int, Any], name: str = "") -> Any:  # noqa: ANN401
    # Picks rows of everything whose first dimension is the batch; `chosen` maps objects already handled.
    if id(value) in chosen:
        return chosen[id(value)]
    if isinstance(value, dict):
        return {k: v if k == "cache_position" else _select(v, rows, n_rows, chosen, k) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_select(v, rows, n_rows, chosen) for v in value)
    if rows is not None and isinstance(value, Tensor) and value.dim() > 1 and len(value) == n_rows > 1:
        chosen[id(value)] = value[rows.to(value.device)]
        return chosen[id(value)]
    if rows is not None and name == "alibi" and value is not None:  # BLOOM's biases: (rows * heads, 1, length)
        return value.unflatten(0, (n_rows, -1))[rows.to(value.device)].flatten(0, 1)
    return value
