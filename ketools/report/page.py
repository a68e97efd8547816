"""One HTML page that stands alone: style, script, tables; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import hover_text, hover_texts, metric
from ketools.io import finite, write_atomic
from ketools.plots import style as findings
from ketools.plots.style import numbers, undressed, words
from ketools.report.figures import CHARTS, bends, capacity, capacity_curve
from ketools.report.verdicts import beside_paper
from ketools.runs.compare import comparable, paired_tests
from ketools.runs.records import Group, Run, listed, title
from ketools.runs.store import RunRecord

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de; --link: #0072b2; --width: 68rem }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3acb6; --page: #14171b; --card: #1d2127; --line: #3a424c; --link: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: var(--width); background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; line-height: 1.35; margin: 0 0 .4rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
p, li { max-width: 52rem }
a { color: var(--link) }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem }
section { margin: 2.6rem 0 0; padding-top: 1.4rem; border-top: 1px solid var(--line) }
figure { margin: 0 }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.6rem 2rem }
.pair > * { min-width: 0 }
.broad { --width: 104rem }
.bleed { width: min(96vw, 98rem); margin-left: calc(50% - min(48vw, 49rem)) }
.plot { min-height: 380px; width: 100%; overflow: hidden }
.wide { overflow: auto; margin: .6rem 0 }
details .wide { max-height: 28rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: 0 0 .4rem }
th, td { padding: .28rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { background: var(--card) }
th:first-child { text-align: left }
tbody th { font-weight: 600; background: none; white-space: normal; min-width: 12rem }
thead th { position: sticky; top: 0 }
th abbr[title], caption abbr[title] { text-decoration: underline dotted; text-underline-offset: .2em; cursor: help }
details { margin: .6rem 0 }
summary { cursor: pointer; color: var(--link); width: fit-content }
pre { background: var(--card); padding: .8rem; overflow: auto; font-size: .82rem; max-height: 30rem; white-space: pre-wrap }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px }
@media print { .wide, pre { max-height: none; overflow: visible } section { break-inside: avoid } }
"""

