"""The published layouts of facts: how each is recognised, and a table that maps its fields to those of a `Fact`.

| layout | recognised by | published with |
|---|---|---|
| counterfact | requested_rewrite is an object | ROME, MEMIT; also MultiCounterFact and the built-in world |
| mquake | requested_rewrite is a list | MQuAKE-CF, MQuAKE-T (2305.14795) |
| zsre | src with answers or alt | zsre_mend_eval.json of MEND and ROME |
| easyedit | prompt with ground_truth, rephrase_prompt, locality_prompt, cond, portability{} or locality{} | EasyEdit's CounterFact and zsRE, KnowEdit (2401.01286) |
| | target_old, portability[] (with answer for ground_truth) | CKnowEdit (2409.05806) |
| wikibigedit | update with ans | WikiBigEdit (2503.05683) |
| rippleedits | edit is an object | RippleEdits (2307.12976) |
| plain | subject, prompt, target_new | your own tables: CSV, JSON lines |

known_1000.json of ROME (attribute with template or prompt) has no new objects: it is recognised and refused.

A prompt contains "{}" or the written-out subject exactly once, as a separate word. Of several accepted answers the
first is kept. A missing relation becomes "unknown". Line breaks at the ends of prompts are kept. `glue` (true, false) is
read in every layout.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from ketools.errors import KetoolsError
from ketools.facts.fact import LISTS, UNKNOWN, Fact, FactError, Locality, TwoHop, name_of, short, trimmed

Record = Mapping[str, Any]
Reader = Callable[[Record], Any]  # of one field of a Fact; raises _Mistake
Frames = dict[str, tuple[str, str]]  # relation -> the text before and after the subject, spaces included

COLUMNS = ("subject", "prompt", "target_new", "id", "relation", "target_true", *LISTS, "two_hop", "locality",
           "glue", "opening", "closing")  # fmt: skip


_LAST_BLANKS = re.compile(r"[^\S\n]+\Z")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_MARKS = str.maketrans("‘’“”‐‑–—", "''\"\"----")


class _Mistake(Exception):
    """What is wrong with a field of a record; `field` is its path, as in "requested_rewrite.target_new"."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(field, what)
        self.field, self.what = field, what


# Readers: each returns a function that reads one field of a Fact from a record.


def text(path: str, kind: str = "id", *, needed: bool = True) -> Reader:
    """The text at `path`, `trimmed` as a field of that `kind`; None if it is missing and not `needed`."""

    def read(record: Record) -> str | None:
        value = _at(record, path)
        return None if value is None and not needed else _text(path, value, kind)

    return read


def target(path: str, *, needed: bool = True) -> Reader:
    """An object: a text, {"str": text}, or a list of accepted texts, of which the first is used."""

    def read(record: Record) -> str | None:
        value = _at(record, path)
        if isinstance(value, dict):
            return _text(f"{path}.str", value.get("str"), "target_new")
        if isinstance(value, list) and value:
            return _text(f"{path}[0]", value[0], "target_new")
        return text(path, "target_new", needed=needed)(record)

    return read


def relation(path: str) -> Reader:
    """The relation at `path`, "unknown" if it is missing."""
    return lambda record: UNKNOWN if record.get(path) in (None, "") else text(path)(record)


def prompt(path: str, subject: str = "subject") -> Reader:
    """The text at `path` with "{}" in the place of the subject, which may also be written out, once."""

    def read(record: Record) -> str:
        written, name = text(path, "prompt")(record), text(subject)(record)
        if not written.strip() or not name or "{}" in written:
            return written
        places = list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", written))
        # In languages without spaces, and for names within a word, the letters must occur once.
        places = places or list(re.finditer(re.escape(name), written))
        if len(places) != 1:
            here = "" if places else _almost(name, written)
            what = f"names the subject {name!r} {len(places)} times in {short(written)}{here}"
            raise _Mistake(path, f'{what}; expected once, or "{{}}" in its place')
        return f"{written[: places[0].start()]}{{}}{written[places[0].end() :]}"

    return read


