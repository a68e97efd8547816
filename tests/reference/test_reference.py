"""The reference against facts that owe nothing to it: finite differences, constraints, cases worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ketools.reference import score, success
from ketools.reference.targets import mpes_holds, mpes_official, plain_target, plain_targets
from ketools.reference.tracing import Tokens, knocked_out, probability, restored, states
from ketools.reference.update import alphaedit, emmet, memit, null_space_projection, rome

CONTEXTS = ["", "The tower of Vell. "]
seeds = st.integers(0, 2**31)


def nll(model, fact, context, layer, delta):
    """The target's mean token NLL, with delta added after `layer` at the subject's last token, without a gradient."""
    text = context + fact.text
    encoded = model.tokenizer(text, return_offsets_mapping=True)
    target = model.tokenizer(f" {fact.target_new}")["input_ids"]
    end = text.rindex(fact.subject) + len(fact.subject)
    last = next(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end <= b)

    def add(_, __, out):
        (out[0] if isinstance(out, tuple) else out)[0, last] += delta

    handle = model.layer(layer).register_forward_hook(add)
    with torch.no_grad():
        logits = model.model(torch.tensor([encoded["input_ids"] + target])).logits[0, -len(target) - 1 : -1]
    handle.remove()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()


def test_the_first_step_follows_the_slope_by_finite_differences(tiny_model, tiny_facts):
    # Adam's first step is -lr sign(slope); KL and decay have no slope at delta = 0.
    tiny_model.model.double()
    fact, layer, h = tiny_facts[1], 1, 1e-3
    target = plain_target(tiny_model, fact, CONTEXTS, layer, lr=1e-3, steps=2, loss_floor=-math.inf)
    assert target.steps == 1
    unit = torch.eye(tiny_model.anatomy.d_model, dtype=torch.float64)
    for i in range(0, len(unit), 4):
        up, down = (sum(nll(tiny_model, fact, c, layer, s * h * unit[i]) for c in CONTEXTS) for s in (1, -1))
        assert float(target.z[i] - target.h0[i]) == pytest.approx(math.copysign(1e-3, down - up), rel=1e-3)


def test_the_target_is_reached_within_the_ball_and_batches_agree(tiny_model, tiny_facts):
    long, short = (plain_target(tiny_model, tiny_facts[1], CONTEXTS, 1, steps=n, clamp_norm_factor=4.0) for n in (9, 2))
    assert long.steps == 8 and short.steps == 1 and long.p_target > short.p_target and long.loss < short.loss
    tight = plain_target(tiny_model, tiny_facts[1], CONTEXTS, 1, clamp_norm_factor=0.1)
    assert float((tight.z - tight.h0).norm()) <= 0.1 * float(tight.h0.norm()) * (1 + 1e-6)
    batch = plain_targets(tiny_model, tiny_facts[:3], CONTEXTS, 1, steps=8, clamp_norm_factor=4.0, mpes=1)
    for fact, got in zip(tiny_facts[:3], batch, strict=True):
        want = plain_target(tiny_model, fact, CONTEXTS, 1, steps=8, clamp_norm_factor=4.0, mpes=1)
        assert got.steps == want.steps and torch.allclose(got.z, want.z, rtol=1e-3, atol=1e-4)


def test_when_mpes_stops():
    no, but_bare, yes = torch.zeros(6, 1), torch.ones(6, 1), torch.ones(6, 1)
    but_bare[0] = 0
    history = [no, but_bare, yes, no]
    assert [mpes_holds(history[: n + 1], 0) for n in range(4)] == [False, False, True, True]
    assert [mpes_holds(history[: n + 1], 1) for n in range(4)] == [False, False, False, True]
    assert [mpes_official(history[: n + 1], 0) for n in range(4)] == [False, True, True, True]
    assert [mpes_official(history[: n + 1], 1) for n in range(4)] == [False, False, True, True]
    assert mpes_holds([torch.ones(6, 2)], 0) and not mpes_official([torch.ones(6, 2)], 0), "ten hits are not five"


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_what_each_update_promises(seed):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    K0, K1, R, Kp = draw(8, 40), draw(8, 3), draw(4, 3), draw(8, 2)
    C = K0 @ K0.T / 40
    assert torch.allclose(emmet(C, K1, R) @ K1, R)
    assert torch.allclose(rome(C, K1[:, :1], R[:, :1], Kp[:, :1]) @ Kp[:, :1], R[:, :1], rtol=1e-7)
    assert torch.allclose(rome(C, K1[:, :1], R[:, :1]), emmet(C, K1[:, :1], R[:, :1]))
    weights, keys = torch.tensor([3 / 40] * 40 + [1.0] * 5), torch.cat([K0, Kp, K1], 1)  # ridge regression by rows
    values = torch.cat([torch.zeros(4, 42, dtype=torch.float64), R], 1)
    ridge = torch.cat([keys * weights.double().sqrt(), 2.0**0.5 * torch.eye(8, dtype=torch.float64)], 1)
    wanted = torch.cat([values * weights.double().sqrt(), torch.zeros(4, 8, dtype=torch.float64)], 1)
    assert torch.allclose(memit(C, K1, R, 3.0, Kp, 2.0), torch.linalg.lstsq(ridge.T, wanted.T).solution.T)
    P = null_space_projection(C, float(torch.linalg.eigvalsh(C)[4:6].mean()))
    Delta = alphaedit(P, K1, R, 0.5, Kp)
    assert P.trace().item() == pytest.approx(5) and torch.allclose(P @ P, P)
    assert torch.allclose(Delta @ P, Delta) and torch.linalg.matrix_rank(Delta) <= 3
    assert torch.allclose(memit(torch.eye(1).double(), *torch.ones(2, 1, 1).double(), 3.0), torch.tensor(0.25).double())


def test_tracing_restores_what_noise_took(tiny_model, tiny_facts):
    fact = tiny_facts[0]
    ids, target = (tiny_model.tokenizer(text)["input_ids"] for text in (fact.text, f" {fact.target_new}"))
    last = len(tiny_model.tokenizer(fact.subject)["input_ids"]) - 1  # the prompt begins with its subject
    tokens = Tokens(ids + target[:-1], 0, last, target)
    clean = probability(tiny_model, tokens)
    assert tokens.end == len(ids) - 1
    assert clean == pytest.approx(math.exp(score(tiny_model, fact.text, fact.target_new)[0]), rel=1e-5)
    width, everywhere = tiny_model.anatomy.d_model, range(len(tokens.ids))
    noise = 5 * torch.randn(last + 1, width, generator=torch.Generator().manual_seed(0))
    corrupted = states(tiny_model, tokens, noise)[1]
    assert states(tiny_model, tokens, 0 * noise)[1] == clean == states(tiny_model, tokens)[1] and corrupted != clean
    assert restored(tiny_model, tokens, noise, "hidden", [2], everywhere) == pytest.approx(clean, rel=1e-5)
    assert restored(tiny_model, tokens, noise, "mlp", [0], []) == pytest.approx(corrupted, rel=1e-5)
    for kind in ("hidden, mlp severed", "hidden, attention severed"):
        p = restored(tiny_model, tokens, noise, kind, [1], everywhere)
        assert p != pytest.approx(clean, rel=1e-5) and p != pytest.approx(corrupted, rel=1e-5)


def test_knockout_of_the_subject_hides_it(tiny_model):
    tiny_model.model.set_attn_implementation("eager")

    def p(subject, layers):
        ids = tiny_model.tokenizer(f"{subject} is")["input_ids"]
        return len(ids), knocked_out(tiny_model, Tokens(ids, 0, len(ids) - 2, [5]), layers, range(len(ids) - 1))

    (n, a), (m, b) = p("Vex", range(4)), p("Zog", range(4))
    assert n == m and a == pytest.approx(b, rel=1e-5)
    assert p("Vex", [])[1] != pytest.approx(p("Zog", [])[1], rel=1e-5)


def test_scores_of_a_fact(tiny_model, tiny_facts):
    fact = tiny_facts[0]
    mean, hit = score(tiny_model, fact.text, fact.target_true)
    assert mean < 0 and isinstance(hit, bool)
    es, ps, ns = success(tiny_model, fact, 5)
    assert es == (score(tiny_model, fact.text, fact.target_new)[0] > mean) and ps in (0.0, 1.0) and math.isnan(ns)
