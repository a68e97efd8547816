"""FT, FT-L and LoRA: they say the target, within their bounds, and leave the model as it was."""

from dataclasses import replace

import pytest
import torch

from ketools import load
from ketools.editing.baselines import fine_tune
from ketools.editing.edit import Edit
from ketools.editing.keys import fact_rows
from ketools.editing.methods import FineTune, scaled
from ketools.errors import NotFinite
from ketools.models.scoring import target_logprobs
from ketools.models.weights import edited

KINDS = ("ft", "ft-l", "lora")
HYPER = replace(scaled("ft-l"), layers=(0, 2), ft_lr=2e-2, ft_steps=80, ft_epsilon=0.15, lora_rank=3, loss_floor=1e-2)


def signs(model):
    """Everything about a model that fine-tuning might disturb."""
    network = model.model
    weights = {name: (id(w), w.clone(), w.requires_grad) for name, w in network.named_parameters()}
    modules = {name: (id(module), module.training) for name, module in network.named_modules()}
    return weights, modules, set(vars(network)), network.config.to_dict(), torch.get_rng_state()


def unchanged(before, model):
    weights, modules, attributes, config, random = signs(model)
    same = all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(before[0].values(), weights.values(), strict=True)
    )
    return (
        same
        and list(before[0]) == list(weights)
        and before[1:4] == (modules, attributes, config)
        and torch.equal(before[4], random)
    )


def scores(model, facts):
    return target_logprobs(model, [f.text for f in facts], [f.target_new for f in facts])


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_becomes_the_top_token(tiny_model, tiny_facts, kind):
    facts, before, told = tiny_facts[2:5], signs(tiny_model), []
    assert not scores(tiny_model, facts)[1].all()
    factors, record = fine_tune(tiny_model, fact_rows(tiny_model, facts, [""]), FineTune(kind), HYPER, told.append)
    assert unchanged(before, tiny_model)
    assert sum(told) == 3 and all(n > 0 for n in told)
    assert set(factors) == {0, 2} and all(t.dtype == torch.float32 for pair in factors.values() for t in pair)
    with edited(tiny_model, Edit(factors)):
        logprob, best = scores(tiny_model, facts)
        assert best.all()
        assert torch.tensor(record["p_target"]) == pytest.approx(torch.tensor(logprob).exp(), rel=1e-4)
        assert record["loss"] == pytest.approx((-logprob).tolist(), abs=1e-4)
    assert len(record["steps"]) == 3 and 0 < record["steps"][0] <= 80


def test_the_bound_of_ft_l_holds_and_binds(tiny_model, tiny_facts):
    rows = fact_rows(tiny_model, tiny_facts, [""])
    hyper = replace(HYPER, ft_epsilon=0.01)
    free, tight = (fine_tune(tiny_model, rows, FineTune(kind), hyper) for kind in ("ft", "ft-l"))
    for i in (0, 2):
        most = {kind: (factors[i][0] @ factors[i][1].T).abs().max().item() for kind, factors in
                (("ft", free[0]), ("ft-l", tight[0]))}  # fmt: skip
        assert most["ft-l"] == pytest.approx(0.01, rel=1e-6) and most["ft"] > 0.02
    assert min(free[1]["p_target"]) > min(tight[1]["p_target"])
    layers = tight[0]
    old = {i: tiny_model.weight(i).clone() for i in layers}
    with edited(tiny_model, Edit(layers)):
        assert max((tiny_model.weight(i) - old[i]).abs().max().item() for i in layers) <= 0.01 + 1e-6


def test_factors_have_the_ranks_they_should(tiny_model, tiny_facts):
    rows, d = fact_rows(tiny_model, tiny_facts[:2], [""]), tiny_model.anatomy
    factors, _ = fine_tune(tiny_model, rows, FineTune("lora"), HYPER)
    for left, right in factors.values():
        assert left.shape == (d.d_model, 3) and right.shape == (d.d_mlp, 3)
        assert torch.linalg.matrix_rank(left @ right.T) == 3
    factors, _ = fine_tune(tiny_model, rows, FineTune("ft"), HYPER)
    for left, right in factors.values():
        assert torch.equal(left, torch.eye(d.d_model)) and right.shape == (d.d_mlp, d.d_model)
    assert Edit(factors).dense