def _almost(name: str, written: str) -> str:
    """How `name` in `written` differs from `name` in a way that is hard to see; "" if it does not occur."""
    ways = {
        "other blanks": lambda text: " ".join(text.split()),
        "upper and lower case": str.casefold,
        "characters that cannot be seen": lambda text: _UNSEEN.sub("", text),
        "other quotation marks or dashes": lambda text: text.translate(_MARKS),
        "wide or other forms of letters": lambda text: unicodedata.normalize("NFKC", text),
    }
    kinds = [kind for kind, way in ways.items() if way(name) in way(written)]
    if not kinds:
        for way in ways.values():
            name, written = way(name), way(written)
        kinds = ["blanks, case or marks"] if name and name in written else []
    return f" (it is there but for {kinds[0]})" if kinds else ""


def flag(path: str) -> Reader:
    """true, false or nothing; in a CSV file as words."""

    def read(record: Record) -> bool | None:
        value = record.get(path)
        if isinstance(value, str):
            value = {"true": True, "false": False, "": None}.get(value.strip().lower(), value)
        if not isinstance(value, bool | None):
            raise _Mistake(path, f"is {name_of(value)}; expected true or false")
        return value

    return read


def texts(path: str) -> Reader:
    """A list of texts, or one text; () if it is missing."""

    def read(record: Record) -> tuple[str, ...]:
        value = _at(record, path) or ()
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _Mistake(path, f"is {name_of(value)}; expected a list of texts")
        # A space at the end of a prompt would become a separate token before the target.
        return tuple(_LAST_BLANKS.sub("", item) if item[-1:].isspace() else item for item in value)

    return read


def objects(path: str, make: Reader) -> Reader:
    """The results of `make` for each object in the list at `path`; () if it is missing."""

    def read(record: Record) -> tuple[Any, ...]:
        value = _at(record, path) or []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise _Mistake(path, f"is {name_of(value)}; expected a list of objects")
        try:
            return tuple(make(item) for item in value)
        except _Mistake as error:
            raise _Mistake(f"{path}.{error.field}", error.what) from None

    return read


def _at(record: Record, path: str) -> Any:  # noqa: ANN401 - JSON
    value: Any = record
    keys = path.split(".")
    for i, key in enumerate(keys):
        if value is None:
            break
        if not isinstance(value, dict | Mapping):  # dict first, because the check for Mapping is slow
            raise _Mistake(".".join(keys[:i]), f"is {type(value).__name__}; expected an object")
        value = value.get(key)
    return value


def _text(path: str, value: object, kind: str) -> str:
    if value is None:
        raise _Mistake(path, "is missing; every fact needs it")
    if not isinstance(value, str):
        raise _Mistake(path, f"is {name_of(value)}; expected text")
    return trimmed(value, kind)


def _answered(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[str, str]]:
    # Complete (prompt, answer) pairs; of several accepted answers, perhaps each with aliases, the first.
    kept = []
    for question, answer in pairs:
        while isinstance(answer, list) and answer:
            answer = answer[0]
        if isinstance(question, str) and question.strip() and isinstance(answer, str) and answer.strip():
            kept.append((_LAST_BLANKS.sub("", question), answer.strip()))
    return kept


# The layouts, each with its special cases.

_TWO_HOPS = objects(
    "two_hop",
    lambda hop: TwoHop(text("question", "prompt")(hop), text("answer_true", needed=False)(hop), text("answer_new")(hop),
                       flag("glue")(hop)),
)  # fmt: skip
_LOCALITIES = objects(
    "locality", lambda item: Locality(text("prompt", "prompt")(item), text("answer")(item), flag("glue")(item))
)
_REWRITE: dict[str, Reader] = {
    "relation": text("requested_rewrite.relation_id"),
    "prompt": text("requested_rewrite.prompt", "prompt"),
    "subject": text("requested_rewrite.subject"),
    "target_true": target("requested_rewrite.target_true"),
    "target_new": target("requested_rewrite.target_new"),
}
_COUNTERFACT: dict[str, Reader] = _REWRITE | {
    "paraphrases": texts("paraphrase_prompts"),
    "neighbours": texts("neighborhood_prompts"),
    "generation": texts("generation_prompts"),
    "trained": texts("trained_prompts"),  # this and the next two are ours, for the built-in world
    "two_hop": _TWO_HOPS,
    "locality": _LOCALITIES,
}


