"""Step 1 against a plain loop: the same z, the same steps, whatever the companions."""

from dataclasses import replace

import pytest
import torch

from ketools.editing import targets
from ketools.editing import targets as descent
from ketools.editing.keys import fact_rows
from ketools.editing.methods import MPES, FixedSteps, ProbabilityThreshold, method, scaled
from ketools.editing.stopping import Passes
from ketools.editing.targets import Descent, compute_targets
from ketools.errors import KetoolsError
from ketools.models import replay
from ketools.models.model import EditableModel
from ketools.models.scoring import target_logprobs
from ketools.reference.targets import plain_target
from tests.plain import plain_settings

CONTEXTS = ["", "The tower of Vell. ", "Therefore you sang because. ", "I. "]
HYPER = replace(scaled("memit"), layers=(0, 1), lr=0.5, steps=15, clamp_norm_factor=4.0)


@pytest.mark.parametrize("stopping", [FixedSteps(), MPES(0), MPES(2), ProbabilityThreshold(0.3)], ids=str)
def test_targets_equal_the_plain_loop(tiny_model, tiny_facts, stopping):
    tiny_model.model.double()  # in float32 fifteen steps of Adam carry rounding to 1.1e-5; step 1 keeps z in float32
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, HYPER)
    steps = []
    for i, fact in enumerate(tiny_facts):
        want = plain_target(tiny_model, fact, CONTEXTS, **plain_settings(HYPER, stopping))
        assert (got.z[i] - want.z).norm() <= 1e-5 * want.z.norm()
        assert (got.h0[i] - want.h0).norm() <= 1e-6 * want.h0.norm()
        assert got.steps[i] == want.steps
        assert got.p_target[i] == pytest.approx(want.p_target, rel=5e-6)
        assert got.loss[i] == pytest.approx(want.loss, rel=5e-6)
        steps.append(want.steps)
    if not isinstance(stopping, FixedSteps):
        assert len(set(steps)) > 1, "the test should see facts that stop at different steps"


FIVE = [*CONTEXTS, "You may visit. ", "Because he plays. "]  # the authors' number of prefixes
OFFICIAL = replace(HYPER, compat="official", kl_direction="edited")


@pytest.mark.parametrize("patience", [0, 2])
def test_official_stopping_equals_the_plain_loop(tiny_model, tiny_facts, patience):
    tiny_model.model.double()
    got = compute_targets(tiny_model, tiny_facts, FIVE, MPES(patience), OFFICIAL)
    for i, fact in enumerate(tiny_facts):
        want = plain_target(tiny_model, fact, FIVE, **plain_settings(OFFICIAL, MPES(patience)))
        assert (got.z[i] - want.z).norm() <= 1e-5 * want.z.norm() and got.steps[i] == want.steps
    assert got.steps.tolist() != compute_targets(tiny_model, tiny_facts, FIVE, MPES(patience), HYPER).steps.tolist()


def stopped_at(rule, hyper, right, n_context=6, n_token=1):
    """At which pass `rule` stops when the target tokens that `right(pass, context, token)` says are the most probable."""
    none = torch.zeros(1, dtype=torch.long)
    passes = Passes(taken=none, p=torch.zeros(1), first_top=none - 1, official=none)
    for at in range(20):
        pairs = [(c, right(at, c, t)) for c in range(n_context) for t in range(n_token)]
        passes.taken = none + at
        wrong, prefixed = sum(not good for _, good in pairs), sum(good for c, good in pairs if c > 0)
        passes.see(torch.zeros(1), none + wrong, none + prefixed)
        if rule.stops(passes, hyper)[0]:
            return at
    return None


def test_where_the_authors_code_and_mpes_part():
    def both(n_token, patience, right):
        return tuple(stopped_at(MPES(patience), hyper, right, n_token=n_token) for hyper in (HYPER, OFFICIAL))

    # Alike for single tokens, once the bare prompt is right with the others and stays so.
    assert both(1, 0, lambda at, c, t: at >= 4) == (4, 4)
    assert both(1, 3, lambda at, c, t: at >= 4) == (7, 7)
    # The bare prompt is context 0: it must be right too, and does not count for the code.
    assert both(1, 0, lambda at, c, t: at >= 4 and (c > 0 or at >= 9)) == (9, 4)
    # Ten pairs are not five: with two tokens the code never stops.
    assert both(2, 0, lambda at, c, t: at >= 4) == (4, None)
    # Five of ten: first tokens alone are enough for the code.
    assert both(2, 0, lambda at, c, t: at >= 4 and (t == 0 or at >= 9)) == (9, 4)
    # Extra steps: n further ones, against the (n + 1)-th pass in which it holds.
    assert both(1, 2, lambda at, c, t: at in (3, 6, 8)) == (5, 8)