def test_one_step_of_ft_is_one_step_of_adam(tiny_model, tiny_facts):
    # Adam's first step is -lr sign(gradient) (1 / (1 + epsilon / |gradient|)): by a plain backward pass.
    facts, layer = tiny_facts[:3], 1
    hyper = replace(HYPER, layers=(layer,), ft_steps=1, ft_lr=1e-3)
    factors, _ = fine_tune(tiny_model, fact_rows(tiny_model, facts, [""]), FineTune("ft"), hyper)
    weight = tiny_model.mlp_out(layer).weight.requires_grad_()
    loss = 0.0
    for fact in facts:
        prompt = tiny_model.tokenizer(fact.text)["input_ids"]
        goal = tiny_model.tokenizer(f" {fact.target_new}")["input_ids"]
        logits = tiny_model.model(torch.tensor([prompt + goal])).logits[0, len(prompt) - 1 : -1]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(goal)) / len(facts)
    (slope,) = torch.autograd.grad(loss, weight)
    want = -1e-3 * slope / (slope.abs() + 1e-8)
    want = want.T if tiny_model.anatomy.transposed else want
    clear = want.abs() > 0.9e-3  # where rounding of the gradient decides nothing
    got = factors[layer][0] @ factors[layer][1].T
    assert clear.float().mean() > 0.5
    assert torch.allclose(got[clear], want[clear], rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_make_no_difference(tiny_gpt2, tiny_facts, kind):
    rows = fact_rows(tiny_gpt2, tiny_facts, [""])
    hyper = replace(HYPER, ft_steps=3, ft_lr=1e-3)
    whole, parts = (fine_tune(tiny_gpt2, rows, FineTune(kind), replace(hyper, facts_at_once=n))[1] for n in (None, 2))
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_model_and_generator(tiny_model, tiny_facts, kind, error):
    before, generator = signs(tiny_model), torch.Generator().manual_seed(5)
    state = generator.get_state()

    def stop(_):
        raise error

    with pytest.raises(error):
        fine_tune(tiny_model, fact_rows(tiny_model, tiny_facts, [""]), FineTune(kind), HYPER, stop, generator)
    assert unchanged(before, tiny_model) and torch.equal(generator.get_state(), state)


def test_lora_is_drawn_from_the_generator_alone(tiny_gpt2, tiny_facts):
    rows, hyper = fact_rows(tiny_gpt2, tiny_facts[:2], [""]), replace(HYPER, ft_steps=2)

    def run(seed):
        torch.manual_seed(seed * 7)
        return fine_tune(tiny_gpt2, rows, FineTune("lora"), hyper, None, torch.Generator().manual_seed(seed))[0][0][1]

    first, again, other = run(3), run(3), run(4)
    torch.manual_seed(99)
    default = fine_tune(tiny_gpt2, rows, FineTune("lora"), hyper)[0][0][1]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(default, fine_tune(tiny_gpt2, rows, FineTune("lora"), hyper)[0][0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_models_are_tuned_in_float32(tiny_llama, tiny_facts, kind):
    model = load(tiny_llama.model, tokenizer=tiny_llama.tokenizer, dtype=torch.bfloat16)
    before = signs(model)
    factors, record = fine_tune(model, fact_rows(model, tiny_facts[2:4], [""]), FineTune(kind), HYPER)
    assert unchanged(before, model)
    assert all(t.dtype == torch.float32 for pair in factors.values() for t in pair)
    with edited(model, Edit(factors)):
        assert scores(model, tiny_facts[2:4])[1].all()
    assert min(record["p_target"]) > 0.5


def test_bad_weights(tiny_model, tiny_facts):
    rows = fact_rows(tiny_model, tiny_facts[:2], [""])
    tiny_model.weight(1)[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="not finite"):
        fine_tune(tiny_model, rows, FineTune("ft"), HYPER)