def _mquake_edits(record: Record, _: Frames) -> Iterator[tuple[str, Record]]:
    """Each edit of a case with its questions; the last one with the multi-hop questions, which hold once all edits of
    the case are made. One edit may occur in many cases: see FactSet.duplicates().
    """
    rewrites = record["requested_rewrite"]
    if not rewrites:
        raise _Mistake("requested_rewrite", "is an empty list; expected the edits of the case")
    for k, rewrite in enumerate(rewrites, 1):
        questions = record.get("questions") if k == len(rewrites) else None
        yield "" if len(rewrites) == 1 else f".{k}", {**record, "requested_rewrite": rewrite, "questions": questions}


def _mquake_hops(record: Record) -> tuple[TwoHop, ...]:
    questions = texts("questions")(record)
    if not questions:
        return ()
    true, new = text("answer")(record), text("new_answer")(record)
    return tuple(TwoHop(question, true, new) for question in questions)


_MQUAKE: dict[str, Reader] = _REWRITE | {"paraphrases": texts("requested_rewrite.question"), "two_hop": _mquake_hops}


def _zsre_locality(record: Record) -> tuple[Locality, ...]:
    if not record.get("loc"):
        return ()
    question, answer = text("loc")(record), target("loc_ans")(record)
    return (Locality(f"{question.rstrip('?')}?", answer),) if question and answer else ()


# Read as by ROME, MEMIT, AlphaEdit and ENCORE. EasyEdit's copy of the data uses `alt` as the new object instead.
_ZSRE: dict[str, Reader] = {
    "relation": lambda _: UNKNOWN,
    "subject": text("subject"),
    "prompt": prompt("src"),
    "target_true": lambda _: None,
    "target_new": target("answers"),
    "paraphrases": texts("rephrase"),
    "locality": _zsre_locality,
}


def _easyedit_asked(path: str, wanted: Callable[[str], bool] = bool) -> Reader:
    """(prompt, answer) pairs in the `wanted` parts of portability or locality, or in all of it if it has no parts."""

    def read(record: Record) -> list[tuple[str, str]]:
        parts = record.get(path) or {}
        if isinstance(parts, list):
            parts = {path: parts}
        if not isinstance(parts, dict):
            raise _Mistake(path, f"is {type(parts).__name__}; expected an object of lists")
        pairs = [objects(part, lambda item: (item.get("prompt"), item.get("ground_truth", item.get("answer"))))(parts)
                 for part in parts if wanted(part)]  # fmt: skip
        return _answered(pair for part in pairs for pair in part)

    return read


def _easyedit_near(record: Record) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    # locality_prompt as (neighbours, locality): a neighbour is scored against target_true, so prompts with another answer
    # become locality.
    near, answer = texts("locality_prompt")(record), record.get("locality_ground_truth")
    true = _easyedit_true(record)
    if true is not None and true in (answer, *(answer[:1] if isinstance(answer, list) else ())):
        return near, []
    return (), _answered((text, answer) for text in near)


def _easyedit_true(record: Record) -> str | None:
    return target("target_old" if record.get("ground_truth") is None else "ground_truth", needed=False)(record)


_aliases = _easyedit_asked("portability", lambda part: part == "Subject_Aliasing")
_consequences = _easyedit_asked("portability", lambda part: part != "Subject_Aliasing")
_kept = _easyedit_asked("locality")

_EASYEDIT: dict[str, Reader] = {
    "relation": relation("relation_id"),
    "subject": text("subject"),
    "prompt": prompt("prompt"),
    "target_true": _easyedit_true,
    "target_new": target("target_new"),
    "paraphrases": lambda record: (
        *texts("rephrase_prompt")(record),
        *texts("rephrase")(record),
        *(question for question, _ in _aliases(record)),
    ),
    "neighbours": lambda record: _easyedit_near(record)[0],
    "two_hop": lambda record: tuple(TwoHop(question, None, answer) for question, answer in _consequences(record)),
    "locality": lambda record: tuple(Locality(*pair) for pair in (*_kept(record), *_easyedit_near(record)[1])),
}


