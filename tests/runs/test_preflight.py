"""The look before the leap: what it says of models and facts, and that it changes nothing."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from ketools import Fact, KetoolsError, load
from ketools.editing.methods import ALL, ENCORE, MEMIT, ROME
from ketools.facts.check import whole_prompt
from ketools.models.model import fingerprint_of
from ketools.runs.preflight import estimate, inspect, measure
from tests import tokenizers
from tests.models.test_architectures import network


def fact(id="1", prompt="{} was born in", subject="Ada Lorn", new="Oran Bay", relation="born"):
    return Fact(id, relation, prompt, subject, "Sall", new)


def test_the_model(tiny_gpt2):
    found = inspect(tiny_gpt2, trial=False)
    assert found.problems == () and found.costs is None and not len(found.tokens)
    assert found.about["head"].startswith("tied") and found.about["token before a text"] == "no"
    assert "4 layers, d_model 32, d_mlp 64" in found.about["size"] and found.about["window"] == "128 tokens"
    parts = found.modules.set_index("path")
    assert parts.loc["transformer.h.1.mlp.c_proj", "shape"] == "64 x 32"
    assert "transposed" in parts.loc["transformer.h.1.mlp.c_proj", "part"]
    assert {"transformer.wte", "transformer.ln_f", "lm_head"} <= set(parts.index)
    assert found.layers == ENCORE.settings(tiny_gpt2).layers and "20% to 35%" in found.why
    assert any("covariance" in text for text in found.warnings)
    assert not any("covariance" in text for text in inspect(tiny_gpt2, statistics=True, trial=False).warnings)
    assert not any("covariance" in text for text in inspect(tiny_gpt2, None, "ft", trial=False).warnings)
    assert inspect(tiny_gpt2, layers=(2, 3), trial=False).why == "as given"
    tiny_gpt2.name = "gpt2-xl"
    with pytest.raises(KetoolsError, match="layers 0 to 3"):
        inspect(tiny_gpt2, trial=False)


def test_a_norm_behind_the_mlp_and_a_token_before_a_text():
    model = load(network("gemma2"), tokenizer=tokenizers.with_bos())
    found = inspect(model, [fact()], trial=False)
    assert found.about["token before a text"] == "yes, '<|begin|>'"
    assert "model.layers.1.post_feedforward_layernorm" in set(found.modules["path"])
    assert any("direction only" in text for text in found.warnings)
    assert found.tokens["token"].iloc[0] == "<|begin|>" and found.tokens["mark"].iloc[0] == ""


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_tokens_of_three_facts(tiny_gpt2, kind):
    tiny_gpt2.tokenizer = tokenizers.KINDS[kind]()
    facts = [
        fact(str(i), prompt) for i, prompt in enumerate(("{} lives in", "You know {} of", "I sang in {}", "{} is"))
    ]
    found = inspect(tiny_gpt2, facts, trial=False, batch=1)
    assert found.tokens["fact"].unique().tolist() == ["0", "1", "2"]

    def shown(part):
        return "".join(part["token"]).replace("·", "")

    for _, part in found.tokens.groupby("fact"):
        assert shown(part[part["mark"].str.startswith("subject")]) == "AdaLorn"
        assert shown(part[part["mark"] == "target"]) == "OranBay"
        assert (part["mark"] == "subject's last").sum() == 1


def test_every_problem_is_named_and_nothing_is_changed(tiny_gpt2):
    before = fingerprint_of(tiny_gpt2.model)
    facts = [
        fact("good"),
        fact("long", "{} lives in " + "the river of " * 50 + "Vell"),
        fact("wordy", new="the long song of the river " * 12 + "x"),
        fact("same as good"),
        fact("against good", new="Vell"),
        fact("tight", "{} lives in " + "Vell " * 116 + "in"),
    ]
    found = inspect(tiny_gpt2, facts, trial=False)
    for id, said in (
        ("long", "context window holds 128"),
        ("wordy", "tokens, more than"),
        ("same as good", "same edit"),
        ("against good", "contradict"),
        ("tight", "prefix of"),
    ):
        assert any(repr(id) in text and said in text for text in found.problems), (id, found.problems)
    assert not inspect(tiny_gpt2, facts[5:], "ft", trial=False).problems, "without targets there are no prefixes"
    apart = inspect(tiny_gpt2, [facts[0], facts[4]], trial=False, batch=1)
    assert apart.problems == () and any("overwrite" in text for text in apart.warnings)
    assert fingerprint_of(tiny_gpt2.model) == before


def test_targets_that_are_known_already(tiny_gpt2, tiny_facts):
    from ketools.models.scoring import target_logprobs

    _, best = target_logprobs(tiny_gpt2, [f.text for f in tiny_facts], [f.target_true for f in tiny_facts])
    prompts = [f.prompt for f, top in zip(tiny_facts, best) if top]
    ids = torch.tensor([tiny_gpt2.tokenizer("Ada Lorn was born in")["input_ids"]])
    top = tiny_gpt2.tokenizer.decode(tiny_gpt2.model(ids).logits[0, -1].argmax()).strip()
    assert prompts is not None and top
    found = inspect(tiny_gpt2, [fact("known", new=top)], trial=False)
    assert any("already the model's top answer: 'known' of 1 facts" in text for text in found.warnings)


def test_broken_weights_are_named(tiny_gpt2):
    tiny_gpt2.weight(2)[3, 4] = float("inf")
    with pytest.raises(KetoolsError, match=r"layer 2, transformer.h.2.mlp.c_proj.weight hold NaN or Inf"):
        inspect(tiny_gpt2)
    with pytest.raises(KetoolsError, match="layer 2"):
        load(tiny_gpt2.model, tokenizer=tiny_gpt2.tokenizer)


def test_costs_of_all_methods(tiny_llama, tiny_facts):
    found = inspect(tiny_llama, tiny_facts, edits=1000)
    costs = found.costs.set_index("method")
    assert list(costs.index) == [m.name for m in ALL]
    numbers = costs.drop(columns="layers")
    assert (numbers[["memory_gib", "seconds", "seconds_per_edit"]] > 0).all().all()
    assert (numbers["seconds"] >= 1000 * numbers["seconds_per_edit"]).all()
    assert costs.loc["encore", "memory_gib"] > costs.loc["memit", "memory_gib"], "past keys are kept"
    assert "for 1,000 edits" in found.costs_from and "forward pass" in found.costs_from
    assert list(inspect(tiny_llama, tiny_facts, "memit").costs["method"]) == ["memit"]


def test_costs_grow_with_what_causes_them(tiny_llama):
    rates = measure(tiny_llama)
    assert rates.token > 0 and rates.flops > 0

    def of(method, edits=100, **overrides):
        frame = estimate(tiny_llama, [method], edits, rates, **overrides)
        assert isinstance(frame, pd.DataFrame)
        return frame.iloc[0]

    assert of(MEMIT, steps=40)["seconds_per_edit"] > of(MEMIT, steps=20)["seconds_per_edit"]
    assert of(MEMIT, prompt=40, suffix=20)["seconds_per_edit"] > of(MEMIT)["seconds_per_edit"]
    assert of(MEMIT, layers=(0, 1))["memory_gib"] > of(ROME, layers=(1,))["memory_gib"]
    assert of(ENCORE, 1000)["memory_gib"] > of(ENCORE, 10)["memory_gib"]


def test_unknown_methods_and_settings(tiny_gpt2):
    with pytest.raises(KetoolsError, match="no method named"):
        inspect(tiny_gpt2, None, "magic")
    with pytest.raises(KetoolsError, match="no setting named"):
        inspect(tiny_gpt2, None, "memit", speed=3)


def test_methods_beside_each_other_tell_their_costs_and_what_is_wrong_for_each(tiny_gpt2, tiny_facts):
    facts = tiny_facts[:2]
    found = inspect(tiny_gpt2, facts, "ft", beside=("memit", "encore"), statistics=False)
    assert list(found.costs["method"]) == ["ft", "memit", "encore"]
    assert sorted(w.split()[0] for w in found.warnings if "needs the covariance" in w) == ["encore", "memit"]
    twice = inspect(tiny_gpt2, [facts[0], facts[0]], "memit", beside=("encore",), trial=False)
    assert len(twice.problems) == len(set(twice.problems)) > 0


def test_how_targets_join_their_prompts_is_shown(tiny_gpt2):
    facts = [fact(), fact("2", '{} is called "'), fact("3", "{} was in", "Bo Tarn")]
    about = inspect(tiny_gpt2, facts, trial=False).about["before targets"]
    assert "a blank (2 facts)" in about and repr('Ada Lorn is called "') in about and "'Oran Bay'" in about
    assert (
        "a blank (0 facts)" in inspect(tiny_gpt2, [replace(facts[0], glue=True)], trial=False).about["before targets"]
    )


def test_a_subject_that_is_the_whole_prompt_is_warned_of_as_a_check_of_the_file_does(tiny_gpt2):
    whole = fact("9", "{}?", "The song of Ada Lorn")
    found = inspect(tiny_gpt2, [fact(), whole], trial=False)
    assert str(whole_prompt(whole)) in found.warnings and found.problems == ()
    assert not any("whole prompt" in text for text in inspect(tiny_gpt2, [fact()], trial=False).warnings)
