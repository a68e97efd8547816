"""Three sentences about a comparison of methods, computed from its figures: the norm, the model, the edits."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.methods import ENCORE, MPES, FixedSteps, Method
from ketools.editing.methods import method as named_method
from ketools.errors import KetoolsError
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import data_root, write_atomic, write_json
from ketools.models.model import EditableModel, load
from ketools.models.weights import fresh
from ketools.norms.weights import growing
from ketools.runs.config import check_seed, settled
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import listed, provenance, title
from ketools.runs.run import lifelong
from ketools.runs.store import RunRecord, Store


def sentences(methods: Mapping[str, Mapping[str, Any]], edits: int) -> list[str]:
    """What happened to the norm, to the model and to the edits.

    Args:
        methods: {name: figures} as in demo.json.
        edits: how many edits each method made.

    Returns:
        Three sentences; each is true of these figures whatever they are, nothing is assumed about which method wins.
    """
    done = {name: figures for name, figures in methods.items() if figures["edits"]}
    idle = [title(name) for name in methods if name not in done]
    if not done:
        return [
            f"The {what}: nothing was edited, the first update was not finite." for what in ("norm", "model", "edits")
        ]
    found = [_norm(done, edits), _model(done), _edits(done, edits)]
    for name, figures in done.items():
        if figures["edits"] < edits:
            found[0] += f" {title(name)} ended after {figures['edits']:,} edits: its next update was not finite."
    if idle:  # they have no figures
        found[0] += f" Nothing was edited with {listed(idle)}: the first update was not finite."
    return found


def _norm(methods: Mapping[str, Mapping[str, Any]], edits: int) -> str:
    each = [
        f"{f['norm_ratio']:.2f} times with {title(name)} ({'still' if f['norm_still_growing'] else 'no longer'} growing)"
        for name, f in methods.items()
    ]
    return f"The norm: after {edits:,} edits that of the most grown edited matrix is {listed(each)} what it was."


def _model(methods: Mapping[str, Mapping[str, Any]]) -> str:
    each = [
        f"{_percent(f['unedited_kept'])} with {title(name)}{_brackets(_falling(f), _downstream(f))}"
        for name, f in methods.items()
    ]
    return f"The model: of the facts that it knew and that were not edited, it still has {listed(each)}."


def _edits(methods: Mapping[str, Mapping[str, Any]], edits: int) -> str:
    each = [
        f"{_percent(f['efficacy'])} with {title(name)} "
        f"({_percent(f['paraphrase'])} in other words, mean probability {f['p_edited']:.2f})"
        for name, f in methods.items()
    ]
    natural = next(iter(methods.values()))["p_natural"]
    compared = "" if math.isnan(natural) else f"; natural facts had a mean probability of {natural:.2f}"
    whole = all(f["edits"] == edits for f in methods.values())
    return f"The edits: of {f'all {edits:,}' if whole else 'those made'}, those that hold at the end are {listed(each)}{compared}."


def _falling(figures: Mapping[str, Any]) -> str:
    return "and falling" if figures["unedited_falling"] else ""


def _downstream(figures: Mapping[str, Any]) -> str:
    kept = figures["downstream_kept"]
    return "" if math.isnan(kept) else f"downstream score {_percent(kept)} of before"


def _brackets(*parts: str) -> str:
    said = ", ".join(part for part in parts if part)
    return f" ({said})" if said else ""


def _percent(share: float) -> str:
    return "an unknown share" if math.isnan(share) else f"{100 * share:.1f}%"


# The main job: the same edits with several methods, each on a fresh copy of the weights, side by side.


METHODS = ("memit", "alphaedit", "encore")
MODEL = "pocket-llama-v2"
"""The pocket model on which a thousand edits show what the paper shows (data/README.md: the others, and why less)."""
Report = Callable[[Mapping[str, RunRecord], Path], object]
"""Draws records (method -> record) into a file; drawing lies above this room, so that the caller brings it."""
Look = Callable[[EditableModel, FactSet, Sequence[Method], bool], object]
"""Looks at model, facts, methods and whether statistics are at hand before anything is written; raises what stops the job."""


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
        edits, batch, checkpoint_every, seed: as in `ketools.runs.run.lifelong`.
        out: folder for demo.json, report.html and a folder per method.
        facts: "world", a file, or a FactSet.
        statistics: covariances of the keys; None: those stored with the model.
        sizes, tasks, texts: as in `ketools.runs.panel.Panel.take`.
        progress: show progress bars; report: writes report.html (`ketools.report.page.write_report`); None: there is none.
        look: called once before a job that begins anew, as `Look` says (the command line's preflight); None: no look.

    Returns:
        {"methods": {name: {norm_ratio, ...}}, "sentences": [3], "provenance": {...}, "records": {name: RunRecord}};
        demo.json holds the same without the records. Ratios are fractions, measured at the end.

    Raises:
        KetoolsError: unknown method or model, fewer facts than edits, unwritable folder.
        ketools.runs.run.Interrupted: Ctrl-C; finished batches and methods are kept.
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
    """A run per method, each on the unedited weights; `settings` as `ketools.runs.run.lifelong` takes them."""
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


# ENCORE's two knobs against each other: the norm constraint lambda_n and MPES' patience, a whole run for each pair.


ALL_STEPS = -1
"""How a table says that no patience stops step 1."""


def grid(
    model: EditableModel,
    facts: FactSet,
    *,
    lambda_n: Sequence[float],
    patience: Sequence[int | None],
    edits: int,
    out: str | Path,
    batch: int = 50,
    seed: int = 0,
    statistics: Statistics | None = None,
    panel: Panel | None = None,
    progress: bool = True,
    each: Callable[[pd.DataFrame], object] | None = None,
    **overrides: object,
) -> pd.DataFrame:
    """Run ENCORE once for every pair of `lambda_n` and `patience`, on the same facts, each time from the unedited model.

    Every run is kept in a folder of its own below `out`, so that a job that was stopped goes on when called again, and a
    larger grid takes over the runs of a smaller one. The table is also written to `out`/grid.parquet. The model comes
    back bit for bit as it was.

    Args:
        model, facts, edits, batch, seed, statistics, panel: as in `ketools.runs.run.lifelong`.
        lambda_n: weights of ||W' - W||_F^2, in units of the mean eigenvalue of C (lambda_n_relative); 0: no constraint.
        patience: steps after the target is first the most probable token; None: all steps are taken (no MPES).
        out: folder of the runs.
        progress: show progress bars; each: called with the table so far after every run.
        overrides: further settings of the editor.

    Returns:
        A row per pair, in the order given: lambda_n, patience (ALL_STEPS for None), then `ketools.runs.sweep.figures`.

    Raises:
        KetoolsError: an empty or repeated list, a negative or infinite number, or what `lifelong` refuses.
        ketools.runs.run.Interrupted: Ctrl-C; finished batches and runs are kept.
    """
    _check(lambda_n, patience)
    out = Path(out)
    panel = panel or Panel.take(model, facts, facts.sample(edits, seed), seed=seed)
    rows: list[dict[str, object]] = []
    for weight in lambda_n:
        for steps in patience:
            how = replace(ENCORE, stopping=FixedSteps() if steps is None else MPES(steps))
            name = f"lambda_n={weight:g},patience={'all' if steps is None else steps}"
            with fresh(model):
                record = lifelong(
                    model, facts, how, edits=edits, batch=batch, checkpoint_every=edits, seed=seed, out=out / name,
                    statistics=statistics, panel=panel, progress=progress,
                    overrides={**overrides, "lambda_n_relative": float(weight)},
                )  # fmt: skip
            rows.append(
                {"lambda_n": float(weight), "patience": ALL_STEPS if steps is None else steps, **figures(record)}
            )
            if each is not None:
                each(pd.DataFrame(rows))
    table = pd.DataFrame(rows)
    write_atomic(out / "grid.parquet", table.to_parquet(index=False))
    return table


def keep(table: pd.DataFrame, name: str, about: Mapping[str, Any]) -> Path:
    """Put a table of `grid` and where it comes from into the data folder, as NAME.parquet and NAME.json; returns the table's path.

    Raises OSError if the folder cannot be written.
    """
    folder = data_root() / "dial"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", about)
    return write_atomic(folder / f"{name}.parquet", table.to_parquet(index=False))


def stored(model: EditableModel) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The grid of this model that lies in the data folder, and its provenance (edits, batch, seed, model, versions).

    Raises KetoolsError if there is none, or one of another model of this name; it says which command makes it.
    """
    path, remedy = (
        data_root() / "dial" / f"{model.name}.parquet",
        f"`python -m benchmarks.dial --model {model.name} --write` makes it",
    )
    if not path.is_file():
        raise KetoolsError(f"no grid of {model.name!r} at {path}; {remedy}")
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if about["model"]["fingerprint"] != model.fingerprint:
        raise KetoolsError(f"the grid at {path} is of another model than this {model.name!r}; {remedy} anew")
    return pd.read_parquet(path), about


def _check(lambda_n: Sequence[float], patience: Sequence[int | None]) -> None:
    for name, values in (("lambda_n", lambda_n), ("patience", patience)):
        if not len(values) or len(set(values)) < len(values):
            raise KetoolsError(f"{name}={list(values)!r}: expected different values, at least one")
    if wrong := [v for v in lambda_n if not (math.isfinite(v) and v >= 0)]:
        raise KetoolsError(f"lambda_n={wrong[0]!r}: expected a number >= 0; 0 leaves the norm free")
    if odd := [v for v in patience if v is not None and (isinstance(v, bool) or not isinstance(v, int) or v < 0)]:
        raise KetoolsError(f"patience={odd[0]!r}: expected a whole number >= 0, or None for all steps")