def test_the_other_rules():
    assert stopped_at(FixedSteps(), HYPER, lambda at, c, t: True) is None
    assert stopped_at(MPES(), replace(HYPER, patience=3), lambda at, c, t: at >= 2) == 5
    none = torch.zeros(3, dtype=torch.long)
    passes = Passes(none, torch.tensor([0.2, 0.3, 0.4]), none - 1, none)
    assert ProbabilityThreshold(0.25).stops(passes, HYPER).tolist() == [False, True, True]


def test_mpes_stops_at_the_most_probable_token_everywhere(tiny_model, tiny_facts):
    facts, patience = tiny_facts[:4], 2
    got = compute_targets(tiny_model, facts, CONTEXTS, MPES(patience), HYPER)
    # The states on the way, by stopping earlier.
    way = [
        compute_targets(tiny_model, facts, CONTEXTS, FixedSteps(), replace(HYPER, steps=at + 1)).z
        for at in range(int(got.steps.max()) + 1)
    ]
    tested = 0
    for i, fact in enumerate(facts):
        if got.steps[i] < HYPER.steps - 1 and got.loss[i] >= HYPER.loss_floor:
            tops = [_all_top(tiny_model, fact, z[i], got.h0[i]) for z in way[: int(got.steps[i]) + 1]]
            assert tops.index(True) == got.steps[i] - patience
            tested += 1
    assert tested


def _all_top(model, fact, z, start):
    # Whole forwards with delta added at the subject: are all target tokens the most probable in every context?
    right = []
    for row in fact_rows(model, [fact], CONTEXTS)[0].contexts:

        def put(_, __, out, place=row.subject_last):
            states = (out[0] if isinstance(out, tuple) else out).clone()
            states[0, place] += z - start
            return (states, *out[1:]) if isinstance(out, tuple) else states

        handle = model.layer(HYPER.layers[-1]).register_forward_hook(put)
        try:
            logits = model.model(torch.tensor([row.ids])).logits[0]
        finally:
            handle.remove()
        right += [logits[p].argmax() == t for p, t in zip(row.target_positions, row.target_ids)]
    return all(right)


def test_known_says_whose_target_is_the_top_answer(tiny_model, tiny_facts):
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(0), HYPER)
    top = target_logprobs(tiny_model, [f.text for f in tiny_facts], [f.target_new for f in tiny_facts])[1]
    assert got.known.tolist() == top.tolist()


def test_a_callback_sees_every_pass(tiny_model, tiny_facts):
    hyper, seen = replace(HYPER, facts_at_once=2), []
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), hyper, callback=seen.append)
    plain = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), hyper)
    assert torch.equal(got.z, plain.z)
    for i in range(len(tiny_facts)):
        rows = [(int(n), z, float(p), bool(top)) for one in seen for f, n, z, p, top in
                zip(one.facts, one.taken, one.z, one.p, one.top, strict=True) if f == i]  # fmt: skip
        assert sorted(n for n, *_ in rows) == list(range(int(got.steps[i]) + 1)), "each pass once"
        rows.sort(key=lambda row: row[0])
        assert torch.equal(rows[0][1], got.h0[i]) and torch.equal(rows[-1][1], got.z[i])
        assert [p for _, _, p, _ in rows] == got.trace[i, : len(rows)].tolist()
        tops = [top for *_, top in rows]
        assert got.loss[i] < hyper.loss_floor or len(rows) == hyper.steps or tops.index(True) == got.steps[i] - 1


def test_on_a_cpu_the_model_alone_decides_how_many_tokens_a_pass_has(tiny_gpt2, monkeypatch):
    one = 2 * (12 * 32 + 5 * 64) * 4  # two layers above layer 1, width 32, MLP 64, float32
    assert {replay.tokens_at_once(tiny_gpt2, layer) for layer in range(4)} == {replay._TOKENS_ON_CPU}
    monkeypatch.setattr(replay, "_BYTES_ON_CPU", 700 * one)
    assert replay.tokens_at_once(tiny_gpt2, 1) == 700
    assert replay.tokens_at_once(tiny_gpt2, 2) == replay.tokens_at_once(tiny_gpt2, 3) == 1400  # one layer, or none
    monkeypatch.setattr(replay, "_BYTES_ON_CPU", one)
    assert replay.tokens_at_once(tiny_gpt2, 1) == replay._TOKENS[0]


