"""Prefixes of token rows: keys and values of what comes before the part one is interested in, shared and frozen.

Attention is causal, so the keys and values of a token depend on nothing behind it. Rows that begin alike (the same
context before many prompts, the same template before many subjects) share the computation of that beginning.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ketools.model import EditableModel

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

    def select(self, rows: Sequence[int]) -> "Prefix":
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
