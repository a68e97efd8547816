"""Edits as objects: what they say about themselves, their files, and how they come out of the middle of a stack."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from ketools import KetoolsError, load
from ketools.editing.edit import Edit
from ketools.io import write_tensors
from ketools.models.weights import EditStack, edited


def made(model, layers, rank=3, seed=0, **record):
    """A random edit of `layers`, as if it had been computed for `model`."""
    g = torch.Generator().manual_seed(seed)
    d = model.anatomy
    pairs = {
        i: (torch.randn(d.d_model, rank, generator=g) / 10, torch.randn(d.d_mlp, rank, generator=g) / 10)
        for i in layers
    }
    return Edit(pairs, {"fingerprint": model.fingerprint} | record)


def bits(model):
    return {i: model.weight(i).clone() for i in range(model.anatomy.n_layer)}


def same(a, b):
    return all(torch.equal(a[i], b[i]) for i in a)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(3, 9), st.integers(2, 9))
def test_diff_agrees_with_the_dense_matrices(seed, r, s, n, m):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    a = Edit({0: (draw(n, r), draw(m, r)), 1: (draw(n, r), draw(m, r))}, {"facts": ["1", "2", "3"]})
    b = Edit({1: (draw(n, s), draw(m, s)), 5: (draw(n, s), draw(m, s))}, {"facts": ["3", "4"]})
    frame = a.diff(b).set_index("layer")
    assert list(frame.index) == [0, 1, 5]
    for i, row in frame.iterrows():
        zero = torch.zeros(n, m, dtype=torch.float64)
        x, y = (e.delta(i) if i in e.layers else zero for e in (a, b))
        assert row.norm == pytest.approx(float(x.norm()))
        assert row.norm_other == pytest.approx(float(y.norm()))
        assert row.norm_difference == pytest.approx(float((x - y).norm()))
        if i == 1:
            assert row.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-9)
        else:
            assert np.isnan(row.cosine)
        assert row.common_facts == pytest.approx(1 / 4)
        assert a.norms().get(i, 0.0) == pytest.approx(row.norm)


def test_diff_of_nearly_equal_edits_does_not_cancel(tiny_gpt2):
    a = made(tiny_gpt2, [1])
    (left, right), tiny = a.layers[1], 1e-6
    b = Edit({1: (left * (1 + tiny), right)})
    row = a.diff(b).iloc[0]
    exact = float((a.delta(1) - b.delta(1)).norm())
    assert row.norm_difference == pytest.approx(exact, rel=1e-6) and 0 < exact < 2 * tiny * row.norm
    assert row.cosine == pytest.approx(1.0) and np.isnan(row.common_facts)
    assert a.diff(a).iloc[0].norm_difference <= 1e-14 * row.norm


def test_diff_of_edits_for_different_models(tiny_gpt2, tiny_llama):
    with pytest.raises(KetoolsError, match=r"layer 1 .*\(32, 64\) and \(32, 48\)"):
        made(tiny_gpt2, [1]).diff(made(tiny_llama, [0, 1]))


def test_leaving_the_middle(tiny_model):
    base = bits(tiny_model)
    first, sum_, last = (made(tiny_model, [0, 1], seed=i, on_top_of=i) for i in range(3))
    loose = made(tiny_model, [1, 2], seed=9)  # computed on the unedited model: a plain sum
    for edit in (first, loose):
        edit.apply_to(tiny_model)
    first.remove(tiny_model)  # nothing was computed on top of it
    assert tiny_model.edits == [loose]
    loose.remove(tiny_model)
    assert same(base, bits(tiny_model))

    for edit in (first, sum_, loose, last):
        edit.apply_to(tiny_model)
    with pytest.raises(KetoolsError, match="1 later edits were computed on top"):
        sum_.remove(tiny_model)
    assert tiny_model.edits == [first, sum_, loose, last]
    sum_.remove(tiny_model, force=True)
    got = bits(tiny_model)
    for edit in (last, loose, first):
        edit.remove(tiny_model)
    assert same(base, bits(tiny_model)) and not tiny_model.originals
    for edit in (first, loose, last):
        edit.apply_to(tiny_model)
    assert same(got, bits(tiny_model))
    with pytest.raises(KetoolsError, match="not in the weights"):
        sum_.remove(tiny_model)


def test_an_interrupt_on_the_way_out_leaves_all_edits_in(tiny_model, monkeypatch):
    edits = [made(tiny_model, [0, 1], seed=i) for i in range(3)]
    for edit in edits:
        edit.apply_to(tiny_model)
    before, real = bits(tiny_model), EditStack.add

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(EditStack, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edits[0].remove(tiny_model)
    assert tiny_model.edits == edits and same(before, bits(tiny_model))
    monkeypatch.undo()
    for edit in edits:
        edit.remove(tiny_model)
    assert not tiny_model.originals


def test_an_edit_says_what_it_is(tiny_model):
    assert repr(made(tiny_model, [1], method="memit", facts=["a"])) == "Edit(memit, 1 facts, rank by layer {1: 3})"
    assert (
        repr(Edit({0: (torch.eye(2), torch.ones(3, 2))}))
        == "Edit(made elsewhere, 0 facts, rank by layer {0: 2}, dense)"
    )


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)))
def test_any_order_of_leaving_ends_at_the_same_bits(trained_gpt2, tiny_tokenizer, order):
    model = load(trained_gpt2, tokenizer=tiny_tokenizer)
    base = bits(model)
    edits = [made(model, [i % 3, 3], seed=i, on_top_of=i) for i in range(4)]
    for edit in edits:
        edit.apply_to(model)
    for n, i in enumerate(order):
        edits[i].remove(model, force=True)
        left = [e for e in edits if e in model.edits]
        assert len(left) == 3 - n
        now = bits(model)
        with_others = {j: w.clone() for j, w in base.items()}
        for e in left:
            for j in e.layers:
                with_others[j] = (with_others[j].double() + e.delta(j)).float()
        assert same(with_others, now)
    assert same(base, bits(model)) and not model.originals


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_what_the_type_takes(tiny_gpt2, dtype, tmp_path):
    model = load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer, dtype=dtype)
    edit, before = made(model, [0, 2]), bits(model)
    edit.apply_to(model)
    for i, lost in edit.record["rounding"].items():
        took = (model.weight(i).double() - before[i].double()) - edit.delta(i)
        assert lost == pytest.approx(float(took.norm() / edit.delta(i).norm()), rel=1e-6)
        # Rounding to nearest: at most half a unit in the last place of each entry.
        assert took.abs().max() <= torch.finfo(dtype).eps / 2 * (before[i].double() + edit.delta(i)).abs().max()
        assert lost > 0
    assert Edit.load(edit.save(tmp_path / "e"), model).record == edit.record
    model.edits.pop()
    assert same(before, bits(model))


def test_a_model_in_float64_gets_the_sum_itself(tiny_gpt2):
    model = load(copy.deepcopy(tiny_gpt2.model), tokenizer=tiny_gpt2.tokenizer, dtype=torch.float64)
    edit, before = made(model, [0, 2]), bits(model)
    edit.apply_to(model)
    for i in (0, 2):
        assert torch.equal(model.weight(i), before[i] + edit.delta(i)), i
    assert edit.record["rounding"] == {0: 0.0, 2: 0.0}
    edit.remove(model)
    assert same(before, bits(model))


def test_an_update_below_the_weights_resolution_is_said_to_be_lost(tiny_gpt2):
    model = load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer, dtype=torch.bfloat16)
    model.weight(1).fill_(1.0)
    left, right = torch.full((32, 1), 1e-3), torch.ones(64, 1)
    edit = Edit({1: (left, right), 2: (0 * left, right)})
    edit.apply_to(model)
    assert edit.record["rounding"] == {1: pytest.approx(1.0), 2: 0.0}


@pytest.mark.parametrize(
    ("config", "at"),
    [
        (GPT2Config(n_embd=1600, n_layer=48, n_head=25), range(13, 18)),  # GPT2-XL
        (
            LlamaConfig(
                vocab_size=128256,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            ),
            range(4, 9),
        ),  # Llama 3 8B
    ],
)
def test_a_hundred_facts_take_a_hundredth_of_a_large_model(config, at, tmp_path):
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    size = 2 * sum(weight.numel() for weight in network.parameters())
    d_model, d_mlp = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    edit = Edit({i: (torch.zeros(d_model, 100), torch.zeros(d_mlp, 100)) for i in at}, {"facts": [str(i) for i in at]})
    path = edit.save(tmp_path / "edit")
    bytes_of_factors = 4 * 100 * (d_model + d_mlp) * len(at)
    assert bytes_of_factors <= path.stat().st_size <= bytes_of_factors + 4096
    assert path.stat().st_size <= size / 100 and not edit.dense
    path.unlink()


def test_a_dense_update_says_so_and_stores_no_identity(tiny_model, tmp_path):
    d = tiny_model.anatomy
    dense = Edit({1: (torch.eye(d.d_model), torch.randn(d.d_mlp, d.d_model)), 2: made(tiny_model, [2]).layers[2]})
    assert dense.dense and not made(tiny_model, [1]).dense and dense.ranks == {1: d.d_model, 2: 3}
    path = dense.save(tmp_path / "dense")
    assert path.stat().st_size <= 4 * (d.d_model * d.d_mlp + 3 * (d.d_model + d.d_mlp)) + 1024
    loaded = Edit.load(path)
    for i in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(loaded.layers[i], dense.layers[i]))


def test_the_record_comes_back_whole(tiny_model, tmp_path):
    record = {
        "method": "encore",
        "facts": ["0", "1"],
        "update_norm": {0: 1.5, 1: 2.5},
        "seconds": {"solve": 0.25},
        "by_fact": {"1": 3.0},  # a fact's number is no layer
        "hyper": {"layers": [0, 1], "lambda_n": None},
    }
    edit = made(tiny_model, [0, 1], **record)
    assert Edit.load(edit.save(tmp_path / "a")).record == record | {"fingerprint": tiny_model.fingerprint}


def _spoilt(good, folder):
    content = good.read_bytes()
    pair = {"left.0": torch.ones(32, 2), "right.0": torch.ones(64, 2)}
    about = {"format": "ketools-edit-1", "record": "{}"}
    yield "cut", content[:-7], "truncated"
    yield "pickle", pickle.dumps([1]), "run code"
    yield "text", b'{"facts": "and a long text that is none"}', "no safetensors file"
    for name, tensors, texts, message in (
        ("other", pair, about | {"format": "ketools-state-1"}, "ketools-state-1"),
        ("none", pair, {}, "format None"),
        ("no record", pair, {"format": "ketools-edit-1"}, "record"),
        ("no json", pair, about | {"record": "{"}, "no edit in"),
        ("a list", pair, about | {"record": "[]"}, "no edit in"),
        ("half", {"left.0": pair["left.0"]}, about, "right.0"),
        ("ranks", pair | {"right.0": torch.ones(64, 3)}, about, r"\(32, 2\) and \(64, 3\)"),
        ("names", pair | {"more.x": torch.ones(2)}, about, "no edit in"),
    ):
        yield name, write_tensors(folder / "x", tensors, texts).read_bytes(), message


def test_files_that_are_no_edits(tiny_gpt2, tmp_path):
    good = made(tiny_gpt2, [0]).save(tmp_path / "good")
    for name, content, message in _spoilt(good, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KetoolsError, match=message) as caught:
            Edit.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "Edit.save" in str(caught.value), name
    with pytest.raises(KetoolsError, match="no such file"):
        Edit.load(tmp_path / "missing")


def test_an_edit_of_another_model_is_refused_on_load_and_on_use(tiny_gpt2, tiny_llama, tmp_path):
    path, before = made(tiny_gpt2, [0, 1]).save(tmp_path / "edit"), bits(tiny_llama)
    with pytest.raises(KetoolsError, match="belongs to another model"):
        Edit.load(path, tiny_llama)
    loaded = Edit.load(path)
    with pytest.raises(KetoolsError, match="belongs to another model"), edited(tiny_llama, loaded):
        pass
    with pytest.raises(KetoolsError, match=r"shape \(32, 64\)"):
        Edit(loaded.layers).apply_to(tiny_llama)
    with pytest.raises(KetoolsError, match="layers 0 to 3"):
        Edit({7: loaded.layers[0]}).apply_to(tiny_gpt2)
    left, right = loaded.layers[0]
    with pytest.raises(KetoolsError, match="layer 1 of the edit holds NaN"):
        Edit({0: (left, right), 1: (left * torch.nan, right)}).apply_to(tiny_gpt2)
    assert same(before, bits(tiny_llama)) and not tiny_llama.edits and not tiny_gpt2.edits
    assert Edit.load(path, tiny_gpt2).record["fingerprint"] == tiny_gpt2.fingerprint


def test_provenance_is_in_the_file(tiny_model, tmp_path):
    path = made(tiny_model, [0], method="memit").save(tmp_path / "edit")
    with path.open("rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    assert about["format"] == "ketools-edit-1" and json.loads(about["record"])["method"] == "memit"


def test_a_subject_that_looks_like_a_layer_stays_a_text(tiny_gpt2, tmp_path):
    edit = made(tiny_gpt2, [1], subjects={"1": "a"}, clock={"1": 0.5})
    assert Edit.load(edit.save(tmp_path / "e.safetensors"), tiny_gpt2).record["subjects"] == {"1": "a"}
