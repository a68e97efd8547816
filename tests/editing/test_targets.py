"""Step 1 against a plain loop: the same z, the same steps, whatever the companions."""

import pytest
import torch

from ketools.editing.methods import MPES, FixedSteps, Hyper, ProbabilityThreshold
from ketools.editing.targets import compute_targets
from tests.reference.plain_targets import plain_target

CONTEXTS = ["", "The tower of Vell. ", "Therefore you sang because. ", "I. "]
HYPER = Hyper(layers=(0, 1), lr=0.5, steps=15, clamp_norm_factor=4.0)


@pytest.mark.parametrize("stopping", [FixedSteps(), MPES(0), MPES(2), ProbabilityThreshold(0.3)], ids=str)
def test_targets_equal_the_plain_loop(tiny_model, tiny_facts, stopping):
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, HYPER)
    steps = []
    for i, fact in enumerate(tiny_facts):
        want = plain_target(tiny_model, fact, CONTEXTS, stopping, HYPER)
        assert (got.z[i] - want.z).norm() <= 1e-4 * want.z.norm()
        assert torch.allclose(got.h0[i], want.h0, rtol=1e-5, atol=1e-6)
        assert got.steps[i] == want.steps
        assert got.p_target[i] == pytest.approx(want.p_target, rel=1e-3)
        assert got.loss[i] == pytest.approx(want.loss, rel=1e-3)
        steps.append(want.steps)
    if not isinstance(stopping, FixedSteps):
        assert len(set(steps)) > 1, "the test should see facts that stop at different steps"


def test_companions_do_not_matter(tiny_model, tiny_facts):
    together = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), HYPER)
    for i in (0, 3):
        alone = compute_targets(tiny_model, tiny_facts[i : i + 1], CONTEXTS, MPES(1), HYPER)
        assert (together.z[i] - alone.z[0]).norm() <= 1e-5 * alone.z[0].norm()
        assert together.steps[i] == alone.steps[0]
    again = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), HYPER)
    assert torch.equal(together.z, again.z)


def test_delta_stays_in_the_ball(tiny_model, tiny_facts):
    hyper = Hyper(layers=(1,), clamp_norm_factor=0.2, steps=10)
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, FixedSteps(), hyper)
    assert (got.delta_norm <= 0.2 * got.h0.norm(dim=1) * (1 + 1e-6)).all()
    assert torch.isnan(got.trace).sum() == 0 and torch.allclose(got.trace[:, -1], got.p_target)


@pytest.mark.parametrize("direction", ["reference", "edited"])
def test_fused_losses_are_those_of_autograd(tiny_model, direction, monkeypatch):
    from ketools.editing import readout

    monkeypatch.setattr(readout, "_ENTRIES", 1000)  # several blocks
    model = tiny_model
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, model.anatomy.d_model, generator=generator, requires_grad=True)
    tokens = torch.randint(0, 300, (9,), generator=generator)
    reference = torch.randn(9, model.model.config.vocab_size, generator=generator).log_softmax(1)
    logprob = model.logits(model.final_norm(states)).log_softmax(1)
    p, q = (reference, logprob) if direction == "reference" else (logprob, reference)
    want = [-logprob[torch.arange(9), tokens], (p.exp() * (p - q)).sum(1)]
    got = [readout.token_losses(model, states, tokens)[0], readout.divergences(model, states, reference, direction)]
    weights = torch.linspace(0.1, 1, 9)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        slopes = [torch.autograd.grad((x * weights).sum(), states, retain_graph=True)[0] for x in (a, b)]
        assert torch.allclose(*slopes, rtol=1e-4, atol=1e-6)
