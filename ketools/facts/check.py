"""All that is to be said about a file of facts before it is used: every mistake, and what is suspicious."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ketools.errors import KetoolsError
from ketools.facts.fact import FactError, FactSet, short
from ketools.facts.reading import Row, encoding, rows

LONG_TARGET = 100  # characters; about 30 tokens of English, more than an object of a fact has


class Problem(NamedTuple):
    """`what` is wrong at `where` ("line 3", "record 3"); `kind`: the field, or what sort of mistake; an error spoils
    its record, a warning does not."""

    where: str
    kind: str
    what: str
    error: bool


@dataclass(frozen=True)
class Check:
    """What `check` found. `facts`: those without a mistake, in order; `records`: how many there are, good and bad."""

    path: Path
    encoding: str
    records: int
    layouts: Mapping[str, int]
    facts: FactSet
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems because of which `ketools.facts` would refuse the file."""
        return tuple(problem for problem in self.problems if problem.error)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The others: a contradiction or a duplicate matters only if both facts come into one batch."""
        return tuple(problem for problem in self.problems if not problem.error)

    def summary(self) -> dict[str, Any]:
        """Counts under their names, for people and for JSON."""
        facts = self.facts
        return {
            "file": str(self.path),
            "encoding": self.encoding,
            "layouts": dict(self.layouts),
            "records": self.records,
            "facts": len(facts),
            "subjects": len({fact.subject.lower() for fact in facts}),
            "relations": len({fact.relation for fact in facts}),
            "without target_true": sum(fact.target_true is None for fact in facts),
            "errors": len(self.errors),
            "errors by kind": dict(Counter(problem.kind for problem in self.errors)),
            "warnings": len(self.warnings),
            "warnings by kind": dict(Counter(problem.kind for problem in self.warnings)),
        }

    def to_dict(self) -> dict[str, Any]:
        """The summary and every problem."""
        return self.summary() | {
            "problems": [
                {"where": p.where, "kind": p.kind, "severity": "error" if p.error else "warning", "what": p.what}
                for p in self.problems
            ]
        }

    def text(self, most: int | None = None) -> str:
        """The problems, a line each (the first `most` of errors and of warnings), and the counts."""
        lines = []
        for name, found in (("error", self.errors), ("warning", self.warnings)):
            lines += [f"{p.where}: {name}: {' '.join(p.what.split())}" for p in found[:most]]
            if most is not None and len(found) > most:
                lines.append(f"... and {len(found) - most:,} more {name}s")
        counts = []
        for key, value in self.summary().items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
            counts.append(f"{key:<20} {f'{value:,}' if isinstance(value, int) else value}")
        return "\n".join([*lines, *([""] if lines else []), *counts])


def check(path: Path) -> Check:
    """Read all of `path` and list every mistake; a file that cannot be read at all is one mistake of its own.

    Within a .json file a break in the JSON hides what comes after it: it is one file to a reader, so only the first is
    known. Raises KetoolsError if there is no such file.
    """
    if not path.is_file():
        next(rows(path), None)  # says what is wrong with the path
    found: list[Row] = []
    problems: list[Problem] = []
    try:
        for row in rows(path):
            found.append(row)
            problems += [Problem(row.where, _kind(error), str(error), True) for error in row.errors]
    except KetoolsError as error:
        where, _, what = str(error).removeprefix(str(path)).lstrip(",: ").partition(": ")
        at_line = where.startswith("line ")
        problems.append(Problem(where if at_line else "file", "file", what if at_line else str(error), True))
    facts = FactSet(fact for row in found for fact in row.facts)
    where_of = {fact.id: row.where for row in found for fact in row.facts}
    if not found and not problems:
        problems.append(Problem("file", "file", "is empty: no facts in it", True))
    problems += _suspicious(facts, where_of)
    layouts = Counter(row.layout or "unknown" for row in found)
    return Check(path, _encoding(path), len(found), layouts, facts, tuple(problems))


def _kind(error: KetoolsError) -> str:
    return error.field if isinstance(error, FactError) else "record"


def _encoding(path: Path) -> str:
    try:
        return encoding(path)
    except KetoolsError:
        return "unknown"


def _suspicious(facts: FactSet, where_of: Mapping[str, str]) -> list[Problem]:
    """What does not spoil a fact: contradictions, duplicates, targets that are hardly an object."""
    found = []
    for kind, clashes in (("conflict", facts.conflicts()), ("duplicate", facts.duplicates())):
        for clash in clashes:
            what = f"{clash} (the other: {where_of[clash.first.id]})"
            found.append(Problem(where_of[clash.second.id], kind, what, False))
    for fact in facts:
        for field in ("target_new", "target_true"):
            target = getattr(fact, field) or ""
            if len(target) > LONG_TARGET:
                what = f"fact {fact.id!r}: field {field!r} has {len(target)} characters ({short(target)}); an object is short"
                found.append(Problem(where_of[fact.id], "long target", what, False))
            if "\n" in target:
                what = f"fact {fact.id!r}: field {field!r} goes over several lines ({short(target)})"
                found.append(Problem(where_of[fact.id], "line break", what, False))
    return found
