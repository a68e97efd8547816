"""Facts to edit: `Fact`, checked on construction, and `FactSet`, an immutable sequence of facts."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # the relation of a fact whose file gives none; it does not group facts
LISTS = ("paraphrases", "neighbours", "generation", "trained")
SEQUENCES = (*LISTS, "two_hop", "locality")
TARGETS = ("target_new", "target_true")
_SHOWN = 60  # characters of a value quoted in a message
_ENDS = re.compile(r"\A[^\S\n]+|[^\S\n]+\Z")
_LABELS = re.compile(r"(?i)\b(?:q|a|question|answer)\s*[:：]")
# Scripts without spaces between words: Chinese and Japanese, which have none next to other scripts either; then Thai,
# Lao, Tibetan, Burmese, Khmer and related ones.
_EAST_RANGES = "\u2e80-\u312f\u31a0-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f\U00020000-\U0003ffff"
_SOUTH_RANGES = "\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
_EAST, _UNSPACED = re.compile(f"[{_EAST_RANGES}]"), re.compile(f"[{_EAST_RANGES}{_SOUTH_RANGES}]")
_LATIN = re.compile("[A-Za-z]")
_QUOTES = "\"'`“”‘’«»‹›„‚"
# French and Italian elisions before a vowel, and names such as O'Brien.
_ELISION = re.compile(r"(?:^|[\s(])(?:[cdjlmnstCDJLMNSTO]|\w*[Qq]u|(?:[dnsa]e|[dDaA]|su|que|be)ll|[Uu]n|Sant)['’]$")
# Opening marks of markup or a sentence, marks that join two words, paths, and parts of code.
_JOINS = re.compile(
    r"[/\\_@¿¡]$|\w[-‐‑–—]$|(?:^|\s)#$|::$|\S->$|[\w)\]]=$|\w&$|\w\^$|(?:^|[\s(])\*\*+$|<[^<>\s][^<>]*>$"
)
# Punctuation and endings, which follow a word without a space.
_ENDING = re.compile(r"[,;:!?)\]}”»…]|\.(?!\w)|['’](?:s|t|re|ve|ll|d|m)\b")
_PARTS = re.compile(r"\w{2,}[./:@=(\[\w]*[./:@=(\[_]\w{2,}\.$|\w_\w+\.$|`")
_CODE = re.compile(r"(?m)^(?:import|from|def|class|return) \w|;\s*\S+$|\w\s*=\s*\S+$|\bimport [\w.]+ as \w")
# Marks that join only certain pairs: numbers and money, endings of words, addresses and files.
_PAIRS = (
    (r"\d[.:]$|(?:^|[^\d\s]\s|\()[$€£¥₹₩]$", r"\d"),
    (r"\d$", "[%°]"),
    (r"\w$", r"[-‐‑][^\W\d_]"),
    (r"[./@_]\w+$", r"\.\w"),
)


class FactError(KetoolsError):
    """A mistake in one field of one fact: `id`, `field`, and `what` is wrong."""

    def __init__(self, id: object, field: str, what: str) -> None:
        self.id, self.field, self.what = id, field, what
        super().__init__(f"fact {id!r}: field {field!r} {what}")


@dataclass(frozen=True, slots=True)
class TwoHop:
    """A question whose answer follows from a fact: `answer_true` before the edit (None: unknown), `answer_new` after."""

    question: str
    answer_true: str | None
    answer_new: str
    glue: bool | None = None


@dataclass(frozen=True, slots=True)
class Locality:
    """A prompt whose answer the edit must not change, and that `answer`, which need not be the fact's object."""

    prompt: str
    answer: str
    glue: bool | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact and its new object: `prompt` contains "{}" once, in the place of `subject`.

    `tail` decides what separates a prompt from its target: a space, or nothing where the text has none there. `glue`
    (True: nothing, False: a space) overrides it for the fact's prompt, paraphrases and neighbours; a target that begins
    with a space sets it to False. Texts are normalised to Unicode's composed form (NFC). All prompts other than
    `prompt` are complete text: `paraphrases` (the same fact, other words), `neighbours` (other subjects whose object is
    `target_true` and must stay), `generation` (openings for free text), `trained` (the templates on which a pocket
    model was trained), `two_hop` (consequences), `locality` (anything else that must stay, with its own answer). The
    fields are those of CounterFact, Meng et al., arXiv 2202.05262. `opening` and `closing` enclose the prompt and any
    context in front of it; they hold the parts of a chat template (`ketools.models.tokens.in_chat`).

    `target_true` is None where the file does not say what the model believed (zsRE, or your own table). Such a fact can
    be edited and its accuracy measured. Measures that compare the old with the new object (ES, PS, NS) are not defined
    for it, so it has no neighbours.

    Raises FactError, a KetoolsError, naming the fact and the field.

    Examples:
        >>> import ketools as ke
        >>> ke.Fact("1", "birthplace", "{} was born in", "Ada Lorn", target_true="Vell", target_new="Oran").text
        'Ada Lorn was born in'
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
    glue: bool | None = None
    opening: str = ""
    closing: str = ""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in self.__slots__}
        for name in SEQUENCES:  # checking a generator would empty it
            if isinstance(given[name], Iterator):
                given[name] = tuple(given[name])
        values = composed(given)
        for error in problems(values):
            raise error
        for name in TARGETS:
            if values[name] is not None and values[name].startswith(" "):
                values[name] = values[name].lstrip(" ")
                values["glue"] = values["glue"] or False
        for name in SEQUENCES:
            values[name] = tuple(values[name])
        for name, value in values.items():
            if value is not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def text(self) -> str:
        """The whole prompt: the question between opening and closing."""
        return f"{self.opening}{self.question}{self.closing}"

    @property
    def question(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    @property
    def subject_alone(self) -> bool:
        """Whether the prompt consists of the subject alone, apart from "Q:", "Answer:" and the like."""
        return re.search(r"\w", _LABELS.sub("", self.prompt.replace("{}", " ", 1))) is None

    @property
    def subject_span(self) -> tuple[int, int]:
        """Characters (start, end) of the subject in `text`, where "{}" is; other occurrences do not count."""
        start = len(self.opening) + self.prompt.index("{}")
        return start, start + len(self.subject)

    def need_true(self, purpose: str) -> str:
        """`target_true`; raises FactError, which names `purpose`, if it is unknown."""
        if self.target_true is None:
            what = f"is missing, and {purpose} compares with it; add it to the file"
            raise FactError(self.id, "target_true", what)
        return self.target_true


def problems(values: Mapping[str, Any]) -> Iterator[FactError]:
    """Every mistake in the arguments of a Fact; fields missing from `values` are skipped."""
    id = values.get("id")
    for name in ("id", "relation", "prompt", "subject", "target_new", "target_true"):
        if name not in values or (name == "target_true" and values[name] is None):
            continue
        value = values[name]
        if not isinstance(value, str):
            yield FactError(id, name, f"is {name_of(value)}; expected text")
        elif not value.strip():
            yield FactError(id, name, f"is empty ({value!r}); give it some text or leave the fact out")
        elif value != trimmed(value, name):
            what = f"has white space at an end ({short(value)}); remove it, spaces before targets are added later"
            yield FactError(id, name, what)
        elif not _encodable(value):
            yield FactError(id, name, f"holds half a character ({short(value)}); write the file again as UTF-8")
    prompt, true, new = values.get("prompt"), values.get("target_true"), values.get("target_new")
    if isinstance(prompt, str) and prompt.count("{}") != 1:
        what = f'has "{{}}" {prompt.count("{}")} times in {short(prompt)}; write it once, in the place of the subject'
        yield FactError(id, "prompt", what)
    if isinstance(new, str) and isinstance(true, str) and new.strip() == true.strip() != "":
        yield FactError(id, "target_new", f"equals target_true ({short(new.strip())}); an edit needs another object")
    for name in ("opening", "closing"):
        if not isinstance(values.get(name, ""), str):
            yield FactError(id, name, f"is {name_of(values[name])}; expected text")
    if not isinstance(values.get("glue"), bool | None):
        yield FactError(id, "glue", f"is {name_of(values['glue'])}; expected true, false or nothing")
    for name in LISTS:
        texts = values.get(name, ())
        if isinstance(texts, str) or not isinstance(texts, tuple | Iterable):
            yield FactError(id, name, f"is {name_of(texts)}; expected a list of texts")
            continue
        for text in texts:
            if not isinstance(text, str) or not text.strip() or not (text.isascii() or _encodable(text)):
                yield FactError(id, name, f"holds {short(text)}; expected non-empty texts only")
    for name, kind in (("two_hop", TwoHop), ("locality", Locality)):
        items = values.get(name, ())
        if not isinstance(items, Iterable) or not all(isinstance(item, kind) for item in items):
            arguments = ", ".join(field.name for field in fields(kind) if field.default is MISSING)
            yield FactError(id, name, f"holds something that is no {kind.__name__}({arguments})")
    if "target_true" in values and true is None and values.get("neighbours"):
        what = "is missing, but there are neighbours, which are to keep it; add it or leave the neighbours out"
        yield FactError(id, "target_true", what)


def trimmed(text: str, field: str) -> str:
    """`text` without white space at its ends, except where it has a meaning: line breaks of a prompt (which chat
    templates put before the answer) and one space before a target.
    """
    if field in TARGETS:
        return f" {text.strip()}" if text.startswith(" ") else text.strip()
    return text.strip() if field in ("id", "relation", "subject") else _ENDS.sub("", text)


def composed(value: Any) -> Any:  # noqa: ANN401 - JSON, or a field of a Fact
    """`value` with all its texts in Unicode's composed form (NFC), which makes two spellings of a name equal."""
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, list | tuple):  # most items are ASCII and need no call
        items = [x if x.__class__ is str and x.isascii() else composed(x) for x in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return dict(zip(composed([*value]), composed([*value.values()]), strict=True))
    if isinstance(value, TwoHop | Locality):
        return type(value)(*composed([getattr(value, name) for name in value.__slots__]))
    return value


def tail(prompt: str, target: str, glue: bool | None = None) -> str:
    """The text after `prompt`: `target`, preceded by a space unless `glue`. None: the texts decide.

    There is no space after other white space, an opening bracket or quotation mark, or a character that joins words or
    parts of code; before punctuation and endings ("-year-old", "'s"); and in scripts written without spaces (Chinese,
    Japanese, Thai, ...). A space at the start of the target or the end of the prompt is kept.
    """
    bare = target.lstrip(" ")
    if glue is None:
        glue = bare == target and _glued(prompt, bare)
    return bare if glue else f" {bare}"


def _glued(prompt: str, target: str) -> bool:
    if not prompt.strip() or not target or prompt[-1].isspace():
        return prompt[-1:] not in ("", " ")
    last = prompt[-1]
    if f"{last}{target[0]}".isascii() and last.isalnum() and target[0].isalnum():  # by far the most frequent case
        return False
    line = prompt.splitlines()[-1]
    word = line.split()[-1]
    if _UNSPACED.match(target) and _UNSPACED.search(word):
        return True
    if _EAST.match(last) and len(_EAST.findall(line)) > len(_LATIN.findall(line)):
        return True
    if last in _QUOTES:  # opening if it follows white space or a bracket, as a closing » may too
        before = prompt[-2:-1]
        opens = not before or before.isspace() or before in _QUOTES or unicodedata.category(before) in ("Ps", "Pd")
        return (opens and not (last == "»" and "«" in line)) or _ELISION.search(line) is not None
    if unicodedata.category(last) == "Ps" or _JOINS.search(line) or _ENDING.match(target):
        return True
    if last == "." and re.match("[a-z_]", target):  # an attribute ("pd." + "merge") or the end of a sentence
        return word == line or _PARTS.search(word) is not None or _CODE.search(prompt) is not None
    return any(re.search(end, line) and re.match(start, target) for end, start in _PAIRS)


def _encodable(text: str) -> bool:
    # JSON may escape half of a surrogate pair, which no tokenizer accepts.
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def name_of(value: object) -> str:
    """`value` with its type, for a message: "int (12)", "NaN (a missing value)"."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (a missing value)"
    return f"{type(value).__name__} ({short(value)})"


def short(value: object) -> str:
    """`repr(value)`, cut to fit a one-line message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class Clash(NamedTuple):
    """Two facts that cannot share a batch; `second` comes later in the sequence."""

    first: Fact
    second: Fact

    @property
    def duplicate(self) -> bool:
        """Whether both have the same new object; otherwise they contradict each other."""
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
    """An immutable sequence of facts; slicing, sampling and filtering return a FactSet.

    Examples:
        >>> import ketools as ke
        >>> facts = ke.FactSet(
        ...     ke.Fact(str(n), "birthplace", "{} was born in", name, target_true="Vell", target_new="Oran")
        ...     for n, name in enumerate(["Ada Lorn", "Bo Tarn", "Mira Quell"])
        ... )
        >>> facts[:2].ids, facts.filter(lambda fact: fact.subject.startswith("M"))
        (['0', '1'], FactSet(1 facts, 1 subjects, 1 relations))
    """

    __slots__ = ("_facts",)

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Raises KetoolsError if an item of `facts` is no Fact."""
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
        """`n` facts in an order given by `seed`; by default no two share a subject (case ignored).

        The order depends on the seed and the facts alone: not on the file's order, the machine or library versions. A
        smaller sample is the beginning of a larger one. Raises KetoolsError if there are fewer than `n`.
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
            raise KetoolsError(
                f"asked for {n:,} facts, there are {len(ordered):,} {kind}; ask for at most as many{way_out}"
            )
        return FactSet(ordered[:n])

    def conflicts(self) -> list[Clash]:
        """Facts that give one thing different objects, each with the first fact that it contradicts.

        One thing: the same subject (case ignored) and relation, or the same prompt (subject included, case ignored).
        """
        return [clash for clash in _clashes(self) if not clash.duplicate]

    def duplicates(self) -> list[Clash]:
        """Facts with the prompt (case ignored) and the new object of an earlier one, each with that earlier fact."""
        return [clash for clash in _clashes(self) if clash.duplicate]

    def filter(self, predicate: Callable[[Fact], bool]) -> "FactSet":
        """The facts for which `predicate` holds, in order."""
        return FactSet(fact for fact in self if predicate(fact))

    def by_subject(self) -> dict[str, "FactSet"]:
        """The facts of each subject; subjects in order of appearance."""
        groups: dict[str, list[Fact]] = {}
        for fact in self:
            groups.setdefault(fact.subject, []).append(fact)
        return {subject: FactSet(group) for subject, group in groups.items()}

    def to_frame(self) -> "pd.DataFrame":
        """One row per fact, one column per field (lists of prompts as tuples; two_hop and locality as dicts)."""
        import pandas as pd  # takes half a second, which reading and checking facts need not spend

        return pd.DataFrame([asdict(fact) for fact in self], columns=[field.name for field in fields(Fact)])


def check_conflicts(facts: Iterable[Fact]) -> None:
    """Raise KetoolsError, naming both ids, for the first two facts that cannot share a batch.

    That is a contradiction (see FactSet.conflicts) or the same edit twice (see FactSet.duplicates).
    """
    for clash in _clashes(facts):
        raise KetoolsError(str(clash))


def _clashes(facts: Iterable[Fact]) -> Iterator[Clash]:
    """At most one contradiction and one duplicate per fact, with the earliest other fact; linear in the facts."""
    seen: dict[tuple[str, ...], dict[str, Fact]] = {}  # one thing -> target -> the first fact with that target
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
