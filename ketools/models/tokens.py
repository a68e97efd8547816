"""Text to rows of tokens, with the subject's last token and the target's positions located.

Positions come from the character offsets of a fast tokenizer, never from counting the tokens of separately tokenised
parts: a name has different tokens with and without a space before it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactSet, short, tail
from ketools.models.model import EditableModel

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One text as tokens.

    `ids` hold the prompt and all target tokens but the last. `target_positions[i]` is the position that predicts
    `target_ids[i]`. `subject_last` is the position of the subject's last token, None if the text has no subject.
    """

    ids: tuple[int, ...]
    subject_last: int | None = None
    target_positions: tuple[int, ...] = ()
    target_ids: tuple[int, ...] = ()

    def first_token(self) -> "Row":
        """The row cut where the first token of its target is predicted, with that token as its target."""
        end = self.target_positions[0]
        return Row(self.ids[: end + 1], self.subject_last, (end,), self.target_ids[:1])


def make_rows(
    model: EditableModel,
    prompts: Sequence[str],
    targets: Sequence[str] | None = None,
    spans: Sequence[Span] | None = None,
    glue: Sequence[bool | None] | None = None,
) -> list[Row]:
    """Tokenise `prompts`, each followed by its target and with its subject at `spans`.

    `glue` or the text decides whether a space separates prompt and target: `ketools.facts.fact.tail`. Warns
    (UserWarning) about texts with a beginning-of-text token that the tokenizer adds too; one of the two is dropped.
    Raises KetoolsError for a target or a subject without tokens, a row longer than the model's context window, and
    where passes cannot be repeated (`EditableModel.check_state`).
    """
    model.check_state()
    tails = [""] * len(prompts)
    if targets is not None:
        tails = [tail(*each) for each in zip(prompts, targets, glue or [None] * len(prompts), strict=True)]
        prompts = [prompt.rstrip(" ") for prompt in prompts]  # the space belongs to the target's first token
    encoded = encode(model.tokenizer, [prompt + tail for prompt, tail in zip(prompts, tails, strict=True)])
    window = model.window
    rows = []
    for i, (ids, offsets) in enumerate(encoded):
        n_prompt = sum(1 for _, end in offsets if end <= len(prompts[i]))
        ids, n_prompt, goal = _split(model.tokenizer, prompts[i], tails[i], ids, offsets, n_prompt)
        check_ids(model, (*ids, *goal), prompts[i] + tails[i])
        last = None if spans is None else _last_token(offsets, spans[i], prompts[i])
        if window and len(ids) > window:
            goal_too = f", {len(goal)} of them its target's" if goal else ""
            raise KetoolsError(
                f"prompt {short(prompts[i])} takes {len(ids)} tokens{goal_too}; the model's context window holds {window}"
            )
        rows.append(Row(tuple(ids), last, tuple(range(n_prompt - 1, n_prompt - 1 + len(goal))), tuple(goal)))
    return rows


def prompt_rows(model: EditableModel, prompts: Sequence[str], more: int = 0) -> list[Row]:
    """Rows of `prompts` alone, without trailing spaces, which would belong to the next word.

    Raises KetoolsError for a blank prompt, and for one that leaves too little of the context window for `more` tokens.
    """
    for prompt in prompts:
        if not prompt.strip():
            raise KetoolsError(f"prompt {prompt!r} is blank; give it some text")
    rows = make_rows(model, [prompt.rstrip(" ") for prompt in prompts])
    for prompt, row in zip(prompts, rows, strict=True):
        if model.window and len(row.ids) + more > model.window:
            raise KetoolsError(
                f"prompt {short(prompt)} takes {len(row.ids)} tokens, and {more} more are to be generated; the model's context "
                f"window holds {model.window}: ask for fewer tokens"
            )
    return rows


def check_ids(model: EditableModel, ids: Sequence[int], text: str) -> None:
    """Raise KetoolsError if `ids`, the tokens of `text`, contain one that the model has no embedding for."""
    if max(ids, default=0) >= len(model.embedding):
        token = model.tokenizer.convert_ids_to_tokens(max(ids))
        raise KetoolsError(f"{short(text)} holds the token {token!r}, for which model {model.name!r} has no embedding")


def in_chat(model: EditableModel, facts: Iterable[Fact]) -> FactSet:
    """`facts` as a chat, by the tokenizer's template: every prompt becomes a user message, its target the answer.

    The parts of the template become the fact's `opening` and `closing`, so that contexts come between them; a fact that
    has them is not changed. Raises KetoolsError for a tokenizer whose template is missing or omits the user's words.
    """
    facts = list(facts)
    if all(fact.closing for fact in facts):
        return FactSet(facts)
    opening, closing, glue = _chat_template(model)

    def said(*texts: str) -> tuple[str, ...]:
        return tuple(f"{opening}{text.strip()}{closing}" for text in texts)

    def one(fact: Fact) -> Fact:
        return replace(
            fact,
            prompt=fact.prompt.strip(),
            paraphrases=said(*fact.paraphrases),
            neighbours=said(*fact.neighbours),
            trained=said(*fact.trained),
            two_hop=tuple(replace(hop, question=said(hop.question)[0], glue=glue) for hop in fact.two_hop),
            locality=tuple(replace(kept, prompt=said(kept.prompt)[0], glue=glue) for kept in fact.locality),
            glue=glue,
            opening=opening,
            closing=closing,
        )

    return FactSet(fact if fact.closing else one(fact) for fact in facts)


