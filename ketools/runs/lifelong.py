"""Lifelong editing: facts in batches, one after another, into the same weights; measured as it goes, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ketools.editing.checks import checked_rows
from ketools.editing.hyper import Hyper
from ketools.editing.methods import Method
from ketools.editing.methods import method as named_method
from ketools.editing.statistics import Statistics, load_statistics
from ketools.errors import KetoolsError
from ketools.fact import Fact
from ketools.facts import FactSet
from ketools.model import EditableModel
from ketools.runs.config import check_seed
from ketools.runs.loop import Interrupted, Run
from ketools.runs.panel import Panel, Sizes
from ketools.runs.provenance import plain, provenance
from ketools.runs.resume import begin, statistics_digest
from ketools.runs.sealed import Damaged, digest
from ketools.runs.settle import settled
from ketools.runs.store import RunRecord, Store

__all__ = ["Interrupted", "lifelong"]


def lifelong(
    model: EditableModel,
    facts: FactSet,
    method: str | Method,
    *,
    edits: int,
    batch: int = 50,
    checkpoint_every: int = 250,
    seed: int = 0,
    out: str | Path,
    statistics: Statistics | None = None,
    progress: bool = True,
    panel: Panel | None = None,
    sizes: Sizes | None = None,
    overrides: Mapping[str, Any] | None = None,
    conflicts: str = "last wins",
    consolidate_every: int = 10,
    config: Mapping[str, Any] | None = None,
    force: bool = False,
) -> RunRecord:
    """Edit `edits` facts into the model in batches, measuring at every checkpoint; go on where a run in `out` stopped.

    At each checkpoint all edits so far are scored anew (ES, PS, NS, S and accuracies: "at the end" once it is the
    last one), beside everything that `Panel.measure` and `inside` ask of the rest of the model. Right after each batch
    its own facts are scored ("at edit time"). After each batch the edit, the editor's state and the records are on disk; a
    run on a CPU that was killed at any moment and goes on ends with the same bits as one never stopped.

    An update that is not finite ends the run: `RunRecord.collapse` says at which edits, and the last checkpoint is of the
    weights before them.

    Args:
        model: unedited; it is left with all edits applied (and, on Ctrl-C, with those of the finished batches).
        facts: what there is to edit and to compare with; `facts.sample(edits, seed)` is edited (unique subjects).
        method: name ("encore") or Method.
        edits: how many; batch: facts per batch (the last may be smaller).
        checkpoint_every: edits between checkpoints; rounded up to whole batches; there is always one at 0 and at the end.
        seed: of the sample, the panel and the editor.
        out: folder of the run (ketools.runs.store says what is in it).
        statistics: covariances of the keys; None: those stored with the model.
        progress: show a progress bar.
        panel: what to compare with; None: drawn here with `sizes`. Runs side by side on one model can share one.
        overrides: hyperparameters of the editor to change, by name.
        conflicts: of facts that contradict each other "last wins" (with a warning; how many went is in the settings), or
            "refuse".
        consolidate_every: batches between two snapshots of the edited matrices, from which a run goes on.
        config: kept with the run, for `ketools resume`.
        force: go on with other settings, covariance, versions or facts to measure than the run had (KetoolsError
            otherwise).

    Returns:
        The run's record, the same as `RunRecord.load(out)`.

    Raises:
        KetoolsError: more edits than facts, a fact that cannot be edited, an edited model, an unwritable folder, a folder
            with another run or one that another process works on.
        Interrupted: on Ctrl-C; finished batches are kept.
    """
    _possible(model, edits=edits, batch=batch, checkpoint_every=checkpoint_every, consolidate_every=consolidate_every)
    check_seed(seed)
    chosen, changed, facts = named_method(method), dict(overrides or {}), settled(facts, conflicts)
    todo, hyper = facts.sample(edits, seed), chosen.settings(model, **changed)
    statistics = _needed(statistics, model, chosen, hyper)
    asked: dict[str, Any] = {"edits": edits, "batch": batch, "checkpoint_every": checkpoint_every, "seed": seed}
    asked["sizes"] = plain(panel.sizes if panel else sizes or Sizes())
    settings = _described(model, chosen, hyper, todo, statistics) | asked
    store, about = Store(Path(out)), provenance(model, seed, chosen) | {"config": plain(config)}
    with store.locked():
        done = begin(store, settings | _again(store, settings, todo, facts, force), about, force=force)
        if not done:
            _editable(model, todo, batch)
        panel = panel or _panel(store, model, facts, todo, seed, sizes or Sizes())
        _note_facts(store, todo, panel, facts)
        run = Run(
            model, chosen, todo, store, panel, batch, checkpoint_every, statistics, seed, changed, consolidate_every
        )
        run.go(done, progress)
    return RunRecord.load(out)


def _possible(model: EditableModel, **whole: int) -> None:
    """Raise KetoolsError for a number below 1, and for a model that is edited already."""
    for name, value in whole.items():
        if value < 1:
            raise KetoolsError(f"{name}={value}: expected a whole number of at least 1")
    if model.edits:
        raise KetoolsError(f"the model carries {len(model.edits)} edits already; a run starts from the unedited model")


def _needed(given: Statistics | None, model: EditableModel, method: Method, hyper: Hyper) -> Statistics | None:
    """The covariances that the method asks for; None where it asks for none."""
    if not method.needs_statistics:
        return None
    assert hyper.layers is not None
    return (given or load_statistics(model)).of(model, hyper.layers)


def _described(
    model: EditableModel, method: Method, hyper: Hyper, todo: FactSet, statistics: Statistics | None
) -> dict[str, Any]:
    """What is kept of the model, the method and the facts, to tell whether it is the same run that goes on."""
    texts = "\0".join(f"{f.id}\1{f.text}\1{f.target_new}" for f in todo)
    return {
        "model": model.fingerprint,
        "method": plain(method),
        "hyper": plain(hyper),
        "facts": hashlib.sha256(texts.encode()).hexdigest(),
        "statistics": statistics_digest(statistics, hyper.layers or ()),
    }


def _again(store: Store, settings: Mapping[str, Any], todo: FactSet, facts: FactSet, force: bool) -> dict[str, Any]:
    """What `_note_facts` kept of the run that lies here, of the facts as they are now; {} where it kept nothing.

    Raises KetoolsError if facts were changed under their ids: what is measured would be another thing from here on.
    """
    try:
        held, panel = store.about().get("settings", {}), store.commit(0).get("panel") or {}
    except Damaged:  # not begun, or the panel is to be taken again
        return {}
    now = _contents(todo, [*panel.get("unedited", ()), *panel.get("same_subject", ())], facts)
    if "contents" not in held or now is None:
        return {}
    if now != held["contents"] and settings["facts"] == held.get("facts") and not force:
        raise KetoolsError(
            f"the facts of the run in {store.out} were changed since it began: ids and edits are the same, but not all that "
            "is measured (true objects, paraphrases, neighbours, or facts of the panel); give the facts that it began with, "
            "or another output folder. --force (force=True) goes on all the same: what is measured before and after is then "
            "not the same thing"
        )
    return {"contents": now, "left_out": held.get("left_out", 0)}


def _note_facts(store: Store, todo: FactSet, panel: Panel, facts: FactSet) -> None:
    """Before the first edit: keep what tells whether facts were changed, and how many gave way to others.

    Beside the settings that every run has, so that runs of earlier versions, which lack it, go on as they did.
    """
    if store.batch_path(0).is_file():
        return
    about = store.about()
    about["settings"]["left_out"] = getattr(facts, "left_out", 0)
    now = _contents(todo, [fact.id for fact in (*panel.unedited, *panel.same_subject)], facts)
    if now is not None:  # a panel of other facts, brought along, is looked after by who brings it
        about["settings"]["contents"] = now
    with store.writing():
        store.write_about(about)


def _contents(todo: FactSet, panel: Iterable[str], facts: FactSet) -> str | None:
    """sha256 of all fields of the edited facts and of the panel's; None if `facts` lack one of the panel's."""
    by_id: dict[str, Fact] = {fact.id: fact for fact in facts}
    asked = [by_id.get(i) for i in panel]
    return None if None in asked else digest([asdict(fact) for fact in (*todo, *asked) if fact is not None])


def _editable(model: EditableModel, todo: FactSet, batch: int) -> None:
    """Raise KetoolsError for a fact that cannot be edited: found out now, not after hours."""
    for first in range(0, len(todo), batch):
        checked_rows(model, todo[first : first + batch], ("",))


def _panel(store: Store, model: EditableModel, facts: FactSet, todo: FactSet, seed: int, sizes: Sizes) -> Panel:
    """The panel as the run took it before its first edit, or a new one."""
    try:
        return Panel.again(store.commit(0)["panel"], facts, sizes, seed)
    except Damaged:
        return Panel.take(model, facts, todo, sizes=sizes, seed=seed)
