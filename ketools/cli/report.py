"""What runs measured, and what the numbers mean: `ketools report`, `compare`, `glossary`. Nothing is run."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli.common import writable
from ketools.evaluation.metrics import METRICS, look_up, metric, of_table
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

DEMO = Path("build/demo")
WIDTH = 118  # of the glossary, in characters
COLUMNS = [
    *("ES", "PS", "NS", "S", "at_edit_ES", "at_edit_PS", "at_edit_NS", "at_edit_S"),
    *("unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "norm_ratio", "seconds_per_edit"),
]
Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Run folders, or folders of runs such as `ketools demo` writes.", metavar="RUN..."),
]


def report(
    folders: Folders = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", "--out", help="Output file or folder; default: report.html in RUN, or in build/ for several runs."
        ),
    ] = None,
) -> None:
    """Draw a report of any runs from their records, without running anything; unfinished runs too.

    One HTML file that opens offline. Seeds of one method are drawn as their mean and range.
    """
    from ketools.report.page import write_report
    from ketools.runs.records import arrange, gather

    folders = folders or [DEMO]
    groups = arrange(gather(folders))
    target = to or (folders[0] if len(folders) == 1 else Path("build/report.html"))
    target = target / "report.html" if target.is_dir() else target
    writable(target, *folders)
    typer.echo(f"Report: {write_report(groups, target)}")


def compare(
    folders: Folders = None,
    at: Annotated[
        int | None, typer.Option(min=1, help="Compare after so many edits; default: the last checkpoint that all have.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write table and tests to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Put runs side by side: their measures, and where two methods differ fact by fact (McNemar's exact test).

    Runs on other facts or another evaluation panel are refused. "then": measured right after each edit's own batch.
    """
    for path in (json, csv):
        if path is not None:
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
    typer.echo(run_table(table, finished))
    if len(pairs):
        typer.echo(f"\n{pair_table(pairs)}")
    elif len(table) > 1:
        reason = (
            "no two methods of one model and seed have scores of each fact"
            if finished
            else "facts are scored one by one only after the last edit, and not all runs are compared there"
        )
        typer.echo(f"\nNo test between methods: {reason}.")


def run_table(table: "pd.DataFrame", finished: bool) -> str:
    """The runs as text; "!" marks a run that ended in an update that was not finite."""
    from ketools.runs.records import title

    shown = table[["model", "method", "seed"]].astype(str)
    shown["method"] = table["method"].map(title) + table["collapsed"].map({True: " !", False: ""})
    for column in map(metric, COLUMNS):
        shown[column.short] = table[column.key].map(column.format)
    heading = f"After {int(table['edits'].max()):,} edits" + ("" if finished else ", not all runs complete")
    text = f"{heading}\n{shown.to_string(index=False)}"
    collapsed = table[table["collapsed"]]
    ends = [f"{run} after {int(edits):,}" for run, edits in zip(collapsed["run"], collapsed["edits"], strict=True)]
    return text + (f"\n! ended early, in an update that was not finite: {', '.join(ends)}" if ends else "")


def pair_table(pairs: "pd.DataFrame") -> str:
    """The paired tests as text."""
    from ketools.plots.style import p_value
    from ketools.runs.records import title

    shown = pairs[["model", "seed"]].astype(str)
    shown["a"], shown["b"] = pairs["a"].map(title), pairs["b"].map(title)
    shown["only a"], shown["only b"] = pairs["only_a"].astype(str), pairs["only_b"].astype(str)
    shown["p, adjusted"] = pairs["p_adjusted"].map(p_value)
    heading = "Edits that succeed at the end with one method only (McNemar's exact test; Benjamini-Hochberg):"
    return f"{heading}\n{shown.to_string(index=False)}"


def glossary(
    name: Annotated[str | None, typer.Argument(help="A column or figure, such as ES or norm_ratio.")] = None,
    table: Annotated[str | None, typer.Option(help="Only what this table reports, such as checkpoints.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the entries shown to this file.")] = None,
) -> None:
    """What a reported number is: formula, range, which direction is better, source. Without NAME: all of them."""
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
                first, *more = wrap(f"{entry.label}{better}: {entry.formula}", WIDTH - width - 4)
                lines += [f"  {entry.key:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
            sections.append("\n".join(lines))
        typer.echo("\n\n".join(sections))
    if json is not None:
        write_json(json, {"entries": [asdict(entry) for entry in entries]})
