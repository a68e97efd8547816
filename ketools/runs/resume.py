"""Resuming a run: is it the same run, which batches are intact, and the model as it was after a batch, bit for bit."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ketools.editing.covariance import Statistics
from ketools.editing.edit import Blocks, Edit
from ketools.editing.editor import SequentialState, finished
from ketools.editing.postprocess import Prune
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactSet
from ketools.io import finite, read_tensors
from ketools.models.model import EditableModel
from ketools.runs.config import RunConfig
from ketools.runs.panel import Panel
from ketools.runs.store import Damaged, Store, cut, digest, file_digest, survey

# The files on disk were made with these settings; --force cannot change them.
FIXED = ("kind", "model", "reads", "edits", "batch", "seed", "facts")
DECISIVE = ("ketools", "torch", "transformers")


def begin(store: Store, settings: Mapping[str, Any], about: Mapping[str, Any], *, force: bool = False) -> int:
    """Start a run, or prepare to resume the one in the folder; returns the number of batches that are done.

    Damaged files, and batches after the first damaged one, are named in a warning and removed; the run repeats them.
    `force` resumes with settings that differ from the run's, as far as that is possible.

    Raises:
        KetoolsError: the folder holds a run with other settings or versions (the first difference is named), or cannot be
            written.
    """
    settings = json.loads(json.dumps(finite(settings)))  # as read back from JSON
    about = {"settings": settings, **about}
    if not store.exists():
        about["id"] = digest({name: about.get(name) for name in ("settings", "versions", "device", "dtype")})
        with store.writing():
            store.write_about(about)
        return 0
    store.check_whole()
    found, stored = survey(store.out), store.about()
    # Everything that affects the numbers: (the run's, now); what cannot be forced comes first.
    old = stored.get("settings", {})
    order = sorted(settings, key=lambda name: FIXED.index(name) if name in FIXED else len(FIXED))
    compared = {name: (old.get(name), settings[name]) for name in order}
    versions = [each.get("versions") or {} for each in (stored, about)]
    compared |= {f"{name}'s version": (versions[0].get(name), versions[1].get(name)) for name in DECISIVE}
    compared["device"] = (stored.get("device"), about.get("device"))
    changed = {}
    for name, (was, now) in compared.items():
        if was == now or (name == "reads" and was is None):  # runs of earlier versions do not say
            continue
        refusal = f"{store.out} holds a run with {_difference(name, was, now)}; give the same settings to resume it"
        if name in FIXED or settings.get("kind") == "edit":  # `ketools edit` has no --force
            raise KetoolsError(f"{refusal}, or another output folder")
        if not force:
            raise KetoolsError(
                f"{refusal}, or another output folder. --force (force=True) resumes anyway: batches before and after are then "
                "made differently, and the result is that of neither run"
            )
        changed[name] = [was, now]
    with store.writing():  # an unwritable folder fails here, not after the first batch
        cut(store, found)
        if changed:
            stored |= {
                name: about[name] for name in ("settings", "versions", "device", "method", "config") if about.get(name)
            }
            stored["forced"] = [*stored.get("forced", ()), {"after_batch": found.batches, "changed": changed}]
        store.write_about(stored)
        if found.batches:
            store.write_progress()
    if found.damaged:
        first = "; ".join(f"{name}: {why}" for name, why in list(found.damaged.items())[:3])
        warnings.warn(
            f"{store.out}: {len(found.damaged)} files were damaged ({first}); the run resumes after batch {found.batches} "
            f"of {found.last}",
            stacklevel=3,
        )
    if stored.get("threads") != about.get("threads"):
        warnings.warn(
            f"{store.out}: the run had {stored.get('threads')} threads, now there are {about.get('threads')}; sums may be "
            "added in another order, so the last bits may differ from those of a run that was never stopped",
            stacklevel=3,
        )
    return found.batches


def _difference(name: str, was: object, now: object) -> str:
    """What a refusal says of a setting: of a table only what differs, of facts no checksums."""
    if isinstance(was, dict) and isinstance(now, dict):
        parts = [
            f"{key} = {was.get(key)!r}, not {now.get(key)!r}" for key in {**was, **now} if was.get(key) != now.get(key)
        ]
        return f"{name}: {'; '.join(parts)}"
    if name == "kind":
        return "other contents: it was written by another command"
    return "other facts" if name == "facts" else f"{name} = {was!r}, not {now!r}"


def same_facts(
    store: Store, settings: Mapping[str, Any], todo: FactSet, facts: FactSet, *, force: bool = False
) -> dict[str, Any]:
    """The settings that `note_facts` kept for the run in the folder; {} if it kept none.

    Raises KetoolsError if facts were changed under their ids, since the run would then measure something else.
    """
    try:
        stored, panel = store.about().get("settings", {}), store.commit(0).get("panel") or {}
    except Damaged:  # not begun, or the panel must be taken again
        return {}
    now = _contents(todo, [*panel.get("unedited", ()), *panel.get("same_subject", ())], facts)
    if "contents" not in stored or now is None:
        return {}
    if now != stored["contents"] and settings["facts"] == stored.get("facts") and not force:
        raise KetoolsError(
            f"the facts of the run in {store.out} were changed since it began: ids and edits are the same, but true objects, "
            "paraphrases, neighbours or facts of the panel differ; give the facts that it began with, or another output folder. "
            "--force (force=True) resumes anyway: measurements before and after are then not of the same thing"
        )
    return {"contents": now, "left_out": stored.get("left_out", 0)}


def note_facts(store: Store, todo: FactSet, panel: Panel, facts: FactSet) -> None:
    """Before the first edit: add to the settings a digest of the facts, and how many contradicting facts were left out.

    Runs of earlier versions lack both and resume without them.
    """
    if store.path("batches", 0).is_file():
        return
    about = store.about()
    about["settings"]["left_out"] = getattr(facts, "left_out", 0)
    contents = _contents(todo, [fact.id for fact in (*panel.unedited, *panel.same_subject)], facts)
    if contents is not None:  # None: a panel of facts from elsewhere, which cannot be checked
        about["settings"]["contents"] = contents
    with store.writing():
        store.write_about(about)


def _contents(todo: FactSet, panel: Iterable[str], facts: FactSet) -> str | None:
    """sha256 of all fields of the edited facts and the panel's facts; None if `facts` lack one of the panel's."""
    by_id: dict[str, Fact] = {fact.id: fact for fact in facts}
    asked = [by_id.get(i) for i in panel]
    return None if None in asked else digest([asdict(fact) for fact in (*todo, *asked) if fact is not None])


def restore(store: Store, model: EditableModel, batch: int) -> SequentialState | None:
    """Replace the edits in the weights by those of batches 1 .. `batch`, bit for bit.

    The latest usable snapshot is copied and the updates after it are added. Returns the editor's state after that batch
    (None for batch 0); its keys are read from their files when needed.

    Raises KetoolsError if a file is damaged, or if the weights differ from those that the run had.
    """
    base, bits = _snapshot(store, batch)

    def edits() -> Iterator[Edit]:
        for number in range(1, batch + 1):  # one at a time, so that memory does not grow with the edits
            edit = Edit.load(path := store.path("edits", number), model)
            yield edit
            model.edits.replace(-1, edit.stored(path))

    model.edits.refill(edits(), base, bits)
    if not batch:
        return None
    wanted = store.commit(batch)["weights"]
    for layer, value in weights_digest(model, map(int, wanted)).items():
        if wanted[str(layer)] != value:
            raise KetoolsError(
                f"{store.out}: layer {layer} after batch {batch}, rebuilt from the stored updates, has other bits than during "
                "the run: another machine or number of threads adds in another order. Resume where the run was made"
            )
    past: dict[int, Blocks] = {}
    for number in range(1, batch + 1):
        path = store.path("state", number)
        state = SequentialState.load(path)
        state.leave_last(path)
        for layer, blocks in state.past.items():
            past.setdefault(layer, Blocks()).extend(blocks)
    return replace(state, past=dict(past))


def _snapshot(store: Store, batch: int) -> tuple[int, dict[int, torch.Tensor]]:
    """(batch, matrices) of the latest sound snapshot at or before `batch`; (0, {}) if there is none."""
    for number in reversed([number for number in store.numbers("snapshots") if number <= batch]):
        path = store.path("snapshots", number)
        try:
            if store.commit(number)["files"].get(f"snapshots/{path.name}") == file_digest(path):
                tensors, _ = read_tensors(path, "snapshot", "ketools-snapshot-1", "a run")
                return number, {int(i): bits for i, bits in tensors.items()}
        except (Damaged, OSError):
            continue
    return 0, {}


def weights_digest(model: EditableModel, layers: Iterable[int]) -> dict[int, str]:
    """sha256 of the bits of the MLP output matrices."""
    bits = {i: model.weight(i).contiguous().cpu().view(torch.uint8) for i in layers}
    return {i: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for i, weight in bits.items()}


def statistics_digest(statistics: Statistics | None, layers: Iterable[int]) -> str | None:
    """A digest of the covariance that a run used: its diagonals in the edited layers, and its token count.

    To six digits, because C is unpacked by a product whose last bits depend on the machine.
    """
    if statistics is None:
        return None
    found = hashlib.sha256(str(statistics.tokens).encode())
    for i in layers:
        if i in statistics.layers:
            diagonal = statistics.layers[i].diagonal().double().cpu().tolist()
            found.update(" ".join(f"{value:.5e}" for value in diagonal).encode())
    return found.hexdigest()


def config_of(out: str | Path) -> RunConfig:
    """The config of the run in `out`. Raises KetoolsError if there is no run, or one that `ketools run` did not start."""
    config = Store.of(out).about().get("config")
    if not config:
        raise KetoolsError(
            f"{out} was not started by `ketools run`; to resume it, repeat what started it (`ketools demo`, or lifelong(...)) "
            "with the same arguments"
        )
    return RunConfig.made({**config, "out": str(out)})


def model_of(out: str | Path) -> dict[str, str | None]:
    """How the run in `out` loaded its model: model, device, dtype.

    Raises KetoolsError if there is no run, or only tables without weights.
    """
    about = Store.of(out).about()
    config = about.get("config") or {"model": about["model"]["name"]}
    return {name: config.get(name) for name in ("model", "device", "dtype")}


@contextmanager
def model_at(out: str | Path, at: int | None, model: EditableModel) -> Iterator[int]:
    """Within the block `model` is that of the run in `out` after `at` edits, bit for bit; yields how many these are.

    Args:
        out: the run's folder.
        at: the number of edits at the end of a batch; None: all that are done.
        model: the run's unedited model; it is left with the edits applied.

    Raises:
        KetoolsError: no batch ends there (the nearest ends are named), another model, a damaged file.
    """
    store = Store.of(out)
    about, done = store.about(), store.progress()
    settings = about["settings"]
    size, asked = int(settings["batch"]), int(settings["edits"])
    at = int(done["edits"]) if at is None else at
    number = -(-at // size)
    if not 1 <= number <= done["batches"] or at != min(number * size, asked):
        ends = [min(n * size, asked) for n in (number - 1, number) if 1 <= n <= done["batches"]] or [done["edits"]]
        raise KetoolsError(
            f"{out}: no batch ends after {at} edits (batches of {size}, {done['edits']} of {asked} edits done); choose "
            f"{' or '.join(map(str, ends))}"
        )
    if model.fingerprint != settings["model"]:
        raise KetoolsError(
            f"the run in {out} is of the model {about['model']['name']!r} (fingerprint {settings['model'][:12]}); "
            f"{model.name!r} is another one ({model.fingerprint[:12]})"
        )
    restore(store, model, number)
    post = settings["method"].get("post") or {}
    # A run measures the model as if the sequence ended there, so pruned if the method ends by pruning.
    with finished(model, Prune(post["when"]) if post.get("type") == "Prune" else None, sorted(model.originals)):
        yield at
