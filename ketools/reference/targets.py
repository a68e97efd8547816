"""Target optimisation, one fact at a time: the state z that makes the model say the new object.

ROME (Meng et al., arXiv 2202.05262, section 3.1) and MEMIT (arXiv 2210.07229, section 4.2) look for the vector delta
that, added to the residual stream after layer L at the subject's last token, minimises

    mean_j NLL(o* | x_j + prompt)  +  kl_factor KL(p_0 || p_delta)  +  weight_decay ||delta|| / ||h_0||^2

over contexts x_j put before the prompt, "" first. p is the distribution after "{subject} is a", read at the subject's
last token, which keeps what the subject is. h_0 is the state of the bare prompt, z = h_0 + delta. Each step of Adam is
followed by a projection onto the ball ||delta|| <= clamp_norm_factor ||h_0||. ENCORE (Gupta et al., arXiv 2502.01636)
stops once the target is the most probable answer: `mpes`.

The computation is that of published code (compute_z of kmeng01/memit, later in EasyEdit, AlphaEdit and ENCORE): whole
sequences through the whole model in every pass, and logits at every position, twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ketools.facts.fact import Fact, tail
from ketools.models.model import EditableModel
from ketools.models.tokens import pad_right


@dataclass(frozen=True)
class Target:
    """z and h0 (d_model,) float32, the number of updates of delta, and the loss and the target's probability at z."""

    z: Tensor
    h0: Tensor
    steps: int
    loss: float
    p_target: float


