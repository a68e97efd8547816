"""Free generation: the model's continuations, and the entropy of its text.

GE is ROME's score of free text (2202.05262, section 3.4; its code, experiments/py/eval_utils_counterfact.py).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ketools.errors import KetoolsError
from ketools.models.model import EditableModel
from ketools.models.tokens import batches, prompt_rows

_TOKENS = 8192  # in one call of generate, prompts and answers
_WORDS = re.compile(r"\w+|[^\w\s]")


@torch.no_grad()
def continuations(
    model: EditableModel, prompts: Sequence[str], tokens: int, *, top_k: int = 1, seed: int = 0
) -> list[str]:
    """What the model writes after each prompt, at most `tokens` tokens, without the prompt and special tokens.

    Args:
        model: the model in its present state.
        prompts: texts; only those of equal length share a pass, so that none is padded.
        tokens: the maximum; a text ends earlier where the model ends it.
        top_k: 1 is greedy; otherwise tokens are drawn from the top_k most probable, as in ROME's free text (5).
        seed: seed of the draw; torch's global random state does not change.

    Raises KetoolsError for a blank prompt, and one that leaves too little of the model's window for `tokens` tokens.
    """
    if tokens < 1 or top_k < 1:
        raise KetoolsError(f"tokens={tokens}, top_k={top_k}: expected whole numbers of at least 1")
    rows = [row.ids for row in prompt_rows(model, prompts, tokens)]
    pad = model.tokenizer.pad_token_id
    how = {"do_sample": True, "top_k": top_k} if top_k > 1 else {"do_sample": False}
    how["pad_token_id"] = model.tokenizer.eos_token_id if pad is None else pad
    network: Any = model.model  # generate comes from a mixin of transformers
    texts = [""] * len(rows)
    kind = model.device.type
    devices = [] if kind in ("cpu", "mps") else [model.device]  # the state of the CPU is always kept
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        for part in batches([len(row) + tokens for row in rows], _TOKENS, equal=True):
            ids = torch.tensor([rows[i] for i in part], device=model.device)
            made = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **how)
            decoded = model.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(part, decoded, strict=True):
                texts[i] = str(text)
    return texts


def ngram_entropy(text: str, n: int) -> float:
    """Entropy of the text's n-grams of words and punctuation marks, bits; 0 where there is none."""
    words = _WORDS.findall(text)
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    whole = counts.total()
    return sum(count / whole * math.log2(whole / count) for count in counts.values())


def generation_entropy(texts: Iterable[str]) -> float:
    """GE = 100 mean over texts of (H_2 / 3 + 2 H_3 / 3), as weighted in ROME's code; low for text that repeats itself.

    Short texts count with the n-grams they have, empty ones with 0: a model that writes nothing must not drop out.

    Raises KetoolsError for no texts.
    """
    values = [(ngram_entropy(text, 2) + 2 * ngram_entropy(text, 3)) / 3 for text in texts]
    if not values:
        raise KetoolsError("generation entropy of 0 texts; give at least one")
    return 100 * sum(values) / len(values)
