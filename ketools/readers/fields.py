"""Taking one record apart, field by field, noting every mistake."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ketools.fact import UNKNOWN, FactError, Locality, TwoHop, name_of, short


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
