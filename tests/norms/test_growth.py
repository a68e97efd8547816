"""The law by which a norm grows is found where it is known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ketools import KetoolsError
from ketools.norms.weights import growth

EDITS = np.arange(0, 1001, 50)


def by_law(exponent, first=10.0, scale=0.3, noise=0.0):
    e = scale * EDITS.astype(float) ** exponent
    e = e * np.exp(noise * np.random.default_rng(0).standard_normal(len(EDITS)))
    return pd.Series(np.sqrt(first**2 + e**2), index=EDITS)


@given(st.floats(0.2, 1.4), st.floats(0.01, 5.0), st.floats(0.5, 20.0))
def test_a_power_law_is_found_exactly(exponent, scale, first):
    found = growth(by_law(exponent, first, scale))
    assert found["exponent"] == pytest.approx(exponent, abs=1e-4)
    assert found["scale"] == pytest.approx(scale, rel=1e-3)
    assert found["exponent_low"] <= found["exponent"] <= found["exponent_high"]
    assert (found["n"], found["excluded"]) == (20, 0)


@pytest.mark.parametrize(
    ("exponent", "law", "best"),
    [(0.5, "linear in sqrt(n)", "r2_sqrt"), (1.0, "linear in n", "r2_linear"), (0.25, "power law", None)],
)
def test_the_law_is_named(exponent, law, best):
    found = growth(by_law(exponent, noise=0.02))
    assert found["law"] == law
    if best is not None:
        assert found[best] == max(found["r2_sqrt"], found["r2_linear"]) > 0.9
    wide = growth(by_law(exponent, noise=0.02), level=0.999)
    assert wide["exponent_high"] - wide["exponent_low"] > found["exponent_high"] - found["exponent_low"]


def test_a_random_walk_is_linear_in_sqrt_n_and_one_direction_linear_in_n():
    draw = np.random.default_rng(1)
    start = draw.standard_normal((40, 60))
    walk = np.concatenate([np.zeros((1, 40, 60)), draw.standard_normal((60, 40, 60))]).cumsum(0)
    assert abs(growth([np.linalg.norm(start + step) for step in walk])["exponent"] - 0.5) < 0.05
    push = draw.standard_normal((40, 60))
    push -= start * (push * start).sum() / (start * start).sum()  # without a direction in common with the start
    straight = growth([np.linalg.norm(start + k * push) for k in range(20)])
    assert straight["exponent"] == pytest.approx(1.0, abs=1e-6)
    assert straight["law"] == "linear in n"


def test_the_interval_is_student_s_on_the_line_in_logarithms():
    series = by_law(0.7, noise=0.1)
    e = np.sqrt(series.to_numpy()[1:] ** 2 - 100.0)
    x, y = np.log(EDITS[1:]), np.log(e)
    slope, _ = np.polyfit(x, y, 1)
    rest = y - np.polyval(np.polyfit(x, y, 1), x)
    error = math.sqrt((rest**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, len(x) - 2) * error
    found = growth(series)
    assert found["exponent"] == pytest.approx(slope)
    assert found["exponent_high"] - found["exponent"] == pytest.approx(half)


def test_growth_per_edit():
    found = growth(pd.Series([10.0, 12.0, 13.0, 13.5, 13.5], index=[0, 100, 200, 300, 400]))
    assert found["per_edit"] == pytest.approx(3.5 / 400 / 10)
    assert found["per_edit_last"] == 0.0


def test_points_without_growth_are_counted_and_a_flat_norm_has_no_law():
    found = growth(pd.Series([10.0, 9.0, 11.0, math.nan, 12.0, 13.0], index=[0, 10, 20, 30, 40, 50]))
    assert (found["n"], found["excluded"]) == (3, 2)
    flat = growth([5.0] * 6)
    assert (flat["law"], flat["n"], flat["per_edit"]) == ("none", 0, 0.0)
    assert math.isnan(flat["exponent"])
    one = growth([5.0, 6.0])  # a run of one batch
    assert (one["law"], one["n"], one["per_edit"]) == ("undecided", 1, pytest.approx(0.2))
    two = growth([5.0, 6.0, 7.0])
    assert math.isnan(two["exponent_low"]) and two["law"] == "undecided" and two["exponent"] > 0


def test_mistakes_are_named():
    with pytest.raises(KetoolsError, match="got 1 points"):
        growth([1.0])
    with pytest.raises(KetoolsError, match="first norm is nan"):
        growth([math.nan, 2.0])
    with pytest.raises(KetoolsError, match="rise from 0"):
        growth(pd.Series([1.0, 2.0], index=[10, 20]))
    with pytest.raises(KetoolsError, match="level=95"):
        growth([1.0, 2.0], level=95)
