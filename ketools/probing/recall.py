"""What a model answers: next tokens, probabilities of given answers, greedy continuations, one fact in many wordings."""

from collections.abc import Sequence

import pandas as pd
import torch

from ketools.errors import KetoolsError
from ketools.evaluation.generation import continuations
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.scoring import score_pairs
from ketools.models.tokens import prompt_rows, said_in_chat


@torch.no_grad()
def top_tokens(model: EditableModel, prompt: str, k: int = 5, *, chat: bool = False) -> pd.DataFrame:
    """The `k` most probable next tokens after `prompt`: columns token (text), probability.

    `chat`: the prompt becomes a user message in the tokenizer's chat template. Raises KetoolsError for a blank prompt,
    one longer than the model's window, and k outside 1 to the vocabulary's size.
    """
    check_k(model, k)
    prompt = said_in_chat(model, [prompt])[0][0] if chat else prompt
    (row,) = prompt_rows(model, [prompt])
    ids = torch.tensor([row.ids], device=model.device)
    logits = model.model(input_ids=ids, use_cache=False).logits[0, -1].float()  # (vocabulary,)
    probability, tokens = logits.softmax(-1).topk(k)
    words = [str(model.tokenizer.decode([token])) for token in tokens.tolist()]
    return pd.DataFrame({"token": words, "probability": probability.tolist()})


def answers(
    model: EditableModel, prompts: Sequence[str], targets: Sequence[str], *, chat: bool = False
) -> pd.DataFrame:
    """The probability of each target after its prompt.

    Columns: prompt, target, probability (exp of the mean token log-probability, teacher-forced), right (every token of
    the target is the most probable one). One row per pair, in the given order. `chat`: as for `top_tokens`.
    """
    texts, glue = said_in_chat(model, prompts) if chat else (prompts, None)
    pairs = list(zip(texts, targets, strict=True))
    probability, right = score_pairs(model, pairs, [glue] * len(pairs))
    return pd.DataFrame({"prompt": list(prompts), "target": list(targets), "probability": probability, "right": right})


def complete(model: EditableModel, prompt: str, tokens: int = 8, *, chat: bool = False) -> str:
    """The greedy continuation of `prompt` (`ketools.evaluation.generation.continuations`). `chat`: as for `top_tokens`."""
    prompts = said_in_chat(model, [prompt])[0] if chat else [prompt]
    return continuations(model, prompts, tokens)[0]


def surroundings(model: EditableModel, fact: Fact, same_subject: Sequence[Fact] = ()) -> pd.DataFrame:
    """What `model` says about one fact: for its prompt, paraphrases, neighbours, and other facts of its subject.

    One row per prompt. Columns: kind ("prompt", "paraphrase", "neighbour", "same subject"), prompt, true (the answer
    that was true before any edit: neighbours share the fact's, other facts have their own), new (the fact's
    `target_new`), p_true, p_new, says_true, says_new (every token is the most probable one).

    Raises KetoolsError naming a fact whose `target_true` is unknown, this one or another of its subject.
    """
    purpose = "what the model says around a fact"
    true = fact.need_true(purpose)
    rows = [("prompt", fact.text, true), *(("paraphrase", p, true) for p in fact.paraphrases)]
    rows += [("neighbour", p, true) for p in fact.neighbours]
    others = [other for other in same_subject if other.id != fact.id]
    glue = [*[fact.glue] * len(rows), *(other.glue for other in others)]
    rows += [("same subject", other.text, other.need_true(purpose)) for other in others]
    frame = pd.DataFrame(rows, columns=["kind", "prompt", "true"]).assign(new=fact.target_new)
    for name in ("true", "new"):
        probability, right = score_pairs(model, list(zip(frame["prompt"], frame[name], strict=True)), glue)
        frame[f"p_{name}"], frame[f"says_{name}"] = probability, right
    return frame


def check_k(model: EditableModel, k: int) -> None:
    """Raise KetoolsError unless `k` tokens of the model's vocabulary can be listed."""
    if not 1 <= k <= model.config.vocab_size:
        raise KetoolsError(f"k={k}: expected 1 to {model.config.vocab_size} tokens")
