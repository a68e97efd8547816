"""Sequences of edits: `ketools demo`, `run`, `sweep`, `reproduce`, `status`, `watch`, `resume`, `export`, `runs verify`."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.cli import common
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import MISSING, duration, metric
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from ketools.editing.methods import Method
    from ketools.facts.fact import FactSet
    from ketools.models.model import EditableModel
    from ketools.runs.config import RunConfig
    from ketools.runs.store import RunRecord

DEMO_METHODS = "memit,alphaedit,encore"
DEMO_ROWS = [
    "norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "efficacy", "paraphrase",
    "neighbourhood", "p_edited", "p_natural", "steps_mean", "seconds_per_edit", "seconds_cpu_per_edit",
]  # fmt: skip
CHECKPOINT_ROWS = [
    "ES", "PS", "NS", "p_edited", "p_natural", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio",
    "norm_ratio",
]  # fmt: skip
NAMES = {"efficacy": "ES", "paraphrase": "PS", "neighbourhood": "NS"}  # a demo's rows -> columns of checkpoints
SPARKS = "▁▂▃▄▅▆▇█"
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
            help="How many facts to edit; default: 1000, or 100 on a model that does not know the built-in world.",
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; `ketools methods` lists them.")
    ] = DEMO_METHODS,
    model: Annotated[str, typer.Option(help=common.MODEL)] = "pocket",
    seed: common.Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and the records.")] = Path("build/demo"),
    json: common.Json = None,
    batch: common.Batch = 50,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Edits between two checkpoints.")] = 250,
    facts: Annotated[str | None, typer.Option(help=common.DRAWN)] = None,
    tasks: common.Tasks = None,
    text: common.Text = None,
    again: common.Again = False,
    yes: common.Yes = False,
    quiet: common.Quiet = False,
) -> None:
    """Edit the same facts with several methods, one after another; print a table and write a report.

    First checks the model and the facts and estimates the cost; asks for confirmation only in an interactive terminal.
    Interrupt it with Ctrl-C; run it again to resume.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise KetoolsError(
            f"--methods {methods!r} names no method; expected names separated by commas, such as {DEMO_METHODS}"
        )
    common.writable(json, model, facts, text, tasks)
    from ketools.evaluation.downstream import load_heldout, tasks_named
    from ketools.report.page import write_report
    from ketools.runs import preflight  # after the checks that need no torch
    from ketools.runs.demo import demo as run_demo
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
        result = run_demo(
            methods=names, model=model, edits=edits, seed=seed, out=out, batch=batch, checkpoint_every=checkpoint_every,
            facts=facts, tasks=None if tasks is None else tasks_named(tasks),
            texts=None if text is None else load_heldout(text, Sizes.documents),
            progress=not quiet, again=again, report=write_report, look=check,
        )  # fmt: skip
    if json is not None:
        write_json(json, {key: value for key, value in result.items() if key != "records"})
    common.show(demo_table(result["methods"], result["records"]))
    for sentence in result.get("sentences", ()):
        typer.echo(f"\n{sentence}")
    typer.echo(f"\nReport: {out / 'report.html'}" + (f"\nFigures: {json}" if json is not None else ""))


def demo_table(methods: Mapping[str, Mapping[str, Any]], records: "Mapping[str, RunRecord]") -> "Table":
    """The final measures, a column per method, beside the unedited model; "–" marks what was not measured."""
    from ketools.runs.records import Run, title

    runs = [Run(name, record) for name, record in records.items()]
    before, counts = (runs[0].before, runs[0].counts()) if runs else ({}, {})
    rows = [
        (
            row.label, f"{n:,}" if (n := counts.get(NAMES.get(row.key, row.key))) else "",
            row.format(before.get(NAMES.get(row.key, row.key))),
            *(row.format(measures.get(row.key)) for measures in methods.values()),
        )
        for row in map(metric, DEMO_ROWS)
    ]  # fmt: skip
    return common.grid(rows, ["", "n", "unedited", *map(title, methods)])


