"""From a file to records: JSON lines, a JSON list or CSV, gzipped or not; mistakes that spoil one record stay with it."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactError, FactSet, problems, short
from ketools.facts.fetch import SOURCES, local
from ketools.facts.layouts import COLUMNS, from_cells, layout_of, sentences, values_of
from ketools.io import data_root

Record = dict[str, Any]
Found = tuple[str, Record | KetoolsError]
_KINDS = ("json", "jsonl", "csv")
_FORMATS = "expected .jsonl, .json or .csv, each also followed by .gz"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8


def records(path: Path) -> Iterator[Found]:
    """("line 3" or "record 3", the record or what is wrong with it) for all of a file; counts from 1, blank lines too.

    Raises KetoolsError, naming the file, if it is missing, of another kind, no whole gzip file, UTF-16, not a list of
    records (.json), or without the columns that are needed (.csv).
    """
    kind = _kind(path)
    text = _decode(path, _bytes(path))
    if not text.strip():
        return
    if kind == ".json":
        yield from _from_list(path, text)
    elif kind == ".csv":
        yield from _from_rows(path, text)
    else:
        yield from _from_lines(text)


def encoding(path: Path) -> str:
    """How the text of `path` is encoded, as far as that can be told: for the report of a check."""
    data = _bytes(path)
    if _is_utf16(data):
        return "UTF-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    return "UTF-8 with a byte-order mark" if data.startswith(b"\xef\xbb\xbf") else "UTF-8"


def _kind(path: Path) -> str:
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a file of facts in it ({_FORMATS})")
    if not path.exists():
        raise KetoolsError(
            f'no facts file {path}; give "world" for the built-in world or the path of a file ({_FORMATS})'
        )
    if stem.suffix.lower()[1:] not in _KINDS:
        raise KetoolsError(f"{path}: can't tell what kind of file this is; {_FORMATS}")
    return stem.suffix.lower()


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise KetoolsError(
            f"{path} is no whole gzip file ({error}); copy it again, or name it without .gz if it is plain text"
        ) from None


def _is_utf16(data: bytes) -> bool:
    # With its mark, or without one: half of the bytes of Latin text are then zero, which text in UTF-8 never holds
    return data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:64].count(0) >= max(1, len(data[:64]) // 4)


def _decode(path: Path, data: bytes) -> str:
    if _is_utf16(data):
        raise KetoolsError(f"{path}, line 1: UTF-16 text; save the file as UTF-8")
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")  # with or without a byte-order mark


def _not_utf8(text: str) -> KetoolsError | None:
    found = _NOT_UTF8.search(text)
    return found and KetoolsError(f"byte 0x{ord(found[0]) - 0xDC00:02X} is not UTF-8; save the file as UTF-8")


def _parse(text: str) -> object:
    """One line of JSON -> value; raises KetoolsError that says the column of a mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"broken JSON at column {error.colno} ({error.msg})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        what = f"broken JSON ({error})"
    raise KetoolsError(f"{what}; expected one record a line")


def _from_lines(text: str) -> Iterator[Found]:
    # Not splitlines(): names may hold U+2028 and the like, which JSON allows inside a string.
    for k, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {k}", _not_utf8(line) or _as_record(_parse(line))
        except KetoolsError as error:
            yield f"line {k}", error


