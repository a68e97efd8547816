"""Second moments of keys: exact, complete, refused where they do not fit."""

import json
import os

import pytest
import torch

from ketools import Edit, KetoolsError, edited, load
from ketools.editing import covariance
from ketools.editing.covariance import OtherStatistics, Statistics, TooLittleText, default_tokens, load_statistics
from ketools.editing.editor import Editor
from ketools.editing.update import cholesky
from ketools.errors import NotFinite
from ketools.io import read_tensors
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
    held = load_statistics(tiny_model)
    assert held.tokens == got.tokens and len(held.layers) == 2 and 1 in held.layers and 2 not in held.layers
    assert held.layers[1] is held.layers[1] and held.layers.get(2) is None
    with pytest.raises(KetoolsError, match=r"hold layers \[0, 1\], not 2"):
        held.of(tiny_model, [1, 2])


@pytest.mark.parametrize("block", [64, 384])
def test_half_precision_leaves_a_nearly_singular_covariance_positive(tmp_path, monkeypatch, block):
    monkeypatch.setattr("ketools.editing.covariance._BLOCK", block)
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
    with pytest.raises(KetoolsError, match="nothing: there is no such file"):
        Statistics.load(tmp_path / "nothing")


def test_the_default_budget_is_ten_times_the_width(tiny_model):
    texts = [" ".join(SENTENCES)] * 60
    got = Statistics.compute(tiny_model, texts, [0])
    assert got.tokens == default_tokens(tiny_model) == 10 * tiny_model.anatomy.d_mlp
    assert got.provenance["dtype"] == "float32" and got.provenance["length"] == 128, "capped by the context window"


class Stopped(Exception):
    pass


def test_a_pass_that_was_killed_goes_on_to_the_same_bits(tiny_gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(covariance, "_TOKENS_AT_ONCE", 40)
    texts = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
    part = tmp_path / "part"
    whole = Statistics.compute(tiny_gpt2, texts, [0, 2], 550, corpus="c")

    heard = []

    def dies(n):
        heard.append(n)
        if sum(heard) > 400:
            raise Stopped

    settings = {"corpus": "c", "partial": part, "every": 100}
    with pytest.raises(Stopped):
        Statistics.compute(tiny_gpt2, texts, [0, 2], 550, progress=dies, **settings)
    kept = json.loads(read_tensors(part, "sums")[1]["done"])["tokens"]
    assert 100 <= kept <= 400
    again = []
    resumed = Statistics.compute(tiny_gpt2, iter(texts), [0, 2], 550, progress=again.append, **settings)
    assert again[0] == kept and sum(again) == resumed.tokens == whole.tokens == 550
    assert resumed.provenance == whole.provenance
    for i in (0, 2):
        assert torch.equal(resumed.layers[i], whole.layers[i])


def test_partial_sums_of_another_pass_are_refused(tiny_gpt2, tiny_llama, tmp_path):
    part = tmp_path / "part"
    Statistics.compute(tiny_gpt2, SENTENCES, [0], 50, partial=part)
    for changed, said in (
        ((tiny_gpt2, SENTENCES, [1], 50), "layers"),
        ((tiny_gpt2, SENTENCES, [0], 60), "max_tokens"),
        ((tiny_llama, SENTENCES, [0], 50), "fingerprint"),
        ((tiny_gpt2, SENTENCES[::-1], [0], 50), "begin differently"),
        ((tiny_gpt2, SENTENCES[:1], [0], 50), "begin differently"),
    ):
        with pytest.raises(KetoolsError, match=said):
            Statistics.compute(*changed, partial=part)


def test_bad_settings(tiny_gpt2):
    for settings, said in (
        (([9], 100), "layers 0 to 3"),
        (([], 100), "no layers"),
        (([0], 0), "max_tokens=0"),
    ):
        with pytest.raises(KetoolsError, match=said):
            Statistics.compute(tiny_gpt2, SENTENCES, *settings)
    with pytest.raises(KetoolsError, match="length=0"):
        Statistics.compute(tiny_gpt2, SENTENCES, [0], 100, length=0)
    edit = Edit({0: (torch.zeros(32, 1), torch.zeros(64, 1))})
    with edited(tiny_gpt2, edit), pytest.raises(KetoolsError, match="carries 1 edits"):
        Statistics.compute(tiny_gpt2, SENTENCES, [0], 100)
    tiny_gpt2.weight(0)[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="keys of layer 1 hold NaN or Inf"):
        Statistics.compute(tiny_gpt2, SENTENCES, [1], 100)


def test_too_few_tokens_say_rank_and_need(tiny_gpt2):
    got = Statistics.compute(tiny_gpt2, SENTENCES, [0], 20)
    with pytest.raises(KetoolsError, match=r"rank \d+ of 64.*at least 64 different tokens"):
        cholesky(got.layers[0], "C of layer 0")


def test_last_positions_alone(tiny_model):
    every = [Statistics.compute(tiny_model, [text], [0], max_tokens=1000) for text in SENTENCES]
    shorter = [tiny_model.tokenizer.decode(tiny_model.tokenizer(text)["input_ids"][:-1]) for text in SENTENCES]
    before = [Statistics.compute(tiny_model, [text], [0], max_tokens=1000) for text in shorter]
    want = sum(a.layers[0] * a.tokens - b.layers[0] * b.tokens for a, b in zip(every, before, strict=True))
    got = Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=1000, positions="last")
    assert got.tokens == len(SENTENCES)
    assert torch.allclose(got.layers[0], want / len(SENTENCES), rtol=1e-4, atol=1e-5)
    assert Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=2, positions="last").tokens == 2
    with pytest.raises(KetoolsError, match="'all' or 'last'"):
        Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=2, positions="subject")


