"""One lifelong run in hand: batch after batch, checkpoint after checkpoint, each on disk before the next begins."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ketools.editing.edit import Edit, snapshot
from ketools.editing.editor import Editor
from ketools.editing.finish import finished
from ketools.editing.methods import Method
from ketools.editing.statistics import Statistics
from ketools.errors import NotFinite
from ketools.evaluation.edits import SHORT, evaluate, summary
from ketools.facts import FactSet
from ketools.model import EditableModel
from ketools.norms.weights import frobenius
from ketools.runs.inside import inside
from ketools.runs.panel import Panel
from ketools.runs.resume import restore, weights_digest
from ketools.runs.sealed import Damaged, joined
from ketools.runs.store import Store
from ketools.runs.verify import due, latest_snapshot

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
                self.store.put_snapshot(latest, snapshot(self.model, layers))
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
        bits = snapshot(self.model, editor.layers) if number % self.consolidate == 0 else None
        with self.store.writing():
            self.store.put(number, edits, edit, editor.state, tables, snapshot=bits,
                           weights=weights_digest(self.model, editor.layers))  # fmt: skip
        self.facts.append(tables["facts"])
        self._on_disk(number, editor)

    def _on_disk(self, number: int, editor: Editor) -> None:
        """From now on the batch's factors and keys are read from their files when asked for: memory stays flat."""
        self.model.edits[-1] = editor.history[-1] = editor.history[-1].stored(self.store.edit_path(number))
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
