"""Exercises: an answer is a function; it is checked by properties that it must have, with messages that teach.

Nothing is compared with a reference solution: another correct way passes. Each exercise also names answers that look
right and are not; the tests see to it that they fail, for the right reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ketools.errors import KetoolsError

Answer = Callable[..., Any]
_LEVELS = ("easy", "medium", "hard")


class WrongAnswer(AssertionError):
    """An answer that lacks a property; the message says which, and what to think about."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()  # IPython: the message alone, no traceback through our code


@dataclass(frozen=True)
class Property:
    """What a right answer does. `test(answer, *given)` is true if it does; `teaches` is told to whose answer does not."""

    says: str
    test: Callable[..., bool]
    teaches: str


@dataclass(frozen=True)
class Wrong:
    """A plausible wrong answer: what it does, the function, and `says` of the property that catches it."""

    what: str
    answer: Answer
    fails: str


@dataclass(frozen=True)
class Exercise:
    """A task of a notebook; `minutes` is what a learner who has followed so far needs."""

    title: str
    difficulty: str
    minutes: int
    properties: tuple[Property, ...]
    wrong: tuple[Wrong, ...] = ()

    def __post_init__(self) -> None:
        if self.difficulty not in _LEVELS or self.minutes < 1 or not self.properties:
            raise KetoolsError(
                f"exercise {self.title!r}: expected a difficulty of {', '.join(_LEVELS)}, at least one minute and one "
                f"property; got {self.difficulty!r}, {self.minutes}, {len(self.properties)}"
            )
        says = {each.says for each in self.properties}
        if odd := [each.fails for each in self.wrong if each.fails not in says]:
            raise KetoolsError(f"exercise {self.title!r}: no property says {odd[0]!r}")

    def check(self, answer: Answer, *given: object) -> str:
        """One line if `answer` has all properties, tried in order; `given` is handed on to each.

        Raises WrongAnswer at the first that it lacks, or in which it fails with an error; NotImplementedError passes
        through: nothing was tried yet. KetoolsError if `answer` is not a function.
        """
        if not callable(answer):
            raise KetoolsError(
                f"exercise {self.title!r}: expected a function, got {type(answer).__name__}; hand over its name, without ()"
            )
        for each in self.properties:
            self._try(each, answer, given)
        return f"passed: {self.title} ({', '.join(each.says for each in self.properties)})"

    def _try(self, each: Property, answer: Answer, given: tuple[object, ...]) -> None:
        try:
            fine = bool(each.test(answer, *given))
        except NotImplementedError:
            raise
        except Exception as error:
            raise WrongAnswer(self._said(each, f"It stopped with {type(error).__name__}: {error}")) from error
        if not fine:
            raise WrongAnswer(self._said(each))

    def _said(self, each: Property, more: str = "") -> str:
        return f"Not yet: {self.title}.\nMissing: {each.says}.\n{each.teaches}" + (f"\n{more}" if more else "")
