"""Protection over many batches: factors that grow with keys, folds, and keys that are taken out again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools.editing.update import Protection, least_squares, null_space
from ketools.reference.update import alphaedit, memit
from tests.editing.test_updates import problem, product, seeds


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 12), st.booleans())
def test_sequence_of_batches_equals_the_dense_solve(seed, batches, restricted):
    c, _, _, _ = problem(seed, d_mlp=30)
    g = torch.Generator().manual_seed(seed)
    u = null_space(c, 1.0) if restricted else None
    base = 4 * c + 0.1 * torch.eye(30, dtype=c.dtype) if u is None else 2 * torch.eye(u.shape[1], dtype=c.dtype)
    protection = Protection(base, u)
    past = torch.zeros(30, 0, dtype=torch.float64)
    for _ in range(batches):  # with more than a few, keys are folded into the factors
        k, r = (torch.randn(d, 4, generator=g, dtype=torch.float64) for d in (30, 5))
        got = product(least_squares(protection, k, r))
        want = memit(c, k, r, 4.0, past, lambda_n=0.1) if u is None else alphaedit(u @ u.T, k, r, 2.0, past)
        assert (got - want).norm() <= 1e-8 * want.norm()
        protection.add(k)
        past = torch.cat([past, k], 1)


def blocks_of(seed, count, d=20, width=3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(d, width, generator=g, dtype=torch.float64) for _ in range(count)]


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_dropped_keys_leave_no_trace(seed, kept, dropped):
    c, k1, _, _ = problem(seed, d_mlp=20)
    blocks = blocks_of(seed, kept + dropped)
    long, short = Protection(c), Protection(c)
    long.solve(k1)
    for block in blocks:
        long.add(block)
    for left in reversed(range(kept, kept + dropped)):
        if not long.drop():  # folded: made again from the others, as an Editor does
            long = Protection(c)
            long.add(*blocks[:left])
    for block in blocks[:kept]:
        short.add(block)
    assert torch.equal(long.solve(k1), short.solve(k1))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("asked", [0, 4, 9])
def test_keys_added_together_give_the_bits_of_those_added_along_the_way(restricted, asked):
    c, k1, _, _ = problem(5, d_mlp=20)
    u = null_space(c, 1.0) if restricted else None
    base = c if u is None else 2 * torch.eye(u.shape[1], dtype=c.dtype)
    blocks = blocks_of(5, 9)
    along, late = Protection(base, u), Protection(base, u)
    along.solve(k1)
    for block in blocks:
        along.add(block)
    late.add(*blocks[:asked])
    late.solve(k1)
    late.add(*blocks[asked:])
    assert torch.equal(along.solve(k1), late.solve(k1))


def held(protection):
    return sum(
        tensor.numel()
        for value in vars(protection).values()
        for tensor in (value if isinstance(value, list) else [value])
        if isinstance(tensor, torch.Tensor)
    )


def test_what_is_held_does_not_grow_with_the_keys():
    c, k1, _, _ = problem(5, d_mlp=20)
    before, blocks, protection = c.clone(), blocks_of(5, 60), Protection(c)
    sizes, past = [], torch.cat(blocks, 1)
    for block in blocks:
        protection.add(block)
        sizes.append(held(protection))
    assert max(sizes) <= 3.25 * 20 * 20 and max(sizes[10:]) == max(sizes[:10]), "180 keys of 20 numbers: 9 d^2"
    assert torch.equal(c, before), "the caller's matrix stays as it was"
    want = torch.linalg.solve(c + past @ past.T, k1)
    assert (protection.solve(k1) - want).norm() <= 1e-10 * want.norm()


@pytest.mark.parametrize("own", [False, True])
def test_a_base_that_is_not_its_own_is_not_written_to(own):
    g = torch.Generator().manual_seed(0)
    blocks = [torch.randn(8, 3, generator=g) for _ in range(4)]  # folded twice
    base, probe = 2 * torch.eye(8, dtype=torch.float64), torch.randn(8, 2, generator=g)
    kept, wanted = base.clone(), Protection(base.clone())
    made = Protection(base, own=own)
    for each in (wanted, made):
        each.add(*blocks)
    assert torch.equal(made.solve(probe), wanted.solve(probe))
    assert torch.equal(base, kept) != own
