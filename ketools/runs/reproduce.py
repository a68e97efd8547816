"""The paper's experiment as a run (`ketools reproduce`): its settings and intervals, and the result beside its figures.

Gupta et al., arXiv 2502.01636: 10,000 facts in batches of 100, one fact per subject (ignoring case), seed 37. Every 10 batches
the edits so far are scored (ES, PS, NS, S, generation entropy) and six downstream tasks run, with 4 examples and 100 items
each. The seed is the paper's but the random generator is ours, so the 10,000 facts are a different draw from the same set.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ketools.errors import KetoolsError
from ketools.io import packaged
from ketools.runs.config import RunConfig
from ketools.runs.records import title
from ketools.runs.store import RunRecord

EDITS, BATCH, EVERY, SEED, TASKS = 10_000, 100, 1000, 37, "paper"
MEASURES = {"same_subject": 0, "per_task": 100, "openings": 100}
SCORES = ("ES", "PS", "NS", "S", "GE")
ACCURACY = {"ES": "efficacy_accuracy", "PS": "paraphrase_accuracy", "NS": "locality_accuracy"}
"""On zsRE, which has no true objects to compare with: is every token of the answer the argmax? (The paper: the share of tokens.)"""


def published() -> dict[str, Any]:
    """The paper's tables (counterfact, zsre, overfitting: {model: {method: figures}}, "columns"), their source, its models."""
    return packaged("runs/published.toml")


def _entry(model: str) -> Mapping[str, Any]:
    """The entry of published.toml for a model: its name there, its hub id, or a folder named like either."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    known = published()["models"].items()
    return next((e for name, e in known if last in (name, e["hub"].rpartition("/")[2].lower())), {})


def asked(
    method: str,
    model: str,
    *,
    facts: str = "counterfact",
    edits: int | None = None,
    tasks: str = TASKS,
    **options: Any,  # noqa: ANN401
) -> RunConfig:
    """The config: `model` is a name in published.toml, or whatever `ketools.load` takes; `options` are other keys of a RunConfig.

    edits: None: the number in published.toml (smollm2: the paper's load), else the paper's 10,000.
    """
    entry = _entry(model)
    return RunConfig().changed(
        method=method,
        model=entry["hub"] if model in published()["models"] and not Path(model).is_dir() else model,
        facts=facts,
        edits=edits or entry.get("edits", EDITS),
        tasks=tasks,
        batch=BATCH,
        seed=SEED,
        checkpoint_every=EVERY,
        **options | {
            "settings": (entry.get("zsre", {}) if facts == "zsre" else {}) | options.get("settings", {}),
            "measures": MEASURES | options.get("measures", {}),
        },
    )  # fmt: skip


def beside(record: RunRecord, config: RunConfig) -> pd.DataFrame:
    """The final measures of a run beside the paper's figures.

    Returns:
        A row per measure: measure (ES .. GE, then the tasks' F1), here, paper, difference (here - paper). Scores in percent (on
        zsRE those of ACCURACY), GE as it is; NaN where the paper gives no figure for this model, method and set of facts (it
        gives no F1 at all).

    Raises:
        KetoolsError: nothing has been edited yet.
    """
    last = record.checkpoints.iloc[-1]
    if not last["edits"]:
        raise KetoolsError(f"{config.out}: no checkpoint after an edit yet; let the run continue")
    data = published()
    zsre = config.facts == "zsre"
    table = data["zsre" if zsre else "counterfact"]
    row = table.get(_entry(config.model).get("rows", ""), {}).get(title(config.method), [])
    paper = dict(zip(table["columns"], row, strict=False))
    column = {name: name for name in SCORES} | (ACCURACY if zsre else {})
    here = {name: last.get(column[name], math.nan) * (1 if name == "GE" else 100) for name in SCORES}
    rows = [(name, value, paper.get(name, math.nan)) for name, value in here.items()]
    rows += [(name, 100 * last[name], math.nan) for name in last.index if str(name).startswith("f1_")]
    frame = pd.DataFrame(rows, columns=["measure", "here", "paper"])
    return frame.assign(difference=frame["here"] - frame["paper"])
