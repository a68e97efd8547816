"""The mathematics of the package, plain and slow: one fact, prompt or restoration at a time, dense float64 matrices.

Read it to learn what the fast code computes; the notebooks show it and the tests compare with it.

- `targets`: target optimisation, ROME's and MEMIT's loop for one fact, with MPES;
- `update`: the weight updates of ROME, MEMIT, ENCORE, EMMET and AlphaEdit, as in their papers;
- `tracing`: causal tracing and attention knockout with plain forward hooks;
- `score` and `success`, here: the probability of a target after a prompt; ES, PS and NS of a fact, prompt by prompt.

Nothing here imports from the folders above it (editing, probing, evaluation): settings are plain numbers.
"""

import torch

from ketools.facts.fact import Fact, tail
from ketools.models.model import EditableModel


@torch.no_grad()
def score(model: EditableModel, prompt: str, target: str) -> tuple[float, bool]:
    """Mean log-probability (nats) of the target's tokens after the prompt, and whether each of them is the argmax.

    The target is teacher-forced: P(target) = exp(mean_t log p(token t | prompt, tokens before t)).
    """
    start = model.tokenizer(prompt)["input_ids"]
    goal = torch.tensor(model.tokenizer(tail(prompt, target), add_special_tokens=False)["input_ids"])
    ids = torch.tensor([[*start, *goal.tolist()]], device=model.device)
    logits = model.model(ids, use_cache=False).logits[0, len(start) - 1 : -1].double().cpu()  # (tokens, vocabulary)
    logprob = logits.log_softmax(-1)[torch.arange(len(goal)), goal]
    return float(logprob.mean()), bool((logits.argmax(-1) == goal).all())


def success(model: EditableModel, fact: Fact, neighbours: int) -> list[float]:
    """ES, PS and NS of one fact (Meng et al., arXiv 2202.05262), with its first `neighbours` neighbours.

    Shares of prompts with P(new) > P(true) for the edit prompt and the paraphrases, with P(true) > P(new) for
    neighbours. NaN without prompts. Raises KetoolsError, naming the fact, if it has no target_true.
    """
    true = fact.need_true("a score of success")

    def share(prompts: list[str], sign: int) -> float:
        margins = [score(model, prompt, fact.target_new)[0] - score(model, prompt, true)[0] for prompt in prompts]
        return sum(sign * margin > 0 for margin in margins) / len(margins) if margins else float("nan")

    return [share([fact.text], 1), share([*fact.paraphrases], 1), share([*fact.neighbours[:neighbours]], -1)]