@pytest.fixture
def with_memory(monkeypatch):
    """A function of a number of bytes: from now on models seem to lie on an accelerator with so many free."""

    def make(free):
        monkeypatch.setattr(EditableModel, "device", property(lambda self: torch.device("cuda")))
        monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (int(free), 2**50))

    return make


def test_on_an_accelerator_half_of_the_free_memory_is_filled_with_tokens(tiny_gpt2, with_memory):
    one = 2 * (12 * 32 + 5 * 64) * 4  # two layers above layer 1, width 32, MLP 64, float32
    with_memory(2 * 1000 * one)
    assert replay.tokens_at_once(tiny_gpt2, 1) == 1000
    assert replay.tokens_at_once(tiny_gpt2, 2) == replay.tokens_at_once(tiny_gpt2, 3) == 2000  # one layer, or none
    tiny_gpt2.model.half()
    assert replay.tokens_at_once(tiny_gpt2, 1) == 2000
    low, high = replay._TOKENS
    for free, tokens in ((0, low), (4 * low - 4, low), (4 * low + 4, low + 1), (4 * high, high), (2**50, high)):
        with_memory(free * one / 4)  # half precision: a half of `one` a token
        assert replay.tokens_at_once(tiny_gpt2, 1) == tokens


@pytest.mark.parametrize("tokens", [1, 100, 10**6])
@pytest.mark.parametrize("knob", [None, 1, 3])
def test_how_many_facts_at_once_follows_from_the_tokens_or_is_given(tiny_gpt2, tiny_facts, monkeypatch, knob, tokens):
    rows, asked, seen, real = fact_rows(tiny_gpt2, tiny_facts, CONTEXTS), [], [], Descent
    monkeypatch.setattr(targets, "tokens_at_once", lambda model, layer: asked.append(layer) or tokens)
    monkeypatch.setattr(
        targets, "Descent", lambda m, pool, how, hyper, n: seen.append((pool, n)) or real(m, pool, how, hyper, n)
    )
    hyper = replace(HYPER, steps=1, facts_at_once=knob)
    compute_targets(tiny_gpt2, tiny_facts, CONTEXTS, FixedSteps(), hyper, rows=rows)
    assert asked == [HYPER.layers[-1]] and sum(len(pool) for pool, _ in seen) == len(rows)
    for pool, n in seen:
        places = len(CONTEXTS) * max(row.suffix for row in pool)
        assert n == (knob or max(1, tokens // places)), "as many as fit, one at least; or what is asked for"
        assert len(pool) <= targets._POOL * n


def test_companions_do_not_matter(tiny_model, tiny_facts):
    together = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), HYPER)
    for i in (0, 3):
        alone = compute_targets(tiny_model, tiny_facts[i : i + 1], CONTEXTS, MPES(1), HYPER)
        assert (together.z[i] - alone.z[0]).norm() <= 1e-5 * alone.z[0].norm()
        assert together.steps[i] == alone.steps[0]
    again = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), HYPER)
    assert torch.equal(together.z, again.z)


def test_delta_stays_in_the_ball(tiny_model, tiny_facts):
    hyper = replace(scaled("memit"), layers=(1,), clamp_norm_factor=0.2, steps=10)
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, FixedSteps(), hyper)
    assert (got.delta_norm <= 0.2 * got.h0.norm(dim=1) * (1 + 1e-6)).all()
    assert torch.isnan(got.trace).sum() == 0 and torch.allclose(got.trace[:, -1], got.p_target)


@pytest.mark.parametrize("direction", ["reference", "edited"])
def test_fused_losses_are_those_of_autograd(tiny_model, direction, monkeypatch):
    monkeypatch.setitem(targets._ENTRIES, "cpu", 1000)  # several blocks
    model = tiny_model
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, model.anatomy.d_model, generator=generator, requires_grad=True)
    tokens = torch.randint(0, 300, (9,), generator=generator)
    reference = torch.randn(9, model.model.config.vocab_size, generator=generator).log_softmax(1)
    logprob = model.logits(model.final_norm(states)).log_softmax(1)
    p, q = (reference, logprob) if direction == "reference" else (logprob, reference)
    want = [-logprob[torch.arange(9), tokens], (p.exp() * (p - q)).sum(1)]
    got = [targets.token_losses(model, states, tokens)[0], targets.divergences(model, states, reference, direction)]
    weights = torch.linspace(0.1, 1, 9)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        one, other = (torch.autograd.grad((x * weights).sum(), states, retain_graph=True)[0] for x in (a, b))
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("asked_every", [1, 3])
def test_facts_that_take_the_place_of_finished_ones_come_to_the_same(tiny_model, tiny_facts, monkeypatch, asked_every):
    monkeypatch.setitem(descent._EVERY, "cpu", asked_every)
    rows = fact_rows(tiny_model, tiny_facts, CONTEXTS)
    alike = [row for row in rows if row.shares_kl == rows[0].shares_kl]
    assert len(alike) > 3
    soon = ProbabilityThreshold(0.1)  # so that they stop at different passes
    whole = descent.Descent(tiny_model, alike, soon, HYPER).run()
    heard = []
    queue = descent.Descent(tiny_model, alike, soon, HYPER, at_once=2)
    got = queue.run(heard.append)
    assert sum(heard) == len(alike) and len(heard) > 1
    assert got.steps.tolist() == whole.steps.tolist() and len(set(got.steps.tolist())) > 1
    for name in ("z", "h0", "p_target", "loss", "trace"):
        torch.testing.assert_close(getattr(got, name), getattr(whole, name), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 15])
