"""Your own model and facts: `ketools methods`, `inspect`, `edit`, `ask`, `stats`."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketools.cli import common
from ketools.cli.run import CHECKPOINT_ROWS, checkpoint_table
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric
from ketools.io import joined_paths, knows_world, write_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ketools.editing import covariance
    from ketools.models.model import EditableModel

SHOWN = 20  # facts in the printed table
TEXT = 'Text for the covariance of keys: a file, "world", "wikitext" or "wikipedia".'
OWN = "covariance.safetensors"  # in a model's folder
LENGTH, EVERY = 256, 100_000  # tokens: how much of each text is read, and how often the sum is saved
Model = Annotated[str, typer.Argument(help=common.MODEL)]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's equation, choices and settings.")] = None,
    model: Annotated[str | None, typer.Option(help="Show the settings for this model (name or folder).")] = None,
    json: common.Json = None,
) -> None:
    """List the editing methods, or describe one."""
    from ketools.editing import methods as known
    from ketools.runs.config import composed

    common.writable(json, model)

    if name is None:
        if model is not None:
            raise KetoolsError(f"--model {model} without a method; name one that `ketools methods` lists")
        rows = known.methods().drop(columns="post").astype(str)
        common.show(common.grid(rows.itertuples(index=False), [*rows.columns], 5))
        if json is not None:
            write_json(json, known.methods().to_dict("records"))
        return
    method = composed(name)  # a misspelt method is reported before a model is loaded
    loaded = None if model is None else common.load_model(model, None, None)
    typer.echo(method.describe(loaded))
    if json is not None:
        hyper = known.scaled(method.name, method.hyper) if loaded is None else method.settings(loaded)
        write_json(json, {"name": method.name, "settings": vars(hyper)})


def inspect(
    model: Model,
    facts: Annotated[str | None, typer.Argument(help=common.FACTS)] = None,
    method: Annotated[str | None, typer.Option(help="Check for this method; default: all methods.")] = None,
    layers: common.Layers = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Facts per batch; default: all.")] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Estimate the cost of this many edits.")] = None,
    set_: common.Settings = None,
    chat: common.Chat = False,
    json: common.Json = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Inspect a model before editing: its parts and sizes, how it tokenizes the facts, costs, and problems.

    Exit code 0: it can be edited; 2: a fact or the model would be refused.
    """
    chosen = common.overrides(layers, set_)
    common.writable(json, model, facts)
    from ketools.facts.reading import facts as read_facts
    from ketools.runs import preflight
    from ketools.runs.config import settled

    with common.notes():
        known = settled(read_facts(facts)) if facts is not None else None
    findings = preflight.inspect(
        common.load_model(model, device, dtype), known, method, batch=batch, edits=edits, chat=chat, **chosen
    )
    common.show(*common.findings(findings))
    if json is not None:
        write_json(json, findings.to_dict())
    if findings.problems:
        raise typer.Exit(common.FAILED)


