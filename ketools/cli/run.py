"""Sequences of edits: `ketools demo`, `run`, `status`, `resume`, `export`, `runs verify`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.cli import common
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import MISSING, metric
from ketools.io import write_json

if TYPE_CHECKING:
    from ketools.editing.methods import Method
    from ketools.facts.fact import FactSet
    from ketools.models.model import EditableModel
    from ketools.runs.config import RunConfig

DEMO_METHODS = "memit,alphaedit,encore"
DEMO_MODEL = "pocket-llama-v2"
DEMO_ROWS = [
    *("norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio"),
    *("efficacy", "paraphrase", "neighbourhood", "p_edited", "p_natural", "steps_mean", "seconds_per_edit"),
]
CHECKPOINT_ROWS = [
    *("ES", "PS", "NS", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "norm_ratio"),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Resume with other settings, covariance or versions; the result matches neither run."),
]

runs_app = typer.Typer(help="Maintain run folders.", no_args_is_help=True)


def demo(
    edits: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many facts to edit, batch after batch; default: 1000, on a model without the built-in world 100.",
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; `ketools methods` lists them.")
    ] = DEMO_METHODS,
    model: Annotated[str, typer.Option(help=common.MODEL)] = DEMO_MODEL,
    seed: common.Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and the records.")] = Path("build/demo"),
    json: Annotated[Path | None, typer.Option(help="Also write the final measures to this file.")] = None,
    batch: common.Batch = 50,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Edits between two checkpoints.")] = 250,
    facts: Annotated[str | None, typer.Option(help=common.FACTS)] = None,
    tasks: common.Tasks = None,
    text: common.Text = None,
    again: Annotated[bool, typer.Option("--again", help="Discard an unfinished run in the folder.")] = False,
    yes: common.Yes = False,
    quiet: common.Quiet = False,
) -> None:
    """Edit the same facts with several methods, one after another; print a table and write a report.

    First checks the model and the facts and estimates the cost; asks for confirmation only in an interactive terminal.
    Interrupt it with Ctrl-C; run it again to resume.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise KetoolsError(f"--methods {methods!r} names no method; expected names with commas, such as {DEMO_METHODS}")
    if json is not None:
        common.writable(json, model, facts, text, tasks)
    from ketools.evaluation.downstream import load_heldout, tasks_named
    from ketools.report.page import write_report
    from ketools.runs import preflight, sweep  # after the checks that need no torch
    from ketools.runs.panel import Sizes

    def check(model: "EditableModel", facts: "FactSet", methods: "Sequence[Method]", statistics: bool) -> None:
        first, *others = methods
        findings = preflight.inspect(
            model, facts, first, batch=batch, edits=len(facts), beside=others, statistics=statistics, trial=not quiet
        )
        typer.echo("settings (rules and per-model choices: ketools/editing/hyperparameters.toml)")
        typer.echo("\n".join(f"  {method.name}: {method.told(model)}" for method in methods) + "\n")
        common.confirm(findings, len(facts), model.name, yes or not common.at_a_terminal(), quiet)

    if quiet:
        common.no_loading_bars()
    with common.notes():
        result = sweep.demo(
            methods=names,
            model=model,
            edits=edits,
            seed=seed,
            out=out,
            batch=batch,
            checkpoint_every=checkpoint_every,
            facts=facts,
            tasks=None if tasks is None else tasks_named(tasks),
            texts=None if text is None else load_heldout(text, Sizes.documents),
            progress=not quiet,
            again=again,
            report=write_report,
            look=check,
        )
    if json is not None:
        write_json(json, {key: value for key, value in result.items() if key != "records"})
    typer.echo(demo_table(result["methods"]))
    for sentence in result.get("sentences", ()):
        typer.echo(f"\n{sentence}")
    typer.echo(f"\nReport: {out / 'report.html'}" + (f"\nFigures: {json}" if json is not None else ""))


