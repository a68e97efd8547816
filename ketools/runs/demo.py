"""`ketools demo`: several methods on the same facts, each from the same unedited weights; the results as a table and in words."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.methods import Method
from ketools.errors import KetoolsError
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import knows_world, read_json, write_json
from ketools.models.model import EditableModel, load
from ketools.norms.weights import growing
from ketools.runs.config import check_seed, composed, settled
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import listed, plain, provenance, title, variant
from ketools.runs.store import RunRecord, Store
from ketools.runs.sweep import sweep

METHODS = ("memit", "alphaedit", "encore")
REAL_SIZES = Sizes(unedited=200, same_subject=100, documents=20, neighbours_end=1)
"""What a demo measures on a real language model, so that three methods take minutes on two cores."""
Report = Callable[[Mapping[str, RunRecord], Path], object]
"""Draws records (method -> record) into a file. The caller passes it in, since ketools.report lies above this folder."""
Look = Callable[[EditableModel, FactSet, Sequence[Method], bool], object]
"""Inspects model, facts, methods and whether statistics exist before anything is written; raises to stop the job."""


class _Demo(BaseModel):
    methods: dict[str, Any]
    provenance: dict[str, Any]


def demo(
    methods: Sequence[str] = METHODS,
    model: str | EditableModel = "pocket",
    edits: int | None = None,
    seed: int = 0,
    out: str | Path = "build/demo",
    *,
    batch: int = 50,
    checkpoint_every: int = 250,
    facts: str | Path | FactSet | None = None,
    statistics: Statistics | None = None,
    sizes: Sizes | None = None,
    tasks: pd.DataFrame | tuple[str, ...] | None = None,
    texts: Sequence[str] | None = None,
    progress: bool = True,
    report: Report | None = None,
    look: Look | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Run the methods one after another on the same facts; write demo.json and, with `report`, report.html into `out`.

    A stopped job resumes when called again with the same arguments. A finished one (demo.json exists) starts over; with
    `again`, an unfinished one too.

    Args:
        methods: names ("memit", "encore", "memit+mpes", ...).
        model: name, path, or a loaded, unedited model, which is restored bit for bit.
        edits, batch, checkpoint_every, seed: as in `ketools.runs.run.lifelong`; edits None: 1,000, or 100 and the smaller
            `REAL_SIZES` on a model that does not know the built-in world.
        out: folder for demo.json, report.html and a folder per method.
        facts: "world", "real", a file, or a FactSet; None: "world" for a model that knows it, else "real".
        statistics: covariances of the keys; None: those stored with the model.
        sizes, tasks, texts: as in `ketools.runs.panel.Panel.take`.
        progress: show progress bars; report: writes report.html (`ketools.report.page.write_report`); None: no report.
        look: called once before a new job (the command line's preflight).

    Returns:
        {"methods": {name: `figures`}, "sentences": [3], "provenance": {...}, "records": {name: RunRecord}}; demo.json holds
        all but the records. Ratios are fractions, measured at the end.

    Raises:
        KetoolsError: unknown method or model, fewer facts than edits, unwritable folder.
        ketools.runs.run.Interrupted: Ctrl-C; finished batches and methods are kept.
    """
    chosen = {variant(plain(method)): method for method in map(composed, methods)}
    if not chosen:
        raise KetoolsError(f"no methods given, expected some of {', '.join(METHODS)}")
    check_seed(seed)
    world = knows_world(model if isinstance(model, str) else model.path or model.known_as)
    facts = ("world" if world else "real") if facts is None else facts
    edits, sizes = edits or (1000 if world else 100), sizes or (Sizes() if world else REAL_SIZES)
    known = settled(facts if isinstance(facts, FactSet) else read_facts(facts))
    todo = known.sample(edits, seed)
    loaded = model if isinstance(model, EditableModel) else load(model)
    given, out = statistics is not None, Path(out)
    if statistics is None and any(method.needs_statistics for method in chosen.values()):
        statistics = load_statistics(loaded)
    done, begun = (out / "demo.json").is_file(), [name for name in chosen if Store(out / name).exists()]
    if done:
        read_json(out / "demo.json", _Demo, "the figures of a demo, which this one would overwrite")
    elif (out / "report.html").exists() and not begun:
        raise KetoolsError(f"{out / 'report.html'} exists without a demo (demo.json is missing); give another folder")
    if look is not None and (again or done or not begun):  # a stopped job passed its checks when it began
        look(loaded, todo, tuple(chosen.values()), given)
    store, new = Store(out), not out.exists()
    with store.writing():  # is the folder writable?
        write_json(out / "demo.json.tmp", {})
        (out / "demo.json.tmp").unlink()
        if new:
            out.rmdir()
    start = time.perf_counter()
    panel = Panel.take(loaded, known, todo, sizes=sizes, seed=seed, tasks=tasks, texts=texts)
    with store.writing():  # only now, so that a mistyped model or task does not cost an earlier run
        for name in begun if done or again else ():
            Store(out / name).clear()
        (out / "demo.json").unlink(missing_ok=True)
    records = sweep(
        loaded, known, {name: {"method": method} for name, method in chosen.items()}, out, edits=edits, batch=batch,
        checkpoint_every=checkpoint_every, seed=seed, statistics=statistics, panel=panel, progress=progress,
    )  # fmt: skip
    about = provenance(loaded, seed) | {"edits": edits, "batch": batch, "unedited_right_before": panel.unedited_right}
    about["methods"] = {
        name: record.provenance["method"] | {"settings": record.provenance["settings"]["hyper"]}
        for name, record in records.items()
    }
    ends = {name: figures(record) for name, record in records.items()}
    about["seconds"] = time.perf_counter() - start
    result = {"methods": ends, "sentences": sentences(ends, edits), "provenance": about}
    with store.writing():
        write_json(out / "demo.json", result)
        if report is not None:
            report(records, out / "report.html")
    return result | {"records": records}


