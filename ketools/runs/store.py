"""Files that know whether they are what was written: JSON with its own checksum, and checksums of other files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from filelock import FileLock, Timeout
from torch import Tensor

from ketools.editing.edit import Edit
from ketools.editing.editor import SequentialState
from ketools.errors import KetoolsError
from ketools.io import finite, write_atomic, write_tensors


class Damaged(KetoolsError):
    """A file of a run is not what was written there; the message names it."""


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as JSON gives it back (NaN and infinity become null), with "sha256": its digest."""
    plain = json.loads(json.dumps(finite(content), ensure_ascii=False, default=str))
    return plain | {"sha256": digest(plain)}


def digest(content: object) -> str:
    """sha256 (hex) of what JSON can hold, however it is indented and ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = None) -> Path:
    """Write `content` with its digest, whole or not at all; returns the path."""
    return write_atomic(path, json.dumps(sealed(content), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the digest. Raises Damaged for a file that is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Damaged(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
        raise Damaged(f"{path}: its checksum does not fit, the file was changed or damaged")
    return content


def pack(frame: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON can hold it: {column: [type, values]}, bits of floats kept; unpack() gives the same table."""
    return {
        str(name): [str(frame[name].dtype), [_out(value) for value in frame[name].tolist()]] for name in frame.columns
    }


def unpack(packed: Mapping[str, Any]) -> pd.DataFrame:
    """The table that `pack` was given."""
    columns = {}
    for name, (kind, values) in packed.items():
        # The words nan, inf and -inf, which JSON knows as texts only, are read as numbers.
        number = kind.startswith("float")
        columns[name] = pd.Series([float(v) for v in values] if number else values, dtype=kind)
    return pd.DataFrame(columns)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; an empty one for none."""
    parts = [frame for frame in frames if len(frame.columns)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _out(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# The tables of a run as parquet files, and tables.json with their checksums, which stands for all of them being whole.


FRAMES = ("batches", "norms", "facts", "checkpoints", "spectra", "residual")
_SUMS = "tables.json"


def write_tables(out: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    """A file for each of FRAMES in the folder `out`, then their checksums."""
    open_tables(out)
    for name, frame in frames.items():
        write_table(out / f"{name}.parquet", frame)
    seal_tables(out)


def write_table(path: Path, frame: pd.DataFrame, compression: Literal["snappy", "zstd"] = "snappy") -> None:
    """One of them, without its index; `compression` is that of parquet."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression=compression)
    write_atomic(path, buffer.getvalue())


def seal_tables(out: Path, *more: str) -> None:
    """tables.json: the checksums of the parquet files that are there, and of `more` files."""
    names = [*(f"{name}.parquet" for name in FRAMES), *more]
    there = [path for name in names if (path := out / name).is_file()]
    write_sealed(out / _SUMS, {path.name: file_digest(path) for path in there}, indent=2)


def open_tables(out: Path) -> None:
    """No tables.json: a kill before they are sealed again leaves none that are taken for whole, or for damaged."""
    (out / _SUMS).unlink(missing_ok=True)


def read_tables(out: Path) -> dict[str, pd.DataFrame]:
    """All of FRAMES; empty where there is no file. Raises Damaged for a missing one that tables.json speaks of, or no table."""
    wanted = read_sealed(out / _SUMS) if (out / _SUMS).is_file() else {}
    if lacking := [name for name in wanted if not (out / name).is_file()]:
        raise Damaged(f"{out / lacking[0]}: missing; {_SUMS} speaks of it")
    return {name: _read(out / f"{name}.parquet") for name in FRAMES}


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error})") from error


# What a run leaves on disk: a folder from which it can be read, judged and continued. Only ever added to.
#
#     run.json                      settings, config and provenance; its copy is in batches/00000.json
#     batches/00000.json            before the first edit: norms, and what the panel measured
#     batches/00001.json            the rows of batch 1 and the checksums of its other files; written last, it is the commit
#     edits/00001.safetensors       its update, factored, float32
#     state/00001.safetensors       what it adds to the editor's state: its own keys, not those of the batches before
#     snapshots/00010.safetensors   every `consolidate_every` batches: the bits of the edited matrices; the last two stay
#     checkpoints/00005.json        what was measured after batch 5
#     collapse.json                 if the run ended in an update that is not finite: where, and why
#     progress.json, tables.json, *.parquet   the same in short, and as tables; made from the above, and anew if damaged
#     lock                          held by the process that works here
#
# Each JSON file holds its own checksum, a commit those of its safetensors files, tables.json those of the parquet files; it is
# taken away before any of them changes and written last, so that tables without it are to be made anew.
# Every file is written to a temporary name, flushed and renamed: a kill at any moment loses at most the batch or the
# checkpoint in hand.
#
# How bits are kept: the weights after batch n are W_0 with the updates of batches 1 .. n added one after another, each sum
# in float64 and rounded once to the type of the weights. Nothing is ever merged or rounded again, so that the weights after
# any batch can be had from the factors; a snapshot only saves adding up those before it. A commit holds the sha256 of the
# edited matrices, against which restored ones are compared.
#
# Size: 4 (d_model + d_mlp) bytes a fact and edited layer for the updates, 4 d_mlp for the keys of methods that protect them,
# two snapshots, and about 500 bytes a fact for the rows.
#
# For readers: `RunRecord.load(folder)`. A folder with run.json and the parquet files alone (`ketools.runs.records`) is read as well.


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
    checkpoints: a row per checkpoint: edits, then everything that `ketools.runs.panel` and `ketools.runs.run`
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
        """Are these the tables of a run alone (`ketools.runs.records`)?"""
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


