"""Run a model from the middle: shared and frozen prefixes, captured states, the layers above replayed.

Attention is causal. So whatever one changes at one token, the keys and values of all tokens before it stay; and a
change behind layer L leaves all layers up to L alone. The engine therefore

1. runs the tokens that a group of rows begins with once (ketools.models.replay),
2. runs the rest of each row up to `start` on top of those, keeping keys and values of every layer,
3. runs the suffix from `start` on against that cache, frozen, and records what the model passes to each layer above L.

`Frozen.run` then calls the model's own layers above L with the model's own arguments, as often as one likes. Nothing
of an architecture is written again here: masks, rotations and caches are those that transformers made.

Rows longer than a window of attention share no beginnings (ketools.models.replay). A model that carries a recurrent state
beside keys and values (LFM2, Falcon-H1, RecurrentGemma) cannot go on from a cache that stays as it is: its rows are kept
whole, and only the layers up to L are spared; `first` says where a row's change begins. `prefix.tell_unshared` warns of
both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicLayer

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.tokens import pad_right

# Prefixes of token rows: keys and values of what comes before the part one is interested in, shared and frozen.
#
# Attention is causal, so the keys and values of a token depend on nothing behind it. Rows that begin alike (the same
# context before many prompts, the same template before many subjects) share the computation of that beginning.


_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")  # entries of a config that set one


class FrozenLayer(DynamicLayer):
    """Keys and values of the prefix; `update` returns them with the new ones behind and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new states, concatenated; the prefix itself stays as it is."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class Enough(Exception):
    """Ends a forward pass early, no error: raised by a hook that has seen what it wanted."""


@dataclass
class Prefix:
    """Keys and values of rows up to where each is to go on: `mask` (rows, columns), 1 = a token, 0 = padding."""

    cache: Cache
    mask: Tensor

    def select(self, rows: Sequence[int]) -> Prefix:
        """The prefixes at these places, in the order given, repeated if need be."""
        index = torch.tensor(rows, device=self.mask.device)
        layers = [FrozenLayer(*(t[index.to(t.device)] for t in (c.keys, c.values))) for c in self.cache.layers]
        return Prefix(Cache(layers=layers), self.mask[index])


@torch.no_grad()
def prefill(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    levels: Sequence[Sequence[int]] = (),
    *,
    upto: int | None = None,
    whole: bool = True,
) -> Prefix:
    """Keys and values of `rows` in all layers up to `upto` (None: the last).

    `levels`, from coarse to fine, give each row a group; the tokens that all rows of a group begin with are run once.
    With `whole=False` only these common tokens are run, and the mask tells how many they are. The caller has asked
    `shareable`, and gives no levels if not.
    """
    upto = model.anatomy.n_layer - 1 if upto is None else upto
    levels = [*levels]
    if whole or not levels:
        levels.append(range(len(rows)))
    done, of_row = [0] * len(rows), [0] * len(rows)
    prefix: Prefix | None = None
    with stopped_at(model, upto):
        for level in levels:
            groups = list(dict.fromkeys(level))
            place = {group: i for i, group in enumerate(groups)}
            first = {group: i for i, group in reversed(list(enumerate(level)))}  # a row of each group
            ends = _common(rows, level, done)
            parts = [rows[first[g]][done[first[g]] : ends[g]] for g in groups]
            if prefix is None:
                prefix = _nothing(model, len(groups))
            else:
                prefix = prefix.select([of_row[first[g]] for g in groups])
            prefix = extend(model, _growing(prefix), parts, left=True)
            done, of_row = [ends[group] for group in level], [place[group] for group in level]
    assert prefix is not None
    return prefix if whole and of_row == list(range(len(rows))) else prefix.select(of_row)


def extend(model: EditableModel, prefix: Prefix, rows: Sequence[Sequence[int]], *, left: bool) -> Prefix:
    """Run `rows` on top of `prefix`, padded on the left or the right; a hook may end the pass by raising `Enough`.

    Padding never reaches a token: it is masked, and its keys and values are zeroed, since whatever a fully masked
    place computes may be no number.
    """
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
    with suppress(Enough):
        model.body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
    if not new.all():
        empty = (mask == 0)[:, None, :, None]
        for layer in prefix.cache.layers:
            if layer.keys.shape[-2] == mask.shape[1]:
                here = empty.to(layer.keys.device)  # a model spread over devices keeps each layer's on its own
                layer.keys, layer.values = layer.keys.masked_fill(here, 0), layer.values.masked_fill(here, 0)
    return Prefix(prefix.cache, mask)


def window_of(model: EditableModel) -> int | None:
    """Tokens that the narrowest layer of the model attends to; None: all of them, 0: fewer, the config not saying how many."""
    config = model.config
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    sizes = [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size]
    return min(sizes, default=None if kinds <= {"full_attention", "global"} else 0)


def shareable(model: EditableModel, rows: Iterable[Sequence[int]], levels: int) -> bool:
    """Whether `rows` (token ids) may go on from beginnings that they share on so many `levels`.

    Padding between a beginning and the rest counts in a window of attention, which therefore has to hold all columns:
    those of every level, of what is run before the last part, and of that part, none of them more than the longest row.
    """
    window = window_of(model)
    return window is None or (levels + 2) * max(map(len, rows), default=0) <= window


