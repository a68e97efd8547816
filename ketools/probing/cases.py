"""Facts as cases to trace: token rows with the subject's tokens located, facts that the model does not know left out."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ketools.editing.readout import token_losses
from ketools.errors import KetoolsError, named
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.prompts import make_rows, pad_right, subject_span
from ketools.scoring import score_pairs

_NAMED = 8  # facts that a warning names


@dataclass(frozen=True)
class Case:
    """One fact as tokens: `ids` of the prompt and of all target tokens but the last.

    `answer` is the target as text. The subject's tokens are `first` to `last` (inclusive), the prompt's last one is `end`; `target` holds the target's
    tokens, whose predictions stand at `end`, `end` + 1, ...
    """

    fact: Fact
    answer: str
    ids: tuple[int, ...]
    first: int
    last: int
    end: int
    target: tuple[int, ...]

    def role(self, position: int) -> str:
        """What the token at `position` is in the prompt, in the words of Meng et al. (figure 2)."""
        if position < self.first:
            return "before the subject"
        if position <= self.last:
            # One token alone is the last one: there the fact is looked up.
            inner = "first of the subject" if position == self.first else "middle of the subject"
            return "last of the subject" if position == self.last else inner
        if position == self.end:
            return "last token"
        return "first after the subject" if position == self.last + 1 else "further"


ROLES = (
    "before the subject",
    "first of the subject",
    "middle of the subject",
    "last of the subject",
    "first after the subject",
    "further",
    "last token",
)


def make_cases(model: EditableModel, facts: Sequence[Fact], target: str = "true") -> list[Case]:
    """The cases of `facts` with their `target_true` or `target_new` (target="new").

    Raises KetoolsError, naming the fact, for no facts, a subject that is not in its prompt once, a target that is
    missing or has no tokens, and a prompt longer than the model's window.
    """
    if not len(facts):
        raise KetoolsError("no facts to trace; give at least one")
    if target not in ("true", "new"):
        raise KetoolsError(f"target={target!r}: expected 'true' or 'new'")
    return [_case(model, fact, target) for fact in facts]


def known_cases(
    model: EditableModel, facts: Sequence[Fact], target: str, stacklevel: int = 3
) -> tuple[list[Case], dict[str, object]]:
    """`make_cases` of the facts that the model answers rightly, and what a frame's attrs tell of the others.

    Rightly: every token of the target is the most probable one. The attrs: facts (number kept), unknown (number left
    out), unknown_ids. Warns, once, of those left out. Raises KetoolsError as `make_cases` does, and if none is left.
    """
    cases = make_cases(model, facts, target)
    right = score_pairs(model, [(case.fact.text, case.answer) for case in cases])[1].tolist()
    out = [case.fact.id for case, ok in zip(cases, right, strict=True) if not ok]
    if len(out) == len(cases):
        raise KetoolsError(
            f"the model knows none of the {len(cases)} facts (their target is not its most probable answer), so there is "
            "no recall to trace; give facts that it knows, or target='new' after an edit"
        )
    if out:
        warnings.warn(
            f"{len(out)} of {len(cases)} facts left out, the model does not answer them rightly: "
            f"{named([*map(repr, out)], _NAMED)}",
            UserWarning,
            stacklevel=stacklevel,
        )
    kept = [case for case, ok in zip(cases, right, strict=True) if ok]
    return kept, {"facts": len(kept), "unknown": len(out), "unknown_ids": out}


def noise_of(case: Case, sample: int, seed: int, width: int) -> Tensor:
    """Standard normal noise for the subject's tokens, (tokens, width) float32.

    It depends on the fact's text and subject, on `sample` and `seed` alone: neither on other facts nor on their order.
    """
    name = "\0".join((str(seed), str(sample), case.fact.text, case.fact.subject))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return torch.randn(case.last - case.first + 1, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def spread_of(model: EditableModel, cases: Sequence[Case], spread: str | float) -> float:
    """Standard deviation of the entries of token embeddings, as the model's embedding module puts them out.

    `spread` is "embedding" (of the whole vocabulary), "subjects" (of the subjects' tokens, as Meng et al. take it; it
    depends on the facts given), or a number that is taken as it is.
    """
    if isinstance(spread, int | float) and not isinstance(spread, bool):
        if not spread >= 0:
            raise KetoolsError(f"spread={spread}: expected a number >= 0, 'embedding' or 'subjects'")
        return float(spread)
    if spread not in ("embedding", "subjects"):
        raise KetoolsError(f"spread={spread!r}: expected 'embedding', 'subjects' or a number")
    embed = model.model.get_input_embeddings()
    tokens = [t for case in cases for t in case.ids[case.first : case.last + 1]]
    ids = torch.arange(embed.weight.shape[0]) if spread == "embedding" else torch.tensor(tokens)
    count, total, square = 0, 0.0, 0.0
    for part in ids.split(8192):
        values = embed(part.to(model.device)).double() if model.device.type != "mps" else embed(part.to(model.device))
        count, total = count + values.numel(), total + float(values.sum())
        square += float(values.square().sum())
    return float(np.sqrt(max(0.0, square / count - (total / count) ** 2)))


def rows_of(cases: Sequence[Case], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the cases, (cases, longest), padded on the right."""
    return pad_right([case.ids for case in cases], device)


@dataclass(frozen=True)
class Reads:
    """Where the targets of some rows are read: `places` (row * length + position), the token and the row of each."""

    places: Tensor
    tokens: Tensor
    owner: Tensor
    rows: int

    def probability(self, model: EditableModel, states: Tensor) -> Tensor:
        """exp of the mean token log-probability of each row's target, float64 (rows,); 0 where the model gives NaN.

        `states` (reads, d_model) are those at `places`, before the final norm.
        """
        losses = token_losses(model, states, self.tokens.to(states.device))[0].double().cpu()
        total = torch.zeros(self.rows, dtype=torch.float64).index_add(0, self.owner.cpu(), losses)
        return (-total / torch.bincount(self.owner.cpu(), minlength=self.rows)).exp().nan_to_num(0.0)


def target_reads(cases: Sequence[Case], starts: Sequence[int], longest: int, device: torch.device) -> Reads:
    """Where the targets of `cases` are read in rows of `longest` tokens that begin at position `starts[i]` of each."""
    wanted = [
        (r * longest + case.end - start + j, token, r)
        for r, (case, start) in enumerate(zip(cases, starts, strict=True))
        for j, token in enumerate(case.target)
    ]
    places, tokens, owner = (torch.tensor(column, device=device) for column in zip(*wanted, strict=True))
    return Reads(places, tokens, owner, len(cases))


def _case(model: EditableModel, fact: Fact, target: str) -> Case:
    goal = fact.need_true("tracing") if target == "true" else fact.target_new
    start, end = subject_span(fact)
    try:
        (row,) = make_rows(model, [fact.text], [goal], [(start, end)])
        (head,) = make_rows(model, [fact.text], [goal], [(start, start + 1)])
    except KetoolsError as error:
        raise KetoolsError(f"fact {fact.id!r}: {error}") from None
    assert row.subject_last is not None and head.subject_last is not None
    return Case(fact, goal, row.ids, head.subject_last, row.subject_last, row.target_positions[0], row.target_ids)
