"""Contributions add up to the residual stream and to the logit difference, on every architecture."""

import pytest
import torch

from ketools import KetoolsError, load
from ketools.probing.attribution import attribute, contributions
from tests.models.test_architectures import KINDS, network

PROMPT = "The mother tongue of Bo Tarn is"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_they_sum_to_the_stream_and_to_the_logit_difference(kind, tiny_tokenizer):
    model = load(network(kind, torch.float64), tokenizer=tiny_tokenizer)
    found = contributions(model, PROMPT)
    heard = []
    handle = model.final_norm.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    ids = tiny_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    logits = model.model(ids).logits[0, -1]
    handle.remove()
    stream = heard[0][0, -1]
    assert (found.values.sum(0) - stream).norm() <= 1e-5 * stream.norm()
    assert torch.allclose(found.stream, stream)
    frame = attribute(model, PROMPT, "Vell", "Ixian")
    goal, other = (tiny_tokenizer(f" {word}")["input_ids"][0] for word in ("Vell", "Ixian"))
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:
        logits = cap * torch.atanh(logits / cap)
    want = float(logits[goal] - logits[other])
    assert frame["logit"].sum() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert frame.attrs["logit_difference"] == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert frame["part"].tolist() == ["embedding", *["attention", "mlp"] * 3, "bias"]
    assert frame["norm"].iloc[:-1].tolist() == pytest.approx(found.values.norm(dim=1).tolist())


def test_float32_models_sum_to_1e_5(tiny_model):
    found = contributions(tiny_model, PROMPT)
    assert (found.values.sum(0) - found.stream).norm() <= 1e-5 * found.stream.norm()
    frame = attribute(tiny_model, PROMPT, "Vell")
    assert frame["logit"].sum() == pytest.approx(frame.attrs["logit_difference"], rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_without_a_norm_in_between_a_share_is_what_removing_the_part_takes_away(tiny_llama):
    # With the scale frozen the map is linear: subtracting a part's vector from the stream changes the logits by its share.
    frame = attribute(tiny_llama, PROMPT, "Vell", "Ixian")
    found = contributions(tiny_llama, PROMPT)
    goal, other = (tiny_llama.tokenizer(f" {word}")["input_ids"][0] for word in ("Vell", "Ixian"))
    weight = tiny_llama.model.lm_head.weight.double()
    scale = found.stream.square().mean().add(tiny_llama.config.rms_norm_eps).rsqrt()
    gain = tiny_llama.final_norm.weight.double() * scale
    want = (found.values * gain) @ (weight[goal] - weight[other])
    assert frame["logit"].iloc[:-1].tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-5)
    assert frame["logit"].iloc[-1] == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_the_other_is_the_most_probable_token_that_is_not_the_target(tiny_gpt2):
    ids = tiny_gpt2.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    best = tiny_gpt2.model(ids).logits[0, -1].topk(2).indices.tolist()
    words = [tiny_gpt2.tokenizer.decode([t]) for t in best]
    assert attribute(tiny_gpt2, PROMPT, "Sall").attrs["other"] in words
    assert (
        attribute(tiny_gpt2, PROMPT, words[0].strip()).attrs["other"]
        != attribute(tiny_gpt2, PROMPT, "Sall").attrs["target"]
    )


def test_a_stream_that_is_no_sum_is_refused(tiny_llama):
    handle = tiny_llama.layer(1).register_forward_hook(lambda _, __, out: out * 0.5)
    with pytest.raises(KetoolsError, match="does not add up"):
        attribute(tiny_llama, PROMPT, "Vell")
    handle.remove()
    tiny_llama.model.model.norm.forward = lambda x: torch.tanh(x * tiny_llama.model.model.norm.weight)
    with pytest.raises(KetoolsError, match="not linear once its scale is frozen"):
        attribute(tiny_llama, PROMPT, "Vell")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((" ", "Vell"), "is blank"),
        (("Vell " * 200, "Vell"), "window"),
        ((PROMPT, " "), "no tokens"),
        ((PROMPT, "Vell", "Vell"), "same token"),
    ],
)
def test_mistakes_are_named(tiny_gpt2, arguments, said):
    with pytest.raises(KetoolsError, match=said):
        attribute(tiny_gpt2, *arguments)
