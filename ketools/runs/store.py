"""What a run leaves on disk: a folder from which it can be read, judged and continued. Only ever added to.

    run.json                      settings, config and provenance; its copy is in batches/00000.json
    batches/00000.json            before the first edit: norms, and what the panel measured
    batches/00001.json            the rows of batch 1 and the checksums of its other files; written last, it is the commit
    edits/00001.safetensors       its update, factored, float32
    state/00001.safetensors       what it adds to the editor's state: its own keys, not those of the batches before
    snapshots/00010.safetensors   every `consolidate_every` batches: the bits of the edited matrices; the last two stay
    checkpoints/00005.json        what was measured after batch 5
    collapse.json                 if the run ended in an update that is not finite: where, and why
    progress.json, tables.json, *.parquet   the same in short, and as tables; made from the above, and anew if damaged
    lock                          held by the process that works here

Each JSON file holds its own checksum, a commit those of its safetensors files, tables.json those of the parquet files; it is
taken away before any of them changes and written last, so that tables without it are to be made anew.
Every file is written to a temporary name, flushed and renamed: a kill at any moment loses at most the batch or the
checkpoint in hand.

How bits are kept: the weights after batch n are W_0 with the updates of batches 1 .. n added one after another, each sum
in float64 and rounded once to the type of the weights. Nothing is ever merged or rounded again, so that the weights after
any batch can be had from the factors; a snapshot only saves adding up those before it. A commit holds the sha256 of the
edited matrices, against which restored ones are compared.

Size: 4 (d_model + d_mlp) bytes a fact and edited layer for the updates, 4 d_mlp for the keys of methods that protect them,
two snapshots, and about 500 bytes a fact for the rows.

For readers: `RunRecord.load(folder)`. A folder with run.json and the parquet files alone (`ketools.runs.light`) is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.editing.state import SequentialState
from ketools.errors import KetoolsError
from ketools.files import write_tensors
from ketools.runs.sealed import Damaged, file_digest, joined, pack, read_sealed, unpack, write_sealed
from ketools.runs.tables import FRAMES, open_tables, read_tables, write_tables

_OF_BATCH, _OF_CHECKPOINT = FRAMES[:3], FRAMES[3:]
# The files of batches and checkpoints; what else lies in their folders is somebody else's.
OURS = re.compile(r"(?:batches|checkpoints)/[0-9]{5,}\.json|(?:edits|state|snapshots)/[0-9]{5,}\.safetensors")


@dataclass(frozen=True)
class RunRecord:
    """A lifelong run, measured.

    batches: a row per batch: batch (1..), edits (so far), facts (in it), seconds (editing), seconds_targets ..
        seconds_write, seconds_scoring (at edit time), known (facts whose target was the top answer already),
        steps_mean, steps_max, p_target_mean (when the target computation stopped), at_edit_ES .. at_edit_S and
        at_edit_p_new (the batch's facts right after the batch).
    norms: a row per batch (0: before any edit) and layer: batch, edits, layer, matrix, edited, norm, ratio (to before
        any edit), update_norm (Frobenius norm of this batch's update; NaN for unedited layers).
    facts: a row per edited fact: id, batch, relation, subject, steps, p_target, at_edit_* and, once the run is
        complete, end_*: the columns of `ketools.evaluation.edits.evaluate`.
    checkpoints: a row per checkpoint: edits, then everything that `ketools.runs.panel` and `ketools.runs.inside`
        measure; ES .. S and the accuracies are of all edits so far, scored now (the last row: at the end), NS on at most
        `neighbours` of each.
    spectra: a row per checkpoint and edited layer: edits, batch, layer and the columns of
        `ketools.norms.spectra.shape_of`.
    residual: a row per checkpoint and summand of the residual stream: edits, batch and the columns of
        `ketools.norms.residual.contributions` (layer, kind, edited, norm, share, relative, projection, tokens).
    provenance: settings, config, versions, device, seed, method, model fingerprint, git commit.
    collapse: None, or {"batch", "first", "last", "edits", "why"}: the update of edits first .. last (batch) was not
        finite; the run ended with the `edits` before it.
    """

    batches: pd.DataFrame
    norms: pd.DataFrame
    facts: pd.DataFrame
    checkpoints: pd.DataFrame
    provenance: dict[str, Any]
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    residual: pd.DataFrame = field(default_factory=pd.DataFrame)
    collapse: dict[str, Any] | None = None

    @classmethod
    def load(cls, out: str | Path) -> RunRecord:
        """Read a run's folder, finished or not; KetoolsError if there is none, or a file of it is damaged (named)."""
        store = Store(Path(out))
        if not store.exists():
            raise KetoolsError(f"{out}: no run here (run.json is missing); expected the folder that a run wrote")
        return cls(**store.frames(), provenance=store.about(), collapse=store.collapse())


class Store:
    """The files of one run. Errors of the disk come out as KetoolsError naming the folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def exists(self) -> bool:
        """Has a run been started here?"""
        return (self.out / "run.json").is_file() or self.batch_path(0).is_file()

    @property
    def light(self) -> bool:
        """Are these the tables of a run alone (`ketools.runs.light`)?"""
        return not self._begun and any(self.out.glob("*.parquet"))

    @property
    def _begun(self) -> bool:
        return (self.out / "batches").is_dir()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Disk errors (full, not writable, not a folder) as one clear message."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise KetoolsError(
                f"cannot write to {self.out}: {reason}; what was finished before is kept. "
                "Make room or choose another output folder (out=, --out)"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process works here; the lock goes with its process, however that ends.

        Raises KetoolsError at once if there is one.
        """
        with self.writing():
            self.out.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.out / "lock", timeout=0)
            try:
                lock.acquire()
            except Timeout as error:
                raise KetoolsError(
                    f"another process is working on the run in {self.out}; wait for it, or choose another output folder"
                ) from error
        try:
            yield
        finally:
            lock.release()

    def about(self) -> dict[str, Any]:
        """run.json, or its copy if the file itself is damaged. Raises Damaged if both are."""
        try:
            return read_sealed(self.out / "run.json")
        except Damaged as error:
            try:
                return read_sealed(self.batch_path(0))["run"]
            except Damaged:
                raise error from None

    def write_about(self, about: Mapping[str, Any]) -> None:
        """run.json."""
        write_sealed(self.out / "run.json", about, indent=2)

    def batch_path(self, batch: int) -> Path:
        """The commit of batch 1, 2, ...; 0: before the first edit."""
        return self.out / "batches" / f"{batch:05d}.json"

    def edit_path(self, batch: int) -> Path:
        """Where the edit of batch 1, 2, ... lies."""
        return self.out / "edits" / f"{batch:05d}.safetensors"

    def state_path(self, batch: int) -> Path:
        """Where what batch 1, 2, ... added to the editor's state lies."""
        return self.out / "state" / f"{batch:05d}.safetensors"

    def snapshot_path(self, batch: int) -> Path:
        """Where the edited matrices after batch 1, 2, ... lie, if they were kept."""
        return self.out / "snapshots" / f"{batch:05d}.safetensors"

    def checkpoint_path(self, batch: int) -> Path:
        """What was measured after batch 0, 1, ..."""
        return self.out / "checkpoints" / f"{batch:05d}.json"

    def batches(self) -> int:
        """How many batches are committed, counted from 1 without a gap; their other files are not looked at."""
        number = 0
        while self.batch_path(number + 1).is_file():
            number += 1
        return number

    def progress(self) -> dict[str, int]:
        """{"batches": done, "edits": done}."""
        number = self.batches()
        return {"batches": number, "edits": int(self.commit(number)["edits"]) if number else 0}

    def write_progress(self, batch: int, edits: int) -> None:
        """progress.json, for others to look at, and for `verify` to know what must be there: the truth is in batches/."""
        marks = {"checkpoint": self.checkpoint_path(batch), "collapse": self.out / "collapse.json"}
        there = {name: True for name, path in marks.items() if path.is_file()}
        write_sealed(self.out / "progress.json", {"batches": batch, "edits": edits} | there)

    def _note(self) -> None:
        if self._begun:  # a light record has no progress
            self.write_progress(*self.progress().values())

    def commit(self, batch: int) -> dict[str, Any]:
        """The commit of a batch. Raises Damaged."""
        return read_sealed(self.batch_path(batch))

    def start(self, tables: Mapping[str, pd.DataFrame], panel: Mapping[str, Any]) -> None:
        """Before the first edit: rows of the unedited model, and what the panel measured on it."""
        packed = {name: pack(frame) for name, frame in tables.items()}
        write_sealed(self.batch_path(0), {"edits": 0, "tables": packed, "panel": panel, "run": self.about()})

    def put(
        self,
        batch: int,
        edits: int,
        edit: Edit,
        state: SequentialState,
        tables: Mapping[str, pd.DataFrame] | None = None,
        *,
        weights: Mapping[int, str] | None = None,
        snapshot: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Everything of one batch, then its commit.

        Args:
            batch, edits: its number (1..), and how many facts are edited with it.
            edit, state: what it did; of the state only its own keys are written.
            tables: its rows.
            weights: sha256 of each edited matrix; snapshot: the matrices themselves, if they are to be kept.
        """
        edit.save(self.edit_path(batch))
        replace(state, past={i: blocks[-1:] for i, blocks in state.past.items()}).save(self.state_path(batch))
        files = [self.edit_path(batch), self.state_path(batch)]
        if snapshot is not None:
            files.append(self.snapshot_path(batch))
            self.put_snapshot(batch, snapshot)
        content = {
            "batch": batch,
            "edits": edits,
            "files": {path.relative_to(self.out).as_posix(): file_digest(path) for path in files},
            "weights": {str(i): value for i, value in (weights or {}).items()},
            "tables": {name: pack(frame) for name, frame in (tables or {}).items()},
        }
        write_sealed(self.batch_path(batch), content)
        self.write_progress(batch, edits)
        for path in self.snapshots()[:-2]:
            path.unlink(missing_ok=True)

    def put_snapshot(self, batch: int, bits: Mapping[int, Tensor]) -> None:
        """The edited matrices after a batch."""
        write_tensors(self.snapshot_path(batch), {str(i): w for i, w in bits.items()}, {"format": "ketools-snapshot-1"})

    def numbers(self, folder: str) -> list[int]:
        """Of the batches that have a file in `folder`, in order; other names (a sync tool's "00003 2.json") are nobody's."""
        return sorted(int(p.stem) for p in (self.out / folder).glob("*") if OURS.fullmatch(f"{folder}/{p.name}"))

    def snapshots(self) -> list[Path]:
        """Snapshots that are there, in order."""
        return [self.snapshot_path(number) for number in self.numbers("snapshots")]

    def point(self, batch: int) -> dict[str, Any]:
        """The packed tables of a checkpoint. Raises Damaged."""
        return read_sealed(self.checkpoint_path(batch))

    def put_checkpoint(self, batch: int, tables: Mapping[str, pd.DataFrame]) -> None:
        """What was measured after a batch: tables of a checkpoint, and "ends", columns end_* of all facts."""
        open_tables(self.out)
        write_sealed(self.checkpoint_path(batch), {name: pack(frame) for name, frame in tables.items()})
        self._note()

    def collapse(self) -> dict[str, Any] | None:
        """How the run ended early; None if it did not."""
        path = self.out / "collapse.json"
        return read_sealed(path) if path.is_file() else None

    def put_collapse(self, content: Mapping[str, Any]) -> None:
        """The update of a batch was not finite: the run ends here."""
        write_sealed(self.out / "collapse.json", content)
        self._note()

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables as far as they are committed. Raises Damaged, naming the file."""
        if not self._begun:
            return read_tables(self.out)
        numbers = self.numbers("batches")
        last = numbers[-1] if numbers else 0
        held = [self.commit(number)["tables"] for number in range(last + 1)] if numbers else []
        points = [self.point(number) for number in self.numbers("checkpoints") if number <= last]
        found = {name: joined(unpack(part[name]) for part in held if name in part) for name in _OF_BATCH}
        found |= {name: joined(unpack(part[name]) for part in points if name in part) for name in _OF_CHECKPOINT}
        ends = [unpack(part["ends"]) for part in points if "ends" in part]
        if ends:
            found["facts"] = pd.concat([found["facts"], ends[-1]], axis=1)
        return found

    def write_tables(self) -> None:
        """The tables as parquet files, and their checksums."""
        write_tables(self.out, self.frames())
