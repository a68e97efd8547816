"""The paper's six findings, the ablation of past keys against lambda_n, and norm against damage, on a pocket model.

    python -m benchmarks.findings --out build/findings                       seeds 0-4, 1,000 edits, all methods
    python -m benchmarks.findings --seeds 0,1,2 --write                      and put records and tables into data/findings
    python -m benchmarks.findings --records data/results --edits 10000       use records that lie there, run what is missing

A run that is finished is not run again, one that was stopped resumes. Writes MODEL.md and MODEL.json into --out; every
verdict is computed from the numbers beside it. Records are used if model, method, seed, edits and batch are those asked for;
without --records those in data/findings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.command import ended, over_seeds
from benchmarks.verdicts import METHODS, damage, judge, measure, student
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import write_atomic, write_json
from ketools.models.model import EditableModel, load
from ketools.runs.config import composed
from ketools.runs.records import Run, gather, title
from ketools.runs.store import RunRecord, Store
from ketools.runs.study import add_to_study, is_study
from ketools.runs.sweep import sweep

KEPT = Path(__file__).resolve().parent.parent / "data" / "findings"
STATE = (
    ("P(new) at edit time", "p_at_edit", "{:.2f}"), ("P natural", "natural", "{:.2f}"), ("norm ratio", "norm_ratio", "{:.2f}"),
    ("exponent of growth", "exponent", "{:.2f}"), ("residual share", "share_end", "{:.3f}"),
    ("downstream", "downstream_kept", "{:.1%}"), ("unedited", "unedited_kept", "{:.1%}"),
    ("same subject", "same_subject_kept", "{:.1%}"), ("ES", "ES", "{:.1%}"), ("forgotten", "forgotten", "{:.1%}"),
    ("steps", "steps", "{:.1f}"), ("s of target optimisation", "seconds_targets", "{:.3f}"),
)  # fmt: skip


def usable(run: Run, model: str, options: argparse.Namespace) -> bool:
    """Is this record one of those asked for: this unedited model (its fingerprint), this many edits in these batches, done?"""
    same = run.settings.get("batch") == options.batch and run.settings.get("edits") == options.edits
    return same and run.fingerprint == model and (run.complete or run.collapsed)


def collect(
    options: argparse.Namespace, model: Callable[[], EditableModel], facts: Callable[[], FactSet], fingerprint: str,
    **settings: Any,
) -> list[Run]:  # fmt: skip
    """The runs of all methods and seeds: those among the records, those of `options.out`, and what was missing.

    `settings` are further arguments of `ketools.runs.sweep.sweep`.
    """
    places = options.records or ([KEPT] if is_study(KEPT) else [])
    there = gather(places) if places else []
    known = {(run.method, run.seed): run for run in there if usable(run, fingerprint, options)}
    # A seed is whole before the next begins: tables can be made after each.
    asked = [(method, seed) for seed in options.seeds for method in options.methods]
    names = {each: f"{options.name}-{each[0].replace('+', '-')}-seed{each[1]}" for each in asked}
    missing = {}
    for (method, seed), name in names.items():
        if (method, seed) not in known:
            out = Path(options.out) / name
            if Store(out).exists() and usable(run := Run(name, RunRecord.load(out)), fingerprint, options):
                known[method, seed] = run
            else:
                missing[name] = {"method": composed(method), "seed": seed}
    if missing:
        records = sweep(
            model(), facts(), missing, Path(options.out), edits=options.edits, batch=options.batch,
            checkpoint_every=options.checkpoint_every, progress=not options.quiet, **settings,
        )  # fmt: skip
        known |= {each: Run(name, records[name]) for each, name in names.items() if name in records}
    return [known[each] for each in asked]


def tables(runs: Sequence[Run], options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All tables as markdown, and the same as data."""
    rows = pd.DataFrame([{"method": run.method, "seed": run.seed} | measure(run) for run in runs])
    judged, correlated = judge(rows), damage(runs)
    seeds = ", ".join(map(str, options.seeds))
    text = [
        f"`{options.model}`, {options.edits:,} sequential edits in batches of {options.batch}, seeds {seeds}; "
        f"`python -m benchmarks.findings{'' if options.model == 'pocket' else f' --model {options.model}'} --seeds {seeds.replace(' ', '')}`. Means and Student's 95% intervals over seeds; a claim *holds* where the whole "
        "interval lies above the bound; where methods are compared, seed by seed.",
        "",
        _counted(judged),
        "",
        _verdicts(judged),
        "",
        "Final state by method (means over seeds):",
        "",
        _state(rows),
        "",
        "Norm against damage: Spearman's correlation of the edited norm's ratio with each measure, over the checkpoints of "
        "all methods of a seed (checkpoints of a run are not independent; the interval is over seeds):",
        "",
        _damage(correlated),
    ]  # fmt: skip
    data = {
        "rows": rows.to_dict("records"),
        "claims": judged.to_dict("records"),
        "damage": correlated.to_dict("records"),
    }
    return "\n".join(text) + "\n", data


