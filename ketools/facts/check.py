"""Checking a file of facts before use: every mistake, and anything suspicious."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ketools.errors import KetoolsError, named
from ketools.facts.fact import TARGETS, Fact, FactError, FactSet, short
from ketools.facts.reading import Converted, converted, encoding

ERRORS, PLACES = 20, 5  # errors, and places of each kind of warning, that are shown
MEANT = {
    "conflict": "contradicts an earlier fact (of facts about one thing the last one counts)",
    "duplicate": "repeats an earlier edit",
    "subject": "the subject is the whole prompt",
}
LONG_TARGET = 100  # characters, about 30 English tokens; objects of facts are shorter


def whole_prompt(fact: Fact) -> FactError:
    """The warning for a fact whose subject is its whole prompt."""
    what = (
        f"is the whole prompt ({short(fact.subject)}): an edit is written at the subject's last token, as knowledge about the "
        "subject, and seldom succeeds here; name the thing alone"
    )
    return FactError(fact.id, "subject", what)


class Problem(NamedTuple):
    """`what` is wrong at `where` ("line 3", "record 3"). `kind` is the field or the kind of mistake. An `error` makes
    its record unusable, a warning does not.
    """

    where: str
    kind: str
    what: str
    error: bool


@dataclass(frozen=True)
class Check:
    """The result of `check`: the `facts` without a mistake, in order, and the number of `records`, good and bad."""

    path: Path
    encoding: str
    records: int
    layouts: Mapping[str, int]
    facts: FactSet
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems for which `ketools.facts` would refuse the file."""
        return tuple(problem for problem in self.problems if problem.error)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The others: a contradiction or a duplicate matters only if both facts are in one batch."""
        return tuple(problem for problem in self.problems if not problem.error)

    def summary(self) -> dict[str, Any]:
        """Named counts, for people and for JSON."""
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

    def text(self, every: bool = True) -> str:
        """The problems, one per line, and the counts; unless `every`, the first errors and a line per kind of warning."""
        errors, warnings = (
            [f"{p.where}: {name}: {' '.join(p.what.splitlines())}" for p in found]
            for name, found in (("error", self.errors), ("warning", self.warnings))
        )
        lines = errors if every else errors[:ERRORS]
        if len(errors) > len(lines):
            lines.append(f"... and {len(errors) - ERRORS:,} more errors (--all)")
        kinds = {} if every else Counter(problem.kind for problem in self.warnings)
        for kind, count in kinds.items():
            places = named([problem.where for problem in self.warnings if problem.kind == kind], PLACES)
            what = MEANT.get(kind, kind)
            lines.append(f"warning, {count:,} facts: {what}: {places}{' (--all says more)' if count > 1 else ''}")
        lines = [*lines, *(warnings if every else ())]
        counts = []
        for key, value in self.summary().items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
            counts.append(f"{key:<20} {f'{value:,}' if isinstance(value, int) else value}")
        return "\n".join([*lines, *([""] if lines else []), *counts])


def check(path: Path) -> Check:
    """Read all of `path` and list every mistake; a file that cannot be read at all counts as one mistake.

    A break in the JSON of a .json file hides everything after it, so only the first one is reported. Raises
    KetoolsError if there is no such file.
    """
    found: list[Converted] = []
    problems: list[Problem] = []
    try:
        for record in converted(path):
            found.append(record)
            for error in record.errors:
                kind = error.field if isinstance(error, FactError) else "record"
                problems.append(Problem(record.where, kind, str(error), True))
    except KetoolsError as error:
        if not path.is_file():
            raise
        where, _, what = str(error).removeprefix(str(path)).lstrip(",: ").partition(": ")
        at_line = where.startswith("line ")
        problems.append(Problem(where if at_line else "file", "file", what if at_line else str(error), True))
    if not found and not problems:
        problems.append(Problem("file", "file", "is empty: no facts in it", True))
    facts = FactSet(fact for record in found for fact in record.facts)
    where_of = {fact.id: record.where for record in found for fact in record.facts}
    for kind, clashes in (("conflict", facts.conflicts()), ("duplicate", facts.duplicates())):
        for clash in clashes:
            what = f"{clash} (the other: {where_of[clash.first.id]})"
            problems.append(Problem(where_of[clash.second.id], kind, what, False))
    for fact in facts:
        if fact.subject_alone:
            problems.append(Problem(where_of[fact.id], "subject", str(whole_prompt(fact)), False))
        for field in TARGETS:
            target = getattr(fact, field) or ""
            about = f"fact {fact.id!r}: field {field!r}"
            if len(target) > LONG_TARGET:
                what = f"{about} has {len(target)} characters ({short(target)}); an object is short"
                problems.append(Problem(where_of[fact.id], "long target", what, False))
            if "\n" in target:
                what = f"{about} goes over several lines ({short(target)})"
                problems.append(Problem(where_of[fact.id], "line break", what, False))
    layouts = Counter(record.layout or "unknown" for record in found)
    return Check(path, encoding(path), len(found), layouts, facts, tuple(problems))
