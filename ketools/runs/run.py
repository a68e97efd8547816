"""What is measured inside the model at a checkpoint: spectra of the edited matrices, who writes the residual stream."""

from __future__ import annotations

import hashlib
import math
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ketools.editing.contexts import checked_rows
from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor, finished
from ketools.editing.methods import Hyper, Method
from ketools.editing.methods import method as named_method
from ketools.editing.postprocess import Prune
from ketools.errors import KetoolsError, NotFinite
from ketools.evaluation.edits import SHORT, evaluate, summary
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import write_atomic
from ketools.models.model import EditableModel
from ketools.norms.residual import contributions, text_sample
from ketools.norms.spectra import spectra
from ketools.norms.weights import frobenius
from ketools.runs.config import RunConfig, check_seed, composed, settled
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import plain, provenance
from ketools.runs.resume import begin, restore, statistics_digest, weights_digest
from ketools.runs.store import Damaged, RunRecord, Store, digest, due, joined, latest_snapshot

__all__ = ["Interrupted", "lifelong"]


def inside(
    model: EditableModel,
    layers: Collection[int],
    texts: Sequence[str],
    *,
    with_spectra: bool = True,
    residual_tokens: int = 1024,
) -> tuple[dict[str, float], dict[str, pd.DataFrame]]:
    """Spectra and residual shares of the model as it stands.

    Args:
        model: the model, edits included.
        layers: the edited layers.
        texts: running text whose first `residual_tokens` tokens are read (0, or no text: none).
        with_spectra: look at the singular values.

    Returns:
        A checkpoint's columns and tables. Columns: spectral_ratio (largest ||W||_2 / ||W_0||_2 of an edited matrix),
        effective_rank_ratio (smallest), residual_share and residual_projection (of the edited MLPs together); NaN where
        nothing was measured, or the model is not finite. Tables "spectra" and "residual" as in
        `ketools.runs.store.RunRecord`.
    """
    row = dict.fromkeys(("spectral_ratio", "effective_rank_ratio", "residual_share", "residual_projection"), math.nan)
    tables: dict[str, pd.DataFrame] = {}
    if with_spectra:
        tables |= _tried(lambda: {"spectra": spectra(model, sorted(layers))}, "spectra")
        if "spectra" in tables:
            both = tables["spectra"].pivot(index="layer", columns="state", values=["spectral_norm", "effective_rank"])
            row["spectral_ratio"] = float((both["spectral_norm"]["now"] / both["spectral_norm"]["before"]).max())
            row["effective_rank_ratio"] = float(
                (both["effective_rank"]["now"] / both["effective_rank"]["before"]).min()
            )
            now = tables["spectra"]
            tables["spectra"] = now[now["state"] == "now"].drop(columns=["state", "edited"]).reset_index(drop=True)
    if residual_tokens and texts:
        sample = text_sample(model, texts, residual_tokens)
        tables |= _tried(lambda: {"residual": contributions(model, sample, edited=layers)}, "residual shares")
        if "residual" in tables:
            edited = tables["residual"][tables["residual"]["edited"]]
            row["residual_share"] = float(edited["share"].sum())
            row["residual_projection"] = float(edited["projection"].sum())
    return row, tables


def _tried(measure: Callable[[], dict[str, pd.DataFrame]], what: str) -> dict[str, pd.DataFrame]:
    try:
        return measure()
    except KetoolsError as error:  # a collapsed model, or an architecture without such a sum: the run goes on without
        warnings.warn(f"{what} not measured: {error}", stacklevel=3)
        return {}


# One lifelong run in hand: batch after batch, checkpoint after checkpoint, each on disk before the next begins.


