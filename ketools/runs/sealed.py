"""Files that know whether they are what was written: JSON with its own checksum, and checksums of other files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ketools.errors import KetoolsError
from ketools.files import finite, write_atomic


class Damaged(KetoolsError):
    """A file of a run is not what was written there; the message names it."""


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as JSON gives it back (NaN and infinity become null), with "sha256": its digest."""
    plain = json.loads(json.dumps(finite(content), ensure_ascii=False, default=str))
    return plain | {"sha256": digest(plain)}


def digest(content: object) -> str:
    """sha256 (hex) of what JSON can hold, however it is indented and ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any], indent: int | None = None) -> Path:
    """Write `content` with its digest, whole or not at all; returns the path."""
    return write_atomic(path, json.dumps(sealed(content), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the digest. Raises Damaged for a file that is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Damaged(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
        raise Damaged(f"{path}: its checksum does not fit, the file was changed or damaged")
    return content


def pack(frame: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON can hold it: {column: [type, values]}, bits of floats kept; unpack() gives the same table."""
    return {
        str(name): [str(frame[name].dtype), [_out(value) for value in frame[name].tolist()]] for name in frame.columns
    }


def unpack(packed: Mapping[str, Any]) -> pd.DataFrame:
    """The table that `pack` was given."""
    columns = {}
    for name, (kind, values) in packed.items():
        # The words nan, inf and -inf, which JSON knows as texts only, are read as numbers.
        number = kind.startswith("float")
        columns[name] = pd.Series([float(v) for v in values] if number else values, dtype=kind)
    return pd.DataFrame(columns)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; an empty one for none."""
    parts = [frame for frame in frames if len(frame.columns)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _out(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
