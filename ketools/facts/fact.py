"""One fact: `Fact`, checked when made, and the small records that it holds."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from ketools.errors import KetoolsError

UNKNOWN = "unknown"  # the relation of a fact whose file names none; it groups nothing
REQUIRED = ("id", "relation", "prompt", "subject", "target_new")
LISTS = ("paraphrases", "neighbours", "generation", "trained")
_SHOWN = 60


class FactError(KetoolsError):
    """A mistake in one field of one fact: `id`, `field` and `what` is wrong with it."""

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
    """A prompt of any kind that the edit must leave alone, and its `answer`, which need not be the fact's object."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact and what it is to become: `prompt` holds "{}" once, where `subject` goes.

    Targets carry no leading space; the model side adds the one its tokenizer needs. All prompts other than `prompt`
    are complete text: `paraphrases` (the same fact, other words), `neighbours` (other subjects whose object is
    `target_true` and must stay), `generation` (openings for free text), `trained` (the templates a pocket model was
    trained with), `two_hop` (consequences), `locality` (anything else that must stay, with its own answer). Fields of
    CounterFact, Meng et al., arXiv 2202.05262.

    `target_true` is None where the file does not say what the model believed (zsRE, or a table of one's own). Such a
    fact can be edited and its accuracy measured; what compares the old with the new object (ES, PS, NS) is not defined
    for it, so it holds no neighbours.

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
            self._fail("target_true", f"is missing, and {purpose} compares with it; add it to the file")
        return self.target_true

    def _fail(self, field: str, what: str) -> NoReturn:
        raise FactError(self.id, field, what)


def problems(values: Mapping[str, Any]) -> Iterator[FactError]:
    """All that is wrong with the arguments of a Fact; a field that `values` lacks is passed over."""
    id = values.get("id")
    for name in (*REQUIRED, "target_true"):
        if name in values and not (name == "target_true" and values[name] is None):
            yield from (FactError(id, name, what) for what in _text_problems(values[name]))
    prompt, true, new = values.get("prompt"), values.get("target_true"), values.get("target_new")
    if isinstance(prompt, str) and prompt.count("{}") != 1:
        what = f'has "{{}}" {prompt.count("{}")} times in {short(prompt)}; write it once, in the place of the subject'
        yield FactError(id, "prompt", what)
    if new == true and isinstance(new, str) and new:
        yield FactError(id, "target_new", f"equals target_true ({short(new)}); an edit needs another object")
    for name in LISTS:
        yield from (FactError(id, name, what) for what in _list_problems(values.get(name, ())))
    for name, kind in (("two_hop", TwoHop), ("locality", Locality)):
        items = values.get(name, ())
        if not isinstance(items, Iterable) or not all(isinstance(item, kind) for item in items):
            arguments = ", ".join(field.name for field in fields(kind))
            yield FactError(id, name, f"holds something that is no {kind.__name__}({arguments})")
    if "target_true" in values and true is None and values.get("neighbours"):
        what = "is missing, but there are neighbours, which are to keep it; add it or leave the neighbours out"
        yield FactError(id, "target_true", what)


def _text_problems(value: object) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"is {name_of(value)}; expected text"
    elif not value.strip():
        yield f"is empty ({value!r}); give it some text or leave the fact out"
    elif value != value.strip():
        yield f"has white space at an end ({short(value)}); take it off, spaces before targets are added later"
    elif not _whole(value):
        yield f"holds half a character ({short(value)}); write the file again as UTF-8"


def _list_problems(value: object) -> Iterator[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        yield f"is {name_of(value)}; expected a list of texts"
        return
    for text in value:
        if not isinstance(text, str) or not text or text.isspace() or not _whole(text):
            yield f"holds {short(text)}; expected non-empty texts only"


def _whole(text: str) -> bool:
    # JSON may escape one half of a surrogate pair; no tokenizer takes it
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def name_of(value: object) -> str:
    """What `value` is, for a message: "int (12)", "NaN (a missing value)"."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (a missing value)"
    return f"{type(value).__name__} ({short(value)})"


def short(value: object) -> str:
    """`repr(value)`, cut to a length that fits a message of one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
