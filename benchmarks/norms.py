"""Seconds of the norm measures that a run takes at one checkpoint, and of the spectrum of a large matrix.

    python -m benchmarks.norms --json build/norms.json

Wanted on two idle cores: a checkpoint on a pocket model in less than 2 s. Medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import measured
from ketools.editing.edit import Edit
from ketools.evaluation.downstream import load_heldout
from ketools.io import write_json
from ketools.models.model import EditableModel, load
from ketools.norms.residual import contributions, text_sample
from ketools.norms.weights import frobenius, norms, singular_values, spectra
from ketools.runs.panel import Sizes
from ketools.runs.records import versions

RANK = 50  # of the update in each edited layer: a batch of 50 facts


def edit_at_random(model: EditableModel, layers: Sequence[int]) -> None:
    """A random update in each layer, of a tenth of the matrix's norm."""
    draw = torch.Generator().manual_seed(0)
    factors = {}
    for layer in layers:
        left = torch.randn(model.anatomy.d_model, RANK, generator=draw)
        right = torch.randn(model.anatomy.d_mlp, RANK, generator=draw)
        factors[layer] = (left * float(0.1 * model.weight(layer).norm() / (left @ right.T).norm()), right)
    Edit(factors, {"fingerprint": model.fingerprint}).apply_to(model)


def jobs(model: EditableModel, layers: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """The measures by name, of as much as `ketools.runs.panel` takes by default; edits `layers` of the model."""
    baseline, sizes = norms(model), Sizes()
    texts = load_heldout(documents=sizes.documents)
    edit_at_random(model, layers)
    return {
        "frobenius": lambda: frobenius(model, baseline, edited=layers),
        "spectra": lambda: spectra(model, layers),
        "contributions": lambda: contributions(model, text_sample(model, texts, sizes.residual_tokens), edited=layers),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write the result; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--layers", type=lambda s: [int(x) for x in s.split(",")], default=[0], help="edited: 0,1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--shape", type=lambda s: [int(x) for x in s.split("x")], help="also the spectrum of 4096x14336"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    model = load(options.model)
    device = model.device
    seconds = {
        name: statistics.median(measured(job, device)[0].seconds for _ in range(options.repeats))
        for name, job in jobs(model, options.layers).items()
    }
    whole = sum(seconds.values())
    result = {"model": options.model, "layers": options.layers, "threads": torch.get_num_threads()}
    result |= {"seconds": seconds, "checkpoint": whole, "versions": versions()}
    lines = seconds | {"checkpoint": whole}
    if options.shape:
        matrix = torch.randn(options.shape, generator=torch.Generator().manual_seed(0))
        cost, _ = measured(lambda: singular_values(matrix), device)
        result["spectrum"] = lines[f"spectrum of {options.shape[0]} x {options.shape[1]}"] = cost.seconds
    for name, value in lines.items():
        sys.stdout.write(f"{value:8.3f} s  {name}\n")
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
