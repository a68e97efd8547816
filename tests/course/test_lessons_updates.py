"""The plain formulas of lessons 04 and 05 against each other and against the package's."""

import math

import pytest
import torch

from ketools.course.lessons import nb04, nb05, trades
from ketools.course.lessons.keys import moved
from ketools.editing.update import Protection, least_squares, null_space
from ketools.norms.drift import KeyBasis
from ketools.plots.style import words
from ketools.reference.update import memit


@pytest.fixture
def given():
    keys, residuals, covariance = nb04.problem(5, d_model=4, d_mlp=12, n=3)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return keys, residuals, weight, covariance


@pytest.fixture
def basis(given):
    values, vectors = torch.linalg.eigh(given[3])
    return KeyBasis(values, vectors, 5, float(values[5]))


def test_trade_off_is_the_closed_form_measured(given):
    keys, residuals, weight, covariance = given
    unit = covariance.trace() / len(covariance)
    forms = {trades.C_LINE: covariance, trades.FLAT_LINE: unit * torch.eye(12, dtype=torch.float64)}
    for row in trades.trade_off(keys, residuals, weight, covariance, [0.2, 7.0]).itertuples():
        delta = memit(forms[row.line], keys, residuals, row.dial)
        assert math.isclose(row.missed, float((delta @ keys - residuals).norm() / residuals.norm()), rel_tol=1e-9)
        assert math.isclose(row.moved, moved(delta, weight, covariance), rel_tol=1e-9)


def test_closed_forms_are_the_packages(given, basis):
    keys, residuals, _, covariance = given
    left, right = least_squares(Protection(3.0 * covariance), keys, residuals)
    assert torch.allclose(left @ right.T, memit(covariance, keys, residuals, 3.0))
    left, right = least_squares(Protection(covariance), keys, residuals, 0.0)
    assert torch.allclose(left @ right.T, nb05.exact_update(keys, residuals, covariance))
    u = null_space(covariance, basis.threshold)
    left, right = least_squares(Protection(0.7 * torch.eye(5, dtype=torch.float64), u), keys, residuals)
    mine = trades.null_update(keys, residuals, basis.vectors[:, :5], 0.7)
    assert torch.allclose(left @ right.T, mine[0] @ mine[1].T)


def test_null_trade_off_moves_nothing_that_is_protected(given, basis):
    keys, residuals, weight, covariance = given
    frame = trades.null_trade_off(keys, residuals, weight, covariance, basis, [3, 5, 12], 1e-3)
    assert frame["missed"].is_monotonic_decreasing
    left, right = trades.null_update(keys, residuals, basis.vectors[:, :5], 1e-3)
    assert moved(left @ right.T, weight, nb05.strong_part(basis)) < 1e-9 < frame["moved"].min()


def test_an_update_as_an_edit_is_the_same_update(given):
    keys, residuals, _, covariance = given
    delta = memit(covariance, keys, residuals, 1.0)
    assert torch.allclose(nb04.as_edit(2, delta, 3).delta(2), delta, atol=1e-5)


def test_figures_say_what_they_show(given, basis):
    keys, residuals, weight, covariance = given
    frame = trades.trade_off(keys, residuals, weight, covariance, [0.1, 1.0, 10.0])
    assert "without the covariance" in words(nb04.bargain(frame, 1.0, "Mode."))["finding"]
    share = float(basis.values[:5].sum() / basis.values.sum())
    assert f"5 of 12 directions, with {share:.0%}" in words(nb05.spectrum_lines(basis, keys, "Mode."))["finding"]


def test_dials_turn_over_their_whole_range(given, basis):
    keys, residuals, weight, covariance = given
    frame = trades.turned(keys, residuals, weight, covariance, basis, 2.0, 0.1)
    priced, ruled = (frame[frame["line"] == line] for line in (trades.C_LINE, trades.NULL_LINE))
    assert set(frame["line"]) == {trades.C_LINE, trades.NULL_LINE}
    assert priced["dial"].min() == pytest.approx(2e-4) and priced["dial"].max() == pytest.approx(2e3)
    assert basis.null in set(ruled["dial"]) and ruled["dial"].max() == len(covariance)
    assert priced["missed"].is_monotonic_increasing and ruled["missed"].is_monotonic_decreasing
