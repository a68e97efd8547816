"""The main job: the same edits with several methods, each on a fresh copy of the weights, side by side."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ketools.editing.methods import Method
from ketools.editing.methods import method as named_method
from ketools.editing.statistics import Statistics, load_statistics
from ketools.errors import KetoolsError
from ketools.facts import FactSet
from ketools.facts import facts as read_facts
from ketools.files import write_json
from ketools.model import EditableModel, load
from ketools.norms.weights import growing
from ketools.runs.config import check_seed
from ketools.runs.lifelong import lifelong
from ketools.runs.panel import Panel, Sizes
from ketools.runs.provenance import provenance
from ketools.runs.sentences import sentences
from ketools.runs.settle import settled
from ketools.runs.store import RunRecord, Store

METHODS = ("memit", "alphaedit", "encore")
MODEL = "pocket-llama-v2"
"""The pocket model on which a thousand edits show what the paper shows (data/README.md: the others, and why less)."""
Report = Callable[[Mapping[str, RunRecord], Path], object]
"""Draws records (method -> record) into a file; drawing lies above this room, so that the caller brings it."""
Look = Callable[[EditableModel, FactSet, Sequence[Method], bool], object]
"""Looks at model, facts, methods and whether statistics are at hand before anything is written; raises what stops the job."""


@contextmanager
def fresh(model: EditableModel) -> Iterator[EditableModel]:
    """The model, given back on leaving with the bits that it had on entering, on error and Ctrl-C too.

    Copies the MLP output matrices of all layers (the only weights that editing touches) and puts them back.
    """
    bits = {layer: model.weight(layer).clone() for layer in range(model.anatomy.n_layer)}
    edits, recent, originals = list(model.edits), list(model.recent), dict(model.originals)
    try:
        yield model
    finally:
        with torch.no_grad():
            for layer, weight in bits.items():
                model.weight(layer).copy_(weight)
        model.edits[:], model.recent[:] = edits, recent
        model.originals.clear()
        model.originals.update(originals)
        assert all(torch.equal(model.weight(layer), weight) for layer, weight in bits.items()), "weights not restored"


def demo(
    methods: Sequence[str] = METHODS,
    model: str | EditableModel = MODEL,
    edits: int = 1000,
    seed: int = 0,
    out: str | Path = "build/demo",
    *,
    batch: int = 50,
    checkpoint_every: int = 250,
    facts: str | Path | FactSet = "world",
    statistics: Statistics | None = None,
    sizes: Sizes | None = None,
    tasks: pd.DataFrame | None = None,
    texts: Sequence[str] | None = None,
    progress: bool = True,
    report: Report | None = None,
    look: Look | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Run the methods one after another on the same facts; write demo.json and, with `report`, report.html into `out`.

    A job that was stopped goes on where it stopped when called again with the same arguments. One that was finished
    (demo.json is there) is done anew; `again` also throws away an unfinished one.

    Args:
        methods: names ("memit", "alphaedit", "encore", ...).
        model: name, path, or a loaded, unedited model; it comes back bit for bit as it was.
        edits, batch, checkpoint_every, seed: as in `ketools.runs.lifelong.lifelong`.
        out: folder for demo.json, report.html and a folder per method.
        facts: "world", a file, or a FactSet.
        statistics: covariances of the keys; None: those stored with the model.
        sizes, tasks, texts: as in `ketools.runs.panel.Panel.take`.
        progress: show progress bars; report: writes report.html (`ketools.report.write.write_report`); None: there is none.
        look: called once before a job that begins anew, as `Look` says (the command line's preflight); None: no look.

    Returns:
        {"methods": {name: {norm_ratio, ...}}, "sentences": [3], "provenance": {...}, "records": {name: RunRecord}};
        demo.json holds the same without the records. Ratios are fractions, measured at the end.

    Raises:
        KetoolsError: unknown method or model, fewer facts than edits, unwritable folder.
        ketools.runs.lifelong.Interrupted: Ctrl-C; finished batches and methods are kept.
    """
    chosen = {each.name: each for each in map(named_method, methods)}
    if not chosen:
        raise KetoolsError(f"no methods given, expected some of {', '.join(METHODS)}")
    check_seed(seed)
    known = settled(facts if isinstance(facts, FactSet) else read_facts(facts))
    todo = known.sample(edits, seed)
    loaded = model if isinstance(model, EditableModel) else load(model)
    given, statistics, out = statistics is not None, statistics or load_statistics(loaded), Path(out)
    if look is not None and (again or not _unfinished(out, chosen)):
        look(loaded, todo, tuple(chosen.values()), given)
    _prepare(out, chosen, again)  # only now: a mistyped model must not cost an earlier run
    start = time.perf_counter()
    panel = Panel.take(loaded, known, todo, sizes=sizes, seed=seed, tasks=tasks, texts=texts)
    records = _runs(
        loaded, known, chosen, panel, out, edits=edits, batch=batch, checkpoint_every=checkpoint_every, seed=seed,
        statistics=statistics, progress=progress,
    )  # fmt: skip
    about = provenance(loaded, seed) | {"edits": edits, "batch": batch, "unedited_right_before": panel.unedited_right}
    result = _result(records, edits, about | {"seconds": time.perf_counter() - start})
    _write(out, result, records, report)
    return result | {"records": records}


