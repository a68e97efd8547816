"""Where a result comes from: versions, machine, method, model, commit."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ketools
from ketools.model import EditableModel

PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")


def plain(value: object) -> Any:  # noqa: ANN401 - what json.dumps takes
    """A value as JSON can hold it; a dataclass becomes {"type": its name, fields...}, so that MPES and FixedSteps differ."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def provenance(model: EditableModel, seed: int, method: object | None = None) -> dict[str, Any]:
    """Versions, machine, seed, method with its settings, model with its fingerprint, commit, time (UTC)."""
    about = {
        "model": {"name": model.name, "fingerprint": model.fingerprint, **_shape(model)},
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(model.device),
        "seed": seed,
        "versions": versions(),
        "git": git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return about | ({"method": plain(method)} if method is not None else {})


def _processor(device: torch.device) -> str:
    # What did the arithmetic: seconds mean nothing without it. Linux tells Python nothing better than "x86_64" or "".
    if device.type != "cpu" and (named := getattr(torch.get_device_module(device), "get_device_name", None)):
        return str(named(device))
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name"))
    return next(named, platform.processor())


def _shape(model: EditableModel) -> dict[str, Any]:
    # How much a matrix can hold is told by its width.
    anatomy = model.anatomy
    return {
        "architecture": anatomy.architecture, "n_layer": anatomy.n_layer, "d_model": anatomy.d_model, "d_mlp": anatomy.d_mlp,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, ketools and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "ketools": ketools.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def git_commit() -> dict[str, Any] | None:
    """{"commit", "changed"} of the checkout that the package lies in; None outside one or without git."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "changed": bool(git("status", "--porcelain", "-uno").strip()),
        }
    except (OSError, subprocess.SubprocessError):
        return None
