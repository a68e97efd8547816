"""Facts as token rows: what step 1 optimises on and step 2 reads keys from."""

from collections.abc import Sequence
from dataclasses import dataclass

from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.prompts import Row, make_rows, subject_span

LEVELS = 2  # on which rows share beginnings, see `sharing`


@dataclass(frozen=True)
class FactRows:
    """Rows of one fact: one per context, the bare prompt first, and "{subject} is a" cut at the subject's last token."""

    contexts: list[Row]
    kl: tuple[int, ...]
    head: str  # the prompt's text before the subject

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last on, at most."""
        return max(len(row.ids) - row.subject_last for row in self.contexts)

    @property
    def shares_kl(self) -> bool:
        """Whether the bare prompt begins with its subject, so that it has the KL prompt's state already."""
        bare = self.contexts[0]
        return bare.ids[: bare.subject_last + 1] == self.kl


def fact_rows(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    """Token rows of each fact in each context. Raises KetoolsError, naming the fact, for one that cannot be edited."""
    try:
        return _fact_rows(model, facts, contexts)
    except KetoolsError:
        for fact in facts:  # which one it was
            try:
                _fact_rows(model, [fact], contexts)
            except KetoolsError as error:
                named = str(error).startswith(f"fact {fact.id!r}")
                raise KetoolsError(str(error) if named else f"fact {fact.id!r}: {error}") from None
        raise


def _fact_rows(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    spans = [subject_span(fact) for fact in facts]
    where = [
        (c + f.text, f, (len(c) + a, len(c) + b)) for f, (a, b) in zip(facts, spans, strict=True) for c in contexts
    ]
    rows = make_rows(model, [t for t, _, _ in where], [f.target_new for _, f, _ in where], [s for _, _, s in where])
    kl = make_rows(model, [f"{f.subject} is a" for f in facts], None, [(0, len(f.subject)) for f in facts])
    n = len(contexts)
    return [
        FactRows(rows[i * n : (i + 1) * n], kl[i].ids[: kl[i].subject_last + 1], facts[i].prompt.partition("{}")[0])
        for i in range(len(facts))
    ]


def sharing(rows: Sequence[FactRows], contexts: Sequence[int]) -> list[list[int]]:
    """What rows share, as `prefix.prefill` wants it: the context, then the prompt up to the subject.

    For the rows of these `contexts` of each fact, in this order.
    """
    heads = {head: n for n, head in enumerate(dict.fromkeys(fact.head for fact in rows))}
    coarse = [c for _ in rows for c in contexts]
    fine = [heads[fact.head] * len(rows[0].contexts) + c for fact in rows for c in contexts]
    return [coarse, fine]
