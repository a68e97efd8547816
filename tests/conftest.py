"""Tiny random models with a small tokenizer of their own: no download, a second to build."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ketools import Fact, FactSet
from ketools.model import EditableModel, load

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
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_input_names=["input_ids", "attention_mask"]
    )


@pytest.fixture
def tiny_gpt2(tiny_tokenizer) -> EditableModel:
    """A random GPT-2: 4 layers, width 32, MLP 64, Conv1D (transposed) matrices, tied head."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=128, n_embd=32, n_layer=4, n_head=4, n_inner=64, bos_token_id=0, eos_token_id=0
    )
    return load(_lively(GPT2LMHeadModel(config)), tokenizer=tiny_tokenizer)


@pytest.fixture
def tiny_llama(tiny_tokenizer) -> EditableModel:
    """A random Llama: 4 layers, width 32, MLP 48, grouped queries (4 heads on 2), head of its own."""
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
    return load(_lively(LlamaForCausalLM(config)), tokenizer=tiny_tokenizer)


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


def _lively(model):
    """Larger random weights: with the initial ones every next token is nearly equally likely and nothing is learnt."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return model


