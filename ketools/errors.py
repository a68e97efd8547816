"""The exceptions that users see, and how messages list names."""

from collections.abc import Sequence


class KetoolsError(ValueError):
    """A mistake in what the user gave: a facts file, a model name, a setting, a folder.

    The message says what was given, what was expected and how to proceed; the command line prints it as one line (exit
    code 2). Broken internal invariants are `assert`ed instead.

    Examples:
        >>> import ketools as ke
        >>> try:
        ...     ke.Editor(ke.load("pocket"), "memmit")
        ... except ke.KetoolsError as error:
        ...     print(str(error).split(";")[0])
        no method named 'memmit'
    """


class Damaged(KetoolsError):
    """A file is missing or has unexpected content; the message names the file and, where there is one, the field."""


class NotFinite(KetoolsError):
    """NaN or Inf in weights, a covariance, keys, targets or a solve; the message names the layer.

    A long run treats it as the collapse of the model, records it and ends; it recognises this type, not the wording.
    """


def named(names: Sequence[str], most: int) -> str:
    """The first `most` of `names`, separated by commas, and the number of the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
