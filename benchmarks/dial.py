"""The grid behind the ENCORE dial: a whole run for every pair of lambda_n and patience.

    python -m benchmarks.dial                         pocket, 1,000 edits, seed 0, into build/dial; resumes where it stopped
    python -m benchmarks.dial --write                 and its table into data/dial, where notebook 09 reads it

lambda_n is the method's own for the model, a quarter and four times of it, and none; patience is 1, the method's own, and all
steps.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.command import ended
from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.methods import ENCORE, MPES, FixedSteps
from ketools.errors import KetoolsError
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import data_root, write_atomic, write_json
from ketools.models.model import EditableModel, load
from ketools.runs.demo import figures
from ketools.runs.panel import Panel
from ketools.runs.records import provenance
from ketools.runs.sweep import ALL_STEPS, sweep

FACTORS = (0.0, 0.25, 1.0, 4.0)


def knobs(model: EditableModel) -> tuple[list[float], list[int | None]]:
    """lambda_n in mean eigenvalues of C, and patience (None: all steps)."""
    hyper = ENCORE.settings(model)
    assert hyper.layers and hyper.patience is not None
    mean = load_statistics(model).layers[hyper.layers[0]].diagonal().mean().item()  # an eigenvalue of C
    own = float(f"{hyper.value('lambda_n', mean) / mean:.3g}")
    return [factor * own for factor in FACTORS], [*sorted({1, hyper.patience}), None]


def grid(
    model: EditableModel,
    facts: FactSet,
    *,
    lambda_n: Sequence[float],
    patience: Sequence[int | None],
    edits: int,
    out: str | Path,
    batch: int = 50,
    seed: int = 0,
    statistics: Statistics | None = None,
    panel: Panel | None = None,
    progress: bool = True,
    **overrides: object,
) -> pd.DataFrame:
    """ENCORE's two settings against each other: a run for every pair of `lambda_n` and `patience`, on the same facts.

    Every run is kept in a folder of its own below `out`, so that a job that was stopped resumes when called again, and a
    larger grid takes over the runs of a smaller one. The table is also written to `out`/grid.parquet. The model comes
    back bit for bit as it was.

    Args:
        model, facts, edits, batch, seed, statistics, panel: as in `ketools.runs.run.lifelong`.
        lambda_n: weights of ||W' - W||_F^2, in units of the mean eigenvalue of C (lambda_n_relative); 0: no constraint.
        patience: steps after the target is first the most probable token; None: all steps are taken (no MPES).
        out: folder of the runs.
        progress: show progress bars.
        overrides: further settings of the editor.

    Returns:
        A row per pair, in the order given: lambda_n, patience (ALL_STEPS for None), then `figures`.

    Raises:
        KetoolsError: an empty or repeated list, a negative or infinite number, or what `lifelong` refuses.
        ketools.runs.run.Interrupted: Ctrl-C; finished batches and runs are kept.
    """
    for name, values in (("lambda_n", lambda_n), ("patience", patience)):
        if not len(values) or len(set(values)) < len(values):
            raise KetoolsError(f"{name}={list(values)!r}: expected different values, at least one")
    if wrong := [v for v in lambda_n if not (math.isfinite(v) and v >= 0)]:
        raise KetoolsError(f"lambda_n={wrong[0]!r}: expected a number >= 0; 0 leaves the norm free")
    if odd := [v for v in patience if v is not None and (isinstance(v, bool) or not isinstance(v, int) or v < 0)]:
        raise KetoolsError(f"patience={odd[0]!r}: expected a whole number >= 0, or None for all steps")
    out = Path(out)
    pairs = {
        f"lambda_n={weight:g},patience={'all' if steps is None else steps}": (float(weight), steps)
        for weight in lambda_n
        for steps in patience
    }
    runs = {
        name: {
            "method": replace(ENCORE, stopping=FixedSteps() if steps is None else MPES(steps)),
            "overrides": {**overrides, "lambda_n_relative": weight},
        }
        for name, (weight, steps) in pairs.items()
    }

    records = sweep(
        model, facts, runs, out, edits=edits, batch=batch, checkpoint_every=edits, seed=seed, statistics=statistics,
        panel=panel or Panel.take(model, facts, facts.sample(edits, seed), seed=seed), progress=progress,
    )  # fmt: skip
    rows = [
        {"lambda_n": weight, "patience": ALL_STEPS if steps is None else steps, **figures(records[name])}
        for name, (weight, steps) in pairs.items()
    ]
    table = pd.DataFrame(rows)
    write_atomic(out / "grid.parquet", table.to_parquet(index=False))
    return table


def keep(table: pd.DataFrame, name: str, about: Mapping[str, Any]) -> Path:
    """Put a table of `grid` and its provenance into the data folder, as NAME.parquet and NAME.json; returns the table's path.

    Raises OSError if the folder cannot be written.
    """
    folder = data_root() / "dial"
    write_json(folder / f"{name}.json", about)
    return write_atomic(folder / f"{name}.parquet", table.to_parquet(index=False))


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
