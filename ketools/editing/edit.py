"""An edit as an object: a low-rank change per layer, and the record of how it was made.

`ketools.models.weights` adds edits to the weights and removes them. Factors (`StoredFactors`) and keys (`StoredBlock`)
that a long sequence leaves in its files take memory only while they are in use: each access reads the file again and
returns a copy, so that neither the resident memory nor the number of mappings grows with the edits.
"""

import json
from collections import UserList
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ketools.editing.update import frobenius
from ketools.errors import Damaged, KetoolsError
from ketools.io import parsed, read_tensors, write_tensors
from ketools.models.model import EditableModel

if TYPE_CHECKING:
    import pandas as pd


EDIT, STATE = "ketools-edit-1", "ketools-state-1"  # formats of the two kinds of file


def factors(tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """(left, right) of `layer` among the tensors of an edit's file. Raises KetoolsError for shapes that do not fit."""
    right = tensors[f"right.{layer}"]
    left = tensors.get(f"left.{layer}")
    if left is None:  # a dense update: the identity is not stored
        left = torch.eye(right.shape[-1] if right.dim() else 1)
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[1]:
        raise KetoolsError(f"its factors of layer {layer} have the shapes {tuple(left.shape)} and {tuple(right.shape)}")
    return left, right


class _Record(BaseModel):
    # The entries of an edit's record that other modules read.
    model_config = ConfigDict(extra="allow")
    method: str = ""
    facts: list[str] = []
    fingerprint: str | None = None
    on_top_of: int | None = None
    nas_anchor: list[float] | None = None


class StoredFactors(Mapping[int, tuple[Tensor, Tensor]]):
    """`Edit.layers` of an edit whose factors stay in the file that `Edit.save` wrote.

    A layer's pair, left (d_model, r) and right (d_mlp, r) in float32, is read on access and not kept: changing it in
    place has no effect. Raises KetoolsError, naming the file, if it is gone or damaged by then.
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
    """Where a block of keys is stored: tensor `name` of the file that `SequentialState.save` wrote."""

    path: Path
    name: str

    def read(self) -> Tensor:
        """The block, (d_mlp, n) float32. Raises KetoolsError, naming the file, if it is gone or damaged."""
        tensors, _ = read_tensors(self.path, "state", STATE, "SequentialState.save", only=(self.name,))
        if self.name not in tensors:
            raise KetoolsError(f"no state in {self.path}: it holds no {self.name}")
        return tensors[self.name].clone()


class Blocks(UserList[Any]):
    """A list of blocks of keys; those stored as a StoredBlock are read on access, and not kept."""

    def __getitem__(self, at: int | slice) -> "Tensor | Blocks":  # type: ignore[override]
        if isinstance(at, slice):
            return Blocks(self.data[at])
        block: Tensor | StoredBlock = self.data[at]
        return block.read() if isinstance(block, StoredBlock) else block


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """A change of MLP output matrices: per layer left (d_model, r) and right (d_mlp, r), float32 on the CPU.

    W' = W + left right^T. `record` says how it was made: method, hyper, facts (ids), fingerprint of the unedited model,
    steps and p_target per fact, seconds by phase, update_norm per layer (Frobenius). Once the edit is in the weights it
    also holds rounding per layer, the part of the update lost to their type: ||(W'_rounded - W) - Delta||_F /
    ||Delta||_F. An update that is not of low rank has left = I (d_model) and right = Delta^T.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> edit = ke.Editor(model, "memit").apply(ke.facts("world").sample(2, seed=0))
        >>> edit.ranks, tuple(edit.delta(0).shape), edit.record["method"]
        ({0: 2}, (192, 2048), 'memit')
        >>> edit.remove(model)
    """

    layers: Mapping[int, tuple[Tensor, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        what = f"{self.record.get('method', 'made elsewhere')}, {len(self.record.get('facts', ()))} facts"
        return f"Edit({what}, rank by layer {self.ranks}{', dense' if self.dense else ''})"

    def delta(self, layer: int) -> Tensor:
        """left right^T of `layer` (d_model, d_mlp), float64."""
        left, right = self.layers[layer]
        return left.double() @ right.double().T

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the update per layer, from its factors (no d_model x d_mlp matrix is formed)."""
        return {layer: frobenius(*pair) for layer, pair in self.layers.items()}

    @property
    def ranks(self) -> dict[int, int]:
        """Number of columns of the factors per layer, an upper bound of the rank."""
        return {i: left.shape[1] for i, (left, _) in self.layers.items()}

    @property
    def dense(self) -> bool:
        """Whether the update of some layer has full rank: the edit is then at least as large as that matrix."""
        return any(left.shape[1] >= min(len(left), len(right)) for left, right in self.layers.values())

    def diff(self, other: "Edit") -> "pd.DataFrame":
        """Compare this edit with `other`: one row per layer that either changes.

        Columns: layer; norm, norm_other, norm_difference (Frobenius, of Delta, Delta' and Delta - Delta'); cosine of
        the two as vectors, NaN where one is zero; common_facts, the facts of both over the facts of either (ids), NaN
        if neither names facts. Computed from the factors in float64; unchanged layers count as zero.

        Raises KetoolsError if the matrices have different shapes, hence belong to different models.
        """
        import pandas as pd

        ids, others = (set(edit.record.get("facts", ())) for edit in (self, other))
        common = len(ids & others) / len(ids | others) if ids | others else float("nan")
        rows = [{"layer": i} | _compared(i, self, other) for i in sorted(self.layers.keys() | other.layers.keys())]
        return pd.DataFrame(rows).assign(common_facts=common)

    def apply_to(self, model: EditableModel) -> None:
        """Add this edit to the weights, on top of those present. Raises KetoolsError for another model's edit."""
        model.edits.push(self)

    def remove(self, model: EditableModel, *, force: bool = False) -> None:
        """Remove this edit from the weights; the bits are then those that the other edits alone give.

        Raises KetoolsError if it is not in the weights, or if a later edit was computed on weights with edits in them
        (record["on_top_of"]), unless `force`: the sum of the others is exact all the same, but their keys and targets
        were read from a model that contained this edit. A later edit that was computed on the unedited model is a plain
        sum, from which this one can be removed at any time.
        """
        at = next((i for i, edit in enumerate(model.edits) if edit is self), None)
        if at is None:
            raise KetoolsError(f"this edit is not in the weights of {model.name!r} ({len(model.edits)} others are)")
        above = sum(bool(edit.record.get("on_top_of")) for edit in model.edits[at + 1 :])
        if above and not force:
            raise KetoolsError(
                f"{above} later edits were computed on top of this one; undo them first, or remove it "
                "with force=True (the sum of the others stays exact, their targets were computed with this one in place)"
            )
        model.edits.pop(at)

    def save(self, path: str | Path) -> Path:
        """Write factors and record as one safetensors file; returns the path.

        Its size is 4 (d_model + d_mlp) bytes times the rank, summed over layers (100 facts on five layers of a model of
        8 billion parameters: 37 MB, 0.2% of it). A dense update with left = I takes 4 d_model d_mlp bytes a layer, like
        the matrix itself in float32.
        """
        tensors = {f"right.{i}": right for i, (_, right) in self.layers.items()}
        tensors |= {f"left.{i}": left for i, (left, _) in self.layers.items() if not _is_identity(left)}
        return write_tensors(path, tensors, {"format": EDIT, "record": json.dumps(self.record)})

    @classmethod
    def load(cls, path: str | Path, model: EditableModel | None = None) -> "Edit":
        """Read what `save` wrote; with `model`, check that the edit was made for it.

        Raises KetoolsError for a file that is missing, truncated or of another kind, and for another model's edit.
        """
        tensors, about = read_tensors(path, "edit", EDIT, "Edit.save")
        try:
            layers = {i: factors(tensors, i) for i in sorted({int(name.partition(".")[2]) for name in tensors})}
            stored = parsed(about.get("record", ""), _Record, "its record")
        except (KeyError, ValueError) as error:
            raise Damaged(f"no edit in {path}: {error}; expected a file written by Edit.save") from error
        record = {name: value if name == "subjects" else _by_layer(value, layers) for name, value in stored.items()}
        edit = cls(layers, record)
        if model is not None:
            model.edits.check(edit)
        return edit

    def stored(self, path: str | Path) -> "Edit":
        """This edit with factors that are read on access from `path`, where `save` wrote them. It takes no memory for
        them and needs the file as long as it is in use. The record is shared.
        """
        return replace(self, layers=StoredFactors(Path(path), tuple(self.layers)))

    def as_lora(self, model: EditableModel, path: str | Path) -> Path:
        """Write this edit as a PEFT adapter for `model` to the new folder `path`: see `export.as_lora`."""
        from ketools.editing.export import as_lora  # that module imports this one

        return as_lora(self, model, path)


def _compared(layer: int, edit: Edit, other: Edit) -> dict[str, float]:
    pairs = [tuple(t.double() for t in e.layers[layer]) if layer in e.layers else None for e in (edit, other)]
    known = [pair for pair in pairs if pair is not None]
    if len({(len(left), len(right)) for left, right in known}) > 1:
        shapes = " and ".join(str((len(left), len(right))) for left, right in known)
        raise KetoolsError(f"layer {layer} has the shapes {shapes} in the two edits: they are for different models")
    norm, norm_other = (0.0 if pair is None else _norm(*pair) for pair in pairs)
    gap, product = max(norm, norm_other), 0.0
    if len(known) == 2:
        (a, b), (c, d) = known
        gap = _norm(torch.cat([a, -c], 1), torch.cat([b, d], 1))
        product = float(((a.T @ c) * (b.T @ d)).sum())
    cosine = product / (norm * norm_other) if norm and norm_other else float("nan")
    return {"norm": norm, "norm_other": norm_other, "norm_difference": gap, "cosine": cosine}


def _norm(left: Tensor, right: Tensor) -> float:
    # ||left right^T||_F by triangular factors: Gram matrices would cancel where two edits are nearly equal.
    return float((torch.linalg.qr(left, "r").R @ torch.linalg.qr(right, "r").R.T).norm())


def _is_identity(left: Tensor) -> bool:
    return left.shape[0] == left.shape[1] and torch.equal(left, torch.eye(len(left), dtype=left.dtype))


def _by_layer(value: object, layers: Iterable[int]) -> object:
    # JSON has no numeric keys: entries by layer come back with texts as keys.
    if isinstance(value, dict) and value.keys() == {str(i) for i in layers}:
        return {int(key): item for key, item in value.items()}
    return value
