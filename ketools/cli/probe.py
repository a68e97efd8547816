"""Where your model recalls your facts, and which settings to edit them with: `ketools trace`, `tune`."""

import json as json_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli import common
from ketools.cli.edit import Model, stored_covariance
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

Facts = Annotated[str, typer.Argument(help=common.FACTS)]
ROLES = {"last of the subject": "subject's last", "last token": "last token"}
KINDS = ("hidden", "mlp", "attention")


def trace(
    model: Model,
    facts: Facts,
    limit: Annotated[int, typer.Option(min=1, help="Trace the first facts, at most this many.")] = 50,
    target: Annotated[str, typer.Option(help='Whose probability is read: the "true" or the "new" object.')] = "true",
    samples: Annotated[int, typer.Option(min=1, help="Draws of noise per fact.")] = 1,
    window: Annotated[
        int | None, typer.Option(min=1, help="How many layers of MLPs or attentions to restore together.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many layers to name; default: as many as ENCORE edits.")
    ] = None,
    seed: common.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Also write a page with figures to this file (.html).")] = None,
    json: common.Json = None,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Trace your facts causally: find the layers that carry them from the subject to the answer.

    A layer's effect is the gain in the answer's probability when its clean state is restored in a corrupted run. Only facts
    that the model knows are traced.
    """
    for path in (out, json):
        common.writable(path, model, facts)
    from tqdm.auto import tqdm

    from ketools.editing.methods import ENCORE
    from ketools.facts.reading import facts as read_facts
    from ketools.probing import tracing
    from ketools.probing.layers import choose

    asked = read_facts(facts)[:limit]
    common.no_loading_bars()
    loaded = common.load_model(model, device, dtype)
    with common.notes(), tqdm(total=len(asked), unit="fact", desc="trace", disable=quiet) as bar:
        frame = tracing.trace(
            loaded, asked, KINDS, target=target, samples=samples, window=window, seed=seed, progress=bar.update
        )
    means = tracing.average(frame)
    n_layer, n = loaded.anatomy.n_layer, frame["fact"].nunique()
    count = min(count or len(ENCORE.settings(loaded).layers or ()), n_layer)
    common.show(effects(means))
    mlp = means[(means["kind"] == "mlp") & (means["role"] == "last of the subject")].set_index("layer")
    traced = mlp["mean"].reindex(range(n_layer)).fillna(0.0)
    _, chosen = choose(traced, traced * float("nan"), range(n_layer - count + 1), count)
    best = mlp.loc[mlp["mean"].idxmax()]
    interval = f", 95% interval {best['low']:.3f} to {best['high']:.3f}" if n > 1 else ""
    most = f"recover most around layer {best.name} ({best['mean']:.3f}{interval})"
    common.show(
        f"\nMean gain in P({target} object), n {n:,}; clean {frame['p_clean'].mean():.3f}, corrupted "
        f"{frame['p_corrupted'].mean():.3f}.",
        f"MLPs restored at the subject's last token {most if best['low'] > 0 else 'clearly recover the answer in no layer'}; "
        f"neighbouring layers with the largest sum: {','.join(map(str, chosen))}.",
        "Where a fact is recalled says little about where an edit works; `ketools tune` tries both.",
    )
    if json is not None:
        attrs = {name: value for name, value in frame.attrs.items() if name != "unknown_ids"}
        write_json(json, {"layers": list(chosen), "about": attrs, "effects": means.to_dict("records")})
    if out is not None:
        from ketools.plots.probing import trace_heat, trace_profile
        from ketools.report.page import picture, render

        drawn = {"profile": trace_profile(frame), "map": trace_heat(frame)}
        titles = {"profile": "Effects by layer", "map": "Effects by layer and place"}
        sections = {name: (titles[name], {loaded.name: picture(name, fig)}) for name, fig in drawn.items()}
        about = {"model": loaded.name, "facts": f"{n:,}", "seed": str(seed)}
        page = render(f"Causal tracing: {loaded.name}", drawn, models={loaded.name: ()}, sections=sections, facts=about)
        typer.echo(f"Page: {write_atomic(out, page)}")


def effects(means: "pd.DataFrame") -> "Table":
    """Mean effects: a row per layer, a column per position and kind of state."""
    columns = [
        (role, kind) for role in ROLES for kind in KINDS if ((means["role"] == role) & (means["kind"] == kind)).any()
    ]
    values = means.set_index(["role", "kind", "layer"])["mean"]
    rows = [
        (str(layer), *(f"{values.get((role, kind, layer), float('nan')):.3f}" for role, kind in columns))
        for layer in sorted(set(means["layer"]))
    ]
    return common.grid(rows, ["layer", *(f"{ROLES[role]}\n{kind}" for role, kind in columns)])


def tune(
    model: Model,
    facts: Facts,
    out: Annotated[Path, typer.Option(help="Folder for the settings and the evidence.")] = Path("build/tuned"),
    method: Annotated[str, typer.Option(help='Such as "encore", or "memit+mpes".')] = "encore",
    size: Annotated[
        int, typer.Option(min=2, help="At most this many facts for trial edits, and at most a third of all.")
    ] = 100,
    layers: common.Layers = None,
    seed: common.Seed = 0,
    statistics: common.Statistics = None,
    chat: common.Chat = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Choose layers, lr, patience and lambda for your model and facts, by trial edits of facts that are set aside.

    Writes OUT/settings.toml for `ketools run` and `ketools edit --settings`, the evidence as CSV, and the facts that no trial
    edited.
    """
    common.writable(json, model, facts, *(statistics or ()))
    from ketools.facts.layouts import as_record
    from ketools.facts.reading import facts as read_facts
    from ketools.facts.reading import own_facts
    from ketools.models.tokens import in_chat
    from ketools.runs.config import RunConfig, composed, settled
    from ketools.runs.tune import split
    from ketools.runs.tune import tune as choose

    way, chosen = composed(method), common.numbers(layers, "--layers")
    names = {name: out / name for name in ("settings.toml", "trials.csv", "layers.csv", "facts.jsonl")}
    for path in names.values():
        common.writable(path, model, facts, *(statistics or ()))
    common.no_loading_bars()
    with common.notes():
        given = settled(read_facts(facts))
        loaded = common.load_model(model, device, dtype)
        covariance = stored_covariance(loaded, statistics) if way.needs_statistics else None
        asked, others = (in_chat(loaded, some) if chat else some for some in (given, own_facts(model)))
        trial, known, left = split(loaded, asked, others, size, seed)
        typer.echo(
            f"{len(trial)} facts for trial edits, {len(known)} known facts that should be kept, {len(left)} untouched"
        )
        found = choose(
            loaded, trial, known, way, statistics=covariance, layers=chosen, seed=seed,
            progress=None if quiet else lambda line: typer.echo(line, err=True),
        )  # fmt: skip
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in found.settings.items()}
    about = RunConfig(model=model, facts=str(names["facts.jsonl"]), method=method, seed=seed, device=device, dtype=dtype, chat=chat,
                      statistics=os.pathsep.join(map(str, statistics)) if statistics else None).as_dict()  # fmt: skip
    names_kept = ("model", "facts", "method", "statistics", "seed", "device", "dtype", "chat")
    kept = {name: about[name] for name in names_kept if name in about}
    lines = [
        f"# Chosen by `ketools tune` on {len(trial)} facts that are not in facts.jsonl, and {len(known)} that should be kept",
        "# (trials.csv, layers.csv).",
        *(f"{name} = {json_text.dumps(value)}" for name, value in kept.items()),
        f"edits = {len({fact.subject for fact in left})}",
        "", "[settings]", *(f"{name} = {json_text.dumps(value)}" for name, value in settings.items()),
    ]  # fmt: skip
    untouched = set(left.ids)  # written as given, since the run applies the chat template
    write_atomic(names["trials.csv"], found.trials.to_csv(index=False))
    if found.layers is not None:
        write_atomic(names["layers.csv"], found.layers.to_csv(index=False))
    write_atomic(
        names["facts.jsonl"],
        "".join(
            f"{json_text.dumps(as_record(f), ensure_ascii=False)}\n" for f in given.filter(lambda f: f.id in untouched)
        ),
    )
    write_atomic(names["settings.toml"], "\n".join(lines) + "\n")
    ranked = found.trials.sort_values("score", ascending=False, kind="stable")
    common.show(
        common.framed(ranked, 0), "", common.grid([(k, json_text.dumps(v)) for k, v in settings.items()], left=2)
    )
    error = 0.5 / len(trial) ** 0.5
    typer.echo(
        f"\nn = {len(trial)}: a share has a standard error of up to {error:.2f}; smaller differences mean nothing."
    )
    typer.echo(f"Settings: {names['settings.toml']}")
    if json is not None:
        tables = {"trials": found.trials.to_dict("records")}
        tables["layers"] = None if found.layers is None else found.layers.to_dict("records")
        write_json(json, {"settings": settings, "n": len(trial), "known": len(known)} | tables)