# Figures are drawn here, in the colours of the page, and again in the others when the reader's system changes them.
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = JSON.parse(document.getElementById("figures").textContent);
function coloured(layout) {
  const ink = dark.matches ? "#e6e9ed" : "#1b1f24", line = dark.matches ? "#3a424c" : "#e1e4e8";
  const copy = JSON.parse(JSON.stringify(layout));
  copy.autosize = true;
  copy.paper_bgcolor = copy.plot_bgcolor = "rgba(0,0,0,0)";
  copy.font = Object.assign({}, copy.font, {color: ink});
  copy.hoverlabel = {bgcolor: dark.matches ? "#1d2127" : "#ffffff", font: {color: ink}};
  Object.assign(copy.modebar, {color: dark.matches ? "#a3acb6" : "#57606a", activecolor: ink, bgcolor: "rgba(0,0,0,0)"});
  for (const name of Object.keys(copy).filter(name => /^[xy]axis/.test(name)))
    Object.assign(copy[name], {gridcolor: line, zerolinecolor: line, linecolor: line, color: ink});
  return copy;
}
const drawn = new Set(), waiting = Object.keys(figures);
function draw(id) {
  drawn.add(id);
  Plotly.react(id, figures[id].data, coloured(figures[id].layout), {responsive: true, displaylogo: false});
}
// One after another with a pause between, so that a page of many figures can be read and scrolled at once.
function next() {
  if (waiting.length) { draw(waiting.shift()); setTimeout(next); }
}
next();
addEventListener("beforeprint", () => { while (waiting.length) draw(waiting.shift()); });
dark.addEventListener("change", () => drawn.forEach(draw));
"""

# The page may run its own script and nothing else: no address is ever contacted.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def page(title: str, body: str, figures: dict[str, go.Figure], *, broad: bool = False) -> str:
    """The whole page as text; `body` is HTML that has a `<div id=KEY class="plot">` for every figure's key.

    broad: room for figures beside each other.
    """
    drawn = {key: json.loads(str(fig.to_json())) for key, fig in figures.items()}
    # "<" cannot end the script element early, whatever a method or a fact is called.
    data = json.dumps(drawn).replace("<", "\\u003c")
    broadly = ' class="broad"' if broad else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body{broadly}>\n{body}\n"
        f'<script type="application/json" id="figures">{data}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def table(
    frame: pd.DataFrame,
    caption: str,
    formats: Sequence[Callable[[float], str]] | None = None,
    *,
    about: str = "",
    terms: Mapping[str, str] | None = None,
) -> str:
    """An accessible HTML table: the index heads the rows; all text escaped; `formats` write the numbers of each column.

    Heads of columns that the glossary knows have its text on hovering; `terms` has that of heads of columns and rows
    which it does not find by itself (head -> text, "": none), `about` that of the caption.
    """
    heads = [str(name) for name in (frame.index.name or "", *frame.columns)]
    terms = terms or {}  # rows may be headed by names from a facts file, which are not looked up
    texts = {**hover_texts(heads), **terms}
    head = "".join(f'<th scope="col">{_term(name, texts.get(name, ""))}</th>' for name in heads)
    rows = []
    for key, values in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        shown = f"{key:,}" if isinstance(key, int) else str(key)
        cells = "".join(_cell(value, formats[i] if formats else short) for i, value in enumerate(values))
        rows.append(f'<tr><th scope="row">{_term(shown, terms.get(shown, ""))}</th>{cells}</tr>')
    said = f"{escape(caption)} {_term('What is measured', about)}" if about else escape(caption)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{said}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure_table(fig: go.Figure) -> tuple[pd.DataFrame, list[Callable[[float], str]]]:
    """The numbers that a figure shows (`ketools.plots.style.numbers`), and how to write those of each column."""
    frame = numbers(fig)
    return frame, [_share if fig.layout.yaxis.tickformat == ".0%" else short] * len(frame.columns)


def short(value: float) -> str:
    """A number in four figures; "–" where nothing was measured."""
    if pd.isna(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _term(shown: str, text: str) -> str:
    # Text, with its explanation on hovering where there is one; both may come from outside.
    return f'<abbr title="{escape(text)}">{escape(shown)}</abbr>' if text else escape(shown)


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1%}"


def _cell(value: object, show: Callable[[float], str]) -> str:
    return f"<td>{escape(value if isinstance(value, str) else show(value))}</td>"


# Parts of the report that are no figures: the state at the end, tests between methods, lost edits, provenance.


_END = (
    "norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "ES", "at_edit_ES", "PS",
    "NS", "S", "p_edited", "p_natural", "seconds_per_edit",
)  # fmt: skip
_LOST = 8
_ASKED = {"unedited": "unedited facts", "same_subject": "other facts of edited subjects"}
_COUNTED = ("only_a", "only_b", "both", "neither", "p_adjusted")
_NEEDED = (
    "subject", "relation", "batch", "at_edit_p_new", "end_p_new", "at_edit_efficacy_success", "end_efficacy_success",
)  # fmt: skip


def at_the_end(models: Mapping[str, Sequence[Group]]) -> str:
    """Everything measured at the last checkpoint, methods side by side, a table a model; over seeds: mean (range)."""
    parts = []
    shown = [metric(name) for name in _END]
    terms = {each.label: each.text() for each in shown}
    for model, groups in models.items():
        ends = {group.label: [_end(run) for run in group.runs if len(run.record.checkpoints)] for group in groups}
        ends = {label: rows for label, rows in ends.items() if rows}
        rows = {
            each.label: [
                _cell_sections([row.get(each.key, np.nan) for row in held], each.brief) for held in ends.values()
            ]
            for each in shown
            if any(each.key in row for held in ends.values() for row in held)
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=[title(label) for label in ends])
        frame.index.name = "measure"
        counts = sorted({int(row["edits"]) for held in ends.values() for row in held})
        caption = f"All edits scored again on the model after {listed([f'{n:,}' for n in counts])} edits"
        seeds = max((len(held) for held in ends.values()), default=1)
        caption += "; mean (range) over seeds" if seeds > 1 else ""
        note = "".join(f"<p>{escape(text)}</p>" for text in _not_known(groups))
        head = f"<h3>{escape(model)}</h3>" if len(models) > 1 else ""
        parts.append(head + table(frame, caption, terms=terms) + note)
    # Many columns may take more room than the text does.
    wide = ' class="bleed"' if len(models) == 1 and any(len(groups) > 4 for groups in models.values()) else ""
    return f"<section{wide}><h2>At the end</h2>{''.join(parts)}</section>"


def next_to_paper(models: Mapping[str, Sequence[Group]]) -> str:
    """What the paper saw and these runs did not, or did; nothing where the paper has none of these methods."""
    parts = []
    for model, groups in models.items():
        ends = {group.label: [_end(run) | _at_edit(run) for run in group.runs if run.edits] for group in groups}
        said = beside_paper({label: pd.DataFrame(rows).mean() for label, rows in ends.items() if rows})
        if said:
            head = f"<h3>{escape(model)}</h3>" if len(models) > 1 else ""
            parts.append(f"{head}<ul>{''.join(f'<li>{escape(text)}</li>' for text in said)}</ul>")
    if not parts:
        return ""
    about = (
        "The paper edited GPT2-XL, Llama2-7B and Llama3-8B 10,000 times; these are other models, other facts and, it may be, "
        "fewer edits. Its figures: arXiv 2502.01636, tables 1 and 2, figures 1, 3, 4 and 6."
    )
    return f"<section><h2>Beside the paper</h2><p>{about}</p>{''.join(parts)}</section>"


def _end(run: Run) -> dict[str, float]:
    """A run's last checkpoint, as numbers, with what an edit took."""
    row = run.record.checkpoints.iloc[-1]
    found = {str(name): float(row[name]) for name in row.index if name in _END or name == "edits"}
    batches = run.record.batches
    if {"seconds", "facts"} <= set(batches) and len(batches):
        found["seconds_per_edit"] = float(batches["seconds"].sum() / batches["facts"].sum())
    return found


