"""Claims: what a notebook asserts of its own results, checked in front of the reader and compared by the gate."""

from ketools.errors import KetoolsError


class ClaimError(AssertionError):
    """A claim of a notebook that its own numbers contradict."""


def check_claim(
    claim: str, observed: float, *, at_least: float | None = None, at_most: float | None = None
) -> str:
    """Check that `observed` lies within the bounds, and return one line that is the same on every machine.

    The line names the claim and the bounds, never the observed number, so that stored and fresh outputs can be compared
    to the letter; the number goes into the error if the claim fails.

    Raises ClaimError if the claim does not hold (NaN holds nothing) and KetoolsError without any bound.

    >>> check_claim("the edit raises the target's probability", 0.93, at_least=0.5)
    "holds: the edit raises the target's probability (at least 0.5)"
    """
    bounds = [f"at least {at_least:g}"] if at_least is not None else []
    bounds += [f"at most {at_most:g}"] if at_most is not None else []
    if not bounds:
        raise KetoolsError(f"claim {claim!r} has no bound; give at_least or at_most, else it could not fail")
    said = f"{claim} ({', '.join(bounds)})"
    high_enough = at_least is None or observed >= at_least
    low_enough = at_most is None or observed <= at_most
    if not (high_enough and low_enough):
        raise ClaimError(f"does not hold: {said}; observed {observed:.4g}")
    return f"holds: {said}"
