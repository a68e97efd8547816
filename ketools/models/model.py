"""Models that can be edited: `load()`, and `EditableModel`, a model with its tokenizer and its anatomy.

The anatomy (ketools.models.anatomy) says where the list of layers lies, which matrix is the output matrix of a layer's MLP
(the linear associative memory that every method here edits), and where the final norm and the head are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ketools.errors import KetoolsError
from ketools.io import model_dir, model_names
from ketools.models import smollm2
from ketools.models.anatomy import (
    Anatomy,
    anatomy_of,
    check_finite,
    recurrent,
    refuse_config,
    refuse_weights,
    width_out,
)
from ketools.models.weights import EditStack, check_layer

__all__ = ["Anatomy", "EditableModel", "anatomy_of", "fingerprint_of", "load"]


SUBLAYERS = ("attention", "mlp")
# The norm behind the attention, by the norm behind the MLP that the anatomy names.
_POST_ATTENTION = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}
# Entries of a config that compute nothing.
_VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "architectures"}


@dataclass(eq=False)
class EditableModel:
    """A causal language model, its tokenizer and its anatomy; `edits` are the edits that are in the weights, in order.

    `fingerprint` names the unedited model: sha256 of config and weights, taken when the model was loaded or wrapped.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    fingerprint: str
    name: str
    path: Path | None = None
    base_name: str | None = None  # of the model that was exported to `path`
    edits: EditStack = field(init=False)
    replays: bool = field(init=False)  # a pass can go on from frozen keys and values: layers carry no recurrent state

    def __post_init__(self) -> None:
        self.edits = EditStack(self.model, self.anatomy, self.fingerprint, self.name)
        self.replays = not recurrent(self.model)

    @property
    def known_as(self) -> str:
        """The name by which settings are looked up: that of its base for a folder that `export` wrote."""
        return self.base_name or self.name

    @property
    def embedding(self) -> Tensor:
        """The matrix of token embeddings, (vocabulary, width of an embedding)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, hence where token ids go."""
        return self.embedding.device

    @property
    def config(self) -> Any:  # noqa: ANN401 - every architecture has a class of its own
        """The configuration of the language model (in one that sees pictures too, the part for text)."""
        return self.model.config.get_text_config()

    @property
    def window(self) -> int | None:
        """Tokens that fit the model's context window; None if its positions set no limit (BLOOM, Falcon's ALiBi)."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding.dtype

    def layer(self, index: int) -> nn.Module:
        """Decoder layer `index` (0-based). Raises KetoolsError if there is none."""
        check_layer(index, self.anatomy, self.name)
        layers = self.model.get_submodule(self.anatomy.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers[index]

    def mlp_out(self, index: int) -> nn.Module:
        """The module of layer `index` that holds the MLP's output matrix."""
        return self.layer(index).get_submodule(self.anatomy.mlp_out)

    def sublayer(self, index: int, name: str) -> nn.Module:
        """The module of layer `index` whose output its "attention" or "mlp" adds to the residual stream.

        That is the last matrix of the part, or the norm behind it where an architecture has one (Gemma 2 and 3, OLMo 2
        and 3). Raises KetoolsError for a layer that is not there or has no attention that writes to the stream.
        """
        assert name in SUBLAYERS, f"no sublayer {name!r}"
        block, norm = self.layer(index), self.anatomy.post_norm
        if name == "mlp":
            return block.get_submodule(norm or self.anatomy.mlp_out)
        if norm in _POST_ATTENTION:
            return block.get_submodule(_POST_ATTENTION[norm])
        writing = [
            module
            for path, module in block.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and "att" in path.lower()
            and "cross" not in path.lower()
            and width_out(module) == self.anatomy.d_model
        ]
        if not writing:
            raise KetoolsError(
                f"model {self.name!r}: layer {index} has no attention that ends in a matrix to the model's width "
                f"{self.anatomy.d_model}; tracing and attribution of attention need one, those of the MLP and of hidden "
                "states do not"
            )
        return writing[-1]

    @property
    def residual_scale(self) -> float:
        """The number that a layer multiplies its summands with before adding them (Granite's; 1 elsewhere)."""
        return float(getattr(self.config, "residual_multiplier", 1.0))

    def weight(self, index: int) -> Tensor:
        """The MLP's output matrix of layer `index` as a view (d_model, d_mlp): writing to it edits the model."""
        return self.edits.weight(index)

    @property
    def originals(self) -> Mapping[int, Tensor]:
        """The unedited MLP output matrix (d_model, d_mlp) of each layer that an edit touches."""
        return self.edits.originals

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last layer and the head."""
        return self.model.get_submodule(self.anatomy.final_norm)

    @property
    def head(self) -> nn.Module:
        """The map from d_model to the vocabulary."""
        return self.model.get_submodule(self.anatomy.head)

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        return self.model.base_model

    def logits(self, normed: Tensor) -> Tensor:
        """Logits (..., vocabulary) of states (..., d_model) that have passed the final norm."""
        config = self.config
        logits = self.head(normed)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def plain_head(self) -> bool:
        """Whether `logits` is nothing but the head's matrix (and bias)."""
        config = self.config
        odd = getattr(config, "logit_scale", None) or getattr(config, "final_logit_softcapping", None)
        return not odd and isinstance(self.head, nn.Linear)

    def export(self, path: str | Path) -> Path:
        """Write the model with its edits as a plain folder of transformers; see `ketools.editing.export.export`."""
        from ketools.editing.export import export  # that module imports this one

        return export(self, path)


