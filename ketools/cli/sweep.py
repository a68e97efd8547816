"""Many runs: `ketools sweep`, and the paper's own: `ketools reproduce`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli import common
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    from ketools.models.model import EditableModel
    from ketools.runs.config import RunConfig


def sweep(
    config: Annotated[Path, typer.Argument(help="A TOML file with the tables run, grid and, optionally, sample.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the sweep, in place of the file's.")] = None,
    address: Annotated[
        str | None, typer.Option(help='A Ray cluster: "auto" or HOST:PORT; its machines must share the folder.')
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side (needs Ray); default: one for each GPU, or core.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the runs and how far each is; start nothing.")] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Make a run for every combination of methods, settings, seeds, models or facts, or for a random sample of them.

    Everything is checked before the first run. Interrupt it with Ctrl-C; run it again to resume. `ketools status`, `compare`
    and `report` take the folder.
    """
    from ketools.runs.grid import Sweep, carry_out

    asked = Sweep.read(config, out)
    if json is not None:
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
        str, typer.Option(help="gpt2-xl, llama-2-7b, llama-3-8b, smollm2, or a folder with such a model.")
    ],
    edits: Annotated[int | None, typer.Option(min=1, help="Default: 10,000; on smollm2 2,400, the same load.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; default: build/reproduce/METHOD-MODEL.")] = None,
    facts: Annotated[str, typer.Option(help='"counterfact" or "zsre" (ketools data get), or a file.')] = "counterfact",
    tasks: Annotated[str, typer.Option(help="Downstream tasks, as for `ketools run`.")] = "paper",
    text: Annotated[str, typer.Option(help="Running text for the covariance, where there is none.")] = "wikipedia",
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
    from ketools.cli.run import execute
    from ketools.runs.config import composed
    from ketools.runs.reproduce import asked, beside

    if json is not None:
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
