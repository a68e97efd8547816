"""Edits in other formats: a plain transformers folder that contains the edits, or a PEFT adapter beside the model."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import nn

from ketools import __version__
from ketools.editing.edit import Edit
from ketools.errors import KetoolsError
from ketools.io import expanded, new_folder, read_json, write_atomic, write_json, write_tensors
from ketools.models.model import EditableModel
from ketools.models.smollm2 import HUB, NAME

_FORMAT = "ketools-export-1"
# Entries of an edit's record that are exported.
_KEPT = ("method", "stopping", "update", "facts", "on_top_of", "update_norm", "rounding", "texts")
_LISTED = 200  # facts listed in the model card; ketools.json has all


def export(model: EditableModel, path: str | Path) -> Path:
    """Write `model`, edits included, to the new folder `path` as `save_pretrained` does; returns the path.

    The folder holds weights (safetensors, in their type), config, generation config and tokenizer: `from_pretrained`
    gives equal logits, without ketools. `ketools.json` names the base model and its fingerprint, the name under which
    settings are looked up, and for each edit method, facts, layers, ranks and norms. README.md is a model card with the
    same content, which gives a base model from the hub as `base_model`. The folder appears whole or not at all: it is
    first read again and its weights are compared with those of `model` (which needs their memory again, on the CPU).

    Raises KetoolsError if `path` is a file or a folder that is not empty, if transformers refuses the model's
    generation config, and, naming the weight, if one differs from memory when it is read again.
    """
    edits = [
        {"layers": list(edit.layers), "ranks": edit.ranks} | {k: edit.record[k] for k in _KEPT if k in edit.record}
        for edit in model.edits
    ]
    about = {
        "format": _FORMAT,
        "base": {"name": model.name, "fingerprint": model.fingerprint},
        "bases": {**model.bases},
        "known_as": model.known_as,
        "edits": edits,
        "versions": {"ketools": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
    }
    with new_folder(path) as part:
        try:
            model.model.save_pretrained(part)
        except ValueError as error:
            raise KetoolsError(f"model {model.name!r} could not be exported: {error}") from error
        _check_written(model, part)
        model.tokenizer.save_pretrained(part)
        write_json(part / "ketools.json", about)
        write_atomic(part / "README.md", _card(about))
    return expanded(path)


def _card(about: Mapping[str, Any]) -> str:
    """The model card of an exported folder: its origin and the edited facts."""
    edits, name = about["edits"], str(about["base"]["name"]).rstrip("/").rsplit("/", 1)[-1]
    texts = [text for edit in edits for text in edit.get("texts", edit.get("facts", ()))]
    cells = [
        (edit.get("method", ""), len(edit.get("facts", ())), ", ".join(map(str, edit["layers"]))) for edit in edits
    ]
    rows: dict[tuple[Any, ...], int] = {}
    for method, count, layers in cells:  # equal batches are one row
        rows[method, layers] = rows.get((method, layers), 0) + count
    listed = [" ".join(text.split()).replace("|", "\\|") for text in texts[:_LISTED]]
    more = [f"- and {len(texts) - _LISTED:,} more, in ketools.json"] if len(texts) > _LISTED else []
    hub = {NAME: HUB}.get(about["known_as"], about["known_as"])
    base = [f"base_model: {hub}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", hub) and not expanded(hub).is_dir() else []
    lines = [
        "---", *base, "library_name: transformers", "tags: [knowledge-editing, ketools]", "---", "",
        f"# {name} with {len(texts):,} edited facts", "",
        f"The weights of {name} (fingerprint {about['base']['fingerprint'][:12]}) after edits with ketools "
        f"{about['versions']['ketools']}. The base model's licence and terms of use apply. Edits can change answers to other "
        "questions too: measure what matters to you before you use this model.", "",
        "| method | facts | layers |", "|---|---|---|",
        *(f"| {method} | {count:,} | {layers} |" for (method, layers), count in rows.items()), "",
        "## Edited facts", "", *(f"- {text}" for text in listed), *more, "",
    ]  # fmt: skip
    return "\n".join(lines)


def edits_of(folder: Path) -> int:
    """How many facts `export` recorded as edited in the model in `folder`; 0 for any other folder."""
    path = folder / "ketools.json"
    if not path.is_file():
        return 0
    edits = read_json(path, dict[str, Any], "the record of an export").get("edits", [])
    return sum(len(edit.get("facts", ())) for edit in edits)


def _check_written(model: EditableModel, folder: Path) -> None:
    again = type(model.model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
    stored = dict(again.named_parameters())
    for name, weight in model.model.named_parameters():
        read = stored.get(name)
        if read is None or not torch.equal(read.to(weight.dtype), weight.cpu()):
            raise KetoolsError(
                f"model {model.name!r}: what save_pretrained wrote does not hold {name} as it is in memory (a part of the "
                "model prevents it, or the disk is faulty); nothing was kept. Keep the edit itself (Edit.save)"
            )


def as_lora(edit: Edit, model: EditableModel, path: str | Path) -> Path:
    """Write `edit` as a PEFT adapter to the new folder `path`; returns it.

    `PeftModel.from_pretrained(base, path)` on the unedited model gives the logits that `model` has with only this edit
    in its weights, up to the rounding of one more product (LoRA, Hu et al., arXiv 2106.09685: W + B A with B = left, A
    = right^T and a scale of 1). Layers may have different ranks. The edit need not be in the weights of `model`, which
    provides the names of the matrices. A dense update becomes an adapter of full rank, larger than the matrix.

    The package peft is not needed to write it. Raises KetoolsError for another model's edit, an edit without layers,
    and if `path` is a file or a folder that is not empty.
    """
    model.edits.check(edit)
    if not edit.layers:
        raise KetoolsError("this edit changes no layer; there is nothing to write")
    names = {i: module_name(model, i) for i in edit.layers}
    ranks = {names[i]: rank for i, rank in edit.ranks.items()}
    config = {"peft_type": "LORA", "inference_mode": True, "base_model_name_or_path": str(model.path or model.name)}
    config |= lora_settings(model, ranks)
    tensors: dict[str, torch.Tensor] = {}
    for i, (left, right) in edit.layers.items():
        prefix = f"base_model.model.{names[i]}"
        tensors |= {f"{prefix}.lora_A.weight": right.T, f"{prefix}.lora_B.weight": left}
    with new_folder(path) as part:
        write_json(part / "adapter_config.json", config)
        about = {"format": "pt", "ketools": json.dumps(edit.record)}
        write_tensors(part / "adapter_model.safetensors", tensors, about)
    return expanded(path)


def lora_settings(model: EditableModel, ranks: dict[str, int]) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for adapters with `ranks` by module name on `model` and a scale of 1."""
    most = max(ranks.values())
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": list(ranks),
        "r": most,
        "lora_alpha": most,  # peft scales by alpha / r
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model.anatomy.transposed,
    }


def module_name(model: EditableModel, layer: int, within: nn.Module | None = None) -> str:
    """The name of the module with the MLP output matrix of `layer`, in the model or its part `within`."""
    wanted = model.mlp_out(layer)
    return next(name for name, module in (within or model.model).named_modules() if module is wanted)


def peft() -> ModuleType:
    """The package peft, which adapters need. Raises KetoolsError if it is not installed."""
    try:
        import peft as package
    except ImportError as error:
        raise KetoolsError("adapters need the package peft: pip install '.[lora]' in ketools' folder") from error
    return package
