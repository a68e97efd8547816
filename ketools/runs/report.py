"""The report of a comparison: one HTML file with figures, the numbers behind each, and where they come from.

It opens offline (plotly.js is inside, once), follows the reader's light or dark setting, and everything that comes
from a facts file is escaped.
"""

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from ketools.course import findings, plots
from ketools.course.style import label, listed, undressed, words
from ketools.errors import KetoolsError
from ketools.files import finite, write_atomic
from ketools.runs.page import figure_table, page, table

if TYPE_CHECKING:
    from ketools.runs.store import RunRecord

_FIGURES: dict[str, tuple[Callable[[pd.DataFrame], go.Figure], str]] = {
    "norm": (plots.norm_growth, "norms"),
    "unedited": (plots.unedited_kept, "checkpoints"),
    "same-subject": (plots.same_subject_kept, "checkpoints"),
    "downstream": (plots.downstream_kept, "checkpoints"),
    "perplexity": (plots.perplexity, "checkpoints"),
    "scores": (plots.edit_scores, "checkpoints"),
    "probability": (plots.probability, "checkpoints"),
    "cost": (plots.cost, "batches"),
}
_IN_SHORT = ("norm", "unedited", "downstream", "scores", "probability", "cost")
_END = {
    "norm_ratio": ("norm of the most grown edited matrix (ratio)", findings.times),
    "unedited_kept": ("unedited facts still right", findings.percent),
    "same_subject_kept": ("other facts of edited subjects still right", findings.percent),
    "downstream_kept": ("downstream F1, of before", findings.percent),
    "perplexity_ratio": ("perplexity (ratio)", findings.times),
    "ES": ("efficacy at the end, ES", findings.percent),
    "at_edit_ES": ("efficacy right after each batch", findings.percent),
    "PS": ("paraphrases, PS", findings.percent),
    "NS": ("neighbours, NS", findings.percent),
    "S": ("score, S (harmonic mean)", findings.percent),
    "p_edited": ("mean probability, edited facts", findings.number),
    "p_natural": ("mean probability, natural facts", findings.number),
}
_LOST = 8


def write_report(records: "Mapping[str, RunRecord]", path: str | Path) -> Path:
    """Write the report of several runs (method -> RunRecord) to `path`, whole or not at all; returns the path.

    Figures whose quantity was not measured are left out and named. Raises KetoolsError if there is no run or nothing
    at all was measured, OSError if the file cannot be written.
    """
    if not records:
        raise KetoolsError("nothing to report: no runs; give at least one record (method -> RunRecord)")
    drawn, missing = _draw(records)
    if not drawn:
        raise KetoolsError(f"nothing to report: {'; '.join(missing.values())}")
    title = f"Lifelong editing: {listed([_plain(m) for m in records])}"
    body = [_head(records, drawn, title), _end_table(records)]
    body += [_section(key, fig) for key, fig in drawn.items()]
    body += [_lost_edits(records), _provenance(records, missing)]
    return write_atomic(path, page(title, "\n".join(body), {key: undressed(fig) for key, fig in drawn.items()}))


def _draw(records: "Mapping[str, RunRecord]") -> tuple[dict[str, go.Figure], dict[str, str]]:
    """The figures that can be drawn, and why the others can't."""
    drawn, missing = {}, {}
    for key, (figure, name) in _FIGURES.items():
        try:
            drawn[key] = figure(plots.stack(records, name))
        except KetoolsError as error:  # a run without tasks or text has no such figure; the report says so
            missing[key] = str(error)
    return drawn, missing


def _head(records: "Mapping[str, RunRecord]", drawn: Mapping[str, go.Figure], title: str) -> str:
    said = "".join(f"<li>{_text(words(drawn[key])['finding'])}.</li>" for key in _IN_SHORT if key in drawn)
    about = next(iter(records.values())).provenance
    settings, model = about.get("settings", {}), about.get("model", {})
    facts = {
        "model": model.get("name") if isinstance(model, dict) else model,
        "edits": settings.get("edits"),
        "per batch": settings.get("batch"),
        "seed": about.get("seed", settings.get("seed")),
        "started": about.get("started"),
    }
    line = " · ".join(f"{escape(name)} {escape(str(value))}" for name, value in facts.items() if value is not None)
    return (
        f'<header><h1>{escape(title)}</h1><p class="soft">{line}</p>'
        f"<h2>In short</h2><ul>{said}</ul>"
        "<noscript><p>The figures need JavaScript; the tables under them do not.</p></noscript></header>"
    )


