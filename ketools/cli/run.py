"""Long runs: `ketools run`, `status`, `resume`, `export`, `runs verify`.

Mistakes travel as KetoolsError; the program around these commands turns them into one line and exit code 2.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.cli.common import at_a_terminal, confirm, load_model, notes, settings
from ketools.evaluation.metrics import MISSING, metric

if TYPE_CHECKING:
    from ketools.facts.fact import FactSet
    from ketools.models.model import EditableModel
    from ketools.runs.config import RunConfig
    from ketools.runs.store import RunRecord


_BAD = 2
_SHOWN = (
    "ES", "PS", "NS", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "norm_ratio",
)  # fmt: skip

runs_app = typer.Typer(help="Look after the folders of runs.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Go on with other settings, covariance or versions: the result is that of neither run."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; checks are made all the same.")]


def run(
    config: Annotated[Path | None, typer.Argument(help="A config in TOML; options below win over it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run.")] = None,
    method: Annotated[str | None, typer.Option(help='Such as "encore", or "memit+mpes".')] = None,
    model: Annotated[
        str | None, typer.Option(help="A pocket model, the folder of a model, or an id of the hub.")
    ] = None,
    facts: Annotated[str | None, typer.Option(help='"world", a data set, or a file of facts.')] = None,
    edits: Annotated[int | None, typer.Option(help="How many facts to edit.")] = None,
    batch: Annotated[int | None, typer.Option(help="Facts per batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which facts, and every random choice.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Edits between two checkpoints.")] = None,
    conflicts: Annotated[
        str | None, typer.Option(help='Of facts that contradict each other: "last wins" or "refuse".')
    ] = None,
    statistics: Annotated[Path | None, typer.Option(help="The covariance, a file that `ketools stats` wrote.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, such as lr=0.1; repeatable.")
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", help="How much to measure, such as spectra=false; repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option(help='Where the model goes ("cpu", "auto", ...).')] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")] = None,
    force: Force = False,
    yes: Yes = False,
    quiet: Quiet = False,
) -> None:
    """Edit thousands of facts, batch after batch, and measure what becomes of the model.

    Model and facts are looked at first, with what the run will cost; asked is only who sits at a terminal. Every batch is
    kept. Stopped or killed, the same command (or `ketools resume`) goes on where it stopped.
    """
    from ketools.runs.config import RunConfig

    made = RunConfig.read(config) if config is not None else RunConfig()
    texts = {name: None if value is None else str(value) for name, value in (("out", out), ("statistics", statistics))}
    made = made.changed(
        method=method, model=model, facts=facts, edits=edits, batch=batch, seed=seed, checkpoint_every=checkpoint_every,
        conflicts=conflicts, settings=settings(set_ or []), measures=settings(measure or [], "--measure"), device=device,
        dtype=dtype, **texts,
    )  # fmt: skip
    _execute(made, force, yes, quiet)


def resume(folder: Folder, force: Force = False, quiet: Quiet = False) -> None:
    """Go on with a run where it stopped; batches that were damaged on disk are named and done again."""
    from ketools.runs.resume import config_of

    _execute(config_of(folder), force, True, quiet)


def status(folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")]) -> None:
    """How far runs are, what they cost, and what their last checkpoints say."""
    from ketools.runs.store import status as look

    typer.echo("\n\n".join(_told(folder, look(folder)) for folder in folders))


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A new folder, for the model.")],
    at: Annotated[int, typer.Option(min=1, help="The model after so many edits (the end of a batch).")],
) -> None:
    """Write the model as it was after so many edits, to the bit, as a folder that transformers loads."""
    from ketools.runs.resume import export_at, model_of

    about = model_of(folder)
    typer.echo(f"Model: {export_at(folder, at, out, load_model(about['model'], about['device'], about['dtype']))}")


@runs_app.command()
def verify(folder: Folder) -> None:
    """Compare every file of a run with its checksum. Exit code 0: all is sound; 2: something is damaged (named)."""
    from ketools.runs.store import survey

    found = survey(folder)
    typer.echo(found.text())
    if not found.sound:
        raise typer.Exit(_BAD)


def _execute(config: "RunConfig", force: bool, yes: bool, quiet: bool) -> None:
    from ketools.runs.run import execute, ready

    with notes():
        facts = ready(config)
    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
    model = load_model(config.model, config.device, config.dtype)
    _looked(config, model, facts, yes, quiet)
    with notes():
        record = execute(config, model, facts, force=force, progress=not quiet)
    typer.echo(_ended(config, record))


def _looked(config: "RunConfig", model: "EditableModel", facts: "FactSet", yes: bool, quiet: bool) -> None:
    from ketools.runs import preflight
    from ketools.runs.config import composed
    from ketools.runs.store import Store

    if Store(Path(config.out)).exists():  # it passed these checks when it began
        return
    found = preflight.inspect(
        model, facts.sample(config.edits, config.seed), composed(config.method), batch=config.batch, edits=config.edits,
        statistics=config.statistics is not None, trial=not quiet, **config.settings,
    )  # fmt: skip
    confirm(found, config.edits, config.model, yes or not at_a_terminal(), quiet)


def _ended(config: "RunConfig", record: "RunRecord") -> str:
    lines = []
    if record.collapse is not None:
        lines.append(_collapsed(record.collapse))
    if left_out := record.provenance.get("settings", {}).get("left_out", 0):
        lines.append(f"{left_out:,} facts that contradict later ones were left out before the draw")
    if len(record.checkpoints):
        last = record.checkpoints.iloc[-1].to_dict()
        lines += [f"after {int(last['edits']):,} edits with {config.method} on {config.model}:", *_figures(last)]
    return "\n".join([*lines, f"Run: {config.out}"])


def _collapsed(collapse: dict[str, Any]) -> str:
    return (
        f"collapsed at edits {collapse['first']:,} to {collapse['last']:,} (batch {collapse['batch']}): {collapse['why']}; "
        f"the model of the {collapse['edits']:,} edits before is kept"
    )


def _figures(checkpoint: dict[str, Any]) -> list[str]:
    measured = [row for row in map(metric, _SHOWN) if row.format(checkpoint.get(row.key)) != MISSING]
    width = max(len(metric(key).label) for key in _SHOWN)
    return [f"  {row.label:<{width}}  {row.format(checkpoint[row.key])}" for row in measured]


def _told(folder: Path, now: dict[str, Any]) -> str:
    lines = [
        f"{folder}: {now['state']}, {now['edits']:,} of {now['edits_asked']:,} edits with {now['method']} on {now['model']}"
        f"{' (tables without weights)' if now['light'] else ''}"
    ]
    if now["collapse"]:
        lines.append(_collapsed(now["collapse"]))
    if now["seconds_per_edit"] is not None:
        left = f", about {now['seconds_left'] / 60:,.0f} minutes left" if now["seconds_left"] else ""
        lines.append(f"time: {now['seconds_per_edit']:.3f} s per edit lately, with scoring{left}")
    used = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sorted(now["bytes"].items(), key=lambda i: -i[1]))
    end = f"; about {now['bytes_at_end'] / 1e6:,.1f} MB at the end" if now["bytes_at_end"] else ""
    lines.append(f"disk: {sum(now['bytes'].values()) / 1e6:,.1f} MB ({used}){end}")
    if now["known"]:
        lines.append(f"{now['known']:,} facts needed no edit, their target was the top answer already")
    for forced in now["forced"]:
        lines.append(f"forced after batch {forced['after_batch']}: other {', '.join(forced['changed'])} from there on")
    if now["checkpoint"]:
        lines += [f"last checkpoint, after {int(now['checkpoint']['edits']):,} edits:", *_figures(now["checkpoint"])]
    return "\n".join(lines)
