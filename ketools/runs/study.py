"""A study: many runs without their weights in one folder, for reports and comparisons; small enough to commit.

    runs.json          by name of the run: settings, provenance and, if it ended early, how; checksums of the tables
    batches.parquet    and norms, facts, checkpoints, spectra, residual: the tables of `RunRecord`, concatenated over runs,
                       with a column `run`

A column that a run lacks is null in its rows; NaN remains NaN, a number that could not be measured.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ketools.errors import Damaged
from ketools.io import arrow_of, read_bytes, write_atomic
from ketools.runs.store import FRAMES, About, Collapse, RunRecord, Schema, read_sealed, usable, write_sealed

FACTS = ("id", "batch", "relation", "subject", "steps", "p_target")
SCORES = ("p_new", "efficacy_success", "efficacy_accuracy", "paraphrase_success", "neighbourhood_success")
"""Columns of the facts that a study keeps, for tests between methods, forgetting and lists of lost edits."""


class _One(Schema):
    about: About
    collapse: Collapse | None = None


class _Runs(Schema):
    runs: dict[str, _One]
    tables: dict[str, str]


def is_study(folder: Path) -> bool:
    """Does the folder hold a study?"""
    return (folder / "runs.json").is_file()


def write_study(records: Mapping[str, RunRecord], folder: str | Path) -> Path:
    """Write the runs, by name, as a study to `folder`, replacing the one there; returns the folder.

    The table of facts keeps only FACTS and SCORES, with numbers in float32; other tables are complete.
    """
    folder = Path(folder)
    sums = {}
    for name in FRAMES:
        parts = []
        for run, record in records.items():
            frame = getattr(record, name)
            if name == "facts":
                kept = [*FACTS, *(f"{moment}_{score}" for moment in ("at_edit", "end") for score in SCORES)]
                frame = frame[[column for column in kept if column in frame]]
                frame = frame.astype(dict.fromkeys(frame.select_dtypes("float").columns, "float32"))
            if len(frame):
                # With from_pandas=False, NaN does not become null.
                columns = {column: pa.array(frame[column].to_numpy(), from_pandas=False) for column in frame}
                parts.append(pa.table({"run": [run] * len(frame)} | columns))
        if parts:
            buffer = io.BytesIO()
            pq.write_table(pa.concat_tables(parts, promote_options="permissive"), buffer, compression="zstd")
            write_atomic(folder / f"{name}.parquet", buffer.getvalue())
            sums[f"{name}.parquet"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    about = {run: {"about": record.provenance, "collapse": record.collapse} for run, record in records.items()}
    write_sealed(folder / "runs.json", {"runs": about, "tables": sums}, indent=1)
    return folder


def add_to_study(records: Mapping[str, RunRecord], folder: str | Path) -> dict[str, RunRecord]:
    """Add the runs to the study in `folder`; it is written only if one of them is new.

    Returns:
        All runs of the study, by name.
    """
    there = read_study(folder) if is_study(Path(folder)) else {}

    def state(record: RunRecord) -> tuple[object, ...]:  # provenance stays while a stopped run goes on
        return record.provenance, record.collapse, len(record.batches), len(record.checkpoints), [*record.facts]

    if any(name not in there or state(there[name]) != state(record) for name, record in records.items()):
        write_study({**there, **records}, folder)
    return {**there, **records}


def read_study(folder: str | Path) -> dict[str, RunRecord]:
    """The runs of a study, by name. Raises Damaged, naming the file, if one is missing or was changed."""
    folder = Path(folder)
    content: dict[str, Any] = read_sealed(folder / "runs.json", _Runs)
    tables: dict[str, pa.Table] = {}
    for file, wanted in content["tables"].items():
        name = file.removesuffix(".parquet")
        if name not in FRAMES:
            raise Damaged(f"{folder / 'runs.json'}: field {file}: not a table of a run")
        data = read_bytes(folder / file, "a table of runs")
        if hashlib.sha256(data).hexdigest() != wanted:
            raise Damaged(f"{folder / file}: its checksum does not match that in runs.json")
        tables[name] = arrow_of(data, str(folder / file))
        if "run" not in tables[name].column_names:
            raise Damaged(f"{folder / file}: the column 'run' is missing")
    records = {}
    for run, its in content["runs"].items():
        frames = {name: pd.DataFrame() for name in FRAMES}
        for name, table in tables.items():
            part = table.filter(pc.equal(table["run"], run)).drop_columns("run")
            there = [column for column in part.column_names if part[column].null_count < len(part)]
            if there:
                frames[name] = usable(name, part.select(there).to_pandas(), str(folder / f"{name}.parquet"))
        records[run] = RunRecord(**frames, provenance=its["about"], collapse=its.get("collapse"))
    return records
