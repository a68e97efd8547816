"""The phenomenon, measured: what sequential edits do to a pocket model, by method, over several seeds.

    python -m benchmarks.phenomenon --out build/phenomenon

Runs the demo for each seed (a seed that is done is not run again; one that was stopped resumes), then writes
phenomenon.md (mean and range over the seeds) and phenomenon.json (every figure of every seed, with provenance).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import ended, over_seeds
from ketools.editing.methods import method
from ketools.io import write_atomic, write_json
from ketools.models.model import EditableModel, load
from ketools.runs.demo import METHODS, demo
from ketools.runs.records import plain

ROWS = (
    ("Frobenius norm of the most-changed edited matrix / original", "norm_ratio", "times"),
    ("still growing over the last quarter (seeds)", "norm_still_growing", "count"),
    ("largest ratio of an unedited matrix", "norm_ratio_unedited", "times"),
    ("retention of unedited facts", "unedited_kept", "percent"),
    ("and falling at the end (seeds)", "unedited_falling", "count"),
    ("retention of other facts about edited subjects", "same_subject_kept", "percent"),
    ("downstream mean F1, relative to the unedited model", "downstream_kept", "percent"),
    ("perplexity, relative to the unedited model", "perplexity_ratio", "times"),
    ("efficacy (ES) of all edits, at the end", "efficacy", "percent"),
    ("efficacy at edit time", "efficacy_at_edit", "percent"),
    ("paraphrase success (PS), at the end", "paraphrase", "percent"),
    ("neighbourhood success (NS), at the end", "neighbourhood", "percent"),
    ("score S, at the end", "score", "percent"),
    ("mean probability of edited facts", "p_edited", "probability"),
    ("mean probability of natural facts, before", "p_natural", "probability"),
    ("optimisation steps per fact", "steps_mean", "number"),
    ("seconds per edit", "seconds_per_edit", "seconds"),
)


def cell(values: Sequence[float | bool | None], kind: str) -> str:
    """Mean and range over the seeds as a table's cell; "-" where nothing was measured."""
    known = [float(v) for v in values if v is not None and not np.isnan(v)]
    if not known:
        return "-"
    if kind == "count":
        return f"{sum(known):.0f} of {len(known)}"
    form = {"times": "{:.2f}", "percent": "{:.1%}", "probability": "{:.3f}", "number": "{:.1f}", "seconds": "{:.3f}"}[
        kind
    ]
    mean, low, high = (form.format(x) for x in (np.mean(known), min(known), max(known)))
    return f"{mean} ({low} to {high})" if len(known) > 1 else mean


def table(results: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """The table as markdown: a row per measure, a column per method."""
    lines = ["| measure | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for title, key, kind in ROWS:
        cells = [cell([result["methods"][name].get(key) for result in results], kind) for name in methods]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def usable(about: dict[str, Any], options: argparse.Namespace, model: EditableModel) -> bool:
    """Are these the figures asked for: this model, as many edits in such batches, and the settings that methods have now?"""
    asked = {"edits": options.edits, "batch": options.batch, "fingerprint": model.fingerprint}
    held = {"edits": about["edits"], "batch": about["batch"], "fingerprint": about["model"]["fingerprint"]}
    known = about.get("methods", {})
    return held == asked and all(
        name in known and known[name].get("settings") == settings(name, model) for name in options.methods
    )


def settings(name: str, model: EditableModel) -> dict[str, Any]:
    """A method's settings for the model, as a run's provenance holds them."""
    return plain(method(name).settings(model))


def one_seed(seed: int, options: argparse.Namespace, model: EditableModel) -> dict[str, Any]:
    """The demo's result for one seed: read if it is there, else run."""
    out = Path(options.out) / f"{options.name}-seed-{seed}"
    stored = out / "demo.json"
    if stored.is_file():
        result = json.loads(stored.read_text(encoding="utf-8"))
        if usable(result["provenance"], options, model):
            return result
    result = demo(
        options.methods,
        model,
        options.edits,
        seed,
        out,
        batch=options.batch,
        progress=not options.quiet,
    )
    return {name: part for name, part in result.items() if name != "records"}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = over_seeds(__doc__, METHODS, "build/phenomenon")
    options = parser.parse_args(words)
    options.name = Path(options.model).name
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing, write the table; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    model = load(options.model)
    results = [one_seed(seed, options, model) for seed in options.seeds]
    about = results[0]["provenance"]
    title = (
        f"{options.model}: {options.edits:,} sequential edits in batches of {options.batch}, "
        f"seeds {', '.join(map(str, options.seeds))}; mean (range)"
    )
    text = f"{title}\n\n{table(results, options.methods)}\n\nModel {about['model']['fingerprint'][:12]}, {about['versions']}\n"
    out = Path(options.out)
    write_atomic(out / f"{options.name}.md", text)
    by_seed = {str(seed): result for seed, result in zip(options.seeds, results, strict=True)}
    write_json(out / f"{options.name}.json", {"seeds": by_seed})
    sys.stdout.write(text)


if __name__ == "__main__":
    raise SystemExit(main())
