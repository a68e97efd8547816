"""The published layouts: which one a record has, and what becomes of its fields (the table is in `ketools.facts.reading`)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from ketools.errors import KetoolsError
from ketools.facts.fact import LISTS, UNKNOWN, Fact, FactError, Locality, TwoHop, name_of, short

# Taking one record apart, field by field, noting every mistake.


class Fields:
    """One record on its way to the arguments of `Fact`.

    `values` holds what was found, `errors` what was wrong; a field with a mistake is not among the values, so that
    nothing is said about it twice.
    """

    def __init__(self, record: Mapping[str, Any], id: object, place: str = "") -> None:
        """`place` stands for the id where there is none."""
        self.record = record
        self.values: dict[str, Any] = {"id": place if id in (None, "") else str(id).strip()}
        self.errors: list[FactError] = []
        if not isinstance(id, str | int | None):
            self.fail("id", f"is {name_of(id)}; expected a text or a whole number")

    def fail(self, field: str, what: str) -> None:
        """Note a mistake."""
        self.errors.append(FactError(self.values["id"], field, what))

    def put(self, **values: object) -> None:
        """Keep the values that were found, those that are not None."""
        self.values |= {name: value for name, value in values.items() if value is not None}

    def text(self, key: str, holder: Mapping[str, Any] | None = None, name: str | None = None) -> str | None:
        """The text under `key`, without white space at its ends; `name`: what to call the field in a message."""
        holder, name = self.record if holder is None else holder, name or key
        if key not in holder:
            return self.fail(name, "is missing; every fact needs it")
        value = holder[key]
        if not isinstance(value, str):
            return self.fail(name, f"is {name_of(value)}; expected text")
        return value.strip()

    def target(self, key: str, holder: Mapping[str, Any] | None = None, name: str | None = None) -> str | None:
        """An object: a text, {"str": text}, or a list of accepted ones, of which the first is taken."""
        holder, name = self.record if holder is None else holder, name or key
        value = holder.get(key)
        if isinstance(value, dict):
            return self.text("str", value, f"{name}.str")
        if isinstance(value, list) and value:
            return self.text("0", {"0": value[0]}, f"{name}[0]")
        return self.text(key, holder, name)

    def true(self, key: str) -> None:
        """Keep the object under `key` as target_true, None if there is none."""
        if self.record.get(key) is None:
            self.values["target_true"] = None
        else:
            self.put(target_true=self.target(key))

    def prompt(self, key: str, subject: str | None) -> str | None:
        """The text under `key` with "{}" in the place of the subject, which it may also write out, once."""
        text = self.text(key)
        if not text or not subject or "{}" in text:
            return text
        found = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text))
        # Languages without spaces, and names that end within a word: then the letters must be there once
        found = found or list(re.finditer(re.escape(subject), text))
        if len(found) != 1:
            what = f'names the subject {subject!r} {len(found)} times in {short(text)}; expected once, or "{{}}" in its place'
            return self.fail(key, what)
        return f"{text[: found[0].start()]}{{}}{text[found[0].end() :]}"

    def relation(self, key: str) -> str | None:
        """The relation, "unknown" if there is none."""
        return UNKNOWN if self.record.get(key) in (None, "") else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text; () if there is none."""
        value = self.record.get(key) or ()
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"is {name_of(value)}; expected a list of texts")
            return ()
        # A space at the end of a prompt would become a token of its own before the target's.
        return tuple(item.rstrip() for item in value)

    def objects(self, key: str, holder: Mapping[str, Any] | None = None) -> Iterator[Mapping[str, Any]]:
        """The objects of the list under `key`; none if there is no such list."""
        value = (self.record if holder is None else holder).get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fail(key, f"is {name_of(value)}; expected a list of objects")
            return
        yield from value

    def ours(self) -> None:
        """two_hop and locality as lists of objects with the names of our own classes."""
        hops, kept = [], []
        for hop in self.objects("two_hop"):
            true = None if hop.get("answer_true") is None else self.text("answer_true", hop, "two_hop.answer_true")
            question, new = (self.text(name, hop, f"two_hop.{name}") for name in ("question", "answer_new"))
            if question is not None and new is not None:
                hops.append(TwoHop(question, true, new))
        for item in self.objects("locality"):
            prompt, answer = (self.text(name, item, f"locality.{name}") for name in ("prompt", "answer"))
            if prompt is not None and answer is not None:
                kept.append(Locality(prompt, answer))
        self.put(two_hop=tuple(hops), locality=tuple(kept))


