"""What an edit reads: each fact's prompts as rows of tokens, its key at a layer, and its present state.

An edit should hold in any context, so a prompt is read alone and after a few texts in the model's own words (the
prefixes). All of them count for the target and for the key.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ketools.errors import KetoolsError, NotFinite
from ketools.facts.fact import Fact, check_conflicts
from ketools.models.model import EditableModel
from ketools.models.replay import read_last, tokens_at_once, warn_if_slow
from ketools.models.tokens import Row, batches, make_rows

_OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP = 5  # sampled from the five most probable tokens, as the published code does
_NEAR = 0.9  # keys with a larger cosine are nearly the same
_LONGEST_TARGET = 32  # tokens; a sentence is no object of a fact


@torch.no_grad()
def generate_prefixes(model: EditableModel, count: int, tokens: int, generator: torch.Generator) -> tuple[str, ...]:
    """`count` texts of about `tokens` tokens that the model writes after "The", "Therefore", "Because", "I", "You".

    Sampled on the CPU with `generator`, so that the same state gives the same texts (Meng et al., arXiv 2210.07229,
    appendix; ROME and MEMIT use 5 and 10).
    """
    texts = []
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    for i in range(count):
        ids = list(model.tokenizer(_OPENINGS[i % len(_OPENINGS)])["input_ids"])
        while ids and ids[-1] == model.tokenizer.eos_token_id != model.tokenizer.bos_token_id:
            ids.pop()  # some tokenizers end every text
        for _ in range(max(0, tokens - 1)):
            logits = model.model(torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
            logits[special] = -torch.inf
            top = torch.topk(logits, min(_TOP, len(logits)))
            drawn = torch.multinomial(top.values.softmax(0), 1, generator=generator)
            ids.append(int(top.indices[drawn]))
        texts.append(str(model.tokenizer.decode(ids, skip_special_tokens=True)).strip())
    return tuple(texts)


def contexts_of(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Texts to put before a prompt: none, and each prefix followed by ". "."""
    return ("", *(prefix if prefix.endswith(". ") else f"{prefix}. " for prefix in prefixes))


@dataclass(frozen=True)
class FactRows:
    """Rows of one fact: one per context, the bare prompt first, and "{subject} is a" cut after the subject.

    Or of several `facts` of one subject in sequence (`joined`): a unit that the target optimisation moves as one.
    """

    contexts: list[Row]
    kl: tuple[int, ...]
    facts: int = 1

    @classmethod
    def joined(cls, rows: Sequence["FactRows"]) -> "FactRows":
        """The rows of facts of one subject together."""
        return cls([row for fact in rows for row in fact.contexts], rows[0].kl, len(rows))

    @property
    def starts(self) -> list[int]:
        """Places of the subject's last token in `contexts`."""
        return [_last(row) for row in self.contexts]

    @property
    def subjects(self) -> list[tuple[int, ...]]:
        """The rows cut after the subject's last token, where keys are read."""
        return [row.ids[: _last(row) + 1] for row in self.contexts]

    @property
    def suffix(self) -> int:
        """Number of tokens from the subject's last on, at most."""
        return max(len(row.ids) - _last(row) for row in self.contexts)

    @property
    def shares_kl(self) -> bool:
        """Whether the bare prompt begins with its subject and so already contains the state of the KL prompt."""
        return self.subjects[0] == self.kl


def _last(row: Row) -> int:
    assert row.subject_last is not None, "rows of facts have a subject"
    return row.subject_last


