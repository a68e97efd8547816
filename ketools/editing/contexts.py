"""Prefixes before a prompt, in the model's own words: an edit should hold wherever its prompt stands."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ketools.model import EditableModel

OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP = 5  # sampled from the five most probable tokens, as the published code does


@torch.no_grad()
def generate_prefixes(model: EditableModel, count: int, tokens: int, generator: torch.Generator) -> tuple[str, ...]:
    """`count` texts of about `tokens` tokens that the model writes after "The", "Therefore", "Because", "I", "You".

    Sampled on the CPU with `generator`, so that the same state gives the same texts (Meng et al., arXiv 2210.07229,
    appendix; ROME's and MEMIT's settings are 5 and 10).
    """
    texts = []
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    for i in range(count):
        ids = list(model.tokenizer(OPENINGS[i % len(OPENINGS)])["input_ids"])
        while ids and ids[-1] == model.tokenizer.eos_token_id != model.tokenizer.bos_token_id:
            ids.pop()  # some tokenizers end every text
        for _ in range(max(0, tokens - 1)):
            logits = model.model(torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()
            ids.append(_draw(logits, special, generator))
        texts.append(model.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return tuple(texts)


def contexts_of(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Texts to put before a prompt: nothing, and each prefix with ". " behind."""
    return ("", *(prefix if prefix.endswith(". ") else f"{prefix}. " for prefix in prefixes))


def _draw(logits: Tensor, special: Tensor, generator: torch.Generator) -> int:
    logits[special] = -torch.inf
    top = torch.topk(logits, min(_TOP, len(logits)))
    return int(top.indices[torch.multinomial(top.values.softmax(0), 1, generator=generator)])
