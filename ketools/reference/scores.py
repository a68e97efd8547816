"""Scores of edits as a plain loop: one prompt and one target at a time, logits everywhere."""

import torch


@torch.no_grad()
def probability(model, prompt, target):
    """exp of the mean log-probability of the target's tokens, and whether each is the most probable one."""
    start = len(model.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([model.tokenizer(f"{prompt} {target}")["input_ids"]], device=model.device)
    logprob = model.model(ids, use_cache=False).logits[0].float().log_softmax(-1)
    goal = ids[0, start:]
    at = logprob[start - 1 : -1]
    return float(at.gather(1, goal[:, None]).mean().exp()), bool((at.argmax(1) == goal).all())


def success(model, fact, neighbours):
    """Of one fact: P(new) > P(true) on its prompt, the share of paraphrases where that holds, of neighbours where not."""

    def wins(prompt):
        new, true = (probability(model, prompt, target)[0] for target in (fact.target_new, fact.target_true))
        return new - true

    kinds = ([fact.text], fact.paraphrases, fact.neighbours[:neighbours])
    signs = (1, 1, -1)
    return [
        sum(sign * wins(p) > 0 for p in prompts) / len(prompts) if prompts else float("nan")
        for prompts, sign in zip(kinds, signs)
    ]
