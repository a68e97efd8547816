"""Claims fail when the numbers do, and say so the same way everywhere."""

import math

import pytest

from ketools import KetoolsError
from ketools.course.claims import ClaimError, check_claim


def test_a_claim_that_holds_gives_a_line_without_the_number() -> None:
    assert check_claim("x grows", 2.7182, at_least=2.5) == check_claim("x grows", 3.1, at_least=2.5)


@pytest.mark.parametrize("observed", [0.4, math.nan])
def test_a_claim_that_does_not_hold_fails_with_the_number(observed: float) -> None:
    with pytest.raises(ClaimError, match=f"{observed:.4g}"):
        check_claim("x is large", observed, at_least=0.5)


def test_both_bounds_count() -> None:
    with pytest.raises(ClaimError):
        check_claim("x is near 1", 1.2, at_least=0.9, at_most=1.1)


def test_a_claim_without_bounds_is_refused() -> None:
    with pytest.raises(KetoolsError, match="could not fail"):
        check_claim("anything", 1.0)
