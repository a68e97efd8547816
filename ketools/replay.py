"""Run a model from the middle: shared and frozen prefixes, captured states, the layers above replayed.

Attention is causal. So whatever one changes at one token, the keys and values of all tokens before it stay; and a
change behind layer L leaves all layers up to L alone. The engine therefore

1. runs the tokens that a group of rows begins with once (`groups`: rows with the same context prefix),
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
from transformers.cache_utils import Cache, DynamicLayer

from ketools.model import EditableModel


class _FrozenLayer(DynamicLayer):
    """Keys and values of the prefix; `update` returns them with the new ones behind and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class _Enough(Exception):  # noqa: N818 (a signal that ends a forward pass early, no error)
    pass


@dataclass
class Prefix:
    """Keys and values of rows up to where each is to go on: `mask` (rows, columns), 1 = a token, 0 = padding."""

    cache: Cache
    mask: Tensor


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
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
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
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, reads)

    def select(self, rows: Tensor) -> "Frozen":
        """The same for some of the rows (int64 indices), in the order given."""
        cache = Cache(layers=[_FrozenLayer(c.keys[rows], c.values[rows]) for c in self.cache.layers])
        chosen: dict[int, Any] = {id(self.cache): cache}
        calls = [_select(call, rows, len(self.hidden), chosen) for call in self.calls]
        return Frozen(self.model, self.layer, self.hidden[rows], self.lengths[rows], calls, cache)


@torch.no_grad()
def freeze(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    layer: int,
    groups: Sequence[int] | None = None,
) -> Frozen:
    """Freeze `rows` (token ids) before position `starts[i]` and at the output of `layer`."""
    prefix = prefill(model, [row[:start] for row, start in zip(rows, starts, strict=True)], groups)
    suffixes = [row[start:] for row, start in zip(rows, starts, strict=True)]
    keep = range(layer + 1, model.anatomy.n_layer)
    cache = Cache(layers=[_FrozenLayer(c.keys, c.values) for c in prefix.cache.layers])
    heard: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as stack:
        for index in (*keep, model.anatomy.n_layer):
            module = model.layer(index) if index < model.anatomy.n_layer else model.final_norm

            def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                heard[index] = (args, kwargs)

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        _extend(model, Prefix(cache, prefix.mask), suffixes, left=False)
    hidden = _hidden(*heard[layer + 1])
    calls = [_others(*heard[index]) for index in keep]
    lengths = torch.tensor([len(s) for s in suffixes], device=hidden.device)
    # Layers up to `layer` are never asked again.
    kept = Cache(
        layers=[
            c if i in keep else _FrozenLayer(c.keys[:, :, :0], c.values[:, :, :0]) for i, c in enumerate(cache.layers)
        ]
    )
    calls = [_select(call, None, 0, {id(cache): kept}) for call in calls]
    return Frozen(model, layer, hidden, lengths, calls, kept)


