"""The commands on one's own model and facts: `ketools inspect`, `ketools edit`, `ketools stats`.

Mistakes travel as KetoolsError; the program around these commands turns them into one line and exit code 2.
"""

import json as json_text
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.cli.common import confirm, load_model, npz_files, numbers, settings, writable
from ketools.errors import KetoolsError
from ketools.io import write_json

if TYPE_CHECKING:
    import pandas as pd

    from ketools.editing.covariance import Statistics
    from ketools.editing.methods import Method
    from ketools.facts.fact import FactSet
    from ketools.models.model import EditableModel


_BAD = 2
_SHOWN = 20  # facts in the printed table

Model = Annotated[str, typer.Argument(help="A pocket model, the folder of a model, or an id of the hub.")]
Layers = Annotated[str | None, typer.Option(help="Layers with commas, such as 4,5,6; the method's if not given.")]
Device = Annotated[str | None, typer.Option(help='Where the model goes ("cpu", "auto", ...).')]
Dtype = Annotated[str | None, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting of the method, such as lr=0.1; repeatable.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def inspect(
    model: Model,
    facts: Annotated[str | None, typer.Argument(help='"world", a data set, or a file of facts.')] = None,
    method: Annotated[str | None, typer.Option(help="As this method would edit; costs of all if not given.")] = None,
    layers: Layers = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Facts per batch; all if not given.")] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Estimate the costs of so many edits.")] = None,
    set_: Set = None,
    json: Annotated[Path | None, typer.Option(help="Also write all of it to this file.")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Look before editing: parts and sizes of a model, how facts read to it, costs, and what is wrong.

    Exit code 0: it can be edited; 2: a fact or the model would be refused.
    """
    chosen = _overrides(layers, set_)
    if json is not None:
        writable(json)
    known = _facts(facts, None) if facts is not None else None
    from ketools.runs import preflight

    found = preflight.inspect(load_model(model, device, dtype), known, method, batch=batch, edits=edits, **chosen)
    typer.echo(found.text())
    if json is not None:
        write_json(json, found.to_dict())
    if found.problems:
        raise typer.Exit(_BAD)


def edit(
    model: Annotated[str, typer.Option(help="A pocket model, the folder of a model, or an id of the hub.")],
    facts: Annotated[str, typer.Option(help='"world", a data set, or a file of facts (.csv, .jsonl, .json).')],
    out: Annotated[Path, typer.Option(help="Folder for the edit and its report.")],
    method: Annotated[str, typer.Option(help="`ketools methods` lists them.")] = "encore",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many facts, the first of the file.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Facts per batch.")] = 50,
    layers: Layers = None,
    set_: Set = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    text: Annotated[str | None, typer.Option(help='Text for the covariance: a file, "wikitext", "wikipedia".')] = None,
    statistics: Annotated[Path | None, typer.Option(help="The covariance, a file that `ketools stats` wrote.")] = None,
    export: Annotated[bool, typer.Option("--export", help="Also write the edited model, to OUT/model.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; checks are made all the same.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Throw away what an earlier job left in the folder.")] = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Edit facts into a model: check, ask, edit batch after batch, report.

    Stopped with Ctrl-C, the same command goes on where it stopped.
    """
    chosen = _overrides(layers, set_)
    _early(out, json, text, statistics)
    known = _facts(facts, limit)
    from ketools.editing.methods import method as named_method
    from ketools.runs.config import check_seed
    from ketools.runs.run import advice, edit_facts

    how = named_method(method)
    check_seed(seed)
    if export and not again and (out / "model").exists():
        raise KetoolsError(f"{out / 'model'} is there already; --again makes the job anew, or give another --out")
    loaded = load_model(model, device, dtype)
    covariance = _stored(loaded, statistics) if how.needs_statistics and text is None else None
    where = _agreed(loaded, known, how, batch, covariance, text, chosen, yes, quiet)
    if again:
        _clear(out)
    if how.needs_statistics and text is not None:
        covariance = _from_text(loaded, where, text, out / "statistics.safetensors", quiet)
    made, report = edit_facts(
        loaded, known, how, out, batch=batch, seed=seed, statistics=covariance, overrides=chosen, progress=not quiet
    )
    _finish(loaded, report, out, export, json, advice(made, report, how))


def stats(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file to write (.safetensors).")],
    text: Annotated[str | None, typer.Option(help='A text file, "world", "wikitext" or "wikipedia".')] = None,
    npz: Annotated[
        list[str] | None, typer.Option(help="Import published moments instead: LAYER=FILE.npz; repeatable.")
    ] = None,
    layers: Layers = None,
    method: Annotated[str, typer.Option(help="Whose layers, if --layers is not given.")] = "encore",
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read; ten times d_mlp if not given.")] = None,
    length: Annotated[int, typer.Option(min=1, help="A text counts up to so many tokens.")] = 256,
    every: Annotated[int, typer.Option(min=1, help="Keep what is done after so many tokens.")] = 100_000,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Covariance of a model's keys over running text, for all layers in one pass; stopped, it goes on when called again."""
    if (text is None) == (not npz):
        raise KetoolsError("give either --text (to compute) or --npz (to import)")
    writable(out)
    files = npz_files(npz or [])
    chosen = numbers(layers, "--layers")
    loaded = load_model(model, device, dtype)
    if text is None:
        from ketools.editing.covariance import import_moments

        import_moments(loaded, files).save(out)
    else:
        from ketools.editing.methods import method as named_method

        wanted = chosen or named_method(method).settings(loaded).layers
        assert wanted is not None
        _computed(loaded, wanted, text, out, tokens, length, every, quiet)
    typer.echo(f"Covariance: {out}")


def _early(out: Path, json: Path | None, text: str | None, statistics: Path | None) -> None:
    # What can be said before a model is read.
    if text is not None and statistics is not None:
        raise KetoolsError("--text and --statistics are two ways to the covariance; give one")
    for path in (out / "edit.safetensors", *([json] if json is not None else [])):
        writable(path)


def _overrides(layers: str | None, given: list[str] | None) -> dict[str, Any]:
    chosen = settings(given or [])
    return chosen if layers is None else chosen | {"layers": numbers(layers, "--layers")}


def _facts(source: str, limit: int | None) -> "FactSet":
    from ketools.facts.reading import facts as read_facts

    known = read_facts(source)
    return known if limit is None else known[:limit]


def _agreed(
    model: "EditableModel",
    known: "FactSet",
    how: "Method",
    batch: int,
    covariance: "Statistics | None",
    text: str | None,
    chosen: dict[str, Any],
    yes: bool,
    quiet: bool,
) -> tuple[int, ...]:
    """The layers to be edited, once all checks are passed and the question is answered."""
    from ketools.runs import preflight

    at_hand = text is not None or covariance is not None
    found = preflight.inspect(model, known, how, batch=batch, statistics=at_hand, **chosen)
    if covariance is not None:
        covariance.of(model, found.layers)
    confirm(found, len(known), model.name, yes, quiet)
    return found.layers


def _clear(out: Path) -> None:
    # Only what `edit` itself wrote: the folder may be that of another command.
    if not (out / "run.json").is_file():
        return
    if json_text.loads((out / "run.json").read_text(encoding="utf-8")).get("settings", {}).get("kind") != "edit":
        raise KetoolsError(f"{out} holds the run of another command; give another --out")
    for name in ("batches", "edits", "state", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("run.json", "progress.json", "edit.safetensors", "facts.parquet"):
        (out / name).unlink(missing_ok=True)


def _stored(model: "EditableModel", file: Path | None) -> "Statistics":
    from ketools.editing.covariance import Statistics, load_statistics, own_file

    if file is not None:
        return Statistics.load(file).of(model, ())
    if own_file(model) is None:
        raise KetoolsError(
            f"model {model.name!r} comes without the covariance of its keys; give running text (--text FILE) or a file "
            "that `ketools stats` wrote (--statistics FILE), or a method that needs none (ultraedit, ft, lora)"
        )
    return load_statistics(model)


def _from_text(model: "EditableModel", layers: tuple[int, ...], text: str, made: Path, quiet: bool) -> "Statistics":
    from ketools.editing.covariance import Statistics

    if made.is_file():  # of a job that was stopped
        return Statistics.load(made).of(model, layers)
    return _computed(model, layers, text, made, None, 256, 100_000, quiet)


def _computed(
    model: "EditableModel",
    layers: tuple[int, ...],
    text: str,
    out: Path,
    tokens: int | None,
    length: int,
    every: int,
    quiet: bool,
) -> "Statistics":
    from tqdm.auto import tqdm

    from ketools.editing.covariance import Statistics, corpus, default_tokens

    source, part = corpus(text), out.with_name(f"{out.name}.part")
    total = default_tokens(model) if tokens is None else tokens
    try:
        with tqdm(total=total, unit="token", unit_scale=True, desc="covariance", disable=quiet) as bar:
            found = Statistics.compute(
                model, source, layers, total, length=length, corpus=source.name, progress=bar.update, partial=part,
                every=every,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        kept = f"what was read is kept in {part}" if part.is_file() else "nothing is kept yet"
        raise KeyboardInterrupt(f"stopped; {kept}") from stop
    found.save(out)
    part.unlink(missing_ok=True)
    return Statistics.load(out)  # as rounded in the file: what a job that goes on will read


def _finish(
    model: "EditableModel", report: "pd.DataFrame", out: Path, export: bool, json: Path | None, advice: str | None
) -> None:
    figures = {
        "facts": len(report),
        "said_before": float(report["before_efficacy_accuracy"].mean()),
        "said_after": float(report["after_efficacy_accuracy"].mean()),
        "p_new_before": float(report["before_p_new"].mean()),
        "p_new_after": float(report["after_p_new"].mean()),
    }
    rows = report[["id", "prompt", "target_new", "before_p_new", "after_p_new", "after_efficacy_accuracy"]]
    rows = rows.rename(columns={"before_p_new": "before", "after_p_new": "after", "after_efficacy_accuracy": "said"})
    typer.echo(rows.head(_SHOWN).to_string(index=False, float_format="{:.3f}".format))
    if len(rows) > _SHOWN:
        typer.echo(f"... and {len(rows) - _SHOWN} more in {out / 'facts.parquet'}")
    typer.echo(
        f"\nThe new object is the top answer for {figures['said_after']:.1%} of {len(report):,} facts "
        f"(before: {figures['said_before']:.1%}).\nEdit: {out / 'edit.safetensors'}"
    )
    if advice is not None:
        typer.echo(f"note: {advice}")
    if json is not None:
        write_json(json, figures)
        typer.echo(f"Figures: {json}")
    if export:
        typer.echo(f"Model: {model.export(out / 'model')}")
