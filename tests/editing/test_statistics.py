"""Second moments of keys: exact, complete, refused where they do not fit."""

import pytest
import torch

from ketools import KetoolsError
from ketools.editing.statistics import Statistics, load_statistics
from tests.conftest import SENTENCES


def test_covariance_is_the_mean_over_tokens(tiny_model):
    got = Statistics.compute(tiny_model, SENTENCES, [0, 2], max_tokens=10_000)
    heard, count = {0: 0, 2: 0}, 0
    for text in SENTENCES:
        ids = torch.tensor([tiny_model.tokenizer(text)["input_ids"]])
        count += ids.shape[1]
        handles = []
        for i in heard:

            def add(_, args, i=i):
                k = args[0][0].double()
                heard[i] = heard[i] + k.T @ k

            handles.append(tiny_model.mlp_out(i).register_forward_pre_hook(add))
        with torch.no_grad():
            tiny_model.model(ids)
        for handle in handles:
            handle.remove()
    assert got.tokens == count
    for i, total in heard.items():
        assert torch.allclose(got.layers[i], total / count, rtol=1e-4, atol=1e-6)


def test_token_budget_and_length(tiny_model):
    assert Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=25).tokens == 25
    assert Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=1000, length=5).tokens == 20
    with pytest.raises(KetoolsError, match="no tokens"):
        Statistics.compute(tiny_model, [], [0], 100)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_saved_and_loaded(tiny_model, tmp_path, dtype, close):
    got = Statistics.compute(tiny_model, SENTENCES, [0, 1], 1000, corpus="sentences")
    back = Statistics.load(got.save(tmp_path / "c.safetensors", dtype))
    assert back.tokens == got.tokens and back.provenance == got.provenance and list(back.layers) == [0, 1]
    for i in (0, 1):
        assert (back.layers[i] - got.layers[i]).norm() <= close * got.layers[i].norm()
        assert torch.equal(back.layers[i], back.layers[i].T)
    tiny_model.path = tmp_path
    with pytest.raises(KetoolsError, match="comes without"):
        load_statistics(tiny_model)
    got.save(tmp_path / "covariance.safetensors")
    assert load_statistics(tiny_model).tokens == got.tokens


def test_half_precision_leaves_a_nearly_singular_covariance_positive(tmp_path):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 150, dtype=torch.float64, generator=generator)  # rank 150 of 200
    covariance = keys @ keys.T + 1e-6 * torch.eye(200, dtype=torch.float64)
    path = Statistics({0: covariance}, 150).save(tmp_path / "c.safetensors", dtype=torch.float16)
    found = Statistics.load(path).layers[0]
    assert torch.linalg.eigvalsh(found)[0] > 0
    assert (found - covariance).norm() < 1e-3 * covariance.norm()


def test_other_models_statistics_are_refused(tiny_gpt2, tiny_llama, tmp_path):
    got = Statistics.compute(tiny_gpt2, SENTENCES, [0], 1000)
    with pytest.raises(KetoolsError, match="another model"):
        got.of(tiny_llama, [0])
    with pytest.raises(KetoolsError, match="no statistics in"):
        Statistics.load(tmp_path / "nothing")
