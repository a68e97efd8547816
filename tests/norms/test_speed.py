"""What the norm measures of one checkpoint may compute: one pass over the sample, and no decomposition of a large side.

Seconds are measured by benchmarks/norms.py; here the work is counted, which no busy machine changes.
"""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import norms as benchmark
from ketools.norms import weights
from ketools.norms.residual import contributions, text_sample
from ketools.norms.weights import frobenius, norms, spectra
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


@pytest.mark.parametrize("direct", [1024, 8], ids=["small", "as if large"])
def test_a_checkpoint_decomposes_no_large_side_and_passes_once(tiny_gpt2, monkeypatch, direct):
    monkeypatch.setattr(weights, "DIRECT", direct)
    model, layers = tiny_gpt2, [0, 1]
    baseline, sample = norms(model), text_sample(model, SENTENCES * 8)
    benchmark.edit_at_random(model, layers)
    monkeypatch.delattr(torch.linalg, "svd")  # values only: nothing may ask for singular vectors
    monkeypatch.delattr(torch, "svd")
    with Counted() as count:
        frobenius(model, baseline, edited=layers)
        spectra(model, layers)
        contributions(model, sample, edited=layers)
    sides = [min(shape) for _, shape in count.decomposed]
    assert sides == [model.anatomy.d_model] * 4, "the smaller side alone, before and now of each edited matrix"
    large = [shape for name, shape in count.decomposed if name in SVDS and min(shape) > direct]
    assert not large, "beyond DIRECT the Gram matrix of the smaller side is decomposed, never the matrix"
    read = sum(len(row) for row in sample.ids)
    assert read <= count.tokens < 1.25 * read, "one pass, with little padding"


@pytest.mark.slow
def test_the_benchmark_measures_every_step(tmp_path, capsys):
    path = tmp_path / "norms.json"
    assert benchmark.main(["--repeats", "1", "--shape", "64x96", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result["seconds"]) == {"frobenius", "spectra", "contributions"} and result["spectrum"] > 0
    assert result["checkpoint"] == pytest.approx(sum(result["seconds"].values()))
    shown = capsys.readouterr().out
    assert "checkpoint" in shown and "spectrum of 64 x 96" in shown
