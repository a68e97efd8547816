"""Tokens at which the residual stream is read: all of a text sample, or the subjects' last tokens of facts.

A sample is drawn once and read before and after edits, so that both are of the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ketools.editing import edit as stack
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.packing import batches
from ketools.prompts import make_rows, pad_right, subject_span

WINDOW = 1024
"""Tokens of a window where the model sets no limit."""


@dataclass(frozen=True)
class Sample:
    """Rows of tokens and the places in them that are read.

    ids: token ids of each row; reads: for each row the positions read, ascending. left_out: texts of which nothing is
    read, being blank or no longer than what is skipped; cut: texts longer than the window, read as several rows;
    unread: texts beyond the number of tokens asked for.
    """

    ids: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    left_out: int = 0
    cut: int = 0
    unread: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return sum(map(len, self.reads))


def text_sample(model: EditableModel, texts: Iterable[str], tokens: int = 2048, *, skip: int = 1) -> Sample:
    """The first `tokens` tokens of running text, in windows of the model's context.

    The first `skip` tokens of a window are seen and not read: many models put huge states there, whatever the word
    (massive activations, Sun et al., arXiv 2402.17762), and means would be of nothing else. A text longer than the window
    is cut into several rows; the sample counts those, and the texts that it leaves out or does not reach.

    Raises:
        KetoolsError: no text has a token to read, or numbers below 1 (tokens) or 0 (skip).
    """
    if tokens < 1 or skip < 0:
        raise KetoolsError(f"text_sample(tokens={tokens}, skip={skip}): expected tokens >= 1 and skip >= 0")
    ids: list[tuple[int, ...]] = []
    reads: list[tuple[int, ...]] = []
    left = tokens
    left_out = cut = unread = 0
    for text in [texts] if isinstance(texts, str) else texts:
        if left == 0:
            unread += 1
            continue
        row = tuple(model.tokenizer(text, verbose=False)["input_ids"]) if text.strip() else ()
        window = model.window or WINDOW
        parts = [row[i : i + window] for i in range(0, len(row), window)]
        fresh = [(part, tuple(range(skip, len(part)))) for part in parts if len(part) > skip]
        left_out += not fresh
        cut += len(parts) > 1
        for part, places in fresh:
            if left:
                ids.append(part)
                reads.append(places[:left])
                left -= len(reads[-1])
    if not ids:
        raise KetoolsError(
            f"a text sample without a token to read: {left_out} texts, all blank or of at most {skip} tokens; give "
            "running text"
        )
    return Sample(tuple(ids), tuple(reads), left_out, cut, unread)


def subject_sample(model: EditableModel, facts: Sequence[Fact]) -> Sample:
    """The last token of each fact's subject in its edit prompt, where methods read keys and write targets.

    Raises:
        KetoolsError: no facts, a prompt longer than the model's window, or one that holds its subject more than once.
    """
    if not facts:
        raise KetoolsError("a sample of subjects from 0 facts; give at least one")
    rows = make_rows(model, [fact.text for fact in facts], spans=[subject_span(fact) for fact in facts])
    places = [row.subject_last for row in rows]
    # What comes behind the subject changes nothing there: attention is causal.
    ids = tuple(row.ids[: at + 1] for row, at in zip(rows, places, strict=True) if at is not None)
    return Sample(ids, tuple((at,) for at in places if at is not None))


@dataclass(frozen=True)
class Places:
    """One batch of a sample on the model's device: ids and mask (rows, longest) int64, row and position (reads,), and
    where in the order of the whole sample each read stands (reads,), on the CPU.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    order: torch.Tensor

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """States at the read places, (reads, d_model) float32, out of (rows, longest, d_model)."""
        return states[self.row.to(states.device), self.position.to(states.device)].float()


def places(model: EditableModel, sample: Sample, tokens: int = 4096) -> Iterator[Places]:
    """The sample in batches of at most `tokens` tokens, rows of like length together."""
    starts = [0]
    for read in sample.reads:
        starts.append(starts[-1] + len(read))
    for batch in batches(sample.ids, tokens):
        ids, mask = pad_right([sample.ids[i] for i in batch], model.device)
        read = [(b, at, starts[i] + n) for b, i in enumerate(batch) for n, at in enumerate(sample.reads[i])]
        row, position, order = torch.tensor(read).T
        yield Places(ids, mask, row.to(ids.device), position.to(ids.device), order)


@contextmanager
def unedited(model: EditableModel) -> Iterator[EditableModel]:
    """Within the block the unedited weights are in place; on leaving, on error too, those from before, bit for bit."""
    now = stack.snapshot(model, model.originals)
    try:
        stack.restore(model, model.originals)
        yield model
    finally:
        stack.restore(model, now)
