"""Target optimisation in one process with all threads, and over copies of the model that share them.

    python -m benchmarks.replicas --model pocket --facts 64 --replicas 2 --json build/replicas.json

Both have the same threads in all and the same facts; they take turns, `--repeats` times, after one batch that is not measured. The
figures mean something only on a machine that does nothing else: `load` is its load average before the first repeat.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.command import finish, interleaved, medians, origin, parser, spreads
from ketools.editing.editor import Editor
from ketools.facts.reading import facts
from ketools.models.model import load
from ketools.runs.pool import Replicas, connected


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures."""
    dtype, threads = getattr(torch, args.dtype), torch.get_num_threads()
    model = load(args.model, device=args.device, dtype=dtype)
    chosen = facts(args.source).sample(args.facts, seed=args.seed)
    editor = Editor(model, args.method)
    cpus, gpus = max(1, threads // args.replicas), float(model.device.type != "cpu")
    with connected(None, cpus, gpus, args.replicas) as ray:
        copies = Replicas(ray, args.replicas, args.model, args.device, dtype, cpus=cpus, gpus=gpus)
        work = {"one process": lambda: editor.targets(chosen), "replicas": lambda: copies.targets(editor, chosen)}
        interleaved(work, 1, model.device)
        load_before = os.getloadavg()[0]
        costs, results = interleaved(work, args.repeats, model.device, args.quiet)
    middle = medians(costs)
    return {
        "seconds_per_edit": {name: seconds / len(chosen) for name, seconds in middle.items()},
        "spread": {name: [s / len(chosen) for s in ends] for name, ends in spreads(costs).items()},
        "ratio": middle["one process"] / middle["replicas"],
        "largest_difference_of_z": float((results["one process"].z - results["replicas"].z).abs().max()),
        "replicas": args.replicas, "threads": threads, "load": load_before, "provenance": origin(args, model),
    }  # fmt: skip


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{name:12} {seconds:.4f} s per edit" for name, seconds in figures["seconds_per_edit"].items()]
    of = f"{figures['replicas']} replicas on {figures['threads']} threads"
    return [*lines, f"{of}: {figures['ratio']:.2f} x one process; load average before: {figures['load']:.1f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("--method", default="encore")
    made.add_argument("--replicas", type=int, default=2)
    return finish("replicas", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