def said_in_chat(model: EditableModel, prompts: Iterable[str]) -> tuple[list[str], bool | None]:
    """`prompts` as user messages, up to the answer, and their `glue`; raises KetoolsError as `in_chat` does."""
    opening, closing, glue = _chat_template(model)
    return [f"{opening}{prompt.strip()}{closing}" for prompt in prompts], glue


def _chat_template(model: EditableModel) -> tuple[str, str, bool | None]:
    # The text before the user's words, the text between them and the answer, and whether the answer follows without a
    # space (None: the template does not show). Thinking is switched off in templates that have it.
    tokenizer, message, answer = model.tokenizer, "ketools asks", "ketools says"
    turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    way_out = "leave out chat, load a model made for it, or set model.tokenizer.chat_template"
    try:
        begun, whole = (
            str(
                tokenizer.apply_chat_template(
                    turns[:n], tokenize=False, add_generation_prompt=n == 1, enable_thinking=False
                )
            )
            for n in (1, 2)
        )
    except (ValueError, TemplateError) as error:
        reason = str(error).split(". ")[0]
        raise KetoolsError(
            f"the tokenizer of {model.name!r} has no chat template that works ({reason}): {way_out}"
        ) from None
    opening, found, closing = begun.partition(message)
    if not found:
        raise KetoolsError(f"the chat template of {model.name!r} leaves out the user's message: {way_out}")
    bos = tokenizer.bos_token
    if bos and opening.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        opening = opening.removeprefix(bos)  # the tokenizer adds its own
    behind = whole.removeprefix(begun) if whole.startswith(begun) else ""
    glue = False if closing.endswith(" ") or behind.startswith(" ") else behind.startswith(answer) or None
    return opening, closing.rstrip(" "), glue


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest), padded on the right with 0, and the mask of the same shape (int64, 1 at tokens)."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def batches(lengths: Iterable[int], tokens: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Indices of rows in batches that fit into `tokens` once padded to their longest row (at least one row).

    `lengths` are the numbers of tokens; the shortest rows come first, which minimises padding. With `equal`, rows of
    different lengths never share a batch.
    """
    sizes = list(lengths)
    batch: list[int] = []
    longest = 0
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        longest = max(longest, sizes[i])
        if batch and (longest * (len(batch) + 1) > tokens or (equal and sizes[i] != sizes[batch[0]])):
            yield batch
            batch, longest = [], sizes[i]
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Reads:
    """Where a batch of rows predicts its targets, one entry per target token: `row`, `position` in it, `token` (int64),
    and `share` (float32), the weight of the entry in the mean over its row's target.
    """

    row: Tensor
    position: Tensor
    token: Tensor
    share: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device, starts: Sequence[int] | None = None) -> "Reads":
        """The entries of `rows`, which have targets; positions count from `starts[i]`, by default 0."""
        entries = [
            (i, position - start, token, len(row.target_ids))
            for i, (row, start) in enumerate(zip(rows, starts or [0] * len(rows), strict=True))
            for position, token in zip(row.target_positions, row.target_ids, strict=True)
        ]
        row, position, token, count = torch.tensor(entries, device=device).T
        return cls(row, position, token, 1 / count)

    def places(self, length: int) -> Tensor:
        """The places of the entries in rows of `length` tokens laid end to end."""
        return self.row * length + self.position


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids of each text and the characters (start, end) of each token; warns as `make_rows` says."""
    if not texts:
        return
    encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    bos, twice = tokenizer.bos_token_id, False
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        start, n = 0, len(ids)
        while n > 1 and offsets[n - 1] == (0, 0):  # an end-of-text token appended by the tokenizer
            n -= 1
        if bos is not None and ids[:2] == [bos, bos] and offsets[0] == (0, 0):
            start, twice = 1, True
        yield ids[start:n], offsets[start:n]
    if twice:
        warnings.warn(
            f"a text begins with {tokenizer.bos_token!r} and the tokenizer adds another one: only one is kept",
            UserWarning,
            stacklevel=3,
        )


def _split(
    tokenizer: PreTrainedTokenizerBase, prompt: str, tail: str, ids: list[int], offsets: list[Span], n_prompt: int
) -> tuple[list[int], int, list[int]]:
    # (ids of prompt and target but its last token, number of prompt tokens, ids of the target)
    if not tail:
        return ids, len(ids), []
    if n_prompt < len(ids) and offsets[n_prompt][0] < len(prompt):
        # A token spans the border: tokenise prompt and target separately.
        ((prompt_ids, _),) = encode(tokenizer, [prompt])
        ids, n_prompt = prompt_ids + _tail_ids(tokenizer, tail), len(prompt_ids)
    goal = ids[n_prompt:]
    if not goal or not tail.strip():
        raise KetoolsError(f"the target after {prompt!r} is {tail!r}, which has no tokens; give it some text")
    return ids[:-1], n_prompt, goal


def _tail_ids(tokenizer: PreTrainedTokenizerBase, tail: str) -> list[int]:
    # Tokenised after a letter: tokenizers such as sentencepiece put a space before a text that stands alone.
    alone, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a{tail}"))
    if tail.startswith(" ") and behind[: len(alone)] == alone:
        return behind[len(alone) :]
    return tokenizer(tail, add_special_tokens=False)["input_ids"]


def _last_token(offsets: list[Span], span: Span, prompt: str) -> int:
    start, end = span
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > max(start, a)]
    if not inside:
        raise KetoolsError(f"no token of {prompt!r} covers the subject {prompt[start:end]!r}")
    return inside[-1]
