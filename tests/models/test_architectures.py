"""Every architecture that is promised, as a tiny random model: anatomy, tokens, step 1 against a plain loop, one edit."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ketools import Editor, Fact, edited, load
from ketools.editing.covariance import Statistics
from ketools.editing.methods import R_ROME, FixedSteps, scaled
from ketools.editing.targets import compute_targets
from ketools.models.model import anatomy_of
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import make_rows
from ketools.reference.targets import plain_target
from tests import tokenizers
from tests.plain import plain_settings

SMALL = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {"intermediate_size": 160, "num_key_value_heads": 1}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# Each with its config, the path of its output matrix, and a tokenizer of the kind that it comes with.
KINDS = {
    "gpt2": ({"n_inner": 160}, "mlp.c_proj", "leading_space"),
    "gpt_neox": ({"intermediate_size": 160}, "mlp.dense_4h_to_h", "leading_space"),
    "gptj": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4}, "mlp.fc_out", "leading_space"),
    "gpt_neo": (
        {
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "num_layers": 3,
            "num_heads": 2,
            "intermediate_size": 160,
            "window_size": 4,
        },
        "mlp.c_proj",
        "without_spaces",
    ),
    "llama": (GROUPED, "mlp.down_proj", "sentencepiece"),
    "llama 3": (
        GROUPED
        | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
            "tie_word_embeddings": True,
        },
        "mlp.down_proj",
        "with_bos",
    ),
    "mistral": (GROUPED | {"sliding_window": 6}, "mlp.down_proj", "sentencepiece"),
    "qwen2": (GROUPED, "mlp.down_proj", "leading_space"),
    "qwen3": (GROUPED | {"head_dim": 8}, "mlp.down_proj", "leading_space"),
    "gemma2": (GROUPED | {"head_dim": 8} | SLIDING, "mlp.down_proj", "sentencepiece"),
    "gemma3_text": (GROUPED | {"head_dim": 8} | SLIDING, "mlp.down_proj", "sentencepiece"),
    "phi3": ({"intermediate_size": 160}, "mlp.down_proj", "sentencepiece"),
    "olmo2": ({"intermediate_size": 160}, "mlp.down_proj", "leading_space"),
    "stablelm": (GROUPED, "mlp.down_proj", "leading_space"),
    "falcon": ({}, "mlp.dense_4h_to_h", "leading_space"),
    "falcon new": ({"new_decoder_architecture": True, "num_kv_heads": 1}, "mlp.dense_4h_to_h", "leading_space"),
    "falcon alibi": ({"alibi": True}, "mlp.dense_4h_to_h", "leading_space"),
    "bloom": ({"n_layer": 3, "n_head": 2}, "mlp.dense_4h_to_h", "leading_space"),
    "opt": ({"ffn_dim": 160, "word_embed_proj_dim": 16}, "fc2", "with_bos"),
}  # fmt: skip
WINDOWED = {"gpt_neo": "window_size"} | dict.fromkeys(("mistral", "gemma2", "gemma3_text"), "sliding_window")
CONTEXTS = ["", "The tower of Vell. ", "Therefore you sang because. "]
WORDS = sorted({word.strip(".,;") for text in tokenizers.TEXTS for word in text.split()} - {"Bo", "Tarn"})


def network(kind, dtype=torch.float32, head=1.0, **config):
    """A random model whose matrices are large enough for its attention to tell tokens apart; `head` times as sure."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split()[0], **(SMALL | KINDS[kind][0] | config))
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
        made.get_output_embeddings().weight.mul_(head)
        for path, weight in made.named_parameters():
            if "post_feedforward" in path:  # as trained ones do: the MLP may write as much as the stream holds
                weight.add_(4)
    return made.to(dtype)


@pytest.fixture(scope="module")
def tokenizer_of():
    made = {name: make() for name, make in tokenizers.KINDS.items()}
    return lambda kind: made[KINDS[kind][2]]


def statistics_of(model, layers=(1,)):
    """From random words: as many tokens as make C regular."""
    words = sorted({word for text in tokenizers.TEXTS for word in text.split()})
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(words), (60, 30), generator=generator).tolist()
    return Statistics.compute(model, (" ".join(words[i] for i in pick) for pick in picks), layers, 1500)


def edit_of(model):
    """An editor that moves random states as far as it takes, and a fact: the likeliest word that is not the answer."""
    prompt = "You may visit the home of Bo Tarn"
    logprob, top = target_logprobs(model, [prompt] * len(WORDS), WORDS)
    sizes = [len(row.target_ids) for row in make_rows(model, [prompt] * len(WORDS), WORDS)]
    short = min(sizes)  # of one token, if there is one: later tokens hang on attention, which is random here
    _, target = max((p, word) for p, word, n, best in zip(logprob, WORDS, sizes, top) if n == short and not best)
    fact = Fact("1", "lives", "You may visit the home of {}", "Bo Tarn", "nowhere", target)
    settings = {"steps": 40, "clamp_norm_factor": 2.0, "kl_factor": 0.0, "weight_decay": 0.0}
    method = replace(R_ROME, stopping=FixedSteps())
    return Editor(model, method, statistics=statistics_of(model), layers=[1], prefixes=["You sang"], **settings), fact


