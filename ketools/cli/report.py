"""The command `ketools glossary`: what every reported number is.

Mistakes travel as KetoolsError; the program around it turns them into one line and exit code 2.
"""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from ketools.cli.common import writable
from ketools.evaluation.metrics import METRICS, Metric, look_up, metric, of_table
from ketools.io import write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd


_WIDTH = 118


def glossary(
    name: Annotated[str | None, typer.Argument(help="A column or figure, such as ES or norm_ratio.")] = None,
    table: Annotated[str | None, typer.Option(help="Only what this table reports, such as checkpoints.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the entries shown to this file.")] = None,
) -> None:
    """What a reported number is: formula, range, which direction is better, source; without NAME all of them."""
    if name is not None:
        chosen = look_up(name, table)
        typer.echo("\n\n".join(entry.text() for entry in chosen))
    else:
        chosen = METRICS if table is None else of_table(table)
        typer.echo("\n\n".join(_listed(key, list(group)) for key, group in groupby(chosen, lambda e: e.table)))
    if json is not None:
        write_json(json, {"entries": [asdict(entry) for entry in chosen]})


def _listed(table: str, held: list[Metric]) -> str:
    width = max(len(entry.key) for entry in held)
    lines = [f"{table}:"]
    for entry in held:
        better = f" [{entry.better}]" if entry.better != "none" else ""
        first, *more = wrap(f"{entry.label}{better}: {entry.formula}", _WIDTH - width - 4)
        lines += [f"  {entry.key:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
    return "\n".join(lines)


# `ketools report` and `ketools compare`: what runs came to, drawn and as a table; nothing is run, torch is not needed.


Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Folders of runs, or folders that hold them, as `ketools demo` writes it.", metavar="RUN..."),
]
_DEMO = Path("build/demo")
_COLUMNS = (
    "ES", "PS", "NS", "S", "at_edit_ES", "at_edit_PS", "at_edit_NS", "at_edit_S", "unedited_kept", "same_subject_kept",
    "downstream_kept", "perplexity_ratio", "norm_ratio", "seconds_per_edit",
)  # fmt: skip


def report(
    folders: Folders = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            "--out",
            help="The file to write, or a folder for its report.html; if not given, RUN's, and of several build's.",
        ),
    ] = None,
) -> None:
    """Draw a report of any runs from their records, without running anything; unfinished runs too.

    One HTML file that opens offline. Seeds of one method are drawn as their mean and range.
    """
    given = folders or [_DEMO]
    from ketools.report.page import write_report
    from ketools.runs.records import arrange, gather

    groups = arrange(gather(given))
    target = to or (given[0] if len(given) == 1 else Path("build/report.html"))
    target = target / "report.html" if target.is_dir() else target
    writable(target)
    typer.echo(f"Report: {write_report(groups, target)}")


def compare(
    folders: Folders = None,
    at: Annotated[
        int | None, typer.Option(min=1, help="After so many edits; if not given, the last checkpoint of all runs.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write table and tests to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Put runs side by side: what each came to, and where two methods differ fact by fact (McNemar's exact test).

    Runs of other facts or another panel are refused. "then": right after each edit's own batch.
    """
    for path in (json, csv):
        if path is not None:
            writable(path)
    from ketools.runs import compare as job
    from ketools.runs.records import arrange, gather

    runs = gather(folders or [_DEMO])
    table = job.compare(runs, at)
    whole = bool((table["complete"] | table["collapsed"]).all())
    pairs = job.paired_tests(arrange(runs)) if whole else table.iloc[:0]
    if json is not None:
        write_json(json, {"runs": table.to_dict("records"), "mcnemar": pairs.to_dict("records")})
    if csv is not None:
        write_atomic(csv, table.to_csv(index=False))
    typer.echo(_table(table))
    if len(pairs):
        typer.echo(f"\n{_pairs(pairs)}")
    elif len(table) > 1:
        typer.echo(f"\nNo test between methods: {_why_none(whole)}.")


def _why_none(whole: bool) -> str:
    if not whole:
        return "facts are scored one by one after the last edit alone, and not all runs are compared there"
    return "no two methods of one model and seed have scores of each fact"


def _table(table: "pd.DataFrame") -> str:
    """The runs as text; "–" where one was not measured, "!" after a run that ended in an update that is not finite."""
    from ketools.runs.records import title

    shown = table[["model", "method", "seed"]].astype(str)
    shown["method"] = [
        title(name) + " !" * over for name, over in zip(table["method"], table["collapsed"], strict=True)
    ]
    for column in map(metric, _COLUMNS):
        shown[column.short] = table[column.key].map(column.format)
    whole = (table["complete"] | table["collapsed"]).all()
    said = f"After {int(table['edits'].max()):,} edits" + ("" if whole else ", not all runs complete")
    text = f"{said}\n{shown.to_string(index=False)}"
    early = table[table["collapsed"]]
    ends = ", ".join(f"{name} after {int(edits):,}" for name, edits in zip(early["run"], early["edits"], strict=True))
    return text + (f"\n! ended early, in an update that was not finite: {ends}" if ends else "")


def _pairs(pairs: "pd.DataFrame") -> str:
    from ketools.plots.style import p_value
    from ketools.runs.records import title

    shown = pairs[["model", "seed", "a", "b"]].astype(str)
    shown["a"], shown["b"] = shown["a"].map(title), shown["b"].map(title)
    shown["only a"], shown["only b"] = pairs["only_a"].astype(str), pairs["only_b"].astype(str)
    shown["p, adjusted"] = pairs["p_adjusted"].map(p_value)
    return (
        "Edits that hold at the end with one method and not with the other (McNemar's exact test; Benjamini-Hochberg):\n"
        + shown.to_string(index=False)
    )
