"""The published layouts: which one a record has, and what becomes of its fields (the table is in `ketools.readers`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ketools.errors import KetoolsError
from ketools.fact import UNKNOWN, FactError, Locality, TwoHop
from ketools.readers.fields import Fields
from ketools.readers.plain import plain
from ketools.readers.ripple import Sentences, ripple

Record = Mapping[str, Any]
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
