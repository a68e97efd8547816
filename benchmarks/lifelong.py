"""The reference runs: seven methods, 10,000 edits each, on pocket; their records, table and reading.

    python -m benchmarks.lifelong --list              the plan, and how far each run is
    python -m benchmarks.lifelong                     start or resume the next unfinished run
    python -m benchmarks.lifelong --all               one after another until all are done
    python -m benchmarks.lifelong --only encore,seed0 only runs whose name has one of these words
    python -m benchmarks.lifelong --pack              no run; pack what is finished, write table and figures

Runs lie in build/lifelong (weights of every batch; resumed after Ctrl-C or a kill). What is finished is packed without
weights into data/results, from which `ketools report data/results` draws everything on a fresh clone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.command import ended
from benchmarks.headline import write_headline
from benchmarks.verdicts import damage_sentences
from ketools.editing.methods import scaled
from ketools.errors import KetoolsError
from ketools.io import write_atomic
from ketools.models.model import load
from ketools.report.figures import capacity
from ketools.report.verdicts import Verdict, capacity_reached, reading
from ketools.runs.compare import by_method, compare, paired_tests
from ketools.runs.config import RunConfig, composed
from ketools.runs.records import Group, Run, arrange, listed, plain, title
from ketools.runs.run import execute, ready
from ketools.runs.store import RunRecord, Store
from ketools.runs.study import add_to_study

METHODS = ("memit", "sequential-memit", "alphaedit", "emmet+mpes", "memit+mpes", "memit+norm", "encore")
MODEL, SEEDS = "pocket", (0, 1, 2)
PAPER_LOAD = 1.56  # of its 10,000 edits in GPT2-XL, the narrowest of its models
COLUMNS = {
    "ES": ("ES", "percent"), "PS": ("PS", "percent"), "NS": ("NS", "percent"), "S": ("S", "percent"),
    "at_edit_ES": ("ES then", "percent"), "at_edit_PS": ("PS then", "percent"), "at_edit_NS": ("NS then", "percent"),
    "at_edit_S": ("S then", "percent"), "unedited_kept": ("unedited", "percent"),
    "same_subject_kept": ("same subject", "percent"), "downstream_kept": ("downstream", "percent"),
    "perplexity_ratio": ("perplexity", "times"), "norm_ratio": ("norm", "times"), "seconds_per_edit": ("s/edit", "seconds"),
}  # fmt: skip
BRIEF = {
    "norm_ratio": ("norm", "times"), "unedited_kept": ("unedited facts", "whole"),
    "same_subject_kept": ("other facts of edited subjects", "whole"), "downstream_kept": ("downstream F1", "whole"),
    "ES": ("ES", "whole"),
}  # fmt: skip
"""Columns of the table that the project's README shows too."""


@dataclass(frozen=True)
class Planned:
    """One run of the plan."""

    model: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{Path(self.model).name}-{self.method.replace('+', '-')}-seed{self.seed}"


def plan(models: Sequence[str] | None = None) -> list[Planned]:
    """The runs, the first seed of every method before the next."""
    return [Planned(model, method, seed) for seed in SEEDS for model in (models or [MODEL]) for method in METHODS]


