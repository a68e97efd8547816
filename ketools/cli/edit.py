"""One's own model and facts: `ketools methods`, `inspect`, `edit`, `stats`."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli import common
from ketools.errors import KetoolsError
from ketools.io import write_json

if TYPE_CHECKING:
    import pandas as pd

    from ketools.editing import covariance
    from ketools.models.model import EditableModel

SHOWN = 20  # facts in the printed table
TEXT = 'Text for the covariance of keys: a file, "world", "wikitext" or "wikipedia".'
OWN = "covariance.safetensors"  # in a model's folder
LENGTH, EVERY = 256, 100_000  # tokens: the longest part of a text that counts, and how often the sum is saved
Model = Annotated[str, typer.Argument(help=common.MODEL)]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's equation, choices and settings.")] = None,
    model: Annotated[str | None, typer.Option(help="Show the settings for this model (name or folder).")] = None,
) -> None:
    """List the editing methods, or describe one."""
    from ketools.editing import methods as known

    if name is None:
        if model is not None:
            raise KetoolsError(f"--model {model} without a method; name one of those that `ketools methods` lists")
        typer.echo(known.methods().to_string(index=False))
        return
    method = known.method(name)  # a misspelt method is reported before a model is loaded
    typer.echo(method.describe() if model is None else method.describe(common.load_model(model, None, None)))


def inspect(
    model: Model,
    facts: Annotated[str | None, typer.Argument(help=common.FACTS)] = None,
    method: Annotated[str | None, typer.Option(help="Look as this method would edit; default: all methods.")] = None,
    layers: common.Layers = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Facts per batch; default: all.")] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Estimate the cost of so many edits.")] = None,
    set_: common.Settings = None,
    chat: common.Chat = False,
    json: Annotated[Path | None, typer.Option(help="Also write the findings to this file.")] = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Look before editing: a model's parts and sizes, how it reads the facts, costs, and problems.

    Exit code 0: it can be edited; 2: a fact or the model would be refused.
    """
    chosen = common.overrides(layers, set_)
    if json is not None:
        common.writable(json, model, facts)
    from ketools.facts.reading import facts as read_facts
    from ketools.runs import preflight

    known = read_facts(facts) if facts is not None else None
    findings = preflight.inspect(
        common.load_model(model, device, dtype), known, method, batch=batch, edits=edits, chat=chat, **chosen
    )
    typer.echo(findings.text())
    if json is not None:
        write_json(json, findings.to_dict())
    if findings.problems:
        raise typer.Exit(common.FAILED)


