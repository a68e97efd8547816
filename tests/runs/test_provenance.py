"""Where a result comes from."""

import platform
from types import SimpleNamespace

import torch

from ketools.runs.records import provenance


def about(device: str):
    anatomy = SimpleNamespace(architecture="GPT2LMHeadModel", n_layer=1, d_model=2, d_mlp=3)
    where = {"device": torch.device(device), "dtype": torch.bfloat16}
    return provenance(SimpleNamespace(name="m", fingerprint="f", anatomy=anatomy, **where), seed=0)


def test_the_accelerator_is_named_that_did_the_arithmetic(monkeypatch):
    modules = {"xpu": SimpleNamespace(get_device_name=lambda device: f"Accelerator {device.index}")}
    monkeypatch.setattr(torch, "get_device_module", lambda device: modules[device.type])
    found = about("xpu:3")
    assert (found["device"], found["processor"], found["dtype"]) == ("xpu:3", "Accelerator 3", "bfloat16")


def test_where_an_accelerator_has_no_name_the_machine_has_one(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert about("mps")["processor"] == about("cpu")["processor"]
    assert about("cpu")["processor"] or not platform.processor()
