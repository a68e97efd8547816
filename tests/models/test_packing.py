"""A tree of texts gives what each text gives by itself."""

import numpy as np
import pytest

from ketools import load
from ketools.models import scoring
from ketools.models import scoring as packing
from ketools.models.scoring import packed, packs, plain, row_scores
from ketools.models.tokens import Row, make_rows
from ketools.reference import score
from tests.models import test_recurrent as recurrent
from tests.models.test_architectures import KINDS, WINDOWED, network
from tests.saying import said_once
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


@pytest.mark.filterwarnings("ignore:.*as a tree")
@pytest.mark.parametrize("width", [8, 40, 128])
def test_scores_are_those_of_each_text_by_itself(tiny_model, facts, monkeypatch, width):
    pairs = asked(facts[:12])
    rows = make_rows(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    monkeypatch.setattr(packing, "WIDTH", width)
    monkeypatch.setattr(packing, "TOKENS", 600)
    monkeypatch.setattr(packing, "LOGITS", 400 * 50)  # several batches, several blocks of logits
    assert packs(tiny_model, rows)
    logprob, hit = row_scores(tiny_model, rows)
    monkeypatch.setattr(packing, "packs", lambda *_: False)
    apart, hit_apart = row_scores(tiny_model, rows)
    lengths = np.array([len(row.target_ids) for row in rows])
    # 1e-5 of a logarithm is 1e-5 of the probability, relatively; of a logarithm near 0 it says more than a share of it.
    alone = [score(tiny_model, *pair) for pair in pairs]
    np.testing.assert_allclose(logprob / lengths, [p for p, _ in alone], rtol=0, atol=1e-5)
    np.testing.assert_allclose(apart / lengths, [p for p, _ in alone], rtol=0, atol=1e-5)
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


@pytest.mark.filterwarnings("ignore:.*as a tree")
@pytest.mark.parametrize("wanted", [True, False])
def test_a_fact_s_prompts_and_targets_share_their_beginnings(tiny_model, facts, monkeypatch, wanted):
    """Most of the tokens of plain texts never pass the model, and those of a tree pass the last MLP only where read."""
    pairs = asked(facts)
    rows = make_rows(tiny_model, [p for p, _ in pairs], [t for _, t in pairs])
    monkeypatch.setattr(packing, "packs", lambda *_: wanted)
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


def model_of(kind, tokenizer, **config):
    return load((recurrent.network if kind in recurrent.KINDS else network)(kind, **config), tokenizer=tokenizer)


def against_plain(model, pairs):
    """Scores of pairs are those of each by itself."""
    rows = make_rows(model, [p for p, _ in pairs], [t for _, t in pairs])
    logprob, hit = row_scores(model, rows)
    alone = [score(model, *pair) for pair in pairs]
    np.testing.assert_allclose(
        logprob / [len(row.target_ids) for row in rows], [p for p, _ in alone], rtol=0, atol=1e-5
    )
    assert list(hit) == [best for _, best in alone]
    return rows


@pytest.mark.parametrize("kind", [*KINDS, *recurrent.KINDS])
def test_scores_of_every_architecture_and_who_reads_no_trees_says_so(kind, tiny_tokenizer, facts, monkeypatch):
    monkeypatch.setattr(packing, "WIDTH", 40)
    monkeypatch.setattr(packing, "TOKENS_CPU", 600)
    model = model_of(kind, tiny_tokenizer)
    falls_back = {*WINDOWED, "falcon alibi", "bloom", "opt", *recurrent.KINDS}
    with said_once(rf"{model.config.model_type}, .*cannot read these texts as a tree", said=kind in falls_back):
        rows = against_plain(model, asked(facts[:4]))
    assert packs(model, rows) == (kind not in falls_back)
    with said_once("as a tree", said=False):
        row_scores(model, rows[:1])  # a single text has nothing to share


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_a_window_that_holds_every_text_leaves_trees_as_they_are(kind, tiny_tokenizer, facts):
    pairs = asked(facts[:4])
    rows = make_rows(model_of(kind, tiny_tokenizer), [p for p, _ in pairs], [t for _, t in pairs])
    longest = max(len(row.ids) for row in rows)
    for window in (longest, longest - 1):
        model = model_of(kind, tiny_tokenizer, sliding_window=window)
        assert packs(model, rows) == (window == longest)
        with said_once("as a tree", said=window < longest):
            against_plain(model, pairs)
    assert max(map(len, packed(rows).tokens)) > longest


def test_other_architectures_and_attentions_read_plain_texts(tiny_gpt2):
    assert packs(tiny_gpt2, [])
    tiny_gpt2.model.config._attn_implementation = "flash_attention_2"
    assert not packs(tiny_gpt2, [])
    tiny_gpt2.model.config._attn_implementation = "sdpa"
    tiny_gpt2.model.config.model_type = "bloom"
    assert not packs(tiny_gpt2, [])
