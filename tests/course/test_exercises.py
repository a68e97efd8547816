"""Exercises: right answers pass, wrong ones hear why, a stub stays a stub."""

import pytest

from ketools import KetoolsError
from ketools.course.claims import Exercise, Property, WrongAnswer

DOUBLE = Exercise(
    "Double it", "easy", 1,
    (
        Property("numbers stay numbers", lambda f: isinstance(f(2), int), "Return a number."),
        Property("two becomes four, three six", lambda f: (f(2), f(3)) == (4, 6), "Multiply; squares agree at 2 only."),
    ),
)  # fmt: skip


def test_a_right_answer_passes_and_the_line_names_the_properties():
    assert DOUBLE.check(lambda x: x + x) == "passed: Double it (numbers stay numbers, two becomes four, three six)"


def test_a_wrong_answer_hears_what_to_think_about_and_sees_no_traceback():
    with pytest.raises(WrongAnswer, match="squares agree at 2 only") as caught:
        DOUBLE.check(lambda x: x * x)
    assert caught.value._render_traceback_()[1] == "Missing: two becomes four, three six."


def test_an_answer_that_stops_fails_with_its_error_and_a_stub_raises_its_own():
    with pytest.raises(WrongAnswer, match="ZeroDivisionError"):
        DOUBLE.check(lambda x: x // 0)

    def stub(x):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        DOUBLE.check(stub)


def test_what_is_given_reaches_answer_and_property():
    near = Exercise("Near", "hard", 2, (Property("near", lambda f, goal: abs(f(goal) - goal) < 1, "Closer."),))
    assert near.check(lambda goal: goal + 0.5, 3.0).startswith("passed")


def test_declarations_are_checked():
    with pytest.raises(KetoolsError, match="pass its name"):
        DOUBLE.check(4)
    with pytest.raises(KetoolsError, match="difficulty"):
        Exercise("x", "impossible", 1, DOUBLE.properties)
