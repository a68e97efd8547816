"""The closed forms: each is the minimiser of its objective, and falls together with its special cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools import KetoolsError
from ketools.editing.methods import Absolute, Constraint, LeastSquares, NullSpace
from ketools.editing.update import Protection, constrained, least_squares, null_space, quadratic_form
from ketools.errors import NotFinite
from ketools.reference.update import alphaedit, emmet, memit, null_space_projection, rome


def problem(seed, d_mlp=12, d_model=5, n=4, past=6):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    prose = randn(d_mlp, 5 * d_mlp)
    return prose @ prose.T / prose.shape[1], randn(d_mlp, n), randn(d_model, n), randn(d_mlp, past)


def minimised(objective, shape):
    """The minimiser by L-BFGS."""
    delta = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [delta], lr=1, max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(delta)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return delta.detach()


def product(factors):
    return factors[0] @ factors[1].T


seeds = st.integers(0, 2**31)
positive = st.floats(0.01, 100)


@settings(max_examples=30, deadline=None)
@given(seeds, positive, st.floats(0, 100))
def test_encores_gradient_is_zero_at_the_solution(seed, lambda_p, lambda_n):
    c, k1, r, kp = problem(seed)
    protection = Protection(lambda_p * c + lambda_n * torch.eye(len(c), dtype=c.dtype))
    protection.add(kp)
    delta = product(least_squares(protection, k1, r)).requires_grad_()
    prose = torch.linalg.cholesky(c)
    loss = (
        lambda_p * (delta @ prose).square().sum()
        + (delta @ kp).square().sum()
        + (delta @ k1 - r).square().sum()
        + lambda_n * delta.square().sum()
    )
    (slope,) = torch.autograd.grad(loss, delta)
    assert slope.norm() <= 1e-9 * (r @ k1.T).norm()


# The same examples each time: how far L-BFGS gets depends on the problem's condition.
few = settings(max_examples=5, deadline=None, derandomize=True)
moderate = st.floats(0.5, 4)


@few
@given(seeds, moderate, st.floats(0, 5), st.booleans())
def test_least_squares_is_what_lbfgs_finds(seed, lambda_p, lambda_n, past):
    # MEMIT, MEMIT with past keys, and ENCORE, by what is zero.
    c, k1, r, kp = problem(seed)
    protection = Protection(lambda_p * c + lambda_n * torch.eye(len(c), dtype=c.dtype))
    if past:
        protection.add(kp)
    prose = torch.linalg.cholesky(c)
    want = minimised(
        lambda d: (
            lambda_p * (d @ prose).square().sum()
            + past * (d @ kp).square().sum()
            + (d @ k1 - r).square().sum()
            + lambda_n * d.square().sum()
        ),
        (len(r), len(c)),
    )
    assert (product(least_squares(protection, k1, r)) - want).norm() <= 1e-6 * want.norm()


@few
@given(seeds, st.integers(1, 4), moderate)
def test_emmet_is_what_lbfgs_finds_under_its_constraint(seed, n, lambda_p):
    c, k1, r, _ = problem(seed, n=n)
    prose = torch.linalg.cholesky(c)
    start = r @ torch.linalg.pinv(k1)  # holds exactly; what is free lies in the kernel of K1^T
    kernel = torch.linalg.svd(k1.T).Vh[n:]
    free = minimised(lambda f: ((start + f @ kernel) @ prose).square().sum(), (len(r), len(kernel)))
    want = start + free @ kernel
    assert (product(least_squares(Protection(lambda_p * c), k1, r, slack=0.0)) - want).norm() <= 1e-6 * want.norm()


@few
@given(seeds, st.floats(0.5, 2), moderate)
def test_emmet_with_a_ridge_is_what_lbfgs_finds(seed, slack, lambda_p):
    c, k1, r, _ = problem(seed)
    prose = torch.linalg.cholesky(c)
    want = minimised(
        lambda d: (d @ k1 - r).square().sum() / slack + lambda_p * (d @ prose).square().sum(), (len(r), len(c))
    )
    got = product(least_squares(Protection(lambda_p * c), k1, r, slack))
    assert (got - want).norm() <= 1e-6 * want.norm()
    dense = emmet(lambda_p * c, k1, r, slack)
    assert (got - dense).norm() <= 1e-9 * dense.norm()


@pytest.mark.parametrize("seed", range(3))
def test_alphaedit_is_what_lbfgs_finds_in_its_null_space(seed):
    c, k1, r, kp = problem(seed)
    threshold = torch.linalg.eigvalsh(c).median().item()
    u = null_space(c, threshold)
    protection = Protection(3.0 * torch.eye(u.shape[1], dtype=u.dtype), u)
    protection.add(kp)
    # The published objective, over Delta' = Delta P: ||Delta P K1 - R||^2 + ||Delta P K_p||^2 + l2 ||Delta P||^2.
    inner = minimised(
        lambda d: (d @ u.T @ k1 - r).square().sum() + (d @ u.T @ kp).square().sum() + 3 * d.square().sum(),
        (len(r), u.shape[1]),
    )
    got = product(least_squares(protection, k1, r))
    assert (got - inner @ u.T).norm() <= 1e-6 * inner.norm()
    published = alphaedit(null_space_projection(c, threshold), k1, r, 3.0, kp)
    assert (got - published).norm() <= 1e-8 * published.norm()


@settings(max_examples=20, deadline=None)
@given(seeds, moderate, moderate, st.booleans())
def test_each_quadratic_form_is_the_papers(seed, lambda_p, lambda_n, past):
    c, k1, r, kp = problem(seed)
    kp = kp if past else kp[:, :0]
    hyper = Absolute(lambda_p, lambda_n, null_threshold=float(torch.linalg.eigvalsh(c)[5:7].mean()), l2=2.0)
    for update, slack, want in (
        (LeastSquares(norm=False), 1.0, memit(c, k1, r, lambda_p, kp)),
        (LeastSquares(norm=True), 1.0, memit(c, k1, r, lambda_p, kp, lambda_n)),
        (NullSpace(), 1.0, alphaedit(null_space_projection(c, hyper.null_threshold), k1, r, hyper.l2, kp)),
        (Constraint(), 0.1, emmet(lambda_p * c + kp @ kp.T, k1, r, 0.1)),
    ):
        got = product(least_squares(quadratic_form(c, update, hyper, [kp] if past else []), k1, r, slack))
        assert (got - want).norm() <= 1e-8 * want.norm(), update


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_alphaedit_leaves_protected_directions_unmoved(seed):
    c, k1, r, _ = problem(seed)
    values, vectors = torch.linalg.eigh(c)
    u = null_space(c, float(values[6]))
    delta = product(least_squares(Protection(torch.eye(u.shape[1], dtype=u.dtype), u), k1, r))
    assert (delta @ vectors[:, 6:]).norm() <= 1e-12 * delta.norm()


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_alphaedit_without_a_threshold_is_ridge_regression(seed):
    c, k1, r, _ = problem(seed)
    u = null_space(c, torch.inf)
    got = product(least_squares(Protection(2 * torch.eye(len(c), dtype=c.dtype), u), k1, r))
    assert torch.allclose(got, memit(c, k1, r, lambda_p=0.0, lambda_n=2.0), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seeds, positive)
def test_encore_without_norm_and_past_is_memit(seed, lambda_p):
    c, k1, r, _ = problem(seed)
    encore = Protection(lambda_p * c + 0.0 * torch.eye(len(c), dtype=c.dtype))
    assert torch.allclose(product(least_squares(encore, k1, r)), memit(c, k1, r, lambda_p), rtol=1e-8, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(seeds, positive)
def test_emmet_with_one_fact_is_rome_and_holds_exactly(seed, lambda_p):
    c, k1, r, _ = problem(seed, n=1)
    delta = product(least_squares(Protection(lambda_p * c), k1, r, slack=0.0))
    assert torch.allclose(delta, rome(c, k1, r), rtol=1e-9, atol=1e-12)
    assert torch.allclose(delta @ k1, r, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_rome_of_the_published_code_holds_on_the_bare_key(seed, apart):
    c, k1, r, other = problem(seed, n=1, past=1)
    bare = k1 + apart * other
    delta = product(constrained(Protection(3.0 * c), k1, r, bare))
    assert torch.allclose(delta, rome(c, k1, r, bare), rtol=1e-8, atol=1e-11)
    assert (delta @ bare - r).norm() <= 1e-9 * r.norm() * max(1, delta.norm() * bare.norm() / r.norm())
    r_rome = product(constrained(Protection(c), k1, r, k1))
    assert torch.allclose(r_rome, product(least_squares(Protection(c), k1, r, slack=0.0)), rtol=1e-9, atol=1e-12)
    assert (delta - r_rome).norm() <= 1e-9 * r_rome.norm() if apart == 0 else not torch.allclose(delta, r_rome, 1e-12)


def test_a_bare_key_across_the_averaged_one_makes_rome_large_and_not_r_rome():
    c, k1, r, other = problem(0, n=1, past=1)
    x = torch.linalg.solve(c, k1)
    across = other - k1 * (other.T @ x) / (k1.T @ x)  # across^T C^-1 k1 = 0
    sizes = [product(constrained(Protection(c), k1, r, across + e * k1)).norm() for e in (1, 1e-2, 1e-4)]
    assert sizes[1] > 50 * sizes[0] and sizes[2] > 50 * sizes[1]
    with pytest.raises(NotFinite, match=r"A has no finite solution.*R-ROME"):
        constrained(Protection(torch.eye(2).double()), torch.eye(2)[:, :1], torch.ones(3, 1), torch.eye(2)[:, 1:])


@pytest.mark.parametrize("seed", range(3))
def test_emmet_is_the_smallest_change_that_holds_exactly(seed):
    c, k1, r, _ = problem(seed)
    delta = product(least_squares(Protection(c), k1, r, slack=0.0))
    assert torch.allclose(delta @ k1, r, rtol=1e-9, atol=1e-11)
    kernel = torch.linalg.svd(k1.T).Vh[k1.shape[1] :].T  # directions that the constraint leaves free
    assert (delta @ c @ kernel).norm() <= 1e-10 * (delta @ c).norm()


def test_singular_covariance_says_rank_and_tokens():
    k = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KetoolsError, match=r"layer 3 is singular: rank 5 of 12.*at least 12"):
        Protection(k @ k.T, name="layer 3").solve(torch.ones(12, 1))


def test_two_equal_keys_cannot_both_hold_exactly():
    c, k1, r, _ = problem(0)
    k1[:, 1] = k1[:, 0]
    with pytest.raises(KetoolsError, match="same key"):
        least_squares(Protection(c), k1, r, slack=0.0)


def test_nan_is_refused():
    c, k1, r, _ = problem(0)
    with pytest.raises(KetoolsError, match="NaN"):
        Protection(c * torch.nan).solve(k1)
    with pytest.raises(KetoolsError, match="NaN"):
        least_squares(Protection(c), k1 * torch.nan, r)


def test_no_null_space():
    with pytest.raises(KetoolsError, match="null_threshold"):
        null_space(torch.eye(4, dtype=torch.float64), 0.5)