def plain_target(
    model: EditableModel,
    fact: Fact,
    contexts: Sequence[str],
    layer: int,
    *,
    lr: float = 0.5,
    steps: int = 20,
    kl_factor: float = 0.0625,
    kl_direction: str = "reference",
    weight_decay: float = 0.5,
    clamp_norm_factor: float = 0.75,
    loss_floor: float = 0.05,
    mpes: int | None = None,
    official: bool = False,
    threshold: float | None = None,
) -> Target:
    """The target of `fact` at the output of `layer`, in at most `steps` passes (the last pass takes no update).

    It stops early below `loss_floor`; with `mpes` = n by MPES +n (`official`: counted as in the authors' code); with
    `threshold` once the target's probability, averaged over the contexts, exceeds it. `kl_direction` "edited" is
    KL(p_delta || p_0), as computed by the published code.
    """
    rows = token_rows(model, fact, contexts)
    ids, mask = pad_right(rows.ids, model.device)
    context, token = torch.arange(len(contexts))[:, None], torch.arange(len(rows.target))
    delta = torch.zeros(1, model.anatomy.d_model, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    p0: Tensor | None = None
    hits: list[Tensor] = []
    with _added(model.layer(layer), delta, rows.subject_last) as before:
        for step in range(steps):
            states = model.body(input_ids=ids, attention_mask=mask).last_hidden_state  # (contexts + 1, length, d_model)
            h0 = before[0][0]
            now = model.logits(states)[-1, rows.subject_last[-1]].float().log_softmax(-1)  # after "{subject} is a"
            p0 = now.detach() if p0 is None else p0
            old, new = (p0, now) if kl_direction == "reference" else (now, p0)
            kl = (old.exp() * (old - new)).sum()
            logprob = model.logits(states[:-1]).float().log_softmax(-1)
            read = logprob[context, rows.places]  # (contexts, tokens, vocabulary)
            nll = -read[:, token, rows.target].mean(1)  # (contexts,)
            loss = nll.mean() + kl_factor * kl + weight_decay * delta.norm() / h0.norm() ** 2

            p = (-nll).exp().mean().item()
            hits.append(read.argmax(-1) == rows.target)  # (contexts, tokens)
            stopped = mpes is not None and (mpes_official if official else mpes_holds)(hits, mpes)
            if stopped or loss < loss_floor or step == steps - 1 or (threshold is not None and p > threshold):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta *= (clamp_norm_factor * h0.norm() / delta.norm()).clamp_max(1)
    return Target((h0 + delta[0]).detach(), h0, step, loss.item(), p)


def mpes_holds(hits: Sequence[Tensor], n: int) -> bool:
    """Most-Probable Early Stopping +n: at least n passes ago all target tokens were the most probable in all contexts.

    `hits`: one bool tensor (contexts, target tokens) per pass, true where the target's token is the argmax.
    """
    return any(bool(hit.all()) for hit in hits[: len(hits) - n])


def mpes_official(hits: Sequence[Tensor], n: int) -> bool:
    """MPES +n as in the authors' code: more than n passes had exactly five hits, the bare prompt (row 0) left out.

    With five prefixes and a single-token target only the bare prompt is ignored; of a longer one any five hits count.
    """
    return sum(int(hit[1:].sum()) == 5 for hit in hits) > n


def plain_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    *,
    lr: float = 0.5,
    steps: int = 20,
    kl_factor: float = 0.0625,
    weight_decay: float = 0.5,
    clamp_norm_factor: float = 0.75,
    loss_floor: float = 0.05,
    mpes: int | None = None,
) -> list[Target]:
    """Like `plain_target`, for all `facts` in one batch, which runs until its slowest fact has stopped."""
    rows, width = [token_rows(model, fact, contexts) for fact in facts], len(contexts) + 1
    ids, mask = pad_right([row for fact in rows for row in fact.ids], model.device)
    context, essence = torch.arange(len(contexts))[:, None], torch.arange(width - 1, len(ids), width)
    delta = torch.zeros(len(facts), model.anatomy.d_model, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    p0: Tensor | None = None
    hits: list[list[Tensor]] = [[] for _ in facts]
    results: dict[int, Target] = {}
    with _added(model.layer(layer), delta, [place for fact in rows for place in fact.subject_last]) as before:
        for step in range(steps):
            logprob = model.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            now = logprob[essence, [fact.subject_last[-1] for fact in rows]]  # (facts, vocabulary)
            p0 = now.detach() if p0 is None else p0
            h0 = before[0][::width]  # (facts, d_model)
            losses = []
            for i, fact in enumerate(rows):
                read = logprob[context + i * width, fact.places]  # (contexts, tokens, vocabulary)
                nll = -read[:, torch.arange(len(fact.target)), fact.target].mean(1)
                kl = (p0[i].exp() * (p0[i] - now[i])).sum()
                loss = nll.mean() + kl_factor * kl + weight_decay * delta[i].norm() / h0[i].norm() ** 2
                losses.append(loss)
                hits[i].append(read.argmax(-1) == fact.target)
                stopped = mpes is not None and mpes_holds(hits[i], mpes)
                if i not in results and (stopped or loss < loss_floor or step == steps - 1):
                    p = (-nll).exp().mean().item()
                    results[i] = Target((h0[i] + delta[i]).detach(), h0[i], step, loss.item(), p)
            if len(results) == len(facts):
                break
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            with torch.no_grad():
                delta *= (clamp_norm_factor * h0.norm(dim=1) / delta.norm(dim=1)).clamp_max(1)[:, None]
    return [results[i] for i in range(len(facts))]


class Rows(NamedTuple):
    """One fact as tokens: one row per context (prompt and target but its last token), then "{subject} is a".

    `subject_last`: the position of the subject's last token in each row. `places` (contexts, tokens): the positions
    that predict `target` (tokens,).
    """

    ids: list[list[int]]
    subject_last: list[int]
    places: Tensor
    target: Tensor


def token_rows(model: EditableModel, fact: Fact, contexts: Sequence[str]) -> Rows:
    """`fact` after each of `contexts`, as tokens."""
    target = model.tokenizer(tail(fact.text, fact.target_new, fact.glue), add_special_tokens=False)["input_ids"]
    texts = [
        (fact.opening + context + fact.question + fact.closing, len(context) + fact.subject_span[1])
        for context in contexts
    ]
    texts.append((f"{fact.subject} is a", len(fact.subject)))
    prompts, subject_last = [], []
    for text, end in texts:
        encoded = model.tokenizer(text, return_offsets_mapping=True)
        prompts.append(encoded["input_ids"])
        subject_last.append(max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > a))
    ids = [*(prompt + target[:-1] for prompt in prompts[:-1]), prompts[-1]]
    first = torch.tensor([len(prompt) - 1 for prompt in prompts[:-1]], device=model.device)
    places = first[:, None] + torch.arange(len(target), device=model.device)
    return Rows(ids, subject_last, places, torch.tensor(target, device=model.device))


@contextmanager
def _added(layer: nn.Module, delta: Tensor, places: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within the block `layer` adds delta (facts, d_model) to its output, at position `places[i]` of row i.

    The rows of a fact are adjacent. Yields a list to which the first pass appends the states at these positions before
    the addition, (rows, d_model) float32.
    """
    before: list[Tensor] = []

    def add(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        states = (out[0] if isinstance(out, tuple) else out).clone()  # (rows, length, d_model)
        row = torch.arange(len(places))
        if not before:
            before.append(states[row, places].detach().float())
        states[row, places] += delta.repeat_interleave(len(places) // len(delta), 0).to(states.dtype)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    handle = layer.register_forward_hook(add)
    try:
        yield before
    finally:
        handle.remove()
