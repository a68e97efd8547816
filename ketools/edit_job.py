"""Editing a file of facts into a model, batch after batch: what `ketools edit` does. Resumable; every batch is kept.

OUT/edit.safetensors     all batches as one Edit, once they are done
OUT/facts.parquet        a row per fact: what the model made of it before and after
OUT/run.json, batches, edits, state   settings and provenance; each batch, and what is needed to go on after it
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import Method
from ketools.editing.statistics import Statistics
from ketools.errors import KetoolsError
from ketools.evaluation.edits import evaluate
from ketools.facts import FactSet
from ketools.files import write_atomic
from ketools.model import EditableModel
from ketools.runs.lifelong import Interrupted
from ketools.runs.provenance import plain, provenance
from ketools.runs.resume import begin, restore
from ketools.runs.store import Store

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
