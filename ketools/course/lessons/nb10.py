"""Notebook 10: a run that is stopped on purpose and goes on, what a long one would cost, exercises."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.evaluation.metrics import percent
from ketools.facts.fact import Fact, FactSet
from ketools.io import data_root
from ketools.models.model import EditableModel
from ketools.models.weights import fresh
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import Run, gather, title
from ketools.runs.resume import weights_digest
from ketools.runs.run import Interrupted, lifelong
from ketools.runs.store import RunRecord, Store

COMPARED = ("memit", "alphaedit", "encore")
"""Methods that reference runs are read for: without all three the notebook compares small runs."""


@dataclass(frozen=True)
class _Stopping(Panel):
    # A panel that is interrupted when it is to measure after `at` edits.
    at: int = 0

    def measure(
        self, model: EditableModel, past: Collection[Fact], p_edited: float, layers: Collection[int]
    ) -> dict[str, float]:
        if len(past) >= self.at:
            raise KeyboardInterrupt
        return super().measure(model, past, p_edited, layers)


class Runs:
    """Small lifelong runs of one lab, side by side on one panel, in a folder that goes with the notebook."""

    def __init__(self, lab: Lab, facts: FactSet, **sizes: int) -> None:
        """`facts`: what may be edited and compared with; `sizes` of the panel, as `ketools.runs.panel.Sizes` names them.

        lab.sizes must have edits and batch.
        """
        self.lab, self.facts = lab, facts
        self._folder = TemporaryDirectory(prefix="ketools-runs-")
        todo = facts.sample(lab.sizes.edits, lab.seed)
        small: dict[str, Any] = {"per_task": 0, "documents": 8, "neighbours_end": 1, "residual_tokens": 0} | sizes
        self.panel = Panel.take(lab.model, facts, todo, sizes=Sizes(**small), seed=lab.seed, tasks=pd.DataFrame())

    def path(self, name: str) -> Path:
        """The folder of the run `name`."""
        return Path(self._folder.name) / name

    def go(
        self, method: str, name: str | None = None, stop_at: int | None = None
    ) -> tuple[RunRecord | None, dict[int, str]]:
        """Start the run, or go on with it where it stopped; the model comes back unedited.

        stop_at: raise KeyboardInterrupt, as Ctrl-C does, in the checkpoint after so many edits; it is not finished then.

        Returns:
            (the record, or None if the run was stopped; sha256 of each edited matrix as the run left it).
        """
        lab, panel = self.lab, self.panel
        if stop_at is not None:
            panel = _Stopping(**{each.name: getattr(panel, each.name) for each in fields(Panel)}, at=stop_at)
        with fresh(lab.model):
            try:
                record: RunRecord | None = lifelong(
                    lab.model, self.facts, method, edits=lab.sizes.edits, batch=lab.sizes.batch, seed=lab.seed,
                    checkpoint_every=lab.sizes.every, out=self.path(name or method), statistics=lab.statistics,
                    panel=panel, progress=False,
                )  # fmt: skip
            except Interrupted:
                record = None
            return record, weights_digest(lab.model, sorted({i for edit in lab.model.edits for i in edit.layers}))

    def small(self, *methods: str) -> list[Run]:
        """The runs of these methods, made where they are not done yet."""
        for method in methods:
            self.go(method)
        return gather([self.path(method) for method in methods])

    def files(self, name: str) -> dict[str, int]:
        """How many files of each kind the run's folder holds."""
        out = self.path(name)
        kinds = ("batches", "edits", "state", "snapshots", "checkpoints")
        return {kind: len(list((out / kind).glob("[0-9]*"))) for kind in kinds}

    def bytes_per_fact(self, name: str) -> float:
        """Of the updates alone: the files of the run's edits, over its facts."""
        sizes = [path.stat().st_size for path in (self.path(name) / "edits").iterdir()]
        return sum(sizes) / self.lab.sizes.edits

    def megabytes(self, name: str) -> float:
        """Size of the run's folder."""
        return sum(path.stat().st_size for path in self.path(name).rglob("*") if path.is_file()) / 1e6


