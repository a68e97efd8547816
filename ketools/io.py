"""Files and folders that are either wholly written or not there at all, one reader for tensors, and where data lies."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write `content` (str as UTF-8) to `path` so that no reader ever sees half of it; returns the path.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed. Missing folders are made.
    An error (full disk, no permission) is an OSError that names `path`; the temporary file is then gone and an
    earlier file at `path` unchanged.
    """
    with _replacing(Path(path)) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def write_tensors(path: str | Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, str]) -> Path:
    """Write `tensors` and the texts `about` them as one safetensors file, as `write_atomic` does; returns the path."""
    from safetensors.torch import save_file  # brings torch with it

    with _replacing(Path(path)) as part:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, dict(about))
        except SafetensorError as error:  # a full disk among others: the library wraps what the system said in words
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
    return Path(path)


def read_tensors(
    path: str | Path,
    what: str,
    format: str | None = None,
    made_by: str = "ketools",
    only: Collection[str] | None = None,
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors (CPU) and texts about them of the safetensors file at `path`.

    `what` names the content in errors ("edit"), `made_by` what writes such files ("Edit.save"). `format` is the value
    that the text "format" must have; None: not looked at. `only`: the names to read, as far as they are there; None: all.

    Raises KetoolsError for a file that is missing, truncated, of another kind or another format. Pickles (torch.save)
    are never opened: unpickling runs code.
    """
    wanted = f"expected a file written by {made_by}"
    try:
        with safe_open(str(path), framework="pt") as file:
            about = dict(file.metadata() or {})
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise KetoolsError(f"no {what} in {path}: {_trouble(Path(path), error)}; {wanted}") from error
    if format is not None and about.get("format") != format:
        raise KetoolsError(f"{path} is no {what}: format {about.get('format')!r} instead of {format!r}; {wanted}")
    return tensors, about


def _trouble(path: Path, error: Exception) -> str:
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "it holds a zip archive or a pickle (torch.save, numpy), which is not opened because it can run code"
    size, length = path.stat().st_size, int.from_bytes(start, "little")
    if size < 8 or "not fully covered" in str(error) or (length < 1e8 and length > size - 8):
        return f"the file is truncated ({size} bytes), copy or make it again"
    return f"it is no safetensors file ({error})"


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill within the block; afterwards it is flushed and becomes `path`.

    On an error in the block it is removed, and `path` is as before. Raises KetoolsError if `path` is a file or a
    folder that holds something: nothing is ever overwritten.
    """
    path = Path(path).expanduser()
    if path.is_dir() and any(path.iterdir()):
        raise KetoolsError(f"folder {path} is not empty; give a new name, or empty it first")
    if path.exists() and not path.is_dir():
        raise KetoolsError(f"{path} is a file; give the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        part.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()  # not every system renames onto an empty folder
        part.replace(path)
        _flush_names(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        _flush(part)
        part.chmod(0o666 & ~_umask())
        part.replace(path)
        _flush_names(path.parent)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # the temporary's name would tell the user nothing
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    # A renamed file survives a power cut only if its folder's list of names is on the disk too. Where folders cannot be
    # opened or flushed (Windows, some network disks) the system keeps its own order.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


def data_root() -> Path:
    """The folder with `world/` and `models/`.

    KETOOLS_DATA if set, else `data/` of the checkout beside the package, else what the wheel brought along.
    Raises KetoolsError if there is no such folder.
    """
    named = os.environ.get("KETOOLS_DATA")
    if named:
        root = Path(named).expanduser()
        if root.is_dir():
            return root
        raise KetoolsError(
            f"KETOOLS_DATA names {root}, which is not a folder; set it to the folder with world/ and models/"
        )
    package = Path(__file__).resolve().parent
    for root in (package.parent / "data", package / "_data"):
        if (root / "world").is_dir():
            return root
    raise KetoolsError(
        f"no data folder at {package.parent / 'data'} or {package / '_data'}: reinstall ketools, "
        "or set KETOOLS_DATA to the folder that holds world/ and models/"
    )


def model_names() -> list[str]:
    """Names of the pocket models that the data folder holds (folders with a config.json), in order."""
    folder = data_root() / "models"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file())


def model_dir(name: str) -> Path:
    """The folder of the pocket model `name`.

    Raises KetoolsError that lists the models there are if `name` is none of them.
    """
    names = model_names()
    if name in names:
        return data_root() / "models" / name
    have = ", ".join(names) if names else f"none yet in {data_root() / 'models'}"
    raise KetoolsError(f"no pocket model named {name!r}; there are: {have}")
