"""All norm measures of one checkpoint on a pocket model: two seconds on two idle cores, four of processor time."""

import time

import pytest
import torch

from ketools import Edit, load
from ketools.evaluation.downstream import load_heldout
from ketools.norms.alignment import KeyBasis, alignment
from ketools.norms.drift import activation_norms, drift, drift_components, hidden_states
from ketools.norms.residual import contributions
from ketools.norms.sample import text_sample
from ketools.norms.spectra import accumulated, spectra, update_spectra
from ketools.norms.weights import frobenius, norms


@pytest.mark.slow
def test_a_checkpoint_s_norms_in_seconds():
    model = load("pocket")
    d_model, d_mlp = model.anatomy.d_model, model.anatomy.d_mlp
    baseline, sample = norms(model), text_sample(model, load_heldout())
    # What is taken once a run: the reference states, and C's eigenvectors (here any orthonormal ones).
    reference = hidden_states(model, sample)
    eye = torch.eye(d_mlp, dtype=torch.float64)
    bases = {layer: KeyBasis(torch.linspace(0, 1, d_mlp, dtype=torch.float64), eye, 9, 0.01) for layer in (0, 1)}
    factors = {layer: (torch.randn(d_model, 50), 1e-3 * torch.randn(d_mlp, 50)) for layer in bases}
    Edit(factors, {"fingerprint": model.fingerprint}).apply_to(model)
    start = time.process_time()
    frobenius(model, baseline)
    spectra(model)
    update_spectra(accumulated(model), model)
    alignment(model, bases=bases)
    contributions(model, sample)
    now = hidden_states(model, sample)
    drift(now, reference)
    activation_norms(now)
    drift_components(now, reference, 2)
    assert time.process_time() - start < 4
