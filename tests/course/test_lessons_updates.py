"""The plain formulas of lessons 04 and 05 against each other and against the package's."""

import math

import pytest
import torch

from ketools.course.lessons import nb04, nb05, trades
from ketools.course.lessons.keys import moved
from ketools.editing.update import Protection, least_squares, null_space
from ketools.plots.style import words
from ketools.reference.update import alphaedit, emmet, memit, null_space_projection


@pytest.fixture
def given():
    keys, residuals, covariance = nb04.problem(5, d_model=4, d_mlp=12, n=3)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return keys, residuals, weight, covariance


def test_trade_off_is_the_closed_form_measured(given):
    keys, residuals, weight, covariance = given
    unit = covariance.trace() / len(covariance)
    forms = {trades.C_LINE: covariance, trades.FLAT_LINE: unit * torch.eye(12, dtype=torch.float64)}
    for row in trades.trade_off(keys, residuals, weight, covariance, [0.2, 7.0]).itertuples():
        delta = memit(forms[row.line], keys, residuals, row.dial)
        assert math.isclose(row.missed, float((delta @ keys - residuals).norm() / residuals.norm()), rel_tol=1e-9)
        assert math.isclose(row.moved, moved(delta, weight, covariance), rel_tol=1e-9)


def test_closed_forms_are_the_packages(given):
    keys, residuals, _, covariance = given
    left, right = least_squares(Protection(3.0 * covariance), keys, residuals)
    assert torch.allclose(left @ right.T, memit(covariance, keys, residuals, 3.0))
    left, right = least_squares(Protection(covariance), keys, residuals, 0.0)
    assert torch.allclose(left @ right.T, emmet(covariance, keys, residuals))
    threshold = float(torch.linalg.eigvalsh(covariance)[4:6].mean())  # five directions are free
    u = null_space(covariance, threshold)
    left, right = least_squares(Protection(0.7 * torch.eye(5, dtype=torch.float64), u), keys, residuals)
    published = alphaedit(null_space_projection(covariance, threshold), keys, residuals, 0.7)
    assert torch.allclose(left @ right.T, published)


def test_null_trade_off_is_alphaedit_measured(given):
    keys, residuals, weight, covariance = given
    u = torch.linalg.eigh(covariance).eigenvectors[:, :5]
    frame = trades.null_trade_off(keys, residuals, weight, covariance, u, [1e-3, 0.7, 9.0], trades.NULL_LINE)
    assert frame["missed"].is_monotonic_increasing and frame["moved"].is_monotonic_decreasing
    delta = alphaedit(u @ u.T, keys, residuals, 0.7)
    assert frame["missed"][1] == pytest.approx(float((delta @ keys - residuals).norm() / residuals.norm()))
    assert frame["moved"][1] == pytest.approx(moved(delta, weight, covariance))
    halfway = (frame["missed"][0] + frame["missed"][1]) / 2
    found = trades.moved_at(frame, trades.NULL_LINE, halfway)
    assert found == pytest.approx((frame["moved"][0] + frame["moved"][1]) / 2)


def test_an_update_as_an_edit_is_the_same_update(given):
    keys, residuals, _, covariance = given
    delta = memit(covariance, keys, residuals, 1.0)
    assert torch.allclose(nb04.as_edit(2, delta, 3).delta(2), delta, atol=1e-5)


def test_figures_say_what_they_show(given):
    keys, residuals, weight, covariance = given
    frame = trades.trade_off(keys, residuals, weight, covariance, [0.1, 1.0, 10.0])
    assert "without the covariance" in words(nb04.bargain(frame, 1.0, "Mode."))["finding"]
    values, vectors = torch.linalg.eigh(covariance)
    share = float(values[:5].sum() / values.sum())
    finding = words(nb05.spectrum_lines(values, vectors, keys, 5, "Mode."))["finding"]
    assert "5 of 12 directions" in finding and f"{share:.0%} of background text" in finding