@pytest.mark.parametrize("stopping", [FixedSteps(), MPES(0), MPES(2)], ids=str)
def test_a_last_pass_without_gradient_finds_the_same(tiny_model, tiny_facts, monkeypatch, steps, stopping):
    hyper = replace(HYPER, steps=steps)
    early = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, hyper)
    monkeypatch.setattr(Descent, "_certain", lambda self: torch.zeros_like(self.state.done))
    late = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, hyper)
    for name in ("z", "p_target", "loss", "trace", "delta_norm"):
        torch.testing.assert_close(getattr(early, name), getattr(late, name), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert early.steps.tolist() == late.steps.tolist() and early.known.tolist() == late.known.tolist()


def test_gradients_are_not_computed_for_last_passes(tiny_model, tiny_facts, monkeypatch):
    passes = []
    real = Descent._evaluate
    monkeypatch.setattr(
        Descent, "_evaluate", lambda self, slope: passes.append((slope, len(self.active))) or real(self, slope)
    )
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, FixedSteps(), HYPER)
    assert sum(n for slope, n in passes if slope) == int(got.steps.sum())
    assert sum(n for slope, n in passes if not slope) == len(tiny_facts)


def test_padding_is_counted(tiny_model, tiny_facts):
    got = compute_targets(tiny_model, tiny_facts, CONTEXTS, MPES(1), HYPER)
    rows = fact_rows(tiny_model, tiny_facts, CONTEXTS)
    live = [sum(len(row.ids) - row.subject_last for row in fact.contexts) for fact in rows]
    assert got.tokens.tolist() == [(int(s) + 1) * n for s, n in zip(got.steps, live)]
    assert (got.tokens <= got.positions).all() and 0 <= got.padding <= 0.15
    alone = compute_targets(tiny_model, tiny_facts[:1], CONTEXTS, MPES(1), HYPER)
    longest = max(len(row.ids) - row.subject_last for row in rows[0].contexts)
    assert alone.positions.tolist() == [(int(alone.steps[0]) + 1) * len(CONTEXTS) * longest]


def test_bfloat16_is_near_and_only_when_asked_for(tiny_model, tiny_facts):
    stopping = FixedSteps()
    exact = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, HYPER)
    rough = compute_targets(tiny_model, tiny_facts, CONTEXTS, stopping, replace(HYPER, precision="bfloat16"))
    gap = (rough.z - exact.z).norm(dim=1) / exact.z.norm(dim=1)
    assert 1e-5 < gap.max() < 0.3 and rough.z.dtype == torch.float32
    assert torch.allclose(rough.p_target, exact.p_target, atol=0.1)
    with pytest.raises(KetoolsError, match="setting precision: input should be 'weights' or 'bfloat16', found 'half'"):
        method("encore").settings(tiny_model, precision="half")


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_come_to_the_same(tiny_model, tiny_facts, monkeypatch):
    compiled = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda layer, **how: compiled.append(layer) or real(layer, **how))
    hyper = replace(HYPER, steps=4, layers=(0,))
    want = compute_targets(tiny_model, tiny_facts[:3], CONTEXTS, FixedSteps(), hyper)
    assert not compiled, "only when asked for"
    got = compute_targets(tiny_model, tiny_facts[:3], CONTEXTS, FixedSteps(), replace(hyper, compile="aot_eager"))
    assert set(compiled) == {tiny_model.layer(1), tiny_model.layer(2)}, "all above the edited one but the top"
    torch.testing.assert_close(got.z, want.z, rtol=1e-5, atol=1e-5)
    assert got.steps.tolist() == want.steps.tolist()