def _counted(judged: pd.DataFrame) -> str:
    without, one = int((judged["seeds"] == 0).sum()), judged[judged["seeds"] == 1]
    asked = len(judged) - without - len(one)
    said = [f"{int((judged['verdict'] == 'holds').sum())} of {asked} claims hold"] if asked else []
    if len(one):
        above = int((one["mean"] > one["than"]).sum())
        said.append(f"{len(one)} have the number of one seed and no verdict, {above} of them lie above the bound")
    return "; ".join([*said, f"{without} have no number (a method was not run, or not measured):"])


def _verdicts(judged: pd.DataFrame) -> str:
    lines = ["| finding | claim | mean (95%) | above | seeds | verdict |", "|---|---|---|---|---|---|"]
    for row in judged.itertuples():
        form = "{:.1%}" if row.kind == "percent" else "{:.3f}"
        lines.append(
            f"| {row.finding} | {row.claim} | {_interval(row.mean, row.low, row.high, form)} | {form.format(row.than)} | "
            f"{row.seeds} | {row.verdict} |"
        )
    return "\n".join(lines)


def _state(rows: pd.DataFrame) -> str:
    lines = ["| method | " + " | ".join(head for head, _, _ in STATE) + " |", "|---" * (len(STATE) + 1) + "|"]
    for method, part in rows.groupby("method", sort=False):
        means = [student(part[name])[0] for _, name, _ in STATE]
        cells = ["-" if pd.isna(mean) else form.format(mean) for mean, (_, _, form) in zip(means, STATE, strict=True)]
        lines.append(f"| {title(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _damage(correlated: pd.DataFrame) -> str:
    lines = ["| measure | Spearman (95%) | seeds | checkpoints |", "|---|---|---|---|"]
    for row in correlated.itertuples():
        lines.append(
            f"| {row.measure} | {_interval(row.mean, row.low, row.high, '{:.2f}')} | {row.seeds} | {row.checkpoints} |"
        )
    return "\n".join(lines)


def _interval(mean: float, low: float, high: float, form: str) -> str:
    if pd.isna(mean):
        return "-"
    return form.format(mean) + ("" if pd.isna(low) else f" ({form.format(low)} to {form.format(high)})")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = over_seeds(__doc__, METHODS, "build/findings")
    parser.add_argument("--checkpoint-every", type=int, default=250)
    parser.add_argument("--records", nargs="*", default=[], help="runs that are there already; data/findings")
    parser.add_argument("--write", action="store_true", help="put records and tables into data/findings")
    options = parser.parse_args(words)
    options.name = Path(options.model).name
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing, write the tables; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    model = load(options.model)
    facts = cache(lambda: read_facts("world"))
    runs = collect(options, lambda: model, facts, model.fingerprint)
    text, data = tables(runs, options)
    out = Path(options.out)
    write_atomic(out / f"{options.name}.md", text)
    about = {"model": options.model, "fingerprint": model.fingerprint, "edits": options.edits, "batch": options.batch}
    write_json(out / f"{options.name}.json", about | data)
    if options.write:
        add_to_study({run.name: run.record for run in runs}, KEPT)
        write_atomic(KEPT / "README.md", f"# The paper's findings\n\n{text}")
    sys.stdout.write(text)


if __name__ == "__main__":
    raise SystemExit(main())
