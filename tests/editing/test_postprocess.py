"""PRUNE, RECT, SPHERE and NAS against what their papers say, written with dense matrices."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools import Edit, Editor, KetoolsError
from ketools.editing.covariance import Statistics
from ketools.editing.editor import finished
from ketools.editing.methods import ENCORE, FT, MEMIT, ROME
from ketools.editing.postprocess import Nas, Prune, Rect, Sphere, processed
from ketools.models.weights import edited

seeds = st.integers(0, 2**31)
some = settings(max_examples=25, deadline=None)


def problem(seed, size=1.0, d_model=5, d_mlp=9, rank=3):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    original = randn(d_model, d_mlp)
    now = original + 0.5 * size * randn(d_model, d_mlp)
    return size * randn(d_model, rank), randn(d_mlp, rank), now, original


@some
@given(seeds, st.sampled_from([0.01, 0.3, 1.0, 10.0]))
def test_prune_draws_in_the_singular_values_of_the_accumulated_update(seed, size):
    left, right, now, original = problem(seed, size)
    got = Prune("batch")(left, right, now, original)
    u, sigma, vh = torch.linalg.svd(now + left @ right.T - original, full_matrices=False)
    top = torch.linalg.svdvals(original)[0]
    pruned = u @ torch.diag(torch.where(sigma > top, sigma.log() - top.log() + top, sigma)) @ vh
    want = pruned - (now - original)
    assert (got[0] @ got[1].T - want).norm() <= 1e-9 * (1 + want.norm())
    assert got[0].shape[1] == left.shape[1] + int((sigma > top).sum())


@some
@given(seeds, st.floats(0.01, 1))
def test_rect_keeps_the_largest_relative_changes(seed, keep):
    left, right, now, original = problem(seed)
    delta = left @ right.T
    got = Rect(keep)(left, right, now, original)
    kept = got[0] @ got[1].T
    stays = kept != 0
    assert int(stays.sum()) == max(1, round(keep * delta.numel())) and torch.equal(kept[stays], delta[stays])
    change = (delta / now).abs()
    assert stays.all() or change[stays].min() >= change[~stays].max()


def test_rect_where_weights_are_zero():
    left, right, now, original = problem(0)
    now[0], left[0] = 0, 0  # no change of nothing
    now[1] = 0  # any change of nothing is the largest
    kept = torch.matmul(*(f if i == 0 else f.T for i, f in enumerate(Rect(0.2)(left, right, now, original))))
    assert kept.isfinite().all() and (kept[1] != 0).all() and (kept[0] == 0).all()


@some
@given(seeds, st.floats(0.05, 0.95), st.floats(0, 1))
def test_sphere_projects_off_the_principal_directions(seed, top, strength):
    left, right, now, original = problem(seed)
    got = Sphere(top, strength)(left, right, now, original)
    rows = now / now.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    share = values.flip(0).cumsum(0) / values.sum()
    u = vectors[:, -(int((share <= top).sum()) + 1) :]
    want = left @ right.T @ (torch.eye(now.shape[1], dtype=now.dtype) - strength * u @ u.T)
    assert (got[0] @ got[1].T - want).norm() <= 1e-8 * (1 + want.norm())
    assert got[1].shape == right.shape
    gone = Sphere(top, 1.0)(left, right, now, original)[1]
    assert (gone.T @ u).norm() <= 1e-8 * right.norm()


@some
@given(seeds, st.floats(0.1, 100))
def test_nas_gives_every_value_the_anchors_norm(seed, anchor):
    g = torch.Generator().manual_seed(seed)
    z, h0, v0 = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    new = Nas().targets(z, h0, v0, anchor)
    old, value = Nas.values(z, h0, v0), Nas.values(new, h0, v0)
    assert torch.allclose(value.norm(dim=1), torch.full((4,), anchor, dtype=z.dtype))
    assert torch.allclose(torch.nn.functional.cosine_similarity(old, value), torch.ones(4, dtype=z.dtype))


def test_what_makes_no_sense_is_refused():
    for wrong in (
        lambda: Prune("never"),
        lambda: Rect(0),
        lambda: Rect(1.5),
        lambda: Sphere(1.0),
        lambda: Sphere(0.5, 2),
        lambda: Nas(-1.0),
    ):
        with pytest.raises(KetoolsError, match="expected"):
            wrong()
    with pytest.raises(KetoolsError, match="Nas rescales"):
        replace(FT, post=Nas())


def test_without_post_processing_factors_stay():
    left, right, now, original = problem(1)
    got = processed(None, (left, right), now, original)
    assert torch.equal(got[0], left.float()) and torch.equal(got[1], right.float())


@pytest.fixture
def make(tiny_gpt2):
    eye = torch.eye(tiny_gpt2.anatomy.d_mlp, dtype=torch.float64)
    statistics = Statistics({i: eye for i in range(4)}, 1000, {"fingerprint": tiny_gpt2.fingerprint})

    def made(how, **more):
        loose = {"clamp_norm_factor": 4.0, "lambda_p": 0.05, "lambda_n": 0.01, "steps": 8, "layers": [0, 1]}
        return Editor(tiny_gpt2, how, statistics=statistics, prefixes=["The tower"], **(loose | more))

    return made


@pytest.mark.parametrize("post", [Prune("batch"), Rect(), Sphere(), Nas()], ids=str)
@pytest.mark.parametrize("how", [ENCORE, ROME], ids=lambda m: m.name)
def test_goes_with_any_method_and_leaves_again(make, tiny_gpt2, tiny_facts, tmp_path, how, post):
    before = [w.clone() for w in tiny_gpt2.model.parameters()]
    plain, it = make(how), make(replace(how, post=post))
    first = plain.apply(tiny_facts[:2])
    plain.undo()
    edits = [it.apply(tiny_facts[:2]), it.apply(tiny_facts[2:4])]
    assert edits[0].record["post"]["kind"] == type(post).__name__
    if not isinstance(post, Prune):  # which leaves small updates alone
        assert (edits[0].delta(1) - first.delta(1)).norm() > 1e-3 * first.delta(1).norm()
    after = [w.clone() for w in tiny_gpt2.model.parameters()]
    paths = [edit.save(tmp_path / f"{i}.safetensors") for i, edit in enumerate(edits)]
    it.undo(), it.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_gpt2.model.parameters()))
    with edited(tiny_gpt2, *(Edit.load(path) for path in paths)):
        assert all(torch.equal(a, b) for a, b in zip(after, tiny_gpt2.model.parameters()))


def test_rect_keeps_its_share_in_the_edit(make, tiny_facts):
    delta = make(replace(MEMIT, post=Rect(0.25))).apply(tiny_facts[:3]).delta(1)
    assert int((delta != 0).sum()) == delta.numel() // 4


def test_pruned_weights_stay_within_the_bound(make, tiny_gpt2, tiny_facts):
    loose, tight = (
        make(replace(MEMIT, post=post), lambda_p=1e-6, lr=3.0, layers=[1]) for post in (None, Prune("batch"))
    )
    top = torch.linalg.svdvals(tiny_gpt2.weight(1))[0]

    def largest():
        return torch.linalg.svdvals(tiny_gpt2.weight(1) - tiny_gpt2.originals[1])[0]

    loose.apply(tiny_facts[:4])
    free = largest()
    loose.undo()
    tight.apply(tiny_facts[:4])
    assert free > top and largest() < free
    assert largest() == pytest.approx(float(free.log() - top.log() + top), rel=1e-3)


def test_at_the_end_the_whole_update_is_pruned_once(make, tiny_gpt2, tiny_facts):
    it = make(replace(ENCORE, post=Prune()), lambda_p=1e-6, lr=3.0)
    free = make(ENCORE, lambda_p=1e-6, lr=3.0)
    for part in (tiny_facts[:2], tiny_facts[2:4]):
        free.apply(part)
    want = {i: tiny_gpt2.weight(i).clone() for i in it.layers}
    free.undo(), free.undo()
    for part in (tiny_facts[:2], tiny_facts[2:4]):
        it.apply(part)
    assert all(torch.equal(tiny_gpt2.weight(i), w) for i, w in want.items()), "nothing is pruned on the way"
    with finished(tiny_gpt2, it.method.post, it.layers):
        on_the_way = {i: tiny_gpt2.weight(i).clone() for i in it.layers}
    assert all(torch.equal(tiny_gpt2.weight(i), w) for i, w in want.items())
    last, blocks = it.finish(), {i: len(it.state.past[i]) for i in it.layers}
    assert last is tiny_gpt2.edits[-1] and last.record["finishes"] and last.record["facts"] == []
    for i in it.layers:
        assert torch.equal(tiny_gpt2.weight(i), on_the_way[i])
        original = tiny_gpt2.originals[i].double()
        u, sigma, vh = torch.linalg.svd(want[i].double() - original, full_matrices=False)
        top = torch.linalg.svdvals(original)[0]
        assert (sigma > top).any()
        pruned = u @ torch.diag(torch.where(sigma > top, sigma.log() - top.log() + top, sigma)) @ vh
        assert torch.allclose(tiny_gpt2.weight(i).double() - original, pruned, atol=1e-5 * float(sigma[0]))
    it.undo()
    assert all(torch.equal(tiny_gpt2.weight(i), w) for i, w in want.items())
    assert {i: len(it.state.past[i]) for i in it.layers} == blocks, "the sequence can go on"
    it.undo(), it.undo()
    assert it.finish() is None, "nothing was edited"


@pytest.mark.parametrize("post", [None, Prune("batch"), Rect(), Prune()], ids=str)
def test_most_sequences_need_no_end(make, tiny_gpt2, tiny_facts, post):
    it = make(replace(MEMIT, post=post), lambda_p=1e6)  # small updates
    it.apply(tiny_facts[:2])
    assert it.finish() is None and len(tiny_gpt2.edits) == 1
    with finished(tiny_gpt2, post, it.layers) as same:
        assert same is tiny_gpt2 and len(tiny_gpt2.edits) == 1


def test_nas_keeps_the_anchor_of_the_first_batch(make, tiny_gpt2, tiny_facts):
    it = make(replace(MEMIT, post=Nas()))
    first, second = it.apply(tiny_facts[:3]), it.apply(tiny_facts[3:5])
    assert len({*first.record["nas_anchor"], *second.record["nas_anchor"]}) == 1
    it.undo(), it.undo()
    # On top of an edit of another kind the anchor is still that of the unedited weights.
    other = make(MEMIT)
    other.apply(tiny_facts[5:])
    now = [w.clone() for w in tiny_gpt2.model.parameters()]
    later = it.apply(tiny_facts[:3])
    assert later.record["nas_anchor"][0] == pytest.approx(first.record["nas_anchor"][0], rel=1e-6)
    it.undo()
    assert all(torch.equal(a, b) for a, b in zip(now, tiny_gpt2.model.parameters()))
    fixed = make(replace(MEMIT, post=Nas(2.5))).apply(tiny_facts[:2])
    assert fixed.record["nas_anchor"] == [2.5, 2.5]
