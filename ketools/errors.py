"""The exceptions that users meet, and how messages name many things."""

from collections.abc import Sequence


class KetoolsError(ValueError):
    """A mistake in what the user gave: a facts file, a model name, a setting, a folder.

    The message says what was got, what was expected and the way out; the command line prints it as one line
    (exit code 2). Broken invariants of our own are `assert`ed instead.

    Examples:
        >>> import ketools as ke
        >>> try:
        ...     ke.Editor(ke.load("pocket"), "memmit")
        ... except ke.KetoolsError as error:
        ...     print(str(error).split(";")[0])
        no method named 'memmit'
    """


class Damaged(KetoolsError):
    """A file is missing, or not what was expected there: the message names the file, and the field where it is one."""


class NotFinite(KetoolsError):
    """Numbers left the finite ones: in weights, a covariance, keys, targets or a solve; the message names the layer.

    A long run takes it for the model's collapse, records it and ends; it is told by this type, not by its words.
    """


def named(names: Sequence[str], most: int) -> str:
    """The first `most` of `names` with commas, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
