"""Models that can be edited: `load()`, and the anatomy of an architecture found by its structure.

The anatomy says where the list of layers lies, which matrix of a layer's MLP is the last one (the linear associative
memory that every method here edits), where the final norm and the head are. It is found by shapes and order rather
than by names, so that most decoder-only models of transformers need no entry; `_EXCEPTIONS` holds the rest.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ketools.errors import KetoolsError
from ketools.paths import model_dir, model_names

if TYPE_CHECKING:
    from ketools.editing.edit import Edit

# By model_type: fields of Anatomy that structure would get wrong. Then: entries of a config that compute nothing.
_EXCEPTIONS: dict[str, dict[str, str]] = {}
_VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "architectures"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a causal language model lie (paths of modules, as `get_submodule` takes them).

    `layers` is the ModuleList; `mlp` (None if a layer has no module of its own for it) and `mlp_out` are paths inside
    one layer; `transposed` says that the output matrix is stored (d_mlp, d_model), as GPT-2's Conv1D does.
    """

    architecture: str
    n_layer: int
    d_model: int
    d_mlp: int
    layers: str
    mlp: str | None
    mlp_out: str
    final_norm: str
    head: str
    tied: bool
    transposed: bool


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
    edits: list["Edit"] = field(default_factory=list)
    # Unedited bits of each touched matrix, and the bits before the last edits: what undo restores (editing.edit).
    originals: dict[int, Tensor] = field(default_factory=dict, repr=False)
    recent: list[dict[int, Tensor] | None] = field(default_factory=list, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, hence where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.get_input_embeddings().weight.dtype

    def layer(self, index: int) -> nn.Module:
        """Decoder layer `index` (0-based). Raises KetoolsError if there is none."""
        if not 0 <= index < self.anatomy.n_layer:
            raise KetoolsError(
                f"model {self.name!r} has layers 0 to {self.anatomy.n_layer - 1}; got layer {index}, choose one of these"
            )
        return self.model.get_submodule(self.anatomy.layers)[index]

    def mlp_out(self, index: int) -> nn.Module:
        """The module of layer `index` that holds the MLP's output matrix."""
        return self.layer(index).get_submodule(self.anatomy.mlp_out)

    def weight(self, index: int) -> Tensor:
        """The MLP's output matrix of layer `index` as a view (d_model, d_mlp): writing to it edits the model."""
        weight = self.mlp_out(index).weight.detach()
        return weight.T if self.anatomy.transposed else weight

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
        config = self.model.config
        logits = self.head(normed)
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def plain_head(self) -> bool:
        """Whether `logits` is nothing but the head's matrix (and bias)."""
        config = self.model.config
        odd = getattr(config, "logit_scale", None) or getattr(config, "final_logit_softcapping", None)
        return not odd and isinstance(self.head, nn.Linear)


def load(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EditableModel:
    """Load a model by name ("pocket"), by folder, by hub id ("openai-community/gpt2-xl"), or wrap one in memory.

    Pocket models are stored in half precision and load as float32; others keep the type they are stored in. The model
    is put in evaluation mode and its parameters stop requiring gradients (a wrapped model too). Only safetensors are
    read; no code from the model's folder is run.

    Raises KetoolsError for a name that is nowhere (listing what there is), a model that is quantised, a mixture of
    experts, or without an MLP output matrix, and for a tokenizer that cannot give character offsets.
    """
    if isinstance(source, PreTrainedModel):
        model, name, path = source, source.config.name_or_path or type(source).__name__, None
        _refuse(model, name)
        tokenizer = tokenizer or source.config.name_or_path
    else:
        name, path = str(source), _folder(source)
        model = _read(path or name, dtype if dtype is not None else _default_dtype(path), name)
        tokenizer = tokenizer or path or name
    if device is not None or (dtype is not None and model.dtype != dtype):
        model = model.to(device=device, dtype=dtype)
    model.eval().requires_grad_(False)
    return EditableModel(model, _tokenizer(tokenizer, name), anatomy_of(model, name), fingerprint_of(model), name, path)


def anatomy_of(model: PreTrainedModel, name: str = "model") -> Anatomy:
    """Find the anatomy of `model` by its structure. Raises KetoolsError where a part cannot be found."""
    layers_path, layers = _layers(model, name)
    d_model = model.get_input_embeddings().weight.shape[1]
    out_path, out = _mlp_out(layers[0], model.config.hidden_size, name)
    transposed = isinstance(out, Conv1D)
    d_mlp = out.weight.shape[0 if transposed else 1]
    head = model.get_output_embeddings()
    if head is None:
        raise KetoolsError(
            f"model {name!r} has no head that maps to the vocabulary; load it as a causal language model"
        )
    tied = head.weight is model.get_input_embeddings().weight
    found: dict[str, Any] = {
        "layers": layers_path,
        "mlp": out_path.rpartition(".")[0] or None,
        "mlp_out": out_path,
        "final_norm": _final_norm(model, layers_path, d_model, name),
        "head": next(path for path, module in model.named_modules() if module is head),
    }
    found |= _EXCEPTIONS.get(model.config.model_type, {})
    return Anatomy(type(model).__name__, len(layers), d_model, d_mlp, tied=tied, transposed=transposed, **found)


def fingerprint_of(model: PreTrainedModel) -> str:
    """sha256 (hex) over config and weights: two models have the same one only if they compute the same."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for path, weight in model.named_parameters():  # a tied matrix appears once
        digest.update(f"{path} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def _folder(source: str | Path) -> Path | None:
    # None: a hub id. A pocket model's name wins over a folder of that name; "./pocket" is the folder.
    name = str(source)
    if isinstance(source, str) and "/" not in name and name in model_names():
        return model_dir(name)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise KetoolsError(f"folder {path} holds no config.json; expected a model saved by save_pretrained")
        return path
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    have = ", ".join(model_names()) or "none yet"
    raise KetoolsError(
        f"no model named {name!r}: neither a pocket model (there are: {have}) nor a folder; "
        "models of the hub are named with their owner, as in 'openai-community/gpt2'"
    )


def _default_dtype(path: Path | None) -> torch.dtype | str:
    if path is None or path.resolve().parent.name != "models" or path.name not in model_names():
        return "auto"
    return torch.float32


def _read(where: str | Path, dtype: torch.dtype | str, name: str) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise KetoolsError(f"model {name!r} could not be loaded: {error}") from error
    _refuse(model, name)
    return model


def _refuse(model: PreTrainedModel, name: str) -> None:
    config = model.config
    if getattr(config, "quantization_config", None) or any(not p.is_floating_point() for p in model.parameters()):
        raise KetoolsError(
            f"model {name!r} is quantised: an update smaller than a quantisation step would be lost; "
            "load it in bfloat16, float16 or float32"
        )
    if any((getattr(config, key, None) or 0) > 1 for key in _EXPERTS):
        raise KetoolsError(
            f"model {name!r} is a mixture of experts: a key is read by several output matrices, "
            "which these methods do not cover; use a dense model"
        )


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


def _layers(model: PreTrainedModel, name: str) -> tuple[str, nn.ModuleList]:
    n = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n and sum(1 for _ in module[0].children()) > 1:
            return path, module
    raise KetoolsError(f"model {name!r} has no list of {n} layers; only decoder-only transformers can be edited")


def _matrices(layer: nn.Module) -> Iterator[tuple[str, nn.Module, int, int]]:
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield path, module, module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield path, module, *module.weight.shape


def _mlp_out(layer: nn.Module, d_model: int, name: str) -> tuple[str, nn.Module]:
    # Attention too ends in a matrix to d_model; it lies in a module whose name says so in every model of transformers.
    found = [
        (path, module)
        for path, module, _, n_out in _matrices(layer)
        if n_out == d_model and not any("att" in part.lower() for part in path.split("."))
    ]
    if not found:
        raise KetoolsError(
            f"model {name!r}: no matrix of a layer's MLP maps to the model's width {d_model}; "
            "these methods edit the MLP's output matrix and need one"
        )
    return found[-1]


def _final_norm(model: PreTrainedModel, layers_path: str, d_model: int, name: str) -> str:
    # The last norm beside the list of layers: BLOOM has another one, on the embeddings, before it.
    parent = layers_path.rpartition(".")[0]
    norms = [
        path
        for path, module in model.get_submodule(parent).named_children()
        if not list(module.children()) and getattr(getattr(module, "weight", None), "shape", None) == (d_model,)
    ]
    if not norms:
        raise KetoolsError(f"model {name!r} has no norm after its layers; its states cannot be read by the head")
    return f"{parent}.{norms[-1]}" if parent else norms[-1]
