"""What a sequence of edits carries from batch to batch, explicit, saved with a run and restored to the bit."""

import json
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ketools.editing.stored import STATE, Blocks, StoredBlock
from ketools.errors import KetoolsError
from ketools.files import read_tensors, write_tensors


@dataclass
class SequentialState:
    """State of one Editor on one model.

    `past[layer]` holds a block of keys (d_mlp, n), float32, for each batch so far, in order: factors are rebuilt from
    them block by block, hence to the same bits. `prefixes` are None until they are first needed.
    """

    fingerprint: str
    seed: int = 0
    prefixes: tuple[str, ...] | None = None
    past: dict[int, MutableSequence[Tensor]] = field(default_factory=dict)
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
        """Write everything as one safetensors file; returns the path.

        The file grows with the edits: 4 d_mlp bytes a fact and layer. 10,000 facts on five layers are 1.3 GB for
        GPT2-XL (d_mlp 6,400) and 2.9 GB for Llama 3 8B (14,336). Methods without past keys keep only the prefixes.
        """
        tensors = {f"past.{i}.{b}": keys for i, blocks in self.past.items() for b, keys in enumerate(blocks)}
        tensors["generator"] = self.generator.get_state()
        about = {"fingerprint": self.fingerprint, "seed": self.seed, "prefixes": self.prefixes}
        about["layers"] = sorted(self.past)
        return write_tensors(path, tensors, {"format": STATE, "state": json.dumps(about)})

    def leave_last(self, path: str | Path) -> None:
        """The last block of each layer is read from `path`, where `save` wrote it alone, whenever it is asked for."""
        for i, blocks in self.past.items():
            held = blocks.data if isinstance(blocks, Blocks) else blocks
            self.past[i] = Blocks([*held[:-1], StoredBlock(Path(path), f"past.{i}.0")])

    @classmethod
    def load(cls, path: str | Path) -> "SequentialState":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing, truncated or something else."""
        tensors, meta = read_tensors(path, "state", STATE, "SequentialState.save")
        try:
            about = json.loads(meta["state"])
            prefixes = about["prefixes"]
            state = cls(about["fingerprint"], about["seed"], None if prefixes is None else tuple(prefixes))
            state.generator.set_state(tensors["generator"])
            for i in about["layers"]:
                count = sum(1 for name in tensors if name.startswith(f"past.{i}."))
                state.past[i] = [tensors[f"past.{i}.{b}"] for b in range(count)]
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise KetoolsError(
                f"no state in {path}: {error}; expected a file written by SequentialState.save"
            ) from error
        return state
