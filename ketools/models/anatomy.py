"""The anatomy of a causal language model, found by its structure: layers, MLP output matrix, final norm, head.

Shapes and order decide rather than names, so most decoder-only models of transformers need no entry; short lists hold
what structure does not show. Models that these methods do not cover are refused here, each with its reason.
"""

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ketools.errors import KetoolsError, NotFinite

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers without recurrent state
# Attention and recurrences also end in a matrix to d_model; their module names show it in all models of transformers.
_NOT_MLP = ("att", "mixer", "mamba", "ssm", "conv", "recurrent")
# Names of a norm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2 and 3, EXAONE 4; GLM 4).
_POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a causal language model are (module paths for `get_submodule`).

    `layers` is the ModuleList. `mlp` (None if a layer has no separate module for it), `mlp_out` and `post_norm` (None
    if the MLP's output enters the residual stream unchanged) are paths inside one layer. `transposed`: the output
    matrix is stored as (d_mlp, d_model), as in GPT-2's Conv1D.
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
    post_norm: str | None = None


def anatomy_of(model: PreTrainedModel, name: str = "model") -> Anatomy:
    """Find the anatomy of `model` by its structure.

    Raises KetoolsError where a part cannot be found, for a recurrent model, and where the MLP output matrices of the
    layers differ in kind or shape.
    """
    config = model.config.get_text_config()
    d_model = config.hidden_size
    if recurrent(model) and not _kinds(config) & {*_ATTENTION, "hybrid"}:
        raise KetoolsError(
            f"model {name!r} ({config.model_type}) carries a recurrent state instead of keys and values of attention; "
            "these methods need attention, which moves what they edit from the subject to the answer"
        )
    layers_path, layers = _layers(model, config.num_hidden_layers, name)
    candidates = [
        (path, module)
        for path, module in layers[0].named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and width_out(module) == d_model
        and not any(word in path.lower() for word in _NOT_MLP)
    ]
    if not candidates:
        raise KetoolsError(
            f"model {name!r}: no matrix of a layer's MLP maps to the model's width {d_model}; "
            "these methods edit the MLP's output matrix and need one"
        )
    out_path, out = candidates[-1]
    owners: dict[int, list[str]] = {}  # parameters by the address of their memory
    for path, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(weight.data_ptr(), []).append(path)
    for i, layer in enumerate(layers):
        module = dict(layer.named_modules()).get(out_path)
        if type(module) is not type(out) or module.weight.shape != out.weight.shape:
            raise KetoolsError(
                f"model {name!r}: layer {i} has no MLP output matrix {out_path!r} like layer 0's "
                f"{tuple(out.weight.shape)}; only models whose layers are alike can be edited"
            )
        own = dict(module.named_parameters())
        if "weight" not in own or own.keys() - {"weight", "bias"}:
            raise KetoolsError(
                f"model {name!r}: the weight of {out_path!r} in layer {i} is computed from {', '.join(own)}; merge these "
                "into one weight first"
            )
        if not own["weight"].is_meta and len(same := owners[own["weight"].data_ptr()]) > 1:
            raise KetoolsError(
                f"model {name!r}: {' and '.join(same[:2])} are one and the same matrix, so that an edit of one layer would "
                "change the other; give each its own copy"
            )
    # The last norm beside the list of layers; BLOOM has another one before it, on the embeddings.
    parent = layers_path.rpartition(".")[0]
    norms = [
        path
        for path, module in model.get_submodule(parent).named_children()
        if not list(module.children()) and getattr(getattr(module, "weight", None), "shape", None) == (d_model,)
    ]
    if not norms:
        raise KetoolsError(f"model {name!r} has no norm after its layers; its states cannot be read by the head")
    head = model.get_output_embeddings()
    if head is None:
        raise KetoolsError(
            f"model {name!r} has no head that maps to the vocabulary; load it as a causal language model"
        )
    transposed = isinstance(out, Conv1D)
    return Anatomy(
        architecture=type(model).__name__,
        n_layer=len(layers),
        d_model=d_model,
        d_mlp=out.weight.shape[0 if transposed else 1],
        layers=layers_path,
        mlp=out_path.rpartition(".")[0] or None,
        mlp_out=out_path,
        post_norm=next((path for path, _ in layers[0].named_children() if path in _POST_NORMS), None),
        final_norm=f"{parent}.{norms[-1]}" if parent else norms[-1],
        head=next(path for path, module in model.named_modules() if module is head),
        tied=head.weight is model.get_input_embeddings().weight,
        transposed=transposed,
    )


def width_out(module: nn.Linear | Conv1D) -> int:
    """The width of a matrix's output; GPT-2's Conv1D stores its matrix transposed."""
    return module.weight.shape[1 if isinstance(module, Conv1D) else 0]


def recurrent(model: PreTrainedModel) -> bool:
    """Whether layers carry a state from token to token besides keys and values: state-space layers, convolutions."""
    return bool(getattr(model, "_is_stateful", False) or _kinds(model.config.get_text_config()) - _ATTENTION)


def _kinds(config: PretrainedConfig) -> set[str]:
    return {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}


def refuse_config(config: PretrainedConfig, name: str) -> None:
    """Raise KetoolsError for a model whose config says that it is quantised or a mixture of experts.

    This check runs before the weights are read, which can take long or need missing libraries.
    """
    if getattr(config, "quantization_config", None):
        refuse_quantised(name, "its config has a quantization_config")
    parts = [config, config.get_text_config(), getattr(config, "ffn_config", None)]
    for part in parts:
        for key in _EXPERTS:
            count = part.get(key) if isinstance(part, dict) else getattr(part, key, None)
            if isinstance(count, int) and count > 1:
                _refuse_experts(name, f"{key} = {count}")


def refuse_weights(model: PreTrainedModel, name: str) -> None:
    """Raise KetoolsError for weights that cannot be edited: in an adapter, quantised, of experts, or offloaded."""
    refuse_adapters(model, name)
    for path, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.dtype not in _DTYPES and (weight.is_floating_point() or path.endswith("weight")):
            refuse_quantised(name, f"{path} is {str(weight.dtype).removeprefix('torch.')}")
        if weight.is_meta:
            raise KetoolsError(
                f"model {name!r}: {path} is offloaded to the disk or to the memory of the CPU, so that there is nothing "
                "to write an edit to; choose a device_map that holds every weight on a device (fewer other jobs, "
                "bfloat16 weights, or the CPU alone)"
            )
    for path, _ in model.named_modules():
        if path.rpartition(".")[2] == "experts":
            _refuse_experts(name, f"{path} is a list of experts")


def refuse_adapters(model: nn.Module, name: str) -> None:
    """Raise KetoolsError naming the first module that wraps another one with an adapter (LoRA and related methods)."""
    for path, module in model.named_modules():
        kind = type(module)
        if isinstance(getattr(module, "base_layer", None), nn.Module) or kind.__module__.startswith("peft."):
            refuse_adapter(name, f"{path or 'the model'} is a {kind.__module__}.{kind.__name__}")


def refuse_adapter(name: str, why: str) -> NoReturn:
    """Raise the KetoolsError of a model with an adapter."""
    raise KetoolsError(
        f"model {name!r} has an adapter that is not merged ({why}): an edit would go beside the weights that are saved. Merge "
        "it first: PeftModel.from_pretrained(base, adapter).merge_and_unload(), and save or pass what that returns"
    )


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise KetoolsError naming the layer and matrix of the first weights that hold NaN or Inf."""
    for path, weight in model.named_parameters():
        if weight.numel() == 0:
            continue
        low, high = weight.detach().aminmax()  # both are NaN if any entry is; the weights are not copied
        if not (torch.isfinite(low) and torch.isfinite(high)):
            layer = next((part for part in path.split(".") if part.isdigit()), None)
            where = f"layer {layer}, {path}" if layer is not None else path
            raise NotFinite(
                f"model {name!r}: the weights of {where} hold NaN or Inf; the file is damaged or the model was broken by "
                "training or by an earlier edit: load an intact copy (float16 overflows at 65,504; try bfloat16)"
            )


def refuse_quantised(name: str, why: str) -> NoReturn:
    """Raise the KetoolsError of quantised weights."""
    raise KetoolsError(
        f"model {name!r} is quantised ({why}): an update smaller than a quantisation step would be lost; "
        "load it in bfloat16, float16 or float32"
    )


def _refuse_experts(name: str, why: str) -> None:
    raise KetoolsError(
        f"model {name!r} is a mixture of experts ({why}): a key is read by several output matrices, "
        "which these methods do not cover; use a dense model"
    )


def _layers(model: PreTrainedModel, n: int, name: str) -> tuple[str, nn.ModuleList]:
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n:
            continue
        other = any(part.startswith(("vision", "audio")) for part in path.split("."))
        if not other and sum(1 for _ in module[0].children()) > 1:
            return path, module
    raise KetoolsError(f"model {name!r} has no list of {n} layers; only decoder-only transformers can be edited")
