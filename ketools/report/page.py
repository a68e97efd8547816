"""One HTML page about any set of runs: figures, the numbers behind each, and where they come from.

The page opens offline (it contains plotly.js) and follows the reader's light or dark setting. This module holds its text,
page.html.j2 its layout, which escapes everything. Several models are shown beside each other; seeds of one method as mean and
range.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import MISSING, Metric, figures, hover_text, hover_texts, metric
from ketools.io import finite, write_atomic
from ketools.plots.style import numbers, p_value, undressed, words
from ketools.report.figures import CHARTS, capacity, capacity_curve
from ketools.report.verdicts import Verdict, beside_paper, capacity_reached
from ketools.runs.compare import comparable, paired_tests
from ketools.runs.records import Group, Run, listed, title
from ketools.runs.store import RunRecord

END = (
    "norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "ES", "at_edit_ES", "PS",
    "NS", "S", "p_edited", "p_natural", "seconds_per_edit",
)  # fmt: skip
"""Metrics of the table "At the end"."""
IN_SHORT = ("norm", "unedited", "same-subject", "downstream", "scores", "forgetting", "probability", "residual", "cost")
"""Figures whose findings open the page."""
LOST = 8
"""Lost edits shown per method."""

Models = Mapping[str, Sequence[Group]]


@dataclass(frozen=True)
class Table:
    """A table as shown, all text. A heading is a pair with its explanation on hover; ("ES", "") has none."""

    caption: str
    heads: list[tuple[str, str]]
    rows: list[tuple[tuple[str, str], list[str]]]
    about: str = ""


def table(
    frame: pd.DataFrame,
    caption: str,
    show: Callable[[float], str] = figures,
    *,
    about: str = "",
    terms: Mapping[str, str] | None = None,
) -> Table:
    """A frame as a Table: the index heads the rows, `show` formats numbers, texts are kept.

    Column heads that name a metric show its text on hover. `terms` gives the text of other column and row heads (head ->
    text, "": none), `about` that of the caption.
    """
    terms = terms or {}  # rows may be headed by names from a facts file, which are not looked up
    heads = [str(name) for name in (frame.index.name or "", *frame.columns)]
    texts = hover_texts(heads) | dict(terms)
    keys = [
        f"{key:,}" if isinstance(key, int) else figures(key) if isinstance(key, float) else str(key)
        for key in frame.index
    ]
    cells = [
        [value if isinstance(value, str) else show(value) for value in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    rows = [((key, terms.get(key, "")), row) for key, row in zip(keys, cells, strict=True)]
    return Table(caption, [(head, texts.get(head, "")) for head in heads], rows, about)


@dataclass(frozen=True)
class Picture:
    """A figure's place in the page, its words as plain text, and its numbers."""

    id: str
    finding: str
    caption: str
    description: str
    table: Table


def picture(name: str, fig: go.Figure, about: str = "") -> Picture:
    """A figure's text and numbers for the page; `about` explains what it measures."""
    texts = {key: unescape(text) for key, text in words(fig).items()}  # escaped for plotly, which interprets HTML
    show = metric("ES").format if fig.layout.yaxis.tickformat == ".0%" else figures
    shown = table(numbers(fig), texts["caption"], show, about=about)
    return Picture(name, texts["finding"], texts["caption"], texts["description"], shown)