# The plain layout: a Fact's own fields, as the columns of a CSV file or the fields of JSON lines.


COLUMNS = ("subject", "prompt", "target_new", "id", "relation", "target_true", *LISTS, "two_hop", "locality")
_MISSING = ("nan", "NaN")  # how pandas and numpy write a value that is not there


def from_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """One row of a table as a record; empty cells are left out.

    Raises KetoolsError for a cell that begins as a JSON list and is none, or that holds "NaN".
    """
    record: dict[str, Any] = {}
    for name, cell in cells.items():
        cell = cell.strip()
        if cell in _MISSING:
            raise KetoolsError(f"field {name!r} is {cell} (a missing value); leave the cell empty or fill it in")
        if not cell:
            if name in COLUMNS[:3]:
                record[name] = ""
            continue
        record[name] = _listed(name, cell) if name in (*LISTS, "two_hop", "locality") else cell
    return record


def _listed(name: str, cell: str) -> object:
    if not cell.startswith("["):
        return [text.strip() for text in cell.split(" | ")]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise KetoolsError(f"field {name!r} begins as a JSON list and is none ({error}): {short(cell)}") from None


def plain(take: Fields) -> None:
    """A record of the plain layout -> `take.values`."""
    unknown = [name for name in take.record if name not in COLUMNS]
    if unknown:
        take.fail(unknown[0], f"is unknown; the plain layout has {', '.join(COLUMNS)}")
    subject = take.text("subject")
    take.put(
        subject=subject,
        prompt=take.prompt("prompt", subject),
        target_new=take.text("target_new"),
        relation=take.relation("relation"),
    )
    take.true("target_true")
    take.put(**{name: take.texts(name) for name in LISTS})
    take.ours()


def as_record(fact: Fact) -> dict[str, Any]:
    """`fact` as a record of the plain layout, without what is empty; reading it gives an equal Fact."""
    return {name: value for name, value in asdict(fact).items() if value is not None and value != ()}


# RippleEdits: the file names subjects and objects by Wikidata's numbers; their words stand only inside of sentences.
#
# Every relation has one sentence ("The <relation> of <subject> is"), used for many subjects in one file. What all
# sentences of a relation share at their beginning and end is the frame; what differs is the subject. At least
# `ENOUGH` subjects must be there, else the shared part could hold words of a name: then the record must say
# edit.subject and edit.target itself.


Record = Mapping[str, Any]
Sentences = dict[str, tuple[str, str]]  # relation -> what stands before the subject, what stands after it
ENOUGH = 8
_KEPT = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")  # the authors' README has the second spelling
_ALIAS = ("Subject_Aliasing",)
_FOLLOWS = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")


def sentences(records: Iterable[Record]) -> Sentences:
    """The frame of every relation that `records` ask about for at least ENOUGH subjects (records of other layouts count nothing)."""
    asked: dict[str, dict[str, list[str]]] = {}  # relation -> subject -> its words
    for record in records:
        if not isinstance(record.get("edit"), dict):
            continue
        for query in _queries(record, (*_KEPT, *_FOLLOWS)):
            relation, subject, prompt = (query.get(name) for name in ("relation", "subject_id", "prompt"))
            if query.get("query_type") == "regular" and all(isinstance(x, str) for x in (relation, subject, prompt)):
                asked.setdefault(relation, {})[subject] = prompt.split()
    return {name: _frame(list(said.values())) for name, said in asked.items() if len(said) >= ENOUGH}