def _at_edit(run: Run) -> dict[str, float]:
    """How probable the edited facts were right after their edit: at the end many may be lost, which hides overfitting."""
    facts = run.record.facts
    return {"p_at_edit": float(facts["at_edit_p_new"].mean())} if "at_edit_p_new" in facts else {}


def _not_known(groups: Sequence[Group]) -> list[str]:
    """What the unedited model didn't know of the panel, where records say so: it is in no share."""
    said: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs if len(run.record.checkpoints)):
        last = run.record.checkpoints.iloc[-1]
        for name, what in _ASKED.items():
            asked, known = (last.get(f"{name}_{end}", np.nan) for end in ("asked", "known"))
            if known < asked:
                text = f"Of {int(asked):,} {what} {int(known):,} were right before any edit; the others are not counted"
                said.setdefault(text, []).append(str(run.seed))
    seeds = {run.seed for group in groups for run in group.runs}
    return [
        f"{text} (seed {listed(list(dict.fromkeys(held)))})." if len(seeds) > 1 else f"{text}."
        for text, held in said.items()
    ]


def _cell_sections(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean and range over seeds, and of how many of them where some have no value."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "–"
    mean, low, high = (show(float(value)) for value in (np.mean(known), min(known), max(known)))
    aside = [f"{low.rstrip('%×')}–{high}"] if low != high else []
    if len(known) < len(values):
        aside.append(f"{len(known)} of {len(values)}")
    return f"{mean} ({'; '.join(aside)})" if aside else mean


def pairs(groups: Sequence[Group], missing: dict[str, str]) -> str:
    """McNemar's test between methods, fact by fact; says in `missing` why there is none."""
    try:
        comparable([run for group in groups for run in group.runs])
        found = paired_tests(groups)
    except KetoolsError as error:
        missing["tests between methods"] = str(error)
        return ""
    if found.empty:
        return ""
    shown = found.assign(a=found["a"].map(title), b=found["b"].map(title)).set_index("a")
    shown = shown[["b", "model", "seed", *_COUNTED]].astype({"seed": str, "model": str})
    shown["p_adjusted"] = shown["p_adjusted"].map(findings.p_value)
    heads = ["and", "model", "seed", "first only", "second only", "both", "neither", "p, adjusted"]
    shown = shown.set_axis(heads, axis=1).rename_axis("method")
    caption = (
        "Edits that hold at the end with one method and not with the other: McNemar's exact test, p adjusted over all rows "
        "(Benjamini and Hochberg)"
    )
    differ = int((found["p_adjusted"] < 0.05).sum())
    said = f"<p>{differ:,} of {len(found):,} pairs of runs on the same facts differ in efficacy at the end (adjusted p below 0.05).</p>"
    terms = {head: hover_text(name, "forgetting") for head, name in zip(heads[3:], _COUNTED, strict=True)}
    inner = table(shown, caption, terms=terms)
    return f"<section><h2>Fact by fact</h2>{said}<details><summary>The numbers</summary>{inner}</details></section>"


def lost_edits(groups: Sequence[Group]) -> str:
    """Edits that had taken and were gone at the end: the ones that lost most probability."""
    parts = []
    several = len({group.model for group in groups}) > 1
    moments = {"at_edit_p_new": "probability right after the edit", "end_p_new": "probability at the end"}
    terms = {head: hover_text(name, "facts") for name, head in moments.items()}
    for group in groups:
        held = [run.record.facts for run in group.runs if set(_NEEDED) <= set(run.record.facts)]
        if not held:
            continue
        facts = pd.concat(held, ignore_index=True)
        gone = facts[(facts["at_edit_efficacy_success"] == 1) & (facts["end_efficacy_success"] == 0)]
        name = f"{title(group.label)} ({group.model})" if several else title(group.label)
        head = f"<h3>{escape(name)}: {len(gone):,} of {len(facts):,}</h3>"
        if gone.empty:
            parts.append(head)
            continue
        worst = gone.assign(drop=gone["at_edit_p_new"] - gone["end_p_new"]).nlargest(_LOST, "drop").set_index("subject")
        shown = worst[["relation", "batch", *moments]].rename(columns=moments)
        inner = table(shown, f"The {len(shown)} that lost most probability", terms=terms)
        parts.append(head + (inner if len(groups) <= 4 else f"<details><summary>Examples</summary>{inner}</details>"))
    if not parts:
        return ""
    return f"<section><h2>Edits that took and were lost again</h2>{''.join(parts)}</section>"


def provenance(groups: Sequence[Group], missing: Mapping[str, str]) -> str:
    """Settings, versions and machine of each run; what is not drawn and why; which runs ended early."""
    gaps = "".join(f"<li>{escape(key)}: {escape(why)}</li>" for key, why in missing.items())
    parts = [f"<p>Not drawn:</p><ul>{gaps}</ul>"] if gaps else []
    notes = [note for group in groups for run in group.runs if (note := _note(group, run))]
    if notes:
        parts.append(f"<p>Not complete:</p><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    for group in groups:
        for run in group.runs:
            text = json.dumps(finite(dict(run.about)), indent=2, ensure_ascii=False, default=str)
            name = title(group.label) + (f", seed {run.seed} ({run.name})" if len(group.runs) > 1 else "")
            name += f", {group.model}" if len({other.model for other in groups}) > 1 else ""
            parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    return (
        "<section><h2>Where these numbers come from</h2>"
        "<p>Settings, versions, machine and model of each run; the tables themselves lie in its folder as parquet.</p>"
        f"{''.join(parts)}</section>"
    )


def _note(group: Group, run: Run) -> str:
    if run.collapsed:
        end = run.record.collapse or {}
        return f"{run.name} ended early, after {end.get('edits', run.edits):,} edits: {end.get('why', 'not finite')}"
    if not run.complete:
        wanted = run.settings.get("edits")
        others = ", and so do the means over its seeds" if len(group.runs) > 1 else ""
        return f"{run.name} reaches {run.edits:,} of {wanted:,} edits{others}" if wanted else ""
    return ""


# The report of any set of runs: one HTML file with figures, the numbers behind each, and where they come from.
#
# It opens offline (plotly.js is inside, once), follows the reader's light or dark setting, and everything that comes
# from a facts file is escaped. Runs of several models stand beside each other, seeds of one method are a mean and a range.


_IN_SHORT = ("norm", "residual", "unedited", "downstream", "scores", "forgetting", "probability", "cost")
_CAPACITY = "Capacity: how many edits these matrices hold"


def write_report(runs: Mapping[str, RunRecord] | Sequence[Group], path: str | Path) -> Path:
    """Write the report of several runs to `path`, whole or not at all; returns the path.

    Args:
        runs: groups from `ketools.runs.records.arrange`, or what each run is to be called and its record.
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