def fact_rows(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    """Token rows of each fact in each context. Raises KetoolsError, naming the fact, for one that cannot be edited."""
    try:
        spans = [fact.subject_span for fact in facts]
        # A context precedes the question; in a chat it is part of the user's message.
        prompts = [f.opening + context + f.question + f.closing for f in facts for context in contexts]
        targets = [fact.target_new for fact in facts for _ in contexts]
        glue = [fact.glue for fact in facts for _ in contexts]
        where = [(len(c) + start, len(c) + end) for start, end in spans for c in contexts]
        rows = make_rows(model, prompts, targets, where, glue)
        kl = make_rows(model, [f"{fact.subject} is a" for fact in facts], None, [(0, len(f.subject)) for f in facts])
    except KetoolsError as error:
        if len(facts) > 1:  # find the fact that failed
            for fact in facts:
                fact_rows(model, [fact], contexts)
        named = str(error).startswith(f"fact {facts[0].id!r}")
        raise KetoolsError(str(error) if named else f"fact {facts[0].id!r}: {error}") from None
    n = len(contexts)
    return [FactRows(rows[i * n : (i + 1) * n], row.ids[: _last(row) + 1]) for i, row in enumerate(kl)]


def checked_rows(model: EditableModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[FactRows]:
    """Token rows of each fact in each of `contexts`, the bare prompt ("") first.

    Raises KetoolsError, naming the facts: for two that contradict or repeat each other, for a target
    without tokens or with more than 32, and for a prompt that does not fit the model's window with its longest context
    and target.
    """
    check_conflicts(facts)
    rows = fact_rows(model, facts, contexts)
    for fact, row in zip(facts, rows, strict=True):
        if (n := len(row.contexts[0].target_ids)) > _LONGEST_TARGET:
            raise KetoolsError(
                f"fact {fact.id!r}: target_new has {n} tokens, more than {_LONGEST_TARGET}; give the object alone"
            )
    return rows


def keys_and_states(model: EditableModel, rows: Sequence[FactRows], layer: int, top: int) -> tuple[Tensor, Tensor]:
    """Keys K1 (d_mlp, n) at `layer` and states (d_model, n) at the output of layer `top`, float64 on the CPU.

    Both at the subject's last token. A key is half the bare prompt's and half the mean of the prefixed prompts' (MEMIT,
    arXiv 2210.07229, equation 19); states are the bare prompt's. Tokens after the subject are not run, nor are layers
    above `layer` for the prefixed prompts or above `top` for the bare ones.

    Warns (UserWarning) about a model whose prompts cannot be replayed. Raises KetoolsError if either is not finite.
    """
    warn_if_slow(model)
    keys, states = read_subjects(model, [fact.subjects[0] for fact in rows], layer, top)
    assert states is not None
    keys = keys.double()
    prefixed = [subject for fact in rows for subject in fact.subjects[1:]]
    if prefixed:
        others, _ = read_subjects(model, prefixed, layer)
        keys = (keys + others.double().view(len(rows), -1, keys.shape[1]).mean(1)) / 2
    for what, value in ((f"keys of layer {layer}", keys), (f"states of layer {top}", states)):
        if not value.isfinite().all():
            raise NotFinite(f"{what} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}")
    # Rounded here, so that the keys kept in float32 for later batches equal those used now.
    return keys.float().double().T.contiguous().cpu(), states.double().T.contiguous().cpu()


def near_subjects(model: EditableModel, facts: Sequence[Fact], rows: Sequence[FactRows], layer: int) -> list[list[int]]:
    """Groups of facts, by place, that share a subject (case ignored) and nearly the key of the bare prompt at `layer`.

    One matrix maps such keys to nearly one value. Nothing is computed where every fact has its own subject.
    """
    places: dict[str, list[int]] = {}
    for place, fact in enumerate(facts):
        places.setdefault(fact.subject.lower(), []).append(place)
    near: list[list[int]] = []
    if repeated := [place for same in places.values() if len(same) > 1 for place in same]:
        keys, _ = read_subjects(model, [rows[place].subjects[0] for place in repeated], layer)
        unit = dict(zip(repeated, normalize(keys.double(), dim=1), strict=True))
        for same in places.values():
            groups: list[list[int]] = []
            for place in same if len(same) > 1 else ():
                alike = (group for group in groups if float(unit[group[0]] @ unit[place]) > _NEAR)
                if (group := next(alike, None)) is None:
                    groups.append([place])
                else:
                    group.append(place)
            near += [group for group in groups if len(group) > 1]
    return near


def read_subjects(
    model: EditableModel, subjects: Sequence[Sequence[int]], layer: int, top: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """At the last token of each of `subjects` (token ids): the key of `layer` (n, d_mlp) and, unless `top` is None, the
    output of layer `top` (n, d_model). A pass has at most as many tokens as one of the target optimisation.
    """
    order: list[int] = []
    keys, states = [], []
    for batch in batches(map(len, subjects), tokens_at_once(model, layer if top is None else max(layer, top))):
        key, state = read_last(model, [subjects[i] for i in batch], layer, top)
        keys.append(key)
        states += [] if state is None else [state]
        order += batch
    back = torch.tensor(order).argsort()
    joined = [torch.cat(parts)[back.to(parts[0].device)] if parts else None for parts in (keys, states)]
    assert joined[0] is not None
    return joined[0], joined[1]


@torch.no_grad()
def before_norm(model: EditableModel, rows: Sequence[FactRows], layer: int, residuals: Tensor) -> Tensor:
    """What the output of the matrix of `layer` must gain for the output of the layer to gain `residuals` (d_model, n).

    The same, unless there is a norm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2). There N(m) = g m /
    rms(m), and d = rms(m) r / g makes N(m + d) parallel to N(m) + r, and equal to it to first order in r. The norm
    fixes the length of its output, so a large r is matched in direction only. m is the present output for the bare
    prompts at the subject's last token. float64 on the CPU.
    """
    path = model.anatomy.post_norm
    if path is None:
        return residuals
    keys, _ = read_subjects(model, [fact.subjects[0] for fact in rows], layer)
    out = model.mlp_out(layer)(keys)
    gain = model.layer(layer).get_submodule(path)(torch.ones_like(out[:1]))  # of a vector with rms 1: g
    rms = out.double().square().mean(1).sqrt()
    return residuals * rms.cpu() / gain.double().cpu().T
