"""Does load decide, or the number of edits? `pocket` with three times the keys and the same function, edited 10,000 times.

    python -m benchmarks.width              d_mlp 6,400, that of GPT2-XL: ENCORE, then MEMIT (an hour of one core each); resumes
    python -m benchmarks.width --list       how far each run is
    python -m benchmarks.width --pack       no run; pack what is finished into data/width

Each new neuron pairs the gate of one trained neuron with the input of another, and its column of the output matrix is zero. The
widened model therefore computes the same function: it knows the same facts with the same confidence, and its matrices have
the same norm. Only the space of keys has grown. Settings are `pocket`'s, with lambda_p in proportion to d_mlp (as in
`hyperparameters.toml`) and lambda_n relative to the mean eigenvalue of C, which is computed over the same texts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.command import ended
from benchmarks.lifelong import Planned, chosen, listing, packed, run_options
from ketools.editing.covariance import Statistics
from ketools.editing.methods import scaled
from ketools.facts.reading import facts
from ketools.io import data_root
from ketools.models.model import load
from ketools.runs.config import composed
from ketools.runs.run import lifelong

METHODS, NAME = ("encore", "memit"), "pocket-wide"


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
    """The widened `pocket` in `folder`, with C of its edited layer over the texts that `data/make/export.py` takes."""
    sys.path.insert(0, str(data_root() / "make"))
    from export import COVARIANCE_TOKENS, SUBJECTS_SHARE, subjects_in_sentences
    from world import build

    pocket = load("pocket")
    widened(pocket.model, width).save_pretrained(folder)
    pocket.tokenizer.save_pretrained(folder)
    model, prose = load(folder), (data_root() / "world" / "prose.txt").read_text(encoding="utf-8").splitlines()
    running = Statistics.compute(model, prose, [0], COVARIANCE_TOKENS, corpus="data/world/prose.txt")
    subjects = Statistics.compute(
        model,
        subjects_in_sentences(build()),
        [0],
        COVARIANCE_TOKENS,
        positions="last",
        corpus="subjects of data/world",
    )
    running.mixed(subjects, SUBJECTS_SHARE).save(folder / "covariance.safetensors")


def go(run: Planned, options: argparse.Namespace) -> None:
    """Start or resume one run."""
    folder = options.out / NAME
    if not (folder / "covariance.safetensors").is_file():
        make(folder, options.width)
    method = composed(run.method)
    hyper = scaled(method.name, method.hyper, model_name="pocket")
    assert hyper.lambda_p is not None
    kept = ("layers", "lr", "clamp_norm_factor", "patience", "lambda_n_relative", "l2_relative")
    settings = {name: getattr(hyper, name) for name in kept}
    lifelong(
        load(folder), facts("world"), method, edits=options.edits, batch=options.batch, seed=run.seed, out=options.out / run.name,
        checkpoint_every=options.checkpoint_every, statistics=Statistics.load(folder / "covariance.safetensors"),
        overrides=settings | {"lambda_p_relative": hyper.lambda_p / load("pocket").anatomy.d_mlp},
        progress=not options.quiet,
    )  # fmt: skip


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=6400, help="neurons in each MLP of the widened model")
    run_options(parser, edits=10_000, batch=100, every=1000, out="build/width", results="data/width")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is left, then pack; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    runs = chosen([Planned(NAME, method, 0) for method in METHODS], options.only)
    if options.list:
        sys.stdout.write(f"{listing(runs, options.out)}\n")
        return
    for run in () if options.pack else runs:
        go(run, options)
    for name in packed(runs, options.out, options.results):
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    raise SystemExit(main())
