"""The report of any set of runs: one HTML file with figures, the numbers behind each, and where they come from.

It opens offline (plotly.js is inside, once), follows the reader's light or dark setting, and everything that comes
from a facts file is escaped. Runs of several models stand beside each other, seeds of one method are a mean and a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from ketools.course.style import undressed, words
from ketools.errors import KetoolsError
from ketools.files import write_atomic
from ketools.report.capacity import bends, capacity, capacity_curve
from ketools.report.figures import CHARTS
from ketools.report.page import figure_table, page, table
from ketools.report.sections import at_the_end, lost_edits, next_to_paper, pairs, provenance
from ketools.runs.gather import Group, Run
from ketools.runs.names import listed, title
from ketools.runs.store import RunRecord

_IN_SHORT = ("norm", "residual", "unedited", "downstream", "scores", "forgetting", "probability", "cost")
_CAPACITY = "Capacity: how many edits these matrices hold"


def write_report(runs: Mapping[str, RunRecord] | Sequence[Group], path: str | Path) -> Path:
    """Write the report of several runs to `path`, whole or not at all; returns the path.

    Args:
        runs: groups from `ketools.runs.gather.arrange`, or what each run is to be called and its record.
        path: the HTML file.

    Figures whose quantity was not recorded are left out and named. Raises KetoolsError if there is no run or nothing
    at all was measured, OSError if the file cannot be written.
    """
    groups = _groups(runs)
    if not groups:
        raise KetoolsError("nothing to report: no runs; give at least one record (method -> RunRecord)")
    models = {model: [g for g in groups if g.model == model] for model in dict.fromkeys(g.model for g in groups)}
    drawn, missing = _draw(models)
    if not drawn:
        raise KetoolsError(f"nothing to report: {'; '.join(missing.values())}")
    heading = f"Lifelong editing: {listed(list(dict.fromkeys(title(group.label) for group in groups)))}"
    keys = list(dict.fromkeys(key for key, _ in drawn))
    figures = {_id(key, model, models): undressed(fig) for (key, model), fig in drawn.items()}
    body = [_head(groups, models, drawn, heading), at_the_end(models), next_to_paper(models)]
    body += [_section(key, drawn, models) for key in keys]
    body += [
        _capacity(groups, figures, missing),
        pairs(groups, missing),
        lost_edits(groups),
        provenance(groups, missing),
    ]
    return write_atomic(path, page(heading, "\n".join(body), figures, broad=len(models) > 1))


def _groups(runs: Mapping[str, RunRecord] | Sequence[Group]) -> list[Group]:
    if not isinstance(runs, Mapping):
        return list(runs)
    named = [Run(name, record) for name, record in runs.items()]
    return [Group(named[0].model, run.name, (run,)) for run in named]


Drawn = Mapping[tuple[str, str], go.Figure]


def _draw(models: Mapping[str, Sequence[Group]]) -> tuple[dict[tuple[str, str], go.Figure], dict[str, str]]:
    """(key, model) -> figure, and why the others can't be drawn."""
    drawn, missing = {}, {}
    for key, chart in CHARTS.items():
        for model, groups in models.items():
            try:
                drawn[key, model] = chart.figure(groups)
            except KetoolsError as error:  # a run without tasks or text has no such figure; the report says so
                missing[f"{key} ({model})" if len(models) > 1 else key] = str(error)
    return drawn, missing


def _id(key: str, model: str, models: Mapping[str, object]) -> str:
    place = list(models).index(model)
    return f"{key}-{place + 1}" if place else key


def _head(groups: Sequence[Group], models: Mapping[str, object], drawn: Drawn, heading: str) -> str:
    parts = []
    for model in models:
        said = [words(drawn[key, model])["finding"] for key in _IN_SHORT if (key, model) in drawn]
        name = f"<h3>{escape(model)}</h3>" if len(models) > 1 else ""
        parts.append(f"<div>{name}<ul>{''.join(f'<li>{_text(text)}.</li>' for text in said)}</ul></div>")
    runs = [run for group in groups for run in group.runs]
    facts = {
        "model": listed(list(models)),
        "edits": _values(run.settings.get("edits") for run in runs),
        "per batch": _values(run.settings.get("batch") for run in runs),
        "seed": _values(run.seed for run in runs),
        "runs": str(len(runs)) if len(runs) > len(groups) else "",
        "started (UTC)": min((_minute(run.about["started"]) for run in runs if run.about.get("started")), default=""),
    }
    line = " · ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items() if value)
    return (
        f'<header><h1>{escape(heading)}</h1><p class="soft">{line}</p>'
        f'<h2>In short</h2><div class="pair">{"".join(parts)}</div>'
        "<noscript><p>The figures need JavaScript; the tables under them do not.</p></noscript></header>"
    )


def _minute(moment: object) -> str:
    return str(moment)[:16].replace("T", " ")  # of an ISO time


def _values(values: Sequence[object]) -> str:
    known = sorted({int(value) for value in values if value is not None})
    return listed([f"{value:,}" for value in known]) if known else ""


def _section(key: str, drawn: Drawn, models: Mapping[str, object]) -> str:
    """One measure: a figure a model, the finding as its heading."""
    here = [(model, drawn[key, model]) for model in models if (key, model) in drawn]
    about = CHARTS[key].about()
    if len(models) == 1:
        ((_, fig),) = here
        heading = f'<h2 id="{key}-finding">{_text(words(fig)["finding"])}</h2>'
        return f'<section aria-labelledby="{key}-finding">{heading}{_figure(key, fig, about)}</section>'
    parts = [
        f"<div><h3>{escape(model)}</h3><p>{_text(words(fig)['finding'])}.</p>{_figure(_id(key, model, models), fig, about)}</div>"
        for model, fig in here
    ]
    heading = f'<h2 id="{key}-title">{escape(CHARTS[key].title)}</h2>'
    return f'<section aria-labelledby="{key}-title">{heading}<div class="pair">{"".join(parts)}</div></section>'


def _figure(name: str, fig: go.Figure, about: str = "") -> str:
    said = words(fig)
    frame, formats = figure_table(fig)
    return (
        f'<figure><div class="plot" id="{name}" role="img" aria-label="{_text(said["description"])}"></div>'
        f"<figcaption>{_text(said['caption'])}</figcaption></figure>"
        f"<details><summary>The numbers</summary>{table(frame, said['caption'], formats, about=about)}</details>"
    )


def _capacity(groups: Sequence[Group], figures: dict[str, go.Figure], missing: dict[str, str]) -> str:
    """Edits held against what the matrices can hold, all models together; adds its figure to `figures`."""
    try:
        frame = capacity(groups)
        fig = capacity_curve(frame)
    except KetoolsError as error:
        missing["capacity"] = str(error)
        return ""
    figures["capacity"] = undressed(fig)
    said = "".join(f"<p>{escape(text)}</p>" for text in bends(frame))
    heading = f'<h2 id="capacity-title">{_CAPACITY}</h2><h3>{_text(words(fig)["finding"])}</h3>'
    return f'<section aria-labelledby="capacity-title">{heading}{_figure("capacity", fig)}{said}</section>'


def _text(from_figure: str) -> str:
    """Words of a figure are escaped once already where they come from outside; make them safe in an attribute too."""
    return from_figure.replace('"', "&quot;").replace("<", "&lt;")
