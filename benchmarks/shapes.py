"""Models to measure speed on: our own, folders of models, and models of known shapes with random weights.

A random model costs what a trained one of its shape costs; what it says means nothing. Shapes as in the configuration
files published with the models. Their vocabulary is as large as the original's; the text that they read is cut by the
pocket models' tokenizer, so that its subjects have a few tokens, as names have.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ketools.model import EditableModel, load
from ketools.paths import model_dir


@dataclass(frozen=True)
class Shape:
    """A transformers configuration and the layers that the published settings edit."""

    kind: str
    config: dict[str, Any]
    layers: tuple[int, ...]


SHAPES = {
    "gpt2-small": Shape("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}, (3, 4)),
    "gpt2-xl": Shape(
        "gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}, (13, 14, 15, 16, 17)
    ),
    "llama-3-8b": Shape(
        "llama",
        {
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        },
        (4, 5, 6, 7, 8),
    ),
    "qwen-2.5-7b": Shape(
        "qwen2",
        {
            "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        },
        (4, 5, 6, 7, 8),
    ),
}  # fmt: skip


def open_model(
    name: str, device: str, dtype: torch.dtype, seed: int = 0
) -> tuple[EditableModel, tuple[int, ...] | None]:
    """The model and the layers to edit: a random one of a shape's name, or whatever `ketools.load` takes (layers None)."""
    shape = SHAPES.get(name)
    if shape is None:
        return load(name, device=device, dtype=dtype), None
    tokenizer = AutoTokenizer.from_pretrained(model_dir("pocket"))
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.kind, **shape.config), dtype=dtype)
    return load(model.eval(), tokenizer=tokenizer), shape.layers
