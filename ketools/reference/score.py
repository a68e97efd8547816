"""One prompt, one target, no batch: the model's own logits."""

import torch

from ketools.models.model import EditableModel


def plain_score(model: EditableModel, prompt: str, target: str) -> tuple[float, bool]:
    """Mean token log-probability of the target after the prompt, and whether each of its tokens is the argmax."""
    start = model.tokenizer(prompt)["input_ids"]
    goal = model.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*start, *goal]])).logits[0, len(start) - 1 : -1].double()
    logprob = torch.log_softmax(logits, -1)[torch.arange(len(goal)), torch.tensor(goal)]
    return float(logprob.mean()), bool((logits.argmax(-1) == torch.tensor(goal)).all())
