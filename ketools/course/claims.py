"""A notebook's claims about its own results, predictions before them, and exercises after them.

A claim is checked in front of the reader, and the notebook tests compare its line. A prediction is scored and explained once
the result is known. An exercise asks for a function and checks properties that every correct answer has; it is not compared
with a reference solution, so other correct solutions pass. The tests hold plausible wrong answers against each exercise and
make sure that they fail for the right reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from ketools.errors import KetoolsError

Answer = Callable[..., Any]
_LEVELS = ("easy", "medium", "hard")


class ClaimError(AssertionError):
    """A claim of a notebook that its own numbers contradict."""


def check_claim(
    claim: str,
    observed: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    exactly: float | None = None,
) -> str:
    """Check that `observed` lies within the bounds; returns one line with the claim, the number and the bounds.

    The notebook tests compare these lines except for the number. Bounds are chosen for the pocket model: with
    KETOOLS_MODE=full a failing claim does not stop the notebook, and one without an observation (NaN) is "not asked".

    Raises ClaimError if the claim does not hold (in quick mode, NaN never holds) and KetoolsError without any bound.

    >>> check_claim("the edit raises the target's probability", 0.93, at_least=0.5)
    "holds: the edit raises the target's probability: 0.93 >= 0.5"
    """
    from ketools.course.mode import current_mode  # predictions and exercises alone need no torch

    bounds = {">=": at_least, "<=": at_most, "==": exactly}
    given = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
    if not given:
        raise KetoolsError(f"claim {claim!r} has no bound and cannot fail; give at_least, at_most or exactly")
    value = float(observed)
    line = f"{claim}: {value:.3g} {' and '.join(given)}"
    if (
        value == value
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (exactly is None or value == exactly)
    ):
        return f"holds: {line}"
    if current_mode() == "quick":
        raise ClaimError(f"does not hold: {line}")
    return f"not asked: {claim}" if value != value else f"does not hold here: {line}"


@dataclass(frozen=True)
class Markdown:
    """Text that Jupyter shows as Markdown."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


@dataclass
class Guess:
    """A question, its options (key -> text) and the learner's guess (a key; None: no guess).

    In Jupyter with ipywidgets the options are radio buttons and a click records the guess; elsewhere they are text.
    """

    question: str
    options: dict[str, str]
    guess: str | None = None

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise KetoolsError(
                f"question {self.question!r} has {len(self.options)} options; give at least two to choose from"
            )
        if self.guess is not None:
            self._check(self.guess)

    def _repr_markdown_(self) -> str:
        lines = [f"**{self.question}**", "", *(f"- `{key}`: {text}" for key, text in self.options.items())]
        noted = f"You say `{self.guess}`."
        if not self.guess:
            noted = (
                f'To record your answer, add it to the call above, for example `guess="{next(iter(self.options))}"`.'
            )
        return "\n".join([*lines, "", noted])

    def __repr__(self) -> str:
        return self._repr_markdown_()

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        text = self._repr_markdown_()
        return {**_radio_buttons(self), "text/markdown": text, "text/plain": text}

    def _check(self, key: str) -> None:
        if key not in self.options:
            raise KetoolsError(f"{key!r} is not one of the options; choose one of {', '.join(map(repr, self.options))}")

    def reveal(self, answer: str, **because: str) -> Markdown:
        """The result, whether the guess was right, and why other options are wrong.

        `because` explains wrong options by key. After a wrong guess only its explanation is shown, without a guess all of
        them, in the order of the call. Raises KetoolsError for a key that is not an option.
        """
        for key in (answer, *because):
            self._check(key)
        result = f"**It is `{answer}`:** {self.options[answer]}."
        if self.guess == answer:
            return Markdown(f"{result} You predicted it.")
        if self.guess is not None:
            why = because.get(self.guess, "")
            return Markdown(f"{result} You said `{self.guess}`: {self.options[self.guess]}. {why}".rstrip())
        others = [f"- Why not `{key}`? {text}" for key, text in because.items() if key != answer]
        return Markdown("\n".join([result, "", *others]).rstrip())


def _radio_buttons(ask: Guess) -> dict[str, Any]:
    # Jupyter's data for a widget that writes to `ask.guess`; {} without ipywidgets.
    try:
        from ipywidgets import HTML, Layout, RadioButtons, VBox
    except ImportError:
        return {}
    options = [(text, key) for key, text in ask.options.items()]
    choice = RadioButtons(options=options, value=ask.guess, layout=Layout(width="100%"))
    choice.observe(lambda change: setattr(ask, "guess", change["new"]), names="value")
    # By default ipywidgets gives every option one line, whatever its length.
    css = "label { height: auto !important; display: flex } .ketools-options input { order: -1; flex: none }"
    question = HTML(
        f"<style>.ketools-options {css}</style><p style='line-height: 1.4'><b>{escape(ask.question)}</b></p>"
    )
    return VBox([question, choice.add_class("ketools-options")])._repr_mimebundle_() or {}


def predict(question: str, *, guess: str | None = None, **options: str) -> Guess:
    """Ask for a prediction: `options` are the possible answers by key, `guess` is the learner's.

    As the last expression of a cell it lets the learner choose; with the default None a notebook runs without an answer.
    Raises KetoolsError for fewer than two options and for a guess that is not one of them.

    >>> predict("Does it rain?", yes="it does", no="it does not", guess="no").reveal("no")
    **It is `no`:** it does not. You predicted it.
    """
    return Guess(question, options, guess)


class WrongAnswer(AssertionError):
    """An answer that lacks a property; the message says which, with a hint."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()  # IPython: the message alone, no traceback through our code


@dataclass(frozen=True)
class Property:
    """A property of every correct answer. `test(answer, *given)` checks it; an answer that fails is shown `teaches`."""

    says: str
    test: Callable[..., bool]
    teaches: str


@dataclass(frozen=True)
class Exercise:
    """A task in a notebook; `minutes` is how long a learner who has followed so far needs."""

    title: str
    difficulty: str
    minutes: int
    properties: tuple[Property, ...]

    def __post_init__(self) -> None:
        if self.difficulty not in _LEVELS or self.minutes < 1 or not self.properties:
            raise KetoolsError(
                f"exercise {self.title!r}: expected a difficulty of {', '.join(_LEVELS)}, at least one minute and one "
                f"property; got {self.difficulty!r}, {self.minutes}, {len(self.properties)}"
            )

    def check(self, answer: Answer, *given: object) -> str:
        """One line if `answer` has all properties, tried in order; each test gets `given`.

        Raises WrongAnswer at the first property that it lacks or whose test raises; NotImplementedError, from a stub, passes
        through. KetoolsError if `answer` is not a function.
        """
        if not callable(answer):
            raise KetoolsError(
                f"exercise {self.title!r}: expected a function, got {type(answer).__name__}; pass its name, without ()"
            )
        for each in self.properties:
            message = f"Not yet: {self.title}.\nMissing: {each.says}.\n{each.teaches}"
            try:
                holds = bool(each.test(answer, *given))
            except NotImplementedError:
                raise
            except Exception as error:
                raise WrongAnswer(f"{message}\nIt stopped with {type(error).__name__}: {error}") from error
            if not holds:
                raise WrongAnswer(message)
        return f"passed: {self.title} ({', '.join(each.says for each in self.properties)})"
