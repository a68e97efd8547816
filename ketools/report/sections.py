"""Parts of the report that are no figures: the state at the end, tests between methods, lost edits, provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from ketools.course import findings
from ketools.errors import KetoolsError
from ketools.evaluation.glossary import hover_text
from ketools.files import finite
from ketools.report.page import table
from ketools.report.paper import beside_paper
from ketools.runs.compare import comparable, paired_tests
from ketools.runs.gather import Group, Run
from ketools.runs.names import listed, title

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
    "seconds_per_edit": ("seconds per edit", findings.number),
}
_LOST = 8
_ASKED = {"unedited": "unedited facts", "same_subject": "other facts of edited subjects"}
_COUNTED = ("only_a", "only_b", "both", "neither", "p_adjusted")
_NEEDED = (
    "subject", "relation", "batch", "at_edit_p_new", "end_p_new", "at_edit_efficacy_success", "end_efficacy_success",
)  # fmt: skip


def at_the_end(models: Mapping[str, Sequence[Group]]) -> str:
    """Everything measured at the last checkpoint, methods side by side, a table a model; over seeds: mean (range)."""
    parts = []
    terms = {head: hover_text(name, "demo") for name, (head, _) in _END.items()}
    for model, groups in models.items():
        ends = {group.label: [_end(run) for run in group.runs if len(run.record.checkpoints)] for group in groups}
        ends = {label: rows for label, rows in ends.items() if rows}
        rows = {
            head: [_cell([row.get(name, np.nan) for row in held], show) for held in ends.values()]
            for name, (head, show) in _END.items()
            if any(name in row for held in ends.values() for row in held)
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


def _cell(values: Sequence[float], show: Callable[[float], str]) -> str:
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
