"""The folder of a run, from which it can be read, checked and resumed. Files are only ever added.

    run.json                      settings, config and provenance; its copy is in batches/00000.json
    batches/00000.json            before the first edit: norms, and what the panel measured
    batches/00001.json            the rows of batch 1 and the checksums of its other files; written last, it is the commit
    edits/00001.safetensors       its update, factored, float32
    state/00001.safetensors       what it adds to the editor's state: only its own keys
    snapshots/00010.safetensors   every `consolidate_every` batches: the edited matrices, bit for bit; the last two are kept
    checkpoints/00005.json        what was measured after batch 5
    collapse.json                 if an update was not finite and ended the run: where, and why
    progress.json, tables.json, *.parquet   a summary and the tables; derived from the above, rewritten if damaged
    lock                          held by the process that is working here

Every JSON file holds its own checksum. A commit also holds those of its safetensors files, and tables.json those of the
parquet files. The commit of batch 1 names the "id" in run.json, every later commit the digest of the one before it, so a
record of another run is detected. A record names only files of its own batch, and no link may lead out of the folder.
tables.json is removed before a table changes and written last; tables without it are rewritten. Every file is written to a
temporary name, flushed and renamed, so a kill at any moment loses at most the batch or checkpoint in progress.

The weights after batch n are W_0 plus the updates of batches 1 .. n, added one after another. Each sum is computed in float64
and rounded once to the dtype of the weights. Updates are never merged or rounded again, so the weights after any batch follow
from the factors; a snapshot only saves time. A commit holds the sha256 of each edited matrix, and restored matrices must match.

Size: 4 (d_model + d_mlp) bytes per fact and edited layer for the updates, 4 d_mlp for the keys of methods that protect them,
two snapshots, and about 500 bytes per fact for the rows.

`RunRecord.load(folder)` reads a run. study.py keeps runs without their weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.editing.editor import SequentialState
from ketools.errors import Damaged, KetoolsError
from ketools.io import PART, checked, finite, read_json, write_atomic, write_tensors

FRAMES = ("batches", "norms", "facts", "checkpoints", "spectra", "residual")
"""The tables of a run: the first three have rows for every batch, the others for every checkpoint."""
FOLDERS = ("batches", "edits", "state", "snapshots", "checkpoints")
# Files of batches and checkpoints; anything else in their folders is foreign ("00003 2.json" of a sync tool).
OURS = re.compile(r"(?:batches|checkpoints)/[0-9]{5,9}\.json|(?:edits|state|snapshots)/[0-9]{5,9}\.safetensors")
TABLES = tuple(f"{name}.parquet" for name in FRAMES)
TOP = ("run.json", "progress.json", "tables.json", "collapse.json", *TABLES, "edit.safetensors", "report.parquet")
_LEFT = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/)?{PART}")
_RECENT = 5  # batches whose time per edit `status` averages
_TEXTS = ("id", "relation", "subject", "matrix", "kind")  # columns of text; all others are numbers
_COLUMNS = {  # the least that each table must have
    "batches": ("batch", "edits", "facts", "seconds", "seconds_scoring", "known"),
    "norms": ("batch", "edits", "layer", "edited", "norm", "ratio", "update_norm"),
    "facts": ("id", "batch"),
    "checkpoints": ("edits",),
    "spectra": ("edits", "layer"),
    "residual": ("edits", "layer", "kind"),
}


class Schema(BaseModel):
    """Part of a JSON file of a run: named fields are checked, others are kept."""

    model_config = ConfigDict(extra="allow")


_Count = Annotated[int, Field(ge=0)]
_Table = dict[str, Annotated[list[str | list[Any]], Field(min_length=2, max_length=2)]]  # {column: [dtype, values]}


class _Method(Schema):
    name: str = ""
    stopping: dict[str, Any] | None = None
    update: dict[str, Any] | None = None
    post: dict[str, Any] | None = None


class _Settings(Schema):
    method: _Method | None = None
    hyper: dict[str, Any] | None = None
    sizes: dict[str, Any] | None = None
    model: str = ""
    edits: _Count = 0
    batch: _Count = 0
    checkpoint_every: _Count = 0
    seed: _Count = 0
    left_out: _Count = 0


class _Model(Schema):
    name: str = ""
    fingerprint: str = ""
    d_mlp: Annotated[int, Field(ge=1)] | None = None


class _Forced(Schema):
    after_batch: _Count
    changed: dict[str, Any]


class About(Schema):
    """run.json."""

    settings: _Settings
    model: _Model | None = None
    method: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    seed: _Count = 0
    started: str = ""
    forced: list[_Forced] = []
    id: str | None = None


class Commit(Schema):
    """batches/00001.json and so on."""

    batch: _Count
    edits: _Count
    files: dict[str, str]
    weights: dict[str, str]
    tables: dict[str, _Table]
    previous: str | None = None


class Begun(Schema):
    """batches/00000.json."""

    edits: _Count
    tables: dict[str, _Table]
    panel: dict[str, Any]
    run: About


class Measured(Schema):
    """checkpoints/00005.json."""

    checkpoints: _Table = {}
    spectra: _Table = {}
    residual: _Table = {}
    ends: _Table = {}
    run: str | None = None


class Collapse(Schema):
    """collapse.json."""

    batch: Annotated[int, Field(ge=1)]
    first: _Count
    last: _Count
    edits: _Count
    why: str
    run: str | None = None


class Progress(Schema):
    """progress.json."""

    batches: _Count
    edits: _Count


def digest(content: object) -> str:
    """sha256 (hex) of a JSON value, independent of indentation and key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = None) -> Path:
    """Write `content` and its digest, "sha256", as JSON; NaN and infinity become null. Returns the path."""
    plain = json.loads(json.dumps(finite(content), ensure_ascii=False, default=str))
    sealed = plain | {"sha256": digest(plain)}
    return write_atomic(path, json.dumps(sealed, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_sealed(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - as in io.checked
    """What `write_sealed` wrote, without the digest. Raises Damaged if the file is missing, changed or of another kind."""
    if not path.exists():
        raise Damaged(f"{path}: missing")
    content = read_json(path, dict[str, Any], "a record of a run")
    try:
        sound = content.pop("sha256", None) == digest(content)
    except RecursionError:
        sound = False
    if not sound:
        raise Damaged(f"{path}: its checksum does not match; the file was changed or damaged")
    return checked(content, schema, str(path))


def _to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """{column: [dtype, values]}: floats keep their bits; NaN and infinities, which JSON lacks, become strings."""
    return {
        str(name): [
            str(frame[name].dtype),
            [str(x) if isinstance(x, float) and not math.isfinite(x) else x for x in frame[name].tolist()],
        ]
        for name in frame.columns
    }


def _joined(packed: Iterable[Mapping[str, Any]], where: str) -> pd.DataFrame:
    """The tables that `_to_json` packed, concatenated; an empty table for none. Raises Damaged."""
    frames = []
    try:
        for columns in packed:
            series = {
                name: pd.Series([float(x) for x in values] if dtype.startswith("float") else values, dtype=dtype)
                for name, (dtype, values) in columns.items()
            }
            frames += [pd.DataFrame(series)] if series else []
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise Damaged(f"{where}: not the columns that a run writes ({error})") from error


def usable(name: str, frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table `name` itself. Raises Damaged if a required column is missing or a column has the wrong type."""
    if len(frame) and (missing := [column for column in _COLUMNS[name] if column not in frame]):
        raise Damaged(f"{where}: the column {missing[0]!r} is missing; expected a table of a run")
    for column, kind in frame.dtypes.items():
        if pd.api.types.is_numeric_dtype(kind) == (column in _TEXTS) or not isinstance(column, str):
            expected = "texts" if column in _TEXTS else "numbers"
            raise Damaged(f"{where}: the column {column!r} holds {kind}; expected {expected}")
    return frame


@dataclass(frozen=True)
class RunRecord:
    """The measurements of a lifelong run.

    batches: a row per batch: batch (1..), edits (so far), facts (in it), seconds (editing), seconds_targets ..
        seconds_write, seconds_scoring (at edit time), known (facts whose target was already the top answer),
        steps_mean, steps_max, p_target_mean (when the target optimisation stopped), at_edit_ES .. at_edit_S and
        at_edit_p_new (the batch's facts, scored right after the batch).
    norms: a row per batch (0: before any edit) and layer: batch, edits, layer, matrix, edited, norm, ratio (norm relative
        to before any edit), update_norm (Frobenius norm of this batch's update; NaN for unedited layers).
    facts: a row per edited fact: id, batch, relation, subject, steps, p_target, at_edit_* and, once the run is
        complete, end_*: the columns of `ketools.evaluation.edits.evaluate`.
    checkpoints: a row per checkpoint: edits, then all that `ketools.runs.panel` measures; ES .. S and the accuracies
        cover all edits so far, scored at this checkpoint, NS on at most `neighbours` prompts of each.
    spectra: a row per checkpoint and edited layer: edits, batch, layer and the columns of
        `ketools.norms.weights.shape_of`.
    residual: a row per checkpoint and term of the residual stream: edits, batch and the columns of
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
        """Read the run in a folder, finished or not. Raises KetoolsError if there is none or a file (named) is damaged."""
        store = Store.of(out)
        return cls(**store.frames(), provenance=store.about(), collapse=store.collapse())


class Store:
    """The files of one run."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @classmethod
    def of(cls, out: str | Path) -> Store:
        """The store of the run in `out`; KetoolsError if there is none."""
        store = cls(Path(out))
        if (store.out / "runs.json").is_file():
            raise KetoolsError(
                f"{out}: holds tables of runs without their weights; read them with `ketools compare` or `ketools report`"
            )
        if not store.exists():
            raise KetoolsError(f"{out}: no run here (run.json is missing); expected the folder that a run wrote")
        store.check_files()
        return store

    def check_files(self) -> None:
        """Raise KetoolsError for a file of the run that is a link out of its folder, a folder, a pipe or a device.

        Reading, writing and removing then stay inside the folder. A folder without a run may not hold files with a run's
        names: they belong to somebody else and would be overwritten.
        """
        root = Path(os.path.realpath(self.out))
        names = {*TOP, "lock", *FOLDERS}
        names |= {f"{folder}/{p.name}" for folder in FOLDERS for p in (self.out / folder).glob("*")}
        for name in sorted(names):
            path = self.out / name
            if not os.path.lexists(path):
                continue
            if not Path(os.path.realpath(path)).is_relative_to(root):
                raise KetoolsError(f"{path}: a link that leads out of the run's folder; remove it")
            if name in FOLDERS and not path.is_dir():
                raise KetoolsError(f"{path}: expected a folder; remove it")
            if name not in FOLDERS and not path.is_file() and (name in (*TOP, "lock") or OURS.fullmatch(name)):
                raise KetoolsError(f"{path}: expected a file, got a folder, a pipe or a device; remove it")
            if name not in ("lock", "run.json") and not self.exists():
                raise KetoolsError(
                    f"{path} exists without a run (run.json is missing), and a run would overwrite it; give another folder"
                )

    def exists(self) -> bool:
        """Has a run been started here?"""
        return (self.out / "run.json").is_file() or self.path("batches", 0).is_file()

    def check_whole(self) -> None:
        """Raise Damaged for tables without their batches, which a run would overwrite."""
        if not self.numbers("batches") and (tables := [name for name in TABLES if (self.out / name).exists()]):
            raise Damaged(f"{self.out / tables[0]}: a table of a run without its batches; put the run's folders back")

    def clear(self) -> None:
        """Remove the files of the run, and its folders if they are then empty; nothing else."""
        self.check_files()
        for name in [*TOP[1:], *(f"{folder}/{p.name}" for folder in FOLDERS for p in (self.out / folder).glob("*"))]:
            if name in TOP or _is_ours(name):
                (self.out / name).unlink(missing_ok=True)
        (self.out / "run.json").unlink(missing_ok=True)  # last: a half-removed run still counts as one
        for folder in FOLDERS:
            with suppress(OSError):
                (self.out / folder).rmdir()

    def path(self, folder: str, batch: int) -> Path:
        """The file of a batch (1, 2, ...; 0: before the first edit) in one of FOLDERS."""
        return self.out / folder / f"{batch:05d}.{'json' if folder in ('batches', 'checkpoints') else 'safetensors'}"

    def numbers(self, folder: str) -> list[int]:
        """The batches that have a file in `folder`, in order."""
        return sorted(int(p.stem) for p in (self.out / folder).glob("*") if OURS.fullmatch(f"{folder}/{p.name}"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block, disk errors (full, not writable, not a folder) become a KetoolsError naming the folder."""
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
        """Within the block no other process works here; the lock is released when its process ends, in whatever way.

        Raises KetoolsError at once if another process holds it.
        """
        self.check_files()
        made = not self.out.exists()
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
            if made and not self.exists():  # the run was refused: leave nothing behind
                (self.out / "lock").unlink(missing_ok=True)
                with suppress(OSError):
                    self.out.rmdir()

    def about(self) -> dict[str, Any]:
        """run.json, or its copy if the file itself is damaged. Raises Damaged if both are, or belong to two runs."""
        try:
            copy = self.commit(0)["run"]
        except Damaged:
            copy = None
        try:
            own = read_sealed(self.out / "run.json", About)
        except Damaged:
            if copy is None:
                raise
            return copy
        if copy is not None and copy.get("id") != own.get("id"):
            raise Damaged(
                f"{self.out}: run.json and batches/00000.json belong to two runs; restore the right one, or remove run.json: "
                "batches/00000.json holds a copy"
            )
        return own

    def write_about(self, about: Mapping[str, Any]) -> None:
        """run.json."""
        write_sealed(self.out / "run.json", about, indent=2)

    def commit(self, batch: int) -> dict[str, Any]:
        """The commit of a batch. Raises Damaged."""
        path = self.path("batches", batch)
        content = read_sealed(path, Commit if batch else Begun)
        own = {self.path(folder, batch).relative_to(self.out).as_posix() for folder in FOLDERS[1:4]}
        if batch and content["batch"] != batch:
            raise Damaged(f"{path}: field batch: this is the record of batch {content['batch']}")
        if foreign := sorted(content.get("files", {}).keys() - own):
            raise Damaged(f"{path}: field files: {foreign[0]!r} is no file of this batch")
        return content

    def follows(self, batch: int, commit: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """Raise Damaged if the commit of a batch (from 1) belongs to another run or does not follow `before`, the previous one."""
        previous = self.about().get("id")
        if previous is not None and batch > 1:
            if before is None:
                return
            previous = digest(before)
        if commit.get("previous") != previous:
            raise Damaged(f"{self.path('batches', batch)}: field previous: the record of another run, or out of order")

    def measured(self, batch: int) -> dict[str, Any]:
        """What was measured after a batch. Raises Damaged."""
        return self._of_this_run(read_sealed(path := self.path("checkpoints", batch), Measured), path)

    def _of_this_run(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        if content.get("run") != self.about().get("id"):
            raise Damaged(f"{path}: field run: the record of another run")
        return content

    def progress(self) -> dict[str, int]:
        """{"batches", "edits"}: how many are committed, from batch 1 up to the first gap; other files are not read."""
        number = 0
        while self.path("batches", number + 1).is_file():
            number += 1
        return {"batches": number, "edits": int(self.commit(number)["edits"]) if number else 0}

    def write_progress(self) -> None:
        """progress.json, for people and for `survey`, which learns from it what must exist. The commits decide what is done."""
        progress: dict[str, Any] = self.progress()
        marks = {"checkpoint": self.path("checkpoints", progress["batches"]), "collapse": self.out / "collapse.json"}
        progress |= {name: True for name, path in marks.items() if path.is_file()}
        write_sealed(self.out / "progress.json", progress)

    def start(self, tables: Mapping[str, pd.DataFrame], panel: Mapping[str, Any]) -> None:
        """Write batch 0: rows of the unedited model, and what the panel measured on it."""
        packed = {name: _to_json(frame) for name, frame in tables.items()}
        write_sealed(self.path("batches", 0), {"edits": 0, "tables": packed, "panel": panel, "run": self.about()})

    def put(
        self,
        batch: int,
        edits: int,
        edit: Edit,
        state: SequentialState,
        tables: Mapping[str, pd.DataFrame],
        *,
        weights: Mapping[int, str],
        snapshot: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Write everything of one batch, then its commit.

        Args:
            batch, edits: its number (1..), and how many facts have been edited by then.
            edit, state: its update, and the editor's state, of which only this batch's keys are written.
            tables: its rows.
            weights: sha256 of each edited matrix; snapshot: the matrices themselves, if they are to be kept.
        """
        files = [self.path("edits", batch), self.path("state", batch)]
        edit.save(files[0])
        replace(state, past={i: blocks[-1:] for i, blocks in state.past.items()}).save(files[1])
        if snapshot is not None:
            files.append(self.put_snapshot(batch, snapshot))
        own = self.about().get("id")
        content = {
            "batch": batch,
            "edits": edits,
            "previous": digest(self.commit(batch - 1)) if own is not None and batch > 1 else own,
            "files": {path.relative_to(self.out).as_posix(): file_digest(path) for path in files},
            "weights": {str(i): value for i, value in weights.items()},
            "tables": {name: _to_json(frame) for name, frame in tables.items()},
        }
        write_sealed(self.path("batches", batch), content)
        self.write_progress()
        for number in self.numbers("snapshots")[:-2]:
            self.path("snapshots", number).unlink(missing_ok=True)

    def put_snapshot(self, batch: int, bits: Mapping[int, Tensor]) -> Path:
        """Write the edited matrices after a batch; returns the path."""
        path, about = self.path("snapshots", batch), {"format": "ketools-snapshot-1"}
        return write_tensors(path, {str(i): weight for i, weight in bits.items()}, about)

    def kept_snapshots(self, last: int) -> list[int]:
        """The last two of batches 1 .. `last` whose commits name a snapshot; these snapshots must exist."""
        kept: list[int] = []
        for number in reversed([number for number in self.numbers("batches") if 0 < number <= last]):
            with suppress(Damaged):
                if any(name.startswith("snapshots/") for name in self.commit(number)["files"]):
                    kept.append(number)
            if len(kept) == 2:
                break
        return kept

    def put_checkpoint(self, batch: int, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write what was measured after a batch: the checkpoint's tables and, after the last, "ends", all facts' end_* columns."""
        (self.out / "tables.json").unlink(missing_ok=True)
        packed = {name: _to_json(frame) for name, frame in tables.items()}
        write_sealed(self.path("checkpoints", batch), packed | {"run": self.about().get("id")})
        self.write_progress()

    def collapse(self) -> dict[str, Any] | None:
        """How the run ended early; None if it did not."""
        path = self.out / "collapse.json"
        if not path.is_file():
            return None
        content = self._of_this_run(read_sealed(path, Collapse), path)
        return {name: value for name, value in content.items() if name != "run"}

    def put_collapse(self, content: Mapping[str, Any]) -> None:
        """Record that the update of a batch was not finite and the run ended there."""
        write_sealed(self.out / "collapse.json", {**content, "run": self.about().get("id")})
        self.write_progress()

    def frames(self) -> dict[str, pd.DataFrame]:
        """The committed rows of each of FRAMES; empty where there are none. Raises Damaged, naming the file."""
        self.check_whole()
        last, commits = max(self.numbers("batches"), default=-1), [self.commit(0)] if self.numbers("batches") else []
        for number in range(1, last + 1):
            commits.append(self.commit(number))
            self.follows(number, commits[-1], commits[-2])
        points = [self.measured(n) for n in self.numbers("checkpoints") if n <= max(last, 0)]
        rows = {name: [c["tables"] for c in commits] if name in FRAMES[:3] else points for name in FRAMES}
        frames = {
            name: _joined((part[name] for part in parts if name in part), f"{self.out}, {name}")
            for name, parts in rows.items()
        }
        if ends := [part["ends"] for part in points if "ends" in part]:
            frames["facts"] = pd.concat([frames["facts"], _joined(ends[-1:], f"{self.out}, facts")], axis=1)
        return {name: usable(name, frame, f"{self.out}, {name}") for name, frame in frames.items()}

    def sums(self) -> dict[str, str]:
        """tables.json: the sha256 of each table. Raises Damaged."""
        sums = read_sealed(path := self.out / "tables.json", dict[str, str])
        if foreign := sorted(sums.keys() - {*TABLES}):
            raise Damaged(f"{path}: field {foreign[0]}: no table of a run")
        return sums

    def write_tables(self, frames: Mapping[str, pd.DataFrame]) -> None:
        """Write a parquet file per table, then tables.json with their checksums."""
        (self.out / "tables.json").unlink(missing_ok=True)
        for name, frame in frames.items():
            write_atomic(self.out / f"{name}.parquet", frame.to_parquet(index=False))
        sums = {name: file_digest(self.out / name) for name in TABLES if (self.out / name).is_file()}
        write_sealed(self.out / "tables.json", sums, indent=2)


def due(edits: int, before: int, every: int) -> bool:
    """Is a checkpoint due after a batch other than the last? `edits` facts are edited after it, `before` before it."""
    return not edits or edits // every > before // every


@dataclass(frozen=True)
class Survey:
    """What `survey` found.

    batches: batches that can be restored bit for bit; the run resumes after them. last: the highest batch that has a file.
    damaged: {file (relative): what is wrong}; files: how many were checked. leftovers: temporary files of a killed process,
    files after the last commit, and foreign files. unsealed: tables.json, with the checksums of the tables, is missing.
    """

    batches: int
    last: int
    damaged: dict[str, str]
    files: int
    leftovers: tuple[str, ...]
    unsealed: bool

    @property
    def sound(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged

    def text(self) -> str:
        """The findings in a few lines."""
        lines = [f"{name}: {why}" for name, why in self.damaged.items()]
        for name in self.leftovers:
            lines.append(
                f"{name}: {'left by a process that was stopped, harmless' if _is_ours(name) else 'no file of the run'}"
            )
        if self.unsealed:
            lines.append("tables.json is missing, so the tables were not checked; `ketools resume` rewrites them")
        what = "sound" if self.sound else f"{len(self.damaged)} damaged"
        lines.append(
            f"{self.files} files, {what}" + (f"; batches 1 to {self.batches} are intact" if self.batches else "")
        )
        if not self.sound:
            lines.append(f"`ketools resume` repeats the run from batch {self.batches + 1} on")
        return "\n".join(lines)


def survey(out: str | Path) -> Survey:
    """Check every file of the run in `out`; nothing is changed. Raises KetoolsError if there is no run."""
    store, damaged = Store.of(out), {}
    known = {"run.json", "batches/00000.json", "tables.json", "collapse.json", "progress.json", "lock"}
    store.about()  # raises if its two copies disagree: there would be nothing to compare with
    numbers = {folder: store.numbers(folder) for folder in FOLDERS}
    last = max(numbers["batches"], default=0)

    def content(path: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of a JSON file; {}, and a note in `damaged`, if it is damaged."""
        name = path.relative_to(store.out).as_posix()
        known.add(name)
        try:
            return read()
        except Damaged as error:
            damaged[name] = str(error).removeprefix(f"{path}: ")
            return {}

    def check(name: str, wanted: str) -> None:
        """Note what is wrong with a file whose checksum is `wanted`."""
        known.add(name)
        path = store.out / name
        try:
            if not path.is_file():
                damaged[name] = "missing"
            elif file_digest(path) != wanted:
                damaged[name] = "its checksum does not match; the file was changed or damaged"
        except OSError as error:
            damaged[name] = f"cannot be read ({error.strerror or error})"

    path = store.out / "run.json"
    about = content(path, lambda: read_sealed(path, About))
    begun: dict[str, Any] | None = None
    if any(numbers.values()):  # a kill may leave the folders empty
        begun = content(store.path("batches", 0), lambda: store.commit(0))
        about = begun.get("run", {}) | about
    readers = {
        "progress.json": lambda: read_sealed(store.out / "progress.json", Progress),
        "tables.json": store.sums,
        "collapse.json": lambda: store.collapse() or {},
    }
    optional = {name: content(store.out / name, read) for name, read in readers.items() if (store.out / name).is_file()}
    for name, wanted in optional.get("tables.json", {}).items():
        check(name, wanted)
    for number in numbers["checkpoints"]:
        content(store.path("checkpoints", number), lambda number=number: store.measured(number))  # type: ignore[misc]

    batches, whole, before = 0, True, None
    for number in sorted({*range(1, min(last, len(numbers["batches"]) + 1) + 1), *numbers["batches"]} - {0}):

        def follow(number: int = number, before: Mapping[str, Any] | None = before) -> dict[str, Any]:
            commit = store.commit(number)
            store.follows(number, commit, before)
            return commit

        commit = content(store.path("batches", number), follow)
        before = commit or None
        whole = whole and bool(commit)
        # Without the commit, its other files still belong to the batch.
        known.update(store.path(name, number).relative_to(store.out).as_posix() for name in FOLDERS[1:4] if not commit)
        for name, wanted in commit.get("files", {}).items():
            if name.startswith("snapshots/") and not (store.out / name).is_file():
                known.add(name)  # only the last two are kept
                continue
            check(name, wanted)
            whole = whole and (name not in damaged or name.startswith("snapshots/"))
        batches = number if whole else batches

    # What must exist after batch `last`, or because progress.json says so.
    progress = optional.get("progress.json", {})
    done = progress.get("batches", last)
    wanted_files = [store.path("batches", number) for number in range(last + 1, min(done, last + 3) + 1)]
    wanted_files += [store.path("checkpoints", done)] if progress.get("checkpoint") else []
    wanted_files += [store.out / "collapse.json"] if progress.get("collapse") else []
    wanted_files += [store.out / "progress.json"] if last > 1 else []  # a kill can prevent only the first one
    wanted_files += [store.path("snapshots", number) for number in store.kept_snapshots(last)]
    size, every = (about.get("settings", {}).get(name, 0) for name in ("batch", "checkpoint_every"))
    if size and every:  # the checkpoint after `last` may not be measured yet
        points = [n for n in range(min(last, len(numbers["batches"]))) if due(n * size, (n - 1) * size, every)]
        wanted_files += [store.path("checkpoints", number) for number in points]
    damaged |= {path.relative_to(store.out).as_posix(): "missing" for path in wanted_files if not path.is_file()}

    there = {path.relative_to(store.out).as_posix() for path in store.out.rglob("*") if path.is_file()}
    leftovers = sorted(
        name for name in there - known if _LEFT.fullmatch(name) or name.rpartition("/")[0] in FOLDERS
    )  # fmt: skip
    unsealed = "tables.json" not in optional and bool(numbers["checkpoints"])
    highest = max((number for some in numbers.values() for number in some), default=0)
    return Survey(batches, highest, damaged, len(known & there), tuple(leftovers), unsealed)


def cut(store: Store, found: Survey) -> None:
    """Remove what is damaged, and everything after the last intact batch; the run then repeats what it can."""
    for name in (*found.damaged, *filter(_is_ours, found.leftovers)):
        if name not in ("run.json", "batches/00000.json"):
            (store.out / name).unlink(missing_ok=True)
    if any(name.endswith(".parquet") for name in found.damaged):
        (store.out / "tables.json").unlink(missing_ok=True)  # so that all tables are rewritten
    for folder in FOLDERS:
        for number in store.numbers(folder):
            if number > found.batches:
                store.path(folder, number).unlink()
    if found.damaged:
        (store.out / "progress.json").unlink(missing_ok=True)  # it names batches that are gone
    if found.batches < found.last:
        (store.out / "collapse.json").unlink(missing_ok=True)
    if not (store.out / "batches").is_dir():  # a run that has not begun
        shutil.rmtree(store.out / "checkpoints", ignore_errors=True)


def _is_ours(name: str) -> bool:
    """Did the run make this leftover, rather than a sync tool or a person?"""
    return bool(_LEFT.fullmatch(name) or OURS.fullmatch(name))


def status(out: str | Path) -> dict[str, Any]:
    """How far the run in `out` has come; nothing is changed.

    Returns:
        state ("running", "stopped", "complete", "collapsed"); edits, edits_asked, batches; seconds_per_edit (of the last
        batches, scoring included), cpu_per_edit (editing alone), seconds_left (None for a run that has ended); bytes (by
        folder), bytes_at_end (estimated); checkpoint (columns of the last one), known (facts that needed no edit),
        collapse, forced, model, method.

    Raises:
        KetoolsError: no run, or a damaged file (named).
    """
    store, record = Store.of(out), RunRecord.load(out)
    settings, points, batches = record.provenance.get("settings", {}), record.checkpoints, record.batches
    done = store.progress()
    asked = int(settings.get("edits", 0))
    if record.collapse:
        state = "collapsed"
    elif done["edits"] == asked and "end_p_new" in record.facts:
        state = "complete"
    else:
        state = "stopped"
        if (store.out / "lock").is_file():
            lock = FileLock(store.out / "lock", timeout=0)
            try:
                lock.acquire()
                lock.release()
            except Timeout:
                state = "running"
            except OSError:  # a read-only folder: unknown
                pass
    recent = batches.tail(_RECENT)
    pace = float((recent["seconds"] + recent["seconds_scoring"]).sum() / recent["facts"].sum()) if len(recent) else None
    cpu = recent["seconds_cpu"].sum() / recent["facts"].sum() if "seconds_cpu" in recent and len(recent) else None
    used: dict[str, int] = {}
    for path in store.out.rglob("*"):
        with suppress(FileNotFoundError):  # a temporary file of a run in progress
            if path.is_file():
                top = path.relative_to(store.out).parts
                name = top[0] if len(top) > 1 else "report" if path.name == "report.html" else "tables"
                used[name] = used.get(name, 0) + path.stat().st_size
    grows = sum(used.get(name, 0) for name in ("batches", "edits", "state"))
    return {
        "state": state,
        **done,
        "edits_asked": asked,
        "seconds_per_edit": pace,
        "cpu_per_edit": None if cpu is None or pd.isna(cpu) else float(cpu),
        "seconds_left": pace * (asked - done["edits"]) if pace and state in ("running", "stopped") else None,
        "bytes": used,
        "bytes_at_end": round(grows * (asked / done["edits"] - 1)) + sum(used.values())
        if grows and done["edits"]
        else None,
        "checkpoint": points.iloc[-1].to_dict() if len(points) else None,
        "known": int(batches["known"].sum()) if len(batches) else 0,
        "collapse": record.collapse,
        "forced": record.provenance.get("forced", []),
        "model": record.provenance.get("model", {}).get("name"),
        "method": (record.provenance.get("config") or {}).get("method") or settings.get("method", {}).get("name"),
    }
