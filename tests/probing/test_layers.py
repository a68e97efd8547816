"""The layer picker: its evidence, its rule, and weights that are as before."""

import numpy as np
import pandas as pd
import pytest
import torch

from ketools import Fact, KetoolsError
from ketools.probing.layers import choose, suggest
from tests.models.test_architectures import statistics_of

FAST = {"steps": 3, "prefix_count": 1, "prefix_tokens": 2}


@pytest.fixture
def facts(tiny_gpt2, known_facts):
    return [
        Fact(f.id, f.relation, f.prompt, f.subject, f.target_true, f.target_new, paraphrases=(f"{f.subject} is in",))
        for f in known_facts(tiny_gpt2)
    ]


@pytest.mark.parametrize("how", ["memit", "ft-l"])
def test_the_evidence_tells_of_every_layer_and_weights_are_as_before(tiny_gpt2, facts, how):
    before = [weight.clone() for weight in tiny_gpt2.model.parameters()]
    given = {"statistics": statistics_of(tiny_gpt2, range(4)), **FAST} if how == "memit" else {"ft_steps": 2}
    heard = []
    got = suggest(tiny_gpt2, facts, how, count=2, trials=2, progress=heard.append, **given)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_gpt2.model.parameters())) and not tiny_gpt2.edits
    frame = got.evidence
    assert frame["layer"].tolist() == [0, 1, 2, 3] and len(got.layers) == 2 and sum(heard) == 8
    assert frame.loc[frame["suggested"], "layer"].tolist() == list(got.layers)
    assert (frame["traced_low"] <= frame["traced"]).all() and (frame["traced"] <= frame["traced_high"]).all()
    assert (frame["update"] > 0).all() and (frame["tried"] == 2).all() and frame["NS"].isna().all()
    assert frame[["ES", "PS", "S", "score"]].notna().all(axis=None)
    assert frame.attrs["method"] == how and frame.attrs["facts"] == len(facts) and frame.attrs["count"] == 2


def test_layers_without_statistics_are_not_suggested(tiny_gpt2, facts):
    got = suggest(tiny_gpt2, facts, "memit", count=1, trials=1, statistics=statistics_of(tiny_gpt2, [2]), **FAST)
    assert got.layers == (2,)
    assert got.evidence["tried"].isna().tolist() == [True, True, False, True]
    assert got.evidence.loc[got.evidence["layer"] != 2, "score"].isna().all()


def test_tracing_alone(tiny_gpt2, facts):
    got = suggest(tiny_gpt2, facts, count=1, trials=0)
    assert got.layers == (int(got.evidence["traced"].idxmax()),) and got.evidence["ES"].isna().all()


def test_the_neighbours_with_the_largest_sum_win_and_of_equals_the_earliest():
    def chosen(traced, s, starts, count):
        return choose(pd.Series(traced, dtype=float), pd.Series(s, dtype=float), starts, count)[1]

    assert chosen([0.1, 0.4, 0.2, 0.3], [1, 1, 1, 1], [0, 1, 2], 2) == (1, 2)
    assert chosen([0.1, 0.4, 0.2, 0.3], [1, 0, 1, 1], [0, 1, 2], 2) == (2, 3)
    assert chosen([0.2, 0.2, 0.2, -5], [1, 1, 1, 1], [0, 1, 2], 2) == (0, 1)
    assert chosen([-1, -1, -1], [0.1, 0.5, 0.2], [0, 1, 2], 1) == (1,)
    assert chosen([0.1, 0.3, 0.2], [np.nan] * 3, [0, 1, 2], 1) == (1,)
    assert chosen([0.9, 0.3, 0.2], [np.nan, 1, 0.5], [1], 2) == (1, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 5}, "count=5"),
        ({"trials": -1}, "trials=-1"),
        ({}, "covariance.safetensors"),
        ({"how": "unknown"}, "unknown"),
    ],
)
def test_mistakes_are_named(tiny_gpt2, facts, settings, said):
    with pytest.raises(KetoolsError, match=said):
        suggest(tiny_gpt2, facts, **settings)
    with pytest.raises(KetoolsError, match="no facts"):
        suggest(tiny_gpt2, [], trials=0)


def test_too_few_statistics_in_a_row(tiny_gpt2, facts):
    with pytest.raises(KetoolsError, match=r"layers \[0, 2\] hold no 2 neighbouring"):
        suggest(tiny_gpt2, facts, "memit", count=2, statistics=statistics_of(tiny_gpt2, [0, 2]))
