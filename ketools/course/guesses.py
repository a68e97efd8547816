"""Predict, reveal, reconcile: the learner's guess before a result, scored and answered after it."""

from dataclasses import dataclass

from ketools.errors import KetoolsError


@dataclass(frozen=True)
class Said:
    """Text that Jupyter shows as Markdown."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Guess:
    """A question, its options (key -> text) and what the learner expects (a key, None: nothing recorded)."""

    question: str
    options: dict[str, str]
    guess: str | None = None

    def _repr_markdown_(self) -> str:
        lines = [f"**{self.question}**", "", *(f"- `{key}`: {text}" for key, text in self.options.items())]
        noted = f"You say `{self.guess}`." if self.guess else "Write your answer in: `guess=...`"
        return "\n".join([*lines, "", noted])

    def __repr__(self) -> str:
        return self._repr_markdown_()

    def reveal(self, answer: str, **because: str) -> Said:
        """What came out, whether the guess was right, and why the other options are wrong.

        `because` explains wrong options by key; with a wrong guess that explanation comes first and alone, without a
        guess all are given, in the order of the call. Raises KetoolsError for a key that is no option.
        """
        for key in (answer, *because):
            _check(key, self.options)
        result = f"**It is `{answer}`:** {self.options[answer]}."
        if self.guess == answer:
            return Said(f"{result} You predicted it.")
        if self.guess is not None:
            why = because.get(self.guess, "")
            return Said(f"{result} You said `{self.guess}`: {self.options[self.guess]}. {why}".rstrip())
        others = [f"- Why not `{key}`? {text}" for key, text in because.items() if key != answer]
        return Said("\n".join([result, "", *others]).rstrip())


def predict(question: str, *, guess: str | None = None, **options: str) -> Guess:
    """Ask before showing: `options` are the possible answers by key, `guess` is the learner's.

    The default None keeps a notebook running for who only reads. Raises KetoolsError for fewer than two options and for
    a guess that is none of them.

    >>> predict("Does it rain?", yes="it does", no="it does not", guess="no").reveal("no")
    **It is `no`:** it does not. You predicted it.
    """
    if len(options) < 2:
        raise KetoolsError(f"question {question!r} has {len(options)} options; give at least two to choose from")
    if guess is not None:
        _check(guess, options)
    return Guess(question, options, guess)


def _check(key: str, options: dict[str, str]) -> None:
    if key not in options:
        raise KetoolsError(f"{key!r} is none of the options; choose one of {', '.join(map(repr, options))}")
