"""Models that can be edited: `load()`, and `EditableModel`, a model with its tokenizer and its anatomy.

The anatomy (ketools.models.anatomy) says where the list of layers is, which matrix is the output matrix of a layer's
MLP (the linear associative memory that every method here edits), and where the final norm and the head are.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from ketools.errors import KetoolsError, named
from ketools.io import expanded, model_dir, model_names, read_json
from ketools.models import smollm2
from ketools.models.anatomy import (
    Anatomy,
    anatomy_of,
    check_finite,
    recurrent,
    refuse_adapter,
    refuse_adapters,
    refuse_config,
    refuse_quantised,
    refuse_weights,
    width_out,
)
from ketools.models.weights import EditStack, check_layer

SUBLAYERS = ("attention", "mlp")
# The norm after the attention, by the name of the norm after the MLP (Anatomy.post_norm).
_POST_ATTENTION = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}
_ATTENTIONS = ("eager", "sdpa", "flex_attention")  # implementations that are part of torch and transformers
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
_STORED = ("F64", "F32", "F16", "BF16")  # types of weights, in the notation of safetensors
# Entries of a config that do not affect what the model computes.
_VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "architectures"}


@dataclass(eq=False, repr=False)
class EditableModel:
    """A causal language model, its tokenizer and its anatomy; `edits` are the edits in the weights, in order.

    `fingerprint` names the unedited model: sha256 of config and weights, taken when the model was loaded or wrapped.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> tuple(model.weight(0).shape) == (model.anatomy.d_model, model.anatomy.d_mlp)
        True
        >>> len(model.edits)
        0
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    fingerprint: str
    name: str
    path: Path | None = None
    base_name: str | None = None  # of a model that was exported to `path`
    bases: Mapping[str, str] = field(default_factory=dict)  # fingerprint -> name of each model that it was edited from
    edits: EditStack = field(init=False)
    # Whether a pass can continue from frozen keys and values, because layers carry no recurrent state.
    replays: bool = field(init=False)

    def __repr__(self) -> str:
        a = self.anatomy
        shape = f"{a.architecture}, {a.n_layer} layers, d_model {a.d_model}, d_mlp {a.d_mlp}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"EditableModel({self.name!r}, {shape}, {dtype} on {self.device}, {len(self.edits)} edits)"

    def __post_init__(self) -> None:
        self.edits = EditStack(self.model, self.anatomy, self.fingerprint, self.name)
        self.replays = not recurrent(self.model)

    @property
    def known_as(self) -> str:
        """The name under which settings are looked up: for a folder that `export` wrote, the name of its base."""
        return self.base_name or self.name

    @property
    def embedding(self) -> Tensor:
        """The matrix of token embeddings, (vocabulary, width of an embedding)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, which token ids must be on."""
        return self.embedding.device

    @property
    def config(self) -> Any:  # noqa: ANN401 - every architecture has a class of its own
        """The configuration of the language model (of a multimodal model, that of its text part)."""
        return self.model.config.get_text_config()

    @property
    def window(self) -> int | None:
        """Number of tokens in the context window; None if positions set no limit (BLOOM, Falcon's ALiBi)."""
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
        """The module of layer `index` with the MLP's output matrix."""
        return self.layer(index).get_submodule(self.anatomy.mlp_out)

    def sublayer(self, index: int, name: str) -> nn.Module:
        """The module of layer `index` whose output its "attention" or "mlp" adds to the residual stream.

        That is the last matrix of the part, or the norm after it where an architecture has one (Gemma 2 and 3, OLMo 2
        and 3). Raises KetoolsError for a layer that does not exist or has no attention that writes to the stream.
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
        """The factor that a layer applies to its summands before adding them (Granite's; 1 elsewhere)."""
        return float(getattr(self.config, "residual_multiplier", 1.0))

    def check_state(self) -> None:
        """Raise KetoolsError where repeating a pass could give another result: in training mode (dropout), and under
        defaults of torch that our tensors would inherit.
        """
        if any(module.training for module in self.model.modules()):
            raise KetoolsError(
                f"model {self.name!r} is in training mode, where dropout makes every pass different; call .eval() on the "
                "model of transformers (model.model.eval())"
            )
        if torch.get_default_dtype() != torch.float32:
            raise KetoolsError(
                f"torch's default dtype is {torch.get_default_dtype()}, expected torch.float32: call "
                "torch.set_default_dtype(torch.float32); ke.load(dtype=...) sets the type of the weights"
            )
        if torch.get_default_device().type == "meta":
            raise KetoolsError(
                'torch\'s default device is "meta", which holds no numbers; call torch.set_default_device(None)'
            )

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
        """Whether `logits` only applies the head's matrix (and bias)."""
        config = self.config
        odd = getattr(config, "logit_scale", None) or getattr(config, "final_logit_softcapping", None)
        return not odd and isinstance(self.head, nn.Linear)

    def export(self, path: str | Path) -> Path:
        """Write the model with its edits as a plain transformers folder; see `ketools.editing.export.export`."""
        from ketools.editing.export import export  # that module imports this one

        return export(self, path)


_Size = Annotated[int, Field(ge=1, le=1 << 24)] | None


class _Index(BaseModel):
    weight_map: dict[str, str]


class _Config(BaseModel):
    # The sizes of the model that is built before any weight is read, under the names used by the architectures.
    model_type: str
    architectures: list[str] | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)] | None = None
    n_layer: Annotated[int, Field(ge=1, le=4096)] | None = None
    num_layers: Annotated[int, Field(ge=1, le=4096)] | None = None
    hidden_size: _Size = None
    n_embd: _Size = None
    intermediate_size: _Size = None
    n_inner: _Size = None
    num_attention_heads: _Size = None
    n_head: _Size = None
    vocab_size: _Size = None


