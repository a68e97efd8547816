"""Facts to edit: `Fact`, validated when made; `FactSet`, an immutable sequence of them; `facts()` reads a file."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ketools.errors import KetoolsError
from ketools.paths import data_root
from ketools.readers import fact_fields, read_records

if TYPE_CHECKING:
    import pandas as pd

_LISTS = ("paraphrases", "neighbours", "generation", "trained")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class TwoHop:
    """A question whose answer follows from a fact: `answer_true` before the edit, `answer_new` after it."""

    question: str
    answer_true: str
    answer_new: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact and what it is to become: `prompt` holds "{}" once, where `subject` goes.

    Targets carry no leading space; the model side adds the one its tokenizer needs. All prompts other than `prompt`
    are complete text: `paraphrases` (the same fact, other words), `neighbours` (other subjects whose object is
    `target_true` and must stay), `generation` (openings for free text), `trained` (the templates a pocket model was
    trained with), `two_hop` (consequences). Fields of CounterFact, Meng et al., arXiv 2202.05262.

    Raises KetoolsError, naming the fact and the field.
    """

    id: str
    relation: str
    prompt: str
    subject: str
    target_true: str
    target_new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    two_hop: tuple[TwoHop, ...] = ()

    def __post_init__(self) -> None:
        for name in ("id", "relation", "prompt", "subject", "target_true", "target_new"):
            self._check_text(name)
        holes = self.prompt.count("{}")
        if holes != 1:
            self._fail(
                "prompt",
                f'has "{{}}" {holes} times in {_short(self.prompt)}; write it once, in the place of the subject',
            )
        if self.target_new == self.target_true:
            self._fail("target_new", f"equals target_true ({_short(self.target_new)}); an edit needs another object")
        for name in _LISTS:
            object.__setattr__(self, name, self._texts(name))
        hops = tuple(self.two_hop)
        if not all(isinstance(hop, TwoHop) for hop in hops):
            self._fail("two_hop", "holds something that is no TwoHop(question, answer_true, answer_new)")
        object.__setattr__(self, "two_hop", hops)

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    def _check_text(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, str):
            self._fail(name, f"is {type(value).__name__} ({_short(value)}); expected text")
        if not value.strip():
            self._fail(name, f"is empty ({value!r}); give it some text or leave the fact out")
        if value != value.strip():
            self._fail(
                name, f"has white space at an end ({_short(value)}); take it off, spaces before targets are added later"
            )

    def _texts(self, name: str) -> tuple[str, ...]:
        value = getattr(self, name)
        if isinstance(value, str) or not isinstance(value, Iterable):
            self._fail(name, f"is {type(value).__name__} ({_short(value)}); expected a list of texts")
        texts = tuple(value)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                self._fail(name, f"holds {_short(text)}; expected non-empty texts only")
        return texts

    def _fail(self, field: str, what: str) -> None:
        raise KetoolsError(f"fact {self.id!r}: field {field!r} {what}")


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
        """One row per fact, one column per field (lists of prompts as tuples, two_hop as dicts)."""
        import pandas as pd  # half a second that reading and checking facts should not cost

        columns = [field.name for field in fields(Fact)]
        rows = [[getattr(fact, name) for name in columns] for fact in self]
        frame = pd.DataFrame(rows, columns=columns)
        frame["two_hop"] = [tuple(asdict(hop) for hop in fact.two_hop) for fact in self]
        return frame


def facts(source: str | Path) -> FactSet:
    """Read facts: "world" (the built-in fictional world) or a file (.jsonl, .json, either with .gz).

    Records in CounterFact's nested layout or EasyEdit's flat one, see `ketools.readers`.
    Raises KetoolsError naming file, line or record, and field.
    """
    path = _world() if str(source) == "world" else Path(source).expanduser()
    found: list[Fact] = []
    where_of: dict[str, str] = {}
    for where, record in read_records(path):
        try:
            values = fact_fields(record, default_id=where.split()[-1])
            fact = Fact(**{**values, "two_hop": tuple(TwoHop(**hop) for hop in values["two_hop"])})
        except KetoolsError as error:
            raise KetoolsError(f"{path}, {where}: {error}") from None
        if fact.id in where_of:
            raise KetoolsError(
                f"{path}, {where}: fact {fact.id!r}: field 'case_id' is already used on {where_of[fact.id]}; "
                "give every fact its own"
            )
        where_of[fact.id] = where
        found.append(fact)
    if not found:
        raise KetoolsError(f"{path} is empty: no facts in it; expected one record a line (.jsonl) or a list (.json)")
    return FactSet(found)


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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