@torch.no_grad()
def read_last(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    groups: Sequence[int] | None = None,
    *,
    key_layer: int | None = None,
    state_layer: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """At the last token of `rows`: the key of `key_layer` (rows, d_mlp), the output of `state_layer` (rows, d_model).

    The forward pass ends at the higher of the two layers; None for a layer that was not asked for.
    """
    top = max(-1 if layer is None else layer for layer in (key_layer, state_layer))
    got: dict[str, Tensor] = {}

    def key(_: nn.Module, args: tuple[Any, ...]) -> None:
        got["key"] = args[0][:, -1].clone()
        if state_layer is None or state_layer < top:
            raise _Enough

    def state(_: nn.Module, args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        got["state"] = _first(out)[:, -1].clone()
        if state_layer == top:
            raise _Enough

    prefix = prefill(model, [row[:-1] for row in rows], groups, upto=top, whole=False)
    rests = [row[stem:] for row, stem in zip(rows, prefix.mask.sum(1).tolist(), strict=True)]
    with ExitStack() as stack:
        if key_layer is not None:
            stack.callback(model.mlp_out(key_layer).register_forward_pre_hook(key).remove)
        if state_layer is not None:
            stack.callback(model.layer(state_layer).register_forward_hook(state).remove)
        stack.enter_context(suppress(_Enough))
        _extend(model, prefix, rests, left=True)
    return got.get("key"), got.get("state")


@torch.no_grad()
def prefill(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    groups: Sequence[int] | None = None,
    *,
    upto: int | None = None,
    whole: bool = True,
) -> Prefix:
    """Keys and values of `rows`, those of tokens that all rows of a group begin with computed once.

    With `whole=False` only these common tokens are run. `upto` ends the passes behind that layer.
    """
    stems, of_row = _stems(rows, groups if _shareable(model) and groups is not None else None)
    with _until(model, upto):
        prefix = Prefix(
            Cache(layer_class_to_replicate=DynamicLayer),
            torch.zeros(len(stems), 0, dtype=torch.long, device=model.device),
        )
        prefix = _extend(model, prefix, stems, left=True)
        index = torch.tensor(of_row, device=model.device)
        for layer in prefix.cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        prefix = Prefix(prefix.cache, prefix.mask[index])
        if whole:
            rests = [row[len(stems[s]) :] for row, s in zip(rows, of_row, strict=True)]
            prefix = _extend(model, prefix, rests, left=True)
    return prefix


@torch.no_grad()
def run_until(model: EditableModel, layer: int, **inputs: Tensor) -> None:
    """A forward pass of the model's body that ends behind `layer`; hooks see what they want to see."""
    with _until(model, layer), suppress(_Enough):
        model.body(**inputs, use_cache=False)


def _extend(model: EditableModel, prefix: Prefix, rows: Sequence[Sequence[int]], *, left: bool) -> Prefix:
    # Runs `rows` on top of `prefix`, padded on the left or the right. Padding never reaches a token: it is masked, and
    # its keys and values are zeroed, since whatever a fully masked place computes may be no number.
    longest = max(len(row) for row in rows)
    if longest == 0 and prefix.mask.shape[1] > 0:
        return prefix
    longest = max(longest, 1)
    pads = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    ids = torch.tensor([[*p, *r] if left else [*r, *p] for p, r in zip(pads, rows, strict=True)], device=model.device)
    new = torch.tensor([[*p, *o] if left else [*o, *p] for p, o in zip(pads, ones, strict=True)], device=model.device)
    mask = torch.cat([prefix.mask, new], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -longest:]
    with suppress(_Enough):
        model.body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
    if not new.all():
        empty = (mask == 0)[:, None, :, None]
        for layer in prefix.cache.layers:
            if layer.keys.shape[-2] == mask.shape[1]:
                layer.keys, layer.values = layer.keys.masked_fill(empty, 0), layer.values.masked_fill(empty, 0)
    return Prefix(prefix.cache, mask)


def _stems(rows: Sequence[Sequence[int]], groups: Sequence[int] | None) -> tuple[list[Sequence[int]], list[int]]:
    # The tokens that all rows of a group begin with, and the group of each row. Without groups each row is its own.
    if groups is None:
        return list(rows), list(range(len(rows)))
    members: dict[int, list[Sequence[int]]] = {}
    for row, group in zip(rows, groups, strict=True):
        members.setdefault(group, []).append(row)
    names = list(members)
    stems = []
    for name in names:
        low, high = min(members[name]), max(members[name])  # what these two share, all between them share
        n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        stems.append(low[:n])
    return stems, [names.index(group) for group in groups]


def _shareable(model: EditableModel) -> bool:
    # Padding between a shared stem and the rest would count in a window of attention.
    config = model.model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


@contextmanager
def _until(model: EditableModel, layer: int | None) -> Iterator[None]:
    if layer is None or layer == model.anatomy.n_layer - 1:
        yield
        return

    def stop(*_: object) -> None:
        raise _Enough

    handle = model.layer(layer).register_forward_hook(stop)
    try:
        yield
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
        return (args[0].reshape(-1, args[0].shape[-1]).index_select(0, reads),), {}

    def scatter(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if not shapes:
            return None
        rows, length, width = shapes.pop()
        return out.new_zeros(rows * length, width).index_copy(0, reads, out).view(rows, length, width)

    mlp = model.layer(index).get_submodule(path)
    with ExitStack() as stack:
        stack.callback(mlp.register_forward_pre_hook(gather, with_kwargs=True).remove)
        stack.callback(mlp.register_forward_hook(scatter).remove)
        yield


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    # A decoder layer returns a tensor in transformers 5 and a tuple in 4.
    return out[0] if isinstance(out, tuple) else out


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _others(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}


def _select(value: Any, rows: Tensor | None, n_rows: int, chosen: dict[int, Any]) -> Any:  # noqa: ANN401
    # Picks rows of everything whose first dimension is the batch; `chosen` maps objects already handled.
    if id(value) in chosen:
        return chosen[id(value)]
    if isinstance(value, dict):
        return {k: v if k == "cache_position" else _select(v, rows, n_rows, chosen) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_select(v, rows, n_rows, chosen) for v in value)
    if rows is not None and isinstance(value, Tensor) and value.dim() > 1 and len(value) == n_rows > 1:
        chosen[id(value)] = value[rows]
        return chosen[id(value)]
    return value
