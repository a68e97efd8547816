"""UltraEdit: what the pass reads, running moments, the closed form, and an edit with it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools import Editor, KetoolsError
from ketools.editing.baselines import joined, moments, read_features, shift
from ketools.editing.editor import SequentialState
from ketools.editing.keys import fact_rows
from ketools.models.scoring import target_logprobs

seeds = st.integers(0, 2**31)
LAYERS = (1, 3)


def test_keys_and_gradients_are_those_of_a_plain_pass(tiny_model, tiny_facts):
    facts = tiny_facts[:4]
    rows = fact_rows(tiny_model, facts, [""])
    got = read_features(tiny_model, rows, LAYERS)
    keys, slopes = {i: [] for i in LAYERS}, {i: [] for i in LAYERS}
    for row in rows:
        bare, heard = row.contexts[0], {}
        handles = []
        for i in LAYERS:

            def hear(_, args, out, i=i, heard=heard):
                out.requires_grad_(True).retain_grad()
                heard[i] = (args[0], out)

            handles.append(tiny_model.mlp_out(i).register_forward_hook(hear))
        logits = tiny_model.model(torch.tensor([bare.ids])).logits[0]
        for handle in handles:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits[list(bare.target_positions)], torch.tensor(bare.target_ids))
        loss.backward()
        for i in LAYERS:
            keys[i].append(heard[i][0].detach().reshape(len(bare.ids), -1))
            slopes[i].append(heard[i][1].grad.reshape(len(bare.ids), -1))
    for i in LAYERS:
        for want, have in ((torch.cat(keys[i]), got.keys[i]), (torch.cat(slopes[i]), got.slopes[i])):
            assert (have.T.float() - want).abs().max() <= 1e-5 * want.abs().max()
    p, top = target_logprobs(tiny_model, [f.text for f in facts], [f.target_new for f in facts])
    assert torch.allclose(got.p_target, torch.tensor(p).exp().float(), rtol=1e-5) and got.known.tolist() == top.tolist()
    assert got.fact.bincount().tolist() == [len(row.contexts[0].ids) for row in rows]
    assert not any(w.requires_grad for w in tiny_model.model.parameters())
    split = read_features(tiny_model, rows, LAYERS, facts_at_once=3)
    for i in LAYERS:
        assert (split.slopes[i] - got.slopes[i]).abs().max() <= 1e-5 * got.slopes[i].abs().max()
        assert split.scale[i] == pytest.approx(got.scale[i], rel=1e-5) and torch.equal(split.fact, got.fact)


@settings(max_examples=25, deadline=None)
@given(seeds, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_running_moments_are_those_of_everything(seed, sizes):
    g = torch.Generator().manual_seed(seed)
    blocks = [3 + 2 * torch.randn(4, n, generator=g, dtype=torch.float64) for n in sizes]
    mean, deviation = joined([moments(block) for block in blocks])
    every = torch.cat(blocks, 1)
    assert torch.allclose(mean, every.mean(1), rtol=1e-5, atol=1e-6)
    if every.shape[1] > 1:
        assert torch.allclose(deviation, every.std(1), rtol=1e-5, atol=1e-6)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seeds)
def test_the_shift_is_what_lbfgs_finds(seed):
    g = torch.Generator().manual_seed(seed)
    keys, slopes = (torch.randn(d, 6, generator=g, dtype=torch.float64) for d in (8, 3))
    past = [moments(torch.randn(11, 20, generator=g, dtype=torch.float64)), moments(torch.cat([keys, slopes]))]
    mean, deviation = joined(past)
    z = (torch.cat([keys, slopes]) - mean[:, None]) / (deviation[:, None] + torch.finfo(torch.float32).eps)
    values = -0.3 * z[:8].square().sum(0) * z[8:]
    delta = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [delta], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = (delta @ keys - values).square().sum() + delta.square().sum()
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(loss)
    left, right = shift(keys, slopes, past, 0.3, "layer 0")
    assert (left @ right.T - delta.detach()).norm() <= 1e-6 * delta.detach().norm()
    published = torch.linalg.solve(keys @ keys.T + torch.eye(8, dtype=torch.float64), keys @ values.T).T
    assert torch.allclose(left @ right.T, published, rtol=1e-8, atol=1e-10)


def test_an_edit_says_its_targets_and_carries_moments_only(tiny_model, tiny_facts, tmp_path):
    facts = [f for f in tiny_facts if f.id != "5"]
    prompts, targets = [f.text for f in facts], [f.target_new for f in facts]
    p0 = target_logprobs(tiny_model, prompts, targets)[0]
    it = Editor(tiny_model, "ultraedit", layers=[1, 2, 3])  # no statistics, no prefixes
    before = [w.clone() for w in tiny_model.model.parameters()]
    edit = it.apply(facts[:4])
    gained = target_logprobs(tiny_model, prompts[:4], targets[:4])[0] - p0[:4]
    assert (
        gained > 0
    ).all() and gained.mean() > 0.25  # how much depends on how the tiny model was trained on this machine
    assert it.state.prefixes is None and edit.record["steps"] == [0] * 4
    anatomy = tiny_model.anatomy
    assert [b.shape for b in it.state.past[1]] == [(anatomy.d_mlp + anatomy.d_model, 3)]
    path = it.state.save(tmp_path / "state.safetensors")
    it.apply(facts[4:])
    after = [w.clone() for w in tiny_model.model.parameters()]
    it.undo()
    again = Editor(tiny_model, "ultraedit", SequentialState.load(path), layers=[1, 2, 3])
    again.apply(facts[4:])
    assert all(torch.equal(a, b) for a, b in zip(after, tiny_model.model.parameters()))
    again.undo()
    it.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_model.model.parameters())) and it.state.past[1] == []


def test_what_does_not_go(tiny_gpt2, tiny_facts):
    it = Editor(tiny_gpt2, "ultraedit", layers=[1])
    with pytest.raises(KetoolsError, match="no target optimisation"):
        it.targets(tiny_facts[:1])
    state = SequentialState.fresh(tiny_gpt2.fingerprint, 0)
    state.past = {1: [torch.zeros(tiny_gpt2.anatomy.d_mlp, 4)]}  # keys, as ENCORE leaves them
    with pytest.raises(KetoolsError, match="another kind of method"):
        Editor(tiny_gpt2, "ultraedit", state, layers=[1])
    tiny_gpt2.weight(1)[0, 0] = torch.nan
    with pytest.raises(KetoolsError, match="layer 1"):
        it.apply(tiny_facts[:1])
    assert tiny_gpt2.edits == []