def edit(
    model: Annotated[str, typer.Option(help=common.MODEL)],
    facts: Annotated[str, typer.Option(help=common.FACTS)],
    out: Annotated[Path, typer.Option(help="Folder for the edit and its report.")],
    method: Annotated[str | None, typer.Option(help="`ketools methods` lists them; default: encore.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Method and settings, as `ketools tune` writes them (TOML).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Edit only the first facts, at most this many.")] = None,
    batch: common.Batch = 50,
    layers: common.Layers = None,
    set_: common.Settings = None,
    chat: common.Chat = False,
    seed: common.Seed = 0,
    text: Annotated[str | None, typer.Option(help=TEXT)] = None,
    statistics: common.Statistics = None,
    export: Annotated[bool, typer.Option("--export", help="Also write the edited model, to OUT/model.")] = False,
    json: common.Json = None,
    yes: common.Yes = False,
    again: common.Again = False,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Edit facts into a model in batches, and show the effect on the facts and on the rest of the model.

    Asks for confirmation only in an interactive terminal. Interrupt it with Ctrl-C; run it again to resume. `ketools status`,
    `report`, `compare`, `ask` and `export` accept OUT.
    """
    from ketools.runs.config import RunConfig, check_seed, composed, settled

    base = RunConfig() if settings is None else RunConfig.read(settings)
    chosen, chat = {**base.settings, **common.overrides(layers, set_)}, chat or base.chat
    if base.statistics and text is None:
        statistics = statistics or [Path(part) for part in joined_paths(base.statistics)]
    if text is not None and statistics:
        raise KetoolsError("--text and --statistics both determine the covariance; give one")
    for path in (out / "edit.safetensors", json):
        common.writable(path, model, facts, text, *(statistics or ()))
    from ketools.runs.store import Store

    Store(out).check_files()
    from ketools.editing.covariance import Statistics as Covariance
    from ketools.evaluation.downstream import load_heldout
    from ketools.facts.reading import facts as read_facts
    from ketools.models.tokens import in_chat
    from ketools.runs import preflight
    from ketools.runs.run import EDIT_SIZES, advice, edit_facts
    from ketools.runs.store import RunRecord

    chosen_method = composed(method or base.method)
    with common.notes():
        known = settled(read_facts(facts))[:limit]
    check_seed(seed)
    if export and not again and (out / "model").exists():
        raise KetoolsError(f"{out / 'model'} exists already; --again discards it, or give another --out")
    loaded = common.load_model(model, device, dtype)
    source = text if chosen_method.needs_statistics else None
    given = stored_covariance(loaded, statistics) if chosen_method.needs_statistics and source is None else None
    findings = preflight.inspect(
        loaded, known, chosen_method, batch=batch, chat=chat, statistics=text is not None or given is not None, **chosen
    )
    path = out / "statistics.safetensors"
    if given is not None:
        given.of(loaded, findings.layers)
    elif source is not None and path.is_file():  # left by an earlier job, which may have been interrupted
        there = Covariance.load(path)
        try:
            refuse_other_text(path, there.provenance, source)
            given = there.of(loaded, findings.layers)
        except KetoolsError:
            if not again:
                raise
    common.confirm(findings, len(known), loaded.name, yes or not common.at_a_terminal(), quiet)
    if again:
        discard(out)
    if source is not None and given is None:
        given = compute_covariance(loaded, findings.layers, source, path, None, LENGTH, EVERY, quiet)
    # Without held-out text, perplexity is measured on the text behind C, which still shows damage.
    beside = loaded.path is not None and (loaded.path / "heldout.txt").is_file()
    own = text if text is not None and Path(text).is_file() and not beside and not knows_world(model) else None
    with common.notes():
        made, report = edit_facts(
            loaded, in_chat(loaded, known) if chat else known, chosen_method, out, batch=batch, seed=seed,
            statistics=given, overrides=chosen, progress=not quiet,
            texts=None if own is None else load_heldout(own, EDIT_SIZES.documents),
        )  # fmt: skip

    measures = {
        "facts": len(report),
        "said_before": float(report["before_efficacy_accuracy"].mean()),
        "said_after": float(report["after_efficacy_accuracy"].mean()),
        "p_new_before": float(report["before_p_new"].mean()),
        "p_new_after": float(report["after_p_new"].mean()),
    }
    common.show(edit_table(report))
    if len(report) > SHOWN:
        typer.echo(f"... and {len(report) - SHOWN} more in {out / 'report.parquet'}")
    record = RunRecord.load(out)
    common.show("", checkpoint_table(record))
    point = record.checkpoints.iloc[-1]
    measures |= {row: float(point[row]) for row in CHECKPOINT_ROWS if row in point}
    if "after_locality_unchanged" in report:
        kept = {name: float(report[f"after_locality_{name}"].mean()) for name in ("unchanged", "accuracy")}
        measures |= {f"locality_{name}": value for name, value in kept.items()}
        typer.echo(
            f"\nLocality prompts: {kept['unchanged']:.1%} of the outputs are unchanged, {kept['accuracy']:.1%} are right."
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


def edit_table(report: "pd.DataFrame") -> "Table":
    """The first facts, with the probability of the new object before and after."""
    p = metric("p_edited")
    rows = [
        (row.prompt, row.target_new, p.format(row.before_p_new), p.format(row.after_p_new),
         "yes" if row.after_efficacy_accuracy == 1 else "no")
        for row in report.head(SHOWN).itertuples()
    ]  # fmt: skip
    return common.grid(rows, ("prompt", "new object", "P before", "after", "top answer"), 2)


def ask(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="Text for the model to continue.", metavar="PROMPT...")],
    run: Annotated[
        Path | None, typer.Option(help="Also ask the edited model of this folder, from a run or `ketools edit`.")
    ] = None,
    at: Annotated[
        int | None, typer.Option(min=1, help="Ask the run's model after this many edits; default: all that are done.")
    ] = None,
    chat: common.Chat = False,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 20,
    top: Annotated[int, typer.Option(min=1, help="How many of the most probable next tokens to show.")] = 5,
    json: common.Json = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Ask a model, before and after a run's edits side by side: its answer, and the most probable next tokens."""
    if at is not None and run is None:
        raise KetoolsError(f"--at {at} without --run; name the run whose model to ask")
    common.writable(json, model, run)
    from ketools.models.weights import fresh
    from ketools.probing.recall import complete, top_tokens
    from ketools.runs.resume import model_at

    common.no_loading_bars()
    loaded = common.load_model(model, device, dtype)

    def answers() -> "list[tuple[str, pd.DataFrame]]":
        return [(complete(loaded, p, tokens, chat=chat), top_tokens(loaded, p, top, chat=chat)) for p in prompts]

    asked = {"unedited" if run is not None else loaded.name: answers()}
    if run is not None:
        with fresh(loaded), model_at(run, at, loaded) as edits:
            asked[f"after {edits:,} edits"] = answers()
    for place, prompt in enumerate(prompts):
        found = [each[place] for each in asked.values()]
        rows = [("answer", *(" ".join(text.split()) for text, _ in found)), *([("", *[""] * len(found))])]
        for rank in range(top):
            nexts = [frame.iloc[rank] for _, frame in found]
            rows.append((f"next {rank + 1}", *(f"{row['probability']:6.1%}  {row['token']!r}" for row in nexts)))
        common.show(*([""] if place else []), prompt, common.grid(rows, ["", *asked], 1 + len(asked)))
    if json is not None:
        tables = {
            name: [
                {"prompt": p, "answer": text, "next": frame.to_dict("records")}
                for p, (text, frame) in zip(prompts, each, strict=True)
            ]
            for name, each in asked.items()
        }
        write_json(json, tables)


def refuse_other_text(path: Path, there: Mapping[str, Any], text: str) -> None:
    """Raise KetoolsError if the covariance in `path`, of provenance `there`, is over another text than `text`."""
    from ketools.editing.covariance import corpus

    was, now = there.get("corpus"), corpus(text).name
    if was != now:
        raise KetoolsError(f"{path} holds the covariance over {was!r}, not {now!r}; give another --out, or --again")


def discard(out: Path) -> None:
    """Remove what an earlier `ketools edit` wrote to `out`, and nothing else."""
    from ketools.runs.store import About, Store, read_sealed

    store = Store(out)
    if not store.exists():
        return
    if read_sealed(out / "run.json", About)["settings"].get("kind") != "edit":  # read run.json itself, not its copy
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
    method: Annotated[str, typer.Option(help="Without --layers: use the layers of this method.")] = "encore",
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to read; default: ten times d_mlp.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Read at most this many tokens of each text.")] = LENGTH,
    every: Annotated[int, typer.Option(min=1, help="Save intermediate results after this many tokens.")] = EVERY,
    again: Annotated[bool, typer.Option("--again", help="Replace a covariance of another text or model.")] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Compute the covariance of a model's keys over background text, all layers in one pass.

    Interrupt it with Ctrl-C; run it again to resume.
    """
    if (text is None) == (not npz):
        raise KetoolsError("give either --text (to compute) or --npz (to import)")
    common.writable(out, None if out.name == OWN else model, text, *(item.partition("=")[2] for item in npz or ()))
    common.writable(json, model, text, out)
    from ketools.editing.covariance import Statistics

    there = Statistics.load(out).provenance if out.is_file() else None  # anything else is not overwritten
    if there is not None and not again and text is not None:
        refuse_other_text(out, there, text)
    files = moments(npz)
    chosen = common.numbers(layers, "--layers")
    loaded = common.load_model(model, device, dtype)
    if there is not None and not again and there.get("fingerprint", loaded.fingerprint) != loaded.fingerprint:
        raise KetoolsError(
            f"{out} holds the covariance of another model, not of {loaded.name!r}; give another --out, or --again"
        )
    if text is None:
        from ketools.editing.covariance import import_moments

        import_moments(loaded, files).save(out)
    else:
        from ketools.runs.config import composed

        chosen = chosen or composed(method).settings(loaded).layers
        assert chosen is not None
        with common.notes():
            compute_covariance(loaded, chosen, text, out, tokens, length, every, quiet)
    typer.echo(f"Covariance: {out}")
    if json is not None:
        made = Statistics.load(out)
        write_json(json, {"file": str(out), "layers": sorted(made.layers), "tokens": made.tokens} | made.provenance)


def moments(npz: list[str] | None) -> dict[int, str]:
    """["17=layer17.npz"] as {17: "layer17.npz"}. Raises KetoolsError."""
    files: dict[int, str] = {}
    for item in npz or ():
        layer, _, path = item.partition("=")
        if not (layer.strip().isdigit() and path):
            raise KetoolsError(f"--npz {item!r}: expected LAYER=FILE.npz, such as 17=layer17.npz")
        files[int(layer)] = path
    return files


def stored_covariance(model: "EditableModel", files: list[Path] | None) -> "covariance.Statistics":
    """The covariance in `files`, else the one in the model's folder; KetoolsError if there is none."""
    from ketools.editing.covariance import Statistics, load_statistics, own_file

    if files:
        return Statistics.load(os.pathsep.join(map(str, files))).of(model, ())
    if own_file(model) is None:
        raise KetoolsError(
            f"model {model.name!r} has no covariance of its keys; give background text (--text FILE) or a file that "
            "`ketools stats` wrote (--statistics FILE), or choose a method that needs none (ultraedit, ft, lora)"
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
    """Compute the covariance, save it to `out` and return it as saved; on Ctrl-C partial sums are kept beside the file."""
    from tqdm.auto import tqdm

    from ketools.editing.covariance import Statistics, corpus, default_tokens

    source, part = corpus(text), out.with_name(f"{out.name}.part")
    total = default_tokens(model) if tokens is None else tokens
    try:
        with tqdm(total=total, unit="token", unit_scale=True, desc="covariance", disable=quiet) as bar:
            statistics = Statistics.compute(
                model, source, layers, total, length=length, corpus=source.name, progress=bar.update, partial=part,
                every=every,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        kept = f"partial sums are kept in {part}" if part.is_file() else "nothing was kept yet"
        raise KeyboardInterrupt(f"interrupted; {kept}") from interrupt
    statistics.save(out)
    part.unlink(missing_ok=True)
    return Statistics.load(out)  # rounded as in the file, which a resumed job will read