# Only texts count: missing values may be written as NaN, as pandas does.
_WIKIBIG: dict[str, Reader] = {
    "relation": relation("relation"),
    "subject": text("subject"),
    "prompt": prompt("update"),
    "target_true": lambda _: None,
    "target_new": target("ans"),
    # The question in other words, and as several kinds of people would ask it.
    "paraphrases": lambda record: tuple(
        _LAST_BLANKS.sub("", question)
        for name, question in record.items()
        if name.startswith(("rephrase", "personas")) and isinstance(question, str) and question.strip()
    ),
    "two_hop": lambda record: tuple(
        TwoHop(question, None, answer) for question, answer in _answered([(record.get("mhop"), record.get("mhop_ans"))])
    ),
    "locality": lambda record: tuple(
        Locality(*pair) for pair in _answered([(record.get("loc"), record.get("loc_ans"))])
    ),
}

# RippleEdits identifies subjects and objects by Wikidata numbers; their names occur only inside sentences. Every relation
# has one sentence ("The <relation> of <subject> is"), used for many subjects in one file. The beginning and end shared by
# all sentences of a relation are its frame; the rest is the subject. With fewer than _ENOUGH subjects the shared part
# could contain words of a name, and the record must give edit.subject and edit.target itself.
_ENOUGH = 8
_KEPT = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")  # the second is spelt so in the authors' README
_FOLLOWS = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")


def frames_of(records: Iterable[object]) -> Frames:
    """The frame of each relation for which RippleEdits' `records` have questions about at least `_ENOUGH` subjects."""
    by_relation: dict[str, dict[str, list[str]]] = {}  # relation -> subject -> words of its sentence
    for record in records:
        if isinstance(record, dict) and isinstance(record.get("edit"), dict):
            for query in _queries(record, (*_KEPT, *_FOLLOWS)):
                name, subject, sentence = (query.get(key) for key in ("relation", "subject_id", "prompt"))
                if query.get("query_type") != "regular":
                    continue
                if isinstance(name, str) and isinstance(subject, str) and isinstance(sentence, str):
                    by_relation.setdefault(name, {})[subject] = sentence.split()
    frames = {}
    for name, sentences in by_relation.items():
        if len(sentences) >= _ENOUGH:
            head = _shared(list(sentences.values()))
            tail = _shared([words[len(head) :][::-1] for words in sentences.values()])[::-1]
            frames[name] = (" ".join([*head, ""]), " ".join(["", *tail, ""]))
    return frames


def _shared(sentences: list[list[str]]) -> list[str]:
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*sentences, strict=False))]


def _ripple_edit(record: Record, frames: Frames) -> Iterator[tuple[str, Record]]:
    """The record with edit.prompt cut before the object, and with edit.subject and edit.target."""
    edit = record["edit"]
    if not isinstance(edit, dict):
        raise _Mistake("edit", f"is {type(edit).__name__}; expected an object with prompt and relation")
    name, sentence = text("edit.relation")(record), text("edit.prompt")(record)
    if isinstance(edit.get("subject"), str) and isinstance(edit.get("target"), str):
        start = sentence.removesuffix(".").removesuffix(edit["target"].strip()).strip()
        yield "", {**record, "edit": {**edit, "prompt": start}}
        return
    before, after = frames.get(name, ("", ""))
    body, subject = sentence.removeprefix(before), ""
    # A question of this record about the same subject contains no object, so the subject in it is unambiguous.
    for query in _queries(record, (*_KEPT, *_FOLLOWS)):
        head, tail = frames.get(str(query.get("relation")), ("", ""))
        same = query.get("query_type") == "regular" and query.get("subject_id") == edit.get("subject_id")
        match = re.fullmatch(f"{re.escape(head)}(.*){re.escape(tail.rstrip())}", str(query.get("prompt")), re.DOTALL)
        if head + tail and same and match:
            subject = match[1]
            break
    if not subject or not body.startswith(f"{subject}{after}"):
        # Otherwise a subject or object that contains the words of the frame is ambiguous.
        subject = body.partition(after)[0] if after and body.count(after) == 1 else ""
    new = body.removeprefix(f"{subject}{after}").strip().removesuffix(".")
    if not after.strip() or not sentence.startswith(before) or not subject or not new:
        what = (
            f"does not tell the subject: this file has questions about fewer than {_ENOUGH} subjects of relation {name!r}, "
            "or the sentence differs from theirs; add edit.subject and edit.target"
        )
        raise _Mistake("edit.prompt", what)
    written = {"prompt": f"{before}{{}}{after}".strip(), "subject": subject, "target": new}
    yield "", {**record, "edit": {**edit, **written}}


