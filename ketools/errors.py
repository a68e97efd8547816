"""The one exception that users meet."""


class KetoolsError(ValueError):
    """A mistake in what the user gave: a facts file, a model name, a setting, a folder.

    The message says what was got, what was expected and the way out; the command line prints it as one line
    (exit code 2). Broken invariants of our own are `assert`ed instead.
    """
