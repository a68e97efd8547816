"""Spectra: factored against dense, the Gram side against LAPACK, the numbers against their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools import KetoolsError
from ketools.editing.covariance import Statistics
from ketools.editing.edit import Edit
from ketools.editing.update import null_space
from ketools.norms import weights as module
from ketools.norms.drift import alignment, key_bases
from ketools.norms.weights import (
    accumulated,
    shape_of,
    singular_values,
    spectra,
    update_spectra,
    update_values,
)


def factors(seed, d_model, d_mlp, rank, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(d, rank, generator=generator, dtype=torch.float64).to(dtype) for d in (d_model, d_mlp))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 20), st.integers(1, 25))
def test_factored_equals_dense(seed, d_model, d_mlp, rank):
    left, right = factors(seed, d_model, d_mlp, rank)
    dense = np.linalg.svd((left.double() @ right.double().T).numpy(), compute_uv=False)
    got = update_values(left, right).numpy()
    assert got.shape == (min(rank, d_model, d_mlp),)
    assert np.allclose(got, dense[: len(got)], atol=1e-12 * dense[0], rtol=1e-12)
    assert np.allclose(dense[len(got) :], 0, atol=1e-12 * dense[0])


@pytest.mark.parametrize("shape", [(30, 70), (70, 30)])
def test_the_gram_side_equals_the_matrix_itself(shape, monkeypatch):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direct = singular_values(matrix)
    monkeypatch.setattr(module, "DIRECT", 8)
    gram = singular_values(matrix)
    assert direct.dtype == gram.dtype == torch.float64
    assert torch.allclose(direct, gram, rtol=1e-10)
    assert (gram.diff() <= 0).all()


def test_the_gram_side_is_honest_to_half_the_digits(monkeypatch):
    u, v = (torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0] for _ in range(2))
    known = torch.logspace(0, -6, 20, dtype=torch.float64)
    monkeypatch.setattr(module, "DIRECT", 8)
    assert torch.allclose(singular_values((u * known) @ v.T), known, rtol=1e-3)


@pytest.mark.slow
def test_a_matrix_of_eight_billion_parameters_needs_no_full_svd(monkeypatch):
    # A 4,096 x 14,336 matrix in miniature: the product must have the smaller side, and no vectors may be asked for.
    sides = []
    whole = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: sides.append(tuple(gram.shape)) or whole(gram))
    for name in ("svd", "svdvals", "eigh"):
        monkeypatch.delattr(torch.linalg, name)
    matrix = torch.randn(1100, 3850)
    values = singular_values(matrix)
    assert sides == [(1100, 1100)]
    assert float(values.square().sum()) == pytest.approx(float(matrix.double().square().sum()), rel=1e-10)


def test_numbers_by_hand():
    got = shape_of(torch.tensor([3.0, 1.0]))
    p = (0.75, 0.25)
    assert got["frobenius"] == pytest.approx(math.sqrt(10))
    assert got["spectral_norm"] == 3
    assert got["effective_rank"] == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert got["stable_rank"] == pytest.approx(10 / 9)
    assert got["condition"] == pytest.approx(3)


def test_extremes_of_the_numbers():
    flat = shape_of(torch.ones(7))
    assert flat["effective_rank"] == pytest.approx(7) and flat["stable_rank"] == pytest.approx(7)
    single = shape_of(torch.tensor([2.0, 0.0]))
    assert single["effective_rank"] == pytest.approx(1) and single["condition"] == math.inf
    zero = shape_of(torch.zeros(3))
    assert zero["frobenius"] == 0 and all(math.isnan(zero[k]) for k in ("effective_rank", "stable_rank", "condition"))


def pushed(model, rank=3, layer=1, size=0.1):
    left, right = factors(1, *model.weight(layer).shape, rank)
    edit = Edit({layer: (size * left, right)}, {"fingerprint": model.fingerprint})
    edit.apply_to(model)
    return edit


def test_before_and_now(tiny_model):
    layer, before = 1, tiny_model.weight(1).double().clone()
    edit = pushed(tiny_model)
    frame = spectra(tiny_model).set_index(["layer", "state"])
    assert frame.loc[(layer, "before"), "spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(before, 2)))
    assert frame.loc[(layer, "now"), "frobenius"] == pytest.approx(float((before + edit.delta(layer)).norm()), rel=1e-6)
    assert list(frame.index[frame["edited"]]) == [(1, "before"), (1, "now")]
    same = frame.loc[0]
    assert (same.loc["before"] == same.loc["now"]).all()


def test_the_accumulated_update_is_the_sum_of_edits(tiny_gpt2):
    edits = [pushed(tiny_gpt2), pushed(tiny_gpt2, rank=2, size=0.05)]
    total = sum(edit.delta(1) for edit in edits)
    ((layer, (left, right)),) = accumulated(tiny_gpt2).items()
    assert layer == 1 and torch.allclose(left @ right.T, total, atol=1e-6)
    frame = update_spectra(accumulated(tiny_gpt2), tiny_gpt2).iloc[0]
    assert frame["frobenius"] == pytest.approx(float(total.norm()), rel=1e-5)
    assert frame["relative_norm"] == pytest.approx(
        float(total.norm() / tiny_gpt2.originals[1].double().norm()), rel=1e-5
    )
    one = update_spectra(edits[0]).iloc[0]
    assert one["rank"] == 3 and "relative_norm" not in one


@pytest.fixture
def covariance(tiny_gpt2):
    d = tiny_gpt2.anatomy.d_mlp
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    values = torch.linspace(0, 10, d, dtype=torch.float64)
    return basis, Statistics({1: (basis * values) @ basis.T}, 100)


def test_energy_in_the_null_space_of_c(tiny_gpt2, covariance):
    basis, statistics = covariance
    bases = key_bases(tiny_gpt2, statistics, [1], threshold=1.0)
    assert bases[1].null == null_space(statistics.layers[1], 1.0).shape[1]
    left = torch.randn(32, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    inside = {1: (left, basis[:, :2])}
    row = alignment(tiny_gpt2, inside, bases=bases).iloc[0]
    assert row["null_energy"] == pytest.approx(1) and row["c_top"] == pytest.approx(0, abs=1e-12)
    assert row["c_mean"] < 0.05
    mixed = {1: (torch.eye(32, dtype=torch.float64)[:, :2], torch.stack([basis[:, 0], 2 * basis[:, -1]], 1))}
    row = alignment(tiny_gpt2, mixed, bases=bases).iloc[0]
    assert row["null_energy"] == pytest.approx(1 / 5) and row["c_top"] == pytest.approx(4 / 5)
    delta = mixed[1][0] @ mixed[1][1].T
    disturbed = float((delta @ statistics.layers[1] @ delta.T).trace())
    assert row["c_mean"] == pytest.approx(disturbed / (5 * float(statistics.layers[1].trace()) / 64))
    assert row["null_dim"] == bases[1].null and row["null_threshold"] == 1.0


def test_the_threshold_is_alphaedits(tiny_gpt2, covariance):
    from ketools.editing.methods import ALPHAEDIT

    _, statistics = covariance
    unit = float(statistics.layers[1].trace()) / 64
    expected = ALPHAEDIT.settings(tiny_gpt2).value("null_threshold", unit)
    assert key_bases(tiny_gpt2, statistics, [1])[1].threshold == expected


def test_alignment_with_the_directions_of_w(tiny_gpt2):
    weight = tiny_gpt2.weight(2).double()
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    top = {2: (u[:, :1], vh[:1].T)}
    row = alignment(tiny_gpt2, top, top=1 / 32).iloc[0]
    assert row["top_left"] == pytest.approx(1) and row["top_right"] == pytest.approx(1)
    assert (row["top_left_chance"], row["top_right_chance"]) == (1 / 32, 1 / 64)
    low = {2: (u[:, -1:], vh[-1:].T)}
    row = alignment(tiny_gpt2, low, top=1 / 32).iloc[0]
    assert row["top_left"] == pytest.approx(0, abs=1e-9) and row["top_right"] == pytest.approx(0, abs=1e-9)
    half = {2: (u[:, :1] + u[:, -1:], vh[:1].T)}
    assert alignment(tiny_gpt2, half, top=1 / 32).iloc[0]["top_left"] == pytest.approx(0.5)


def test_a_random_update_has_the_shares_of_chance(tiny_gpt2, covariance):
    _, statistics = covariance
    bases = key_bases(tiny_gpt2, statistics, [1], threshold=5.0)
    dense = {1: (torch.eye(32), torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))}
    row = alignment(tiny_gpt2, dense, bases=bases, top=0.25).iloc[0]
    for name in ("top_left", "top_right", "c_top"):
        assert row[name] == pytest.approx(row[f"{name}_chance"], rel=0.25)
    assert row["null_energy"] == pytest.approx(row["null_chance"], rel=0.25)
    assert row["c_mean"] == pytest.approx(1, rel=0.1)


def test_a_zero_update_has_no_shares(tiny_gpt2):
    zero = {1: (torch.zeros(32, 1), torch.zeros(64, 1))}
    assert math.isnan(alignment(tiny_gpt2, zero).iloc[0]["top_left"])
    assert update_spectra(zero).iloc[0]["spectral_norm"] == 0


def test_a_matrix_without_full_rank_has_directions_only_in_its_span(tiny_gpt2):
    tiny_gpt2.weight(1).zero_()
    tiny_gpt2.weight(1)[0, 0] = 2.0
    row = alignment(tiny_gpt2, {1: factors(0, 32, 64, 4)}, top=1.0).iloc[0]
    assert 0 <= row["top_left"] <= 1 and 0 <= row["top_right"] <= 1
    assert row["top_left_chance"] == 1 / 32


def test_what_cannot_be_measured_is_said(tiny_gpt2, covariance):
    with pytest.raises(KetoolsError, match="nothing has been edited"):
        update_spectra(accumulated(tiny_gpt2))
    with pytest.raises(KetoolsError, match="nothing has been edited"):
        alignment(tiny_gpt2)
    left, right = factors(0, 32, 64, 2)
    with pytest.raises(KetoolsError, match="layer 1 holds NaN"):
        update_spectra({1: (left * float("nan"), right)})
    with pytest.raises(KetoolsError, match="top=0"):
        alignment(tiny_gpt2, {1: (left, right)}, top=0)
    bases = key_bases(tiny_gpt2, covariance[1], [1])
    with pytest.raises(KetoolsError, match="layer 2"):
        alignment(tiny_gpt2, {2: (left, right)}, bases=bases)
    with pytest.raises(KetoolsError, match="choose one of these"):
        spectra(tiny_gpt2, [9])
    tiny_gpt2.weight(2)[0, 0] = float("inf")
    with pytest.raises(KetoolsError, match="layer 2"):
        spectra(tiny_gpt2)
    with pytest.raises(KetoolsError, match=r"\(32, 64\) holds NaN"):
        singular_values(tiny_gpt2.weight(2))
