"""The logit lens: behind the last layer it is the model's output, on every architecture."""

import pytest
import torch

from ketools import KetoolsError, load
from ketools.probing.lens import lens, lens_trace
from tests.models.test_architectures import KINDS, network

PROMPTS = ["The mother tongue of Bo Tarn is", "Ada Lorn was born in", "You may visit the home of Tovar Istin in"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_last_layer_is_the_model_s_output(kind, tiny_tokenizer):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    frame = lens_trace(model, PROMPTS, ["Vell", "Ixian", "harp"])
    last = frame[frame["layer"] == 2]
    for i, target in enumerate(["Vell", "Ixian", "harp"]):
        ids = tiny_tokenizer(PROMPTS[i], return_tensors="pt")["input_ids"]
        goal = tiny_tokenizer(f" {target}")["input_ids"][0]
        logits = model.model(ids).logits[0]
        got = last[last["prompt"] == i]
        assert got["p"].tolist() == pytest.approx(logits.softmax(-1)[:, goal].tolist(), rel=1e-5)
        assert got["rank"].tolist() == (logits > logits[:, goal, None]).sum(1).add(1).tolist()
        assert got["from_end"].tolist() == list(range(len(ids[0])))[::-1]
    top = lens(model, PROMPTS[0], k=3)
    best = model.model(tiny_tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]).logits[0].softmax(-1).topk(3)
    got = top[top["layer"] == 2]
    assert got["probability"].tolist() == pytest.approx(best.values.flatten().tolist(), rel=1e-5)
    assert got["predicted"].tolist() == [tiny_tokenizer.decode([t]) for t in best.indices.flatten().tolist()]


@torch.no_grad()
def test_earlier_layers_are_the_hidden_states_through_norm_and_head(tiny_model):
    ids = tiny_model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    states = tiny_model.model(ids, output_hidden_states=True).hidden_states
    frame = lens(tiny_model, PROMPTS[0], k=1)
    assert sorted(set(frame["layer"])) == [-1, 0, 1, 2, 3]
    for layer in (-1, 0, 2):
        want = (
            tiny_model.model.get_output_embeddings()(tiny_model.final_norm(states[layer + 1][0])).softmax(-1).amax(-1)
        )
        got = frame.loc[frame["layer"] == layer, "probability"]
        assert got.tolist() == pytest.approx(want.tolist(), rel=1e-5)
    assert frame["token"].tolist()[: len(ids[0])] == [tiny_model.tokenizer.decode([t]) for t in ids[0].tolist()]


def test_what_stands_beside_a_prompt_changes_nothing(tiny_model):
    together = lens_trace(tiny_model, PROMPTS, ["Vell"] * 3)
    alone = lens_trace(tiny_model, PROMPTS[1:2], ["Vell"])
    beside = together[together["prompt"] == 1]
    assert beside["p"].tolist() == pytest.approx(alone["p"].tolist(), rel=1e-5)
    assert list(dict.fromkeys(together["prompt"])) == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: lens(m, "  "), "is blank"),
        (lambda m: lens(m, "Vell " * 200), "window"),
        (lambda m: lens(m, "Vell", k=0), "k=0"),
        (lambda m: lens_trace(m, [], []), "0 prompts"),
        (lambda m: lens_trace(m, ["Vell is"], ["a", "b"]), "1 prompts and 2 targets"),
        (lambda m: lens_trace(m, ["Vell is"], [" "]), "no tokens"),
    ],
)
def test_mistakes_are_named(tiny_gpt2, call, said):
    with pytest.raises(KetoolsError, match=said):
        call(tiny_gpt2)
