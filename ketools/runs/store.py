"""What a run leaves on disk: a folder from which it can be read, judged and continued.

    run.json              settings and provenance, written once at the start
    progress.json         the last batch that is wholly on disk; replaced last, so that it is the commit
    batches.parquet       a row per batch
    norms.parquet         a row per batch and layer (batch 0: before any edit)
    facts.parquet         a row per edited fact
    checkpoints.parquet   a row per checkpoint
    edits/00001.safetensors, ..., state/00001.*      what is needed to go on after batch 1, ...

A kill at any moment loses at most the batch (or checkpoint) in hand: rows beyond progress.json are not read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ketools.errors import KetoolsError
from ketools.files import finite, write_atomic, write_json

FRAMES = ("batches", "norms", "facts", "checkpoints")


@dataclass(frozen=True)
class RunRecord:
    """A lifelong run, measured.

    batches: a row per batch: batch (1..), edits (so far), facts (in it), seconds (editing), seconds_targets ..
        seconds_write, seconds_scoring (at edit time),
        steps_mean, steps_max, p_target_mean (when the target computation stopped), at_edit_ES .. at_edit_S and
        at_edit_p_new (the batch's facts right after the batch).
    norms: a row per batch (0: before any edit) and layer: batch, edits, layer, matrix, edited, norm, ratio (to before
        any edit), update_norm (Frobenius norm of this batch's update; NaN for unedited layers).
    facts: a row per edited fact: id, batch, relation, subject, steps, p_target, at_edit_* and, once the run is
        complete, end_*: the columns of `ketools.evaluation.edits.evaluate`.
    checkpoints: a row per checkpoint: edits, then everything that `ketools.runs.panel` measures; ES .. S and the
        accuracies are of all edits so far, scored now (the last row: at the end), NS on at most `neighbours` of each.
    provenance: settings, versions, device, seed, method, model fingerprint, git commit.
    """

    batches: pd.DataFrame
    norms: pd.DataFrame
    facts: pd.DataFrame
    checkpoints: pd.DataFrame
    provenance: dict[str, Any]

    @classmethod
    def load(cls, out: str | Path) -> RunRecord:
        """Read a run's folder, finished or not; KetoolsError if there is none."""
        store = Store(Path(out))
        if not store.exists():
            raise KetoolsError(f"{out}: no run here (run.json is missing); expected the folder that a run wrote")
        return cls(**store.frames(), provenance=store.read("run.json"))


class Store:
    """The files of one run. Errors of the disk come out as KetoolsError naming the folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def exists(self) -> bool:
        """Has a run been started here?"""
        return (self.out / "run.json").is_file()

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

    def begin(self, settings: dict[str, Any], provenance: dict[str, Any]) -> int:
        """Start, or go on with what lies here; returns the number of batches that are done.

        Raises:
            KetoolsError: the folder holds a run with other settings (names the first that differs), or cannot be
                written.
        """
        settings = json.loads(json.dumps(finite(settings)))  # as it will be read back
        if not self.exists():
            with self.writing():
                (self.out / "edits").mkdir(parents=True, exist_ok=True)
                (self.out / "state").mkdir(exist_ok=True)
                self.write("run.json", {"settings": settings, **provenance})
            return 0
        found = self.read("run.json").get("settings", {})
        for name in settings:
            if found.get(name) != settings[name]:
                raise KetoolsError(
                    f"{self.out} holds a run with {name} = {found.get(name)!r}, asked for is {settings[name]!r}; "
                    "give the same settings to go on with it, or another output folder"
                )
        with self.writing():  # found out now, not after the first batch
            self.write("progress.json", self.progress())
        return int(self.progress()["batches"])

    def progress(self) -> dict[str, int]:
        """{"batches": done, "edits": done}."""
        path = self.out / "progress.json"
        return self.read("progress.json") if path.is_file() else {"batches": 0, "edits": 0}

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run."""
        try:
            return json.loads((self.out / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise KetoolsError(
                f"{self.out / name}: cannot be read ({error}); remove the folder to start anew"
            ) from error

    def write(self, name: str, content: dict[str, Any]) -> None:
        """A JSON file of the run, whole or not at all."""
        write_json(self.out / name, content)

    def edit_path(self, batch: int) -> Path:
        """Where the edit of batch 1, 2, ... lies."""
        return self.out / "edits" / f"{batch:05d}.safetensors"

    def state_path(self, batch: int) -> Path:
        """Where the editor's state after batch 1, 2, ... lies (only the last is kept)."""
        return self.out / "state" / f"{batch:05d}.safetensors"

    def save_frames(self, **frames: pd.DataFrame) -> None:
        """Tables, each whole or not at all."""
        for name, frame in frames.items():
            assert name in FRAMES, name
            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            write_atomic(self.out / f"{name}.parquet", buffer.getvalue())

    def commit(self, batch: int, edits: int) -> None:
        """Everything up to this batch is on disk: say so, then drop the states before it."""
        self.write("progress.json", {"batches": batch, "edits": edits})
        for path in (self.out / "state").iterdir():
            if not path.name.startswith(f"{batch:05d}"):
                path.unlink()

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables as far as they are committed."""
        done = self.progress()
        return {name: self._frame(name, done) for name in FRAMES}

    def _frame(self, name: str, done: dict[str, int]) -> pd.DataFrame:
        path = self.out / f"{name}.parquet"
        if not path.is_file():
            return pd.DataFrame()
        frame = pd.read_parquet(path)
        column = "edits" if name == "checkpoints" else "batch"
        return frame[frame[column] <= done["edits" if name == "checkpoints" else "batches"]].reset_index(drop=True)
