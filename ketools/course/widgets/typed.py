"""What a user typed, as a fact."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ketools.errors import KetoolsError
from ketools.fact import UNKNOWN
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.probing.recall import top_tokens
from ketools.prompts import make_rows, subject_span

_TRIED = 20  # of the model's most probable tokens, until one is a word


@dataclass(frozen=True)
class Words:
    """The text fields of a fact; `old` may be empty."""

    prompt: str
    subject: str
    old: str
    new: str


def fact_of(words: Words, chosen: Fact | None) -> Fact:
    """The fact that the fields spell: `chosen` with another target, or one of the user's own.

    A prompt that holds the subject itself once is taken as well. Raises KetoolsError as `Fact` does.
    """
    prompt, subject, old, new = (text.strip() for text in (words.prompt, words.subject, words.old, words.new))
    if "{}" not in prompt and subject and prompt.count(subject) == 1:
        prompt = prompt.replace(subject, "{}")
    if chosen is not None and (prompt, subject, old) == (chosen.prompt, chosen.subject, chosen.target_true or ""):
        return replace(chosen, target_new=new)
    return Fact("typed", UNKNOWN, prompt, subject, old or None, new)


def with_old(model: EditableModel, fact: Fact) -> Fact:
    """The fact with what the model says now as its old answer, where none is known: its most probable word.

    Raises KetoolsError if the fact does not fit the model, and if the model has no word but the new answer to give.
    """
    span = subject_span(fact)
    make_rows(model, [fact.text], [fact.target_new], [span])
    if fact.target_true is not None:
        return fact
    for token in top_tokens(model, fact.text, _TRIED)["token"]:
        word = token.strip()
        if word and word.isprintable() and "\ufffd" not in word and word != fact.target_new:
            return replace(fact, target_true=word)
    raise KetoolsError(f"fact {fact.id!r}: the model answers {fact.text!r} with no word; type the old answer")