def demo_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The final measures as text, a column per method; "–" where a metric was not measured."""
    lines = [["", *methods]]
    lines += [
        [row.label, *(row.format(measures.get(row.key)) for measures in methods.values())]
        for row in map(metric, DEMO_ROWS)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([rows[0], "-" * (sum(widths) + 2 * len(methods)), *rows[1:]])


def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML config; the options below override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run.")] = None,
    method: Annotated[str | None, typer.Option(help='Such as "encore", or "memit+mpes".')] = None,
    model: Annotated[str | None, typer.Option(help=common.MODEL)] = None,
    facts: Annotated[str | None, typer.Option(help=common.FACTS)] = None,
    tasks: common.Tasks = None,
    text: common.Text = None,
    edits: Annotated[int | None, typer.Option(help="How many facts to edit.")] = None,
    batch: Annotated[int | None, typer.Option(help="Facts per batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which facts are drawn, and every random choice.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Edits between two checkpoints.")] = None,
    conflicts: Annotated[
        str | None, typer.Option(help='For facts that contradict each other: "last wins" or "refuse".')
    ] = None,
    statistics: common.Statistics = None,
    set_: common.Settings = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", help="What to measure, such as spectra=false; repeatable.")
    ] = None,
    chat: common.Chat = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    force: Force = False,
    yes: common.Yes = False,
    quiet: common.Quiet = False,
) -> None:
    """Edit thousands of facts, batch after batch, and measure what becomes of the model.

    First checks the model and the facts and estimates the cost; asks for confirmation only in an interactive terminal.
    Every batch is kept: after an interruption, the same command (or `ketools resume`) resumes the run.
    """
    from ketools.runs.config import RunConfig

    options = {
        "out": None if out is None else str(out),
        "method": method,
        "model": model,
        "facts": facts,
        "tasks": tasks,
        "text": text,
        "edits": edits,
        "batch": batch,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
        "conflicts": conflicts,
        "statistics": os.pathsep.join(map(str, statistics)) if statistics else None,
        "settings": common.settings(set_),
        "measures": common.settings(measure, "--measure"),
        "chat": chat or None,
        "device": device,
        "dtype": dtype,
    }
    base = RunConfig.read(config) if config is not None else RunConfig()
    execute(base.changed(**options), force, yes, quiet)


def resume(folder: Folder, force: Force = False, quiet: common.Quiet = False) -> None:
    """Resume a run where it stopped; batches damaged on disk are named and repeated."""
    from ketools.runs.resume import config_of

    execute(config_of(folder), force, True, quiet)


def execute(config: "RunConfig", force: bool, yes: bool, quiet: bool) -> None:
    """Check, ask, run or resume, and show the last checkpoint."""
    from ketools.runs import preflight
    from ketools.runs import run as runs
    from ketools.runs.config import composed
    from ketools.runs.store import Store

    with common.notes():
        facts = runs.ready(config)
    if quiet:
        common.no_loading_bars()
    model = common.load_model(config.model, config.device, config.dtype)
    if not Store(Path(config.out)).exists():  # an existing run passed these checks when it began
        findings = preflight.inspect(
            model,
            facts.sample(config.edits, config.seed),
            composed(config.method),
            batch=config.batch,
            edits=config.edits,
            chat=config.chat,
            statistics=config.statistics is not None,
            trial=not quiet,
            **config.settings,
        )
        common.confirm(findings, config.edits, config.model, yes or not common.at_a_terminal(), quiet)
    with common.notes():
        record = runs.execute(config, model, facts, force=force, progress=not quiet)
    if record.collapse is not None:
        typer.echo(collapse_text(record.collapse))
    if left_out := record.provenance.get("settings", {}).get("left_out", 0):
        typer.echo(f"{left_out:,} facts that contradict later ones were left out before the draw")
    if len(record.checkpoints):
        last = record.checkpoints.iloc[-1].to_dict()
        typer.echo(f"after {int(last['edits']):,} edits with {config.method} on {config.model}:")
        typer.echo(checkpoint_table(last))
    typer.echo(f"Run: {config.out}")


def status(folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")]) -> None:
    """Show how far runs are, what they cost, and their last checkpoints."""
    from ketools.runs.store import status as read_status

    typer.echo("\n\n".join(status_text(folder, read_status(folder)) for folder in folders))


def status_text(folder: Path, status: Mapping[str, Any]) -> str:
    """The result of `ketools.runs.store.status` in lines."""
    light = " (tables without weights)" if status["light"] else ""
    progress = f"{status['edits']:,} of {status['edits_asked']:,} edits"
    lines = [f"{folder}: {status['state']}, {progress} with {status['method']} on {status['model']}{light}"]
    if status["collapse"]:
        lines.append(collapse_text(status["collapse"]))
    if status["seconds_per_edit"] is not None:
        left = f", about {status['seconds_left'] / 60:,.0f} minutes left" if status["seconds_left"] else ""
        lines.append(f"time: {status['seconds_per_edit']:.3f} s per edit in the last batches, with scoring{left}")
    used = sorted(status["bytes"].items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in used)
    end = f"; about {status['bytes_at_end'] / 1e6:,.1f} MB at the end" if status["bytes_at_end"] else ""
    lines.append(f"disk: {sum(size for _, size in used) / 1e6:,.1f} MB ({parts}){end}")
    if status["known"]:
        lines.append(f"{status['known']:,} facts needed no edit, their target was the top answer already")
    for forced in status["forced"]:
        lines.append(f"forced after batch {forced['after_batch']}: {', '.join(forced['changed'])} differ from there on")
    if status["checkpoint"]:
        lines.append(f"last checkpoint, after {int(status['checkpoint']['edits']):,} edits:")
        lines.append(checkpoint_table(status["checkpoint"]))
    return "\n".join(lines)


def collapse_text(collapse: Mapping[str, Any]) -> str:
    """At which edits a run collapsed, and what is kept."""
    return (
        f"collapsed at edits {collapse['first']:,} to {collapse['last']:,} (batch {collapse['batch']}): "
        f"{collapse['why']}; the model of the {collapse['edits']:,} edits before is kept"
    )


def checkpoint_table(checkpoint: Mapping[str, Any]) -> str:
    """The measures of a checkpoint, a line each; those that were not taken are left out."""
    rows = [(row.label, row.format(checkpoint.get(row.key))) for row in map(metric, CHECKPOINT_ROWS)]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"  {label:<{width}}  {value}" for label, value in rows if value != MISSING)


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A new folder, for the model.")],
    at: Annotated[int, typer.Option(min=1, help="The model after so many edits (the end of a batch).")],
) -> None:
    """Write the model as it was after so many edits, bit for bit, as a folder that transformers loads."""
    from ketools.runs.resume import export_at, model_of

    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise KetoolsError(f"--out {out} lies in the run's own folder; choose another")
    loading = model_of(folder)
    assert loading["model"] is not None
    model = common.load_model(loading["model"], loading["device"], loading["dtype"])
    typer.echo(f"Model: {export_at(folder, at, out, model)}")


@runs_app.command()
def verify(folder: Folder) -> None:
    """Compare every file of a run with its checksum. Exit code 0: all files are intact; 2: some are damaged (named)."""
    from ketools.runs.store import survey

    findings = survey(folder)
    typer.echo(findings.text())
    if not findings.sound:
        raise typer.Exit(common.FAILED)
