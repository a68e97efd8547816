"""The replay engine against the plain full forward."""

import pytest
import torch

from ketools.models.replay import freeze, read_last
from ketools.models.tokens import make_rows

PREFIXES = ["", "The tower of Vell. ", "Therefore you sang because. "]


def rows_of(model, facts):
    texts = [(p + f.text, len(p) + f.subject_span[0], len(p) + f.subject_span[1]) for f in facts for p in PREFIXES]
    return make_rows(
        model, [t for t, _, _ in texts], [f.target_new for f in facts for _ in PREFIXES], [(a, b) for _, a, b in texts]
    )


def plain_states(model, ids, layer, position, change):
    def add(_, __, out):
        tensor = out[0] if isinstance(out, tuple) else out
        tensor = tensor.clone()
        tensor[0, position] += change
        return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

    handle = model.layer(layer).register_forward_hook(add)
    try:
        return model.model(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 2, 3])
@torch.no_grad()
def test_replay_equals_the_full_forward(tiny_model, tiny_facts, layer):
    model = tiny_model
    rows = rows_of(model, tiny_facts)
    starts = [row.subject_last for row in rows]
    frozen = freeze(model, [r.ids for r in rows], starts, layer)
    change = torch.randn(len(rows), model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    hidden = frozen.hidden.clone()
    hidden[:, 0] += change
    longest = hidden.shape[1]
    reads = [(i, p - r.subject_last) for i, r in enumerate(rows) for p in r.target_positions]
    got = model.logits(model.final_norm(frozen.run(hidden, torch.tensor([i * longest + p for i, p in reads]))))
    for n, (i, p) in enumerate(reads):
        want = plain_states(model, rows[i].ids, layer, starts[i], change[i])[starts[i] + p]
        assert torch.allclose(got[n], want, rtol=1e-5, atol=1e-5 * want.abs().max())


@torch.no_grad()
def test_selected_rows_are_the_rows(tiny_model, tiny_facts):
    rows = rows_of(tiny_model, tiny_facts)
    frozen = freeze(tiny_model, [r.ids for r in rows], [r.subject_last for r in rows], 1)
    chosen = torch.tensor([5, 2, 11])
    longest = frozen.hidden.shape[1]
    everything = frozen.run(frozen.hidden, chosen * longest)
    some = frozen.select(chosen)
    got = some.run(some.hidden, torch.arange(3) * longest)
    assert (got - everything).abs().max() <= 1e-5 * everything.abs().max()


@torch.no_grad()
def test_the_last_states_are_those_of_the_full_forward(tiny_model, tiny_facts):
    model = tiny_model
    rows = rows_of(model, tiny_facts)
    ids = [r.ids[: r.subject_last + 1] for r in rows]
    keys, states = read_last(model, ids, key_layer=1, state_layer=2)
    for i, row in enumerate(ids):
        heard = {}
        handle = model.mlp_out(1).register_forward_pre_hook(
            lambda _, args, heard=heard: heard.update(key=args[0][0, -1])
        )
        plain = model.model(torch.tensor([row]), output_hidden_states=True).hidden_states[3][0, -1]
        handle.remove()
        assert torch.allclose(states[i], plain, rtol=1e-5, atol=1e-5 * plain.abs().max())
        assert torch.allclose(keys[i], heard["key"], rtol=1e-5, atol=1e-5 * heard["key"].abs().max())


@torch.no_grad()
def test_gradient_of_the_replay_is_that_of_the_full_forward(tiny_model, tiny_facts):
    model = tiny_model
    model.model.double()  # a gradient's smallest entries are differences, of which float32 leaves too few digits
    rows = rows_of(model, tiny_facts)
    starts = [row.subject_last for row in rows]
    frozen = freeze(model, [r.ids for r in rows], starts, 1)
    longest = frozen.hidden.shape[1]
    reads = torch.tensor([i * longest + r.target_positions[-1] - r.subject_last for i, r in enumerate(rows)])
    with torch.enable_grad():
        change = torch.zeros(len(rows), model.anatomy.d_model, dtype=torch.float64, requires_grad=True)
        hidden = torch.cat([frozen.hidden[:, :1] + change[:, None], frozen.hidden[:, 1:]], 1)
        model.logits(model.final_norm(frozen.run(hidden, reads))).square().sum().backward()
        for i, row in enumerate(rows[:6]):
            one = torch.zeros(model.anatomy.d_model, dtype=torch.float64, requires_grad=True)
            plain_states(model, row.ids, 1, starts[i], one)[row.target_positions[-1]].square().sum().backward()
            assert (change.grad[i] - one.grad).abs().max() <= 1e-10 * one.grad.abs().max()