def _ripple_true(record: Record) -> str | None:
    # From the sentence with the fact before the edit, which begins like that of the edit.
    edit, before = record["edit"], record["edit"].get("previous_fact")
    if not isinstance(before, dict) or not isinstance(before.get("prompt"), str):
        return None
    start = edit["prompt"].replace("{}", edit["subject"].strip())
    if not before["prompt"].startswith(f"{start} "):
        raise _Mistake("edit.previous_fact.prompt", f"does not begin with {start!r}")
    return before["prompt"].removeprefix(start).strip().removesuffix(".")


def _ripple_asked(record: Record, parts: Iterable[str]) -> list[tuple[str, str]]:
    return _answered(
        (
            query.get("prompt"),
            [answer.get("value") for answer in query.get("answers") or () if isinstance(answer, dict)],
        )
        for query in _queries(record, parts)
    )


def _queries(record: Record, parts: Iterable[str]) -> Iterator[Record]:
    for part in parts:
        for test in record.get(part) or ():
            for query in test.get("test_queries") or () if isinstance(test, dict) else ():
                if isinstance(query, dict):
                    yield query


_RIPPLE: dict[str, Reader] = {
    "relation": text("edit.relation"),
    "subject": text("edit.subject"),
    "prompt": prompt("edit.prompt", "edit.subject"),
    "target_true": _ripple_true,
    "target_new": text("edit.target"),
    "paraphrases": lambda record: tuple(question for question, _ in _ripple_asked(record, ["Subject_Aliasing"])),
    "two_hop": lambda record: tuple(TwoHop(question, None, new) for question, new in _ripple_asked(record, _FOLLOWS)),
    "locality": lambda record: tuple(Locality(*pair) for pair in _ripple_asked(record, _KEPT)),
}
# Only the fields of a Fact, as the fields of JSON lines or the columns of a CSV file.
_PLAIN: dict[str, Reader] = {
    "relation": relation("relation"),
    "subject": text("subject"),
    "prompt": prompt("prompt"),
    "target_true": target("target_true", needed=False),
    "target_new": text("target_new", "target_new"),
    **{name: texts(name) for name in LISTS},
    "two_hop": _TWO_HOPS,
    "locality": _LOCALITIES,
    "opening": lambda record: record.get("opening") or "",
    "closing": lambda record: record.get("closing") or "",
}


@dataclass(frozen=True)
class Layout:
    """One layout: the fields it `needs`, for messages, the table of `readers`, the field with the `id`, and `edits`,
    which splits a record into those that the readers take, each with a suffix for its id.
    """

    needs: str
    readers: Mapping[str, Reader]
    id: str = "case_id"
    edits: Callable[[Record, Frames], Iterable[tuple[str, Record]]] = lambda record, _: [("", record)]


LAYOUTS = {
    "counterfact": Layout("requested_rewrite {prompt, subject, relation_id, target_true, target_new}", _COUNTERFACT),
    "mquake": Layout("requested_rewrite [{...}] and questions", _MQUAKE, edits=_mquake_edits),
    "zsre": Layout("src, subject, answers", _ZSRE),
    "easyedit": Layout("prompt, subject, target_new and ground_truth or locality", _EASYEDIT),
    "wikibigedit": Layout("update, subject, ans", _WIKIBIG),
    "rippleedits": Layout("edit {prompt, subject_id, relation, target_id}", _RIPPLE, edits=_ripple_edit),
    "plain": Layout("subject, prompt, target_new", _PLAIN, id="id"),
}


ALIASES = {
    "case_id": "id", "relation_id": "relation", "paraphrase_prompts": "paraphrases", "neighborhood_prompts": "neighbours",
    "generation_prompts": "generation",
}  # fmt: skip
"""Names from other layouts that the plain one also accepts, in CSV and in JSON."""


