"""python -m ketools.course: commands for the notebooks, called by the Makefile."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ketools.errors import KetoolsError

app = typer.Typer(help="Build, store and time the notebooks of the course.", no_args_is_help=True)
_Folder = Annotated[Path, typer.Option(help="Folder of the notebooks.")]


@app.command()
def student(
    out: Path = Path("build/student"),
    notebooks: _Folder = Path("notebooks"),
    solutions: Annotated[
        bool, typer.Option("--solutions", help="Add each solution, collapsed, below its exercise.")
    ] = False,
) -> None:
    """Write the student version of every notebook: stubs in place of solutions, and installation notes."""
    from ketools.course.build import write_students

    for path in write_students(notebooks, out, solutions):
        typer.echo(path)


@app.command()
def build(
    only: Annotated[list[Path] | None, typer.Argument(help="Notebooks; default: all in the folder.")] = None,
    out: Path = Path("build/course"),
    notebooks: _Folder = Path("notebooks"),
) -> None:
    """Run all or some notebooks and write pages that open offline, with an index of those built."""
    from ketools.course.build import build as run_all

    for name, took in run_all(notebooks, out, only).items():
        typer.echo(f"{name}: {took:.0f} s")
    typer.echo(out / "index.html")


@app.command()
def store(
    paths: list[Path],
    seconds: Annotated[int, typer.Option(help="Time limit per cell; raise it on a busy machine.")] = 120,
) -> None:
    """Run notebooks in a fresh kernel and write them back with outputs and pictures, ready to be committed."""
    from ketools.course.build import store as run_one

    for path in paths:
        typer.echo(run_one(path, seconds=seconds))


@app.command()
def times(built: Path = Path("build/course"), notebooks: _Folder = Path("notebooks")) -> None:
    """Write the table of times into notebooks/README.md."""
    from ketools.course.build import write_times

    typer.echo(write_times(notebooks, built))


@app.command()
def badges(url: str, notebooks: _Folder = Path("notebooks")) -> None:
    """Let every notebook be opened in Colab and Binder, from the repository at URL (https://github.com/OWNER/NAME)."""
    import nbformat

    from ketools.course import build as course
    from ketools.io import write_atomic

    for path in course.notebooks(notebooks):
        nb = course.badges(course.read(path), path.name, url)
        typer.echo(write_atomic(path, nbformat.writes(nb) + "\n"))


def main() -> None:
    """Run a command; a user's mistake prints one line and exits with code 2."""
    try:
        app()
    except KetoolsError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
