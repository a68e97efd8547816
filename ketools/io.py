"""Files and folders that are written completely or not at all; the one reader of files from outside; the data folder.

Any fault in a file that is read here raises the same error, Damaged, which gives the file, the field, what was found
and what was expected.
"""

import errno
import gzip
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import tomllib
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ketools.errors import Damaged, KetoolsError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


LARGEST = 1 << 29  # most bytes read from a text file; a gzip file of one megabyte can hold a thousand


def read_bytes(path: str | Path, expected: str = "a file", most: int = LARGEST) -> bytes:
    """The bytes of a regular file, unpacked if its name ends in .gz; at most `most` of them.

    Raises Damaged, naming the file and what was `expected`, if it is missing, a folder, a pipe or a device, too large,
    or unreadable.
    """
    path = regular(path, expected)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        kind = "no whole gzip file" if path.suffix == ".gz" else "cannot be read"
        raise Damaged(f"{path}: {kind} ({_reason(error)}); expected {expected}") from error
    if len(data) > most:
        raise Damaged(f"{path}: holds more than {most:,} bytes; expected {expected}")
    return data


def regular(path: str | Path, expected: str) -> Path:
    """`path`, if it is a regular file. Raises Damaged for one that is missing, a folder, a pipe, a device, unreadable."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Damaged(f"{path}: there is no such file; expected {expected}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise Damaged(f"{str(path)!r}: cannot be read ({_reason(error)}); expected {expected}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise Damaged(f"{path}: it is {kind}; expected {expected}")
    return path


def read_json(path: str | Path, schema: Any = Any, expected: str = "JSON", most: int = LARGEST) -> Any:  # noqa: ANN401
    """The content of the JSON file `path`, after `checked`. Raises Damaged."""
    return parsed(read_bytes(path, expected, most), schema, str(path), expected)


def read_toml(path: str | Path, expected: str = "TOML") -> dict[str, Any]:
    """The content of the TOML file `path`. Raises Damaged."""
    data = read_bytes(path, expected)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, thousands of brackets
        raise Damaged(f"{path}: not TOML ({_reason(error)}); expected {expected}") from error


def packaged(name: str) -> dict[str, Any]:
    """The content of a TOML file of the package, such as "editing/hyperparameters.toml"."""
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def arrow_of(data: bytes, where: str) -> "pa.Table":
    """The table in the bytes of the parquet file at `where`. Raises Damaged."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(BytesIO(data))
    except (ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{where}: not a parquet table ({_reason(error)})") from error


def parsed(text: str | bytes, schema: Any, where: str, expected: str = "JSON") -> Any:  # noqa: ANN401
    """The value of the JSON `text` from `where`, after `checked`. Raises Damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, deep nesting
        raise Damaged(f"{where}: not JSON ({_reason(error)}); expected {expected}") from error
    return checked(value, schema, where)


def checked(value: Any, schema: Any, where: str) -> Any:  # noqa: ANN401 - `schema` gives the type
    """`value` itself, if it matches `schema` (a type or a pydantic model; numbers and texts are not converted).

    Raises Damaged with `where`, the field, what it holds and what was expected.
    """
    from pydantic import TypeAdapter, ValidationError  # deferred: it takes a tenth of a second

    try:
        TypeAdapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = repr(first["input"])
        found = found if len(found) <= 60 else f"{found[:57]}..."
        raise Damaged(f"{where}: {f'field {field}: ' if field else ''}{first['msg'].lower()}, found {found}") from error
    return value


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write `content` (str as UTF-8) to `path` so that no reader ever sees half of it; returns the path.

    The bytes go to a temporary name in the same folder, are flushed to disk and renamed. Missing folders are created.
    An error (full disk, no permission) is an OSError that names `path`; the temporary file is then deleted and an
    earlier file at `path` unchanged.
    """
    with _replacing(Path(path)) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def write_tensors(path: str | Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, str]) -> Path:
    """Write `tensors` and the texts `about` them as one safetensors file, like `write_atomic`; returns the path."""
    from safetensors.torch import save_file  # imports torch

    with _replacing(Path(path)) as part:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, dict(about))
        except SafetensorError as error:
            raise _of_the_disk(error, path) from error
    return Path(path)