def _frame(prompts: list[list[str]]) -> tuple[str, str]:
    head = _shared(prompts)
    tail = _shared([prompt[head:][::-1] for prompt in prompts])
    first = prompts[0]
    return " ".join(first[:head]), " ".join(first[len(first) - tail :])


def _shared(prompts: list[list[str]]) -> int:
    """With how many words all begin."""
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*prompts, strict=False)))


def ripple(take: Fields, learnt: Sentences) -> None:
    """A record of RippleEdits -> `take.values`."""
    edit = take.record["edit"]
    if not isinstance(edit, dict):
        return take.fail("edit", f"is {type(edit).__name__}; expected an object with prompt and relation")
    relation, sentence = take.text("relation", edit, "edit.relation"), take.text("prompt", edit, "edit.prompt")
    if relation is None or sentence is None:
        return
    if isinstance(edit.get("subject"), str) and isinstance(edit.get("target"), str):
        subject, new = edit["subject"].strip(), edit["target"].strip()
        start = sentence.removesuffix(".").removesuffix(new).strip()
        frame = Fields({"edit.prompt": start}, take.values["id"])
        take.put(prompt=frame.prompt("edit.prompt", subject), subject=subject, target_new=new)
        take.errors += frame.errors
    elif (parts := _split(sentence, learnt.get(relation), _name(take.record, edit, learnt))) is not None:
        start, frame, subject, new = parts
        take.put(prompt=frame, subject=subject, target_new=new)
    else:
        what = (
            f"does not tell the subject: fewer than {ENOUGH} subjects of relation {relation!r} are asked about in "
            "this file, or the sentence differs from theirs; add edit.subject and edit.target"
        )
        return take.fail("edit.prompt", what)
    take.put(relation=relation)
    _before(take, edit, start)
    take.put(
        paraphrases=tuple(prompt for prompt, _ in _answered(take.record, _ALIAS)),
        locality=tuple(Locality(*pair) for pair in _answered(take.record, _KEPT)),
        two_hop=tuple(TwoHop(prompt, None, answer) for prompt, answer in _answered(take.record, _FOLLOWS)),
    )


def _before(take: Fields, edit: Record, start: str) -> None:
    """target_true, from the sentence of the fact before; both sentences begin with `start`."""
    before = edit.get("previous_fact")
    if not isinstance(before, dict) or not isinstance(before.get("prompt"), str):
        take.values["target_true"] = None
    elif not before["prompt"].startswith(f"{start} "):
        take.fail("edit.previous_fact.prompt", f"does not begin with {start!r}")
    else:
        take.put(target_true=before["prompt"].removeprefix(start).strip().removesuffix("."))


def _name(record: Record, edit: Record, learnt: Sentences) -> str | None:
    """The words for edit.subject_id in a question of this record; a question holds no object, so they are certain."""
    for query in _queries(record, (*_KEPT, *_FOLLOWS)):
        frame, prompt = learnt.get(str(query.get("relation"))), query.get("prompt")
        if frame and query.get("query_type") == "regular" and query.get("subject_id") == edit.get("subject_id"):
            head, tail = f"{frame[0]} ".lstrip(), f" {frame[1]}".rstrip()
            if isinstance(prompt, str) and prompt.startswith(head) and prompt.endswith(tail):
                return prompt[len(head) : len(prompt) - len(tail)]
    return None


def _split(sentence: str, frame: tuple[str, str] | None, name: str | None) -> tuple[str, str, str, str] | None:
    """(sentence without the object, the same with "{}", subject, object), by the frame of the relation."""
    if frame is None or not frame[1]:
        return None
    head, tail = f"{frame[0]} ".lstrip(), f" {frame[1]} "
    rest = sentence.removeprefix(head)
    subject = name if name and rest.startswith(f"{name}{tail}") else rest.partition(tail)[0]
    new = rest[len(subject) + len(tail) :].strip().removesuffix(".")
    # Without the name from elsewhere, a subject or object that holds the words of the frame can't be told from it
    if not sentence.startswith(head) or not subject or not new or (subject != name and rest.count(tail) != 1):
        return None
    return f"{head}{subject}{tail}".strip(), f"{head}{{}}{tail}".strip(), subject, new


