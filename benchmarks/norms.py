"""Seconds of all norm measures of one checkpoint on a pocket model, and of the spectrum of a large matrix.

    python -m benchmarks.norms --json build/norms.json

Wanted on two idle cores: a checkpoint in less than 2 s. Medians over the repeats; what is taken once a run (the reference
states, the eigenvectors of C) is listed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import measured
from ketools.editing.covariance import load_statistics
from ketools.editing.edit import Edit
from ketools.evaluation.downstream import load_heldout
from ketools.io import write_atomic
from ketools.models.model import EditableModel, load
from ketools.norms.drift import activation_norms, alignment, drift, drift_components, hidden_states, key_bases
from ketools.norms.residual import contributions_and_states, text_sample
from ketools.norms.weights import accumulated, frobenius, norms, singular_values, spectra, update_spectra
from ketools.runs.records import versions

RANK = 50  # of the update in each edited layer: a batch of 50 facts


def edited(model: EditableModel, layers: Sequence[int]) -> None:
    """A random update in each layer, of a tenth of the matrix's norm."""
    draw = torch.Generator().manual_seed(0)
    factors = {}
    for layer in layers:
        left = torch.randn(model.anatomy.d_model, RANK, generator=draw)
        right = torch.randn(model.anatomy.d_mlp, RANK, generator=draw)
        factors[layer] = (left * float(0.1 * model.weight(layer).norm() / (left @ right.T).norm()), right)
    Edit(factors, {"fingerprint": model.fingerprint}).apply_to(model)


def jobs(model: EditableModel, layers: Sequence[int]) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The measures of a checkpoint by name, and the seconds of what is taken once a run."""
    once = {}
    baseline, sample = norms(model), text_sample(model, load_heldout())
    statistics = load_statistics(model)
    cost, reference = measured(lambda: hidden_states(model, sample), model.device)
    once["reference states"] = cost.seconds
    cost, bases = measured(lambda: key_bases(model, statistics, layers), model.device)
    once["eigenvectors of C"] = cost.seconds
    edited(model, layers)
    now = hidden_states(model, sample)
    last = model.anatomy.n_layer - 1
    return {
        "frobenius": lambda: frobenius(model, baseline),
        "spectra": lambda: spectra(model),
        "update_spectra": lambda: update_spectra(accumulated(model), model),
        "alignment": lambda: alignment(model, bases=bases),
        "contributions and states": lambda: contributions_and_states(model, sample),
        "drift": lambda: drift(now, reference),
        "activation_norms": lambda: activation_norms(now),
        "drift_components": lambda: drift_components(now, reference, last),
    }, once


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
    todo, once = jobs(model, options.layers)
    device = model.device
    if options.shape:
        matrix = torch.randn(options.shape, generator=torch.Generator().manual_seed(0))
        once[f"spectrum of {options.shape[0]} x {options.shape[1]}"] = measured(
            lambda: singular_values(matrix), device
        )[0].seconds
    seconds = {
        name: statistics.median(measured(job, device)[0].seconds for _ in range(options.repeats))
        for name, job in todo.items()
    }
    whole = sum(seconds.values())
    for name, value in (seconds | {"checkpoint": whole} | {f"once a run: {k}": v for k, v in once.items()}).items():
        sys.stdout.write(f"{value:8.3f} s  {name}\n")
    if options.json:
        result = {"model": options.model, "layers": options.layers, "threads": torch.get_num_threads()}
        result |= {"seconds": seconds, "checkpoint": whole, "once": once, "versions": versions()}
        write_atomic(options.json, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