_KNOWN = re.compile(r"(\d+) of \d+ facts need no edit")  # the editor's warning


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the message says what is kept and how to go on."""


@dataclass
class Run:
    """One run in hand."""

    model: EditableModel
    method: Method
    todo: FactSet
    store: Store
    panel: Panel
    batch: int
    every: int
    statistics: Statistics | None
    seed: int
    overrides: dict[str, Any]
    consolidate: int
    facts: list[pd.DataFrame] = field(default_factory=list)  # rows at edit time
    known: int = 0
    told: set[str] = field(default_factory=set)  # warnings that were given: each once a run, not once a batch

    def go(self, done: int, progress: bool) -> None:
        """The checkpoints that are due, and batches done + 1 .. last with theirs."""
        try:
            self._start()
            editor = self._editor(done)
            bar = tqdm(total=len(self.todo), initial=len(self._past(done)), unit="edit", desc=self.method.name,
                       disable=not progress)  # fmt: skip
            with bar:
                self._checkpoint(done, editor)
                for number in range(done + 1, self._batches() + 1):
                    if not self._step(number, editor):
                        break
                    bar.update(len(self._slice(number)))
                    self._checkpoint(number, editor)
            if not (self.store.out / "tables.json").is_file():
                with self.store.writing():
                    self.store.write_tables()
        except KeyboardInterrupt as stop:
            kept = self.store.progress()["edits"]
            raise Interrupted(
                f"stopped; {kept} of {len(self.todo)} edits with {self.method.name} are kept in {self.store.out}"
            ) from stop
        if self.known and done < self._batches():
            warnings.warn(
                f"{self.known} of {len(self.todo)} facts needed no edit, their target was the model's top answer already "
                f"(column known of the batches in {self.store.out})",
                stacklevel=4,
            )

    def _start(self) -> None:
        """What is kept of the unedited model, unless it is there."""
        if self.store.batch_path(0).is_file():
            try:
                self.store.commit(0)
                return
            except Damaged as error:
                warnings.warn(f"{error}; what it held of the unedited model is measured again", stacklevel=4)
        layers = self.method.settings(self.model, **self.overrides).layers or ()
        with self.store.writing():
            self.store.start({"norms": self._norms(0, None, layers)}, self.panel.kept())

    def _editor(self, done: int) -> Editor:
        """A fresh editor, or the one that finished batch `done`, its edits put back into the weights."""
        state = None
        layers = self.method.settings(self.model, **self.overrides).layers or ()
        if done:
            held = self.store.frames()
            self.facts, self.known = [held["facts"]], int(held["batches"]["known"].sum())
        latest = latest_snapshot(self.store, done)
        if latest and not self.store.snapshot_path(latest).is_file():  # lost: made again from the updates
            restore(self.store, self.model, latest)
            with self.store.writing():
                self.store.put_snapshot(latest, self.model.edits.snapshot(layers))
        for number in range(done):  # checkpoints that were lost: measured again on the weights of their batch
            if self._due(number) and not self.store.checkpoint_path(number).is_file():
                restore(self.store, self.model, number)
                self._measure(number, layers)
        if done:
            state = restore(self.store, self.model, done)
            if not self.method.past_keys:  # moments, which each batch adds up: read once
                state.past = {i: list(blocks) for i, blocks in state.past.items()}
        return Editor(self.model, self.method, state, statistics=self.statistics, seed=self.seed, **self.overrides)

    def _batches(self) -> int:
        """The last batch: that before a collapse, if there was one."""
        collapse = self.store.collapse()
        return -(-len(self.todo) // self.batch) if collapse is None else int(collapse["batch"]) - 1

    def _slice(self, number: int) -> FactSet:
        return self.todo[(number - 1) * self.batch : number * self.batch]

    def _past(self, number: int) -> FactSet:
        return self.todo[: number * self.batch]

    def _step(self, number: int, editor: Editor) -> bool:
        """One batch: edit, score at edit time, write all, commit; whatever stops it leaves the weights as before.

        False if the update was not finite; that is recorded.
        """
        facts = self._slice(number)
        start = time.perf_counter()
        try:
            edit, known = _edited(editor, facts, self.told)
        except NotFinite as error:
            self._collapse(number, str(error), editor)
            return False
        seconds = time.perf_counter() - start
        try:
            self._keep(number, editor, edit, seconds, known)
        except BaseException:
            if self.store.progress()["batches"] < number:
                editor.undo()
            raise
        self.known += known
        return True

    def _collapse(self, number: int, why: str, editor: Editor) -> None:
        before = len(self._past(number - 1))
        content = {"batch": number, "first": before + 1, "last": len(self._past(number)), "edits": before, "why": why}
        with self.store.writing():
            self.store.put_collapse(content)
        self._checkpoint(number - 1, editor)

    def _keep(self, number: int, editor: Editor, edit: Edit, seconds: float, known: int) -> None:
        start = time.perf_counter()
        scores = evaluate(self.model, self._slice(number), neighbours=self.panel.sizes.neighbours)
        edits = len(self._past(number))
        row = _batch_row(number, edits, edit, seconds, scores).assign(known=known)
        tables = {
            "batches": row.assign(seconds_scoring=time.perf_counter() - start),
            "facts": _fact_rows(number, edit, scores),
            "norms": self._norms(number, edit, editor.layers),
        }
        bits = self.model.edits.snapshot(editor.layers) if number % self.consolidate == 0 else None
        with self.store.writing():
            self.store.put(number, edits, edit, editor.state, tables, snapshot=bits,
                           weights=weights_digest(self.model, editor.layers))  # fmt: skip
        self.facts.append(tables["facts"])
        self._on_disk(number, editor)

    def _on_disk(self, number: int, editor: Editor) -> None:
        """From now on the batch's factors and keys are read from their files when asked for: memory stays flat."""
        editor.history[-1] = editor.history[-1].stored(self.store.edit_path(number))
        self.model.edits.replace(-1, editor.history[-1])
        if self.method.past_keys:  # not UltraEdit's moments, three columns a batch that each batch adds up
            editor.state.leave_last(self.store.state_path(number))

    def _norms(self, number: int, edit: Edit | None, layers: Sequence[int]) -> pd.DataFrame:
        """Norms of all MLP output matrices after batch `number` (0: before the first)."""
        frame = frobenius(self.model, self.panel.norms, edited=layers)
        update = edit.record["update_norm"] if edit is not None else {}
        frame["update_norm"] = [float(update.get(layer, np.nan)) for layer in frame["layer"]]
        return frame.assign(batch=number, edits=len(self._past(number)))

    def _due(self, number: int) -> bool:
        """Is there to be a checkpoint after batch `number`?"""
        if number == self._batches():
            return True
        return due(len(self._past(number)), len(self._past(number - 1)), self.every)

    def _checkpoint(self, number: int, editor: Editor) -> None:
        """Measure after batch `number` if a checkpoint is due and not there yet."""
        path, last = self.store.checkpoint_path(number), number == self._batches()
        if self._due(number) and not (
            path.is_file() and (not last or not number or "ends" in self.store.point(number))
        ):
            self._measure(number, editor.layers)

    def _measure(self, number: int, layers: Sequence[int]) -> None:
        """A checkpoint: all measures of the model as it stands after batch `number`, post-processed if it ended there."""
        with finished(self.model, self.method.post, layers):
            self._measured(number, layers)

    def _measured(self, number: int, layers: Sequence[int]) -> None:
        start, past, last = time.perf_counter(), self._past(number), number == self._batches()
        row: dict[str, Any] = {"edits": len(past), "batch": number}
        sizes, tables = self.panel.sizes, {}
        if number and (sizes.past_edits or last):
            limit = sizes.neighbours_end if last else sizes.neighbours
            scores = evaluate(self.model, past, neighbours=limit)
            row["neighbours"] = max(len(fact.neighbours[:limit]) for fact in past)
            row |= summary(scores)
            at_edit = joined(self.facts)[: len(past)]
            row |= {f"at_edit_{SHORT[kind]}": float(at_edit[f"at_edit_{kind}_success"].mean()) for kind in SHORT}
            if last:
                tables["ends"] = scores.drop(columns=["id", "relation", "subject"]).add_prefix("end_")
            row["p_above_natural"] = self.panel.above_natural(scores["p_new"])
        row |= self.panel.measure(self.model, past, row.get("p_new", float("nan")), layers)
        more, held = inside(self.model, layers, self.panel.texts, with_spectra=sizes.spectra,
                            residual_tokens=sizes.residual_tokens)  # fmt: skip
        tables |= {name: frame.assign(edits=len(past), batch=number) for name, frame in held.items()}
        row |= more | {"seconds": time.perf_counter() - start}
        with self.store.writing():
            self.store.put_checkpoint(number, tables | {"checkpoints": pd.DataFrame([row])})
            self.store.write_tables()


