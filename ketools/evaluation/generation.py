"""What the model writes by itself: its continuations, the entropy of its text, its likeness to references.

GE and RS are ROME's scores of free text (2202.05262, section 3.4; its code, experiments/py/eval_utils_counterfact.py).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, tail
from ketools.models.model import EditableModel
from ketools.models.tokens import batches, prompt_rows

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

_TOKENS = 8192  # of one call of generate, prompts and answers
_WORDS = re.compile(r"\w+|[^\w\s]")


@torch.no_grad()
def continuations(
    model: EditableModel, prompts: Sequence[str], tokens: int, *, top_k: int = 1, seed: int = 0
) -> list[str]:
    """What the model writes after each prompt, at most `tokens` tokens, without the prompt and special tokens.

    Args:
        model: the model in its current state.
        prompts: texts; those of equal length share a pass, so that no padding is seen.
        tokens: at most; a text ends earlier where the model ends it.
        top_k: 1 is greedy; more: drawn from so many most probable tokens, as ROME's free text (5).
        seed: of the draw; torch's own random state is left as it was.

    Raises:
        KetoolsError: a blank prompt, or one that leaves no room for `tokens` tokens in the model's window.
    """
    if tokens < 1 or top_k < 1:
        raise KetoolsError(f"tokens={tokens}, top_k={top_k}: expected whole numbers of at least 1")
    rows = [row.ids for row in prompt_rows(model, prompts, tokens)]
    pad = model.tokenizer.pad_token_id
    how = {"do_sample": True, "top_k": top_k} if top_k > 1 else {"do_sample": False}
    how["pad_token_id"] = model.tokenizer.eos_token_id if pad is None else pad
    network: Any = model.model  # transformers' own mixin, which torch's types do not know
    texts = [""] * len(rows)
    kind = model.device.type
    devices = [] if kind in ("cpu", "mps") else [model.device]  # the CPU's state is kept in any case
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        for part in batches([len(row) + tokens for row in rows], _TOKENS, equal=True):
            ids = torch.tensor([rows[i] for i in part], device=model.device)
            made = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **how)
            said = model.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(part, said, strict=True):
                texts[i] = str(text)
    return texts


def ngram_entropy(text: str, n: int) -> float:
    """Entropy of the text's n-grams of words and punctuation marks, bits; 0 where there is none."""
    words = _WORDS.findall(text)
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    whole = counts.total()
    return sum(count / whole * math.log2(whole / count) for count in counts.values())


def generation_entropy(texts: Iterable[str]) -> float:
    """GE = 100 mean over texts of (H_2 / 3 + 2 H_3 / 3), as ROME's code weighs them; low: it repeats itself.

    A text of fewer words counts with what it has, an empty one with 0: a model that falls silent must not drop out.

    Raises:
        KetoolsError: no texts.
    """
    values = [(ngram_entropy(text, 2) + 2 * ngram_entropy(text, 3)) / 3 for text in texts]
    if not values:
        raise KetoolsError("generation entropy of 0 texts; give at least one")
    return 100 * sum(values) / len(values)


def vectorizer(texts: Iterable[str]) -> TfidfVectorizer:
    """scikit-learn's tf-idf, fitted on a corpus: the references of all facts, or better a larger one.

    Raises:
        KetoolsError: no text with a word of two letters or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = list(texts)
    try:
        return TfidfVectorizer().fit(texts)
    except ValueError as error:
        raise KetoolsError(f"tf-idf over {len(texts)} texts: {error}; give texts with words") from error


def reference_score(texts: Iterable[str], references: Iterable[str], fitted: TfidfVectorizer) -> float:
    """RS: cosine of tf-idf(all texts) and tf-idf(all references), 0..1; 0 where a side has no word of the corpus.

    Raises:
        KetoolsError: no references.
    """
    references = list(references)
    if not references:
        raise KetoolsError("reference score against 0 references; give at least one")
    a, b = fitted.transform([" ".join(texts), " ".join(references)])
    return float((a @ b.T).sum())  # the rows have length 1, or 0


def references_of(facts: Iterable[Fact], known: Iterable[Fact]) -> dict[str, list[str]]:
    """What is written about the new object elsewhere: for each fact the sentences of `known` facts of the same relation
    whose true object is its target_new. Facts for which there are none have an empty list.
    """
    sentences: dict[tuple[str, str], list[str]] = {}
    for other in known:
        if other.target_true is not None:
            text = f"{other.text}{tail(other.text, other.target_true, other.glue)}."
            sentences.setdefault((other.relation, other.target_true), []).append(text)
    return {fact.id: sentences.get((fact.relation, fact.target_new), []) for fact in facts}


def free_text(
    model: EditableModel,
    facts: Iterable[Fact],
    references: Mapping[str, Sequence[str]] | None = None,
    *,
    tokens: int = 100,
    top_k: int = 5,
    seed: int = 0,
    fitted: TfidfVectorizer | None = None,
) -> pd.DataFrame:
    """Texts from each fact's `generation` openings (opening included, as ROME counts them), with GE and RS.

    Args:
        model: the model in its current state.
        facts: the facts; references: {id: texts}, as from `references_of`.
        tokens, top_k, seed: of `continuations`.
        fitted: from `vectorizer`; None: fitted on all references.

    Returns:
        A row per fact: id, relation, subject, texts (tuple), GE, RS, n (openings), n_references, short (texts with fewer
        than three words, which count as they are). NaN where a fact has no opening (GE, RS) or no references (RS).

    Raises:
        KetoolsError: no fact has an opening, or one does not fit the model's window.
    """
    facts = list(facts)
    openings = [opening for fact in facts for opening in fact.generation]
    if not openings:
        raise KetoolsError(f"none of {len(facts)} facts has openings for free text (field generation)")
    more = iter(continuations(model, openings, tokens, top_k=top_k, seed=seed))
    references = references or {}
    if fitted is None and any(references.values()):
        fitted = vectorizer(text for texts in references.values() for text in texts)
    rows = []
    for fact in facts:
        texts = tuple(_joined(opening, next(more)) for opening in fact.generation)
        wanted = references.get(fact.id, ())
        row: dict[str, object] = {"id": fact.id, "relation": fact.relation, "subject": fact.subject, "texts": texts}
        row["GE"] = generation_entropy(texts) if texts else math.nan
        row["RS"] = reference_score(texts, wanted, fitted) if texts and wanted and fitted else math.nan
        row |= {"n": len(texts), "n_references": len(wanted)}
        rows.append(row | {"short": sum(len(_WORDS.findall(text)) < 3 for text in texts)})
    return pd.DataFrame(rows)


def _joined(opening: str, more: str) -> str:
    # Tokenizers such as sentencepiece drop the space before the first word.
    return opening + (tail(opening, more) if more[:1].isalnum() else more)
