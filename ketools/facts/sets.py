"""Facts to edit: `FactSet`, an immutable sequence of `Fact`; `facts()` reads a file; `check_conflicts` looks at a batch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

from ketools.errors import KetoolsError
from ketools.facts.fact import UNKNOWN, Fact, Locality, TwoHop
from ketools.facts.fetch import SOURCES, local
from ketools.facts.reading import rows
from ketools.io import data_root

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Clash", "Fact", "FactSet", "Locality", "TwoHop", "check_conflicts", "facts"]


class Clash(NamedTuple):
    """Two facts that cannot stand in one batch: `second` came later in the sequence."""

    first: Fact
    second: Fact

    @property
    def duplicate(self) -> bool:
        """Whether both ask for the same; else they ask for different objects."""
        return self.first.target_new == self.second.target_new

    def __str__(self) -> str:
        a, b = self
        if self.duplicate:
            return f"facts {a.id!r} and {b.id!r} are the same edit ({b.text!r} -> {b.target_new!r}); keep one of them"
        same = f"relation {b.relation!r}" if b.relation == a.relation != UNKNOWN else f"prompt {b.text!r}"
        return (
            f"facts {a.id!r} and {b.id!r} contradict each other: subject {b.subject!r}, {same}, but the targets "
            f"{a.target_new!r} and {b.target_new!r}; keep one of them, or edit them in different batches"
        )


class FactSet(Sequence[Fact]):
    """An immutable sequence of facts; slicing, sampling and filtering give a FactSet again."""

    __slots__ = ("_facts",)

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Raises KetoolsError if something in `facts` is no Fact."""
        self._facts = tuple(facts)
        for i, fact in enumerate(self._facts):
            if not isinstance(fact, Fact):
                raise KetoolsError(f"item {i} is {type(fact).__name__}; a FactSet holds ketools.Fact only")

    def __len__(self) -> int:
        return len(self._facts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> "FactSet": ...
    def __getitem__(self, index: int | slice) -> "Fact | FactSet":
        return FactSet(self._facts[index]) if isinstance(index, slice) else self._facts[index]

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts)

    def __add__(self, other: "FactSet") -> "FactSet":
        return FactSet((*self, *other))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactSet) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)

    def __repr__(self) -> str:
        subjects = len({fact.subject for fact in self})
        relations = len({fact.relation for fact in self})
        return f"FactSet({len(self)} facts, {subjects} subjects, {relations} relations)"

    @property
    def ids(self) -> list[str]:
        """The facts' ids, in order."""
        return [fact.id for fact in self]

    def sample(self, n: int, seed: int, unique_subjects: bool = True) -> "FactSet":
        """`n` facts in an order that `seed` decides; by default no two with one subject (case ignored).

        The order hangs on nothing but seed and facts: not on the file's order, the machine or a library's version.
        A smaller sample is the beginning of a larger one. Raises KetoolsError if there are fewer than `n`.
        """
        if n < 1:
            raise KetoolsError(f"a sample of {n} facts: ask for at least 1")
        ordered = sorted(self, key=lambda fact: _rank(seed, fact))
        if unique_subjects:
            first: dict[str, Fact] = {}
            for fact in ordered:
                first.setdefault(fact.subject.lower(), fact)
            ordered = list(first.values())
        if n > len(ordered):
            kind = f"with different subjects ({len(self):,} facts in all)" if unique_subjects else "in all"
            way_out = (
                " or allow several facts of one subject (unique_subjects=False)"
                if n <= len(self) and unique_subjects
                else ""
            )
            raise KetoolsError(f"asked for {n:,} facts, there are {len(ordered):,} {kind}; ask for fewer{way_out}")
        return FactSet(ordered[:n])

    def conflicts(self) -> list[Clash]:
        """Facts that ask for different objects of one thing, each with the first fact that it contradicts.

        One thing: the same subject (case ignored) and relation, or the same prompt (subject included, case ignored).
        """
        return [clash for clash in _clashes(self) if not clash.duplicate]

    def duplicates(self) -> list[Clash]:
        """Facts with the prompt (case ignored) and the new object of an earlier one, each with that one."""
        return [clash for clash in _clashes(self) if clash.duplicate]

    def filter(self, predicate: Callable[[Fact], bool]) -> "FactSet":
        """The facts for which `predicate` holds, in order."""
        return FactSet(fact for fact in self if predicate(fact))

    def by_subject(self) -> dict[str, "FactSet"]:
        """Subject -> its facts, subjects in order of appearance."""
        groups: dict[str, list[Fact]] = {}
        for fact in self:
            groups.setdefault(fact.subject, []).append(fact)
        return {subject: FactSet(group) for subject, group in groups.items()}

    def to_frame(self) -> "pd.DataFrame":
        """One row per fact, one column per field (lists of prompts as tuples; two_hop and locality as dicts)."""
        import pandas as pd  # half a second that reading and checking facts should not cost

        columns = [field.name for field in fields(Fact)]
        rows = [[getattr(fact, name) for name in columns] for fact in self]
        frame = pd.DataFrame(rows, columns=columns)
        for name in ("two_hop", "locality"):
            frame[name] = [tuple(asdict(item) for item in getattr(fact, name)) for fact in self]
        return frame


def facts(source: str | Path) -> FactSet:
    """Read facts: "world" (the built-in fictional world), the name of a data set that `ketools data get` has fetched
    ("counterfact", "zsre", ...), or a file (.jsonl, .json, .csv, each also with .gz).

    The layouts that are known, and what becomes of their fields, stand in `ketools.facts.reading`.
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


def check_conflicts(facts: Iterable[Fact]) -> None:
    """Raise KetoolsError, naming both ids, for the first two facts that cannot stand in one batch.

    That is a contradiction (see FactSet.conflicts) or the same edit twice (see FactSet.duplicates).
    """
    for clash in _clashes(facts):
        raise KetoolsError(str(clash))


def _clashes(facts: Iterable[Fact]) -> Iterator[Clash]:
    """At most one contradiction and one duplicate for each fact, against the earliest there is; linear in the facts."""
    said: dict[tuple[str, ...], dict[str, Fact]] = {}  # one thing -> target -> the first fact that asks for it
    for fact in facts:
        text = said.setdefault((fact.text.lower(),), {})
        things = [text]
        if fact.relation != UNKNOWN:
            things.append(said.setdefault((fact.subject.lower(), fact.relation), {}))
        others = (other for thing in things for other in thing.values() if other.target_new != fact.target_new)
        if (other := next(others, None)) is not None:
            yield Clash(other, fact)
        if fact.target_new in text:
            yield Clash(text[fact.target_new], fact)
        for thing in things:
            thing.setdefault(fact.target_new, fact)


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


def _rank(seed: int, fact: Fact) -> bytes:
    return hashlib.sha256("\0".join((str(seed), fact.id, fact.subject, fact.relation)).encode()).digest()