def _queries(record: Record, parts: Iterable[str]) -> Iterator[Record]:
    for part in parts:
        for test in record.get(part) or ():
            for query in test.get("test_queries") or () if isinstance(test, dict) else ():
                if isinstance(query, dict):
                    yield query


def _answered(record: Record, parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(prompt, first answer) of the test queries; those without an answer are left out."""
    for query in _queries(record, parts):
        prompt = query.get("prompt")
        answers = [answer.get("value") for answer in query.get("answers") or () if isinstance(answer, dict)]
        if (
            isinstance(prompt, str)
            and prompt.strip()
            and answers
            and isinstance(answers[0], str)
            and answers[0].strip()
        ):
            yield prompt.rstrip(), answers[0].strip()


Taken = tuple[dict[str, Any], list[FactError]]
_EASYEDIT = {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "portability", "cond"}
LAYOUTS = {
    "counterfact": "requested_rewrite {prompt, subject, relation_id, target_true, target_new}",
    "mquake": "requested_rewrite [{...}] and questions",
    "zsre": "src, subject, answers",
    "easyedit": "prompt, subject, target_new and ground_truth or locality",
    "rippleedits": "edit {prompt, subject_id, relation, target_id}",
    "plain": "subject, prompt, target_new",
}


def layout_of(record: Record) -> str:
    """The name of the layout that the fields of `record` belong to.

    Raises KetoolsError that lists the fields there are and those of the layouts there are, if it is none of them.
    """
    keys = set(record)
    if "requested_rewrite" in keys:
        return "mquake" if isinstance(record["requested_rewrite"], list) else "counterfact"
    if "edit" in keys:
        return "rippleedits"
    if "src" in keys and keys & {"answers", "alt"}:
        return "zsre"
    if "attribute" in keys and keys & {"template", "prompt"}:
        raise KetoolsError(
            "these are known facts (fields subject, attribute, template), which have no new object: material for "
            "looking into a model, not for editing; to edit them, write CSV with subject, prompt, target_new"
        )
    if keys & _EASYEDIT or isinstance(record.get("locality"), dict):
        return "easyedit"
    if keys & {"subject", "prompt", "target_new"}:
        return "plain"
    known = "; ".join(f"{name}: {needs}" for name, needs in LAYOUTS.items())
    raise KetoolsError(
        f"unknown layout: found the fields {', '.join(sorted(keys)) or 'none'}; expected those of {known}"
    )


def values_of(layout: str, record: Record, place: str, learnt: Sentences) -> Iterator[Taken]:
    """(the arguments of Fact that were found, what is wrong with the others) for every fact of `record`.

    `place`: the id where the record has none. `learnt`: how RippleEdits' sentences go.
    """
    id = record.get("id" if layout == "plain" else "case_id")
    if layout == "mquake":
        yield from _mquake(record, place if id is None else str(id))
        return
    take = Fields(record, id, place)
    if layout == "rippleedits":
        ripple(take, learnt)
    else:
        _SIMPLE[layout](take)
    yield take.values, take.errors


def _rewrite(take: Fields, rewrite: object) -> None:
    """The part that CounterFact and MQuAKE share."""
    if not isinstance(rewrite, dict):
        what = f"is {type(rewrite).__name__}; expected an object with prompt, subject and targets"
        return take.fail("requested_rewrite", what)
    name = "requested_rewrite.{}".format
    for field, key in (("relation", "relation_id"), ("prompt", "prompt"), ("subject", "subject")):
        take.put(**{field: take.text(key, rewrite, name(key))})
    for key in ("target_true", "target_new"):
        take.put(**{key: take.target(key, rewrite, name(key))})


def _counterfact(take: Fields) -> None:
    _rewrite(take, take.record["requested_rewrite"])
    take.put(
        paraphrases=take.texts("paraphrase_prompts"),
        neighbours=take.texts("neighborhood_prompts"),
        generation=take.texts("generation_prompts"),
        trained=take.texts("trained_prompts"),
    )
    take.ours()


def _mquake(record: Record, id: str) -> Iterator[Taken]:
    rewrites = record["requested_rewrite"]
    if not rewrites:
        empty = Fields(record, id)
        empty.fail("requested_rewrite", "is an empty list; expected the edits of the case")
        yield empty.values, empty.errors
    for k, rewrite in enumerate(rewrites, 1):
        take = Fields(record, id if len(rewrites) == 1 else f"{id}.{k}")
        _rewrite(take, rewrite)
        if isinstance(rewrite, dict) and rewrite.get("question") is not None:
            question = take.text("question", rewrite, "requested_rewrite.question")
            take.put(paraphrases=(question,) if question else None)
        if k == len(rewrites):
            questions = take.texts("questions")
            if questions:
                true, new = take.text("answer"), take.text("new_answer")
                take.put(two_hop=tuple(TwoHop(q, true, new) for q in questions) if new is not None else None)
        yield take.values, take.errors


def _zsre(take: Fields) -> None:
    subject = take.text("subject")
    take.put(relation=UNKNOWN, subject=subject, prompt=take.prompt("src", subject), target_new=take.target("answers"))
    take.values["target_true"] = None
    take.put(paraphrases=take.texts("rephrase"))
    if take.record.get("loc"):
        prompt, answer = take.text("loc"), take.target("loc_ans")
        if prompt and answer:
            take.put(locality=(Locality(f"{prompt.rstrip('?')}?", answer),))


def _easyedit(take: Fields) -> None:
    record, subject = take.record, take.text("subject")
    take.put(
        relation=take.relation("relation_id"),
        subject=subject,
        prompt=take.prompt("prompt", subject),
        target_new=take.target("target_new"),
    )
    take.true("ground_truth")
    true = take.values.get("target_true")
    near, answer = take.texts("locality_prompt"), record.get("locality_ground_truth")
    answer = answer[0] if isinstance(answer, list) and answer else answer
    kept = list(_asked(take, "locality"))
    # A neighbour is scored against target_true; a locality prompt with another answer can't serve as one.
    neighbours = near if true is not None and answer == true else ()
    if not neighbours and isinstance(answer, str) and answer.strip():
        kept += [(prompt, answer.strip()) for prompt in near]
    aliases = tuple(prompt for prompt, _ in _asked(take, "portability", only="Subject_Aliasing"))
    take.put(
        paraphrases=take.texts("rephrase_prompt") + aliases,
        neighbours=neighbours,
        locality=tuple(Locality(*item) for item in kept),
        two_hop=tuple(TwoHop(q, None, a) for q, a in _asked(take, "portability", but="Subject_Aliasing")),
    )


def _asked(take: Fields, key: str, only: str | None = None, but: str | None = None) -> Iterator[tuple[str, str]]:
    """(prompt, first accepted answer) of the parts of portability or locality; prompts without an answer are left out."""
    parts = take.record.get(key) or {}
    if not isinstance(parts, dict):
        return take.fail(key, f"is {type(parts).__name__}; expected an object of lists")
    for part in parts:
        if part == but or only not in (None, part):
            continue
        for item in take.objects(part, parts):
            prompt, answer = item.get("prompt"), item.get("ground_truth")
            while isinstance(answer, list) and answer:  # accepted answers, each with its aliases
                answer = answer[0]
            if isinstance(prompt, str) and prompt.strip() and isinstance(answer, str) and answer.strip():
                yield prompt.rstrip(), answer.strip()


_SIMPLE: dict[str, Callable[[Fields], None]] = {
    "counterfact": _counterfact,
    "zsre": _zsre,
    "easyedit": _easyedit,
    "plain": plain,
}