# Is a run on disk what was written? Each file against its checksum, and up to which batch the run is whole.


_FOLDERS = ("batches", "edits", "state", "snapshots", "checkpoints")


@dataclass(frozen=True)
class Survey:
    """What `survey` found.

    batches: batches that can be had again to the bit; the run goes on behind them. last: the highest batch of which there
    is a file. damaged: {file (relative): what is wrong}; files: how many were looked at. leftovers: temporary files of a
    process that was killed, files beyond the last commit, and files of others. light: these are the tables of a run alone.
    unsealed: tables.json, which speaks for the tables, is not there.
    """

    batches: int
    last: int
    damaged: dict[str, str]
    files: int
    leftovers: tuple[str, ...]
    light: bool = False
    unsealed: bool = False

    @property
    def sound(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged

    def text(self) -> str:
        """In a few lines."""
        lines = [f"{name}: {why}" for name, why in self.damaged.items()]
        for name in self.leftovers:
            what = "left over by a process that was stopped, harmless" if _removable(name) else "no file of the run"
            lines.append(f"{name}: {what}")
        if self.unsealed:
            made = "they were packed without it" if self.light else "`ketools resume` writes them anew"
            lines.append(f"tables.json is not there: the tables are not compared with their checksums, {made}")
        what = "sound" if self.sound else f"{len(self.damaged)} damaged"
        lines.append(
            f"{self.files} files, {what}" + (f"; batches 1 to {self.batches} are whole" if self.batches else "")
        )
        if self.light and not self.sound:
            lines.append("these are the tables of a run without its weights: fetch them again, or pack the run anew")
        elif not self.sound:
            lines.append(f"`ketools resume` does again what is damaged, from batch {self.batches + 1} on")
        return "\n".join(lines)


def survey(out: str | Path) -> Survey:
    """Look at every file of the run in `out`; nothing is changed. Raises KetoolsError if there is no run."""
    store = Store(Path(out))
    if not store.exists():
        raise KetoolsError(f"{out}: no run here (run.json is missing); expected the folder that a run wrote")
    tables = _tables(store)
    damaged, seen = dict(_sealed(store, tables)), {"run.json", "batches/00000.json"}
    numbers = {number for name in _FOLDERS for number in store.numbers(name)}
    commits = store.numbers("batches")
    damaged |= dict(_absent(store, max(commits, default=0)))
    last, whole = max(commits, default=0), True
    batches = 0
    for number in range(1, last + 1):
        names, wrong = _batch(store, number)
        seen |= names
        damaged |= wrong
        whole = whole and not any(not name.startswith("snapshots/") for name in wrong)
        batches = number if whole else batches
    seen |= {store.checkpoint_path(number).relative_to(store.out).as_posix() for number in store.numbers("checkpoints")}
    seen |= {*tables, "tables.json", "collapse.json", "progress.json", "lock"}
    leftovers = tuple(sorted(_leftovers(store, seen)))
    looked_at, unsealed = len(seen & set(_names(store))), _unsealed(store)
    return Survey(batches, max(numbers, default=0), damaged, looked_at, leftovers, store.light, unsealed)


def cut(store: Store, found: Survey) -> None:
    """Remove what is damaged, and everything behind the last whole batch; what can be made again is made by the run."""
    for name in (*found.damaged, *filter(_removable, found.leftovers)):
        if name not in ("run.json", "batches/00000.json"):
            (store.out / name).unlink(missing_ok=True)
    if any(name.endswith(".parquet") for name in found.damaged):
        (store.out / "tables.json").unlink(missing_ok=True)  # all tables are written anew
    for path in [store.out / name for name in _names(store) if OURS.fullmatch(name)]:
        if int(path.stem) > found.batches:
            path.unlink()
    if found.damaged:
        (store.out / "progress.json").unlink(missing_ok=True)  # it speaks of batches that are not there any more
    if found.batches < found.last:
        (store.out / "collapse.json").unlink(missing_ok=True)
    if not (store.out / "batches").is_dir():  # a run that has not begun, or a copy of its tables alone
        shutil.rmtree(store.out / "checkpoints", ignore_errors=True)


def _sealed(store: Store, tables: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Damaged JSON files that belong to no batch, and those of `tables` with which something is wrong."""
    points = [store.checkpoint_path(number).relative_to(store.out) for number in store.numbers("checkpoints")]
    # A kill may leave the folders that the first files were to be written to, empty.
    begun = any(store.numbers(name) for name in _FOLDERS)
    wanted = [Path("run.json"), *([Path("batches/00000.json")] if begun else []), *points]
    wanted += [Path(name) for name in ("collapse.json", "tables.json", "progress.json") if (store.out / name).is_file()]
    for path in wanted:
        if why := _trouble(store.out / path):
            yield path.as_posix(), why
    for name, wrong in tables.items():
        if wrong:
            yield name, wrong


def _absent(store: Store, last: int) -> Iterator[tuple[str, str]]:
    """What must be there after batch `last`, or because progress.json speaks of it, and is not."""
    try:
        told = read_sealed(store.out / "progress.json")
    except Damaged:  # it is told elsewhere if it is there
        told = {}
    done = int(told.get("batches", last))
    wanted = [store.batch_path(number) for number in range(last + 1, done + 1)]
    wanted += [store.checkpoint_path(done)] if told.get("checkpoint") else []
    wanted += [store.out / "collapse.json"] if told.get("collapse") else []
    wanted += [store.out / "progress.json"] if last > 1 else []  # a kill leaves none only after the first commit
    wanted += [store.snapshot_path(number) for number in (latest_snapshot(store, last),) if number]
    wanted += [store.checkpoint_path(number) for number in _due(store, last)]
    for path in wanted:
        if not path.is_file():
            yield path.relative_to(store.out).as_posix(), "missing"


def due(edits: int, before: int, every: int) -> bool:
    """Is there a checkpoint after a batch that is not the last, after which so many facts are edited, `before` it fewer?"""
    return not edits or edits // every > before // every


def _due(store: Store, last: int) -> Iterator[int]:
    """Batches before `last` after which there is a checkpoint; that of `last` itself may not be measured yet."""
    try:
        settings = store.about().get("settings", {})
    except Damaged:
        settings = {}
    size, every = int(settings.get("batch", 0)), int(settings.get("checkpoint_every", 0))
    for number in range(last if size and every else 0):
        if due(number * size, (number - 1) * size, every):
            yield number


def latest_snapshot(store: Store, last: int) -> int:
    """The last of the batches 1 .. `last` whose commit speaks of a snapshot, which is kept; 0 if none does."""
    for number in range(last, 0, -1):
        try:
            files = store.commit(number)["files"]
        except Damaged:
            continue
        if any(name.startswith("snapshots/") for name in files):
            return number
    return 0


def _unsealed(store: Store) -> bool:
    """Are there tables, or should there be, that no tables.json speaks of?"""
    return not (store.out / "tables.json").is_file() and (store.light or bool(store.numbers("checkpoints")))


def _removable(name: str) -> bool:
    """Is this leftover one of ours, not the copy that a sync tool or a person made?"""
    return name.endswith(".part") or bool(OURS.fullmatch(name))


def _tables(store: Store) -> dict[str, str | None]:
    """{parquet file: what is wrong with it}."""
    try:
        sums = read_sealed(store.out / "tables.json")
    except Damaged:
        sums = {}
    return {name: _file_trouble(store.out / name, value) for name, value in sums.items()}


def _batch(store: Store, number: int) -> tuple[set[str], dict[str, str]]:
    """(files of a batch, those damaged and why)."""
    own = store.batch_path(number).relative_to(store.out).as_posix()
    if why := _trouble(store.batch_path(number)):
        near = (store.edit_path(number), store.state_path(number), store.snapshot_path(number))
        return {own, *(path.relative_to(store.out).as_posix() for path in near)}, {own: why}
    files = store.commit(number)["files"]
    wrong = {}
    for name, value in files.items():
        dropped = name.startswith("snapshots/") and not (store.out / name).is_file()  # only the last two are kept
        if not dropped and (why := _file_trouble(store.out / name, value)):
            wrong[name] = why
    return {own, *files}, wrong


def _trouble(path: Path) -> str | None:
    try:
        read_sealed(path)
    except Damaged as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _file_trouble(path: Path, wanted: str) -> str | None:
    if not path.is_file():
        return "missing"
    try:
        return None if file_digest(path) == wanted else "its checksum does not fit, the file was changed or damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _names(store: Store) -> Iterator[str]:
    for path in store.out.rglob("*"):
        if path.is_file():
            yield path.relative_to(store.out).as_posix()


def _leftovers(store: Store, seen: set[str]) -> Iterator[str]:
    """Files of the run's folders that no commit speaks of, and temporary files."""
    for name in _names(store):
        folder, _, rest = name.rpartition("/")
        if rest.endswith(".part") or (folder in _FOLDERS and name not in seen):
            yield name
