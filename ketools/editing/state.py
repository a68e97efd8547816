"""What a sequence of edits carries from batch to batch, explicit, saved with a run and restored to the bit."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.files import write_atomic

_FORMAT = "ketools-state-1"


@dataclass
class SequentialState:
    """State of one Editor on one model.

    `past[layer]` holds a block of keys (d_mlp, n), float32, for each batch so far, in order: factors are rebuilt from
    them block by block, hence to the same bits. `prefixes` are None until they are first needed.
    """

    fingerprint: str
    seed: int = 0
    prefixes: tuple[str, ...] | None = None
    past: dict[int, list[Tensor]] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def fresh(cls, fingerprint: str, seed: int) -> "SequentialState":
        """The state before the first edit."""
        return cls(fingerprint, seed, generator=torch.Generator().manual_seed(seed))

    @property
    def batches(self) -> int:
        """Number of batches whose keys are kept."""
        return max((len(blocks) for blocks in self.past.values()), default=0)

    def save(self, path: str | Path) -> Path:
        """Write everything as one safetensors file; returns the path."""
        tensors = {
            f"past.{i}.{b}": keys.contiguous() for i, blocks in self.past.items() for b, keys in enumerate(blocks)
        }
        tensors["generator"] = self.generator.get_state()
        about = {"fingerprint": self.fingerprint, "seed": self.seed, "prefixes": self.prefixes}
        about["layers"] = sorted(self.past)
        return write_atomic(path, save(tensors, {"format": _FORMAT, "state": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> "SequentialState":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing, truncated or something else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if meta.get("format") != _FORMAT:
                raise KetoolsError(f"{path} is no state: format {meta.get('format')!r}, expected {_FORMAT!r}")
            about = json.loads(meta["state"])
        except KetoolsError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise KetoolsError(
                f"no state in {path}: {error}; expected a file written by SequentialState.save"
            ) from error
        state = cls(about["fingerprint"], about["seed"], about["prefixes"] and tuple(about["prefixes"]))
        state.generator.set_state(tensors["generator"])
        for i in about["layers"]:
            count = sum(1 for name in tensors if name.startswith(f"past.{i}."))
            state.past[i] = [tensors[f"past.{i}.{b}"] for b in range(count)]
        return state
