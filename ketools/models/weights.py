"""The one owner of weight bits: which edits are in a model's weights, and how they are removed.

An edit adds Delta = left right^T to the MLP output matrix of each of its layers. Bits are restored, never recomputed by
subtraction: (W + Delta) - Delta is not W in floating point. `model.edits` is the `EditStack` of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, overload

import torch
from torch import Tensor, nn

from ketools.errors import KetoolsError, NotFinite
from ketools.models.anatomy import Anatomy

if TYPE_CHECKING:
    from ketools.editing.edit import Edit
    from ketools.models.model import EditableModel

_KEPT = 2  # last edits whose previous bits are kept; older ones are undone by re-adding the others to the original bits


@dataclass(frozen=True)
class _Contents:
    """What is in the weights: edits in order; the bits before each of them, None where they are not kept; and the
    original bits of every matrix that an edit changes. Replaced as a whole, so an interrupt leaves the old or the new.
    """

    edits: tuple[Edit, ...] = ()
    before: tuple[Mapping[int, Tensor] | None, ...] = ()
    originals: Mapping[int, Tensor] = field(default_factory=dict)


class Checkpoint(NamedTuple):
    """A state that an `EditStack` can return to."""

    bits: dict[int, Tensor]
    contents: _Contents


class EditStack(Sequence["Edit"]):
    """The edits in the weights of one model, in order, on top of the original bits.

    `push` and `pop` change the weights; on any error or interrupt they leave weights and stack as they were.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, fingerprint: str, name: str) -> None:
        self.network, self.anatomy, self.fingerprint, self.name = network, anatomy, fingerprint, name
        self._contents = _Contents()
        self._written: dict[int, int] = {}  # layer -> sum of its bits when this stack last wrote it

    @overload
    def __getitem__(self, at: int) -> Edit: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Edit, ...]: ...
    def __getitem__(self, at: int | slice) -> Edit | tuple[Edit, ...]:
        return self._contents.edits[at]

    def __len__(self) -> int:
        return len(self._contents.edits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._contents.edits == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"EditStack({list(self._contents.edits)})"

    @property
    def originals(self) -> Mapping[int, Tensor]:
        """The unedited matrix (d_model, d_mlp) of each edited layer."""
        return self._contents.originals

    def weight(self, layer: int) -> Tensor:
        """The MLP output matrix of `layer` as a view (d_model, d_mlp): writing to it changes the model.

        Raises KetoolsError for a layer that the model does not have.
        """
        check_layer(layer, self.anatomy, self.name)
        module = self.network.get_submodule(f"{self.anatomy.layers}.{layer}.{self.anatomy.mlp_out}")
        weight = module.get_parameter("weight").detach()
        return weight.T if self.anatomy.transposed else weight

    def push(self, edit: Edit) -> None:
        """Add `edit` to the weights, on top of those present.

        `edit.record["rounding"]` then says per layer which part of the update the type of the weights lost (see `add`).
        Raises KetoolsError for an edit of another model, other shapes, numbers that are not finite, and if something
        else wrote to an edited matrix since the last edit.
        """
        self.check(edit)
        self._check_own()
        before, old = now = self.checkpoint(edit.layers)
        try:
            edit.record["rounding"] = {layer: self.add(layer, *pair) for layer, pair in edit.layers.items()}
            recent = [*old.before, before]
            if len(recent) > _KEPT:
                recent[-_KEPT - 1] = None
            self._contents = _Contents((*old.edits, edit), tuple(recent), before | dict(old.originals))
        except BaseException:
            self.roll_back(now)
            raise

    def pop(self, at: int = -1) -> Edit:
        """Remove the edit at place `at` from the weights and return it.

        For the last edit the previous bits are copied back while they are kept. Otherwise the other edits are re-added
        to the original bits, which gives the same bits as pushing only them.
        """
        self._check_own()
        old = self._contents
        at = range(len(old.edits))[at]
        edit, before, last = old.edits[at], old.before[at], at == len(old.edits) - 1
        others, now = old.edits[:at] + old.edits[at + 1 :], self.checkpoint(edit.layers)
        # Bits kept after this edit contain it.
        recent = old.before[:at] + (None,) * (len(others) - at)
        still = {layer for other in others for layer in other.layers}
        try:
            if last and before is not None:
                self.restore(before)
            else:
                self._add_up(others, edit.layers)
            kept = {layer: bits for layer, bits in old.originals.items() if layer in still}
            self._contents = _Contents(others, recent, kept)
        except BaseException:
            self.roll_back(now)
            raise
        return edit

    def replace(self, at: int, edit: Edit) -> None:
        """Replace the edit at place `at` by one with the same factors (`Edit.stored`); the weights do not change."""
        edits = list(self._contents.edits)
        edits[at] = edit
        self._contents = _Contents(tuple(edits), self._contents.before, self._contents.originals)

    def refill(self, edits: Iterable[Edit], start: int = 0, bits: Mapping[int, Tensor] | None = None) -> None:
        """Replace the edits in the weights by `edits`, in order, with the bits that pushing them one by one gives.

        `bits` are the matrices after the first `start` of `edits`; they are copied instead of adding up those edits.
        """
        self.restore(self.originals)
        self._contents = _Contents()
        for number, edit in enumerate(edits, 1):
            if number > start:
                self.push(edit)
                continue
            was = self._contents
            self._contents = _Contents(
                (*was.edits, edit), (*was.before, None), self.snapshot(edit.layers) | dict(was.originals)
            )
            if number == start:
                self.restore(bits or {})

    @contextmanager
    def at(self, n: int) -> Iterator[None]:
        """Within the block the weights are as after the first `n` edits (0: unedited); then as before, bit for bit."""
        kept = self._contents.edits[:n]
        with self.kept(self.originals):
            self._add_up(kept, self.originals)
            self._contents = _Contents(kept, (None,) * n, self.originals)
            yield

    @contextmanager
    def kept(self, layers: Iterable[int]) -> Iterator[None]:
        """On leaving the block, even by an error or interrupt, restore all edited matrices and the stack.

        `layers`: further layers whose matrices the block writes to.
        """
        now = self.checkpoint({*layers, *self.originals})
        try:
            yield
        finally:
            self.roll_back(now)

    def checkpoint(self, layers: Iterable[int]) -> Checkpoint:
        """The present matrices of `layers` and the stack, for `roll_back`."""
        return Checkpoint(self.snapshot(layers), self._contents)

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Restore what `checkpoint` holds; layers edited only since then get their original bits."""
        since = {i: bits for i, bits in self.originals.items() if i not in checkpoint.contents.originals}
        try:
            self.restore(since | checkpoint.bits)
        except KeyboardInterrupt:  # a second one must not stop the first from finishing
            self.restore(since | checkpoint.bits)
            raise
        finally:
            self._contents = checkpoint.contents

    def snapshot(self, layers: Iterable[int]) -> dict[int, Tensor]:
        """Copies of the matrices (d_model, d_mlp) of `layers`."""
        return {layer: self.weight(layer).clone() for layer in layers}

    def restore(self, bits: Mapping[int, Tensor]) -> None:
        """Write copies back; the stack does not change."""
        for layer, weight in bits.items():
            self._written[layer] = _sum_of_bits(self.weight(layer).copy_(weight))

    def add(self, layer: int, left: Tensor, right: Tensor) -> float:
        """W += left right^T, summed in float64 and rounded once to the type of the weights; the stack does not change.

        Returns the relative rounding loss: ||(W' - W) - left right^T||_F / ||left right^T||_F, 0 for an update of zero.
        About 1e-7 times ||W|| / ||Delta|| in float32 and 1e-3 times that in bfloat16, where small updates vanish (1.0).
        """
        weight = self.weight(layer)
        precise = torch.float64 if weight.device.type != "mps" else torch.float32  # mps has no float64
        delta = left.to(weight.device, precise) @ right.to(weight.device, precise).T
        wanted = weight.to(precise, copy=True).add_(delta)
        if not wanted.to(weight.dtype).isfinite().all():
            raise NotFinite(
                f"the sum of layer {layer} and the edit is not finite in {weight.dtype}; nothing was changed"
            )
        norm = float(delta.norm())
        del delta
        self._written[layer] = _sum_of_bits(weight.copy_(wanted))
        lost = float(wanted.sub_(weight).norm())  # (W' - W) - Delta = W' - (W + Delta)
        return lost / norm if norm else 0.0

    def check(self, edit: Edit) -> None:
        """Raise KetoolsError unless `edit` was made for this model, has its shapes and holds finite numbers."""
        made_for = edit.record.get("fingerprint")
        if made_for is not None and made_for != self.fingerprint:
            raise KetoolsError(
                f"this edit belongs to another model (fingerprint {made_for[:12]}) than {self.name!r} "
                f"({self.fingerprint[:12]}), or to the same one in another dtype; load the model it was made for, or make "
                "the edit again"
            )
        for layer, (left, right) in edit.layers.items():
            shape = tuple(self.weight(layer).shape)
            if (len(left), len(right)) != shape or left.shape[1] != right.shape[1]:
                raise KetoolsError(
                    f"layer {layer} of the edit has the shape {(len(left), len(right))}; the model's is {shape}"
                )
            if not (left.is_floating_point() and right.is_floating_point()):
                raise KetoolsError(f"layer {layer} of the edit holds {left.dtype} and {right.dtype}; expected floats")
            if not (left.isfinite().all() and right.isfinite().all()):
                raise NotFinite(f"layer {layer} of the edit holds NaN or Inf; the weights were not touched")

    def _check_own(self) -> None:
        for layer in self.originals:
            if _sum_of_bits(self.weight(layer)) != self._written[layer]:
                raise KetoolsError(
                    f"the edited matrix of layer {layer} of {self.name!r} was changed by something else since the last edit "
                    "(load_state_dict, training?), so that edits can be neither added nor removed exactly; load the model "
                    "again and apply the edits to it"
                )

    def _add_up(self, edits: Iterable[Edit], layers: Iterable[int]) -> None:
        touched = set(layers)
        self.restore({layer: self.originals[layer] for layer in touched})
        for edit in edits:
            for layer in touched & set(edit.layers):
                self.add(layer, *edit.layers[layer])


def _sum_of_bits(weight: Tensor) -> int:
    # An integer sum is exact in any order.
    return int(weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]).sum())


def check_layer(layer: int, anatomy: Anatomy, name: str) -> None:
    """Raise KetoolsError if the model `name` has no such layer (0-based)."""
    if not 0 <= layer < anatomy.n_layer:
        raise KetoolsError(
            f"model {name!r} has layers 0 to {anatomy.n_layer - 1}; got layer {layer}, choose one of these"
        )


@contextmanager
def edited(model: EditableModel, *edits: Edit) -> Iterator[EditableModel]:
    """Within the block `edits` are in the weights; on leaving it, even by an error, every bit is restored.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> editor = ke.Editor(model, "memit")
        >>> edit = editor.apply(ke.facts("world").sample(1, seed=0))
        >>> _ = editor.undo()
        >>> with ke.edited(model, edit):
        ...     len(model.edits)
        1
        >>> len(model.edits)
        0
    """
    with model.edits.kept({layer for edit in edits for layer in edit.layers}):
        for edit in edits:
            model.edits.push(edit)
        yield model


@contextmanager
def fresh(model: EditableModel) -> Iterator[EditableModel]:
    """Within the block the model may be edited freely; on leaving it, even by an error or Ctrl-C, every bit is restored.

    Copies the MLP output matrices of all layers, the only weights that editing touches.
    """
    with model.edits.kept(range(model.anatomy.n_layer)):
        yield model
