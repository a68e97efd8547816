"""What edits will cost on this machine: memory from shapes, time from operations and two measured rates.

Estimates of the order of magnitude, for the decision to start: step 1 is counted to its last step (early stopping takes
a part of it), nothing is counted twice for prompts that share their beginning.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch

from ketools.editing.hyper import Hyper
from ketools.editing.methods import FineTune, Method, NullSpace, Shift
from ketools.model import EditableModel

_ROWS, _LENGTH = 4, 32  # of the trial pass
_WIDTH = 512  # of the trial product
_TOKENS_AT_ONCE = 1536  # that step 1 holds for the gradient (targets.py)
_GIB = 2.0**30


@dataclass(frozen=True)
class Rates:
    """Measured: seconds of the model's layers for one token (without gradient), float64 operations a second."""

    token: float
    flops: float

    @property
    def text(self) -> str:
        """How they were found."""
        return (
            f"times: from one forward pass of {_ROWS * _LENGTH} tokens ({self.token * _ROWS * _LENGTH:.2g} s) and one "
            f"float64 product of width {_WIDTH} ({self.flops / 1e9:.3g} GFLOP/s), all steps taken"
        )


@dataclass(frozen=True)
class Sizes:
    """Tokens of an average fact: its whole prompt, and the part from the subject's last token on, target included."""

    prompt: float = 12.0
    suffix: float = 6.0


@torch.no_grad()
def measure(model: EditableModel) -> Rates:
    """Two short trials, each the better of two runs."""
    size = model.config.vocab_size
    ids = torch.arange(_ROWS * _LENGTH, device=model.device).view(_ROWS, _LENGTH) % size
    ids = ids[:, : model.window or _LENGTH]
    square = torch.ones(_WIDTH, _WIDTH, dtype=torch.float64)
    token = _seconds(lambda: model.body(input_ids=ids, use_cache=False).last_hidden_state.sum().item()) / ids.numel()
    return Rates(token, 2 * _WIDTH**3 / _seconds(lambda: (square @ square).sum().item()))


def estimate(
    model: EditableModel, chosen: Iterable[Method], edits: int, sizes: Sizes, rates: Rates, **overrides: object
) -> pd.DataFrame:
    """One row per method: method, layers, memory_gib, seconds_setup (once), seconds_per_edit, seconds (for `edits`).

    `overrides` are settings as for an Editor.

    `memory_gib` is at the peak: weights, their copies for undoing, C and its factors in float64, past keys, and what is
    held for the gradient.
    """
    rows = []
    for method in chosen:
        hyper = method.settings(model, **overrides)
        setup, each = _times(model, method, hyper, sizes, rates)
        assert hyper.layers is not None
        rows.append(
            {
                "method": method.name,
                "layers": ", ".join(map(str, hyper.layers)),
                "memory_gib": _bytes(model, method, hyper, edits) / _GIB,
                "seconds_setup": setup,
                "seconds_per_edit": each,
                "seconds": setup + edits * each,
            }
        )
    return pd.DataFrame(rows)


def available(model: EditableModel) -> float | None:
    """Memory (GiB) of the device that holds the model, free or (CPU) in all; None where it cannot be told."""
    found = getattr(getattr(torch, model.device.type, None), "mem_get_info", None)
    if found is not None:
        return found(model.device)[0] / _GIB + weight_bytes(model) / _GIB
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB


def weight_bytes(model: EditableModel) -> int:
    """Bytes of all parameters, a tied matrix once."""
    return sum(weight.numel() * weight.element_size() for weight in model.model.parameters())


def _times(model: EditableModel, method: Method, hyper: Hyper, sizes: Sizes, rates: Rates) -> tuple[float, float]:
    # (once, per edit) in seconds; a backward pass counts as two forward ones.
    assert hyper.layers is not None
    a, n = model.anatomy, len(hyper.layers)
    contexts = hyper.prefix_count + 1
    layer = rates.token / a.n_layer
    whole = sizes.prompt + sizes.suffix
    match method.update:
        case FineTune():
            return 0.0, hyper.ft_steps * 3 * whole * rates.token
        case Shift():
            return 0.0, 3 * whole * rates.token
    frozen = (contexts + 1) * sizes.prompt * rates.token
    steps = hyper.steps * contexts * sizes.suffix * 3 * layer * (a.n_layer - 1 - hyper.layers[-1])
    keys = sum(contexts * sizes.prompt * layer * (i + 1) for i in hyper.layers)
    cubes = 10.0 if isinstance(method.update, NullSpace) else 1 / 3  # eigenvectors, or a Cholesky factor
    setup = n * cubes * a.d_mlp**3 / rates.flops
    solve = n * (4 * a.d_mlp**2 + 4 * a.d_model * a.d_mlp) / rates.flops
    return setup, frozen + steps + keys + solve


def _bytes(model: EditableModel, method: Method, hyper: Hyper, edits: int) -> float:
    assert hyper.layers is not None
    a, n = model.anatomy, len(hyper.layers)
    matrix, item = a.d_model * a.d_mlp, torch.empty((), dtype=model.dtype).element_size()
    total = weight_bytes(model) + n * 4.0 * matrix * item  # original, before the batch, before the last two edits
    if method.needs_statistics:
        total += n * 3.0 * 8 * a.d_mlp**2  # C, lambda C, its factor
    if method.past_keys:
        total += n * a.d_mlp * (4.0 * edits + 8.0 * min(edits, a.d_mlp / 2))
    if isinstance(method.update, FineTune):
        return total + n * 16.0 * matrix  # float32 copy, gradient, Adam's two
    above = a.n_layer - 1 - hyper.layers[-1]
    return total + _TOKENS_AT_ONCE * above * (10.0 * a.d_model + 4.0 * a.d_mlp) * item


def _seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)
