"""Step 1 as a plain loop: one fact, whole sequences through the whole model, logits everywhere, torch.optim.Adam.

It does the work that published code does (compute_z of kmeng01/memit, and of EasyEdit, AlphaEdit and ENCORE after it):
the model's own forward gives logits at every position, of which the KL term reads one; the target's log-probabilities
come from a second product with the head's matrix, at every position of the prompts again. The weights require no
gradient there either, so that the backward pass ends at the edited layer and computes no gradient of a matrix.
"""

from dataclasses import dataclass

import torch

from ketools.editing.methods import MPES, ProbabilityThreshold


@dataclass
class PlainTarget:
    z: torch.Tensor
    h0: torch.Tensor
    steps: int
    loss: float
    p_target: float


def plain_target(model, fact, contexts, stopping, hyper):
    """z of one fact. Rows: each context before the prompt and the target but its last token, then "{subject} is a"."""
    texts = [context + fact.text for context in contexts]
    starts = [len(context) + fact.prompt.index("{}") for context in contexts]
    prompts = [model.tokenizer(text, return_offsets_mapping=True) for text in texts]
    goal = model.tokenizer(" " + fact.target_new)["input_ids"]
    rows = [prompt["input_ids"] + goal[:-1] for prompt in prompts]
    subject_last = [_last(p["offset_mapping"], s + len(fact.subject)) for p, s in zip(prompts, starts)]
    kl = model.tokenizer(f"{fact.subject} is a", return_offsets_mapping=True)
    rows.append(kl["input_ids"])
    subject_last.append(_last(kl["offset_mapping"], len(fact.subject)))
    first = [len(p["input_ids"]) - 1 for p in prompts]

    longest = max(map(len, rows))
    device = model.device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    delta = torch.zeros(model.anatomy.d_model, device=device, requires_grad=True)
    seen = {}

    def add(_, __, out):
        states = (out[0] if isinstance(out, tuple) else out).clone()
        seen.setdefault("h0", states[0, subject_last[0]].detach().float().clone())
        for i, place in enumerate(subject_last):
            states[i, place] += delta.to(states.dtype)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    def keep(_, args):
        seen["normed"] = args[0]

    optimizer = torch.optim.Adam([delta], lr=hyper.lr)
    handle = model.layer(hyper.layers[-1]).register_forward_hook(add)
    head = model.head.register_forward_pre_hook(keep)
    since, reference, held = None, None, 0
    try:
        for at in range(hyper.steps):
            logits = model.model(input_ids=ids, attention_mask=mask).logits
            now = logits[-1, subject_last[-1]].float().log_softmax(-1)
            logprob = model.logits(seen["normed"][:-1]).float().log_softmax(-1)
            reference = now.detach() if reference is None else reference
            nll = torch.stack(
                [-sum(logprob[i, f + j, t] for j, t in enumerate(goal)) / len(goal) for i, f in enumerate(first)]
            )
            old, new = (reference, now) if hyper.kl_direction == "reference" else (now, reference)
            kl_loss = (old.exp() * (old - new)).sum()
            h0 = seen["h0"]
            loss = nll.mean() + hyper.kl_factor * kl_loss + hyper.weight_decay * delta.norm() / h0.norm() ** 2
            correct = all(logprob[i, f + j].argmax() == t for i, f in enumerate(first) for j, t in enumerate(goal))
            since = at if since is None and correct else since
            # The authors' code: the bare prompt is left out, and pairs of a prompt and a token are counted up to five.
            pairs = sum(logprob[i, f + j].argmax() == t for i, f in enumerate(first) if i for j, t in enumerate(goal))
            held += int(pairs == 5)
            p = (-nll).exp().mean().item()
            if _stops(stopping, hyper, at, loss.item(), p, since, held):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                limit = hyper.clamp_norm_factor * h0.norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()
    finally:
        handle.remove()
        head.remove()
    return PlainTarget((h0 + delta).detach(), h0, at, loss.item(), p)


def _stops(stopping, hyper, at, loss, p, since, held):
    if loss < hyper.loss_floor or at == hyper.steps - 1:
        return True
    if isinstance(stopping, MPES):
        patience = hyper.patience if stopping.patience is None else stopping.patience
        if hyper.compat == "official":
            return held >= patience + 1
        return since is not None and at - since >= patience
    return isinstance(stopping, ProbabilityThreshold) and p > stopping.p


def _last(offsets, end):
    return max(i for i, (a, b) in enumerate(offsets) if a < end and b > a)