def _end_table(records: "Mapping[str, RunRecord]") -> str:
    """Everything measured at the last checkpoint, methods side by side."""
    ends = {m: record.checkpoints.iloc[-1] for m, record in records.items() if len(record.checkpoints)}
    rows = {
        title: [show(float(row[name])) if name in row and not pd.isna(row[name]) else "–" for row in ends.values()]
        for name, (title, show) in _END.items()
        if any(name in row for row in ends.values())
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[_plain(m) for m in ends])
    frame.index.name = "measure"
    counts = sorted({int(row["edits"]) for row in ends.values()})
    caption = f"All edits scored again on the model after {listed([f'{n:,}' for n in counts])} edits"
    return f"<section><h2>At the end</h2>{table(frame, caption)}</section>"


def _section(key: str, fig: go.Figure) -> str:
    said = words(fig)
    frame, formats = figure_table(fig)
    return (
        f'<section aria-labelledby="{key}-finding"><h2 id="{key}-finding">{_text(said["finding"])}</h2>'
        f'<figure><div class="plot" id="{key}" role="img" aria-label="{_text(said["description"])}"></div>'
        f"<figcaption>{_text(said['caption'])}</figcaption></figure>"
        f"<details><summary>The numbers</summary>{table(frame, said['caption'], formats)}</details></section>"
    )


def _lost_edits(records: "Mapping[str, RunRecord]") -> str:
    """Edits that had taken and were gone at the end: the ones that lost most probability."""
    needed = {
        "subject",
        "relation",
        "batch",
        "at_edit_p_new",
        "end_p_new",
        "at_edit_efficacy_success",
        "end_efficacy_success",
    }
    parts = []
    for method, record in records.items():
        facts = record.facts
        if not needed <= set(facts):
            continue
        gone = facts[(facts["at_edit_efficacy_success"] == 1) & (facts["end_efficacy_success"] == 0)]
        head = f"<h3>{escape(_plain(method))}: {len(gone):,} of {len(facts):,}</h3>"
        if gone.empty:
            parts.append(head)
            continue
        worst = gone.assign(drop=gone["at_edit_p_new"] - gone["end_p_new"]).nlargest(_LOST, "drop").set_index("subject")
        shown = worst[["relation", "batch", "at_edit_p_new", "end_p_new"]]
        shown = shown.set_axis(
            ["relation", "batch", "probability right after the edit", "probability at the end"], axis=1
        )
        parts.append(head + table(shown, f"The {len(shown)} that lost most probability"))
    if not parts:
        return ""
    return f"<section><h2>Edits that took and were lost again</h2>{''.join(parts)}</section>"


def _provenance(records: "Mapping[str, RunRecord]", missing: Mapping[str, str]) -> str:
    gaps = "".join(f"<li>{escape(key)}: {escape(why)}</li>" for key, why in missing.items())
    parts = [f"<p>Not drawn:</p><ul>{gaps}</ul>"] if gaps else []
    for method, record in records.items():
        text = json.dumps(finite(record.provenance), indent=2, ensure_ascii=False, default=str)
        parts.append(f"<details><summary>{escape(_plain(method))}</summary><pre>{escape(text)}</pre></details>")
    return (
        "<section><h2>Where these numbers come from</h2>"
        "<p>Settings, versions, machine and model of each run; the tables themselves lie beside this file as parquet.</p>"
        f"{''.join(parts)}</section>"
    )


def _plain(method: str) -> str:
    """The method's name as text; figures hold it escaped."""
    known = label(method)
    return known if known != escape(method) else method


def _text(from_figure: str) -> str:
    """Words of a figure are escaped once already where they come from outside; make them safe in an attribute too."""
    return from_figure.replace('"', "&quot;").replace("<", "&lt;")