def edit(
    model: Annotated[str, typer.Option(help=common.MODEL)],
    facts: Annotated[str, typer.Option(help=common.FACTS)],
    out: Annotated[Path, typer.Option(help="Folder for the edit and its report.")],
    method: Annotated[str, typer.Option(help="`ketools methods` lists them.")] = "encore",
    limit: Annotated[int | None, typer.Option(min=1, help="Edit only the first so many facts.")] = None,
    batch: common.Batch = 50,
    layers: common.Layers = None,
    set_: common.Settings = None,
    chat: common.Chat = False,
    seed: common.Seed = 0,
    text: Annotated[str | None, typer.Option(help=TEXT)] = None,
    statistics: common.Statistics = None,
    export: Annotated[bool, typer.Option("--export", help="Also write the edited model, to OUT/model.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the measures to this file.")] = None,
    yes: common.Yes = False,
    again: Annotated[bool, typer.Option("--again", help="Discard an earlier job in the folder.")] = False,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Edit facts into a model: check, ask, edit batch after batch, report.

    Interrupt it with Ctrl-C; run it again to resume.
    """
    chosen = common.overrides(layers, set_)
    if text is not None and statistics:
        raise KetoolsError("--text and --statistics are two ways to the covariance; give one")
    for path in (out / "edit.safetensors", *([json] if json is not None else [])):
        common.writable(path, model, facts, text, *(statistics or ()))
    from ketools.runs.store import Store

    Store(out).check_files()
    from ketools.editing.covariance import Statistics as Covariance
    from ketools.editing.methods import method as named_method
    from ketools.facts.reading import facts as read_facts
    from ketools.models.tokens import in_chat
    from ketools.runs import preflight
    from ketools.runs.config import check_seed
    from ketools.runs.run import advice, edit_facts

    known, chosen_method = read_facts(facts)[:limit], named_method(method)
    check_seed(seed)
    if export and not again and (out / "model").exists():
        raise KetoolsError(f"{out / 'model'} exists already; --again discards it, or give another --out")
    loaded = common.load_model(model, device, dtype)
    from_text = chosen_method.needs_statistics and text is not None
    given = stored_covariance(loaded, statistics) if chosen_method.needs_statistics and not from_text else None
    findings = preflight.inspect(
        loaded, known, chosen_method, batch=batch, chat=chat, statistics=text is not None or given is not None, **chosen
    )
    if given is not None:
        given.of(loaded, findings.layers)
    common.confirm(findings, len(known), loaded.name, yes, quiet)
    if again:
        discard(out)
    if from_text:
        assert text is not None
        path = out / "statistics.safetensors"
        if path.is_file():  # left by an interrupted job
            given = Covariance.load(path).of(loaded, findings.layers)
        else:
            given = compute_covariance(loaded, findings.layers, text, path, None, LENGTH, EVERY, quiet)
    made, report = edit_facts(
        loaded,
        in_chat(loaded, known) if chat else known,
        chosen_method,
        out,
        batch=batch,
        seed=seed,
        statistics=given,
        overrides=chosen,
        progress=not quiet,
    )

    measures = {
        "facts": len(report),
        "said_before": float(report["before_efficacy_accuracy"].mean()),
        "said_after": float(report["after_efficacy_accuracy"].mean()),
        "p_new_before": float(report["before_p_new"].mean()),
        "p_new_after": float(report["after_p_new"].mean()),
    }
    typer.echo(edit_table(report))
    if len(report) > SHOWN:
        typer.echo(f"... and {len(report) - SHOWN} more in {out / 'facts.parquet'}")
    if "after_locality_unchanged" in report:
        kept = {name: float(report[f"after_locality_{name}"].mean()) for name in ("unchanged", "accuracy")}
        measures |= {f"locality_{name}": value for name, value in kept.items()}
        typer.echo(
            f"\nPrompts that were to stay: {kept['unchanged']:.1%} of the outputs are unchanged, {kept['accuracy']:.1%} are right."
        )
    typer.echo(
        f"\nThe new object is the top answer for {measures['said_after']:.1%} of {len(report):,} facts "
        f"(before: {measures['said_before']:.1%}).\nEdit: {out / 'edit.safetensors'}"
    )
    if (note := advice(made, report, chosen_method)) is not None:
        typer.echo(f"note: {note}")
    if json is not None:
        write_json(json, measures)
        typer.echo(f"Figures: {json}")
    if export:
        typer.echo(f"Model: {loaded.export(out / 'model')}")


def edit_table(report: "pd.DataFrame") -> str:
    """The first facts with the probability of the new object before and after."""
    rows = report[["id", "prompt", "target_new", "before_p_new", "after_p_new", "after_efficacy_accuracy"]]
    rows = rows.rename(columns={"before_p_new": "before", "after_p_new": "after", "after_efficacy_accuracy": "said"})
    return rows.head(SHOWN).to_string(index=False, float_format="{:.3f}".format)


def discard(out: Path) -> None:
    """Remove what an earlier `ketools edit` wrote to `out`, and nothing else."""
    from ketools.runs.store import About, Store, read_sealed

    store = Store(out)
    if not store.exists():
        return
    if read_sealed(out / "run.json", About)["settings"].get("kind") != "edit":  # not its copy: this is what is removed
        raise KetoolsError(f"{out} holds the run of another command; give another --out")
    if (out / "model" / "ketools.json").is_file():  # which `export` wrote
        shutil.rmtree(out / "model")
    store.clear()


def stats(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file to write (.safetensors).")],
    text: Annotated[str | None, typer.Option(help=TEXT)] = None,
    npz: Annotated[
        list[str] | None, typer.Option(help="Import published moments instead: LAYER=FILE.npz; repeatable.")
    ] = None,
    layers: common.Layers = None,
    method: Annotated[str, typer.Option(help="Whose layers, without --layers.")] = "encore",
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read; default: ten times d_mlp.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Read at most so many tokens of each text.")] = LENGTH,
    every: Annotated[int, typer.Option(min=1, help="Save intermediate results after so many tokens.")] = EVERY,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Compute the covariance of a model's keys over running text, all layers in one pass.

    Interrupt it with Ctrl-C; run it again to resume.
    """
    if (text is None) == (not npz):
        raise KetoolsError("give either --text (to compute) or --npz (to import)")
    common.writable(out, None if out.name == OWN else model, text, *(item.partition("=")[2] for item in npz or ()))
    if out.is_file():
        from ketools.editing.covariance import Statistics

        Statistics.load(out)  # anything else is not overwritten
    files: dict[int, str] = {}
    for item in npz or ():
        layer, _, path = item.partition("=")
        if not (layer.strip().isdigit() and path):
            raise KetoolsError(f"--npz {item!r}: expected LAYER=FILE.npz, such as 17=layer17.npz")
        files[int(layer)] = path
    chosen = common.numbers(layers, "--layers")
    loaded = common.load_model(model, device, dtype)
    if text is None:
        from ketools.editing.covariance import import_moments

        import_moments(loaded, files).save(out)
    else:
        from ketools.editing.methods import method as named_method

        chosen = chosen or named_method(method).settings(loaded).layers
        assert chosen is not None
        compute_covariance(loaded, chosen, text, out, tokens, length, every, quiet)
    typer.echo(f"Covariance: {out}")


def stored_covariance(model: "EditableModel", files: list[Path] | None) -> "covariance.Statistics":
    """The covariance in `files`, else the one in the model's folder; KetoolsError if there is none."""
    from ketools.editing.covariance import Statistics, load_statistics, own_file

    if files:
        return Statistics.load(os.pathsep.join(map(str, files))).of(model, ())
    if own_file(model) is None:
        raise KetoolsError(
            f"model {model.name!r} comes without the covariance of its keys; give running text (--text FILE) or a file "
            "that `ketools stats` wrote (--statistics FILE), or a method that needs none (ultraedit, ft, lora)"
        )
    return load_statistics(model)


def compute_covariance(
    model: "EditableModel",
    layers: tuple[int, ...],
    text: str,
    out: Path,
    tokens: int | None,
    length: int,
    every: int,
    quiet: bool,
) -> "covariance.Statistics":
    """Compute, save to `out`, and return what the file holds; partial sums are kept beside it on Ctrl-C."""
    from tqdm.auto import tqdm

    from ketools.editing.covariance import Statistics, corpus, default_tokens

    source, part = corpus(text), out.with_name(f"{out.name}.part")
    total = default_tokens(model) if tokens is None else tokens
    try:
        with tqdm(total=total, unit="token", unit_scale=True, desc="covariance", disable=quiet) as bar:
            statistics = Statistics.compute(
                model,
                source,
                layers,
                total,
                length=length,
                corpus=source.name,
                progress=bar.update,
                partial=part,
                every=every,
            )
    except KeyboardInterrupt as interrupt:
        kept = f"partial sums are kept in {part}" if part.is_file() else "nothing is kept yet"
        raise KeyboardInterrupt(f"interrupted; {kept}") from interrupt
    statistics.save(out)
    part.unlink(missing_ok=True)
    return Statistics.load(out)  # rounded as in the file, which is what a resumed job will read
