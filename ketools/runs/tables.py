"""The tables of a run as parquet files, and tables.json with their checksums, which stands for all of them being whole."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from ketools.files import write_atomic
from ketools.runs.sealed import Damaged, file_digest, read_sealed, write_sealed

FRAMES = ("batches", "norms", "facts", "checkpoints", "spectra", "residual")
_SUMS = "tables.json"


def write_tables(out: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    """A file for each of FRAMES in the folder `out`, then their checksums."""
    open_tables(out)
    for name, frame in frames.items():
        write_table(out / f"{name}.parquet", frame)
    seal_tables(out)


def write_table(path: Path, frame: pd.DataFrame, compression: Literal["snappy", "zstd"] = "snappy") -> None:
    """One of them, without its index; `compression` is that of parquet."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression=compression)
    write_atomic(path, buffer.getvalue())


def seal_tables(out: Path, *more: str) -> None:
    """tables.json: the checksums of the parquet files that are there, and of `more` files."""
    names = [*(f"{name}.parquet" for name in FRAMES), *more]
    there = [path for name in names if (path := out / name).is_file()]
    write_sealed(out / _SUMS, {path.name: file_digest(path) for path in there}, indent=2)


def open_tables(out: Path) -> None:
    """No tables.json: a kill before they are sealed again leaves none that are taken for whole, or for damaged."""
    (out / _SUMS).unlink(missing_ok=True)


def read_tables(out: Path) -> dict[str, pd.DataFrame]:
    """All of FRAMES; empty where there is no file. Raises Damaged for a missing one that tables.json speaks of, or no table."""
    wanted = read_sealed(out / _SUMS) if (out / _SUMS).is_file() else {}
    if lacking := [name for name in wanted if not (out / name).is_file()]:
        raise Damaged(f"{out / lacking[0]}: missing; {_SUMS} speaks of it")
    return {name: _read(out / f"{name}.parquet") for name in FRAMES}


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error})") from error
