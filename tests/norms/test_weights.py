"""Norms of the edited matrices and the rule for "still growing"."""

import math

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.norms.weights import frobenius, growing, norms


def test_norms_are_those_of_the_stored_matrices(tiny_gpt2):
    before = norms(tiny_gpt2)
    for layer, norm in before.items():
        assert norm == pytest.approx(np.linalg.norm(tiny_gpt2.mlp_out(layer).weight.double().numpy()), rel=1e-12)
    tiny_gpt2.weight(1).mul_(3.0)
    frame = frobenius(tiny_gpt2, before, edited={1}).set_index("layer")
    assert frame.loc[1, "ratio"] == pytest.approx(3.0, rel=1e-6)
    assert (frame.drop(index=1)["ratio"] == 1.0).all()
    assert list(frame["edited"]) == [layer == 1 for layer in frame.index]
    module = tiny_gpt2.model.get_submodule(frame.loc[1, "matrix"])
    assert module is tiny_gpt2.mlp_out(1)


def test_without_a_baseline_there_is_no_ratio_and_without_edits_nothing_is_edited(tiny_gpt2):
    frame = frobenius(tiny_gpt2)
    assert frame["ratio"].isna().all()
    assert not frame["edited"].any()


def test_a_baseline_that_lacks_a_layer_is_refused(tiny_gpt2):
    with pytest.raises(KetoolsError, match=r"layers \[0\]"):
        frobenius(tiny_gpt2, {layer: norm for layer, norm in norms(tiny_gpt2).items() if layer})


@pytest.mark.parametrize(
    ("series", "answer"),
    [
        ([1.0, 1.1, 1.2, 1.3, 1.4], True),
        ([1.0, 1.3, 1.4, 1.4, 1.405], False),  # 0.4% over the last quarter
        ([1.0, 2.0, 2.0, 2.0, 1.5], False),
        ([1.0, 1.0], False),
        ([1.0, math.inf], True),
        ([1.0, math.nan], True),
    ],
)
def test_growing(series, answer):
    assert growing(series) is answer


def test_growing_reads_the_edits_from_the_index():
    # Flat from 800 on; by position the last quarter would be 600 to 1,000.
    series = pd.Series([1.0, 1.5, 2.0, 2.0, 2.0], index=[0, 100, 700, 800, 1000])
    assert not growing(series)
    assert growing(pd.Series([1.0, 1.0, 2.0], index=[0, 750, 1000]))
    with pytest.raises(KetoolsError, match="1 points"):
        growing([1.0])