def load(
    source: str | Path | nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EditableModel:
    """Load a model by name ("pocket", "smollm2"), folder or hub id ("openai-community/gpt2-xl"), or wrap one in memory.

    "smollm2" is fetched unless it is in the user's cache (ketools.models.smollm2). Pocket models are stored in half
    precision and load as float32; others keep the type they are stored in. The model is put in evaluation mode and its
    parameters stop requiring gradients (a wrapped model too). Only safetensors are read; neither code from the model's
    folder nor kernels named by its config are run. A `device` of "auto", "balanced", "balanced_low_0" or "sequential"
    spreads a model that is read here over the available devices (transformers' device_map, needs accelerate); a wrapped
    model stays where it is. Of a model wrapped by torch.compile or DataParallel the inner model is used: its weights
    are the same.

    Warns about a tokenizer with added tokens that the model has no embeddings for. Raises KetoolsError for an unknown
    name (listing the known ones); for anything but a transformers model; for a model that has an unmerged adapter, is
    quantised, a mixture of experts, partly offloaded or incomplete, holds NaN or Inf, or lacks an MLP output matrix of
    its own in each layer; and for a tokenizer that belongs to another model or gives no character offsets.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> model.anatomy.architecture, model.anatomy.n_layer, model.dtype
        ('LlamaForCausalLM', 5, torch.float32)
    """
    if isinstance(source, str | Path):
        name, path = str(source), _folder(source)
        model = _read(path or name, name, dtype, {"device_map": device} if device in _SPREAD else {})
        tokenizer = tokenizer or path or name
    else:
        model = _unwrapped(source)
        name, path = model.config.name_or_path or type(model).__name__, None
        refuse_config(model.config, name)
        tokenizer = tokenizer or model.config.name_or_path
    refuse_weights(model, name)
    if device not in (None, *_SPREAD):
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise KetoolsError(
                f"model {name!r} is spread over several devices by its device_map; leave out device={device!r}, or load "
                "it without a device_map"
            )
        try:
            if (wanted := torch.device(device)).type == "cpu" and wanted.index:
                raise RuntimeError("there is one CPU; leave out its number")
            nn.Module.to(model, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
            raise KetoolsError(f"model {name!r} cannot be put on device {device!r}: {error}") from error
    if dtype is not None and model.dtype != dtype:
        # As in from_pretrained, buffers that a model computes and stores in no file (frequencies of rotary positions)
        # keep their precision.
        stored = model.state_dict().keys()
        own = {where: buffer for where, buffer in model.named_buffers() if where not in stored}
        nn.Module.to(model, dtype=dtype)
        for where, buffer in own.items():
            module, _, buffer_name = where.rpartition(".")
            model.get_submodule(module).register_buffer(buffer_name, buffer, persistent=False)
    model.eval().requires_grad_(False)
    anatomy = anatomy_of(model, name)
    check_finite(model, name)
    tokenizer = _tokenizer(tokenizer, name, path)
    made = EditableModel(model, tokenizer, anatomy, fingerprint_of(model), name, path, *_exported_from(path))
    _check_vocabulary(tokenizer, len(made.embedding), name)
    return made


def _unwrapped(source: Any) -> PreTrainedModel:  # noqa: ANN401 - whatever a user passes
    while isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(source, "_orig_mod"):
        source = source._orig_mod if hasattr(source, "_orig_mod") else source.module
    if isinstance(source, PreTrainedModel):
        return source
    what = type(source).__name__
    if isinstance(source, nn.Module):
        refuse_adapters(source, what)
    raise KetoolsError(
        f"got {'None' if source is None else f'an object of type {what}'} for a model; expected its name, its folder, or a "
        "PreTrainedModel of transformers (where another object holds the model, pass the model inside)"
    )


def _read(where: str | Path, name: str, dtype: torch.dtype | None, spread: Mapping[str, str]) -> PreTrainedModel:
    pocket = isinstance(where, Path) and where.resolve().parent.name == "models" and where.name in model_names()
    try:
        if find_adapter_config_file(str(where)) is not None:
            refuse_adapter(name, "its folder holds an adapter_config.json")
        if isinstance(where, Path):
            read_json(where / "config.json", _Config, "the config of a model", most=1 << 24)
            _check_files(where, name)
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        refuse_config(config, name)
        parts = (config, *(getattr(config, part, None) for part in config.sub_configs))
        if any(getattr(part, "_attn_implementation", None) not in (None, *_ATTENTIONS) for part in parts):
            config._attn_implementation = None  # any other name may be a kernel to be fetched from the hub and run
        read: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=dtype or (torch.float32 if pocket else "auto"),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **spread,
        )
    except KetoolsError:
        raise
    except Exception as error:  # transformers may raise anything for a folder from outside
        why = str(error) or type(error).__name__
        if "trust_remote_code" in why:
            why = (
                "its architecture is code in its own folder, which ketools does not run; take a version of the model whose "
                "architecture is part of transformers"
            )
        raise KetoolsError(f"model {name!r} could not be loaded: {why}") from error
    model, report = read
    if missing := sorted(report["missing_keys"]):
        raise KetoolsError(
            f"model {name!r}: its files lack {len(missing)} of the tensors that its config asks for "
            f"({named(missing, 5)}), which would be random numbers; copy the model again, or correct its config.json"
        )
    return model


def _check_files(folder: Path, name: str) -> None:
    """Raise KetoolsError for weights in pickles, outside the folder, or in a quantised type."""
    index, files = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        files = sorted(set(read_json(index, _Index, "the index of a model's shards")["weight_map"].values()))
    elif not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise KetoolsError(
            f"model {name!r} has its weights in a pickle ({next(folder.glob('*.bin')).name}), which can run code; convert "
            f"them where you trust them: AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW), and "
            "the tokenizer likewise"
        )
    for file in files:
        if Path(file).name != file:
            raise KetoolsError(f"{index} names a file outside the model's folder ({file}); copy the model again")
        if not (folder / file).is_file():
            continue  # transformers reports what is missing
        with safe_open(folder / file, "pt") as tensors:
            for path in tensors.keys():  # noqa: SIM118 (no mapping)
                kind = tensors.get_slice(path).get_dtype()
                if path.endswith("weight") and kind not in _STORED:
                    refuse_quantised(name, f"{path} in {file} is {kind}")


def fingerprint_of(model: PreTrainedModel) -> str:
    """sha256 (hex) over config and weights: two models share it only if they compute the same."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for path, weight in model.named_parameters():  # a tied matrix appears once
        digest.update(f"{path} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _folder(source: str | Path) -> Path | None:
    # None for a hub id. The name of a pocket model takes precedence over a folder of that name ("./pocket").
    name = str(source)
    if isinstance(source, str) and "/" not in name and name in model_names():
        return model_dir(name)
    if source == smollm2.NAME:
        return smollm2.fetch()
    path = expanded(source)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise KetoolsError(f"folder {path} holds no config.json; expected a model saved by save_pretrained")
        return path
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    have = ", ".join([*model_names(), smollm2.NAME])
    raise KetoolsError(
        f"no model named {name!r}: neither a model that ketools knows ({have}) nor a folder; "
        "models of the hub are named with their owner, as in 'openai-community/gpt2'"
    )


def _exported_from(path: Path | None) -> tuple[str | None, dict[str, str]]:
    # What `export` wrote beside the weights: the name under which settings are looked up (the first versions wrote only
    # the name of the base), and the models that this one was edited from.
    file = None if path is None else path / "ketools.json"
    if file is None or not file.is_file():
        return None, {}
    try:
        about = read_json(file, dict[str, Any], "the record of an export")
        base = about.get("base", {})
        bases = about.get("bases", {}) | ({base["fingerprint"]: base["name"]} if "fingerprint" in base else {})
        return str(about.get("known_as") or base["name"]), {str(key): str(value) for key, value in bases.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KetoolsError(
            f"{file}: no record of an export ({error}); remove this file, which the model does not need"
        ) from error


def _tokenizer(
    given: PreTrainedTokenizerBase | str | Path | None, name: str, folder: Path | None
) -> PreTrainedTokenizerBase:
    if isinstance(given, str | Path) and str(given):
        try:
            given = AutoTokenizer.from_pretrained(given, use_fast=True, trust_remote_code=False)
        except Exception as error:  # the library tokenizers raises Exception itself
            way_out = (
                "give one with tokenizer=" if given != folder else f"save one in {folder} (tokenizer.save_pretrained)"
            )
            raise KetoolsError(f"no tokenizer for {name!r}: {error}; {way_out}") from error
    if not isinstance(given, PreTrainedTokenizerBase):
        raise KetoolsError(f"model {name!r} was wrapped without a tokenizer; give one with tokenizer=")
    if not given.is_fast:
        raise KetoolsError(f"the tokenizer of {name!r} gives no character offsets (a slow one); load its fast version")
    return given


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    # Tokens without an embedding: if they belong to the vocabulary itself, the tokenizer is another model's; added ones
    # (a padding token) may never occur.
    beyond = sorted(token for token, number in tokenizer.get_vocab().items() if number >= rows)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    what = f"the tokenizer has tokens that model {name!r}, with {rows:,} embeddings, does not know: "
    if strange := [token for token in beyond if token not in added]:
        raise KetoolsError(f"{what}{named(strange, 3)}; it is another model's, give the one that belongs to this model")
    if beyond:
        warnings.warn(f"{what}{named(beyond, 3)}; texts that contain one are refused", stacklevel=3)
