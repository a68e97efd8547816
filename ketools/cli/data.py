"""The command line for files of facts: `ketools data check`, `ketools data get`, `ketools data list`.

Mistakes travel as KetoolsError; the program around this group turns them into one line and exit code 2.
"""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer

from ketools.errors import KetoolsError
from ketools.facts import fetch as download
from ketools.io import write_atomic, write_json

data_app = typer.Typer(no_args_is_help=True, help="Files of facts: check one, fetch the public ones.")
_BAD = 2


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A file of facts (.csv, .jsonl, .json, .gz) or the name of a data set.")],
    json: Annotated[Path | None, typer.Option(help="Also write all of it to this file.")] = None,
    good: Annotated[
        Path | None, typer.Option(help="Write the facts without a mistake to this file (.jsonl), in the plain layout.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as mistakes.")] = False,
    most: Annotated[int, typer.Option(min=0, help="Show at most so many errors and warnings; 0 shows all.")] = 0,
) -> None:
    """List every mistake in a file of facts with its line, and count what is in it.

    Exit code 0: the file can be used; 2: it cannot.
    """
    from ketools.facts.check import check as look
    from ketools.facts.layouts import as_record
    from ketools.facts.reading import source_path

    path = source_path(file)
    if good is not None and good.suffix != ".jsonl":
        raise KetoolsError(f"--good {good}: expected a name that ends in .jsonl")
    for target in (json, good):
        if target is not None and target.resolve() == path.resolve():
            raise KetoolsError(f"{target} is the file to check; choose another name, it would be overwritten")
    found = look(path)
    typer.echo(found.text(most or None))
    if json is not None:
        write_json(json, found.to_dict())
    if good is not None:
        write_atomic(good, "".join(f"{json_text.dumps(as_record(f), ensure_ascii=False)}\n" for f in found.facts))
        typer.echo(f"{len(found.facts):,} facts without a mistake: {good}")
    if found.errors or (strict and found.warnings):
        raise typer.Exit(_BAD)


@data_app.command()
def get(
    names: Annotated[list[str], typer.Argument(help="Names of data sets; `ketools data list` shows them.")],
    to: Annotated[Path | None, typer.Option(help="The folder; ketools' own if not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Fetch public sets of facts; an interrupted download goes on where it stopped."""
    for name in names:
        download.known(name)  # a wrong name is told before anything is fetched
    for name in names:
        with _Bar(name, quiet or not sys.stderr.isatty()) as bar:
            path, checked = download.get(name, to, bar.show)
        typer.echo(f"{name}: {path} ({checked})")


@data_app.command("list")
def list_all() -> None:
    """Show the public sets of facts that `get` knows, and which are here."""
    place = download.folder()
    width = max(map(len, download.SOURCES))
    for source in download.SOURCES.values():
        path = place / source.file
        here = f"{path.stat().st_size:,} bytes here" if path.is_file() else "not here"
        checksum = "published checksum" if source.sha256 else "checksum of the first download"
        typer.echo(f"{source.name:<{width}}  {source.what}\n{'':<{width}}  {source.url}; {checksum}; {here}")
    typer.echo(f"\nFolder: {place}")


class _Bar:
    """A progress bar in bytes that learns its length from the server's answer."""

    def __init__(self, name: str, off: bool) -> None:
        from tqdm import tqdm

        self.bar = tqdm(desc=name, unit="B", unit_scale=True, disable=off, leave=False)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, have: int, whole: int | None) -> None:
        self.bar.total = whole
        self.bar.update(have - self.bar.n)