def chosen(runs: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    """Those whose name has one of the words of `only` whole; all without words."""
    some = [
        run
        for run in runs
        if not only or any(word in (run.name, run.method, run.model, f"seed{run.seed}") for word in only)
    ]
    if not some:
        raise KetoolsError(f"--only {','.join(only)}: no such run; there are {', '.join(run.name for run in runs)}")
    return some


def done(folder: Path) -> bool:
    """Is this run at its end?"""
    return state(folder)[0] in ("complete", "ended early")


def state(folder: Path) -> tuple[str, int]:
    """("not started", "stopped", "complete" or "ended early", edits that are done and scored)."""
    if not Store(folder).exists():
        return "not started", 0
    run = Run(folder.name, RunRecord.load(folder))
    return "ended early" if run.collapsed else "complete" if run.complete else "stopped", run.edits


def go(run: Planned, options: argparse.Namespace) -> None:
    """Start or resume one run."""
    sys.stderr.write(f"{run.name}: {options.edits:,} edits\n")
    config = RunConfig.made(
        {
            "model": run.model, "method": run.method, "seed": run.seed, "edits": options.edits, "batch": options.batch,
            "checkpoint_every": options.checkpoint_every, "out": str(options.out / run.name),
        }
    )  # fmt: skip
    facts = ready(config)
    execute(config, load(config.model), facts, progress=not options.quiet)


def listing(runs: Sequence[Planned], out: Path) -> str:
    """The plan and how far each run is."""
    rows = [dict(zip(("run", "state", "edits"), (run.name, *state(out / run.name)))) for run in runs]
    return pd.DataFrame(rows).to_string(index=False)


def packed(runs: Sequence[Planned], out: Path, results: Path) -> dict[str, RunRecord]:
    """The study in `results` with the finished runs of `out` put into it, by name; written only where something is new."""
    return add_to_study({run.name: RunRecord.load(out / run.name) for run in runs if done(out / run.name)}, results)


_SHOW = {"percent": "{:.1f}", "whole": "{:.0f}%", "times": "{:.2f}", "seconds": "{:.3f}"}


def cell(row: pd.Series, name: str, kind: str) -> str:
    """Mean and, over seeds, range as a table's cell, and of how many seeds if not of all; "-" where nothing was measured."""
    show = _SHOW[kind].format
    if pd.isna(row[name]):
        return "-"
    unit = 100 if kind in ("percent", "whole") else 1
    mean, low, high = (show(unit * row[f"{name}{end}"]) for end in ("", "_min", "_max"))
    aside = [f"{low} to {high}"] if low != high else []
    if pd.notna(held := row.get(f"{name}_seeds")):
        aside.append(f"{int(held)} of {row['seeds']} seeds")
    return f"{mean} ({'; '.join(aside)})" if aside else mean


def markdown(table: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> str:
    """`columns` (name -> head, kind of `cell`) of the table of `by_method`: a row per model and method."""
    heads = ["model", "method", "seeds", *(head for head, _ in columns.values())]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for _, row in table.iterrows():
        cells = [cell(row, name, kind) for name, (_, kind) in columns.items()]
        ended = f" (ended early in {row['collapsed']} of {row['seeds']} runs)" if row["collapsed"] else ""
        lines.append(f"| {' | '.join([row['model'], title(row['method']) + ended, row['seed_list'], *cells])} |")
    return "\n".join(lines)


def readme(groups: Sequence[Group]) -> str:
    """data/results/README.md: the table and its reading, both from the records."""
    runs = [run for group in groups for run in group.runs]
    rows = compare(runs)
    table = by_method(rows)
    pairs, edits = paired_tests(groups), int(table["edits"].max())
    shared = sorted(set.intersection(*(set(group.seeds) for group in groups)))
    parts = [
        "# Reference runs",
        f"{edits:,} sequential edits of facts about different subjects in batches of {_each(runs, 'batch')}; written by "
        "`python -m benchmarks.lifelong` from the records in this folder. `ketools report data/results` draws all "
        "figures, `ketools compare data/results` puts the runs side by side, fact by fact. headline.png draws the first "
        "table; `python -m benchmarks.lifelong --pack` draws it again and also writes it as a page, headline.html, which is "
        "not stored.",
        f"## After {edits:,} edits",
        markdown(table, BRIEF),
        "Mean over seeds (lowest to highest). Norm of the most-changed matrix and weighted downstream F1 relative to the unedited "
        "model; unedited and other facts: share still answered correctly of those the unedited model knew; ES: of all edits, on "
        "the final model.",
        *within_paper(runs),
        "## All measures",
        markdown(table, COLUMNS),
        "Mean over seeds (lowest to highest). ES, PS, NS, S in percent of all edits, scored again on the final model; \"then\": right "
        "after each edit's own batch. unedited, same subject: share still answered correctly of those the unedited model knew, in "
        "percent; downstream (weighted F1, percent), perplexity and norm (of the most-changed matrix): relative to the unedited "
        "model; s/edit: editing alone, comparable on one processor only.",
        *processors(runs),
        *older_settings(runs),
    ]  # fmt: skip
    if shared:
        parts += ["## What it says", f"Over the seeds that every method has: {listed([str(seed) for seed in shared])}."]
        paired = by_method(rows[rows["seed"].isin(shared)])
        parts += [_model(model, texts) for model, texts in reading(paired).items()]
    if len(pairs):
        differ = int((pairs["p_adjusted"] < 0.05).sum())
        parts.append(
            f"Fact by fact, {differ} of {len(pairs)} pairs of runs on the same facts differ in efficacy at the end "
            "(McNemar's exact test, Benjamini-Hochberg, below 0.05)."
        )
    if said := damage_sentences(runs):
        parts += ["## Norm and damage", *said]
    return "\n\n".join([*parts, *_capacity(groups)]) + "\n"


def within_paper(runs: Sequence[Run]) -> list[str]:
    """The short table at the last checkpoint within the paper's loads; nothing where that is the last one, or there is none."""
    going = [run for run in runs if not run.collapsed]
    if not going:
        return []
    points = going[0].record.checkpoints["edits"]
    if not (at := points[points <= PAPER_LOAD * min(run.d_mlp for run in runs)].max()) < points.max() or not at:
        return []
    table = by_method(compare(runs, int(at)))
    return [f"## After {int(at):,} edits, within the paper's loads (at most {PAPER_LOAD})", markdown(table, BRIEF)]


def older_settings(runs: Sequence[Run]) -> list[str]:
    """What the records were made with where the package has other settings by now; a sentence per model and method."""
    said = []
    for run in runs:
        how, then = composed(run.method), run.settings.get("hyper", {})
        now = scaled(how.name, how.hyper, model_name=run.model)
        other = [name for name in how.counting(now) if name in then and then[name] != plain(getattr(now, name))]
        if other:
            told = (f"{name} = {then[name]}, not {plain(getattr(now, name))}" for name in other)
            said.append(f"{title(run.method)} on {run.model} was run with older settings: {'; '.join(told)}.")
    return list(dict.fromkeys(said))


def processors(runs: Sequence[Run]) -> list[str]:
    """Which runs were made on which processor, where records name it; a sentence for each."""
    on: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        if named := run.processor:
            on.setdefault(named, {}).setdefault(f"{title(run.method)} on {run.model}", []).append(str(run.seed))
    return [f"Made on {named}: {listed([_with_seeds(*run) for run in those.items()])}." for named, those in on.items()]


def _with_seeds(what: str, seeds: Sequence[str]) -> str:
    return f"{what} ({'seeds' if len(seeds) > 1 else 'seed'} {listed(seeds)})"


def _model(model: str, texts: Sequence[Verdict]) -> str:
    return "\n".join([f"### {model}", "", *(f"- {text}" for text in texts)])


def _capacity(groups: Sequence[Group]) -> list[str]:
    try:
        frame = capacity(groups)
    except KetoolsError:  # records that do not say how wide their model is
        return []
    return ["## How many edits these matrices hold", "\n".join(f"- {text}" for text in capacity_reached(frame))]


def _each(runs: Sequence[Run], name: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({int(run.settings[name]) for run in runs}))


def publish(runs: Sequence[Planned], options: argparse.Namespace) -> list[Path]:
    """Pack, then write table, reading and their figure; nothing where no run is finished."""
    there = packed(runs, options.out, options.results)
    if not there:
        return []
    groups = arrange([Run(name, record) for name, record in there.items()])
    written = [write_atomic(options.results / "README.md", readme(groups))]
    first = [group for group in groups if group.model == groups[0].model]
    return [*written, *write_headline(first, options.results)]


def run_options(parser: argparse.ArgumentParser, *, edits: int, batch: int, every: int, out: str, results: str) -> None:
    """What every script with a plan of long runs takes, with its own defaults."""
    parser.add_argument(
        "--only", type=lambda s: s.split(","), default=[], help="encore,seed0: runs with one of these words"
    )
    parser.add_argument("--edits", type=int, default=edits)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--checkpoint-every", type=int, default=every, help="edits between two checkpoints")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the runs, with weights")
    parser.add_argument("--results", type=Path, default=Path(results), help="folder of the records without weights")
    parser.add_argument("--list", action="store_true", help="say how far each run is, and leave")
    parser.add_argument("--pack", action="store_true", help="start no run; pack what is finished")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda s: s.split(","), default=None, help="others than pocket")
    run_options(parser, edits=10_000, batch=100, every=1000, out="build/lifelong", results="data/results")
    parser.add_argument("--all", action="store_true", help="continue with the next run until all are done")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is next, pack, write; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    runs = chosen(plan(options.models), options.only)
    if options.list:
        sys.stdout.write(f"{listing(runs, options.out)}\n")
        return
    waiting = [] if options.pack else [run for run in runs if not done(options.out / run.name)]
    for run in waiting if options.all else waiting[:1]:
        go(run, options)
    for path in publish(plan(options.models), options):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    raise SystemExit(main())
