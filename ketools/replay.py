"""Run a model from the middle: shared and frozen prefixes, captured states, the layers above replayed.

Attention is causal. So whatever one changes at one token, the keys and values of all tokens before it stay; and a
change behind layer L leaves all layers up to L alone. The engine therefore

1. runs the tokens that a group of rows begins with once (ketools.prefix),
2. runs the rest of each row up to `start` on top of those, keeping keys and values of every layer,
3. runs the suffix from `start` on against that cache, frozen, and records what the model passes to each layer above L.

`Frozen.run` then calls the model's own layers above L with the model's own arguments, as often as one likes. Nothing
of an architecture is written again here: masks, rotations and caches are those that transformers made.

Rows longer than a window of attention share no beginnings (ketools.prefix). A model that carries a recurrent state
beside keys and values (LFM2, Falcon-H1, RecurrentGemma) cannot go on from a cache that stays as it is: its rows are kept
whole, and only the layers up to L are spared; `first` says where a row's change begins. `prefix.tell_unshared` warns of
both.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ketools.errors import KetoolsError
from ketools.hooks import Call, listening, only
from ketools.model import EditableModel
from ketools.prefix import Enough, FrozenLayer, Prefix, extend, prefill, shareable
from ketools.prompts import pad_right


@dataclass
class Frozen:
    """Rows of a model, frozen before their suffix and up to layer L.

    `hidden` (rows, longest suffix, d_model) is what the model passes to layer L+1, suffixes padded on the right;
    `lengths` are the suffixes' true lengths. `calls` holds for each layer above L the other arguments of its call.
    `first` (rows,): where the suffix proper begins, 0 unless rows had to be kept whole (None: 0 in all rows).
    `backend`: of torch.compile, for the layers but the top one; None: they run as they are.
    """

    model: EditableModel
    layer: int
    hidden: Tensor
    lengths: Tensor
    calls: list[Call]
    cache: Cache
    first: Tensor | None = None
    backend: str | None = None

    @property
    def begin(self) -> Tensor:
        """States (rows, d_model) at the suffixes' first tokens."""
        return self.hidden[:, 0] if self.first is None else self.hidden[self._every, self.first]

    def shifted(self, delta: Tensor) -> Tensor:
        """`hidden` with `delta` (rows, d_model) added at the suffixes' first tokens; differentiable."""
        if self.first is None:
            return torch.cat([self.hidden[:, :1] + delta[:, None].to(self.hidden.dtype), self.hidden[:, 1:]], dim=1)
        places = (self._every, self.first)
        return self.hidden.index_put(places, delta.to(self.hidden.dtype), accumulate=True)

    def places(self, rows: Tensor, after: Tensor | int = 0) -> Tensor:
        """Flat places, as `run` takes them, of the tokens `after` the suffixes' first ones in `rows`."""
        flat = rows * self.hidden.shape[1] + after
        return flat if self.first is None else flat + self.first[rows]

    @property
    def _every(self) -> Tensor:
        return torch.arange(len(self.hidden), device=self.hidden.device)

    def run(self, hidden: Tensor, reads: Tensor) -> Tensor:
        """States (n, d_model) before the final norm at `reads`, flat places row * longest + position, int64.

        `hidden` is of the shape of `self.hidden`. In the top layer the MLP is applied at `reads` only.
        """
        top = self.model.anatomy.n_layer - 1
        for offset, (args, kwargs) in enumerate(self.calls):
            index = self.layer + 1 + offset
            layer: Callable[..., Any] = self.model.layer(index)
            if self.backend is not None and index < top:
                layer = torch.compile(layer, backend=self.backend, dynamic=True)  # torch keeps what it has compiled
            with only(self.model, index, reads) if index == top else ExitStack():
                hidden = _first(layer(hidden, *args, **kwargs))
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, reads.to(hidden.device))

    def select(self, rows: Tensor) -> "Frozen":
        """The same for some of the rows (int64 indices), in the order given."""
        cache = Cache(
            layers=[FrozenLayer(*(t[rows.to(t.device)] for t in (c.keys, c.values))) for c in self.cache.layers]
        )
        chosen: dict[int, Any] = {id(self.cache): cache}
        calls = [_select(call, rows, len(self.hidden), chosen) for call in self.calls]
        own = rows.to(self.hidden.device)
        first = None if self.first is None else self.first[own]
        return Frozen(self.model, self.layer, self.hidden[own], self.lengths[own], calls, cache, first, self.backend)


