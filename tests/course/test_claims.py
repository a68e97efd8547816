"""Claims fail when the numbers do, and say so the same way everywhere."""

import math

import pytest

from ketools import KetoolsError
from ketools.course.claims import ClaimError, check_claim


def test_a_claim_that_holds_gives_a_line_with_number_and_bounds() -> None:
    assert check_claim("x grows", 2.7182, at_least=2.5) == "holds: x grows: 2.72 >= 2.5"
    assert check_claim("x stays", 1, at_least=0.9, at_most=1.1).endswith(": 1 >= 0.9 and <= 1.1")


def test_in_full_mode_a_failed_claim_says_so_and_an_empty_one_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KETOOLS_MODE", "full")
    assert check_claim("x grows", 1, at_least=2.5) == "does not hold here: x grows: 1 >= 2.5"
    assert check_claim("x grows", math.nan, at_least=2.5) == "not asked: x grows"


@pytest.mark.parametrize("observed", [0.4, math.nan])
def test_a_claim_that_does_not_hold_fails_with_the_number(observed: float) -> None:
    with pytest.raises(ClaimError, match=f"{observed:.3g}"):
        check_claim("x is large", observed, at_least=0.5)


def test_both_bounds_count() -> None:
    with pytest.raises(ClaimError):
        check_claim("x is near 1", 1.2, at_least=0.9, at_most=1.1)


def test_a_claim_without_bounds_is_refused() -> None:
    with pytest.raises(KetoolsError, match="cannot fail"):
        check_claim("anything", 1.0)