def test_mixed_statistics(tiny_model):
    running = Statistics.compute(tiny_model, SENTENCES, [0, 1], 1000, corpus="text")
    ends = Statistics.compute(tiny_model, SENTENCES, [0], 1000, positions="last", corpus="ends")
    mixed = running.mixed(ends, 0.25)
    assert list(mixed.layers) == [0]
    assert torch.equal(mixed.layers[0], 0.75 * running.layers[0] + 0.25 * ends.layers[0])
    assert mixed.of(tiny_model, [0]).provenance["corpus"] == "0.75 text + 0.25 ends"
    with pytest.raises(KetoolsError, match="from 0 to 1"):
        running.mixed(ends, 1.5)
    with pytest.raises(KetoolsError, match="two models"):
        running.mixed(Statistics(ends.layers, 1, {"fingerprint": "another"}), 0.5)


def test_a_covariance_of_too_little_text(tiny_model):
    d_mlp = tiny_model.anatomy.d_mlp
    with pytest.warns(TooLittleText, match=rf"layer 0 has rank 20 of {d_mlp}: the text ended after 20 of 1,000 tokens"):
        got = Statistics.compute(tiny_model, SENTENCES, [0, 1], max_tokens=1000, length=5)
    with pytest.warns(TooLittleText, match=r"max_tokens stopped it after 25 of 25"):
        Statistics.compute(tiny_model, SENTENCES, [0], max_tokens=25)
    for method in ("encore", "alphaedit"):
        with pytest.warns(TooLittleText, match=rf"20 tokens, fewer than d_mlp = {d_mlp}"):
            Editor(tiny_model, method, statistics=got, layers=[0, 1])


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_is_one_line_with_the_way_out(tiny_model, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(covariance, "_add_keys", full)
    with pytest.raises(KetoolsError, match=r"out of memory while summing C of 2 layers.*Statistics.joined"):
        Statistics.compute(tiny_model, SENTENCES, [0, 1], 100)
    error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="ours"):
        Statistics.compute(tiny_model, SENTENCES, [0, 1], 100)


def test_statistics_of_layers_computed_apart_are_used_together(tiny_gpt2, tiny_llama, tmp_path):
    whole = Statistics.compute(tiny_gpt2, SENTENCES, [0, 1, 3], 1000)
    files = [
        Statistics.compute(tiny_gpt2, SENTENCES, layers, tokens).save(tmp_path / f"{layers[0]}")
        for layers, tokens in (([0, 3], 1000), ([1], 50))
    ]
    joined = Statistics.load(os.pathsep.join(map(str, files))).of(tiny_gpt2, [0, 1, 3])
    assert sorted(joined.layers) == [0, 1, 3] and joined.tokens == 50 and len(joined.provenance["parts"]) == 2
    assert (joined.layers[3] - whole.layers[3]).norm() <= 1e-6 * whole.layers[3].norm()
    with pytest.raises(KetoolsError, match="two of the statistics hold layer 1"):
        joined.joined(Statistics.load(files[1]))
    with pytest.raises(KetoolsError, match="two models"):
        joined.joined(Statistics.compute(tiny_llama, SENTENCES, [2], 1000))


def test_statistics_of_another_dtype_or_of_the_base_are_taken_with_a_warning(tiny_llama, tmp_path):
    path = tmp_path / "base"
    for part in (tiny_llama.model, tiny_llama.tokenizer):
        part.save_pretrained(path)
    base = load(path)
    of_base = Statistics.compute(base, SENTENCES, [0], 1000)
    half = load(path, dtype=torch.bfloat16)
    with pytest.warns(OtherStatistics, match="of the same model in float32"):
        assert of_base.of(half, [0]) is of_base
    base.weight(0)[0, 0] += 1  # any edit
    first = load(base.export(tmp_path / "first"))
    second = load(first.export(tmp_path / "second"))
    for model in (first, second):
        with pytest.warns(OtherStatistics, match=f"of {path}, from which it was edited"):
            of_base.of(model, [0])
    with pytest.warns(OtherStatistics, match=f"of {path} in bfloat16"):
        Statistics.compute(half, SENTENCES, [0], 1000).of(first, [0])
    with pytest.raises(KetoolsError, match="another model"):
        Statistics.compute(first, SENTENCES, [0], 1000).of(base, [0])
