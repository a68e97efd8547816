"""Reading files of facts: bytes -> records -> the fields of a Fact, with errors that name the place.

Layouts of a record:
- CounterFact, nested (rome, memit): case_id, requested_rewrite {prompt with "{}", relation_id, subject,
  target_true {str}, target_new {str}}, paraphrase_prompts, neighborhood_prompts, generation_prompts; beside them
  ours: trained_prompts, two_hop [{question, answer_true, answer_new}].
- EasyEdit's CounterFact, flat: prompt (the subject written out), subject, ground_truth, target_new, rephrase_prompt,
  locality_prompt, locality_ground_truth.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ketools.errors import KetoolsError

Record = dict[str, Any]
_FORMATS = "expected .jsonl or .json, or either followed by .gz"


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """("line 3" or "record 3", record) for each record of a .jsonl or .json file, gzipped or not; counts from 1.

    Blank lines are passed over. Raises KetoolsError for a file that is missing, of another kind, not UTF-8 or not
    JSON, naming the line.
    """
    kind = _kind(path)
    text = _decode(path, _bytes(path))
    if kind == ".json":
        yield from _from_list(path, text)
    else:
        yield from _from_lines(path, text)


def fact_fields(record: Record, default_id: str) -> Record:
    """The arguments of `Fact` (two_hop as dicts) from one record of either layout; `default_id` where it has no case_id.

    Raises KetoolsError naming the fact and the field that is missing or of the wrong type.
    """
    fact = _FactRecord(record, str(record.get("case_id", default_id)))
    return fact.nested() if "requested_rewrite" in record else fact.flat()


class _FactRecord:
    """One record being taken apart; knows its id, so that every error can name it."""

    def __init__(self, record: Record, id: str) -> None:
        self.record, self.id = record, id

    def nested(self) -> Record:
        rewrite = self.record["requested_rewrite"]
        if not isinstance(rewrite, dict):
            self.fail(
                "requested_rewrite", f"is {type(rewrite).__name__}; expected an object with prompt, subject and targets"
            )
        name = "requested_rewrite.{}".format
        return {
            "id": self.id,
            "relation": self.text(rewrite, "relation_id", name("relation_id")),
            "prompt": self.text(rewrite, "prompt", name("prompt")),
            "subject": self.text(rewrite, "subject", name("subject")),
            "target_true": self.target(rewrite, "target_true", name("target_true")),
            "target_new": self.target(rewrite, "target_new", name("target_new")),
            "paraphrases": self.texts("paraphrase_prompts"),
            "neighbours": self.texts("neighborhood_prompts"),
            "generation": self.texts("generation_prompts"),
            "trained": self.texts("trained_prompts"),
            "two_hop": self.two_hop(),
        }

    def flat(self) -> Record:
        if "prompt" not in self.record:
            have = ", ".join(sorted(map(str, self.record))) or "none"
            self.fail("requested_rewrite", f"is missing, and so is 'prompt' of the flat layout (fields there: {have})")
        record = self.record
        subject, prompt = self.text(record, "subject"), self.text(record, "prompt")
        if "{}" not in prompt:
            count = prompt.count(subject) if subject else 0
            if subject and count != 1:
                self.fail(
                    "prompt",
                    f'names the subject {subject!r} {count} times in {prompt!r}; expected once, or "{{}}" in its place',
                )
            prompt = prompt.replace(subject, "{}") if subject else prompt
        true = self.target(record, "ground_truth")
        # A neighbour is scored against target_true; a locality prompt with another answer can't serve as one.
        same = record.get("locality_ground_truth") in (true, [true])
        return {
            "id": self.id,
            "relation": str(record.get("relation_id", "unknown")).strip(),
            "prompt": prompt,
            "subject": subject,
            "target_true": true,
            "target_new": self.target(record, "target_new"),
            "paraphrases": self.texts("rephrase_prompt"),
            "neighbours": self.texts("locality_prompt") if same else (),
            "two_hop": self.two_hop(),
        }

    def text(self, holder: Record, key: str, name: str | None = None) -> str:
        if key not in holder:
            self.fail(name or key, "is missing; every fact needs it")
        value = holder[key]
        if not isinstance(value, str):
            self.fail(name or key, f"is {type(value).__name__} ({value!r}); expected text")
        return value.strip()

    def target(self, holder: Record, key: str, name: str | None = None) -> str:
        value = holder.get(key)
        if isinstance(value, dict):
            return self.text(value, "str", f"{name or key}.str")
        if isinstance(value, list) and value:  # EasyEdit lists the accepted answers, best first
            return self.text({key: value[0]}, key, name)
        return self.text(holder, key, name)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.record.get(key) or ()
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"is {json.dumps(value)[:60]}; expected a list of texts")
        # A space at the end of a prompt would become a token of its own before the target's.
        return tuple(item.rstrip() for item in value)

    def two_hop(self) -> list[dict[str, str]]:
        hops = self.record.get("two_hop") or []
        if not isinstance(hops, list) or not all(isinstance(hop, dict) for hop in hops):
            self.fail("two_hop", "is no list of objects with question, answer_true and answer_new")
        keys = ("question", "answer_true", "answer_new")
        return [{key: self.text(hop, key, f"two_hop.{key}") for key in keys} for hop in hops]

    def fail(self, field: str, what: str) -> None:
        raise KetoolsError(f"fact {self.id!r}: field {field!r} {what}")


def _kind(path: Path) -> str:
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a file of facts in it ({_FORMATS})")
    if not path.exists():
        raise KetoolsError(
            f'no facts file {path}; give "world" for the built-in world or the path of a file ({_FORMATS})'
        )
    if stem.suffix not in (".json", ".jsonl"):
        raise KetoolsError(f"{path}: can't tell what kind of file this is; {_FORMATS}")
    return stem.suffix


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


def _decode(path: Path, data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise KetoolsError(f"{path}, line 1: UTF-16 text; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise KetoolsError(
            f"{path}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8"
        ) from None


def _from_lines(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    # Not splitlines(): names may hold U+2028 and the like, which JSON allows inside a string.
    for k, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise KetoolsError(
                f"{path}, line {k}: broken JSON at column {error.colno} ({error.msg}); expected one record a line"
            ) from None
        yield f"line {k}", _as_record(path, f"line {k}", record)


def _from_list(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; if it holds one record a line, name it .jsonl" if error.msg == "Extra data" else ""
        raise KetoolsError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno} ({error.msg}){hint}"
        ) from None
    if not isinstance(records, list):
        raise KetoolsError(f"{path}: holds {type(records).__name__}; expected a list of records")
    for k, record in enumerate(records, 1):
        yield f"record {k}", _as_record(path, f"record {k}", record)


def _as_record(path: Path, where: str, record: object) -> Record:
    if not isinstance(record, dict):
        raise KetoolsError(
            f"{path}, {where}: holds {type(record).__name__}; expected an object with the fields of a fact"
        )
    return record
