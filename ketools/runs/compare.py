"""Comparing runs: a table of their measures, and on how many facts one method is right where another is not."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from ketools.errors import KetoolsError
from ketools.evaluation.edits import harmonic_mean
from ketools.evaluation.forgetting import mcnemar
from ketools.runs.records import Group, Run, arrange, listed

SCORES = ("ES", "PS", "NS")
MEASURES = (
    "ES", "PS", "NS", "S", "at_edit_ES", "at_edit_PS", "at_edit_NS", "at_edit_S", "efficacy_accuracy",
    "paraphrase_accuracy", "locality_accuracy", "p_edited", "unedited_kept", "same_subject_kept", "downstream_kept",
    "perplexity_ratio", "norm_ratio", "seconds_per_edit",
)  # fmt: skip
"""The measures compared, in the order of the table."""
_SHARES = ("share_a", "share_b", "p_value")  # of McNemar's test; the rest are counts
# Before any edit the same model gives the same answers, up to rounding on another machine.
_BEFORE, _ROUNDING = ("p_natural", "perplexity", "downstream_f1"), 1e-3


def compare(runs: Sequence[Run], at: int | None = None) -> pd.DataFrame:
    """A row per run: its measures after `at` edits.

    Args:
        runs: from `ketools.runs.records.gather`.
        at: a number of edits at which all runs were measured; None: the last such number. A run that ended earlier with a
            non-finite update is taken at its end; if it ended in its first batch, it has no measures.

    Returns:
        run, model, method (the group's label), seed, edits (`at`), load (edits / d_mlp; NaN if the record lacks d_mlp),
        complete (these are all edits asked for), collapsed (the run ended early with a non-finite update), processor (with its
        threads; "" if unknown), then MEASURES, NaN where not recorded; at_edit_S is the harmonic mean of the means.

    Raises:
        KetoolsError: no runs, runs that cannot be compared (other facts or another panel; it says which and why), or no
            checkpoint in common.
    """
    if not runs:
        raise KetoolsError("no runs to compare; give at least one folder of a run")
    comparable(runs)
    point = _common(runs, at)
    rows = []
    for group in arrange(runs):
        for run in group.runs:
            here = min(point, run.edits)  # smaller only if the run ended early
            head = {"run": run.name, "model": group.model, "method": group.label, "seed": run.seed, "edits": here}
            head |= {"load": here / run.d_mlp}
            ended = {"complete": run.complete and run.edits == here, "collapsed": run.collapsed}
            made = {"processor": run.processor}
            measures = dict.fromkeys(MEASURES, np.nan)
            if here:  # "kept 100%" of an unedited model would mislead beside methods that edited
                points, batches = run.record.checkpoints, run.record.batches
                row = points[points["edits"] <= here].iloc[-1]
                measures |= {name: float(row[name]) for name in MEASURES if name in row}
                measures["at_edit_S"] = harmonic_mean([measures[f"at_edit_{name}"] for name in SCORES])
                done = batches[batches["edits"] <= here]
                measures["seconds_per_edit"] = (
                    float(done["seconds"].sum() / done["facts"].sum()) if len(done) else np.nan
                )
            rows.append(head | ended | made | measures)
    return pd.DataFrame(rows)


def comparable(runs: Sequence[Run]) -> None:
    """Raise KetoolsError, naming two runs and the reason, if the runs differ in their facts or panel.

    Runs of one seed must edit the same facts; runs of different seeds equally many, with relations in common. All must
    measure the rest of the model with equally many facts and items, and equal models must answer the same before any edit.
    """
    for one, two in combinations(runs, 2):
        if why := _difference(one, two):
            raise KetoolsError(
                f"runs {one.name!r} and {two.name!r} can't be compared: {why}; compare runs of the same facts and panel"
            )


def _difference(one: Run, two: Run) -> str | None:
    """Why these two cannot share a table; None if they can."""
    a, b = one.settings, two.settings
    if a.get("edits") != b.get("edits"):
        return f"one is of {a.get('edits')} edits, the other of {b.get('edits')}"
    if one.seed == two.seed and a.get("facts") != b.get("facts"):
        return f"both are of seed {one.seed}, but they edit other facts (the content of their lists differs)"
    relations = [set(run.record.facts["relation"]) if "relation" in run.record.facts else set() for run in (one, two)]
    if all(relations) and not relations[0] & relations[1]:
        shown = [listed(sorted(map(str, some))[:3]) for some in relations]
        return f"they edit other facts (relations such as {shown[0]}, and such as {shown[1]})"
    if a.get("sizes") != b.get("sizes"):
        sizes = [dict(each.get("sizes") or {}) for each in (a, b)]
        apart = [name for name in {**sizes[0], **sizes[1]} if sizes[0].get(name) != sizes[1].get(name)]
        each = ", ".join(f"{name} {sizes[0].get(name)} and {sizes[1].get(name)}" for name in apart)
        return f"another panel was asked ({each})"
    first, second = (run.record.checkpoints for run in (one, two))
    if (one.model, one.fingerprint) != (two.model, two.fingerprint) or first.empty or second.empty:
        return None
    # Did the same unedited model answer the same? Facts differ by seed, tasks and texts do not.
    tasks = [sorted(name.removeprefix("f1_") for name in frame if name.startswith("f1_")) for frame in (first, second)]
    if tasks[0] != tasks[1]:
        return f"they ask other tasks ({'; '.join(', '.join(some) or 'none' for some in tasks)})"
    for name in _BEFORE if one.seed == two.seed else ("perplexity",):
        if {name, "edits"} <= set(first) & set(second):
            x, y = (frame.loc[frame["edits"] == 0, name].to_numpy(dtype=float) for frame in (first, second))
            if len(x) and len(y) and abs(x[0] - y[0]) > _ROUNDING * abs(x[0]):
                return f"another panel was asked (before any edit, {name} is {x[0]:.4g} and {y[0]:.4g} with the same model)"
    return None


def paired_tests(groups: Sequence[Group]) -> pd.DataFrame:
    """McNemar's exact test between the methods on the efficacy at the end, fact by fact, for each model and seed.

    Args:
        groups: from `ketools.runs.records.arrange`; the caller checks that they are `comparable`.

    Returns:
        A row per model, seed and pair of methods whose runs are complete: model, seed, a, b, the columns of
        `ketools.evaluation.forgetting.mcnemar`, and p_adjusted (Benjamini and Hochberg over all rows: the share of false
        findings among those below a bound is at most that bound). Empty if no two runs have the column. All facts of a run
        share one model, so the test is about these runs; seeds show how far it generalises.
    """
    held = [
        (group, run)
        for group in groups
        for run in group.runs
        if run.complete and "end_efficacy_success" in run.record.facts
    ]
    rows = []
    for (group, one), (other, two) in combinations(held, 2):
        if (group.model, one.seed) == (other.model, two.seed) and group.label != other.label:
            found = mcnemar(one.record.facts, two.record.facts).to_dict()
            pair = {name: value if name in _SHARES else int(value) for name, value in found.items()}
            rows.append({"model": group.model, "seed": one.seed, "a": group.label, "b": other.label} | pair)
    frame = pd.DataFrame(rows)
    return frame.assign(p_adjusted=false_discovery_control(frame["p_value"])) if len(frame) else frame


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` over seeds.

    Returns:
        A row per model and method: model, method, seeds (how many), seed_list ("0, 1 and 2"), edits, load, complete (all are),
        collapsed (how many), processor ("" if seeds differ), and for each of MEASURES its mean, NAME_min and NAME_max over
        seeds. NaN are left out; NAME_seeds then says how many seeds remain.
    """
    rows = []
    for (model, method), part in table.groupby(["model", "method"], sort=False):
        seeds = sorted(part["seed"])
        row = {"model": model, "method": method, "seeds": len(seeds), "seed_list": listed([str(s) for s in seeds])}
        row |= {
            "edits": int(part["edits"].max()),
            "load": float(part["load"].max()),
            "complete": bool(part["complete"].all()),
        }
        row["collapsed"] = int(part["collapsed"].sum())
        row["processor"] = part["processor"].iloc[0] if part["processor"].nunique() == 1 else ""
        for name in MEASURES:
            row |= {name: part[name].mean(), f"{name}_min": part[name].min(), f"{name}_max": part[name].max()}
            if 0 < (held := int(part[name].count())) < len(part):
                row[f"{name}_seeds"] = held
        rows.append(row)
    return pd.DataFrame(rows)


def _common(runs: Sequence[Run], at: int | None) -> int:
    """The number of edits at which all runs were measured, apart from runs that ended before it."""
    going = [run for run in runs if not run.collapsed] or [max(runs, key=lambda run: run.edits)]
    if not any(run.edits or not run.collapsed for run in runs):
        return 0  # all of them ended in their first batch
    points = [set(run.record.checkpoints["edits"]) if len(run.record.checkpoints) else set() for run in going]
    shared = sorted(int(n) for n in set.intersection(*points) if n > 0)
    if not shared:
        ends = ", ".join(f"{run.name} up to {run.edits:,}" for run in runs)
        raise KetoolsError(f"the runs have no checkpoint after an edit in common ({ends}); resume them")
    if at is not None and at not in shared:
        raise KetoolsError(
            f"not all runs were measured after {at:,} edits; all were after {', '.join(f'{n:,}' for n in shared)}"
        )
    return shared[-1] if at is None else at
