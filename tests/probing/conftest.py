"""Facts that a model knows, made of what it says."""

import pytest
import torch

from ketools import Fact
from ketools.models.scoring import score_pairs


@pytest.fixture
def known_facts(tiny_facts):
    """A function of a model: the tiny facts with, as target_true, the most probable next token that has a text."""

    def make(model):
        found = []
        for fact in tiny_facts:
            ids = model.tokenizer(fact.text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                best = model.model(ids).logits[0, -1].argsort(descending=True).tolist()
            found += _known(model, fact, best)
        assert len(found) >= 3, "too few facts to test with"
        return found

    return make


def _known(model, fact, best):
    text = model.tokenizer.decode([best[0]]).strip()
    if text and text != fact.target_new and text.isprintable():
        made = Fact(fact.id, fact.relation, fact.prompt, fact.subject, text, fact.target_new)
        if score_pairs(model, [(made.text, text)])[1].all():
            return [made]
    return []
