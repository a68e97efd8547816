"""Models to measure speed on: our own, folders of models, and models of known shapes with random weights.

A random model costs what a trained one of its shape costs; what it says means nothing. Shapes as in the configuration
files published with the models. Their vocabulary is as large as the original's; the text that they read is cut by the
pocket's tokenizer, so that its subjects have a few tokens, as names have.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ketools.errors import KetoolsError
from ketools.io import model_dir
from ketools.models.model import EditableModel, load


@dataclass(frozen=True)
class Shape:
    """A transformers configuration and the layers that the published settings edit; `large`: for accelerators only."""

    kind: str
    config: dict[str, Any]
    layers: tuple[int, ...]
    large: bool = False


SHAPES = {
    "tiny": Shape("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 8192}, (1, 2)),
    "gpt2-small": Shape("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}, (3, 4)),
    "gpt2-xl": Shape(
        "gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257}, (13, 14, 15, 16, 17), True
    ),
    "llama-3-8b": Shape(
        "llama",
        {
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        },
        (4, 5, 6, 7, 8),
        True,
    ),
    "qwen-2.5-7b": Shape(
        "qwen2",
        {
            "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        },
        (4, 5, 6, 7, 8),
        True,
    ),
}  # fmt: skip


def open_model(
    name: str, device: str, dtype: torch.dtype, seed: int = 0
) -> tuple[EditableModel, tuple[int, ...] | None]:
    """The model and the layers to edit: a random one of a shape's name, or whatever `ketools.load` takes (layers None).

    Raises KetoolsError for a device that is not there, and for a large shape on the CPU.
    """
    _check_device(name, device)
    shape = SHAPES.get(name)
    if shape is None:
        return load(name, device=device, dtype=dtype), None
    tokenizer = AutoTokenizer.from_pretrained(model_dir("pocket"))
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.kind, **shape.config), dtype=dtype)
    return load(model.eval(), tokenizer=tokenizer), shape.layers


def _check_device(name: str, device: str) -> None:
    wanted = torch.device(device).type
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted != "cpu" and (there is None or there.type != wanted):
        raise KetoolsError(
            f"device {device!r} is not there ({'none' if there is None else there} is); name another one"
        )
    if wanted == "cpu" and name in SHAPES and SHAPES[name].large:
        raise KetoolsError(f"shape {name!r} would take hours on the CPU; name an accelerator with --device")
