"""Prefixes before a prompt, in the model's own words: an edit should hold wherever its prompt stands."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ketools.editing.methods import Hyper
from ketools.errors import KetoolsError, named
from ketools.facts.fact import Fact, check_conflicts
from ketools.models.model import EditableModel
from ketools.models.tokens import Row, make_rows, subject_span

OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP = 5  # sampled from the five most probable tokens, as the published code does


@torch.no_grad()
def generate_prefixes(model: EditableModel, count: int, tokens: int, generator: torch.Generator) -> tuple[str, ...]:
    """`count` texts of about `tokens` tokens that the model writes after "The", "Therefore", "Because", "I", "You".

    Sampled on the CPU with `generator`, so that the same state gives the same texts (Meng et al., arXiv 2210.07229,
    appendix; ROME's and MEMIT's settings are 5 and 10).
    """
    texts = []
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    for i in range(count):
        ids = list(model.tokenizer(OPENINGS[i % len(OPENINGS)])["input_ids"])
        while ids and ids[-1] == model.tokenizer.eos_token_id != model.tokenizer.bos_token_id:
            ids.pop()  # some tokenizers end every text
        for _ in range(max(0, tokens - 1)):
            logits = model.model(torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
            ids.append(_draw(logits, special, generator))
        texts.append(model.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return tuple(texts)


def contexts_of(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Texts to put before a prompt: nothing, and each prefix with ". " behind."""
    return ("", *(prefix if prefix.endswith(". ") else f"{prefix}. " for prefix in prefixes))


def _draw(logits: Tensor, special: Tensor, generator: torch.Generator) -> int:
    logits[special] = -torch.inf
    top = torch.topk(logits, min(_TOP, len(logits)))
    return int(top.indices[torch.multinomial(top.values.softmax(0), 1, generator=generator)])


# Facts as token rows: what step 1 optimises on and step 2 reads keys from.


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


# What is checked before an edit changes a weight, and what is said when memory runs out.


_LONGEST_TARGET = 32  # tokens; a target of a sentence or more is no object of a fact
_NAMED = 8  # facts that a warning names


def checked_rows(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    """Token rows of each fact in each of `contexts`, the bare prompt ("") first.

    Raises KetoolsError, naming the facts, for none at all, two of them that contradict or repeat each other, a subject
    that is not in its prompt once, a target without tokens or with more than 32, and a prompt that with its longest
    context and its target does not fit the model's window.
    """
    if not len(facts):
        raise KetoolsError("no facts to edit; give at least one")
    check_conflicts(facts)
    rows = fact_rows(model, facts, contexts)
    for fact, row in zip(facts, rows, strict=True):
        if (n := len(row.contexts[0].target_ids)) > _LONGEST_TARGET:
            raise KetoolsError(
                f"fact {fact.id!r}: target_new has {n} tokens, more than {_LONGEST_TARGET}; give the object alone"
            )
    return rows


def warn_of_known(facts: Sequence[Fact], known: Sequence[bool]) -> None:
    """One UserWarning naming the facts whose target was the model's most probable answer before the edit."""
    names = [repr(fact.id) for fact, known_already in zip(facts, known, strict=True) if known_already]
    if names:
        warnings.warn(
            f"{len(names)} of {len(facts)} facts need no edit, their target is the model's top answer already: "
            f"{named(names, _NAMED)}",
            UserWarning,
            stacklevel=3,
        )


@contextmanager
def memory_hint(model: EditableModel, hyper: Hyper, facts: int) -> Iterator[None]:
    """Within the block, running out of memory is a KetoolsError that says which settings need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        at_once = f"facts_at_once={hyper.facts_at_once}" if hyper.facts_at_once else "facts_at_once is not set"
        assert hyper.layers is not None
        raise KetoolsError(
            f"out of memory on {model.device} while editing {facts} facts; the weights were not touched. Run fewer facts "
            f"at a time ({at_once}; try facts_at_once={max(1, (hyper.facts_at_once or min(facts, 16)) // 2)}), load the "
            f"model in a smaller type (now {model.dtype}; dtype=torch.bfloat16), or edit fewer or higher layers (now "
            f"{list(hyper.layers)}; layers above the last edited one are kept for the gradient)"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class for accelerators only; the CPU's allocator raises RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