def render(title: str, drawn: Mapping[str, go.Figure], **context: object) -> str:
    """The page as text: `drawn` has a figure for the id of every Picture in `context`; sections without context are omitted."""
    environment = Environment(
        loader=PackageLoader("ketools.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {}  # unsorted: figures are drawn in the page's order
    data = {name: json.loads(str(undressed(fig).to_json())) for name, fig in drawn.items()}
    template = environment.get_template("page.html.j2")
    return template.render(context, title=title, data=data, plotly=get_plotlyjs())


def write_report(runs: Mapping[str, RunRecord] | Sequence[Group], path: str | Path) -> Path:
    """Write the report of several runs to `path`, whole or not at all; returns the path.

    Args:
        runs: groups from `ketools.runs.records.arrange`, or {name: record}.
        path: the HTML file.

    Figures without records are left out and named. Raises KetoolsError if there is no run or nothing was measured, OSError
    if the file cannot be written.
    """
    if isinstance(runs, Mapping):
        named = [Run(name, record) for name, record in runs.items()]
        groups = [Group(named[0].model, run.name, (run,)) for run in named]
    else:
        groups = list(runs)
    if not groups:
        raise KetoolsError("nothing to report: no runs; give at least one record (method -> RunRecord)")
    models: Models = {m: [g for g in groups if g.model == m] for m in dict.fromkeys(g.model for g in groups)}
    drawn: dict[str, go.Figure] = {}
    missing: dict[str, str] = {}
    sections: dict[str, tuple[str, dict[str, Picture]]] = {}
    for key, chart in CHARTS.items():
        for place, (model, members) in enumerate(models.items(), 1):
            try:
                fig = chart.figure(members)
            except KetoolsError as error:  # not recorded, for example without tasks or text; the report says so
                missing[f"{key} ({model})" if len(models) > 1 else key] = str(error)
                continue
            name = key if place == 1 else f"{key}-{place}"
            drawn[name] = fig
            sections.setdefault(key, (chart.title, {}))[1][model] = picture(name, fig, chart.about())
    if not drawn:
        raise KetoolsError(f"nothing to report: {'; '.join(missing.values())}")
    context: dict[str, Any] = {"models": models, "sections": sections, "missing": missing, "facts": _facts(groups)}
    context["in_short"] = {
        model: [f"{sections[key][1][model].finding}." for key in IN_SHORT if model in sections.get(key, ("", {}))[1]]
        for model in models
    }
    context |= {"at_the_end": {m: at_the_end(members) for m, members in models.items()}, "lost": lost_edits(groups)}
    # Tables with many columns may be wider than the text.
    context["bleed"] = len(models) == 1 and len(groups) > 4
    ends = {m: {g.label: [_end(r) for r in g.runs if r.edits] for g in gs} for m, gs in models.items()}
    compared = {
        model: beside_paper({label: pd.DataFrame(rows).mean() for label, rows in by_method.items() if rows})
        for model, by_method in ends.items()
    }
    context["beside_paper"] = {model: verdicts for model, verdicts in compared.items() if verdicts}
    try:
        full = capacity(groups)
        drawn["capacity"] = capacity_curve(full)
        context |= {"capacity": picture("capacity", drawn["capacity"]), "capacity_reached": capacity_reached(full)}
    except KetoolsError as error:
        missing["capacity"] = str(error)
    try:
        context["pairs"] = pairs(groups)
    except KetoolsError as error:
        missing["tests between methods"] = str(error)
    context["runs"] = [
        (_name(run, group, groups), json.dumps(finite(dict(run.about)), indent=2, ensure_ascii=False, default=str))
        for group in groups
        for run in group.runs
    ]
    context["unfinished"] = [note for group in groups for run in group.runs if (note := _unfinished(run, group))]
    heading = f"Lifelong editing: {listed(list(dict.fromkeys(title(group.label) for group in groups)))}"
    return write_atomic(path, render(heading, drawn, **context))


def _facts(groups: Sequence[Group]) -> dict[str, str]:
    """The line under the heading, about the runs."""
    runs = [run for group in groups for run in group.runs]

    def each(values: Sequence[Any]) -> str:
        known = sorted({int(value) for value in values if value is not None})
        return listed([f"{value:,}" for value in known]) if known else ""

    started = min((str(run.about["started"]) for run in runs if run.about.get("started")), default="")  # an ISO time
    facts = {
        "model": listed(list(dict.fromkeys(group.model for group in groups))),
        "edits": each([run.settings.get("edits") for run in runs]),
        "per batch": each([run.settings.get("batch") for run in runs]),
        "seed": each([run.seed for run in runs]),
        "runs": str(len(runs)) if len(runs) > len(groups) else "",
        "started (UTC)": started[:16].replace("T", " "),
    }
    return {name: value for name, value in facts.items() if value}


def at_the_end(groups: Sequence[Group]) -> tuple[Table, list[Verdict]]:
    """For one model: everything measured at the last checkpoint, a column per method (over seeds: mean and range).

    Also the unedited model, the number of facts behind each share, and verdicts on what the unedited model did not know,
    which no share counts.
    """
    runs = {
        group.label: [run for run in group.runs if len(run.record.checkpoints) and not run.ended_at_once]
        for group in groups
    }
    ends = {label: [_end(run) for run in some] for label, some in runs.items() if some}
    shown = [each for each in map(metric, END) if any(each.key in row for rows in ends.values() for row in rows)]
    of_seed = {run.seed: run for some in reversed(runs.values()) for run in some if run.before}
    beside = ("n", "unedited") if of_seed else ()
    befores, ns = [run.before for run in of_seed.values()], [run.counts() for run in of_seed.values()]

    def unedited(each: Metric) -> tuple[str, str]:
        n = [known[each.key] for known in ns if each.key in known]
        before = [values.get(each.key, np.nan) for values in befores]
        return _over_seeds(n, "{:,.0f}".format) if n else "", _over_seeds(before, each.format)

    cells = {
        each.label: [
            *(unedited(each) if beside else ()),
            *(_over_seeds([row.get(each.key, np.nan) for row in rows], each.brief) for rows in ends.values()),
        ]
        for each in shown
    }
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=[*beside, *map(title, ends)])
    counts = sorted({int(row["edits"]) for rows in ends.values() for row in rows})
    caption = f"All edits scored again on the model after {listed([f'{n:,}' for n in counts])} edits"
    caption += "; mean (range) over seeds" if any(len(rows) > 1 for rows in ends.values()) else ""
    terms = {"metric": "", "n": "facts behind a share", "unedited": "the model before any edit"} | {
        each.label: each.text() for each in shown
    }
    return table(frame.rename_axis("metric"), caption, terms=terms), _unknown(groups)


def _end(run: Run) -> dict[str, float]:
    """A run's last checkpoint as numbers, with seconds per edit and the edited facts' probability right after their edits."""
    row = run.record.checkpoints.iloc[-1]
    end = {str(name): float(row[name]) for name in row.index if name in END or name == "edits"}
    batches = run.record.batches
    if {"seconds", "facts"} <= set(batches) and len(batches):
        end["seconds_per_edit"] = float(batches["seconds"].sum() / batches["facts"].sum())
    if "at_edit_p_new" in run.record.facts:  # at the end, lost edits would hide overfitting
        end["p_at_edit"] = float(run.record.facts["at_edit_p_new"].mean())
    return end


def _over_seeds(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Mean and range over seeds, and how many seeds these are if some have no value."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return MISSING
    mean, low, high = (show(float(value)) for value in (np.mean(known), min(known), max(known)))
    aside = [f"{low.rstrip('%×')}–{high}"] if low != high else []
    if len(known) < len(values):
        aside.append(f"{len(known)} of {len(values)}")
    return f"{mean} ({'; '.join(aside)})" if aside else mean


def _unknown(groups: Sequence[Group]) -> list[Verdict]:
    runs = [run for group in groups for run in group.runs if len(run.record.checkpoints)]
    several = len({run.seed for group in groups for run in group.runs}) > 1
    seeds: dict[tuple[str, int, int], list[int]] = {}
    for run in runs:
        start = run.record.checkpoints.iloc[0]
        for name, what in (("unedited", "unedited facts"), ("same_subject", "other facts about edited subjects")):
            asked, known = (start.get(f"{name}_{count}", np.nan) for count in ("asked", "known"))
            if known < asked:
                seeds.setdefault((what, int(asked), int(known)), []).append(run.seed)
    return [
        Verdict("unknown", {"known": known, "seeds": list(dict.fromkeys(of)) if several else []}, asked, what)
        for (what, asked, known), of in seeds.items()
    ]


def pairs(groups: Sequence[Group]) -> dict[str, Any]:
    """McNemar's test between methods, fact by fact: verdict and table; {} if there are no two runs to compare.

    Raises KetoolsError, with the reason, for runs that cannot be compared.
    """
    comparable([run for group in groups for run in group.runs])
    tests = paired_tests(groups)
    if tests.empty:
        return {}
    verdict = Verdict("pairs", {"differ": int((tests["p_adjusted"] < 0.05).sum())}, len(tests))
    counted = {name: metric(name, "forgetting") for name in ("only_a", "only_b", "both", "neither", "p_adjusted")}
    shown = tests.assign(a=tests["a"].map(title), b=tests["b"].map(title), p_adjusted=tests["p_adjusted"].map(p_value))
    shown = shown.set_index("a").rename_axis("method")[["b", "model", "seed", *counted]]
    shown = shown.astype({"seed": str, "model": str})
    shown = shown.rename(columns={"b": "and"} | {name: each.label for name, each in counted.items()})
    caption = (
        "Edits recalled at the end with one method but not with the other: McNemar's exact test, p adjusted over all rows "
        "(Benjamini and Hochberg)"
    )
    return {"verdict": verdict, "table": table(shown, caption, terms={m.label: m.text() for m in counted.values()})}


def lost_edits(groups: Sequence[Group]) -> list[tuple[str, int, int, Table | None]]:
    """Edits that had succeeded and were lost at the end: (method, how many, of how many, those that lost most probability)."""
    needed = {
        "subject", "relation", "batch", "at_edit_p_new", "end_p_new", "at_edit_efficacy_success", "end_efficacy_success",
    }  # fmt: skip
    moments = {"at_edit_p_new": "probability right after the edit", "end_p_new": "probability at the end"}
    terms = {head: hover_text(name, "facts") for name, head in moments.items()}
    several = len({group.model for group in groups}) > 1
    lost: list[tuple[str, int, int, Table | None]] = []
    for group in groups:
        tables = [run.record.facts for run in group.runs if needed <= set(run.record.facts)]
        if not tables:
            continue
        facts = pd.concat(tables, ignore_index=True)
        gone = facts[(facts["at_edit_efficacy_success"] == 1) & (facts["end_efficacy_success"] == 0)]
        worst = gone.assign(drop=gone["at_edit_p_new"] - gone["end_p_new"]).nlargest(LOST, "drop").set_index("subject")
        shown = worst[["relation", "batch", *moments]].rename(columns=moments)
        caption = f"The {len(shown)} that lost most probability"
        name = f"{title(group.label)} ({group.model})" if several else title(group.label)
        lost.append((name, len(gone), len(facts), table(shown, caption, terms=terms) if len(shown) else None))
    return lost


def _name(run: Run, group: Group, groups: Sequence[Group]) -> str:
    name = title(group.label) + (f", seed {run.seed} ({run.name})" if len(group.runs) > 1 else "")
    return f"{name}, {group.model}" if len({other.model for other in groups}) > 1 else name


def _unfinished(run: Run, group: Group) -> str:
    others = "; the lines of means over its seeds stop there too" if len(group.runs) > 1 and run.edits else ""
    if run.collapsed:
        end = run.record.collapse or {}
        why = end.get("why", "not finite")
        return f"{run.name} ended early, after {end.get('edits', run.edits):,} edits: {why}{others}"
    wanted = run.settings.get("edits")
    return "" if run.complete or not wanted else f"{run.name} reaches {run.edits:,} of {wanted:,} edits{others}"