def tell_unshared(model: EditableModel, rows: Iterable[Sequence[int]], levels: int) -> None:
    """One UserWarning if beginnings of `rows` (token ids) cannot be frozen or shared on `levels`, with the reason.

    For the functions that users call, once in each, however many passes they make.
    """
    about = f"model {model.name!r} ({model.config.model_type})"
    if not model.replays:
        said = (
            f"{about} carries a recurrent state: beginnings of prompts cannot be frozen, so that whole prompts are run in "
            "every pass, which is slower"
        )
    elif not shareable(model, rows, levels):
        said = (
            f"{about} attends to a window of {window_of(model) or 'some'} tokens: beginnings of prompts cannot be shared, "
            "so that each prompt is run by itself, which is slower"
        )
    else:
        return
    warnings.warn(said, UserWarning, stacklevel=3)


@contextmanager
def stopped_at(model: EditableModel, layer: int) -> Iterator[None]:
    """Forward passes end in `layer` once its attention has run: its keys and values are then in the cache."""

    def stop(*_: object) -> None:
        raise Enough

    if model.anatomy.mlp is None:
        handle = model.layer(layer).register_forward_hook(stop)
    else:
        handle = model.layer(layer).get_submodule(model.anatomy.mlp).register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _nothing(model: EditableModel, rows: int) -> Prefix:
    mask = torch.zeros(rows, 0, dtype=torch.long, device=model.device)
    return Prefix(Cache(layer_class_to_replicate=DynamicLayer), mask)


def _growing(prefix: Prefix) -> Prefix:
    # Frozen layers as ones that store what they are given.
    layers = []
    for frozen in prefix.cache.layers:
        layer = DynamicLayer()
        layer.lazy_initialization(frozen.keys, frozen.values)
        layer.keys, layer.values = frozen.keys, frozen.values
        layers.append(layer)
    return Prefix(Cache(layers=layers), prefix.mask) if layers else prefix


def _common(rows: Sequence[Sequence[int]], level: Sequence[int], done: Sequence[int]) -> dict[int, int]:
    # For each group the number of tokens that all its rows begin with.
    members: dict[int, list[int]] = {}
    for i, group in enumerate(level):
        members.setdefault(group, []).append(i)
    ends = {}
    for group, those in members.items():
        assert len({done[i] for i in those}) == 1, "a group lies within one group of the level above"
        low, high = min(rows[i] for i in those), max(rows[i] for i in those)  # what these share, all between share
        same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        ends[group] = same
    return ends


# Hooks on a model's layers for one pass: hear what they are called with, run some of them, or some tokens, only.


Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer


@contextmanager
def listening(model: EditableModel, layer: int) -> Iterator[dict[int, Call]]:
    """What the layers above `layer` are called with in a pass, by layer. It ends before the top one, and of the others
    only `layer` + 1 is run.
    """
    top = model.anatomy.n_layer - 1
    heard: dict[int, Call] = {}
    with ExitStack() as stack:
        for index in range(layer + 1, top + 1) or (top + 1,):
            module = model.layer(index) if index <= top else model.final_norm

            def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                heard[index] = (args, kwargs)
                if index >= top:
                    raise Enough

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        stack.enter_context(skipped(model, range(layer + 2, top), layer + 1))
        yield heard


@contextmanager
def skipped(model: EditableModel, layers: range, like: int) -> Iterator[None]:
    """These layers are called, so that what they are called with can be heard, and answer what layer `like` did."""
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
    """The MLP of layer `index` is given the tokens at `reads` only (flat places, int64), and answers 0 elsewhere.

    It works token by token, and nobody looks elsewhere.
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


# The same numbers sooner: how a model's passes run on the kernels that are at hand, not what they compute.


_WAKING = 2**20  # numbers of which each of torch's threads gets a share


@contextmanager
def quick(model: EditableModel) -> Iterator[None]:
    """Within the block passes of `model`, forward and backward, run as fast as is known here; see `fused`, `flushed`."""
    with fused(model), flushed(model.device):
        yield


@contextmanager
def fused(model: EditableModel) -> Iterator[None]:
    """GPT-2's activation, which transformers writes out in eight passes over its input, is torch's one kernel of the same
    formula within the block (equal to rounding; in half precisions rounded once, not eight times).
    """
    with ExitStack() as stack:
        for module in model.model.modules():
            if type(module) is NewGELUActivation and "forward" not in vars(module):
                vars(module)["forward"] = partial(functional.gelu, approximate="tanh")
                stack.callback(vars(module).pop, "forward")
        yield


@contextmanager
def flushed(device: torch.device) -> Iterator[None]:
    """On a CPU, magnitudes below 1.2e-38 (float32's denormals) count as 0 within the block, in the thread that enters it.

    The gradient behind a GELU that is far below zero is full of them, and products with such a matrix were seen at a third
    of their rate (benchmarks/README.md). torch's other threads keep theirs, for there is no switch to reach them. Where
    they are flushed already, or the device is no CPU, nothing changes.
    """
    if device.type != "cpu" or not _kept():
        yield
        return
    torch.zeros(_WAKING).add_(1)  # threads that are started within the block would inherit the switch, and keep it
    if not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _kept() -> bool:
    # torch tells how to switch, not how it is switched: half of the least normal number is 0 where they are flushed.
    least = torch.tensor(torch.finfo(torch.float32).tiny)
    return bool((least / 2) != 0)


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

    def select(self, rows: Tensor) -> Frozen:
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
