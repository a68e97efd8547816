"""What a model answers: next tokens, the probability of given answers, greedy continuations."""

from collections.abc import Sequence

import pandas as pd
import torch

from ketools.evaluation.scoring import score_pairs
from ketools.facts import Fact
from ketools.model import EditableModel


@torch.no_grad()
def top_tokens(model: EditableModel, prompt: str, k: int = 5) -> pd.DataFrame:
    """The `k` most probable next tokens after `prompt`: columns token (text), probability."""
    ids = model.tokenizer(prompt.rstrip(" "), return_tensors="pt")["input_ids"].to(model.device)
    probability, token = model.model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1).topk(k)
    words = [model.tokenizer.decode([t]) for t in token.tolist()]
    return pd.DataFrame({"token": words, "probability": probability.tolist()})


def answers(model: EditableModel, prompts: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    """How probable each target is after its prompt.

    Columns: prompt, target, probability (exp of the mean token log-probability, teacher-forced), right (every token of
    the target is the most probable one). One row a pair, in the order given.
    """
    probability, right = score_pairs(model, list(zip(prompts, targets, strict=True)))
    return pd.DataFrame({"prompt": list(prompts), "target": list(targets), "probability": probability, "right": right})


@torch.no_grad()
def complete(model: EditableModel, prompt: str, tokens: int = 8) -> str:
    """The greedy continuation of `prompt` by at most `tokens` tokens, without the prompt."""
    ids = model.tokenizer(prompt.rstrip(" "), return_tensors="pt").to(model.device)
    made = model.model.generate(
        **ids, max_new_tokens=tokens, do_sample=False, pad_token_id=model.tokenizer.pad_token_id
    )
    return model.tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def surroundings(model: EditableModel, fact: Fact, same_subject: Sequence[Fact] = ()) -> pd.DataFrame:
    """What `model` says around one fact: its prompt, paraphrases, neighbours, and other facts of its subject.

    One row a prompt. Columns: kind ("prompt", "paraphrase", "neighbour", "same subject"), prompt, true (the answer
    that was true before any edit: the neighbours share the fact's, other facts have their own), new (the fact's
    `target_new`), p_true, p_new, says_true, says_new (every token is the most probable one).
    """
    asked = [("prompt", fact.text, fact.target_true), *(("paraphrase", p, fact.target_true) for p in fact.paraphrases)]
    asked += [("neighbour", p, fact.target_true) for p in fact.neighbours]
    asked += [("same subject", other.text, other.target_true) for other in same_subject if other.id != fact.id]
    frame = pd.DataFrame(asked, columns=["kind", "prompt", "true"]).assign(new=fact.target_new)
    for name in ("true", "new"):
        probability, right = score_pairs(model, list(zip(frame["prompt"], frame[name], strict=True)))
        frame[f"p_{name}"], frame[f"says_{name}"] = probability, right
    return frame
