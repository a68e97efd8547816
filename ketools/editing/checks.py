"""What is checked before an edit changes a weight, and what is said when memory runs out."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ketools.editing.hyper import Hyper
from ketools.editing.rows import FactRows, fact_rows
from ketools.errors import KetoolsError, named
from ketools.facts import Fact, check_conflicts
from ketools.model import EditableModel

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
