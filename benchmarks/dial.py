"""The grid behind the ENCORE dial: a whole run for every pair of lambda_n and patience.

    python -m benchmarks.dial                         pocket, 1,000 edits, seed 0, into build/dial; resumes where it stopped
    python -m benchmarks.dial --write                 and its table into data/dial, where notebook 09 reads it

lambda_n is the method's own for the model, a quarter and four times of it, and none; patience is 1, the method's own, and all
steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import ended
from ketools.editing.covariance import load_statistics
from ketools.editing.methods import ENCORE
from ketools.facts.reading import facts as read_facts
from ketools.models.model import EditableModel, load
from ketools.runs.records import provenance
from ketools.runs.sweep import grid, keep

FACTORS = (0.0, 0.25, 1.0, 4.0)


def knobs(model: EditableModel) -> tuple[list[float], list[int | None]]:
    """lambda_n in mean eigenvalues of C, and patience (None: all steps)."""
    hyper = ENCORE.settings(model)
    assert hyper.layers and hyper.patience is not None
    mean = load_statistics(model).layers[hyper.layers[0]].diagonal().mean().item()  # an eigenvalue of C
    own = float(f"{hyper.value('lambda_n', mean) / mean:.3g}")
    return [factor * own for factor in FACTORS], [*sorted({1, hyper.patience}), None]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", default="world")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/dial"))
    parser.add_argument("--write", action="store_true", help="also keep the table in data/dial")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Make the grid, print it; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    model = load(options.model)
    weights, steps = knobs(model)
    table = grid(
        model, read_facts(options.facts), lambda_n=weights, patience=steps, edits=options.edits, batch=options.batch,
        seed=options.seed, out=options.out / model.name, progress=not options.quiet,
    )  # fmt: skip
    if options.write:
        about = provenance(model, options.seed, ENCORE)
        keep(table, model.name, about | {"edits": options.edits, "batch": options.batch, "facts": options.facts})
    shown = ["lambda_n", "patience", "efficacy", "unedited_kept", "same_subject_kept", "norm_ratio", "steps_mean"]
    sys.stdout.write(table[shown].to_string(index=False, float_format="{:.3f}".format) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