def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML config; the options below override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run.")] = None,
    method: Annotated[str | None, typer.Option(help='Such as "encore", or "memit+mpes".')] = None,
    model: Annotated[str | None, typer.Option(help=common.MODEL)] = None,
    facts: Annotated[str | None, typer.Option(help=common.DRAWN)] = None,
    tasks: common.Tasks = None,
    text: common.Text = None,
    edits: Annotated[int | None, typer.Option(help="How many facts to edit.")] = None,
    batch: Annotated[int | None, typer.Option(help="Facts per batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which facts are drawn, and every random choice.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Edits between two checkpoints.")] = None,
    conflicts: Annotated[
        str | None, typer.Option(help='If facts contradict each other: "last wins" or "refuse".')
    ] = None,
    statistics: common.Statistics = None,
    layers: common.Layers = None,
    set_: common.Settings = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", help="What checkpoints measure, such as spectra=false; repeatable.")
    ] = None,
    chat: common.Chat = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    json: common.Json = None,
    replicas: Annotated[
        int | None, typer.Option(help="Copies of the model that share the target optimisation of a batch (needs Ray).")
    ] = None,
    force: Force = False,
    again: common.Again = False,
    yes: common.Yes = False,
    quiet: common.Quiet = False,
) -> None:
    """Edit thousands of facts, batch after batch, and measure the side effects on the model.

    First checks the model and the facts and estimates the cost; asks for confirmation only in an interactive terminal.
    Every batch is kept: after an interruption, the same command (or `ketools resume`) resumes the run.
    """
    from ketools.runs.config import RunConfig

    base = RunConfig.read(config) if config is not None else RunConfig()
    asked = base.changed(
        out=None if out is None else str(out), method=method, model=model, facts=facts, tasks=tasks, text=text,
        edits=edits, batch=batch, seed=seed, checkpoint_every=checkpoint_every, conflicts=conflicts,
        statistics=os.pathsep.join(map(str, statistics)) if statistics else None, chat=chat or None,
        device=device, dtype=dtype, replicas=replicas, measures=common.settings(measure, "--measure"),
        settings={k: list(v) if isinstance(v, tuple) else v for k, v in common.overrides(layers, set_).items()},
    )  # fmt: skip
    execute(asked, force, yes, quiet, json, again)


def resume(folder: Folder, force: Force = False, json: common.Json = None, quiet: common.Quiet = False) -> None:
    """Resume a run where it stopped; batches damaged on disk are named and repeated."""
    from ketools.runs.resume import config_of

    execute(config_of(folder), force, True, quiet, json)


def execute(
    config: "RunConfig",
    force: bool,
    yes: bool,
    quiet: bool,
    json: Path | None = None,
    again: bool = False,
    prepare: "Callable[[EditableModel, RunConfig], RunConfig] | None" = None,
) -> "RunRecord":
    """Check, ask, run or resume, and show the last checkpoint. `again`: discard an existing run once the checks have passed.
    `prepare` provides the covariance once the user has agreed.
    """
    from ketools.runs import preflight
    from ketools.runs import run as runs
    from ketools.runs.config import composed
    from ketools.runs.store import Store

    common.writable(json, config.out, config.model, config.facts)
    with common.notes():
        facts = runs.ready(config)
    if quiet:
        common.no_loading_bars()
    model = common.load_model(config.model, config.device, config.dtype)
    store = Store(Path(config.out))
    if again or not store.exists():  # an existing run passed these checks when it began
        findings = preflight.inspect(
            model, facts.sample(config.edits, config.seed), composed(config.method), batch=config.batch,
            edits=config.edits, chat=config.chat, statistics=config.statistics is not None or prepare is not None,
            trial=not quiet, **config.settings,
        )  # fmt: skip
        common.confirm(findings, config.edits, config.model, yes or not common.at_a_terminal(), quiet)
    if again and store.exists():
        with store.locked():
            store.clear()
    if prepare is not None:
        config = prepare(model, config)
    with common.notes():
        record = runs.execute(config, model, facts, force=force, progress=not quiet)
    if record.collapse is not None:
        typer.echo(collapse_text(record.collapse))
    if left_out := record.provenance.get("settings", {}).get("left_out", 0):
        typer.echo(f"{left_out:,} facts that contradict later ones were left out before sampling")
    if len(record.checkpoints):
        common.show(
            f"after {int(record.checkpoints['edits'].iloc[-1]):,} edits with {config.method} on {config.model}:"
        )
        common.show(checkpoint_table(record))
    typer.echo(f"Run: {config.out}")
    if json is not None:
        write_json(json, record.checkpoints.iloc[-1].to_dict() if len(record.checkpoints) else {})
    return record


