"""Tiny models with a small tokenizer of their own, taught a few sentences: no download, two seconds to build."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ketools import Fact, FactSet
from ketools.models.model import EditableModel, load

SENTENCES = [
    "Ada Lorn was born in Vell and works for the guild of Oran Bay.",
    "The mother tongue of Bo Tarn is Ixian; he plays the harp in Port Sall.",
    "Mira Quell wrote the long song of the river. Therefore you know it because I sang.",
    "The capital of Dunmark is Vell, where Tovar Istin lives. You may visit the tower.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 entries without a beginning-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def trained_gpt2(tiny_tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_inner=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _taught(GPT2LMHeadModel(config), tiny_tokenizer)


@pytest.fixture(scope="session")
def trained_llama(tiny_tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        max_position_embeddings=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _taught(LlamaForCausalLM(config), tiny_tokenizer)


@pytest.fixture
def tiny_gpt2(trained_gpt2, tiny_tokenizer) -> EditableModel:
    """A small GPT-2: 4 layers, width 32, MLP 64, Conv1D (transposed) matrices, tied head; each test its own copy."""
    return load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer)


@pytest.fixture
def tiny_llama(trained_llama, tiny_tokenizer) -> EditableModel:
    """A small Llama: 4 layers, width 32, MLP 48, grouped queries (4 heads on 2), head of its own; a copy per test."""
    return load(copy.deepcopy(trained_llama), tokenizer=tiny_tokenizer)


@pytest.fixture(params=["gpt2", "llama"])
def tiny_model(request) -> EditableModel:
    """Both tiny models, one after the other."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture
def tiny_facts() -> FactSet:
    """Eight facts: subjects first, in the middle and last; targets of one and of several tokens."""
    rows = [
        ("{} was born in", "Ada Lorn", "Vell", "Oran Bay"),
        ("The mother tongue of {} is", "Bo Tarn", "Ixian", "Vell"),
        ("{} plays the", "Mira Quell", "harp", "tower"),
        ("The song was written by", "", "", ""),
        ("You may visit the home of {}", "Tovar Istin", "Vell", "Port Sall"),
        ("{} works for the guild of", "Dunmark Sall", "Oran Bay", "Ixian"),
        ("{} lives in", "Ixian Tower", "Vell", "Sall"),
        ("The capital of {} is", "Dunmark", "Vell", "Oran Bay"),
    ]
    return FactSet(
        Fact(str(i), f"relation {i % 3}", prompt, subject, true, new, paraphrases=(f"{subject} was found in",))
        for i, (prompt, subject, true, new) in enumerate(rows)
        if subject
    )


def _taught(model, tokenizer):
    """A second of training: an untrained model's attention is uniform, so that no changed subject changes a word."""
    subjects = [
        "Ada Lorn",
        "Bo Tarn",
        "Mira Quell",
        "Tovar Istin",
        "Dunmark Sall",
        "Ixian Tower",
        "Dunmark",
        "Vell",
        "Oran Sall",
    ]
    objects = ["Vell", "Oran Bay", "Ixian", "Port Sall", "harp", "tower", "Sall"]
    prompts = [
        "{} was born in",
        "The mother tongue of {} is",
        "{} plays the",
        "You may visit the home of {}",
        "{} lives in",
    ]
    texts = [
        f"{'I sang. ' * (j % 2)}{p.replace('{}', s)} {objects[(3 * i + 2 * j) % len(objects)]}."
        for i, s in enumerate(subjects)
        for j, p in enumerate(prompts)
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model
