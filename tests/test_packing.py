"""A tree of texts gives what each text gives by itself."""

import numpy as np
import pytest

from ketools import packing, scoring
from ketools.packing import packed, packs, plain, row_scores
from ketools.prompts import Row, make_rows
from tests.reference.plain_scores import plain_score
from tests.small_world import small_facts


@pytest.fixture
def facts():
    """Forty facts with paraphrases and neighbours."""
    return small_facts()


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


def test_plain_texts_are_read_once_and_beginnings_in_what_they_begin():
    flat = plain(rows_of(TEXTS))
    assert flat.tokens == [[7, 8], [1, 2, 4, 5], [1, 2, 3]]
    assert flat.parents is None
    assert [reads[0] for reads in flat.reads] == [(2, 2), (1, 3), (2, 1), (0, 1), (2, 2)]


def asked(facts) -> list[tuple[str, str]]:
    return [
        (p, t) for f in facts for p in (f.text, *f.paraphrases, *f.neighbours) for t in (f.target_true, f.target_new)
    ]


@pytest.mark.parametrize("width", [8, 40, 128])
def test_scores_are_those_of_each_text_by_itself(tiny_model, facts, monkeypatch, width):
    pairs = asked(facts[:12])
    rows = make_rows(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    monkeypatch.setattr(packing, "WIDTH", width)
    monkeypatch.setattr(packing, "TOKENS", 600)
    monkeypatch.setattr(packing, "LOGITS", 400 * 50)  # several batches, several blocks of logits
    assert packs(tiny_model)
    logprob, hit = row_scores(tiny_model, rows)
    monkeypatch.setattr(packing, "packs", lambda model: False)
    apart, hit_apart = row_scores(tiny_model, rows)
    lengths = np.array([len(row.target_ids) for row in rows])
    alone = [plain_score(tiny_model, *pair) for pair in pairs]
    np.testing.assert_allclose(logprob / lengths, [p for p, _ in alone], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(apart / lengths, [p for p, _ in alone], rtol=1e-5, atol=1e-5)
    assert list(hit) == list(hit_apart) == [best for _, best in alone]
    assert lengths.max() > 1


def test_pairs_are_scored_once_and_come_back_in_their_order(tiny_gpt2, facts, monkeypatch):
    pairs, passed = 2 * asked(facts[:6]), []
    seen = scoring.row_scores
    monkeypatch.setattr(scoring, "row_scores", lambda model, rows: passed.extend(rows) or seen(model, rows))
    once, _ = scoring.score_pairs(tiny_gpt2, pairs)
    assert len(passed) == len(set(pairs)) < len(pairs)
    back, _ = scoring.score_pairs(tiny_gpt2, pairs[::-1])
    np.testing.assert_allclose(back[::-1], once, rtol=1e-6)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_fact_s_prompts_and_targets_share_their_beginnings(tiny_model, facts, monkeypatch, wanted):
    """Most of the tokens of plain texts never pass the model, and those of a tree pass the last MLP only where read."""
    pairs = asked(facts)
    rows = make_rows(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    monkeypatch.setattr(packing, "packs", lambda model: wanted)
    through = {0: 0, 3: 0}

    def count(layer):
        def hook(module, args):
            through[layer] += args[0].shape[:-1].numel()

        return hook

    handles = [tiny_model.mlp_out(layer).register_forward_pre_hook(count(layer)) for layer in through]
    row_scores(tiny_model, rows)
    for handle in handles:
        handle.remove()
    plain_tokens = sum(len(row.ids) for row in rows)
    if wanted:
        assert through[0] < 0.5 * plain_tokens
        reads = {(row.ids[: at + 1]) for row in rows for at in row.target_positions}
        assert len(reads) <= through[3] < 0.6 * through[0]
    else:
        assert through[0] == through[3] < plain_tokens


def test_other_architectures_and_attentions_read_plain_texts(tiny_gpt2):
    assert packs(tiny_gpt2)
    tiny_gpt2.model.config.model_type = "bloom"
    assert not packs(tiny_gpt2)