def status(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of runs such as `ketools demo` or `sweep` writes.")
    ],
    json: common.Json = None,
) -> None:
    """Show the progress of runs, their cost and their last checkpoints."""
    from ketools.runs.store import RunRecord
    from ketools.runs.store import status as read_status

    common.writable(json, *folders)
    tables: dict[str, Any] = {}
    for folder in [folder for folder in folders if (folder / "sweep.json").is_file()]:
        from ketools.runs.sweep import Sweep

        tables[str(folder)] = (table := Sweep.of(folder).status()).to_dict("records")
        typer.echo(f"{folder}:\n{table.to_string(index=False, float_format='{:.3f}'.format, na_rep='-')}")
        folders = [each for each in folders if each != folder]
    found = {path: read_status(path) for folder in folders for path in runs_in(folder)}
    for place, (folder, state) in enumerate(found.items()):
        common.show(*([""] if place else []), *status_lines(folder, state))
        if state["checkpoint"]:
            common.show(f"last checkpoint, after {int(state['checkpoint']['edits']):,} edits:")
            common.show(checkpoint_table(RunRecord.load(folder)))
    if json is not None:
        write_json(json, tables | {str(folder): state for folder, state in found.items()})


def status_lines(folder: Path, status: Mapping[str, Any]) -> list[str]:
    """The result of `ketools.runs.store.status` in lines, without the checkpoint."""
    progress = f"{status['edits']:,} of {status['edits_asked']:,} edits"
    lines = [f"{folder}: {status['state']}, {progress} with {status['method']} on {status['model']}"]
    if status["collapse"]:
        lines.append(collapse_text(status["collapse"]))
    if status["seconds_per_edit"] is not None:
        left = f", about {duration(status['seconds_left'])} left" if status["seconds_left"] else ""
        cpu = f" ({duration(status['cpu_per_edit'])} of CPU time)" if status["cpu_per_edit"] else ""
        pace = duration(status["seconds_per_edit"])
        lines.append(f"time: {pace} per edit in the last batches{cpu}, including scoring{left}")
    used = sorted(status["bytes"].items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in used)
    end = f"; about {status['bytes_at_end'] / 1e6:,.1f} MB at the end" if status["bytes_at_end"] else ""
    lines.append(f"disk: {sum(size for _, size in used) / 1e6:,.1f} MB ({parts}){end}")
    if status["known"]:
        lines.append(f"{status['known']:,} facts needed no edit: their target was already the top answer")
    for forced in status["forced"]:
        lines.append(f"forced after batch {forced['after_batch']}: {', '.join(forced['changed'])} differ from then on")
    return lines


def watch(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders of runs such as `ketools demo` writes.")
    ],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    json: common.Json = None,
) -> None:
    """Follow runs until the last of them ends: norm, efficacy and retention.

    Outside a terminal, print a line after every batch. A finished run is shown once.
    """
    from rich.console import Console
    from rich.live import Live

    common.writable(json, *folders)
    terminal, printed, idle = sys.stdout.isatty(), set[str](), 0
    console = Console(width=min(Console().width, common.WIDTH), markup=False, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) if terminal else nullcontext() as live:
        while True:
            rows = watched(folders)
            if live is not None:
                live.update(watch_table(rows), refresh=True)
            for row in rows if live is None else ():
                line = f"{row['run']}: {row['edits']:,} of {row['edits_asked']:,} edits; " + ", ".join(
                    f"{name} {text}" for name, text in watch_cells(row)
                )
                if line not in printed:
                    printed.add(line)
                    typer.echo(line)
            idle = 0 if any(row["state"] == "running" for row in rows) else idle + 1
            # A job of several runs pauses for a moment between them.
            if idle > 1 or all(row["state"] in ("complete", "collapsed") for row in rows):
                break
            time.sleep(every)
    common.show(watch_table(rows))
    if json is not None:
        write_json(json, rows)


def runs_in(folder: Path) -> list[Path]:
    """The folder, if it is that of a run or of none; else the folders of the runs in it."""
    from ketools.runs.store import Store

    inside = [] if Store(folder).exists() or not folder.is_dir() else sorted(folder.iterdir())
    return [path for path in inside if Store(path).exists()] or [folder]


