"""Shared by the commands: options, checks of the input before any work, tables, and the confirmation before an edit."""

import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import duration, figures, metric
from ketools.io import parsed

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table

    from ketools.models.model import EditableModel
    from ketools.runs.preflight import Preflight

WIDTH = 100  # of tables, in characters
FAILED = 2  # exit code of a check that found problems
FACTS = '"world", "real", a data set, or a file of facts (.csv, .jsonl, .json, .gz).'
DRAWN = f"{FACTS[:-1]}; default: facts that the model knows."
MODEL = '"pocket", "smollm2", a model folder, or a Hugging Face model id.'
Batch = Annotated[int, typer.Option(min=1, help="Facts per batch.")]
Seed = Annotated[int, typer.Option(help="Decides which facts are drawn, and every random choice.")]
Layers = Annotated[str | None, typer.Option(help="Layers separated by commas, such as 4,5,6; default: the method's.")]
Statistics = Annotated[
    list[Path] | None,
    typer.Option(
        help="Covariance of keys, a file written by `ketools stats`; repeatable, for layers in separate files."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, such as lr=0.1 or layers=1,2; repeatable.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's chat template.")]
Tasks = Annotated[
    str | None,
    typer.Option(help="Downstream tasks: a file of items (.jsonl, .yaml), or lm-eval tasks, separated by commas."),
]
Text = Annotated[str | None, typer.Option(help="File of held-out text for perplexity.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write what is shown to this file.")]
Again = Annotated[bool, typer.Option("--again", help="Discard an earlier job in the folder.")]
Device = Annotated[str | None, typer.Option(help='Device of the model ("cpu", "auto", ...).')]
Dtype = Annotated[str | None, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation; all checks still run.")]


def grid(rows: Iterable[Sequence[str]], heads: Sequence[str] = (), left: int = 1) -> "Table":
    """A table for the terminal: the first `left` columns are left-aligned and may wrap, the others right-aligned and unwrapped."""
    from rich.table import Table

    rows = list(rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(heads), header_style="bold")
    for place in range(len(heads) or max(map(len, rows), default=0)):
        head = heads[place] if heads else ""
        if place < left:
            table.add_column(head, overflow="fold")
        else:
            table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def framed(frame: "pd.DataFrame", left: int = 1) -> "Table":
    """A frame as a table; its first `left` columns are texts, and columns in the glossary are formatted as it says."""

    def shown(name: str) -> Callable[[Any], str]:
        try:
            return metric(name).format
        except KetoolsError:  # not in the glossary
            return figures

    formats = [shown(str(name)) for name in frame.columns]
    rows = [
        [value if isinstance(value, str) else show(value) for value, show in zip(row, formats, strict=True)]
        for row in frame.itertuples(index=False, name=None)
    ]
    return grid(
        rows, ["\n".join(str(name).rsplit("_", 1)) if len(str(name)) > 8 else str(name) for name in frame.columns], left
    )


def show(*parts: "RenderableType") -> None:
    """Print texts and tables below each other, at most `WIDTH` columns wide."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH) if terminal else WIDTH
    console = Console(file=StringIO(), force_terminal=terminal, width=width, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))  # the terminal wraps text, so that paths can be copied
    lines = str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    typer.echo("\n".join(line.rstrip() for line in lines))


def writable(path: Path | None, *inputs: str | Path | None) -> None:
    """Raise now, not after minutes of work, if the file `path` cannot be written or would overwrite one of the `inputs`: a
    file, a file in a run's folder, or an existing file in a model's folder. None: nothing will be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a file in it, such as {path / 'figures.json'}")
    place = Path(os.path.realpath(path))
    from ketools.runs.store import OURS, TOP  # needs torch

    for source in (Path(os.path.realpath(source)) for source in inputs if source is not None):
        name = place.relative_to(source).as_posix() if place.is_relative_to(source) else None
        of_run = (source / "run.json").exists() and (name in TOP or OURS.fullmatch(name or ""))
        of_model = (source / "config.json").exists() and name is not None and place.exists()
        if place == source or of_run or of_model:
            raise KetoolsError(f"{path} is an input and would be overwritten; choose another name")
    if path.exists() and not path.is_file():
        return  # a device or a pipe
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
        raise KetoolsError(f"{option} {text!r}: expected numbers separated by commas, such as 4,5,6") from None


def settings(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """["lr=0.1", "compat=official"] as {"lr": 0.1, "compat": "official"}. Raises KetoolsError naming `option`."""
    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise KetoolsError(f"{option} {pair!r}: expected name=value, such as lr=0.1")
        try:
            values[name.strip()] = parsed(
                f"[{value}]" if re.fullmatch(r"\s*\d+(\s*,\s*\d+)+\s*", value) else value, Any, option
            )
        except KetoolsError:  # a bare word
            values[name.strip()] = value.strip()
    return values


def overrides(layers: str | None, pairs: list[str] | None) -> dict[str, Any]:
    """The settings given by `--set` and `--layers`."""
    return settings(pairs) | ({} if layers is None else {"layers": numbers(layers, "--layers")})


def load_model(name: str, device: str | None, dtype: str | None) -> "EditableModel":
    """Load a model. Raises KetoolsError for an unknown type or device, and as `ketools.load` does."""
    import torch

    from ketools.models.model import load
    from ketools.runs.config import DTYPES

    if dtype not in (None, *DTYPES):
        raise KetoolsError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    return load(name, device=device, dtype=None if dtype is None else getattr(torch, dtype))


def no_loading_bars() -> None:
    """Turn off the progress bars of transformers while it loads a model."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def at_a_terminal() -> bool:
    """Whether someone can answer a question."""
    return sys.stdin.isatty()


_MARKS = {"target": ">{}<", "subject's last": "[{}]*", "subject": "[{}]", "": "{}"}


def findings(preflight: "Preflight") -> "list[RenderableType]":
    """The findings of a preflight, on one screen."""
    about = [*preflight.about.items(), ("edited layers", f"{', '.join(map(str, preflight.layers))}: {preflight.why}")]
    for fact, rows in preflight.tokens.groupby("fact", sort=False):
        tokens = " ".join(_MARKS[row.mark].format(row.token) for row in rows.itertuples())
        about.append((f"tokens of {fact}", tokens))
    parts = preflight.modules[["part", "path", "shape"]].itertuples(index=False)
    blocks: list[RenderableType] = [grid(about, left=2), "", grid(parts, ("part", "path", "shape"), 2)]
    if preflight.costs is not None:
        heads = ("method", "layers", "memory", "set-up", "per edit", "total")
        costs = [
            (row.method, row.layers, f"{row.memory_gib:.2f} GiB", *map(duration, (row.seconds_setup, row.seconds_per_edit, row.seconds)))
            for row in preflight.costs.itertuples()
        ]  # fmt: skip
        blocks += ["", grid(costs, heads, 2), preflight.costs_from]
    trouble = [f"problem: {text}" for text in preflight.problems] + [f"warning: {text}" for text in preflight.warnings]
    return [*blocks, *([""] if trouble else ()), *trouble]


def confirm(preflight: "Preflight", count: int, name: str, yes: bool, quiet: bool) -> None:
    """Show the findings of a preflight and ask for confirmation. Raises KetoolsError for problems, or without a yes.

    `yes`: skip the question. `quiet`: show the findings only if there are problems, warnings, or a question to answer.
    """
    if not quiet or preflight.problems or preflight.warnings or not yes:
        show(*findings(preflight))
    if preflight.problems:
        more = f" (and {len(preflight.problems) - 1} more)" if len(preflight.problems) > 1 else ""
        raise KetoolsError(f"{preflight.problems[0]}{more}; nothing was changed")
    if yes:
        return
    try:
        agreed = typer.confirm(f"\nEdit {count:,} facts into {name}?")
    except typer.Abort as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt("interrupted, nothing was changed") from None
        agreed = False  # nobody can answer
    if not agreed:
        raise KetoolsError("not confirmed, nothing was changed; --yes skips the question")


@contextmanager
def notes() -> Iterator[None]:
    """Show our warnings as one line each; hide those of other libraries, which are for developers."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, UserWarning):
            typer.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