@torch.no_grad()
def freeze(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    layer: int,
    levels: Sequence[Sequence[int]] = (),
    *,
    whole: bool = False,
) -> Frozen:
    """Freeze `rows` (token ids) before position `starts[i]` and at the output of `layer`; `levels` as in `prefill`,
    left alone where the rows cannot share (`shareable`).

    A model with a recurrent state is refused (KetoolsError), unless `whole` says that the caller minds `Frozen.first`.
    """
    if not model.replays:
        return _freeze_whole(model, rows, starts, layer, whole)
    levels = levels if shareable(model, rows, len(levels)) else ()
    prefix = prefill(model, [row[:start] for row, start in zip(rows, starts, strict=True)], levels)
    suffixes = [row[start:] for row, start in zip(rows, starts, strict=True)]
    cache = Cache(layers=[FrozenLayer(c.keys, c.values) for c in prefix.cache.layers])
    with listening(model, layer) as heard:
        extend(model, Prefix(cache, prefix.mask), suffixes, left=False)
    hidden = _hidden(*heard[layer + 1])
    lengths = torch.tensor([len(s) for s in suffixes], device=hidden.device)
    above = range(layer + 1, model.anatomy.n_layer)
    # Layers up to `layer` are never asked again.
    kept = [c if i in above else FrozenLayer(c.keys[:, :, :0], c.values[:, :, :0]) for i, c in enumerate(cache.layers)]
    known = {id(cache): Cache(layers=kept)}
    calls = [_select(_others(*heard[index]), None, 0, known) for index in above]
    return Frozen(model, layer, hidden, lengths, calls, known[id(cache)])


def _freeze_whole(
    model: EditableModel, rows: Sequence[Sequence[int]], starts: Sequence[int], layer: int, allowed: bool
) -> Frozen:
    if not allowed:
        raise KetoolsError(
            f"model {model.name!r} ({model.config.model_type}) carries a recurrent state beside keys and values of "
            "attention: it cannot be replayed from the middle, which this measurement needs; take a model of attention "
            "layers"
        )
    ids, mask = pad_right([list(row) for row in rows], model.device)
    with listening(model, layer) as heard, suppress(Enough):
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden = _hidden(*heard[layer + 1])
    calls = [_others(*heard[index]) for index in range(layer + 1, model.anatomy.n_layer)]
    lengths, first = (torch.tensor(n, device=hidden.device) for n in ([len(row) for row in rows], list(starts)))
    return Frozen(model, layer, hidden, lengths, calls, Cache(layers=[]), first)


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
    `levels` as in `freeze`.
    """
    top = max(-1 if layer is None else layer for layer in (key_layer, state_layer))
    got: dict[str, Tensor] = {}
    ends = None if model.replays else torch.tensor([len(row) - 1 for row in rows], device=model.device)

    def key(_: nn.Module, args: tuple[Any, ...]) -> None:
        got["key"] = _last(args[0], len(rows), ends)
        if state_layer is None or state_layer < top:
            raise Enough

    def state(_: nn.Module, args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        got["state"] = _last(_first(out), len(rows), ends)
        if state_layer == top:
            raise Enough

    levels = levels if shareable(model, rows, len(levels)) else ()
    prefix = prefill(model, [row[:-1] for row in rows], levels, upto=top, whole=False) if model.replays else None
    with ExitStack() as stack:
        if key_layer is not None:
            stack.callback(model.mlp_out(key_layer).register_forward_pre_hook(key).remove)
        if state_layer is not None:
            stack.callback(model.layer(state_layer).register_forward_hook(state).remove)
        _run_last(model, rows, prefix, top)
    return got.get("key"), got.get("state")


def _run_last(model: EditableModel, rows: Sequence[Sequence[int]], prefix: Prefix | None, top: int) -> None:
    # What is left of the rows on top of `prefix`; whole rows if there is none. Hooks end it with Enough.
    if prefix is None:
        ids, mask = pad_right([list(row) for row in rows], model.device)
        with suppress(Enough):
            model.body(input_ids=ids, attention_mask=mask, use_cache=False)
        return
    rests = [row[stem:] for row, stem in zip(rows, prefix.mask.sum(1).tolist(), strict=True)]
    longest = max(map(len, rests))
    with only(model, top, torch.arange(longest - 1, len(rows) * longest, longest, device=model.device)):
        extend(model, prefix, rests, left=True)


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


def _last(states: Tensor, rows: int, ends: Tensor | None) -> Tensor:
    # (rows, length, width); OPT's MLP sees (rows * length, width); (rows, width) where only last tokens were computed.
    # Rows end where they are padded on the left, or at `ends`.
    states = states.reshape(rows, -1, states.shape[-1])
    if ends is None:
        return states[:, -1].clone()
    return states[torch.arange(rows, device=states.device), ends.to(states.device)]


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
