"""Keys and states against plain hooks on every architecture; what a norm behind the MLP asks of an update."""

import pytest
import torch

from ketools import load
from ketools.editing.checks import checked_rows
from ketools.editing.contexts import contexts_of
from ketools.editing.keys import before_norm, keys_and_states
from tests.test_architectures import KINDS, network


def plain(model, ids, layer, top):
    """Key of `layer` and output of `top` at the last token of `ids`, by a forward pass of the whole model."""
    heard = {}

    def key(_, args):
        heard["key"] = args[0].reshape(-1, args[0].shape[-1])[-1]

    def state(_, args, out):
        heard["state"] = (out[0] if isinstance(out, tuple) else out)[0, -1]

    handles = [
        model.mlp_out(layer).register_forward_pre_hook(key),
        model.layer(top).register_forward_hook(state),
    ]
    with torch.no_grad():
        model.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return heard["key"].double(), heard["state"].double()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_states_are_those_of_the_plain_forward(kind, tiny_tokenizer, tiny_facts):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    rows = checked_rows(model, tiny_facts, contexts_of(["You sang", "The tower of Vell lives"]))
    keys, states = keys_and_states(model, rows, 1, 2)
    for i, fact in enumerate(rows):
        each = [plain(model, row.ids[: row.subject_last + 1], 1, 2) for row in fact.contexts]
        want = each[0][0] / 2 + (each[1][0] + each[2][0]) / 4
        assert torch.allclose(keys[:, i], want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
        assert torch.allclose(states[:, i], each[0][1], rtol=1e-4, atol=1e-5 * each[0][1].abs().max().item())


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2"])
def test_before_a_norm(kind, tiny_tokenizer, tiny_facts):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    rows = checked_rows(model, tiny_facts, [""])
    norm = model.layer(1).get_submodule(model.anatomy.post_norm)
    norm.weight.copy_(torch.rand(16) + 1)
    keys, _ = keys_and_states(model, rows, 1, 1)
    out = model.mlp_out(1)(keys.T.float()).double()
    wanted = torch.randn(len(rows), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def after(gain):
        d = before_norm(model, rows, 1, gain * wanted.T)
        return norm((out + d.T).float()).double()

    now = norm(out.float()).double()
    large = after(3.0)
    direction = now + 3.0 * wanted
    cosine = torch.nn.functional.cosine_similarity(large, direction)
    assert (cosine > 1 - 1e-5).all(), "the direction is met, however large the change"
    small = (after(1e-2) - now) / 1e-2
    weight = norm(torch.ones(1, 16)).double()
    radial = now / weight**2  # the length is the norm's own: what lies along the state cannot be met
    part = wanted - now * (wanted * radial).sum(1, keepdim=True) / (now * radial).sum(1, keepdim=True)
    assert torch.allclose(small, part, atol=0.05 * wanted.abs().max().item())


def test_without_a_norm_nothing_changes(tiny_gpt2, tiny_facts):
    wanted = torch.randn(32, len(tiny_facts), dtype=torch.float64)
    assert before_norm(tiny_gpt2, checked_rows(tiny_gpt2, tiny_facts, [""]), 1, wanted) is wanted
