"""An edit as an object, and what is in a model's weights: a stack of edits on top of the original bits.

Bits are restored, never recomputed by subtraction: (W + D) - D is not W in floating point.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.files import write_atomic
from ketools.model import EditableModel

_KEPT = 2  # edits whose bits before are kept; older ones are undone by adding up anew from the original bits
_FORMAT = "ketools-edit-1"


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of MLP output matrices: per layer left (d_model, r) and right (d_mlp, r), float32 on the CPU.

    W' = W + left right^T. `record` says how it was made: method, hyper, facts (ids), fingerprint of the unedited
    model, steps and p_target per fact, seconds by phase, update_norm per layer (Frobenius).
    """

    layers: dict[int, tuple[Tensor, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)

    def delta(self, layer: int) -> Tensor:
        """left right^T of `layer` (d_model, d_mlp), float64."""
        left, right = self.layers[layer]
        return left.double() @ right.double().T

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the update per layer, by its factors (no d_model x d_mlp matrix is formed)."""
        squares = {
            i: ((a.double().T @ a.double()) * (b.double().T @ b.double())).sum() for i, (a, b) in self.layers.items()
        }
        return {i: float(square.clamp_min(0).sqrt()) for i, square in squares.items()}

    def apply_to(self, model: EditableModel) -> None:
        """Add this edit to the weights, on top of those that are there. Raises KetoolsError for another model's edit."""
        push(model, self)

    def remove(self, model: EditableModel, *, force: bool = False) -> None:
        """Take this edit out of the weights; the bits are then those that the other edits alone give.

        Raises KetoolsError if it is not in the weights, or if a later edit was computed on top of it, unless `force`.
        """
        at = next((i for i, edit in enumerate(model.edits) if edit is self), None)
        if at is None:
            raise KetoolsError(f"this edit is not in the weights of {model.name!r} ({len(model.edits)} others are)")
        if at < len(model.edits) - 1 and not force:
            raise KetoolsError(
                f"{len(model.edits) - 1 - at} later edits were computed on top of this one; undo them first, or remove it "
                "with force=True (the sum of the others stays exact, their targets were computed with this one in place)"
            )
        pop(model, at)

    def save(self, path: str | Path) -> Path:
        """Write factors and record as one safetensors file; returns the path."""
        tensors = {
            f"{side}.{i}": t.contiguous()
            for i, pair in self.layers.items()
            for side, t in zip(("left", "right"), pair, strict=True)
        }
        return write_atomic(path, save(tensors, {"format": _FORMAT, "record": json.dumps(self.record)}))

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing, truncated or something else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if about.get("format") != _FORMAT:
                raise KetoolsError(f"{path} is no edit: format {about.get('format')!r}, expected {_FORMAT!r}")
            record = json.loads(about["record"])
            numbers = sorted(int(name.removeprefix("left.")) for name in tensors if name.startswith("left."))
            layers = {i: (tensors[f"left.{i}"], tensors[f"right.{i}"]) for i in numbers}
        except KetoolsError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise KetoolsError(f"no edit in {path}: {error}; expected a file written by Edit.save") from error
        for name in ("update_norm", "mean_eigenvalue_of_c"):  # JSON knows no numbers as keys
            record |= {name: {int(i): x for i, x in record[name].items()}} if name in record else {}
        return cls(layers, record)


@contextmanager
def edited(model: EditableModel, *edits: Edit) -> Iterator[EditableModel]:
    """Within the block `edits` are in the weights; on leaving, on an error too, the bits are those from before."""
    before, count = snapshot(model, {i for edit in edits for i in edit.layers}), len(model.edits)
    recent, originals = list(model.recent), dict(model.originals)
    try:
        for edit in edits:
            push(model, edit)
        yield model
    finally:
        restore(model, before)
        del model.edits[count:]
        model.recent[:] = recent
        model.originals.clear()
        model.originals.update(originals)


def snapshot(model: EditableModel, layers: Iterable[int]) -> dict[int, Tensor]:
    """Copies of the output matrices (d_model, d_mlp) of `layers`."""
    return {i: model.weight(i).clone() for i in layers}


def restore(model: EditableModel, bits: dict[int, Tensor]) -> None:
    """Write the copies back."""
    for i, weight in bits.items():
        model.weight(i).copy_(weight)


def add(model: EditableModel, layer: int, left: Tensor, right: Tensor) -> None:
    """W += left right^T, summed in float64 and rounded once to the type of the weights."""
    weight = model.weight(layer)
    precise = torch.float64 if weight.device.type != "mps" else torch.float32
    delta = left.to(weight.device, precise) @ right.to(weight.device, precise).T
    weight.copy_(weight.to(precise) + delta)


def push(model: EditableModel, edit: Edit) -> None:
    """Add `edit` on top of the stack; on any error or interrupt the weights are as before."""
    _check(model, edit)
    before, count = snapshot(model, edit.layers), len(model.edits)
    fresh = [i for i in edit.layers if i not in model.originals]
    try:
        for i in fresh:
            model.originals[i] = before[i]
        for i, (left, right) in edit.layers.items():
            add(model, i, left, right)
        model.recent.append(before)
        model.edits.append(edit)
    except BaseException:
        restore(model, before)
        del model.edits[count:], model.recent[count:]
        for i in fresh:
            model.originals.pop(i, None)
        raise
    if len(model.recent) > _KEPT:
        model.recent[-_KEPT - 1] = None


def pop(model: EditableModel, at: int = -1) -> Edit:
    """Take the edit at place `at` out of the stack: bits kept, or the others added up anew from the original ones."""
    at %= len(model.edits)
    edit, before = model.edits[at], model.recent[at]
    if at == len(model.edits) - 1 and before is not None:
        restore(model, before)
    else:
        _rebuild(model, [e for i, e in enumerate(model.edits) if i != at], edit.layers)
        model.recent[at:] = [None] * len(model.recent[at:])  # their bits held the edit that left
    del model.edits[at], model.recent[at]
    for i in edit.layers:
        if not any(i in other.layers for other in model.edits):
            del model.originals[i]
    return edit


def _rebuild(model: EditableModel, edits: list[Edit], layers: Iterable[int]) -> None:
    touched = set(layers)
    restore(model, {i: model.originals[i] for i in touched})
    for edit in edits:
        for i in touched & set(edit.layers):
            add(model, i, *edit.layers[i])


def _check(model: EditableModel, edit: Edit) -> None:
    made_for = edit.record.get("fingerprint")
    if made_for is not None and made_for != model.fingerprint:
        raise KetoolsError(
            f"this edit belongs to another model (fingerprint {made_for[:12]}) than {model.name!r} "
            f"({model.fingerprint[:12]}); load the model it was made for, or make the edit again"
        )
    for i, (left, right) in edit.layers.items():
        shape = tuple(model.weight(i).shape)
        if (len(left), len(right)) != shape or left.shape[1] != right.shape[1]:
            raise KetoolsError(f"layer {i} of the edit has the shape {(len(left), len(right))}; the model's is {shape}")
        if not (left.isfinite().all() and right.isfinite().all()):
            raise KetoolsError(f"layer {i} of the edit holds NaN or Inf; the weights were not touched")
