"""RippleEdits: the file names subjects and objects by Wikidata's numbers; their words stand only inside of sentences.

Every relation has one sentence ("The <relation> of <subject> is"), used for many subjects in one file. What all
sentences of a relation share at their beginning and end is the frame; what differs is the subject. At least
`ENOUGH` subjects must be there, else the shared part could hold words of a name: then the record must say
edit.subject and edit.target itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from ketools.fact import Locality, TwoHop
from ketools.readers.fields import Fields

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