def layout_of(record: Record) -> str:
    """The name of the layout to which the fields of `record` belong.

    Raises KetoolsError, listing the fields of the record and of the layouts, if it belongs to none.
    """
    keys = set(record)
    if "requested_rewrite" in keys:
        return "mquake" if isinstance(record["requested_rewrite"], list) else "counterfact"
    if {"update", "ans"} <= keys:
        return "wikibigedit"
    if "edit" in keys:
        return "rippleedits"
    if "src" in keys and keys & {"answers", "alt"}:
        return "zsre"
    if "attribute" in keys and keys & {"template", "prompt"}:
        raise KetoolsError(
            "these are known facts (fields subject, attribute, template), which have no new object: material for "
            "looking into a model, not for editing; to edit them, write CSV with subject, prompt, target_new"
        )
    if isinstance(record.get("locality"), dict) or keys & {
        "ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "portability", "cond", "target_old",
    }:  # fmt: skip
        return "easyedit"
    if keys & {"subject", "prompt", "target_new"}:
        return "plain"
    known = "; ".join(f"{name}: {layout.needs}" for name, layout in LAYOUTS.items())
    raise KetoolsError(
        f"unknown layout: found the fields {', '.join(sorted(keys)) or 'none'}; expected those of {known}"
    )


def convert(name: str, record: Record, place: str, frames: Frames) -> Iterator[tuple[dict[str, Any], list[FactError]]]:
    """For every fact of `record`, in layout `name`: the arguments of Fact that could be read, and the other mistakes.

    `place` is the id of a record that has none; `frames` are those of RippleEdits' sentences.
    """
    layout = LAYOUTS[name]
    mistakes: list[tuple[str, str]] = []
    if name == "plain":
        for other, ours in ALIASES.items():
            if other in record and ours in record:
                mistakes.append((other, f"is given together with {ours}, which is the same; keep one of them"))
        record = {ALIASES.get(key, key): value for key, value in record.items()}
    given = record.get(layout.id)
    id = place if given in (None, "") else str(given).strip()
    if not isinstance(given, str | int | None):
        mistakes.append(("id", f"is {name_of(given)}; expected a text or a whole number"))
    if name == "plain" and (unknown := [key for key in record if key not in COLUMNS]):
        mistakes.append((unknown[0], f"is unknown; the plain layout has {', '.join(COLUMNS)}"))
    try:
        edits = list(layout.edits(record, frames))
    except _Mistake as error:
        yield {"id": id}, [FactError(id, *mistake) for mistake in (*mistakes, (error.field, error.what))]
        return
    for ending, edit in edits:
        values: dict[str, Any] = {"id": id + ending}
        wrong = list(mistakes)
        for field, read in (*layout.readers.items(), ("glue", flag("glue"))):
            try:
                values[field] = read(edit)
            except _Mistake as error:
                wrong.append((error.field, error.what))
        # Fields read from the same part of the record report its mistake each; keep it once.
        yield values, [FactError(values["id"], *mistake) for mistake in dict.fromkeys(wrong)]


def from_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """One row of a CSV file as a record of the plain layout; empty cells are left out.

    Several texts in a cell are separated by " | " or written as a JSON list; two_hop and locality are JSON lists of
    objects. Raises KetoolsError for a cell that begins like a JSON list and is none, or that contains "NaN".
    """
    record: dict[str, Any] = {}
    for name, cell in cells.items():
        cell = trimmed(cell, "prompt" if name in ("prompt", "opening", "closing") else "id")
        if cell in ("nan", "NaN"):  # how pandas and numpy write a missing value
            raise KetoolsError(f"field {name!r} is {cell} (a missing value); leave the cell empty or fill it in")
        if not cell and name not in COLUMNS[:3]:
            continue
        if name not in (*LISTS, "two_hop", "locality"):
            record[name] = cell
        elif not cell.startswith("["):
            record[name] = [trimmed(part, name) for part in cells[name].split(" | ")]
        else:
            try:
                record[name] = json.loads(cell)
            except (ValueError, RecursionError) as error:
                what = f"begins as a JSON list and is none ({error}): {short(cell)}"
                raise KetoolsError(f"field {name!r} {what}") from None
    return record


def as_record(fact: Fact) -> dict[str, Any]:
    """`fact` as a record of the plain layout, without empty fields; reading it gives an equal Fact."""
    record = {name: value for name, value in asdict(fact).items() if value not in (None, (), "")}
    for name in ("two_hop", "locality"):
        for item in record.get(name, ()):
            if item["glue"] is None:
                del item["glue"]
    return record
