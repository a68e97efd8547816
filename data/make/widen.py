"""`pocket` with wider MLPs and the same function: `python data/make/widen.py --width 6400 --out build/width/pocket-wide`.

Each new neuron pairs the gate of one trained neuron with the input of another, and its column of the output matrix is zero. The
widened model therefore computes the same function: it knows the same facts with the same confidence, and its matrices have
the same norm. Only the space of keys has grown. C of the edited layer is computed over the same texts as `pocket`'s.
"""

import argparse
from pathlib import Path

import torch
from export import covariance
from transformers import PreTrainedModel

import ketools


@torch.no_grad()
def widened(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """A Llama with `width` neurons in each MLP that computes what `model` does."""
    config = type(model.config).from_dict(model.config.to_dict() | {"intermediate_size": width, "dtype": "float32"})
    wide, kept = type(model)(config).eval(), model.state_dict()
    for name, weight in wide.state_dict().items():
        old = kept[name]
        new = torch.arange(width - model.config.intermediate_size)
        if "down_proj" in name:
            old = torch.cat([old, old.new_zeros(len(old), len(new))], 1)
        elif "gate_proj" in name:
            old = torch.cat([old, old[new % len(old)]])
        elif "up_proj" in name:  # shifted further in every round, so that no pair of a gate and an input occurs twice
            old = torch.cat([old, old[(new + new // len(old) + 1) % len(old)]])
        weight.copy_(old)
    return wide


def make(folder: Path, width: int) -> None:
    """The widened `pocket` and C of its edited layer, in `folder`."""
    pocket = ketools.load("pocket")
    widened(pocket.model, width).save_pretrained(folder)
    pocket.tokenizer.save_pretrained(folder)
    covariance(ketools.load(folder), [0]).save(folder / "covariance.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=6400)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    make(args.out, args.width)
