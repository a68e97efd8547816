"""Files that are either wholly written or not there at all."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write `content` (str as UTF-8) to `path` so that no reader ever sees half of it; returns the path.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed. Missing folders are made.
    An error (full disk, no permission) is an OSError that names `path`; the temporary file is then gone and an
    earlier file at `path` unchanged.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    name = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # the temporary's name would tell the user nothing
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    return path


def _umask() -> int:
    # mkstemp makes files private to the owner; a report should have the permissions of any other file.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, content: object) -> Path:
    """Write `content` as JSON, as `write_atomic` does; NaN and infinity, which JSON does not know, become null."""
    return write_atomic(path, json.dumps(finite(content), indent=2, ensure_ascii=False, default=str) + "\n")


def finite(value: object) -> object:
    """`value` with null in the place of every float that is NaN or infinite, in dicts and lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
