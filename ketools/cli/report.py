"""What runs measured and what the numbers mean: `ketools report`, `compare`, `glossary`. Nothing is run."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli import common
from ketools.cli.common import writable
from ketools.evaluation.metrics import METRICS, look_up, metric, of_table
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from rich.console import RenderableType

    from ketools.runs.records import Run

DEMO = Path("build/demo")
ACROSS = 5  # columns of a table of runs
Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Run folders, or folders of runs such as `ketools demo` writes.", metavar="RUN..."),
]


def report(
    folders: Folders = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            "--out",
            help="Output file or folder; default: report.html in RUN, or in build/ for several runs or one of a study.",
        ),
    ] = None,
    json: common.Json = None,
) -> None:
    """Draw a report of runs, finished or not, from their records, without running anything.

    It is one HTML file that opens offline. Seeds of one method are drawn as their mean and range.
    """
    from ketools.report.page import write_report
    from ketools.runs.records import arrange, gather

    folders = folders or [DEMO]
    groups = arrange(gather(folders))
    target = to or (folders[0] if len(folders) == 1 and folders[0].is_dir() else Path("build/report.html"))
    target = target / "report.html" if target.is_dir() else target
    writable(target, *folders)
    writable(json, *folders)
    typer.echo(f"Report: {write_report(groups, target)}")
    if json is not None:
        points = {run.name: run.record.checkpoints.to_dict("records") for group in groups for run in group.runs}
        write_json(json, {"report": str(target), "runs": points})


def compare(
    folders: Folders = None,
    at: Annotated[
        int | None,
        typer.Option(min=1, help="Compare after this many edits; default: the last checkpoint that all have."),
    ] = None,
    json: common.Json = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Compare runs: their measures, and where two methods differ fact by fact (McNemar's exact test).

    Runs with different facts or evaluation panels are refused. "then": measured right after each edit's own batch.
    """
    for path in (json, csv):
        writable(path, *(folders or ()))
    from ketools.runs.compare import compare as compare_runs
    from ketools.runs.compare import paired_tests
    from ketools.runs.records import arrange, gather

    runs = gather(folders or [DEMO])
    table = compare_runs(runs, at)
    finished = bool((table["complete"] | table["collapsed"]).all())
    pairs = paired_tests(arrange(runs)) if finished else table.iloc[:0]
    if json is not None:
        write_json(json, {"runs": table.to_dict("records"), "mcnemar": pairs.to_dict("records")})
    if csv is not None:
        write_atomic(csv, table.to_csv(index=False))
    common.show(*run_table(table, runs, finished))
    if len(pairs):
        common.show("", *pair_table(pairs))
    elif len(table) > 1:
        reason = (
            "no two methods of one model and seed have scores for each fact"
            if finished
            else "facts are scored one by one only after the last edit, and not all runs are compared there"
        )
        typer.echo(f"\nNo test between methods: {reason}.")


def run_table(table: "pd.DataFrame", runs: "Sequence[Run]", finished: bool) -> "list[RenderableType]":
    """A row per measure that a run has, a column per run, beside the unedited models; "!" marks a run that ended early with a
    non-finite update.
    """
    from ketools.runs.compare import MEASURES
    from ketools.runs.records import title

    several = {name: table[name].nunique() > 1 for name in ("model", "seed")}
    first = {run.name: run for run in runs}
    models = table.drop_duplicates("model")
    befores = [
        (row.model if several["model"] else "", "unedited", first[row.run].before) for row in models.itertuples()
    ]
    columns: list[tuple[str, Mapping[str, float]]] = [
        (f"{model} {name}".strip(), values) for model, name, values in befores if values
    ]
    for row in table.to_dict("records"):
        name = title(row["method"]) + (" !" if row["collapsed"] else "")
        parts = [row["model"] if several["model"] else "", name, f"seed {row['seed']}" if several["seed"] else ""]
        columns.append((" ".join(filter(None, parts)), row))
    heading = f"After {int(table['edits'].max()):,} edits" + ("" if finished else ", not all runs complete")
    counts = first[table["run"].iloc[0]].counts(int(table["edits"].iloc[0])) if len(table) else {}
    measures = [metric(name) for name in MEASURES if table[name].notna().any()]
    blocks: list[RenderableType] = []
    for start in range(0, len(columns), ACROSS):
        part = columns[start : start + ACROSS]
        rows = [
            (
                each.short or each.label,
                f"{n:,}" if (n := counts.get(each.key)) else "",
                *(each.format(values.get(each.key)) for _, values in part),
            )
            for each in measures
        ]
        heads = ["\n".join(wrap(name, 14, break_long_words=False)) for name, _ in part]
        blocks += [*([""] if blocks else []), common.grid(rows, ["", "n", *heads])]
    collapsed = table[table["collapsed"]]
    ends = [f"{run} after {int(edits):,}" for run, edits in zip(collapsed["run"], collapsed["edits"], strict=True)]
    note = [f"\n! ended early with an update that was not finite: {', '.join(ends)}"] if ends else []
    return [heading, *blocks, *note]


def pair_table(pairs: "pd.DataFrame") -> "list[RenderableType]":
    """The paired tests."""
    from ketools.plots.style import p_value
    from ketools.runs.records import title

    rows = [
        (row["model"], str(row["seed"]), title(row["a"]), title(row["b"]), str(row["only_a"]), str(row["only_b"]),
         p_value(row["p_adjusted"]))
        for row in pairs.to_dict("records")
    ]  # fmt: skip
    heading = "Edits that succeed at the end with one method only (McNemar's exact test; Benjamini-Hochberg):"
    return [heading, common.grid(rows, ("model", "seed", "a", "b", "only a", "only b", "p, adjusted"), 4)]


def glossary(
    name: Annotated[str | None, typer.Argument(help="A column or figure, such as ES or norm_ratio.")] = None,
    table: Annotated[str | None, typer.Option(help="Only metrics of this table, such as checkpoints.")] = None,
    json: common.Json = None,
) -> None:
    """Explain a reported number: formula, range, which direction is better, source. Without NAME: all of them."""
    if name is not None:
        entries = look_up(name, table)
        typer.echo("\n\n".join(entry.text() for entry in entries))
    else:
        entries = METRICS if table is None else of_table(table)
        sections = []
        for title, group in groupby(entries, lambda entry: entry.table):
            members = list(group)
            width = max(len(entry.key) for entry in members)
            lines = [f"{title}:"]
            for entry in members:
                better = f" [{entry.better}]" if entry.better != "none" else ""
                first, *more = wrap(f"{entry.label}{better}: {entry.formula}", common.WIDTH - width - 4)
                lines += [f"  {entry.key:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
            sections.append("\n".join(lines))
        typer.echo("\n\n".join(sections))
    if json is not None:
        write_json(json, {"entries": [asdict(entry) for entry in entries]})
