"""Claims: what a notebook asserts of its own results, checked in front of the reader and compared by the gate."""

from ketools.errors import KetoolsError


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
    """Check that `observed` lies within the bounds, and return one line that is the same on every machine.

    The line names the claim and the bounds, never the observed number, so that stored and fresh outputs can be compared
    to the letter; the number goes into the error if the claim fails. Bounds are chosen for the pocket model: with
    KETOOLS_MODE=full a claim that fails does not stop the notebook, its line says so with the number.

    Raises ClaimError if the claim does not hold (NaN holds nothing) and KetoolsError without any bound.

    >>> check_claim("the edit raises the target's probability", 0.93, at_least=0.5)
    "holds: the edit raises the target's probability (at least 0.5)"
    """
    bounds = {"at least": at_least, "at most": at_most, "exactly": exactly}
    given = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
    if not given:
        raise KetoolsError(f"claim {claim!r} has no bound; give at_least, at_most or exactly, else it could not fail")
    said = f"{claim} ({', '.join(given)})"
    value = float(observed)
    if _within(value, at_least, at_most, exactly):
        return f"holds: {said}"
    if _stops():
        raise ClaimError(f"does not hold: {said}; observed {value:.4g}")
    return f"does not hold here: {said}; observed {value:.4g}"


def _within(value: float, at_least: float | None, at_most: float | None, exactly: float | None) -> bool:
    return (
        value == value
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (exactly is None or value == exactly)
    )


def _stops() -> bool:
    from ketools.course.mode import current_mode  # claims alone need no torch

    return current_mode() == "quick"
