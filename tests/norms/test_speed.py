"""What all norm measures of one checkpoint may compute: one pass over the sample, and no decomposition of a large side.

Seconds are measured by benchmarks/norms.py; here the work is counted, which no busy machine changes.
"""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import norms as benchmark
from ketools.norms import weights
from ketools.norms.drift import KeyBasis, activation_norms, alignment, drift, drift_components, hidden_states
from ketools.norms.residual import contributions_and_states, text_sample
from ketools.norms.weights import accumulated, frobenius, norms, spectra, update_spectra
from tests.conftest import SENTENCES

SVDS = ("linalg_svd", "linalg_svdvals", "svd")
DECOMPOSITIONS = (*SVDS, "linalg_eigh", "linalg_eig", "linalg_eigvalsh", "linalg_qr")


class Counted(TorchDispatchMode):
    """Decompositions by name and shape of what is decomposed, and the tokens embedded."""

    def __init__(self):
        super().__init__()
        self.decomposed, self.tokens = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0].lstrip("_")
        if name in DECOMPOSITIONS:
            self.decomposed.append((name, tuple(args[0].shape)))
        if name == "embedding" and args[0].shape[0] > 200:  # the vocabulary, not the positions
            self.tokens += args[1].numel()
        return func(*args, **(kwargs or {}))


def checkpoint(model, baseline, sample, reference, bases):
    frobenius(model, baseline)
    spectra(model)
    update_spectra(accumulated(model), model)
    alignment(model, bases=bases)
    _, now = contributions_and_states(model, sample)
    drift(now, reference)
    activation_norms(now)
    drift_components(now, reference, 2)


@pytest.mark.parametrize("direct", [1024, 8], ids=["small", "as if large"])
def test_a_checkpoint_decomposes_no_large_side_and_passes_once(tiny_gpt2, monkeypatch, direct):
    monkeypatch.setattr(weights, "DIRECT", direct)
    model, (d_model, d_mlp) = tiny_gpt2, (32, 64)
    baseline, sample = norms(model), text_sample(model, SENTENCES * 8)
    reference = hidden_states(model, sample)
    eye = torch.eye(d_mlp, dtype=torch.float64)
    bases = {layer: KeyBasis(torch.linspace(0, 1, d_mlp, dtype=torch.float64), eye, 9, 0.01) for layer in (0, 1)}
    factors = {layer: (torch.randn(d_model, 5), 1e-2 * torch.randn(d_mlp, 5)) for layer in bases}
    benchmark.Edit(factors, {"fingerprint": model.fingerprint}).apply_to(model)
    monkeypatch.delattr(torch.linalg, "svd")  # values only: nothing may ask for singular vectors
    monkeypatch.delattr(torch, "svd")
    with Counted() as count:
        checkpoint(model, baseline, sample, reference, bases)
    assert count.decomposed
    sides = [min(shape[-2:]) for _, shape in count.decomposed]
    assert max(sides) <= d_model, "C's eigenvectors (d_mlp) are taken once a run, not at a checkpoint"
    svds = [shape for name, shape in count.decomposed if name in SVDS]
    large = [shape for shape in svds if max(shape) >= d_mlp and min(shape) > direct]
    assert not large, "beyond DIRECT the Gram matrix of the smaller side is decomposed, never the matrix"
    spectra_taken = 2 * len(bases) + (model.anatomy.n_layer - len(bases))  # before and now; once where nothing changed
    # update_spectra: of the update, and of the matrix it is compared with; alignment: of the update, and W W^T.
    assert len([s for s in count.decomposed if s[0] != "linalg_qr"]) <= spectra_taken + 4 * len(bases) + 1
    read = sum(len(row) for row in sample.ids)
    assert read <= count.tokens < 1.25 * read, "one pass for the contributions and the states; little padding"


@pytest.mark.slow
def test_the_benchmark_measures_every_step(tmp_path, capsys, monkeypatch):
    def any_basis(model, statistics, layers):
        d = model.anatomy.d_mlp
        values, vectors = torch.linspace(0, 1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
        return {layer: KeyBasis(values, vectors, 9, 0.01) for layer in layers}

    monkeypatch.setattr(benchmark, "key_bases", any_basis)  # a minute's eigenproblem
    path = tmp_path / "norms.json"
    assert benchmark.main(["--repeats", "1", "--shape", "64x96", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result["seconds"]) >= {"frobenius", "spectra", "alignment", "contributions and states", "drift"}
    assert result["checkpoint"] == pytest.approx(sum(result["seconds"].values()))
    assert "spectrum of 64 x 96" in result["once"] and "checkpoint" in capsys.readouterr().out
