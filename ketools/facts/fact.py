"""Facts to edit: `Fact`, checked when it is made, and `FactSet`, an immutable sequence of facts."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # the relation of a fact whose file names none; it groups nothing
LISTS = ("paraphrases", "neighbours", "generation", "trained")
_SHOWN = 60  # characters of a value that a message quotes


class FactError(KetoolsError):
    """A mistake in one field of one fact: `id`, `field`, and `what` is wrong with it."""

    def __init__(self, id: object, field: str, what: str) -> None:
        self.id, self.field, self.what = id, field, what
        super().__init__(f"fact {id!r}: field {field!r} {what}")


@dataclass(frozen=True, slots=True)
class TwoHop:
    """A question whose answer follows from a fact: `answer_true` before the edit (None: unknown), `answer_new` after."""

    question: str
    answer_true: str | None
    answer_new: str


@dataclass(frozen=True, slots=True)
class Locality:
    """A prompt that the edit must leave alone, and its `answer`, which need not be the fact's object."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact and what it is to become: `prompt` holds "{}" once, where `subject` goes.

    Targets carry no leading space; the model side adds the one that its tokenizer needs. All prompts other than
    `prompt` are complete text: `paraphrases` (the same fact, other words), `neighbours` (other subjects whose object is
    `target_true` and must stay), `generation` (openings for free text), `trained` (the templates that a pocket model
    was trained with), `two_hop` (consequences), `locality` (anything else that must stay, with its own answer). The
    fields are those of CounterFact, Meng et al., arXiv 2202.05262.

    `target_true` is None where the file does not say what the model believed (zsRE, or a table of your own). Such a
    fact can be edited and its accuracy measured. Measures that compare the old with the new object (ES, PS, NS) are not
    defined for it, so it has no neighbours.

    Raises FactError, a KetoolsError, naming the fact and the field.
    """

    id: str
    relation: str
    prompt: str
    subject: str
    target_true: str | None
    target_new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    two_hop: tuple[TwoHop, ...] = ()
    locality: tuple[Locality, ...] = ()

    def __post_init__(self) -> None:
        for error in problems({field.name: getattr(self, field.name) for field in fields(self)}):
            raise error
        for name in (*LISTS, "two_hop", "locality"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    def need_true(self, purpose: str) -> str:
        """`target_true`; raises FactError that names `purpose` if it is unknown."""
        if self.target_true is None:
            what = f"is missing, and {purpose} compares with it; add it to the file"
            raise FactError(self.id, "target_true", what)
        return self.target_true


def problems(values: Mapping[str, Any]) -> Iterator[FactError]:
    """Every mistake in the arguments of a Fact; fields that `values` lacks are passed over."""
    id = values.get("id")
    for name in ("id", "relation", "prompt", "subject", "target_new", "target_true"):
        if name not in values or (name == "target_true" and values[name] is None):
            continue
        value = values[name]
        if not isinstance(value, str):
            yield FactError(id, name, f"is {name_of(value)}; expected text")
        elif not value.strip():
            yield FactError(id, name, f"is empty ({value!r}); give it some text or leave the fact out")
        elif value != value.strip():
            what = f"has white space at an end ({short(value)}); take it off, spaces before targets are added later"
            yield FactError(id, name, what)
        elif not _encodable(value):
            yield FactError(id, name, f"holds half a character ({short(value)}); write the file again as UTF-8")
    prompt, true, new = values.get("prompt"), values.get("target_true"), values.get("target_new")
    if isinstance(prompt, str) and prompt.count("{}") != 1:
        what = f'has "{{}}" {prompt.count("{}")} times in {short(prompt)}; write it once, in the place of the subject'
        yield FactError(id, "prompt", what)
    if new == true and isinstance(new, str) and new:
        yield FactError(id, "target_new", f"equals target_true ({short(new)}); an edit needs another object")
    for name in LISTS:
        texts = values.get(name, ())
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            yield FactError(id, name, f"is {name_of(texts)}; expected a list of texts")
            continue
        for text in texts:
            if not isinstance(text, str) or not text.strip() or not _encodable(text):
                yield FactError(id, name, f"holds {short(text)}; expected non-empty texts only")
    for name, kind in (("two_hop", TwoHop), ("locality", Locality)):
        items = values.get(name, ())
        if not isinstance(items, Iterable) or not all(isinstance(item, kind) for item in items):
            arguments = ", ".join(field.name for field in fields(kind))
            yield FactError(id, name, f"holds something that is no {kind.__name__}({arguments})")
    if "target_true" in values and true is None and values.get("neighbours"):
        what = "is missing, but there are neighbours, which are to keep it; add it or leave the neighbours out"
        yield FactError(id, "target_true", what)


def _encodable(text: str) -> bool:
    # JSON may escape one half of a surrogate pair; no tokenizer takes it.
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def name_of(value: object) -> str:
    """What `value` is, for a message: "int (12)", "NaN (a missing value)"."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (a missing value)"
    return f"{type(value).__name__} ({short(value)})"


def short(value: object) -> str:
    """`repr(value)`, cut to a length that fits a message of one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class Clash(NamedTuple):
    """Two facts that cannot stand in one batch: `second` came later in the sequence."""

    first: Fact
    second: Fact

    @property
    def duplicate(self) -> bool:
        """Whether both ask for the same object; otherwise they contradict each other."""
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

        The order depends on the seed and the facts alone: not on the file's order, the machine or a library's version.
        A smaller sample is the beginning of a larger one. Raises KetoolsError if there are fewer than `n`.
        """
        if n < 1:
            raise KetoolsError(f"a sample of {n} facts: ask for at least 1")

        def rank(fact: Fact) -> bytes:
            return hashlib.sha256("\0".join((str(seed), fact.id, fact.subject, fact.relation)).encode()).digest()

        ordered = sorted(self, key=rank)
        if unique_subjects:
            first: dict[str, Fact] = {}
            for fact in ordered:
                first.setdefault(fact.subject.lower(), fact)
            ordered = list(first.values())
        if n > len(ordered):
            kind = f"with different subjects ({len(self):,} facts in all)" if unique_subjects else "in all"
            way_out = " or allow several facts of one subject (unique_subjects=False)" if n <= len(self) else ""
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

        return pd.DataFrame([asdict(fact) for fact in self], columns=[field.name for field in fields(Fact)])


def check_conflicts(facts: Iterable[Fact]) -> None:
    """Raise KetoolsError, naming both ids, for the first two facts that cannot stand in one batch.

    That is a contradiction (see FactSet.conflicts) or the same edit twice (see FactSet.duplicates).
    """
    for clash in _clashes(facts):
        raise KetoolsError(str(clash))


def _clashes(facts: Iterable[Fact]) -> Iterator[Clash]:
    """At most one contradiction and one duplicate for each fact, against the earliest there is; linear in the facts."""
    seen: dict[tuple[str, ...], dict[str, Fact]] = {}  # one thing -> target -> the first fact that asks for it
    for fact in facts:
        same_text = seen.setdefault((fact.text.lower(),), {})
        things = [same_text]
        if fact.relation != UNKNOWN:
            things.append(seen.setdefault((fact.subject.lower(), fact.relation), {}))
        others = (other for thing in things for other in thing.values() if other.target_new != fact.target_new)
        if (other := next(others, None)) is not None:
            yield Clash(other, fact)
        if fact.target_new in same_text:
            yield Clash(same_text[fact.target_new], fact)
        for thing in things:
            thing.setdefault(fact.target_new, fact)
