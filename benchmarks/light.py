"""Light records: a finished run without its weights, small enough to be kept with the project (data/results, data/findings)."""

from pathlib import Path

from ketools.errors import KetoolsError
from ketools.io import new_folder
from ketools.runs.records import Run
from ketools.runs.store import FRAMES, RunRecord, Store, write_sealed

# Columns of the facts that are kept: what tests between methods, forgetting and lists of lost edits need.
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
    tables = {name: frame for name in FRAMES if len(frame := getattr(record, name))}
    if "facts" in tables:
        names = [*_FACTS, *(f"{moment}_{name}" for moment in ("at_edit", "end") for name in _SCORES)]
        facts = tables["facts"][[name for name in names if name in tables["facts"]]]
        tables["facts"] = facts.astype(dict.fromkeys(facts.select_dtypes("float").columns, "float32"))
    with new_folder(to) as made:
        light = Store(made)
        light.write_about(store.about())
        if record.collapse is not None:
            write_sealed(made / "collapse.json", record.collapse)
        light.write_tables(tables, "zstd")
    return Path(to)


def size(folder: str | Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
