"""What a long sequence leaves in its files: factors and keys that take memory only while somebody looks at them.

Each look reads the file anew, and what it returns is a copy: no file stays open or mapped, so that neither the resident
memory nor the number of mappings grows with the edits.
"""

from collections import UserList
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.files import read_tensors

EDIT, STATE = "ketools-edit-1", "ketools-state-1"  # formats of the two kinds of files


def factors(tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """(left, right) of `layer` among the tensors of an edit's file. Raises KetoolsError for shapes that do not fit."""
    right = tensors[f"right.{layer}"]
    left = tensors.get(f"left.{layer}")
    if left is None:  # a dense update: the identity is not stored
        left = torch.eye(right.shape[-1])
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[1]:
        raise KetoolsError(f"its factors of layer {layer} have the shapes {tuple(left.shape)} and {tuple(right.shape)}")
    return left, right


class StoredFactors(Mapping[int, tuple[Tensor, Tensor]]):
    """`Edit.layers` of an edit whose factors stay in the file that `Edit.save` wrote.

    A layer's pair, left (d_model, r) and right (d_mlp, r) in float32, is read when asked for, and not kept: changing it
    in place changes nothing. Raises KetoolsError, naming the file, if that is gone or damaged by then.
    """

    def __init__(self, path: Path, layers: tuple[int, ...]) -> None:
        self.path, self._layers = path, layers

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            raise KeyError(layer)
        wanted = (f"left.{layer}", f"right.{layer}")
        tensors, _ = read_tensors(self.path, "edit", EDIT, "Edit.save", only=wanted)
        try:
            left, right = factors(tensors, layer)
        except (KeyError, KetoolsError) as error:
            raise KetoolsError(f"no edit in {self.path}: {error}; expected a file written by Edit.save") from error
        return left.clone(), right.clone()


@dataclass(frozen=True)
class StoredBlock:
    """Where a block of keys lies: tensor `name` of the file that `SequentialState.save` wrote."""

    path: Path
    name: str

    def read(self) -> Tensor:
        """The block, (d_mlp, n) float32. Raises KetoolsError, naming the file, if it is gone or damaged."""
        tensors, _ = read_tensors(self.path, "state", STATE, "SequentialState.save", only=(self.name,))
        if self.name not in tensors:
            raise KetoolsError(f"no state in {self.path}: it holds no {self.name}")
        return tensors[self.name].clone()


class Blocks(UserList):
    """A list of blocks of keys; those that were put in as a StoredBlock are read when asked for, and not kept."""

    def __getitem__(self, at: int | slice) -> "Tensor | Blocks":  # type: ignore[override]
        found = self.data[at]
        if isinstance(at, slice):
            return Blocks(found)
        return found.read() if isinstance(found, StoredBlock) else found

    def pop(self, at: int = -1) -> Tensor:
        """Take the block at place `at` out and return it."""
        found = self[at]
        del self.data[at]
        return found  # type: ignore[return-value]
