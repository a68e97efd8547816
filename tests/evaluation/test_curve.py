"""Targets against natural states, and the overfitting curve: by hand, and on a tiny model."""

import math
from dataclasses import replace

import pytest
import torch

from ketools import KetoolsError
from ketools.editing.methods import MPES, FixedSteps, scaled
from ketools.editing.targets import Targets, compute_targets
from ketools.evaluation.edits import overfitting_curve
from ketools.norms.residual import subject_sample


@pytest.fixture
def found():
    """Three facts: stopped in the third, the first and the second pass."""
    nan = math.nan
    return Targets(
        z=torch.tensor([[3.0, 4.0], [0.0, 2.0], [6.0, 8.0]]),
        h0=torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]]),
        delta_norm=torch.tensor([4.5, 0.0, 6.7]),
        steps=torch.tensor([2, 0, 1]),
        p_target=torch.tensor([0.9, 0.7, 0.5]),
        loss=torch.tensor([0.1, 0.4, 0.7]),
        trace=torch.tensor([[0.1, 0.4, 0.9], [0.7, nan, nan], [0.2, 0.5, nan]]),
        known=torch.tensor([False, True, False]),
    )


def test_the_curve_by_hand(found):
    curve = overfitting_curve(found)
    assert curve["p_mean"].to_numpy() == pytest.approx([1.0 / 3, (0.4 + 0.7 + 0.5) / 3, (0.9 + 0.7 + 0.5) / 3])
    assert curve["median"].to_numpy() == pytest.approx([0.2, 0.5, 0.7])
    assert curve["running"].to_numpy() == pytest.approx([1, 2 / 3, 1 / 3])
    assert (curve["n"] == 3).all()


def test_on_a_model(tiny_model, tiny_facts):
    hyper = replace(scaled("memit"), layers=(1,), steps=6)
    got = compute_targets(tiny_model, tiny_facts, ["", "You sang. "], FixedSteps(), hyper)
    sample = subject_sample(tiny_model, tiny_facts)
    for ids, (at,), h0 in zip(sample.ids, sample.reads, got.h0, strict=True):
        with torch.no_grad():
            natural = tiny_model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, at]
        assert torch.allclose(natural, h0, atol=1e-4), "not the place where targets are written"
    last = got.trace[torch.arange(len(tiny_facts)), got.steps]
    assert last.numpy() == pytest.approx(got.p_target.numpy(), rel=1e-6)
    curve = overfitting_curve(got)
    assert len(curve) == 6 and curve["p_mean"].is_monotonic_increasing
    early = compute_targets(tiny_model, tiny_facts, ["", "You sang. "], MPES(0), hyper)
    assert overfitting_curve(early)["running"].iloc[-1] < 1


def test_a_trace_with_nan_is_left_out_and_counted(found):
    found.trace[1, 0] = math.nan
    curve = overfitting_curve(found)
    assert (curve["n"] == 2).all() and (curve["excluded"] == 1).all()
    assert curve["p_mean"].iloc[0] == pytest.approx(0.15)
    found.trace[:, 0] = math.nan
    with pytest.raises(KetoolsError, match="none of 3 traces"):
        overfitting_curve(found)
    assert found.trace[0, 0].isnan(), "the record must not be written to"
