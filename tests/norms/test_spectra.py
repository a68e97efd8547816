"""Spectra: the Gram side against LAPACK, the numbers against their formulas."""

import math

import pytest
import torch

from ketools import KetoolsError
from ketools.editing.edit import Edit
from ketools.norms import weights as module
from ketools.norms.weights import shape_of, singular_values, spectra


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


def test_before_and_now(tiny_model):
    layer, before = 1, tiny_model.weight(1).double().clone()
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(d, 3, generator=generator, dtype=torch.float64).float() for d in before.shape)
    edit = Edit({layer: (0.1 * left, right)}, {"fingerprint": tiny_model.fingerprint})
    edit.apply_to(tiny_model)
    frame = spectra(tiny_model).set_index(["layer", "state"])
    assert frame.loc[(layer, "before"), "spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(before, 2)))
    assert frame.loc[(layer, "now"), "frobenius"] == pytest.approx(float((before + edit.delta(layer)).norm()), rel=1e-6)
    assert list(frame.index[frame["edited"]]) == [(1, "before"), (1, "now")]
    same = frame.loc[0]
    assert (same.loc["before"] == same.loc["now"]).all()


def test_what_cannot_be_measured_is_said(tiny_gpt2):
    with pytest.raises(KetoolsError, match="choose one of these"):
        spectra(tiny_gpt2, [9])
    tiny_gpt2.weight(2)[0, 0] = float("inf")
    with pytest.raises(KetoolsError, match="layer 2"):
        spectra(tiny_gpt2)
    with pytest.raises(KetoolsError, match=r"\(32, 64\) holds NaN"):
        singular_values(tiny_gpt2.weight(2))