def reference(lab: Lab, folder: Path | None = None) -> list[Run]:
    """The reference runs (None: those in data/results) of this lab's model and seed, finished; [] unless all of COMPARED are there.

    Finished: all edits, or an end before them in an update that is not finite. Raises KetoolsError for a damaged record.
    """
    folder = folder or data_root() / "results"
    inside = [path for path in sorted(folder.iterdir()) if Store(path).exists()] if folder.is_dir() else []
    runs = [
        run
        for run in (gather(inside) if inside else [])
        if (run.fingerprint, run.seed) == (lab.model.fingerprint, lab.seed) and (run.complete or run.collapsed)
    ]
    return runs if set(COMPARED) <= {run.method for run in runs} else []


def hours(records: Mapping[str, RunRecord]) -> str:
    """What editing alone took, by method: "MEMIT 1.2 h, ENCORE 40 min"."""
    took = {method: float(record.batches["seconds"].sum()) for method, record in records.items()}
    return ", ".join(f"{title(method)} {_clock(seconds)}" for method, seconds in took.items())


def _clock(seconds: float) -> str:
    big = {"h": 3600, "min": 60, "s": 1}
    unit = next((name for name, size in big.items() if seconds >= 1.5 * size), "s")
    return f"{seconds / big[unit]:.1f} {unit}"


def keeper(kept: pd.Series, apart: float = 0.05) -> tuple[str, dict[str, str]]:
    """For a prediction: who of COMPARED kept most (or "undecided", if best and worst lie less than `apart` apart), and why not
    the others. `kept`: shares by method.
    """
    kept = kept[[method for method in COMPARED if method in kept.index]]
    best, between = str(kept.idxmax()), float(kept.max() - kept.min())
    if between < apart:
        return "undecided", dict.fromkeys(kept.index, "Nearly all of it is still there with every method that was run.")
    why = {
        method: f"It has kept {percent(share)}, {title(best)} {percent(kept[best])}." for method, share in kept.items()
    }
    return best, why | {"undecided": f"Best and worst lie {100 * between:.0f} of 100 facts apart."}


def chance(p: float) -> str:
    """A p-value as text; those too small for a float are below 1e-300, not 0."""
    return "<1e-300" if p < 1e-300 else f"{p:.2g}"


def same_tables(one: RunRecord, two: RunRecord) -> float:
    """1.0 if two runs of one method hold the same rows in all tables, to the bit, but for the clock's columns."""
    for name in ("batches", "facts", "norms", "checkpoints"):
        left, right = getattr(one, name), getattr(two, name)
        clock = [column for column in left if column.startswith("seconds")]
        if not left.drop(columns=clock).equals(right.drop(columns=clock)):
            return 0.0
    return 1.0


Forecast = Callable[[Sequence[float], int, int], float]


forecast = Exercise(
    "Forecast the long run",
    "medium",
    10,
    properties=(
        Property("equal batches cost alike", lambda answer: abs(float(answer([2.0, 2.0, 2.0, 2.0], 10, 100)) - 20.0) < 1e-6, "`seconds` are of batches, not of edits: 100 edits are 10 batches of 10."),
        Property(
            "growth is carried on",
            lambda answer: abs(float(answer([1.0, 2.0, 3.0, 4.0], 10, 100)) - 55.0) < 1e-6,
            "Batches get dearer as past keys pile up. Fit a line over the batches (np.polyfit) and sum it over all of them.",
        ),
    ),
    )  # fmt: skip

Lost = Callable[[Sequence[float], Sequence[float]], float]


forgotten = Exercise(
    "Count what was forgotten",
    "easy",
    5,
    properties=(
        Property(
            "half of what took is lost",
            lambda answer: abs(float(answer([1, 1, 1, 1], [1, 0, 1, 0])) - 0.5) < 1e-12,
            "Compare fact by fact: 1 at edit time and 0 at the end.",
        ),
        Property(
            "what never took cannot be forgotten",
            lambda answer: abs(float(answer([1, 1, 0, 0, 0], [1, 0, 0, 1, 0])) - 0.5) < 1e-12,
            "An edit that failed at once is no loss later, and one that comes by luck makes up for none. Keep those with 1 at "
            "edit time, then ask how many of them are 0.",
        ),
    ),
)
