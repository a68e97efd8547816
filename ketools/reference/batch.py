"""Step 1 as a plain loop over batches: many facts at once, whole sequences, all layers, logits everywhere."""

import torch

from ketools.reference.targets import PlainTarget, _last, _stops


def plain_targets(model, facts, contexts, stopping, hyper, at_once=16):
    """z of all facts, `at_once` in a batch; a batch runs until its slowest fact is done."""
    done = []
    for start in range(0, len(facts), at_once):
        done += _batch(model, facts[start : start + at_once], contexts, stopping, hyper)
    return done


def _rows(model, fact, contexts):
    prompts = [model.tokenizer(context + fact.text, return_offsets_mapping=True) for context in contexts]
    goal = model.tokenizer(" " + fact.target_new)["input_ids"]
    ends = [len(context) + fact.prompt.index("{}") + len(fact.subject) for context in contexts]
    kl = model.tokenizer(f"{fact.subject} is a", return_offsets_mapping=True)
    rows = [p["input_ids"] + goal[:-1] for p in prompts] + [kl["input_ids"]]
    last = [_last(p["offset_mapping"], end) for p, end in zip(prompts, ends)]
    last.append(_last(kl["offset_mapping"], len(fact.subject)))
    return rows, last, [len(p["input_ids"]) - 1 for p in prompts], goal


def _batch(model, facts, contexts, stopping, hyper):
    parts = [_rows(model, fact, contexts) for fact in facts]
    width, n = len(contexts) + 1, len(facts)
    rows = [row for part in parts for row in part[0]]
    longest = max(map(len, rows))
    device = model.device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    place = torch.tensor([last for part in parts for last in part[1]], device=device)
    every = torch.arange(n * width, device=device)
    delta = torch.zeros(n, model.anatomy.d_model, device=device, requires_grad=True)
    seen = {}

    def add(_, __, out):
        states = (out[0] if isinstance(out, tuple) else out).clone()
        seen.setdefault("h0", states[every[::width], place[::width]].detach().float().clone())
        states[every, place] += delta.repeat_interleave(width, 0).to(states.dtype)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    optimizer = torch.optim.Adam([delta], lr=hyper.lr)
    handle = model.layer(hyper.layers[-1]).register_forward_hook(add)
    since, reference, results = [None] * n, None, [None] * n
    try:
        for at in range(hyper.steps):
            logprob = model.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            now = logprob[every[width - 1 :: width], place[width - 1 :: width]]
            reference = now.detach() if reference is None else reference
            losses = []
            for i, (_, _, first, goal) in enumerate(parts):
                block = logprob[i * width : (i + 1) * width - 1]
                nll = torch.stack(
                    [-sum(block[c, f + j, t] for j, t in enumerate(goal)) / len(goal) for c, f in enumerate(first)]
                )
                kl = (reference[i].exp() * (reference[i] - now[i])).sum()
                h0 = seen["h0"][i]
                loss = nll.mean() + hyper.kl_factor * kl + hyper.weight_decay * delta[i].norm() / h0.norm() ** 2
                losses.append(loss)
                if results[i] is not None:
                    continue
                correct = all(block[c, f + j].argmax() == t for c, f in enumerate(first) for j, t in enumerate(goal))
                since[i] = at if since[i] is None and correct else since[i]
                p = (-nll).exp().mean().item()
                if _stops(stopping, hyper, at, loss.item(), p, since[i], 0):
                    results[i] = PlainTarget((h0 + delta[i]).detach(), h0, at, loss.item(), p)
            if all(results):
                break
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            with torch.no_grad():
                limit = hyper.clamp_norm_factor * seen["h0"].norm(dim=1)
                delta *= (limit / delta.norm(dim=1)).clamp_max(1)[:, None]
    finally:
        handle.remove()
    return results
