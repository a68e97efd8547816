"""What a model answers: next tokens, the probability of given answers, greedy continuations."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.prompts import make_rows
from ketools.scoring import score_pairs


@torch.no_grad()
def top_tokens(model: EditableModel, prompt: str, k: int = 5) -> pd.DataFrame:
    """The `k` most probable next tokens after `prompt`: columns token (text), probability.

    Raises KetoolsError for a blank prompt, one longer than the model's window, and k outside 1 to the vocabulary's size.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise KetoolsError(f"k={k}: expected 1 to {model.config.vocab_size} tokens")
    ids = _ids(model, prompt)
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
    """The greedy continuation of `prompt` by at most `tokens` tokens, without the prompt.

    Raises KetoolsError for a blank prompt, and one that leaves no room for `tokens` tokens in the model's window.
    """
    ids = _ids(model, prompt, tokens)
    made = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    return model.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def surroundings(model: EditableModel, fact: Fact, same_subject: Sequence[Fact] = ()) -> pd.DataFrame:
    """What `model` says around one fact: its prompt, paraphrases, neighbours, and other facts of its subject.

    One row a prompt. Columns: kind ("prompt", "paraphrase", "neighbour", "same subject"), prompt, true (the answer
    that was true before any edit: the neighbours share the fact's, other facts have their own), new (the fact's
    `target_new`), p_true, p_new, says_true, says_new (every token is the most probable one).

    Raises KetoolsError naming a fact whose `target_true` is unknown, this one or another of its subject.
    """
    purpose = "what the model says around a fact"
    true = fact.need_true(purpose)
    asked = [("prompt", fact.text, true), *(("paraphrase", p, true) for p in fact.paraphrases)]
    asked += [("neighbour", p, true) for p in fact.neighbours]
    others = [other for other in same_subject if other.id != fact.id]
    asked += [("same subject", other.text, other.need_true(purpose)) for other in others]
    frame = pd.DataFrame(asked, columns=["kind", "prompt", "true"]).assign(new=fact.target_new)
    for name in ("true", "new"):
        probability, right = score_pairs(model, list(zip(frame["prompt"], frame[name], strict=True)))
        frame[f"p_{name}"], frame[f"says_{name}"] = probability, right
    return frame


def _ids(model: EditableModel, prompt: str, more: int = 0) -> Tensor:
    # (1, length), checked against the window with `more` tokens to come.
    if not prompt.strip():
        raise KetoolsError(f"prompt {prompt!r} is blank; give it some text")
    (row,) = make_rows(model, [prompt.rstrip(" ")])
    if model.window and len(row.ids) + more > model.window:
        raise KetoolsError(
            f"prompt {prompt!r} takes {len(row.ids)} tokens and {more} are to be written; the model's context window "
            f"holds {model.window}: ask for fewer tokens"
        )
    return torch.tensor([row.ids], device=model.device)
