"""Models whose layers carry a recurrent state beside attention: the engine says so and runs whole prompts."""

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ketools import Editor, Fact, KetoolsError, edited, load
from ketools.editing.covariance import Statistics
from ketools.editing.keys import fact_rows, keys_and_states
from ketools.editing.methods import ENCORE, FixedSteps, scaled
from ketools.editing.targets import compute_targets
from ketools.models.replay import freeze
from ketools.probing.tracing import trace
from ketools.reference.targets import plain_target
from tests.models.test_architectures import CONTEXTS, GROUPED, SMALL
from tests.plain import plain_settings
from tests.saying import said_once

MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
KINDS = {
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": MAMBA | {"mamba_chunk_size": 8, "head_dim": 8},
    "olmo_hybrid": {},
}


def network(kind):
    """A random model of a kind, its attention sharp enough to tell tokens apart."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | GROUPED | KINDS[kind]))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return made


@pytest.fixture(params=KINDS)
def model(request, tiny_tokenizer):
    return load(network(request.param), tokenizer=tiny_tokenizer)


def test_targets_equal_the_plain_loop_and_it_is_said(model, tiny_facts):
    assert not model.replays
    hyper = replace(scaled("memit"), layers=(1,), steps=4, clamp_norm_factor=4.0, facts_at_once=2)
    with said_once("carries a recurrent state: .*whole prompts are run in every pass"):
        got = compute_targets(model, tiny_facts, CONTEXTS, FixedSteps(), hyper)
    for i, fact in enumerate(tiny_facts):
        want = plain_target(model, fact, CONTEXTS, **plain_settings(hyper, FixedSteps()))
        assert (got.h0[i] - want.h0).norm() <= 1e-5 * want.h0.norm()
        assert (got.z[i] - want.z).norm() <= 1e-5 * want.z.norm()
        assert got.loss[i] == pytest.approx(want.loss, rel=1e-5)


def heard_at_the_subject(model, row):
    heard = {}
    handles = [
        model.mlp_out(1).register_forward_pre_hook(lambda _, args: heard.update(key=args[0])),
        model.layer(2).register_forward_hook(
            lambda _, __, out: heard.update(state=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    model.model(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return {name: value[0, row.subject_last].double() for name, value in heard.items()}


@torch.no_grad()
def test_keys_and_states_equal_the_plain_forward(model, tiny_facts):
    rows = fact_rows(model, tiny_facts, CONTEXTS)
    with said_once("carries a recurrent state"):
        keys, states = keys_and_states(model, rows, 1, 2)
    for i, row in enumerate(rows):
        found = [heard_at_the_subject(model, context) for context in row.contexts]
        want = (found[0]["key"] + torch.stack([f["key"] for f in found[1:]]).mean(0)) / 2
        assert (keys[:, i] - want).norm() <= 1e-5 * want.norm()
        assert (states[:, i] - found[0]["state"]).norm() <= 1e-5 * found[0]["state"].norm()


@pytest.mark.filterwarnings("ignore:.*recurrent state")
def test_an_edit_goes_in_and_out(model, tiny_facts):
    before = [weight.clone() for weight in model.model.parameters()]
    eye = torch.eye(model.anatomy.d_mlp, dtype=torch.float64)
    known = Statistics({1: eye}, 1000, {"fingerprint": model.fingerprint})
    how = replace(ENCORE, stopping=FixedSteps())
    it = Editor(model, how, statistics=known, layers=[1], prefixes=["You sang"], steps=6, lambda_p=0.01, lambda_n=0.01)
    edit = it.apply(tiny_facts[:3])
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.model.parameters())) == 1
    now, target = keys_and_states(model, fact_rows(model, tiny_facts[:3], ("",)), 1, 1)[1], it.targets(tiny_facts[:3])
    assert now.isfinite().all() and target.z.isfinite().all()
    it.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters()))
    with edited(model, edit):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters()))


def test_what_needs_replay_is_refused(model, tiny_facts):
    with pytest.raises(KetoolsError, match=r"cannot be replayed from the middle.*take a model of attention layers"):
        freeze(model, [[1, 2, 3]], [1], 0)
    fact = Fact("1", "r", "{} lives in", "Ada Lorn", "Vell", "Sall")
    with warnings.catch_warnings(), pytest.raises(KetoolsError, match="cannot be replayed|knows none"):
        warnings.simplefilter("ignore")
        trace(model, [fact])


@pytest.mark.filterwarnings("error")
def test_attention_alone_is_replayed_without_a_word(tiny_model, tiny_facts):
    assert tiny_model.replays
    compute_targets(tiny_model, tiny_facts[:2], CONTEXTS, FixedSteps(), replace(scaled("memit"), layers=(1,), steps=2))
