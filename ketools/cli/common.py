"""What several commands share: checks of what was typed, before any work (torch is imported with the model only)."""

import json
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ketools.models.model import EditableModel
    from ketools.runs.preflight import Preflight


def writable(path: Path) -> None:
    """Raise now, not after minutes of work, if the file `path` cannot be written."""
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a file in it, such as {path / 'figures.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path.parent)) from error


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """ "4,5,6" as (4, 5, 6); None if nothing was given. Raises KetoolsError naming `option`."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise KetoolsError(f"{option} {text!r}: expected numbers with commas, such as 4,5,6") from None


def settings(given: list[str], option: str = "--set") -> dict[str, object]:
    """["lr=0.1", "compat=official"] as {"lr": 0.1, "compat": "official"}. Raises KetoolsError naming `option`."""
    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise KetoolsError(f"{option} {text!r}: expected name=value, such as lr=0.1")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def load_model(name: str, device: str | None, dtype: str | None) -> "EditableModel":
    """The model of that name; raises KetoolsError for a type or a device that is none, and as `ketools.load` does."""
    import torch

    from ketools.models.model import load

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in types:
        raise KetoolsError(f"--dtype {dtype!r}: expected one of {', '.join(types)}")
    try:
        return load(name, device=device, dtype=types[dtype] if dtype else None)
    except RuntimeError as error:
        raise KetoolsError(f"model {name!r} cannot be put on device {device!r}: {error}") from error


def npz_files(given: list[str]) -> dict[int, str]:
    """["17=a.npz"] as {17: "a.npz"}. Raises KetoolsError for something else."""
    files: dict[int, str] = {}
    for item in given:
        layer, equals, path = item.partition("=")
        if not (layer.strip().isdigit() and equals and path):
            raise KetoolsError(f"--npz {item!r}: expected LAYER=FILE.npz, such as 17=layer17.npz")
        files[int(layer)] = path
    return files


def at_a_terminal() -> bool:
    """Is there somebody to be asked?"""
    return sys.stdin.isatty()


def confirm(found: "Preflight", count: int, name: str, yes: bool, quiet: bool) -> None:
    """Show what a preflight found and ask; raises KetoolsError for its problems and without a yes.

    `yes`: leave out the question. `quiet`: show it only if there is something to be said.
    """
    if not quiet or found.problems or found.warnings or not yes:
        typer.echo(found.text())
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise KetoolsError(f"{found.problems[0]}{more}; nothing was changed")
    if yes:
        return
    try:
        agreed = typer.confirm(f"\nEdit {count:,} facts into {name}?")
    except typer.Abort:
        agreed = False
    if not agreed:
        raise KetoolsError("not confirmed, nothing was changed; --yes leaves out the question")


@contextmanager
def notes() -> "Iterator[None]":
    """Our warnings as lines of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _note
        yield


def _note(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):  # ours; others are for developers
        typer.echo(f"note: {message}", err=True)
