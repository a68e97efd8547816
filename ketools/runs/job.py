"""From a config to a run, and what can be asked of one: its status, the model after so many edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ketools.editing.finish import finished
from ketools.editing.postprocess import Prune
from ketools.editing.statistics import Statistics
from ketools.errors import KetoolsError
from ketools.facts import FactSet
from ketools.facts import facts as read_facts
from ketools.model import EditableModel
from ketools.runs.config import RunConfig, composed
from ketools.runs.lifelong import lifelong
from ketools.runs.panel import Sizes
from ketools.runs.resume import restore
from ketools.runs.settle import settled
from ketools.runs.store import RunRecord, Store

_LATELY = 5  # batches that the time per edit is a mean of


def ready(config: RunConfig) -> FactSet:
    """The facts that `config` draws from, after all checks that need no model.

    Raises KetoolsError: no folder for the run, or one that cannot be written; facts that cannot be read, are too few, or
    contradict each other where that is refused.
    """
    if not config.out:
        raise KetoolsError('no folder for the run; give one (--out DIR, or out = "DIR" in the config)')
    facts = settled(read_facts(config.facts), config.conflicts)
    facts.sample(config.edits, config.seed)
    with Store(Path(config.out)).locked():
        pass
    return facts


def execute(
    config: RunConfig, model: EditableModel, facts: FactSet, *, force: bool = False, progress: bool = True
) -> RunRecord:
    """Run what `config` asks for on its model with the facts from `ready`, or go on with it where it stopped.

    Raises KetoolsError and Interrupted as `ketools.runs.lifelong.lifelong` does.
    """
    return lifelong(
        model, facts, composed(config.method), edits=config.edits, batch=config.batch, seed=config.seed,
        checkpoint_every=config.checkpoint_every, consolidate_every=config.consolidate_every, conflicts=config.conflicts,
        out=config.out, statistics=None if config.statistics is None else Statistics.load(config.statistics),
        sizes=Sizes(**config.measures), overrides=config.settings, config=config.as_dict(), force=force, progress=progress,
    )  # fmt: skip


def config_of(out: str | Path) -> RunConfig:
    """The config of the run in `out`. Raises KetoolsError if there is no run, or one that `ketools run` did not start."""
    store = _store(out)
    config = store.about().get("config")
    if not config:
        raise KetoolsError(
            f"{out} was not started by `ketools run`; call again what started it (`ketools demo`, or lifelong(...)) with the "
            "same arguments, and it goes on"
        )
    return RunConfig.made({**config, "out": str(out)})


def model_of(out: str | Path) -> dict[str, str | None]:
    """How the run in `out` loaded its model: model, device, dtype.

    Raises KetoolsError if there is no run, or its tables alone: no need to load a model for them.
    """
    about = _with_weights(out).about()
    config = about.get("config") or {"model": about["model"]["name"]}
    return {name: config.get(name) for name in ("model", "device", "dtype")}


def status(out: str | Path) -> dict[str, Any]:
    """How far the run in `out` is; nothing of it is changed.

    Returns:
        state ("running", "stopped", "complete", "collapsed"); light (tables without weights); edits, edits_asked, batches;
        seconds_per_edit (of the last batches, with their scoring), seconds_left (None unless the run goes on); bytes by
        folder ("bytes"), bytes_at_end (about; None for tables alone); checkpoint (the last one's columns), known (facts
        that needed no edit), collapse, forced, model, method.

    Raises:
        KetoolsError: no run, or a damaged file (named).
    """
    store = _store(out)
    record = RunRecord.load(out)
    settings, done = record.provenance.get("settings", {}), _done(store, record)
    asked = int(settings.get("edits", 0))
    complete = done["edits"] == asked and "end_p_new" in record.facts
    state = "collapsed" if record.collapse else "complete" if complete else "running" if _locked(store) else "stopped"
    lately = record.batches.tail(_LATELY)
    pace = float((lately["seconds"] + lately["seconds_scoring"]).sum() / lately["facts"].sum()) if len(lately) else None
    used = _bytes(store)
    return {
        "state": state,
        "light": store.light,
        "edits": done["edits"],
        "edits_asked": asked,
        "batches": done["batches"],
        "seconds_per_edit": pace,
        "seconds_left": pace * (asked - done["edits"]) if pace and state in ("running", "stopped") else None,
        "bytes": used,
        "bytes_at_end": _bytes_at_end(used, asked / done["edits"]) if done["edits"] else None,
        "checkpoint": record.checkpoints.iloc[-1].to_dict() if len(record.checkpoints) else None,
        "known": int(record.batches["known"].sum()) if len(record.batches) else 0,
        "collapse": record.collapse,
        "forced": record.provenance.get("forced", []),
        "model": record.provenance.get("model", {}).get("name"),
        "method": (record.provenance.get("config") or {}).get("method") or settings.get("method", {}).get("name"),
    }


def export_at(out: str | Path, at: int, to: str | Path, model: EditableModel) -> Path:
    """Write the model of a run as it was after `at` edits, to the bit, as a folder of transformers; returns the folder.

    Args:
        out: the run's folder.
        at: how many edits; the end of a batch.
        to: the new folder.
        model: the run's unedited model; it is left with the edits applied.

    Raises:
        KetoolsError: no batch ends there (the nearest are named), another model, a damaged file, a folder that is not
            empty.
    """
    store = _with_weights(out)
    about, done = store.about(), store.progress()
    settings = about["settings"]
    size, asked = int(settings["batch"]), int(settings["edits"])
    number = -(-at // size)
    if not 1 <= number <= done["batches"] or at != min(number * size, asked):
        ends = [min(n * size, asked) for n in (number - 1, number) if 1 <= n <= done["batches"]] or [done["edits"]]
        raise KetoolsError(
            f"{out}: no batch ends after {at} edits (batches of {size}, {done['edits']} of {asked} edits done); near it: "
            f"{', '.join(map(str, ends))}"
        )
    if model.fingerprint != settings["model"]:
        raise KetoolsError(
            f"the run in {out} is of the model {about['model']['name']!r} (fingerprint {settings['model'][:12]}); "
            f"{model.name!r} is another one ({model.fingerprint[:12]})"
        )
    restore(store, model, number)
    post = settings["method"].get("post") or {}
    # What a run measures is the model as if the sequence had ended there, pruned where the method ends with that.
    with finished(model, Prune(post["when"]) if post.get("type") == "Prune" else None, sorted(model.originals)):
        return model.export(to)


def _store(out: str | Path) -> Store:
    store = Store(Path(out))
    if not store.exists():
        raise KetoolsError(f"{out}: no run here (run.json is missing); expected the folder that a run wrote")
    return store


def _with_weights(out: str | Path) -> Store:
    store = _store(out)
    if store.light:
        raise KetoolsError(
            f"{out} holds the tables of a run without its weights; export needs the folder that the run wrote"
        )
    return store


def _done(store: Store, record: RunRecord) -> dict[str, int]:
    """Batches and edits that are done: as committed, or as the tables alone say."""
    if not store.light:
        return store.progress()
    points = record.checkpoints
    return {"batches": len(record.batches), "edits": int(points["edits"].max()) if len(points) else 0}


def _locked(store: Store) -> bool:
    """Is a process working on the run? Not known, hence False, where the lock cannot be opened (a read-only folder)."""
    if not (store.out / "lock").is_file():
        return False
    lock = FileLock(store.out / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def _bytes(store: Store) -> dict[str, int]:
    used: dict[str, int] = {}
    for path in store.out.rglob("*"):
        if path.is_file():
            top = path.relative_to(store.out).parts
            name = top[0] if len(top) > 1 else "tables"
            used[name] = used.get(name, 0) + path.stat().st_size
    return used


def _bytes_at_end(used: dict[str, int], times: float) -> int | None:
    """About, of a run that will be so many times as long as now; None for tables alone, which do not grow."""
    grows = sum(used.get(name, 0) for name in ("batches", "edits", "state"))
    return round(grows * (times - 1)) + sum(used.values()) if grows else None