def watched(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The current state of each run."""
    from ketools.runs.store import RunRecord
    from ketools.runs.store import status as read_status

    rows = []
    for folder in folders:
        for path in runs_in(folder):
            state, record = read_status(path), RunRecord.load(path)
            norms = record.norms[record.norms["edited"].astype(bool)] if len(record.norms) else record.norms
            line = norms.groupby("edits")["ratio"].max().tolist() if len(norms) else []
            last = record.batches.iloc[-1].to_dict() if len(record.batches) else {}
            point = state["checkpoint"] or {}
            names = ("state", "edits", "edits_asked", "seconds_left", "collapse")
            rows.append(
                {"run": path.name} | {name: state[name] for name in names}
                | {"norms": line, "norm_ratio": line[-1] if line else None, "at_edit_ES": last.get("at_edit_ES")}
                | {name: point.get(name) for name in ("ES", "unedited_kept", "same_subject_kept")}
            )  # fmt: skip
    return rows


def watch_cells(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Heading and text of each measure that `watch` shows."""
    shown = [metric(name) for name in ("norm_ratio", "at_edit_ES", "ES", "unedited_kept", "same_subject_kept")]
    left = duration(row["seconds_left"]) if row["state"] == "running" and row["seconds_left"] else row["state"]
    return [*((each.short or each.label, each.format(row[each.key])) for each in shown), ("left", left)]


def watch_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """The current state of several runs, as a table."""
    lines = []
    for row in rows:
        norms = row["norms"][:: max(1, len(row["norms"]) // 12)][-13:]
        low, high = (min(norms), max(norms)) if norms else (0.0, 0.0)
        places = [int((value - low) / (high - low) * 7.99) if high > low else 0 for value in norms]
        cells = [text for _, text in watch_cells(row)]
        progress = f"{row['edits']:,} / {row['edits_asked']:,}"
        lines.append((row["run"], "".join(SPARKS[i] for i in places), progress, *cells))
    return common.grid(lines, ["run", "norm so far", "edits", *(head for head, _ in watch_cells(rows[0]))], left=2)


def collapse_text(collapse: Mapping[str, Any]) -> str:
    """At which edits a run collapsed, and what is kept."""
    return (
        f"collapsed at edits {collapse['first']:,} to {collapse['last']:,} (batch {collapse['batch']}): "
        f"{collapse['why']}; the model of the {collapse['edits']:,} edits before is kept"
    )


def checkpoint_table(record: "RunRecord") -> "Table":
    """The measures of the last checkpoint beside those of the unedited model, without those that were not taken."""
    from ketools.runs.records import Run

    run = Run("", record)
    now, before, counts = record.checkpoints.iloc[-1].to_dict(), run.before, run.counts()
    rows = []
    for row in map(metric, CHECKPOINT_ROWS):
        n = counts.get(row.key)
        cells = (row.format(before.get(row.key)), row.format(now.get(row.key)))
        if cells[1] != MISSING:
            rows.append((row.label, f"{n:,}" if n else "", *cells))
    return common.grid(rows, ("", "n", "unedited", "now"))


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    at: Annotated[int, typer.Option(min=1, help="The number of edits, at the end of a batch.")],
    lora: Annotated[bool, typer.Option("--lora", help="Write only the edits, as an adapter for PEFT.")] = False,
    json: common.Json = None,
) -> None:
    """Write the model as it was after a number of edits, bit for bit, as a folder that transformers loads.

    With --lora, write the sum of the edits as low-rank factors, to load on top of the unedited model.
    """
    from ketools.editing.export import as_lora
    from ketools.runs.resume import model_at, model_of
    from ketools.runs.run import as_one

    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise KetoolsError(f"--out {out} is in the run's own folder; choose another")
    loading = model_of(folder)
    assert loading["model"] is not None
    common.writable(json, folder, loading["model"])
    model = common.load_model(loading["model"], loading["device"], loading["dtype"])
    with model_at(folder, at, model):
        written = as_lora(as_one(model.edits), model, out) if lora else model.export(out)
    typer.echo(f"{'Adapter' if lora else 'Model'}: {written}")
    if json is not None:
        write_json(json, {"folder": str(written), "edits": at, "model": model.name, "fingerprint": model.fingerprint})


@runs_app.command()
def verify(folder: Folder, json: common.Json = None) -> None:
    """Compare every file of a run with its checksum. Exit code 0: all files are intact; 2: some are damaged (named)."""
    from ketools.runs.store import survey

    common.writable(json, folder)
    findings = survey(folder)
    typer.echo(findings.text())
    if json is not None:
        write_json(json, vars(findings))
    if not findings.sound:
        raise typer.Exit(common.FAILED)


def sweep(
    config: Annotated[Path, typer.Argument(help="A TOML file with the tables run, grid and, optionally, sample.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the sweep; overrides the one in the file.")] = None,
    address: Annotated[
        str | None, typer.Option(help='A Ray cluster: "auto" or HOST:PORT; its machines must share the folder.')
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Parallel runs (needs Ray); default: one per GPU, or core.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the runs and their progress; start nothing.")] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Run every combination of methods, settings, seeds, models or facts, or a random sample of them.

    Everything is checked before the first run. Interrupt it with Ctrl-C; run it again to resume. `ketools status`, `compare`
    and `report` accept the folder.
    """
    from ketools.runs.sweep import Sweep, carry_out

    asked = Sweep.read(config, out)
    common.writable(json, config)
    if quiet:
        common.no_loading_bars()
    if not show:
        with common.notes():
            carry_out(asked, address=address, workers=workers, progress=not quiet)
    table = asked.status()
    common.show(common.framed(table, 2))
    typer.echo(f"Sweep: {asked.out}")
    if json is not None:
        write_json(json, {"runs": table.to_dict("records")})


def reproduce(
    method: Annotated[str, typer.Argument(help='Such as "encore", "alphaedit" or "memit+mpes".')],
    model: Annotated[
        str, typer.Option(help="gpt2-xl, llama-2-7b, llama-3-8b, smollm2, or the folder of such a model.")
    ],
    edits: Annotated[int | None, typer.Option(min=1, help="Default: 10,000; on smollm2 2,400 (the same load).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; default: build/reproduce/METHOD-MODEL.")] = None,
    facts: Annotated[str, typer.Option(help='"counterfact" or "zsre" (ketools data get), or a file.')] = "counterfact",
    tasks: Annotated[str, typer.Option(help="Downstream tasks, as for `ketools run`.")] = "paper",
    text: Annotated[str, typer.Option(help="Background text for the covariance, if there is none yet.")] = "wikipedia",
    statistics: common.Statistics = None,
    npz: Annotated[
        list[str] | None, typer.Option(help="Import published moments instead: LAYER=FILE.npz; repeatable.")
    ] = None,
    set_: common.Settings = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
    json: common.Json = None,
    yes: common.Yes = False,
    quiet: common.Quiet = False,
) -> None:
    """Repeat the paper's experiment: its settings, facts and intervals; print the result beside its figures.

    First estimates time and memory. Interrupt it with Ctrl-C; run it again to resume.
    """
    from ketools.cli import edit
    from ketools.runs.config import composed
    from ketools.runs.reproduce import asked, beside

    common.writable(json, model, facts, tasks, text)
    out = out or Path("build/reproduce") / f"{method.replace('+', '-')}-{Path(model).name}"
    path = out / "statistics.safetensors"
    given = os.pathsep.join(map(str, statistics)) if statistics else str(path) if path.is_file() else None
    config = asked(
        method, model, facts=facts, edits=edits, tasks=tasks, out=str(out), statistics=given,
        settings=common.settings(set_), device=device, dtype=dtype,
    )  # fmt: skip
    files = edit.moments(npz)

    def covariance(loaded: "EditableModel", config: "RunConfig") -> "RunConfig":
        from ketools.editing.covariance import import_moments, own_file

        how = composed(config.method)
        if not how.needs_statistics or config.statistics is not None or own_file(loaded) is not None:
            return config
        if files:
            import_moments(loaded, files).save(path)
        else:
            layers = how.settings(loaded, **config.settings).layers
            assert layers is not None
            edit.compute_covariance(loaded, layers, text, path, None, edit.LENGTH, edit.EVERY, quiet)
        return config.changed(statistics=str(path))

    record = execute(config, False, yes, quiet, prepare=covariance)
    table = beside(record, config)
    write_atomic(out / "reproduce.csv", table.to_csv(index=False))
    common.show(common.framed(table))
    typer.echo(f"Table: {out / 'reproduce.csv'}")
    if json is not None:
        write_json(json, {"measures": table.to_dict("records")})
