"""Faster kernels change no number beyond rounding, and are gone behind their block."""

import os
import subprocess
import sys

import pytest
import torch
from transformers.activations import NewGELUActivation

from ketools.models.model import EditableModel
from ketools.models.replay import flushed, fused, quick

CPU = torch.device("cpu")
LEAST = torch.finfo(torch.float32).tiny


def denormal() -> torch.Tensor:
    return torch.full((1000,), LEAST) / 4  # too short to be shared out: of the calling thread


def test_denormals_are_flushed_in_the_block_alone() -> None:
    assert (denormal() > 0).all()
    with flushed(CPU):
        assert (denormal() == 0).all()
        with flushed(CPU):  # inside another block it is that one which ends it
            pass
        assert (denormal() == 0).all()
    assert (denormal() > 0).all()


def test_denormals_are_kept_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), flushed(CPU):
        raise ValueError("stop")
    assert (denormal() > 0).all()


def test_no_other_thread_is_left_switched() -> None:
    code = (
        "import torch; from ketools.models.replay import flushed\n"
        "with flushed(torch.device('cpu')): torch.ones(10**6).exp_()\n"
        "assert torch.get_num_threads() == 2\n"
        "assert ((torch.full((10**6,), 1e-39) * 2) > 0).all(), 'a thread still flushes'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, timeout=120)


def test_other_devices_change_nothing() -> None:
    with flushed(torch.device("meta")):
        assert (denormal() > 0).all()


def test_fused_activation_is_the_models_own_to_rounding(tiny_gpt2: EditableModel) -> None:
    ids = torch.arange(2, 22).view(2, 10)
    acts = [m for m in tiny_gpt2.model.modules() if isinstance(m, NewGELUActivation)]
    assert acts, "the tiny GPT-2 has GPT-2's activation"
    with torch.inference_mode():
        plain = tiny_gpt2.model(ids).logits
        with quick(tiny_gpt2):
            assert all("forward" in vars(m) for m in acts)
            fast = tiny_gpt2.model(ids).logits
    assert not any("forward" in vars(m) for m in acts)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast, plain), "another kernel rounds otherwise; equal bits mean that it was not used"


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_fused_gradient_is_the_formulas(scale: float) -> None:
    x = torch.linspace(-scale, scale, 1001, dtype=torch.float64, requires_grad=True)
    act = NewGELUActivation()
    (slope,) = torch.autograd.grad(act(x).sum(), x)
    (other,) = torch.autograd.grad(torch.nn.functional.gelu(x, approximate="tanh").sum(), x)
    torch.testing.assert_close(slope, other, rtol=1e-10, atol=1e-12)


def test_a_wrapped_activation_is_left_alone(tiny_gpt2: EditableModel) -> None:
    act = next(m for m in tiny_gpt2.model.modules() if isinstance(m, NewGELUActivation))
    mine = act.forward
    vars(act)["forward"] = mine
    try:
        with fused(tiny_gpt2):
            assert vars(act)["forward"] is mine
        assert vars(act)["forward"] is mine
    finally:
        vars(act).pop("forward")
