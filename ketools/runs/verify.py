"""Is a run on disk what was written? Each file against its checksum, and up to which batch the run is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ketools.errors import KetoolsError
from ketools.runs.sealed import Damaged, file_digest, read_sealed
from ketools.runs.store import OURS, Store

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
