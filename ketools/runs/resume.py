"""Going on with a run: is it the same run, what of it is whole, and the model as it was after a batch, to the bit."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ketools.editing.covariance import Statistics
from ketools.editing.edit import Blocks, Edit
from ketools.editing.editor import SequentialState
from ketools.errors import KetoolsError
from ketools.io import finite, read_tensors
from ketools.models.model import EditableModel
from ketools.runs.store import Damaged, Store, Survey, cut, file_digest, survey

# What is on disk was made with these: no --force can make it fit others.
FIXED = ("kind", "model", "facts", "edits", "batch", "seed")
DECISIVE = ("ketools", "torch", "transformers")


def begin(store: Store, settings: Mapping[str, Any], about: Mapping[str, Any], *, force: bool = False) -> int:
    """Start a run, or make ready to go on with the one that lies here; returns the number of batches that are done.

    Files that are damaged, and batches behind the first damaged one, are named in a warning and removed: the run does
    them again. `force` goes on with other settings than those of the run, where that is possible at all.

    Raises:
        KetoolsError: the folder holds a run with other settings or of other versions (names the first that differs),
            or cannot be written.
    """
    settings = json.loads(json.dumps(finite(settings)))  # as it will be read back
    about = {"settings": settings, **about}
    if not store.exists():
        with store.writing():
            store.write_about(about)
        return 0
    if (store.out / "batches.parquet").is_file() and not (store.out / "batches").is_dir():
        raise KetoolsError(f"{store.out} holds the tables of a run without its edits: it can be read, not gone on with")
    found = survey(store.out)
    held = store.about()
    changed = _changed(store, held, about, force)
    with store.writing():  # found out now, not after the first batch
        cut(store, found)
        if changed:
            held |= {"settings": settings, "versions": about.get("versions"), "device": about.get("device")}
            held["forced"] = [*held.get("forced", ()), {"after_batch": found.batches, "changed": changed}]
        store.write_about(held)
        if found.batches:
            store.write_progress(found.batches, int(store.commit(found.batches)["edits"]))
    _notes(store, found, held, about)
    return found.batches


def _notes(store: Store, found: Survey, held: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Warn of what was damaged, and of what may change bits without being refused."""
    if found.damaged:
        first = "; ".join(f"{name}: {why}" for name, why in list(found.damaged.items())[:3])
        warnings.warn(
            f"{store.out}: {len(found.damaged)} files were damaged ({first}); the run goes on after batch {found.batches} "
            f"of {found.last}",
            stacklevel=4,
        )
    if held.get("threads") != about.get("threads"):
        warnings.warn(
            f"{store.out}: the run had {held.get('threads')} threads, now there are {about.get('threads')}; sums may be added "
            "up in another order, and the last bits differ from those of a run that was never stopped",
            stacklevel=4,
        )


def restore(store: Store, model: EditableModel, batch: int) -> SequentialState | None:
    """Put the edits of batches 1 .. `batch` into the weights, in place of those that are there, to the bit.

    The latest snapshot that fits is copied, the updates behind it are added. Returns the editor's state after that batch
    (None for batch 0).

    Raises KetoolsError if a file is damaged, or if the weights are not those that the run had.
    """
    base, bits = _snapshot(store, batch) if batch else (0, {})
    paths = (store.edit_path(number) for number in range(1, batch + 1))
    # One edit at a time, its factors left in its file: what is held does not grow with the edits.
    model.edits.refill((Edit.load(path, model).stored(path) for path in paths), base, bits)
    if not batch:
        return None
    wanted = store.commit(batch)["weights"]
    for layer, value in weights_digest(model, map(int, wanted)).items():
        if wanted[str(layer)] != value:
            raise KetoolsError(
                f"{store.out}: layer {layer} after batch {batch}, put together from the stored updates, has other bits than "
                "during the run: another machine or number of threads adds up differently. Go on where the run was made"
            )
    return load_state(store, batch)


def load_state(store: Store, batch: int) -> SequentialState:
    """The editor's state after a batch >= 1, its keys read from their files when asked for."""
    past: dict[int, Blocks] = {}
    for number in range(1, batch + 1):
        state = SequentialState.load(store.state_path(number))
        state.leave_last(store.state_path(number))
        for layer, blocks in state.past.items():
            past.setdefault(layer, Blocks()).extend(blocks)
    return replace(state, past=dict(past))


def weights_digest(model: EditableModel, layers: Iterable[int]) -> dict[int, str]:
    """sha256 of the bits of the MLP output matrices."""
    return {i: hashlib.sha256(model.weight(i).contiguous().cpu().view(torch.uint8).numpy()).hexdigest() for i in layers}


def statistics_digest(statistics: Statistics | None, layers: Iterable[int]) -> str | None:
    """What names the covariance that a run used: its diagonals in the edited layers, its count of tokens.

    To six digits: C is unpacked by a product, whose last bits are not the same on every machine, and it is the same C.
    """
    if statistics is None:
        return None
    found = hashlib.sha256(str(statistics.tokens).encode())
    for i in layers:
        if i in statistics.layers:
            diagonal = statistics.layers[i].diagonal().double().cpu().tolist()
            found.update(" ".join(f"{value:.5e}" for value in diagonal).encode())
    return found.hexdigest()


def _snapshot(store: Store, batch: int) -> tuple[int, dict[int, torch.Tensor]]:
    """(batch, matrices) of the latest sound snapshot at or before `batch`; (0, {}) if there is none."""
    for path in reversed(store.snapshots()):
        number = int(path.stem)
        if number > batch:
            continue
        name = path.relative_to(store.out).as_posix()
        try:
            if store.commit(number)["files"].get(name) == file_digest(path):
                tensors, _ = read_tensors(path, "snapshot", "ketools-snapshot-1", "a run")
                return number, {int(i): bits for i, bits in tensors.items()}
        except (Damaged, OSError):
            continue
    return 0, {}


def _changed(store: Store, held: Mapping[str, Any], about: Mapping[str, Any], force: bool) -> dict[str, list[Any]]:
    """{name: [of the run, now]} of what differs. Raises KetoolsError for the first of them, unless it may be forced."""
    changed = {}
    for name, was, now in _compared(held, about):
        if was == now:
            continue
        if name in FIXED or about["settings"].get("kind") == "edit":  # a job of minutes has no --force
            raise KetoolsError(
                f"{store.out} holds a run with {name} = {was!r}, asked for is {now!r}; "
                "give the same settings to go on with it, or another output folder"
            )
        if not force:
            raise KetoolsError(
                f"{store.out} holds a run with {name} = {was!r}, asked for is {now!r}; give the same settings to go on with "
                "it, or another output folder. --force (force=True) goes on all the same: batches before and after are then "
                "not made alike, and the result is that of neither run"
            )
        changed[name] = [was, now]
    return changed


def _compared(held: Mapping[str, Any], about: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    settings, now = held.get("settings", {}), about["settings"]
    for name in sorted(now, key=lambda name: (name not in FIXED, list(now).index(name))):
        yield name, settings.get(name), now[name]
    versions, installed = held.get("versions") or {}, about.get("versions") or {}
    for name in DECISIVE:
        yield f"{name}'s version", versions.get(name), installed.get(name)
    yield "device", held.get("device"), about.get("device")