def _of_the_disk(error: SafetensorError, path: str | Path) -> OSError:
    # For example a full disk; the library gives the system's error only as text.
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def read_tensors(
    path: str | Path,
    what: str,
    format: str | None = None,
    made_by: str = "ketools",
    only: Collection[str] | None = None,
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors (CPU) and texts about them from the safetensors file at `path`.

    `what` names the content in errors ("edit"), `made_by` the writer of such files ("Edit.save"). `format` is the
    required value of the text "format"; None: not checked. `only`: the names to read, if present; None: all.

    Raises Damaged for a file that is missing, truncated, of another kind or another format. Pickles (torch.save) are
    never opened: unpickling runs code.
    """
    wanted = f"a file written by {made_by}"
    regular(path, wanted)
    try:
        with safe_open(str(path), framework="pt") as file:
            about = dict(file.metadata() or {})
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:  # types torch lacks
        raise Damaged(f"no {what} in {path}: {_trouble(Path(path), error)}; expected {wanted}") from error
    if format is not None and about.get("format") != format:
        raise Damaged(f"{path} is no {what}: format {about.get('format')!r} instead of {format!r}; expected {wanted}")
    return tensors, about


def _trouble(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return f"it cannot be read ({_reason(error)})"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "it holds a zip archive or a pickle (torch.save, numpy), which is not opened because it can run code"
    size, length = path.stat().st_size, int.from_bytes(start, "little")
    if size < 8 or "not fully covered" in str(error) or (length < 1e8 and length > size - 8):
        return f"the file is truncated ({size} bytes), copy or make it again"
    return f"it is no safetensors file ({error})"


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill within the block; afterwards it is flushed and becomes `path`.

    On an error in the block it is deleted, and `path` is unchanged. Raises KetoolsError if `path` is a file or a folder
    that is not empty: nothing is ever overwritten.
    """
    path = expanded(path)
    if path.is_dir() and any(path.iterdir()):
        raise KetoolsError(f"folder {path} is not empty; give a new name, or empty it first")
    if path.exists() and not path.is_dir():
        raise KetoolsError(f"{path} is a file; give the name of a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(_temporary(path.name))
    part.mkdir()
    mode = stat.S_IMODE(part.stat().st_mode) & 0o666  # as the umask allows: libraries create private files
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
                file.chmod(mode)
        if path.is_dir():
            path.rmdir()  # not every system renames onto an empty folder
        part.replace(path)
        _flush_names(path.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise _of_the_disk(error, path) from error
        raise


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if (path.exists() and not path.is_file()) or path.parts[:2] in (("/", "dev"), ("/", "proc")):
            with tempfile.TemporaryDirectory() as folder:  # a device or a pipe is written to, never replaced
                part = Path(folder) / "part"
                yield part
                with part.open("rb") as source, path.open("wb") as to:
                    shutil.copyfileobj(source, to)
            return
        path = Path(os.path.realpath(path))  # a link stays; its target is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(_temporary(path.name))
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.close(handle)
            yield part
            _flush(part)
            part.chmod(mode)  # safetensors creates private files
            part.replace(path)
            _flush_names(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:  # the name of the temporary file would not help the user
        raise type(error)(error.errno, error.strerror, str(path)) from error


PART = r"\..+\.[0-9a-f]{8}\.part"  # distinguishes `_temporary` names from a user's own .part files


def _temporary(name: str) -> str:
    return f".{name[:200]}.{secrets.token_hex(4)}.part"


def expanded(path: str | Path) -> Path:
    """`path` with "~" expanded. Raises KetoolsError if the home folder is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise KetoolsError(f"{path}: {error}; give the whole path") from error


def joined_paths(text: str | Path) -> list[str]:
    """The paths in `text`: one that exists, or several joined by `os.pathsep` as in PATH."""
    return [str(text)] if Path(text).exists() else str(text).split(os.pathsep)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    # A renamed file survives a power cut only if the directory is on the disk too. Where folders cannot be opened or
    # flushed (Windows, some network disks), the system decides.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, content: object) -> Path:
    """Write `content` as JSON, like `write_atomic`; NaN and infinity, which JSON lacks, become null."""
    return write_atomic(path, json.dumps(finite(content), indent=2, ensure_ascii=False, default=str) + "\n")


def finite(value: object) -> object:
    """`value` with null for every float that is NaN or infinite, in dicts and lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def data_root() -> Path:
    """The folder with `world/` and `models/`.

    KETOOLS_DATA if set, else `data/` of the checkout beside the package, else the copy in the wheel. Raises
    KetoolsError if there is no such folder.
    """
    named = os.environ.get("KETOOLS_DATA")
    if named:
        root = expanded(named)
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
    """Names of the models in the data folder (folders with a config.json), in order."""
    return sorted(config.parent.name for config in (data_root() / "models").glob("*/config.json") if config.is_file())


def knows_world(model: str | Path) -> bool:
    """Whether the model of that name or folder knows the fictional world: a pocket model or an export of one."""
    path = expanded(model)
    if not (path / "config.json").is_file():
        return str(model) in model_names()
    if path.resolve().parent == (data_root() / "models").resolve():
        return True
    try:  # written by export beside the weights
        return json.loads((path / "ketools.json").read_text(encoding="utf-8")).get("known_as") in model_names()
    except (OSError, ValueError, AttributeError):
        return False


def model_dir(name: str) -> Path:
    """The folder of the pocket model `name`. Raises KetoolsError, listing the models, for any other name."""
    names = model_names()
    if name in names:
        return data_root() / "models" / name
    have = ", ".join(names) if names else f"none yet in {data_root() / 'models'}"
    raise KetoolsError(f"no pocket model named {name!r}; there are: {have}")
