"""Second moments of keys: C = E[k k^T] over running text, what every method protects."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ketools.editing.moments import Moments, accumulate, symmetric, triangle, upper
from ketools.editing.updates import cholesky
from ketools.errors import KetoolsError, NotFinite
from ketools.files import read_tensors, write_tensors
from ketools.model import EditableModel

_TOKENS_PER_WIDTH = 10


@dataclass(frozen=True)
class Statistics:
    """C per layer, float64 (d_mlp, d_mlp), a mean over `tokens` tokens; `provenance` says of which model and text."""

    layers: Mapping[int, Tensor]
    tokens: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        model: EditableModel,
        texts: Iterable[str],
        layers: Sequence[int],
        max_tokens: int | None = None,
        *,
        length: int = 256,
        positions: str = "all",
        corpus: str = "",
        progress: Callable[[int], None] | None = None,
        partial: str | Path | None = None,
        every: int = 100_000,
    ) -> "Statistics":
        """C of all `layers` in one pass over `texts`, until `max_tokens` tokens are read (None: `default_tokens`).

        A text counts up to its first `length` tokens (at most the model's context window). With `positions="last"` only
        the last token of each text counts: texts that end with a subject then give the keys that edits write to. The
        pass ends at the highest of the layers. `progress` is called with the number of tokens read since the last call.
        With `partial`, sums are written to this file every `every` tokens, and a pass that finds it goes on there, to
        the same bits; remove it once the result is saved.

        Raises KetoolsError if the texts hold no tokens, if keys are not finite, for an edited model, and for a
        `partial` that belongs to another pass.
        """
        max_tokens = default_tokens(model) if max_tokens is None else max_tokens
        _check(model, layers, max_tokens, length)
        if positions not in ("all", "last"):
            raise KetoolsError(f"positions={positions!r}: expected 'all' or 'last'")
        length = min(length, model.window or length)
        found = accumulate(
            model, texts, layers, max_tokens, length, positions=positions, corpus=corpus, progress=progress,
            partial=partial, every=every,
        )  # fmt: skip
        _check_sums(model, found)
        provenance = {
            "fingerprint": model.fingerprint,
            "model": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "corpus": corpus,
            "length": length,
            "positions": positions,
            "texts": found.texts,
            "texts_sha256": found.digest,
        }
        return cls({i: total / found.tokens for i, total in found.sums.items()}, found.tokens, provenance)

    def of(self, model: EditableModel, layers: Sequence[int]) -> "Statistics":
        """Checked for use with `model` at `layers`. Raises KetoolsError for another model's, or a layer left out."""
        made_for = self.provenance.get("fingerprint")
        if made_for is not None and made_for != model.fingerprint:
            raise KetoolsError(
                f"these statistics belong to another model ({self.provenance.get('model', 'unnamed')}, fingerprint "
                f"{made_for[:12]}) than {model.name} ({model.fingerprint[:12]}); compute them for this model"
            )
        for i in layers:
            if i not in self.layers:
                raise KetoolsError(
                    f"the statistics hold layers {sorted(self.layers)}, not {i}; compute them for layer {i} too"
                )
            if self.layers[i].shape != (model.anatomy.d_mlp,) * 2:
                raise KetoolsError(
                    f"C of layer {i} has shape {tuple(self.layers[i].shape)}; expected {(model.anatomy.d_mlp,) * 2}"
                )
            if not self.layers[i].isfinite().all():
                raise NotFinite(f"C of layer {i} holds NaN or Inf; compute the statistics again")
        return self

    def mixed(self, other: "Statistics", share: float) -> "Statistics":
        """(1 - share) of this C and `share` of the other's, for the layers that both hold.

        A mean over running text weighs a key by how often its like occurs; subjects' last tokens, where facts are
        recalled, are few of a text's tokens. Mixing their own second moments in says how much they are to count.

        Raises KetoolsError for a share outside 0 .. 1, another model's statistics, and no layer in common.
        """
        layers = [i for i in self.layers if i in other.layers]
        if not 0 <= share <= 1 or not layers:
            raise KetoolsError(f"share={share}, layers in common {layers}: expected a share from 0 to 1 and a layer")
        if self.provenance.get("fingerprint") != other.provenance.get("fingerprint"):
            raise KetoolsError("statistics of two models cannot be mixed; compute both for one model")
        c = {i: (1 - share) * self.layers[i] + share * other.layers[i] for i in layers}
        about = {"corpus": f"{1 - share:g} {self.provenance.get('corpus')} + {share:g} {other.provenance.get('corpus')}",
                 "parts": [self.provenance, other.provenance], "share": share}  # fmt: skip
        return Statistics(c, self.tokens + other.tokens, self.provenance | about)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one triangle a layer as safetensors in `dtype`, with the provenance; returns the path.

        float16 stores the Cholesky factor of the correlations (with a ridge of 1e-7) and the scales apart in float32:
        rounding C itself would leave it with negative eigenvalues, a product of rounded factors has none.
        """
        tensors: dict[str, Tensor] = {}
        for i, c in self.layers.items():
            if dtype is torch.float16:
                scale = c.diagonal().clamp_min(1e-30).sqrt()
                tensors[f"scale.{i}"] = scale.float()
                ridge = 1e-7 * torch.eye(len(c), dtype=c.dtype)
                c = cholesky(c / scale[:, None] / scale + ridge, f"C of layer {i}").T
            tensors[f"triangle.{i}"] = triangle(c).to(dtype)
        about = {"tokens": str(self.tokens), "provenance": json.dumps(self.provenance, sort_keys=True)}
        return write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing or something else."""
        stored, about = read_tensors(path, "statistics", made_by="Statistics.save")
        try:
            tokens, provenance = int(about["tokens"]), json.loads(about["provenance"])
        except (KeyError, ValueError) as error:
            raise KetoolsError(
                f"no statistics in {path}: {error!r}; expected a file written by Statistics.save"
            ) from error
        return cls(_Packed(stored), tokens, provenance)


class _Packed(Mapping[int, Tensor]):
    """C by layer from the tensors that `Statistics.save` wrote, unpacked where it is asked for: d_mlp^3 operations each."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored, self._made = stored, dict[int, Tensor]()

    def __iter__(self) -> Iterator[int]:
        ends = (name.removeprefix("triangle.") for name in self._stored if name.startswith("triangle."))
        return iter(sorted(map(int, ends)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, layer: object) -> bool:
        return f"triangle.{layer}" in self._stored

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self:
            raise KeyError(layer)
        if layer not in self._made:
            self._made[layer] = self._unpacked(layer)
        return self._made[layer]

    def _unpacked(self, layer: int) -> Tensor:
        scale = self._stored.get(f"scale.{layer}")
        if scale is None:
            return symmetric(self._stored[f"triangle.{layer}"])
        factor = upper(self._stored[f"triangle.{layer}"]) * scale.double()
        product = factor.T @ factor
        return (product + product.T) / 2  # symmetric to the bit


def default_tokens(model: EditableModel) -> int:
    """The budget of a pass: 10 d_mlp tokens.

    C is regular from d_mlp independent keys on; Gupta et al., arXiv 2506.04226, find 2 to 10 times as many enough for
    ROME, MEMIT and EMMET on GPT2-XL, GPT-J and Llama2-7B, less than 0.3% of the 44 million tokens that were read before,
    and publish their settings for Llama2-7B with a multiplier of 10. `convergence` says what more tokens would change.
    """
    return _TOKENS_PER_WIDTH * model.anatomy.d_mlp


def own_file(model: EditableModel) -> Path | None:
    """The covariance file in the model's own folder; None if there is none."""
    path = model.path / "covariance.safetensors" if model.path is not None else None
    return path if path is not None and path.is_file() else None


def load_statistics(model: EditableModel) -> Statistics:
    """The covariance file in the model's own folder (pocket models have one). Raises KetoolsError if there is none."""
    path = own_file(model)
    if path is None:
        raise KetoolsError(
            f"model {model.name!r} comes without covariance.safetensors; give statistics=Statistics.compute(model, texts, "
            "layers, max_tokens) with running text"
        )
    return Statistics.load(path).of(model, ())


def _check_sums(model: EditableModel, found: Moments) -> None:
    if found.tokens == 0:
        raise KetoolsError("the texts for the statistics hold no tokens; give running text")
    for i, total in found.sums.items():
        if not total.isfinite().all():
            raise NotFinite(
                f"keys of layer {i} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}"
            )


def _check(model: EditableModel, layers: Sequence[int], max_tokens: int, length: int) -> None:
    if not layers:
        raise KetoolsError("no layers for the statistics; give those that are to be edited")
    for index in layers:
        model.layer(index)
    for name, value in (("max_tokens", max_tokens), ("length", length)):
        if value < 1:
            raise KetoolsError(f"{name}={value}: expected a number of tokens of at least 1")
    if model.edits:
        raise KetoolsError(
            f"model {model.name!r} carries {len(model.edits)} edits, and C is the unedited model's; undo them first"
        )
