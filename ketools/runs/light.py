"""The light record of a run: its tables and where they come from, without weights; enough for reports and comparisons."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ketools.errors import KetoolsError
from ketools.files import new_folder
from ketools.runs.gather import Run
from ketools.runs.store import RunRecord, Store
from ketools.runs.tables import FRAMES, seal_tables, write_table
from ketools.runs.verify import survey

# Of each fact, what tests between methods, forgetting and lists of lost edits need.
_FACTS = ("id", "batch", "relation", "subject", "steps", "p_target")
_SCORES = ("p_new", "efficacy_success", "efficacy_accuracy", "paraphrase_success", "neighbourhood_success")


def pack(folder: str | Path, to: str | Path) -> Path:
    """Write the light record of a finished run to the new folder `to`; returns it.

    run.json, collapse.json where the run ended early, a parquet file for each table and tables.json with their checksums,
    which `RunRecord.load` reads like the run itself. Of the facts the columns that are compared are kept, their numbers in
    float32; other tables are whole.

    Raises:
        KetoolsError: no run, one that is not finished or is damaged, or `to` holds something already.
    """
    store, record = Store(Path(folder)), RunRecord.load(folder)
    run = Run(Path(folder).name, record)
    if not (run.complete or run.collapsed):
        raise KetoolsError(
            f"{folder}: {run.edits:,} of {int(run.settings.get('edits', 0)):,} edits are measured; let the run come to its end"
        )
    with new_folder(to) as made:
        light = Store(made)
        light.write_about(store.about())
        if record.collapse is not None:
            light.put_collapse(record.collapse)
        for name in FRAMES:
            if len(frame := getattr(record, name)):
                write_table(made / f"{name}.parquet", _slim(frame) if name == "facts" else frame, "zstd")
        seal(made)
    return Path(to)


def seal(folder: str | Path) -> Path:
    """Write tables.json, the checksums of a light record that has none yet or the same; returns the folder.

    Raises:
        KetoolsError: no light record, one that cannot be read, or one that is not what its checksums say.
    """
    store, record = Store(Path(folder)), RunRecord.load(folder)
    if not store.light or not len(record.checkpoints):
        raise KetoolsError(f"{folder}: no light record; expected a folder that `ketools.runs.light.pack` wrote")
    if damaged := survey(folder).damaged:
        name, why = next(iter(damaged.items()))
        raise KetoolsError(
            f"{folder}: {name}: {why}; fetch the record again, or remove tables.json if the change was meant"
        )
    seal_tables(store.out, "collapse.json")
    return store.out


def size(folder: str | Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _slim(facts: pd.DataFrame) -> pd.DataFrame:
    scored = [f"{moment}_{name}" for moment in ("at_edit", "end") for name in _SCORES]
    kept = facts[[name for name in (*_FACTS, *scored) if name in facts]]
    return kept.astype({name: "float32" for name in kept.select_dtypes("float").columns})
