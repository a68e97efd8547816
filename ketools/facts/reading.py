"""Reading files of facts: bytes -> records -> Facts; every mistake is reported with its place and field.

Files are .jsonl (one record per line), .json (a list of records) or .csv (a header, then one fact per row), each also
with .gz, in UTF-8. The fields of a record determine its layout: `ketools.facts.layouts`.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactError, FactSet, composed, problems, short
from ketools.facts.fetch import SOURCES, local
from ketools.facts.layouts import ALIASES, COLUMNS, convert, frames_of, from_cells, layout_of
from ketools.io import data_root, expanded, knows_world, read_bytes

Record = dict[str, Any]
_FORMATS = "expected .jsonl, .json or .csv, each also followed by .gz"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" decodes a byte that is not UTF-8


class Converted(NamedTuple):
    """One record as facts: `where` it is ("line 3", "record 3"; counted from 1), its layout (None if unknown), its
    facts, and all its mistakes; a fact with a mistake is not among the facts.
    """

    where: str
    layout: str | None
    facts: tuple[Fact, ...]
    errors: tuple[KetoolsError, ...]


def facts(source: str | Path) -> FactSet:
    """Read facts: "world" (the built-in fictional world), "real" (facts of the real world that SmolLM2-135M knows), the
    name of a data set fetched by `ketools data get` ("counterfact", "zsre", ...), or a file (.jsonl, .json, .csv, each
    also with .gz).

    `ketools.facts.layouts` describes the known layouts. Raises KetoolsError naming file, line or record, and field of
    the first mistake; `ketools data check` lists all.

    Examples:
        >>> import ketools as ke
        >>> ke.facts("world").sample(50, seed=0)
        FactSet(50 facts, 50 subjects, 13 relations)
    """
    path = source_path(source)
    read: list[Fact] = []
    for record in converted(path):
        for error in record.errors:
            raise KetoolsError(f"{path}, {record.where}: {error}")
        read += record.facts
    if not read:
        raise KetoolsError(f"{path} is empty: no facts in it; expected one record a line (.jsonl) or a list (.json)")
    return FactSet(read)


def own_facts(model: str | Path) -> FactSet:
    """The set, "world" or "real", that the model of this name or path knows; empty if that set is not installed."""
    source = "world" if knows_world(model) else "real"
    return facts(source) if (data_root() / source).is_dir() else FactSet([])


def source_path(source: str | Path) -> Path:
    """The file that `facts(source)` reads; raises KetoolsError for a data set that is not on this machine."""
    if str(source) in ("world", "real"):
        folder = data_root() / str(source)
        for name in ("facts.jsonl.gz", "facts.jsonl"):
            if (folder / name).is_file():
                return folder / name
        raise KetoolsError(
            f"the built-in facts {source!r} are missing: no facts.jsonl.gz in {folder}; check out the whole data folder"
        )
    if str(source) in SOURCES and not Path(source).exists():
        return local(str(source))
    return expanded(source)


def converted(path: Path) -> Iterator[Converted]:
    """Each record of `path` as facts, good or bad, in order; the ids of the facts are unique.

    Raises KetoolsError, naming file and line, only for a file of which no records can be read.
    """
    placed = list(records(path))
    frames = frames_of(record for _, record in placed)
    where_of: dict[str, str] = {}  # id -> the place that used it first
    for where, record in placed:
        try:
            if isinstance(record, KetoolsError):
                raise record
            layout = layout_of(record)
        except KetoolsError as error:
            yield Converted(where, None, (), (error,))
            continue
        good: list[Fact] = []
        errors: list[KetoolsError] = []
        for values, mistakes in convert(layout, record, where.split()[-1], frames):
            id = values["id"]
            used = []
            if id in where_of:
                used = [FactError(id, "id", f"is already used on {where_of[id]}; give every fact its own")]
            where_of.setdefault(id, where)
            try:
                if not mistakes and not used:
                    good.append(Fact(**values))
                    continue
            except FactError:  # names the first mistake only
                pass
            errors += [*mistakes, *problems(values), *used]
        yield Converted(where, layout, tuple(good), tuple(errors))


def records(path: Path) -> Iterator[tuple[str, Record | KetoolsError]]:
    """("line 3" or "record 3", the record or its error) for a whole file; counts from 1, blank lines included. All
    texts are in Unicode's composed form.

    Raises KetoolsError, naming the file, if it is missing, of another kind, no whole gzip file, UTF-16, not a list of
    records (.json), or without the required columns (.csv).
    """
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a file of facts in it ({_FORMATS})")
    if not path.exists():
        raise KetoolsError(
            f'no facts file {path}; give "world" or "real" for the built-in facts or the path of a file ({_FORMATS})'
        )
    readers = {".json": _from_list, ".jsonl": _from_lines, ".csv": _from_rows}
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if kind not in readers:
        raise KetoolsError(f"{path}: can't tell what kind of file this is; {_FORMATS}")
    data = read_bytes(path, "facts")
    if _is_utf16(data):
        raise KetoolsError(f"{path}, line 1: UTF-16 text; save the file as UTF-8")
    text = composed(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))  # with or without a byte-order mark
    escapes = "\\u" in text  # JSON turns these into letters
    if not text.strip():
        return
    for where, record in readers[kind](path, text):
        if not isinstance(record, dict | KetoolsError):
            record = KetoolsError(f"holds {type(record).__name__}; expected an object with the fields of a fact")
        yield where, composed(record) if escapes else record


def encoding(path: Path) -> str:
    """The encoding of `path`, as far as it can be determined, for the report of a check."""
    try:
        data = read_bytes(path, "facts")
        if _is_utf16(data):
            return "UTF-16"
        data.decode("utf-8")
    except KetoolsError:
        return "unknown"
    except UnicodeDecodeError:
        return "not UTF-8"
    return "UTF-8 with a byte-order mark" if data.startswith(b"\xef\xbb\xbf") else "UTF-8"


def _is_utf16(data: bytes) -> bool:
    # With its mark or without: half of the bytes of Latin text are then zero, which never occur in UTF-8 text.
    return data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:64].count(0) >= max(1, len(data[:64]) // 4)


def _not_utf8(text: str) -> KetoolsError | None:
    match = None if text.isascii() else _NOT_UTF8.search(text)
    return match and KetoolsError(f"byte 0x{ord(match[0]) - 0xDC00:02X} is not UTF-8; save the file as UTF-8")


def _from_lines(_: Path, text: str) -> Iterator[tuple[str, object]]:
    # Not splitlines(): names may contain U+2028 and the like, which JSON allows inside a string.
    for k, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {k}", _not_utf8(line) or json.loads(line)
        except json.JSONDecodeError as error:
            what = f"broken JSON at column {error.colno} ({error.msg})"
            yield f"line {k}", KetoolsError(f"{what}; expected one record a line")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
            yield f"line {k}", KetoolsError(f"broken JSON ({error}); expected one record a line")


def _from_list(path: Path, text: str) -> Iterator[tuple[str, object]]:
    if _NOT_UTF8.search(text):
        lines = enumerate(text.split("\n"), 1)
        yield from ((f"line {k}", error) for k, line in lines if (error := _not_utf8(line)))
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; if it holds one record a line, name it .jsonl" if error.msg == "Extra data" else ""
        raise KetoolsError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno} ({error.msg}){hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise KetoolsError(f"{path}: broken JSON ({error})") from None
    if not isinstance(value, list):
        what = "an object with the fields " + ", ".join(map(repr, value)) if isinstance(value, dict) else short(value)
        raise KetoolsError(f"{path}: holds {what}; expected a list of records: [{{...}}, {{...}}]")
    yield from ((f"record {k}", record) for k, record in enumerate(value, 1))


def _from_rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # where the row begins; it may span several lines
        try:
            cells = next(reader)
            if header is None and any(cell.strip() for cell in cells):
                header = _header([cell.strip() for cell in cells])
                continue
        except StopIteration:
            return
        except (csv.Error, KetoolsError) as error:
            if header is None:
                what = f"broken CSV ({error})" if isinstance(error, csv.Error) else error
                raise KetoolsError(f"{path}, line {line}: {what}") from None
            yield f"line {line}", KetoolsError(f"broken CSV ({error}); is a quotation mark missing?")
            continue
        if header is None or not any(cell.strip() for cell in cells):
            continue
        try:
            if wrong_encoding := _not_utf8("\n".join(cells)):
                raise wrong_encoding
            if len(cells) != len(header):
                raise KetoolsError(
                    f"has {len(cells)} cells, the header {len(header)} ({', '.join(header)}); "
                    "put cells that hold a comma into quotation marks"
                )
            yield f"line {line}", from_cells(dict(zip(header, cells, strict=True)))
        except KetoolsError as error:
            yield f"line {line}", error


def _header(names: list[str]) -> list[str]:
    # The names of the columns, checked.
    if error := _not_utf8("\n".join(names)):
        raise error
    names = [ALIASES.get(name, name) for name in names]
    needed, others = COLUMNS[:3], COLUMNS[3:]
    expected = f"expected a first line with the columns {', '.join(needed)} and optionally {', '.join(others)}"
    if not set(names) & set(COLUMNS):
        other = next((mark for mark in ";\t" if len(names) == 1 and mark in names[0]), None)
        why = f"the cells are separated by {other!r}, not by commas" if other else "there is no header"
        raise KetoolsError(f"{why}: found {short(','.join(names))}; {expected}")
    for wrong, what in (
        ([name for name in names if name not in COLUMNS], "unknown"),
        ([name for name in needed if name not in names], "missing"),
        (sorted({name for name in names if names.count(name) > 1}), "there twice"),
    ):
        if wrong:
            raise KetoolsError(f"column {', '.join(map(repr, wrong))} {what}; {expected}")
    return names