def figures(record: RunRecord) -> dict[str, Any]:
    """The final measures of a run, as demo.json and the grid hold them; the glossary's table "demo" explains each.

    NaN where nothing was measured. A run that ended in its first batch, with unedited weights, has only p_natural.
    """
    last, facts, n = record.checkpoints.iloc[-1], record.facts, len(record.facts)
    if not n:  # "kept 100%" of an unedited model would mislead beside methods that edited
        last = last.reindex(["p_natural"])
    norms = record.norms[record.norms["edited"]]
    end = norms[norms["edits"] == norms["edits"].max()]
    most = end.loc[end["ratio"].fillna(math.inf).idxmax(), "layer"]
    kept = record.checkpoints["unedited_kept"].to_numpy()
    names = {name: name for name in (
        "norm_ratio", "norm_ratio_unedited", "unedited_kept", "same_subject_kept", "downstream_kept", "downstream_f1",
        "perplexity", "perplexity_ratio", "efficacy_accuracy", "paraphrase_accuracy", "neighbourhood_accuracy",
        "p_edited", "p_natural",
    )} | {
        "efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS", "score": "S", "efficacy_at_edit": "at_edit_ES",
        "paraphrase_at_edit": "at_edit_PS", "neighbourhood_at_edit": "at_edit_NS",
    }  # fmt: skip
    # The table of batches has no columns if the run ended in the first.
    seconds, cpu, scoring = (
        float(record.batches.get(name, pd.Series(dtype=float)).sum(min_count=name == "seconds_cpu"))
        for name in ("seconds", "seconds_cpu", "seconds_scoring")
    )
    return {
        **{name: float(last.get(column, math.nan)) for name, column in names.items()},
        "norm_layer": int(most),
        "norm_still_growing": n > 0 and growing(norms[norms["layer"] == most].set_index("edits")["norm"]),
        "unedited_falling": bool(len(kept) > 1 and kept[-1] < kept[-2]),
        "steps_mean": float(facts["steps"].mean()) if n else math.nan,
        "edits": n,
        "seconds": seconds,
        "seconds_per_edit": seconds / n if n else math.nan,
        "seconds_cpu_per_edit": cpu / n if n else math.nan,
        "seconds_evaluation": float(record.checkpoints["seconds"].sum()) + scoring,
    }


def sentences(methods: Mapping[str, Mapping[str, Any]], edits: int) -> list[str]:
    """Three sentences about the `figures` of methods ({name: figures}) after `edits` edits: the norm, the model, the edits.

    They follow the figures and assume nothing about which method wins.
    """
    done = {title(name): end for name, end in methods.items() if end["edits"]}
    if not done:
        return [
            f"The {what}: nothing was edited, the first update was not finite." for what in ("norm", "model", "edits")
        ]

    def percent(share: float) -> str:
        return "an unknown share" if math.isnan(share) else f"{100 * share:.1f}%"

    ratios, kept, hold = [], [], []
    for name, end in done.items():
        trend = " (still growing)" if end["norm_still_growing"] else ""
        ratios.append(f"{end['norm_ratio']:.2f}× with {name}{trend}")
        notes = []
        if not math.isnan(end["downstream_kept"]):
            notes.append(f"downstream score at {percent(end['downstream_kept'])} of its original value")
        kept.append(f"{percent(end['unedited_kept'])} with {name}" + (f" ({', '.join(notes)})" if notes else ""))
        hold.append(
            f"{percent(end['efficacy'])} with {name} ({percent(end['paraphrase'])} when rephrased, mean probability "
            f"{end['p_edited']:.2f})"
        )
    natural = next(iter(done.values()))["p_natural"]
    compared = "" if math.isnan(natural) else f"; unedited facts had a mean probability of {natural:.2f}"
    which = (
        f"all {edits:,} edits" if all(end["edits"] == edits for end in done.values()) else "the edits that were made"
    )
    norm = f"After {edits:,} edits, the most-changed matrix has this multiple of its Frobenius norm: {listed(ratios)}."
    for name, end in done.items():
        if end["edits"] < edits:
            norm += f" {name} ended after {end['edits']:,} edits: its next update was not finite."
    if idle := [title(name) for name, end in methods.items() if not end["edits"]]:  # they have no figures
        norm += f" Nothing was edited with {listed(idle)}: the first update was not finite."
    return [
        f"The norm. {norm}",
        f"The model. Of the facts that it knew and that were not edited, it still answers {listed(kept)}.",
        f"The edits. Of {which}, these hold at the end: {listed(hold)}{compared}.",
    ]