def _edited(editor: Editor, facts: FactSet, told: set[str]) -> tuple[Edit, int]:
    """The edit, and of how many facts the target was the top answer already: said once at the end of a run.

    Other warnings are passed on, if they are not among those in `told` already.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        edit = editor.apply(facts)
    known = 0
    for warning in caught:
        if found := _KNOWN.match(str(warning.message)):
            known += int(found[1])
        elif (text := str(warning.message)) not in told:
            told.add(text)
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return edit, known


def _batch_row(number: int, edits: int, edit: Edit, seconds: float, scores: pd.DataFrame) -> pd.DataFrame:
    """The row of `RunRecord.batches`."""
    record, scored = edit.record, summary(scores)
    steps, p_target = np.asarray(record["steps"], dtype=float), np.asarray(record["p_target"], dtype=float)
    row = {"batch": number, "edits": edits, "facts": len(scores), "seconds": seconds}
    row |= {f"seconds_{phase}": float(value) for phase, value in record["seconds"].items()}
    row |= {"steps_mean": steps.mean(), "steps_max": steps.max(), "p_target_mean": p_target.mean()}
    row |= {f"at_edit_{name}": scored[name] for name in ("ES", "PS", "NS", "S", "p_new", "efficacy_accuracy")}
    return pd.DataFrame([row])


def _fact_rows(number: int, edit: Edit, scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of `RunRecord.facts` for one batch."""
    about: Sequence[str] = ["id", "relation", "subject"]
    frame = scores[about].assign(batch=number, steps=edit.record["steps"], p_target=edit.record["p_target"])
    return pd.concat([frame, scores.drop(columns=about).add_prefix("at_edit_")], axis=1)