def _runs(
    model: EditableModel,
    known: FactSet,
    methods: Mapping[str, Method],
    panel: Panel,
    out: Path,
    **settings: Any,  # noqa: ANN401 - passed on
) -> dict[str, RunRecord]:
    """A run per method, each on the unedited weights; `settings` as `ketools.runs.lifelong.lifelong` takes them."""
    records: dict[str, RunRecord] = {}
    for name, method in methods.items():
        with fresh(model):
            records[name] = lifelong(model, known, method, out=out / name, panel=panel, **settings)
    return records


def _result(records: dict[str, RunRecord], edits: int, about: dict[str, Any]) -> dict[str, Any]:
    """What demo.json holds."""
    found = {name: figures(record) for name, record in records.items()}
    methods = {
        name: record.provenance["method"] | {"settings": record.provenance["settings"]["hyper"]}
        for name, record in records.items()
    }
    return {"methods": found, "sentences": sentences(found, edits), "provenance": about | {"methods": methods}}


def _unfinished(out: Path, methods: Sequence[str]) -> bool:
    """Does a stopped job of one of these methods lie there? It passed its checks when it began."""
    return not (out / "demo.json").is_file() and any(Store(out / name).exists() for name in methods)


def _prepare(out: Path, methods: Sequence[str], again: bool) -> None:
    """Is the folder writable, before any long work; finished runs of these methods make room."""
    store = Store(out)
    with store.writing():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "demo.json.tmp", {})
        (out / "demo.json.tmp").unlink()
        finished = (out / "demo.json").is_file()
        for name in methods:
            if (finished or again) and Store(out / name).exists():
                shutil.rmtree(out / name)
        (out / "demo.json").unlink(missing_ok=True)


def _write(out: Path, result: dict[str, Any], records: dict[str, RunRecord], report: Report | None) -> None:
    """demo.json, and the report."""
    store = Store(out)
    with store.writing():
        write_json(out / "demo.json", result)
        if report is not None:
            report(records, out / "report.html")


def figures(record: RunRecord) -> dict[str, Any]:
    """What demo.json says of one method: the state at the end of its run.

    Returns:
        norm_ratio (most grown edited matrix, Frobenius, relative to before), norm_still_growing, norm_ratio_unedited;
        unedited_kept, unedited_falling (below the last checkpoint before), same_subject_kept, downstream_kept,
        downstream_f1, perplexity_ratio; efficacy, paraphrase, neighbourhood, score (S) and accuracies of all edits
        at the end; efficacy_at_edit, paraphrase_at_edit, neighbourhood_at_edit; p_edited, p_natural; steps_mean;
        edits; seconds (editing), seconds_per_edit, seconds_evaluation. NaN where nothing was measured: all but p_natural
        of a run that ended in its first batch, whose weights are the unedited ones.
    """
    last, facts, n = record.checkpoints.iloc[-1], record.facts, len(record.facts)
    if not n:  # "kept 100%" of a model without an edit would stand beside those of methods that edited
        last = last.reindex(["p_natural"])
    norms = record.norms[record.norms["edited"]]
    end = norms[norms["edits"] == norms["edits"].max()]
    most = end.loc[end["ratio"].fillna(float("inf")).idxmax(), "layer"]
    series = norms[norms["layer"] == most].set_index("edits")["norm"]
    kept = record.checkpoints["unedited_kept"].to_numpy()
    seconds = _total(record.batches, "seconds")
    from_last = {
        "efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS", "score": "S",
        "efficacy_at_edit": "at_edit_ES", "paraphrase_at_edit": "at_edit_PS", "neighbourhood_at_edit": "at_edit_NS",
    }  # fmt: skip
    same = (
        "norm_ratio", "norm_ratio_unedited", "unedited_kept", "same_subject_kept", "downstream_kept", "downstream_f1",
        "perplexity", "perplexity_ratio", "efficacy_accuracy", "paraphrase_accuracy", "neighbourhood_accuracy",
        "p_edited", "p_natural",
    )  # fmt: skip
    return {
        **{name: float(last.get(name, math.nan)) for name in same},
        **{name: float(last.get(column, math.nan)) for name, column in from_last.items()},
        "norm_layer": int(most),
        "norm_still_growing": n > 0 and growing(series),
        "unedited_falling": bool(len(kept) > 1 and kept[-1] < kept[-2]),
        "steps_mean": float(facts["steps"].mean()) if n else math.nan,
        "edits": n,
        "seconds": seconds,
        "seconds_per_edit": seconds / n if n else math.nan,
        "seconds_evaluation": _total(record.checkpoints, "seconds") + _total(record.batches, "seconds_scoring"),
    }


def _total(frame: pd.DataFrame, column: str) -> float:
    """The column's sum; 0 where the run ended before the table had a row."""
    return float(frame[column].sum()) if column in frame else 0.0
