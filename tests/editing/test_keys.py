"""Keys and states against plain hooks on every architecture; what a norm behind the MLP asks of an update."""

import pytest
import torch

from ketools import load
from ketools.editing import keys as reading
from ketools.editing.keys import before_norm, checked_rows, contexts_of, keys_and_states
from ketools.models import replay
from tests.models.test_architectures import KINDS, network

CONTEXTS = contexts_of(["You sang", "The tower of Vell lives"])


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


def near(got, want, relative=1e-5):
    return (got - want).abs().max() <= relative * want.abs().max()


def against_plain(model, rows):
    """Keys of layer 1 and states of layer 2 are those of plain forward passes."""
    keys, states = keys_and_states(model, rows, 1, 2)
    for i, fact in enumerate(rows):
        each = [plain(model, row.ids[: row.subject_last + 1], 1, 2) for row in fact.contexts]
        assert near(keys[:, i], each[0][0] / 2 + (each[1][0] + each[2][0]) / 4)
        assert near(states[:, i], each[0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_states_are_those_of_the_plain_forward(kind, tiny_tokenizer, tiny_facts):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    against_plain(model, checked_rows(model, tiny_facts, CONTEXTS))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "gemma2", "bloom", "opt"])
@pytest.mark.parametrize("limit", [1, 40])
def test_many_parts_come_to_the_same(kind, limit, tiny_tokenizer, tiny_facts, monkeypatch):
    # Products of other shapes go through other kernels, in float32 up to 1.2e-6 apart: double precision tells more. The two
    # whose eager attention gives NaN in it, for places that are padding, stay in float32.
    double = kind not in ("gemma2", "bloom")
    net = network(kind)
    model = load(net.double() if double else net, tokenizer=tiny_tokenizer)
    rows = checked_rows(model, tiny_facts, CONTEXTS)
    sizes, real = [], reading.read_last
    monkeypatch.setattr(reading, "read_last", lambda m, ids, *a, **k: sizes.append([*ids]) or real(m, ids, *a, **k))
    whole = keys_and_states(model, rows, 1, 2)
    assert [len(part) for part in sizes] == [len(rows), 2 * len(rows)], (
        "few facts: bare and prefixed prompts, a pass each"
    )
    sizes.clear()
    monkeypatch.setattr(replay, "_TOKENS_ON_CPU", limit)
    parts = keys_and_states(model, rows, 1, 2)
    assert len(sizes) > (6 if limit > 1 else 3 * len(rows) - 1) and sum(map(len, sizes)) == 3 * len(rows)
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= limit for part in sizes)
    assert all(near(a, b, 1e-7 if double else 1e-5) for a, b in zip(parts, whole))


def test_the_head_is_never_asked(tiny_model, tiny_facts):
    def refuse(*_):
        raise AssertionError("the head was run")

    rows = checked_rows(tiny_model, tiny_facts, CONTEXTS)
    tiny_model.head.register_forward_pre_hook(refuse)
    for layer in range(tiny_model.anatomy.n_layer):
        keys_and_states(tiny_model, rows, layer, 3)
    with pytest.raises(AssertionError, match="the head was run"):
        tiny_model.model(torch.tensor([[1, 2]]))


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
