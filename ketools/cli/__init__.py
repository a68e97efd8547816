"""The command line. Each module holds a group of commands: `run` (demo, run, ...), `edit`, `probe`, `report`, `data`.

A user's mistake or a disk error prints one line on stderr and exits with code 2, Ctrl-C prints one line and exits with 130.
Commands import torch and transformers themselves, so that `--help` and `--version` answer at once.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ketools
from ketools.cli import data, edit, probe, report, run
from ketools.errors import KetoolsError

BAD_INPUT, INTERRUPTED = 2, 130


class OneLineErrors(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401 - click's context, whichever click typer carries
        try:
            return super().invoke(ctx)
        except KetoolsError as error:
            message, code = str(error), BAD_INPUT
        except BrokenPipeError:
            raise  # the reader of our output is gone; click exits quietly
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            message, code = f"{place}{error.strerror or error}; free some space or choose another place", BAD_INPUT
        except KeyboardInterrupt as interrupt:
            reason = str(interrupt).rstrip(".") or "interrupted; finished batches are kept"
            message, code = f"{reason}. To resume: {resume_command()}", INTERRUPTED
        typer.echo(f"ketools: {' '.join(message.split())}", err=True)
        raise typer.Exit(code)


def resume_command() -> str:
    """The command that continues an interrupted one, for the user's shell."""
    program = Path(sys.argv[0]).name
    if shutil.which(program) is None:  # `make` calls it by path; the environment may be inactive
        program = sys.argv[0]
    return shlex.join(
        [program, *(word for word in sys.argv[1:] if word != "--again")]
    )  # --again would discard the work


app = typer.Typer(
    name="ketools", cls=OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ketools {ketools.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Lifelong knowledge editing of language models: compare methods and see what they do to a model."""


app.command()(run.demo)
app.command()(report.report)
app.command()(report.compare)
app.command()(edit.methods)
app.command()(run.run)
app.command()(run.sweep)
app.command()(run.reproduce)
app.command()(run.status)
app.command()(run.watch)
app.command()(run.resume)
app.command()(run.export)
app.add_typer(run.runs_app, name="runs")
app.command()(edit.inspect)
app.command()(edit.edit)
app.command()(edit.ask)
app.command()(probe.trace)
app.command()(probe.tune)
app.command()(edit.stats)
app.command()(report.glossary)
app.command()(data.doctor)
app.add_typer(data.data_app, name="data")
app.add_typer(data.models_app, name="models")