# Lifelong editing: facts in batches, one after another, into the same weights; measured as it goes, resumable.


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


# From a config to a run, and what can be asked of one: its status, the model after so many edits.


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

    Raises KetoolsError and Interrupted as `ketools.runs.run.lifelong` does.
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


# Editing a file of facts into a model, batch after batch: what `ketools edit` does. Resumable; every batch is kept.
#
# OUT/edit.safetensors     all batches as one Edit, once they are done
# OUT/facts.parquet        a row per fact: what the model made of it before and after
# OUT/run.json, batches, edits, state   settings and provenance; each batch, and what is needed to go on after it


_ENOUGH = 0.5  # share of facts that say the new object below which an edit is said to fall short
_REACHED = 0.2  # mean probability of targets in step 1; MPES may stop well below one half


@dataclass(frozen=True)
class Job:
    """What is to be edited, and how."""

    model: EditableModel
    facts: FactSet
    method: Method
    out: Path
    batch: int = 50
    seed: int = 0
    statistics: Statistics | None = None
    overrides: Mapping[str, Any] | None = None

    def run(self, progress: bool = True) -> tuple[Edit, pd.DataFrame]:
        """Edit all facts, or go on where an earlier run of the same job stopped; returns the whole Edit and the report.

        The report: `ketools.evaluation.edits.evaluate` of each fact, columns with "before_" (the unedited model) and
        "after_" (all batches in). The model is left with all edits applied.

        Raises KetoolsError for an edited model, a folder with another job, and facts that cannot be edited;
        Interrupted on Ctrl-C, whose message says how many facts are kept.
        """
        if self.model.edits:
            raise KetoolsError(f"the model carries {len(self.model.edits)} edits already; start from the unedited one")
        if self.batch < 1:
            raise KetoolsError(f"batch={self.batch}: expected a number of facts of at least 1")
        if not len(self.facts):
            raise KetoolsError("no facts to edit; give at least one")
        store = Store(self.out)
        with store.locked():
            done = begin(store, self._settings(), provenance(self.model, self.seed, self.method))
            try:
                before = evaluate(self.model, self.facts)
                self._batches(store, done, progress)
                after = evaluate(self.model, self.facts)
            except KeyboardInterrupt as stop:
                kept = store.progress()["edits"]
                what = f"{kept} of {len(self.facts)} facts are kept in {self.out}" if kept else "no fact was edited yet"
                raise Interrupted(f"stopped; {what}") from stop
            edit, report = merged(self.model.edits), _report(self.facts, before, after)
            with store.writing():
                edit.save(self.out / "edit.safetensors")
                write_atomic(self.out / "facts.parquet", report.to_parquet(index=False))
        return edit, report

    def _settings(self) -> dict[str, Any]:
        lines = "\0".join(f"{fact.id}\1{fact.text}\1{fact.target_new}" for fact in self.facts)
        made = self.statistics.provenance if self.statistics is not None else None
        return {
            "kind": "edit",
            "model": self.model.fingerprint,
            "method": plain(self.method),
            "hyper": plain(self.method.settings(self.model, **(self.overrides or {}))),
            "facts": hashlib.sha256(lines.encode()).hexdigest(),
            "batch": self.batch,
            "seed": self.seed,
            "statistics": plain(made),
        }

    def _batches(self, store: Store, done: int, progress: bool) -> None:
        if not store.batch_path(0).is_file():
            with store.writing():
                store.start({}, {})
        state = restore(store, self.model, done)
        editor = Editor(
            self.model, self.method, state, statistics=self.statistics, seed=self.seed, **(self.overrides or {})
        )
        total, first = len(self.facts), min(done * self.batch, len(self.facts))
        with tqdm(total=total, initial=first, unit="fact", desc=self.method.name, disable=not progress) as bar:
            for number in range(done + 1, -(-total // self.batch) + 1):
                part = self.facts[(number - 1) * self.batch : number * self.batch]
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ facts need no edit")  # preflight says so
                    edit = editor.apply(part, bar.update)
                with store.writing():
                    store.put(number, min(number * self.batch, total), edit, editor.state)
        editor.finish()


def merged(edits: Sequence[Edit]) -> Edit:
    """Several edits, in order, as one: factors side by side, or as a dense matrix where that is smaller.

    Its weights are those of all the edits up to rounding (one addition instead of several). The record is the first
    one's with the lists of all (facts, steps, ...), and "batches" says how many there were.
    """
    assert edits, "nothing to merge"
    if len(edits) == 1:
        return edits[0]
    layers = {}
    for i in sorted({i for edit in edits for i in edit.layers}):
        left, right = (torch.cat([e.layers[i][side] for e in edits if i in e.layers], 1) for side in (0, 1))
        if left.shape[1] > len(left):
            total = left.double() @ right.double().T
            left, right = torch.eye(len(left)), total.T.float().contiguous()
        layers[i] = (left, right)
    record = dict(edits[0].record)
    for name in ("facts", "steps", "p_target", "delta_norm", "padding"):
        if name in record:
            record[name] = [value for edit in edits for value in edit.record.get(name, [])]
    record |= {"batches": len(edits), "seconds": _summed([edit.record.get("seconds", {}) for edit in edits])}
    record.pop("rounding", None)
    whole = Edit(layers, record)
    record["update_norm"] = whole.norms()
    return whole


def advice(edit: Edit, report: pd.DataFrame, method: Method) -> str | None:
    """Where an edit falls short, and what to turn; None if half of the new objects or more are top answers now."""
    said = float(report["after_efficacy_accuracy"].mean())
    if said >= _ENOUGH:
        return None
    begin = f"{said:.0%} of the new objects are the model's top answer"
    if not method.has_targets:
        return f"{begin}: take more steps or a larger rate, or other layers (ketools methods {method.name} lists the settings)"
    reached = sum(edit.record["p_target"]) / len(edit.record["p_target"])
    if reached < _REACHED:
        return (
            f"{begin}, and step 1 itself falls short: the states it found give the targets a probability of {reached:.2f} "
            "on average. Raise lr, steps or clamp_norm_factor (--set), or edit other layers (--layers)"
        )
    return (
        f"{begin}, although the states that step 1 found give the targets a probability of {reached:.2f} on average: "
        "step 2 holds the weights back. Lower lambda_p or what else protects them (--set), take fewer facts a batch, or "
        "edit other layers (--layers)"
    )


def _summed(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {phase: sum(s.get(phase, 0.0) for s in seconds) for phase in seconds[0]} if seconds else {}


def _report(facts: FactSet, before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    about = ["id", "relation", "subject"]
    texts = pd.DataFrame({"prompt": [f.text for f in facts], "target_new": [f.target_new for f in facts]})
    scores = [f.drop(columns=about).add_prefix(when) for f, when in ((before, "before_"), (after, "after_"))]
    return pd.concat([before[about], texts, *scores], axis=1)