def says(model, fact):
    """Whether the new object is the model's top answer."""
    return bool(target_logprobs(model, [fact.text], [fact.target_new])[1][0])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_equal_the_plain_loop(kind, tiny_tokenizer, tiny_facts):
    model = load(network(kind), tokenizer=tiny_tokenizer)
    hyper = replace(
        scaled("memit"), layers=(1,), steps=6, clamp_norm_factor=4.0, facts_at_once=2
    )  # others wait: rows are selected
    got = compute_targets(model, tiny_facts, CONTEXTS, FixedSteps(), hyper)
    for i, fact in enumerate(tiny_facts):
        want = plain_target(model, fact, CONTEXTS, **plain_settings(hyper, FixedSteps()))
        assert (got.h0[i] - want.h0).norm() <= 1e-5 * want.h0.norm()
        assert (got.z[i] - want.z).norm() <= 1e-5 * want.z.norm()
        assert got.loss[i] == pytest.approx(want.loss, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy(kind):
    made = network(kind)
    a = anatomy_of(made)
    assert (a.n_layer, a.d_model, a.mlp_out) == (3, 16, KINDS[kind][1]) and a.d_mlp in (64, 160)
    assert a.transposed == (kind == "gpt2") and a.tied == made.config.tie_word_embeddings
    assert (a.post_norm is not None) == (kind in ("gemma2", "gemma3_text", "olmo2"))
    model = load(made, tokenizer=tokenizers.leading_space())
    key, out = torch.randn(a.d_mlp), model.mlp_out(1)
    bias = out.bias if getattr(out, "bias", None) is not None else 0
    assert torch.allclose(out(key) - bias, model.weight(1) @ key, atol=1e-4), "the matrix in the wrong orientation"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        heard = []
        handle = model.final_norm.register_forward_hook(lambda _, __, states: heard.append(states))
        logits = made(ids).logits
        handle.remove()
        assert torch.allclose(model.logits(heard[-1]), logits, atol=1e-4), "final norm or head"


@pytest.mark.parametrize("kind", KINDS)
def test_one_edit_makes_its_target_the_top_token_and_undo_is_exact(kind, tokenizer_of):
    model = load(network(kind, head=4.0), tokenizer=tokenizer_of(kind))
    before = [p.clone() for p in model.model.parameters()]
    editor, fact = edit_of(model)
    assert not says(model, fact)
    edit = editor.apply([fact])
    assert says(model, fact)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.model.parameters())]
    assert sum(changed) == 1, "one matrix, no other"
    editor.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters()))
    with edited(model, edit):
        assert says(model, fact)
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_half_precision(kind, dtype, tokenizer_of):
    model = load(network(kind, dtype, head=4.0), tokenizer=tokenizer_of(kind))
    before = model.weight(1).clone()
    editor, fact = edit_of(model)
    editor.apply([fact])
    assert model.weight(1).dtype == dtype and says(model, fact)
    editor.undo()
    assert torch.equal(model.weight(1), before)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_a_model_spread_by_a_device_map(kind, tokenizer_of):
    accelerate = pytest.importorskip("accelerate")
    plain = load(network(kind, head=4.0), tokenizer=tokenizer_of(kind))
    places = {name: "cpu" for name, _ in plain.model.named_children()}
    hooked = accelerate.dispatch_model(network(kind, head=4.0), places, main_device="cpu", force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in hooked.modules())
    spread = load(hooked, tokenizer=tokenizer_of(kind))
    assert spread.fingerprint == plain.fingerprint
    for model in (plain, spread):
        editor, fact = edit_of(model)
        editor.apply([fact])
        assert says(model, fact)
    assert torch.allclose(spread.weight(1), plain.weight(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("prompt", ["{} was born in", "The mother tongue of {} is", "You may visit the home of {}"])
def test_subject_and_target_in_every_kind_of_tokenizer(kind, prompt, tiny_gpt2):
    tokenizer = tiny_gpt2.tokenizer = tokenizers.KINDS[kind]()
    fact = Fact("1", "r", prompt, "Ada Lorn", "Vell", "Oran Bay")
    (row,) = make_rows(tiny_gpt2, [fact.text], [fact.target_new], [fact.subject_span])

    def shown(ids):
        return tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")

    def squeezed(text):
        return text.replace(" ", "")

    whole = tokenizer(f"{fact.text} {fact.target_new}")["input_ids"]
    assert [*row.ids, row.target_ids[-1]] == whole, "tokens are not those of the text as a whole"
    assert shown(row.target_ids) == squeezed("Oran Bay")
    assert not set(row.target_ids) & set(tokenizer.all_special_ids), "<s> or the like in the target"
    assert [whole[p + 1] for p in row.target_positions] == list(row.target_ids)
    assert shown(row.ids[: row.target_positions[0] + 1]) == squeezed(fact.text)
    assert shown(row.ids[: row.subject_last + 1]) == squeezed(fact.text[: fact.text.index("Ada Lorn")] + "Ada Lorn")
    first = tokenizer.convert_ids_to_tokens(row.target_ids[0])
    assert first.startswith({"without_spaces": "O", "sentencepiece": "▁"}.get(kind, "Ġ"))
    if tokenizer.bos_token_id is not None:
        assert row.ids.count(tokenizer.bos_token_id) == 1 and row.ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_border_inside_a_token(kind, tiny_gpt2):
    # Behind a line break the target stands without a space; a tokenizer may make one token of both.
    tokenizer = tiny_gpt2.tokenizer = tokenizers.KINDS[kind]()
    (row,) = make_rows(tiny_gpt2, ["Q: where?\n"], ["Vell"])
    assert tokenizer.decode(row.target_ids, skip_special_tokens=True).strip().replace(" ", "") == "Vell"
    assert not set(row.target_ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
