"""The command line: `ketools demo`, `methods`, `glossary`; cli_report: `report`, `compare`; cli_edit: `inspect`, `edit`, `stats`; cli_data: `data`.

Mistakes of the user and of the disk are one line on stderr and exit code 2; Ctrl-C is one line and exit code 130.
torch and transformers are imported inside the commands, so that `--help` and `--version` answer at once.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import ketools
from ketools.cli import edit as cli_edit
from ketools.cli import report as cli_report
from ketools.cli import run as cli_run
from ketools.cli.common import at_a_terminal, confirm, notes, writable
from ketools.cli.data import data_app
from ketools.cli.report import glossary
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric
from ketools.io import write_json

if TYPE_CHECKING:
    from ketools.editing.methods import Method
    from ketools.facts.fact import FactSet
    from ketools.models.model import EditableModel


METHODS = "memit,alphaedit,encore"
MODEL = "pocket-llama-v2"
BAD_INPUT, INTERRUPTED = 2, 130


class _OneLine(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401 - click's context, whichever click typer carries
        try:
            return super().invoke(ctx)
        except KetoolsError as error:
            message, code = str(error), BAD_INPUT
        except BrokenPipeError:
            raise  # the reader of our output left; click ends quietly
        except OSError as error:
            message, code = _disk(error), BAD_INPUT
        except KeyboardInterrupt as stop:
            message, code = _stopped(str(stop)), INTERRUPTED
        typer.echo(f"ketools: {' '.join(message.split())}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    name="ketools",
    cls=_OneLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ketools {ketools.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Lifelong knowledge editing of language models: run methods side by side and see what they do to a model."""


@app.command()
def demo(
    edits: Annotated[int, typer.Option(min=1, help="How many facts to edit, one batch after another.")] = 1000,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas; `ketools methods` lists them.")] = METHODS,
    model: Annotated[str, typer.Option(help="Name of a pocket model, or the folder of a model.")] = MODEL,
    seed: Annotated[int, typer.Option(help="Decides which facts, and every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and the records.")] = Path("build/demo"),
    json: Annotated[Path | None, typer.Option(help="Also write the figures of the end to this file.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Facts per batch.")] = 50,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Edits between two checkpoints.")] = 250,
    facts: Annotated[str, typer.Option(help='"world" or a file of facts (.jsonl, .json, .gz).')] = "world",
    again: Annotated[
        bool, typer.Option("--again", help="Throw away what an unfinished run left in the folder.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; checks are made all the same.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Edit the same facts with several methods, one after another; print a table, write a report.

    Model and facts are looked at first, with what the job will cost; asked is only who sits at a terminal. Stopped with
    Ctrl-C, the same command goes on where it stopped.
    """
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    if not chosen:
        raise KetoolsError(f"--methods {methods!r} names no method; expected names with commas, such as {METHODS}")
    if json is not None:
        writable(json)
    from ketools.report.page import write_report
    from ketools.runs import sweep as job  # after the checks that need no torch

    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
    with notes():
        result = job.demo(
            methods=chosen, model=model, edits=edits, seed=seed, out=out, batch=batch, checkpoint_every=checkpoint_every,
            facts=facts, progress=not quiet, again=again, report=write_report, look=_look(batch, yes, quiet),
        )  # fmt: skip
    if json is not None:
        write_json(json, {key: value for key, value in result.items() if key != "records"})
    typer.echo(table(result["methods"]))
    for sentence in result.get("sentences", ()):
        typer.echo(f"\n{sentence}")
    typer.echo(f"\nReport: {out / 'report.html'}" + (f"\nFigures: {json}" if json is not None else ""))


def _look(batch: int, yes: bool, quiet: bool) -> Callable[..., None]:
    """What `runs.demo.demo` calls before it begins: the preflight of all methods, and the question."""

    def look(model: "EditableModel", facts: "FactSet", methods: "Sequence[Method]", statistics: bool) -> None:
        from ketools.runs import preflight

        first, *beside = methods
        found = preflight.inspect(
            model, facts, first, batch=batch, edits=len(facts), beside=beside, statistics=statistics, trial=not quiet
        )
        typer.echo("settings (their rule, and what was chosen for some models: ketools/editing/hyperparameters.toml)")
        typer.echo("\n".join(f"  {each.name}: {each.told(model)}" for each in methods) + "\n")
        confirm(found, len(facts), model.name, yes or not at_a_terminal(), quiet)

    return look


app.command()(cli_report.report)
app.command()(cli_report.compare)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's equation, choices and settings.")] = None,
    model: Annotated[str | None, typer.Option(help="Settings as they are for this model (name or folder).")] = None,
) -> None:
    """List the editing methods, or describe one."""
    from ketools.editing import methods as known

    if name is None:
        if model is not None:
            raise KetoolsError(f"--model {model} without a method; name one of those that `ketools methods` lists")
        typer.echo(known.methods().to_string(index=False))
        return
    described = known.method(name)  # a mistyped method is told before a model is loaded
    if model is None:
        typer.echo(described.describe())
        return
    from ketools.models.model import load

    typer.echo(described.describe(load(model)))


app.command()(cli_run.run)
app.command()(cli_run.status)
app.command()(cli_run.resume)
app.command()(cli_run.export)
app.add_typer(cli_run.runs_app, name="runs")
app.command()(cli_edit.inspect)
app.command()(cli_edit.edit)
app.command()(cli_edit.stats)
app.command()(glossary)
app.add_typer(data_app, name="data")


_ROWS = (
    "norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "efficacy", "paraphrase",
    "neighbourhood", "p_edited", "p_natural", "steps_mean", "seconds_per_edit",
)  # fmt: skip


def table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """What a demo's runs came to as text, a column per method; "–" where a metric was not measured."""
    lines = [["", *methods]]
    lines += [[row.label, *(row.format(run.get(row.key)) for run in methods.values())] for row in map(metric, _ROWS)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([rows[0], "-" * (sum(widths) + 2 * len(methods)), *rows[1:]])


def _disk(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; make room or choose another place"


def _stopped(why: str) -> str:
    # With --again the command would throw away what was kept.
    ours = Path(sys.argv[0]).name
    if shutil.which(ours) is None:  # `make` calls it by its path, and the environment need not be active
        ours = sys.argv[0]
    command = shlex.join([ours, *(word for word in sys.argv[1:] if word != "--again")])
    return f"{why.rstrip('.') or 'stopped; finished batches are kept'}. To go on: {command}"
