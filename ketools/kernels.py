"""The same numbers sooner: how a model's passes run on the kernels that are at hand, not what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch.nn import functional
from transformers.activations import NewGELUActivation

from ketools.model import EditableModel

_WAKING = 2**20  # numbers of which each of torch's threads gets a share


@contextmanager
def quick(model: EditableModel) -> Iterator[None]:
    """Within the block passes of `model`, forward and backward, run as fast as is known here; see `fused`, `flushed`."""
    with fused(model), flushed(model.device):
        yield


@contextmanager
def fused(model: EditableModel) -> Iterator[None]:
    """GPT-2's activation, which transformers writes out in eight passes over its input, is torch's one kernel of the same
    formula within the block (equal to rounding; in half precisions rounded once, not eight times).
    """
    with ExitStack() as stack:
        for module in model.model.modules():
            if type(module) is NewGELUActivation and "forward" not in vars(module):
                vars(module)["forward"] = partial(functional.gelu, approximate="tanh")
                stack.callback(vars(module).pop, "forward")
        yield


@contextmanager
def flushed(device: torch.device) -> Iterator[None]:
    """On a CPU, magnitudes below 1.2e-38 (float32's denormals) count as 0 within the block, in the thread that enters it.

    The gradient behind a GELU that is far below zero is full of them, and products with such a matrix were seen at a third
    of their rate (benchmarks/README.md). torch's other threads keep theirs, for there is no switch to reach them. Where
    they are flushed already, or the device is no CPU, nothing changes.
    """
    if device.type != "cpu" or not _kept():
        yield
        return
    torch.zeros(_WAKING).add_(1)  # threads that are started within the block would inherit the switch, and keep it
    if not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _kept() -> bool:
    # torch tells how to switch, not how it is switched: half of the least normal number is 0 where they are flushed.
    least = torch.tensor(torch.finfo(torch.float32).tiny)
    return bool((least / 2) != 0)
