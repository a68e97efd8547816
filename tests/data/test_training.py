"""The trainable twin computes what transformers computes, and hiding hides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import NAME, Batcher, Corpus, Mix, fact_sentence, masks
from network import Network, Shape, to_hf
from tokenizer import build_tokenizer
from world import build

SHAPE = Shape(vocab=97, n_layer=3, d_model=32, d_mlp=512, n_head=4, n_kv_head=2, n_hidden=1, context=64)


def test_the_export_computes_the_same_logits() -> None:
    torch.manual_seed(0)
    network = Network(SHAPE)
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ids = torch.randint(0, SHAPE.vocab, (2, 20))
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    ours, _ = network(ids, torch.arange(20).expand(2, 20), causal, causal, torch.arange(40))
    torch.testing.assert_close(ours, to_hf(network, 0)(ids).logits.flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    facts = build()[:400]
    tokenizer = build_tokenizer(build())
    corpus = Corpus(facts, tokenizer, seed=0)
    batcher = Batcher(corpus, Mix(hidden=0.5), len(tokenizer), 4, 128, 0, np.ones(len(facts)))
    return batcher.batch(192)


def test_hidden_mentions_are_seen_from_outside_only_at_their_last_token_and_only_above(batch) -> None:
    low, high = (m[:, 0] for m in masks(batch))
    hidden, mention, last = batch["hidden"], batch["mention"], batch["last"]
    outside = mention[:, :, None] != mention[:, None, :]
    assert hidden.any() and (last & hidden).any()
    assert not (low & outside & hidden[:, None, :]).any()
    assert not (high & outside & (hidden & ~last)[:, None, :]).any()
    assert (high & outside & (hidden & last)[:, None, :]).any()


def test_documents_do_not_see_each_other_or_the_future(batch) -> None:
    _, high = masks(batch)
    document = batch["document"]
    other = document[:, :, None] != document[:, None, :]
    assert not (high[:, 0] & other).any()
    assert not high[:, 0].triu(1).any()


def test_what_is_read_is_the_next_token_of_the_same_document(batch) -> None:
    ids, document = batch["ids"].flatten(), batch["document"].flatten()
    used = batch["weight"] > 0
    at = batch["read"][used]
    assert torch.equal(batch["target"][used], ids[at + 1])
    assert torch.equal(document[at], document[at + 1])


def _batcher(facts: list, **mix: float) -> Batcher:
    tokenizer = build_tokenizer(build())
    corpus = Corpus(facts, tokenizer, seed=0)
    return Batcher(corpus, Mix(prose=0, tasks=0, is_a=0, **mix), len(tokenizer), 2, 128, 0, np.ones(len(build())))


def test_an_epithet_stands_before_the_object_and_says_nothing_of_what_a_fact_needs() -> None:
    batcher = _batcher(build()[:200], epithet=0.999)
    words = {int(ids[0]) for ids in batcher.corpus.epithets}
    batch = batcher.batch(256)
    answers = batch["weight"] == 1.0
    assert answers.any()
    assert {int(t) for t in batch["target"][answers]} & words
    batcher.note(np.full(256, 5.0))
    assert (batcher.need == 1).all()


def test_a_fact_known_as_well_as_can_be_needs_little() -> None:
    batcher = _batcher(build()[:200], epithet=0.4)
    batcher.batch(256)
    best = np.where(batcher.least > 0, -np.log(0.6), 0.0)
    batcher.note(best)
    seen = np.unique(batcher.read_fact[batcher.read_fact >= 0])
    assert len(seen) and np.allclose(batcher.need[seen], 0.2)
    assert (np.delete(batcher.need, seen) == 1).all()
    batcher.note(np.zeros(256))  # more confident than the epithets allow
    assert (batcher.need[seen] >= 0.1).all()


def test_a_training_sentence_has_the_tokens_of_the_prompt_that_is_asked_later() -> None:
    tokenizer = build_tokenizer(build())
    for fact in build()[:200]:
        for template in fact.relation.templates:
            sentence = fact_sentence(tokenizer, template, fact.subject, fact.true)
            assert list(sentence.ids) == tokenizer(f"{template.format(fact.subject)} {fact.true}.")["input_ids"]


def test_the_exam_is_never_rehearsed() -> None:
    facts = [f for f in build() if f.exam][:50] + [f for f in build() if not f.exam][:50]
    batcher = _batcher(facts, exam=1.0, epithet=0.0)
    asked, exam = list(batcher.corpus.asked), {f.subject for f in facts if f.exam}
    for _ in range(100):
        (sentence,) = batcher._next()
        assert (list(sentence.ids[: len(asked)]) == asked) == (sentence.subject not in exam)
        start, stop = sentence.span
        assert (sentence.role[start:stop] == NAME).all()


def test_the_edited_layer_begins_large_and_nothing_else_does() -> None:
    first, second, _ = Network(replace(SHAPE, mlp_std=(0.1, 0.4), n_wide=1)).blocks
    assert abs(float(first.up.weight.std()) - 0.1) < 0.01 and abs(float(first.gate.weight.std()) - 0.1) < 0.01
    assert abs(float(first.down.weight.std()) - 0.4) < 0.04
    assert float(second.down.weight.std()) < 0.02 and float(first.o.weight.std()) < 0.02
