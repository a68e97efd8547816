"""Run a model from the middle: frozen prefixes, captured states, the layers above replayed.

Attention is causal: a change at one token leaves the keys and values of all earlier tokens unchanged, and a change to
the output of layer L does not affect the layers up to L. The engine therefore

1. runs each row up to `start` once, keeping keys and values of every layer,
2. runs the suffix from `start` on against that frozen cache, and records what the model passes to each layer above L.

`Frozen.run` then calls the model's own layers above L with the model's own arguments, any number of times. No part of
an architecture is reimplemented: masks, rotations and caches are those that transformers made.

A model that carries a recurrent state besides keys and values (LFM2, Falcon-H1, RecurrentGemma) cannot continue from a
frozen cache: its rows are kept whole, and only the layers up to L are skipped. `first` then says where the change of a
row begins, and `warn_if_slow` warns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.tokens import pad_right


class FrozenLayer(DynamicLayer):
    """Keys and values of the prefix; `update` returns them with the new ones appended and stores nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new states, concatenated; the prefix itself does not change."""
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class Enough(Exception):
    """Ends a forward pass early; raised by a hook that has what it needs. Not an error."""


def _stop(*_: object) -> None:
    raise Enough


def extend(model: EditableModel, cache: Cache, mask: Tensor, rows: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    """Run `rows` (token ids) on top of `cache`, padded on the left or the right; a hook may end the pass by raising
    `Enough`. `mask` (rows, cached columns) is 1 at tokens and 0 at padding; returns it with the new columns appended.

    Padding never reaches a token: it is masked, and its keys and values are zeroed, since a fully masked position may
    compute NaN.
    """
    longest = max(1, *map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    ids = torch.tensor([[*p, *r] if left else [*r, *p] for p, r in zip(pads, rows, strict=True)], device=model.device)
    new = torch.tensor([[*p, *o] if left else [*o, *p] for p, o in zip(pads, ones, strict=True)], device=model.device)
    mask = torch.cat([mask, new], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -longest:]
    with suppress(Enough):
        model.body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    if not new.all():
        empty = (mask == 0)[:, None, :, None]
        for keys, values in _cached(cache):
            if keys.shape[-2] == mask.shape[1]:
                here = empty.to(keys.device)  # in a model spread over devices, that of the layer
                keys.masked_fill_(here, 0)
                values.masked_fill_(here, 0)
    return mask


def _cached(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    # Keys and values (rows, heads, columns, width) of the layers that have run.
    pairs = [(layer.keys, layer.values) for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return [(keys, values) for keys, values in pairs if keys is not None and values is not None]


def _frozen(pairs: Iterable[tuple[Tensor, Tensor]]) -> Cache:
    return Cache(layers=[FrozenLayer(*pair) for pair in pairs])


def warn_if_slow(model: EditableModel) -> None:
    """Warn (UserWarning) if prefixes of prompts cannot be frozen; called once by each function that users call."""
    if not model.replays:
        warnings.warn(
            f"model {model.name!r} ({model.config.model_type}) carries a recurrent state: prefixes of prompts cannot be "
            "frozen, so that whole prompts are run in every pass, which is slower",
            UserWarning,
            stacklevel=3,
        )


@contextmanager
def stopped_at(model: EditableModel, layer: int) -> Iterator[None]:
    """Forward passes end in `layer` after its attention, when its keys and values are in the cache."""
    if model.anatomy.mlp is None:
        handle = model.layer(layer).register_forward_hook(_stop)
    else:
        handle = model.layer(layer).get_submodule(model.anatomy.mlp).register_forward_pre_hook(_stop)
    try:
        yield
    finally:
        handle.remove()


Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer


@contextmanager
def listening(model: EditableModel, layer: int) -> Iterator[dict[int, Call]]:
    """The arguments with which a pass calls the layers above `layer`, by layer. The pass ends before the top one, and
    of the others only `layer` + 1 is run.
    """
    top = model.anatomy.n_layer - 1
    calls_by_layer: dict[int, Call] = {}
    with ExitStack() as stack:
        for index in range(layer + 1, top + 1) or (top + 1,):
            module = model.layer(index) if index <= top else model.final_norm

            def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                calls_by_layer[index] = (args, kwargs)
                if index >= top:
                    raise Enough

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        stack.enter_context(skipped(model, range(layer + 2, top), layer + 1))
        yield calls_by_layer


@contextmanager
def skipped(model: EditableModel, layers: range, like: int) -> Iterator[None]:
    """Within the block these layers are called, so that hooks see their arguments, but return what layer `like` does."""
    if not layers:
        yield
        return
    answer: list[Any] = []
    stack = ExitStack()

    def hear(_: nn.Module, args: tuple[Any, ...], out: object) -> None:
        answer[:] = [out]

    with stack:
        stack.callback(model.layer(like).register_forward_hook(hear).remove)
        for own in (vars(model.layer(index)) for index in layers):
            before = own.get("forward")  # a wrapper of accelerate's, or none
            stack.callback(own.__setitem__, "forward", before) if before else stack.callback(own.pop, "forward")
            own["forward"] = lambda *_, **__: answer[0]
        yield


@contextmanager
def only(model: EditableModel, index: int, reads: Tensor) -> Iterator[None]:
    """Give the MLP of layer `index` only the tokens at `reads` (flat places, int64); elsewhere its output is 0.

    Valid because an MLP is position-wise and only these outputs are read.
    """
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


@dataclass
class Frozen:
    """Rows of a model, frozen before their suffix and up to layer L.

    `hidden` (rows, longest suffix, d_model) is what the model passes to layer L+1, with suffixes padded on the right;
    `lengths` are the suffixes' true lengths. `calls` holds the other arguments of the call of each layer above L.
    `first` (rows,): where the suffix proper begins if rows had to be kept whole (None: at 0 in all rows). `backend`: of
    torch.compile, for all layers but the top one; None: they are not compiled.
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
        """States (rows, d_model) at the first tokens of the suffixes."""
        return self.hidden[:, 0] if self.first is None else self.hidden[self._every, self.first]

    def shifted(self, delta: Tensor) -> Tensor:
        """`hidden` with `delta` (rows, d_model) added at the first tokens of the suffixes; differentiable."""
        if self.first is None:
            return torch.cat([self.hidden[:, :1] + delta[:, None].to(self.hidden.dtype), self.hidden[:, 1:]], dim=1)
        places = (self._every, self.first)
        return self.hidden.index_put(places, delta.to(self.hidden.dtype), accumulate=True)

    def places(self, rows: Tensor, after: Tensor | int = 0) -> Tensor:
        """Flat places, as `run` takes them, of the tokens `after` the first ones of the suffixes in `rows`."""
        flat = rows * self.hidden.shape[1] + after
        return flat if self.first is None else flat + self.first[rows]

    @property
    def _every(self) -> Tensor:
        return torch.arange(len(self.hidden), device=self.hidden.device)

    def run(self, hidden: Tensor, reads: Tensor) -> Tensor:
        """States (n, d_model) before the final norm at `reads`, flat places row * longest + position, int64.

        `hidden` has the shape of `self.hidden`. In the top layer the MLP is applied at `reads` only.
        """
        top = self.model.anatomy.n_layer - 1
        for offset, (args, kwargs) in enumerate(self.calls):
            index = self.layer + 1 + offset
            layer: Callable[..., Any] = self.model.layer(index)
            if self.backend is not None and index < top:
                layer = torch.compile(layer, backend=self.backend, dynamic=True)  # torch caches it
            with only(self.model, index, reads) if index == top else ExitStack():
                hidden = _first(layer(hidden, *args, **kwargs))
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, reads.to(hidden.device))

    def select(self, rows: Tensor) -> Frozen:
        """The same for some of the rows (int64 indices), in the given order."""
        cache = _frozen((k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in _cached(self.cache))
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
    *,
    whole: bool = False,
) -> Frozen:
    """Freeze `rows` (token ids) before position `starts[i]` and at the output of `layer`.

    Raises KetoolsError for a model with a recurrent state, unless `whole` says that the caller uses `Frozen.first`.
    """
    if not model.replays:
        return _freeze_whole(model, rows, starts, layer, whole)
    prefixes, suffixes = zip(
        *((row[:start], row[start:]) for row, start in zip(rows, starts, strict=True)), strict=True
    )
    growing = Cache(layer_class_to_replicate=DynamicLayer)
    with stopped_at(model, model.anatomy.n_layer - 1):
        nothing = torch.zeros(len(rows), 0, dtype=torch.long, device=model.device)
        mask = extend(model, growing, nothing, prefixes, left=True)
    cache = _frozen(_cached(growing))
    with listening(model, layer) as calls_by_layer:
        extend(model, cache, mask, suffixes, left=False)
    hidden = _hidden(*calls_by_layer[layer + 1])
    lengths = torch.tensor([len(s) for s in suffixes], device=hidden.device)
    above = range(layer + 1, model.anatomy.n_layer)
    # Layers up to `layer` are not run again.
    pairs = [pair if i in above else (pair[0][:, :, :0], pair[1][:, :, :0]) for i, pair in enumerate(_cached(cache))]
    known = {id(cache): _frozen(pairs)}
    calls = [_select(_others(*calls_by_layer[index]), None, 0, known) for index in above]
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
    with listening(model, layer) as calls_by_layer, suppress(Enough):
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden = _hidden(*calls_by_layer[layer + 1])
    calls = [_others(*calls_by_layer[index]) for index in range(layer + 1, model.anatomy.n_layer)]
    lengths, first = (torch.tensor(n, device=hidden.device) for n in ([len(row) for row in rows], list(starts)))
    return Frozen(model, layer, hidden, lengths, calls, Cache(layers=[]), first)


