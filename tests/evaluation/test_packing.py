"""A tree of texts gives what each text gives by itself."""

import numpy as np
import pytest

from ketools.evaluation import packing
from ketools.evaluation.packing import packed, packs, plain, row_scores
from ketools.prompts import Row, make_rows, target_logprobs

TEXTS = [(1, 2, 3), (1, 2, 4, 5), (1, 2), (7, 8), (1, 2, 3)]


def rows_of(texts) -> list[Row]:
    return [Row(text, None, (len(text) - 1,), (9,)) for text in texts]


def test_shared_beginnings_are_laid_out_once():
    tree = packed(rows_of(TEXTS))
    assert tree.tokens == [[1, 2, 3, 4, 5, 7, 8]]
    assert tree.parents == [[-1, 0, 1, 1, 3, -1, 5]]
    assert [reads[0] for reads in tree.reads] == [(0, 2), (0, 4), (0, 1), (0, 6), (0, 2)]


def test_a_full_sequence_begins_the_next_with_the_whole_text():
    tree = packed(rows_of(TEXTS), width=4)
    assert tree.tokens == [[1, 2, 3], [1, 2, 4, 5], [7, 8]]
    assert [reads[0] for reads in tree.reads] == [(0, 2), (1, 3), (0, 1), (2, 1), (0, 2)]


@pytest.mark.parametrize("width", [1, 3, 7, 64])
def test_every_text_can_be_read_off_the_tree(width):
    draw = np.random.default_rng(0)
    texts = [tuple(map(int, draw.integers(0, 3, size=draw.integers(1, 9)))) for _ in range(60)]
    tree = packed(rows_of(texts), width)
    assert max(map(len, tree.tokens)) <= max(width, 8)
    for text, [(s, t)] in zip(texts, tree.reads, strict=True):
        back = []
        while t >= 0:
            back.append(tree.tokens[s][t])
            t = tree.parents[s][t]
        assert tuple(reversed(back)) == text


def test_plain_texts_are_read_once():
    flat = plain(rows_of(TEXTS))
    assert flat.tokens == [[1, 2, 3], [1, 2, 4, 5], [1, 2], [7, 8]]
    assert flat.parents is None


@pytest.mark.parametrize("width", [8, 40, 128])
def test_scores_are_those_of_each_text_by_itself(tiny_model, facts, monkeypatch, width):
    pairs = [
        (p, t) for f in facts for p in (f.text, *f.paraphrases, *f.neighbours) for t in (f.target_true, f.target_new)
    ]
    rows = make_rows(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    monkeypatch.setattr(packing, "WIDTH", width)
    monkeypatch.setattr(packing, "TOKENS", 600)
    monkeypatch.setattr(packing, "LOGITS", 400 * 50)  # several batches, several blocks of logits
    assert packs(tiny_model)
    logprob, hit = row_scores(tiny_model, rows)
    monkeypatch.setattr(packing, "packs", lambda model: False)
    alone, hit_alone = row_scores(tiny_model, rows)
    mean, argmax = target_logprobs(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    lengths = np.array([len(row.target_ids) for row in rows])
    np.testing.assert_allclose(alone / lengths, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logprob, alone, rtol=1e-5, atol=1e-5)
    assert (hit == hit_alone).all()
    assert (hit == argmax).all()
    assert lengths.max() > 1


def test_other_architectures_and_attentions_read_plain_texts(tiny_gpt2):
    assert packs(tiny_gpt2)
    tiny_gpt2.model.config.model_type = "bloom"
    assert not packs(tiny_gpt2)