def load(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EditableModel:
    """Load a model by name ("pocket", "smollm2"), by folder, by hub id ("openai-community/gpt2-xl"), or wrap one in memory.

    "smollm2" is fetched when it is not in the user's cache yet (ketools.models.smollm2). Pocket models are stored in half
    precision and load as float32; others keep the type they are stored in. The model
    is put in evaluation mode and its parameters stop requiring gradients (a wrapped model too). Only safetensors are
    read; no code from the model's folder is run. `device="auto"` spreads a model over the devices there are (as
    transformers' device_map="auto", needs accelerate); a wrapped model that is spread already stays as it is.

    Raises KetoolsError for a name that is nowhere (listing what there is), a model that is quantised, a mixture of
    experts, partly offloaded, with NaN or Inf in its weights, or without an MLP output matrix, and for a tokenizer that
    cannot give character offsets.
    """
    if isinstance(source, PreTrainedModel):
        model, name, path = source, source.config.name_or_path or type(source).__name__, None
        refuse_config(model.config, name)
        tokenizer = tokenizer or source.config.name_or_path
    else:
        name, path = str(source), _folder(source)
        where = path or name
        pocket = path is not None and path.resolve().parent.name == "models" and path.name in model_names()
        spread = {"device_map": "auto"} if device == "auto" else {}
        try:
            refuse_config(AutoConfig.from_pretrained(where, trust_remote_code=False), name)
            model = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype or (torch.float32 if pocket else "auto"),
                use_safetensors=True,
                trust_remote_code=False,
                **spread,
            )
        except KetoolsError:
            raise
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise KetoolsError(f"model {name!r} could not be loaded: {error}") from error
        tokenizer = tokenizer or where
    refuse_weights(model, name)
    if device not in (None, "auto"):
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise KetoolsError(
                f"model {name!r} is spread over several devices by its device_map; leave out device={device!r}, or load "
                "it without a device_map"
            )
        nn.Module.to(model, device=device)
    if dtype is not None and model.dtype != dtype:
        # As from_pretrained does: what a model computes for itself and stores in no file (frequencies of rotary
        # positions) keeps its precision.
        stored = model.state_dict().keys()
        own = {place: buffer for place, buffer in model.named_buffers() if place not in stored}
        nn.Module.to(model, dtype=dtype)
        for place, buffer in own.items():
            module, _, buffer_name = place.rpartition(".")
            model.get_submodule(module).register_buffer(buffer_name, buffer, persistent=False)
    model.eval().requires_grad_(False)
    anatomy = anatomy_of(model, name)
    check_finite(model, name)
    tokenizer = _tokenizer(tokenizer, name)
    return EditableModel(model, tokenizer, anatomy, fingerprint_of(model), name, path, base_name=_base_name(path))


def fingerprint_of(model: PreTrainedModel) -> str:
    """sha256 (hex) over config and weights: two models have the same one only if they compute the same."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for path, weight in model.named_parameters():  # a tied matrix appears once
        digest.update(f"{path} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _folder(source: str | Path) -> Path | None:
    # None: a hub id. A pocket model's name wins over a folder of that name; "./pocket" is the folder.
    name = str(source)
    if isinstance(source, str) and "/" not in name and name in model_names():
        return model_dir(name)
    if source == smollm2.NAME:
        return smollm2.fetch()
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise KetoolsError(f"folder {path} holds no config.json; expected a model saved by save_pretrained")
        return path
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    have = ", ".join([*model_names(), smollm2.NAME])
    raise KetoolsError(
        f"no model named {name!r}: neither a model that ketools knows ({have}) nor a folder; "
        "models of the hub are named with their owner, as in 'openai-community/gpt2'"
    )


def _base_name(path: Path | None) -> str | None:
    # From what export wrote beside the weights; in the first versions the model's own name alone.
    file = None if path is None else path / "ketools.json"
    if file is None or not file.is_file():
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return str(about.get("known_as") or about["base"]["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KetoolsError(
            f"{file}: no record of an export ({error}); remove this file, the model does not need it"
        ) from error


def _tokenizer(given: PreTrainedTokenizerBase | str | Path | None, name: str) -> PreTrainedTokenizerBase:
    if isinstance(given, str | Path) and str(given):
        try:
            given = AutoTokenizer.from_pretrained(given, use_fast=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise KetoolsError(f"no tokenizer for {name!r}: {error}; give one with tokenizer=") from error
    if not isinstance(given, PreTrainedTokenizerBase):
        raise KetoolsError(f"model {name!r} was wrapped without a tokenizer; give one with tokenizer=")
    if not given.is_fast:
        raise KetoolsError(f"the tokenizer of {name!r} gives no character offsets (a slow one); load its fast version")
    return given
