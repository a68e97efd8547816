"""Lifelong editing: facts in batches, one after another, into the same weights; measured as it goes, resumable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import Method
from ketools.editing.methods import method as named_method
from ketools.editing.state import SequentialState
from ketools.editing.statistics import Statistics, load_statistics
from ketools.errors import KetoolsError
from ketools.evaluation.edits import SHORT, evaluate, summary
from ketools.facts import FactSet
from ketools.model import EditableModel
from ketools.norms.weights import frobenius
from ketools.runs.panel import Panel, Sizes
from ketools.runs.provenance import plain, provenance
from ketools.runs.store import RunRecord, Store


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the message says what is kept and how to go on."""


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
    overrides: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Edit `edits` facts into the model in batches, measuring at every checkpoint; go on where a run in `out` stopped.

    At each checkpoint all edits so far are scored anew (ES, PS, NS, S and accuracies: "at the end" once it is the
    last one), beside everything that `Panel.measure` asks of the rest of the model. Right after each batch its own
    facts are scored ("at edit time"). After each batch the edit, the editor's state and the records are on disk; a
    resumed run ends with the same bits as one never stopped.

    Args:
        model: unedited; it is left with all edits applied (and, on Ctrl-C, with those of the finished batches).
        facts: what there is to edit and to compare with; `facts.sample(edits, seed)` is edited (unique subjects).
        method: name ("encore") or Method.
        edits: how many; batch: facts per batch (the last may be smaller).
        checkpoint_every: edits between checkpoints; rounded up to whole batches; there is always one at 0 and at the end.
        seed: of the sample, the panel and the editor.
        out: folder of the run.
        statistics: covariances of the keys; None: those stored with the model.
        progress: show a progress bar.
        panel: what to compare with; None: drawn here. Runs side by side on one model can share one.
        overrides: hyperparameters of the editor to change, by name.

    Returns:
        The run's record, the same as `RunRecord.load(out)`.

    Raises:
        KetoolsError: more edits than facts, an edited model, an unwritable folder, a folder with another run.
        Interrupted: on Ctrl-C; finished batches are kept.
    """
    for name, value in (("edits", edits), ("batch", batch), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise KetoolsError(f"{name}={value}: expected a whole number of at least 1")
    if model.edits:
        raise KetoolsError(f"the model carries {len(model.edits)} edits already; a run starts from the unedited model")
    chosen, changed = named_method(method), dict(overrides or {})
    todo = facts.sample(edits, seed)
    settings = {
        "model": model.fingerprint,
        "method": plain(chosen),
        "hyper": plain(chosen.settings(model, **changed)),
        "facts": hashlib.sha256("\0".join(f"{f.id}\1{f.text}\1{f.target_new}" for f in todo).encode()).hexdigest(),
        "edits": edits,
        "batch": batch,
        "checkpoint_every": checkpoint_every,
        "seed": seed,
        "sizes": plain(panel.sizes if panel else Sizes()),
    }
    store = Store(Path(out))
    done = store.begin(settings, provenance(model, seed, chosen))
    panel = panel or Panel.take(model, facts, todo, seed=seed)
    statistics = statistics or load_statistics(model)
    run = _Run(model, chosen, todo, store, panel, batch, checkpoint_every, statistics, seed, changed)
    run.go(done, progress)
    return RunRecord.load(out)


@dataclass
class _Run:
    """One run in hand."""

    model: EditableModel
    method: Method
    todo: FactSet
    store: Store
    panel: Panel
    batch: int
    every: int
    statistics: Statistics
    seed: int
    overrides: dict[str, Any]
    frames: dict[str, list[pd.DataFrame]] = field(default_factory=dict)

    def go(self, done: int, progress: bool) -> None:
        """Batches done + 1 .. last, with the checkpoints that are due."""
        editor = self._editor(done)
        self.frames = {name: [frame] for name, frame in self.store.frames().items() if len(frame)}
        bar = tqdm(total=len(self.todo), initial=min(done * self.batch, len(self.todo)), unit="edit",
                   desc=self.method.name, disable=not progress)  # fmt: skip
        try:
            with bar:
                if "norms" not in self.frames:
                    self._norms(0, None, editor)
                self._checkpoint(done, editor)
                for number in range(done + 1, self._batches() + 1):
                    self._step(number, editor)
                    bar.update(len(self._slice(number)))
                    self._checkpoint(number, editor)
        except KeyboardInterrupt as stop:
            kept = self.store.progress()["edits"]
            raise Interrupted(
                f"stopped; {kept} of {len(self.todo)} edits with {self.method.name} are kept in {self.store.out}"
            ) from stop

    def _editor(self, done: int) -> Editor:
        """A fresh editor, or the one that finished batch `done`, its edits put back into the weights."""
        state = None
        if done:
            for number in range(1, done + 1):
                Edit.load(self.store.edit_path(number)).apply_to(self.model)
            state = SequentialState.load(self.store.state_path(done))
        return Editor(self.model, self.method, state, statistics=self.statistics, seed=self.seed, **self.overrides)

    def _batches(self) -> int:
        return -(-len(self.todo) // self.batch)

    def _slice(self, number: int) -> FactSet:
        return self.todo[(number - 1) * self.batch : number * self.batch]

    def _past(self, number: int) -> FactSet:
        return self.todo[: number * self.batch]

    def _step(self, number: int, editor: Editor) -> None:
        """One batch: edit, score at edit time, write all, commit; whatever stops it leaves the weights as before."""
        facts = self._slice(number)
        start = time.perf_counter()
        edit = editor.apply(facts)
        seconds = time.perf_counter() - start
        try:
            self._keep(number, editor, edit, seconds)
        except BaseException:
            if self.store.progress()["batches"] < number:
                editor.undo()
            raise

    def _keep(self, number: int, editor: Editor, edit: Edit, seconds: float) -> None:
        start = time.perf_counter()
        scores = evaluate(self.model, self._slice(number), neighbours=self.panel.sizes.neighbours)
        row = _batch_row(number, len(self._past(number)), edit, seconds, scores)
        self._add("batches", row.assign(seconds_scoring=time.perf_counter() - start))
        self._add("facts", _fact_rows(number, edit, scores))
        self._norms(number, edit, editor)
        with self.store.writing():
            edit.save(self.store.edit_path(number))
            editor.state.save(self.store.state_path(number))
            self.store.save_frames(**{name: self._frame(name) for name in ("batches", "facts", "norms")})
            self.store.commit(number, len(self._past(number)))

    def _norms(self, number: int, edit: Edit | None, editor: Editor) -> None:
        """Norms of all MLP output matrices after batch `number` (0: before the first)."""
        frame = frobenius(self.model, self.panel.norms, edited=editor.layers)
        update = edit.record["update_norm"] if edit is not None else {}
        frame["update_norm"] = [float(update.get(layer, np.nan)) for layer in frame["layer"]]
        self._add("norms", frame.assign(batch=number, edits=len(self._past(number))))

    def _checkpoint(self, number: int, editor: Editor) -> None:
        """Measure after batch `number` if a checkpoint is due and not there yet."""
        edits, last = len(self._past(number)), number == self._batches()
        due = number == 0 or last or edits // self.every > len(self._past(number - 1)) // self.every
        there = self._frame("checkpoints")
        if not due or (len(there) and (there["edits"] == edits).any()):
            return
        start = time.perf_counter()
        past = self._past(number)
        row: dict[str, Any] = {"edits": edits, "batch": number}
        changed = {}
        if number:
            sizes = self.panel.sizes
            limit = sizes.neighbours_end if last else sizes.neighbours
            scores = evaluate(self.model, past, neighbours=limit)
            row["neighbours"] = max(len(fact.neighbours[:limit]) for fact in past)
            row |= summary(scores)
            at_edit = self._frame("facts")
            row |= {f"at_edit_{SHORT[kind]}": float(at_edit[f"at_edit_{kind}_success"].mean()) for kind in SHORT}
            if last:
                self._end(scores)
                changed["facts"] = self._frame("facts")
        row |= self.panel.measure(self.model, past, row.get("p_new", float("nan")), editor.layers)
        row["seconds"] = time.perf_counter() - start
        self._add("checkpoints", pd.DataFrame([row]))
        with self.store.writing():
            self.store.save_frames(checkpoints=self._frame("checkpoints"), **changed)

    def _end(self, scores: pd.DataFrame) -> None:
        """Each fact's scores on the final model, beside those at edit time."""
        facts = self._frame("facts")
        kept = facts.drop(columns=[name for name in facts if name.startswith("end_")])
        ends = scores.drop(columns=["id", "relation", "subject"]).add_prefix("end_")
        self.frames["facts"] = [pd.concat([kept, ends], axis=1)]

    def _add(self, name: str, frame: pd.DataFrame) -> None:
        self.frames.setdefault(name, []).append(frame)

    def _frame(self, name: str) -> pd.DataFrame:
        parts = self.frames.get(name, [])
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


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