def _from_list(path: Path, text: str) -> Iterator[Found]:
    lines = [(k, _not_utf8(line)) for k, line in enumerate(text.split("\n"), 1) if _NOT_UTF8.search(line)]
    if lines:
        yield from ((f"line {k}", error) for k, error in lines)
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; if it holds one record a line, name it .jsonl" if error.msg == "Extra data" else ""
        raise KetoolsError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno} ({error.msg}){hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise KetoolsError(f"{path}: broken JSON ({error})") from None
    if not isinstance(found, list):
        what = "an object with the fields " + ", ".join(map(repr, found)) if isinstance(found, dict) else short(found)
        raise KetoolsError(f"{path}: holds {what}; expected a list of records: [{{...}}, {{...}}]")
    for k, record in enumerate(found, 1):
        try:
            yield f"record {k}", _as_record(record)
        except KetoolsError as error:
            yield f"record {k}", error


def _as_record(record: object) -> Record:
    if not isinstance(record, dict):
        raise KetoolsError(f"holds {type(record).__name__}; expected an object with the fields of a fact")
    return record


def _from_rows(path: Path, text: str) -> Iterator[Found]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # a row may go over several lines: named is the one on which it begins
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise KetoolsError(f"{path}, line {line}: broken CSV ({error})") from None
            yield f"line {line}", KetoolsError(f"broken CSV ({error}); is a quotation mark missing?")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(path, line, cells)
            continue
        yield f"line {line}", _not_utf8("\n".join(cells)) or _row(header, cells)


def _row(header: list[str], cells: list[str]) -> Record | KetoolsError:
    if len(cells) != len(header):
        return KetoolsError(
            f"has {len(cells)} cells, the header {len(header)} ({', '.join(header)}); "
            "put cells that hold a comma into quotation marks"
        )
    try:
        return from_cells(dict(zip(header, cells, strict=True)))
    except KetoolsError as error:
        return error


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    """The names of the columns, checked."""
    names = [cell.strip() for cell in cells]
    if error := _not_utf8("\n".join(names)):
        raise KetoolsError(f"{path}, line {line}: {error}")
    need = "subject, prompt, target_new"
    expected = f"expected a first line with the columns {need} and at will {', '.join(COLUMNS[3:])}"
    if not set(names) & set(COLUMNS):
        other = next((mark for mark in ";\t" if len(cells) == 1 and mark in cells[0]), None)
        why = f"the cells are separated by {other!r}, not by commas" if other else "there is no header"
        raise KetoolsError(f"{path}, line {line}: {why}: found {short(','.join(cells))}; {expected}")
    unknown = [name for name in names if name not in COLUMNS]
    missing = [name for name in COLUMNS[:3] if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    for wrong, what in ((unknown, "unknown"), (missing, "missing"), (twice, "there twice")):
        if wrong:
            raise KetoolsError(f"{path}, line {line}: column {', '.join(map(repr, wrong))} {what}; {expected}")
    return names


# Reading files of facts: bytes -> records -> Facts, with every mistake named by its place and field.
#
# Files: .jsonl (one record a line), .json (a list of records), .csv (a header, then one fact a row); each also with .gz;
# UTF-8. What a record means is told by its fields:
#
# | layout | known by | where from |
# |---|---|---|
# | counterfact | requested_rewrite is an object | rome, memit; also MultiCounterFact and the built-in world |
# | mquake | requested_rewrite is a list | MQuAKE-CF, MQuAKE-T (2305.14795) |
# | zsre | src with answers | zsre_mend_eval.json of mend and rome |
# | easyedit | prompt with ground_truth, rephrase_prompt, locality_prompt, cond, portability{} or locality{} | EasyEdit's CounterFact and zsRE, KnowEdit's ZsRE, wiki_counterfact, wiki_recent (2401.01286) |
# | rippleedits | edit is an object | RippleEdits (2307.12976) |
# | known | attribute with template or prompt | known_1000.json of rome; has no new object, so it is named and refused |
# | plain | subject, prompt, target_new | your own tables: CSV, JSONL |
#
# What becomes a Fact's fields (<- the layout's); a relation that is not named is "unknown":
#
# - counterfact: id <- case_id; relation <- relation_id; paraphrases <- paraphrase_prompts; neighbours <-
#   neighborhood_prompts; generation <- generation_prompts; ours beside them: trained_prompts,
#   two_hop [{question, answer_true, answer_new}], locality [{prompt, answer}].
# - mquake: a fact for every edit of a case, ids "7" or "7.1", "7.2", ...; paraphrases <- question; two_hop <- questions
#   with answer and new_answer. Questions of a case with several edits hold once all of them are made: they stand with
#   the last one. One edit may occur in many cases: see FactSet.duplicates().
# - zsre: as rome, memit, AlphaEdit and ENCORE read it: target_new <- answers[0] (`alt` is not used), no target_true;
#   paraphrases <- rephrase; locality <- loc + "?", loc_ans. EasyEdit's copy of the data edits towards `alt` instead.
# - easyedit: target_true <- ground_truth (the first, where several are accepted; may be missing); paraphrases <-
#   rephrase_prompt, portability.Subject_Aliasing; neighbours <- locality_prompt if its answer is the fact's own, else
#   locality; locality <- all of locality{}; two_hop <- the other parts of portability{} (answer_true unknown).
# - rippleedits: relation <- edit.relation; target_true <- edit.previous_fact (may be missing); locality <-
#   Relation_Specificity, Forgetfulness; paraphrases <- Subject_Aliasing; two_hop <- Logical_Generalization,
#   Compositionality_I, _II (answer_true unknown). The file names subject and object only inside of sentences: they are
#   found with the sentences of other subjects (see `ripple`), or given as edit.subject and edit.target.
# - plain: a Fact's own fields. CSV: the first row names the columns: subject, prompt, target_new, and at will id,
#   relation, target_true, paraphrases, neighbours, generation, trained, two_hop, locality; no others. Several texts in a
#   cell are separated by " | " or written as a JSON list; two_hop and locality as JSON lists of objects. An empty cell
#   is no value. Without id a fact is named by its line or record.
#
# A prompt may hold "{}" or the subject written out, there exactly once as a word of its own. Only the first accepted
# answer of several is kept.


class Row(NamedTuple):
    """What one record gave: where it stands ("line 3", "record 3"; counted from 1), its layout (None if unknown), its
    facts, and all that is wrong with it; a fact with a mistake is not among the facts."""

    where: str
    layout: str | None
    facts: tuple[Fact, ...]
    errors: tuple[KetoolsError, ...]


def rows(path: Path) -> Iterator[Row]:
    """Each record of `path`, good or bad, in order; the ids of the facts are unique.

    Raises KetoolsError, naming file and line, only for a file of which no records can be read.
    """
    found = list(records(path))
    learnt = sentences(record for _, record in found if isinstance(record, dict))
    where_of: dict[str, str] = {}
    for where, record in found:
        if isinstance(record, KetoolsError):
            yield Row(where, None, (), (record,))
            continue
        try:
            layout = layout_of(record)
        except KetoolsError as error:
            yield Row(where, None, (), (error,))
            continue
        facts: list[Fact] = []
        errors: list[KetoolsError] = []
        for values, wrong in values_of(layout, record, where.split()[-1], learnt):
            used = _used(values, where, where_of)
            try:
                fact = None if wrong or used else Fact(**values)
            except FactError:  # raised for the first mistake; named are all
                fact = None
            if fact is not None:
                facts.append(fact)
            else:
                wrong += [*problems(values), *used]
            errors += wrong
        yield Row(where, layout, tuple(facts), tuple(errors))


def _used(values: Record, where: str, where_of: dict[str, str]) -> list[FactError]:
    id = values["id"]
    if id in where_of:
        return [FactError(id, "id", f"is already used on {where_of[id]}; give every fact its own")]
    where_of[id] = where
    return []


def facts(source: str | Path) -> FactSet:
    """Read facts: "world" (the built-in fictional world), the name of a data set that `ketools data get` has fetched
    ("counterfact", "zsre", ...), or a file (.jsonl, .json, .csv, each also with .gz).

    The layouts that are known, and what becomes of their fields, stand in `ketools.facts.layouts`.
    Raises KetoolsError naming file, line or record, and field of the first mistake; `ketools data check` lists all.
    """
    path = source_path(source)
    found: list[Fact] = []
    for row in rows(path):
        for error in row.errors:
            raise KetoolsError(f"{path}, {row.where}: {error}")
        found += row.facts
    if not found:
        raise KetoolsError(f"{path} is empty: no facts in it; expected one record a line (.jsonl) or a list (.json)")
    return FactSet(found)


def source_path(source: str | Path) -> Path:
    """The file that `facts(source)` reads; raises KetoolsError if a data set of that name is not on this machine."""
    if str(source) == "world":
        return _world()
    if str(source) in SOURCES and not Path(source).exists():
        return local(str(source))
    return Path(source).expanduser()


def _world() -> Path:
    folder = data_root() / "world"
    for name in ("facts.jsonl.gz", "facts.jsonl"):
        if (folder / name).is_file():
            return folder / name
    raise KetoolsError(
        f"the built-in world is not there: no facts.jsonl.gz in {folder}; check out the data folder whole"
    )
