"""Second moments of keys: C = E[k k^T] over running text, what every method protects."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ketools.editing.updates import cholesky
from ketools.errors import KetoolsError
from ketools.files import write_atomic
from ketools.model import EditableModel
from ketools.prompts import pad_right
from ketools.replay import run_until

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Statistics:
    """C per layer, float64 (d_mlp, d_mlp), a mean over `tokens` tokens; `provenance` says of which model and text."""

    layers: dict[int, Tensor]
    tokens: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        model: EditableModel,
        texts: Iterable[str],
        layers: Sequence[int],
        max_tokens: int,
        *,
        length: int = 256,
        corpus: str = "",
        progress: Callable[[int], None] | None = None,
    ) -> "Statistics":
        """C of all `layers` in one pass over `texts`, until `max_tokens` tokens are read.

        A text counts up to its first `length` tokens. The pass ends at the highest of the layers. `progress` is called
        with the number of tokens read since the last call. Raises KetoolsError if the texts hold no tokens, or if keys
        are not finite.
        """
        sums = {i: torch.zeros(model.anatomy.d_mlp, model.anatomy.d_mlp, dtype=torch.float64) for i in layers}
        read = 0
        for batch in _batches(model, texts, max_tokens, length):
            n = _accumulate(model, batch, sums)
            read += n
            if progress is not None:
                progress(n)
        if read == 0:
            raise KetoolsError("the texts for the statistics hold no tokens; give running text")
        for i, total in sums.items():
            if not total.isfinite().all():
                raise KetoolsError(f"keys of layer {i} hold NaN or Inf: the model's weights are not finite")
        provenance = {"fingerprint": model.fingerprint, "model": model.name, "corpus": corpus, "length": length}
        return cls({i: total / read for i, total in sums.items()}, read, provenance)

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
                raise KetoolsError(f"C of layer {i} holds NaN or Inf; compute the statistics again")
        return self

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one triangle a layer as safetensors in `dtype`, with the provenance; returns the path.

        float16 stores the Cholesky factor of the correlations (with a ridge of 1e-7) and the scales apart in float32:
        rounding C itself would leave it with negative eigenvalues, a product of rounded factors has none.
        """
        tensors: dict[str, Tensor] = {}
        for i, c in self.layers.items():
            rows, columns = torch.triu_indices(*c.shape)
            if dtype is torch.float16:
                scale = c.diagonal().clamp_min(1e-30).sqrt()
                tensors[f"scale.{i}"] = scale.float()
                ridge = 1e-7 * torch.eye(len(c), dtype=c.dtype)
                c = cholesky(c / scale[:, None] / scale + ridge, f"C of layer {i}").T
            tensors[f"triangle.{i}"] = c[rows, columns].to(dtype)
        about = {"tokens": str(self.tokens), "provenance": json.dumps(self.provenance, sort_keys=True)}
        return write_atomic(path, save(tensors, about))

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing or something else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                stored = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118 (no mapping)
            tokens, provenance = int(about["tokens"]), json.loads(about["provenance"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise KetoolsError(
                f"no statistics in {path}: {error}; expected a file written by Statistics.save"
            ) from error
        layers: dict[int, Tensor] = {}
        for i in sorted(int(name.removeprefix("triangle.")) for name in stored if name.startswith("triangle.")):
            upper, scale = _upper(stored[f"triangle.{i}"]), stored.get(f"scale.{i}")
            if scale is None:
                layers[i] = upper + upper.triu(1).T
            else:
                factor = upper * scale
                product = factor.T @ factor
                layers[i] = (product + product.T) / 2  # symmetric to the bit
        return cls(layers, tokens, provenance)


def load_statistics(model: EditableModel) -> Statistics:
    """The covariance file in the model's own folder (pocket models have one). Raises KetoolsError if there is none."""
    path = model.path / "covariance.safetensors" if model.path is not None else None
    if path is None or not path.is_file():
        raise KetoolsError(
            f"model {model.name!r} comes without covariance.safetensors; give statistics=Statistics.compute(model, texts, "
            "layers, max_tokens) with running text"
        )
    return Statistics.load(path).of(model, ())


def _upper(triangle: Tensor) -> Tensor:
    d = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(d, d)
    matrix = torch.zeros(d, d, dtype=torch.float64)
    matrix[rows, columns] = triangle
    return matrix


def _batches(model: EditableModel, texts: Iterable[str], max_tokens: int, length: int) -> Iterator[list[list[int]]]:
    # Texts are taken in their order and sorted within a few batches, to keep padding small.
    pool: list[list[int]] = []
    taken = 0
    for text in texts:
        ids = model.tokenizer(text, truncation=True, max_length=length)["input_ids"][: max_tokens - taken]
        taken += len(ids)
        if ids:
            pool.append(ids)
        if sum(map(len, pool)) >= 8 * _TOKENS_AT_ONCE or taken >= max_tokens:
            yield from _split(pool)
            pool = []
        if taken >= max_tokens:
            return
    yield from _split(pool)


def _split(pool: list[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for ids in sorted(pool, key=len):
        if batch and len(ids) * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _accumulate(model: EditableModel, batch: list[list[int]], sums: dict[int, Tensor]) -> int:
    ids, mask = pad_right(batch, model.device)
    live = mask.bool().reshape(-1)  # flat, as OPT's MLP sees its tokens

    with ExitStack() as stack:
        for index, total in sums.items():

            def add(_: nn.Module, args: tuple[Tensor], total: Tensor = total) -> None:
                keys = args[0].reshape(-1, args[0].shape[-1])[live.to(args[0].device)].float()
                total += (keys.T @ keys).double().cpu()

            stack.callback(model.mlp_out(index).register_forward_pre_hook(add).remove)
        run_until(model, max(sums), input_ids=ids, attention_mask=mask)
    return int(live.sum())
