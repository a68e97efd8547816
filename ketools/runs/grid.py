"""ENCORE's two knobs against each other: the norm constraint lambda_n and MPES' patience, a whole run for each pair."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ketools.editing.methods import ENCORE, MPES, FixedSteps
from ketools.editing.statistics import Statistics
from ketools.errors import KetoolsError
from ketools.facts import FactSet
from ketools.files import write_atomic, write_json
from ketools.model import EditableModel
from ketools.paths import data_root
from ketools.runs.demo import figures, fresh
from ketools.runs.lifelong import lifelong
from ketools.runs.panel import Panel

ALL_STEPS = -1
"""How a table says that no patience stops step 1."""


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
    each: Callable[[pd.DataFrame], object] | None = None,
    **overrides: object,
) -> pd.DataFrame:
    """Run ENCORE once for every pair of `lambda_n` and `patience`, on the same facts, each time from the unedited model.

    Every run is kept in a folder of its own below `out`, so that a job that was stopped goes on when called again, and a
    larger grid takes over the runs of a smaller one. The table is also written to `out`/grid.parquet. The model comes
    back bit for bit as it was.

    Args:
        model, facts, edits, batch, seed, statistics, panel: as in `ketools.runs.lifelong.lifelong`.
        lambda_n: weights of ||W' - W||_F^2, in units of the mean eigenvalue of C (lambda_n_relative); 0: no constraint.
        patience: steps after the target is first the most probable token; None: all steps are taken (no MPES).
        out: folder of the runs.
        progress: show progress bars; each: called with the table so far after every run.
        overrides: further settings of the editor.

    Returns:
        A row per pair, in the order given: lambda_n, patience (ALL_STEPS for None), then `ketools.runs.demo.figures`.

    Raises:
        KetoolsError: an empty or repeated list, a negative or infinite number, or what `lifelong` refuses.
        ketools.runs.lifelong.Interrupted: Ctrl-C; finished batches and runs are kept.
    """
    _check(lambda_n, patience)
    out = Path(out)
    panel = panel or Panel.take(model, facts, facts.sample(edits, seed), seed=seed)
    rows: list[dict[str, object]] = []
    for weight in lambda_n:
        for steps in patience:
            how = replace(ENCORE, stopping=FixedSteps() if steps is None else MPES(steps))
            name = f"lambda_n={weight:g},patience={'all' if steps is None else steps}"
            with fresh(model):
                record = lifelong(
                    model, facts, how, edits=edits, batch=batch, checkpoint_every=edits, seed=seed, out=out / name,
                    statistics=statistics, panel=panel, progress=progress,
                    overrides={**overrides, "lambda_n_relative": float(weight)},
                )  # fmt: skip
            rows.append(
                {"lambda_n": float(weight), "patience": ALL_STEPS if steps is None else steps, **figures(record)}
            )
            if each is not None:
                each(pd.DataFrame(rows))
    table = pd.DataFrame(rows)
    write_atomic(out / "grid.parquet", table.to_parquet(index=False))
    return table


def keep(table: pd.DataFrame, name: str, about: Mapping[str, Any]) -> Path:
    """Put a table of `grid` and where it comes from into the data folder, as NAME.parquet and NAME.json; returns the table's path.

    Raises OSError if the folder cannot be written.
    """
    folder = data_root() / "dial"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", about)
    return write_atomic(folder / f"{name}.parquet", table.to_parquet(index=False))


def stored(model: EditableModel) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The grid of this model that lies in the data folder, and its provenance (edits, batch, seed, model, versions).

    Raises KetoolsError if there is none, or one of another model of this name; it says which command makes it.
    """
    path, remedy = (
        data_root() / "dial" / f"{model.name}.parquet",
        f"`python -m benchmarks.dial --model {model.name} --write` makes it",
    )
    if not path.is_file():
        raise KetoolsError(f"no grid of {model.name!r} at {path}; {remedy}")
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if about["model"]["fingerprint"] != model.fingerprint:
        raise KetoolsError(f"the grid at {path} is of another model than this {model.name!r}; {remedy} anew")
    return pd.read_parquet(path), about


def _check(lambda_n: Sequence[float], patience: Sequence[int | None]) -> None:
    for name, values in (("lambda_n", lambda_n), ("patience", patience)):
        if not len(values) or len(set(values)) < len(values):
            raise KetoolsError(f"{name}={list(values)!r}: expected different values, at least one")
    if wrong := [v for v in lambda_n if not (math.isfinite(v) and v >= 0)]:
        raise KetoolsError(f"lambda_n={wrong[0]!r}: expected a number >= 0; 0 leaves the norm free")
    if odd := [v for v in patience if v is not None and (isinstance(v, bool) or not isinstance(v, int) or v < 0)]:
        raise KetoolsError(f"patience={odd[0]!r}: expected a whole number >= 0, or None for all steps")