@torch.no_grad()
def read_last(
    model: EditableModel, rows: Sequence[Sequence[int]], key_layer: int, state_layer: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """At the last token of `rows`: the key of `key_layer` (rows, d_mlp), the output of `state_layer` (rows, d_model).

    The pass ends at the higher of the two layers, whose MLP receives only the last tokens.
    """
    top = key_layer if state_layer is None else max(key_layer, state_layer)
    ids, mask = pad_right(rows, model.device)
    ends = mask.sum(1) - 1
    key: Tensor | None = None
    state: Tensor | None = None

    def last(states: Tensor) -> Tensor:
        # (rows, length, width); OPT's MLP receives (rows * length, width), and `only` leaves (rows, width).
        states = states.reshape(len(rows), -1, states.shape[-1])
        if states.shape[1] == 1:
            return states[:, 0].clone()
        return states[torch.arange(len(rows), device=states.device), ends.to(states.device)]

    def hear_key(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal key
        key = last(args[0])
        if state_layer is None or state_layer < key_layer:
            raise Enough

    def hear_state(_: nn.Module, args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal state
        state = last(_first(out))
        if state_layer == top:
            raise Enough

    with ExitStack() as stack:
        stack.callback(model.mlp_out(key_layer).register_forward_pre_hook(hear_key).remove)
        if state_layer is not None:
            stack.callback(model.layer(state_layer).register_forward_hook(hear_state).remove)
        stack.enter_context(only(model, top, torch.arange(len(rows), device=ids.device) * ids.shape[1] + ends))
        stack.enter_context(suppress(Enough))
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
    assert key is not None
    return key, state


@torch.no_grad()
def run_until(model: EditableModel, layer: int, **inputs: Tensor) -> None:
    """A forward pass of the model's body that ends after `layer`, for the hooks set by the caller."""
    handle = model.layer(layer).register_forward_hook(_stop)
    try:
        with suppress(Enough):
            model.body(**inputs, use_cache=False)
    finally:
        handle.remove()


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    # A decoder layer returns a tensor in transformers 5 and a tuple in 4.
    return out[0] if isinstance(out, tuple) else out


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _others(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}


def _select(value: Any, rows: Tensor | None, n_rows: int, chosen: dict[int, Any], name: str = "") -> Any:  # noqa: ANN401
    # Select rows of everything whose first dimension is the batch; `chosen` maps objects already handled.
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


_TOKENS_ON_CPU = 1536  # most tokens of one pass: enough for full-speed matrix products
_BYTES_ON_CPU = 2**30  # that a pass may store there for the gradient, on every machine: the same parts, the same bits
_TOKENS = (512, 16384)  # minimum anywhere, and maximum on an accelerator
_SHARE = 0.5  # of the free memory of an accelerator that a pass may use


def gradient_bytes(model: EditableModel, layer: int) -> int:
    """What one token stores for the gradient in the layers above `layer`, estimated from their widths."""
    about = model.anatomy
    return max(1, about.n_layer - 1 - layer) * (12 * about.d_model + 5 * about.d_mlp) * model.dtype.itemsize


def tokens_at_once(model: EditableModel, layer: int) -> int:
    """Tokens in one pass when `layer` is the last edited one: by the model alone on a CPU, by the free memory elsewhere.

    Passes without a gradient need less memory than this allows for.
    """
    least, most = _TOKENS
    if model.device.type == "cpu":
        room, most = _BYTES_ON_CPU, _TOKENS_ON_CPU
    else:
        devices = {model.edits.weight(index).device for index in range(layer, model.anatomy.n_layer)}
        free = min(torch.accelerator.get_memory_info(d)[0] for d in devices - {torch.device("cpu")} or {model.device})
        room = int(_SHARE * free)
    return min(max(room // gradient_bytes(model, layer), least), most)


@contextmanager
def enough_memory(doing: str, way_out: str) -> Iterator[None]:
    """Within the block, running out of memory raises KetoolsError: "out of memory while {doing}; {way_out}"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has a class for accelerators only; the CPU's allocator raises RuntimeError.
        hints = ("out of memory", "not enough memory", "can't allocate memory")
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(hint in str(error).lower() for hint in hints):
            raise
        raise KetoolsError(f"out of memory while {doing}; {way_out}") from error


# Recording of hidden states and of what attention and MLPs write to the residual stream, for tracing and norms.
# A decoder layer adds the outputs of its attention and its MLP to the stream: h' = h + a + m (`EditableModel.sublayer`).


@contextmanager
def recorded(model: EditableModel, what: Iterable[str], rows: int) -> Iterator[dict[str, dict[int, Tensor]]]:
    """Within the block, record passes of `rows` rows: {name: {layer: (rows, length, d_model)}}.

    `what` names "embedding" (the input of layer 0, as layer -1), "hidden" (the output of a layer), "attention" or "mlp"
    (what they add to the stream, before `residual_scale`). Layers that a pass does not reach are missing; a second pass
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
                    keep(into, -1, _hidden(args, kwargs))

                stack.callback(model.layer(0).register_forward_pre_hook(enter, with_kwargs=True).remove)
                continue
            for layer in range(model.anatomy.n_layer):
                module = model.layer(layer) if name == "hidden" else model.sublayer(layer, name)

                def leave(_: nn.Module, __: object, out: Tensor | tuple, layer: int = layer, into: dict = into) -> None:
                    keep(into, layer, _first(out))

                stack.callback(module.register_forward_hook(leave).remove)
        yield states


@torch.no_grad()
def embedded(model: EditableModel, ids: Tensor, mask: Tensor, change: Tensor | None = None) -> Tensor:
    """The input of layer 0, (rows, length, d_model), for token ids padded on the right.

    `change` (rows, length, width of the embedding) is added to the token embeddings, before anything that the
    architecture does with them (positions, scales, norms).
    """

    def add(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out if change is None else out + change.to(out)

    with recorded(model, ["embedding"], len(ids)) as states, ExitStack() as stack:
        stack.callback(model.layer(0).register_forward_pre_hook(_stop).remove)
        stack.callback(model.model.get_input_embeddings().register_forward_hook(add).remove)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with suppress(Enough):
            model.body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return states["embedding"][-1]
