"""The benchmark of long sequences, on a tiny shape and the CPU."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.shapes import SHAPES, open_model
from ketools import KetoolsError


def arguments(out, *more):
    small = ["--model", "tiny", "--facts", "4", "--edits", "80", "--window", "8", "--steps", "3"]
    return [*small, "--json", str(out), *more]


def test_the_first_and_the_last_batches_are_measured(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(arguments(out)) == 0
    figures = json.loads(out.read_text())
    assert [b["batch"] for b in figures["batches"]] == [0, 1, 18, 19] and figures["batches_left"] == 0
    assert [b["past"] for b in figures["batches"]] == [0, 4, 72, 76]
    assert all(b["mean_steps"] == 2 and b["seconds"] > 0 for b in figures["batches"])
    assert set(figures["parts"]) == {"first", "last"} and "s per edit" in capsys.readouterr().out


def test_a_stopped_call_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(arguments(out, "--minutes", "-1")) == 0
    assert "4 batches are left" in capsys.readouterr().out
    real, calls = gpu.one_batch, []

    def one(editor, chosen, number):
        calls.append((number, [len(editor.state.past.get(i, [])) for i in editor.layers]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(editor, chosen, number)

    monkeypatch.setattr(gpu, "one_batch", one)
    assert gpu.main(arguments(out)) == 130 and "batches measured: 1" in capsys.readouterr().err
    assert gpu.main(arguments(out)) == 0
    assert [n for n, _ in calls] == [0, 1, 1, 18, 19], "the first batch is not measured again"
    assert all(counts == [n, n] for n, counts in calls), "as many past keys as batches before"
    assert json.loads(out.read_text())["batches_left"] == 0
    assert gpu.main(arguments(out)) == 0 and len(calls) == 5
    assert gpu.main(arguments(out, "--seed", "1")) == 2 and "other settings" in capsys.readouterr().err


def test_batches_of_two_processors_are_not_mixed(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(arguments(out)) == 0
    found = json.loads(out.read_text())
    found["batches"].pop()
    found["provenance"]["processor"] = "Abacus"
    out.write_text(json.dumps(found))
    assert gpu.main(arguments(out)) == 2 and "measured on Abacus, and this is " in capsys.readouterr().err
    assert json.loads(out.read_text()) == found


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_file_of_something_else_is_left_alone(tmp_path, capsys, content):
    out = tmp_path / "gpu.json"
    out.write_text(content)
    assert gpu.main(arguments(out)) == 2 and "no result of this benchmark" in capsys.readouterr().err
    assert out.read_text() == content


def test_filled_keys_are_of_the_size_of_real_ones():
    model, layers = open_model("tiny", "cpu", torch.float32)
    editor = gpu.make_editor(model, layers, 3, 0)
    gpu.fill(editor, 30, 5, {1: 2.0, 2: 0.5}, 0)
    for layer, size in ((1, 2.0), (2, 0.5)):
        keys = torch.cat(editor.state.past[layer], 1)
        assert keys.shape == (model.anatomy.d_mlp, 150) and float(keys.square().mean().sqrt()) == pytest.approx(
            size, rel=0.05
        )


def test_what_is_not_there_is_said(tmp_path, capsys):
    assert gpu.main(["--model", "tiny"]) == 2 and "--json FILE" in capsys.readouterr().err
    assert gpu.main(arguments(tmp_path / "x.json", "--device", "xpu")) == 2
    assert "'xpu' is not there" in capsys.readouterr().err
    for name in ("gpt2-xl", "llama-3-8b", "qwen-2.5-7b"):
        with pytest.raises(KetoolsError, match="on the CPU; name an accelerator"):
            open_model(name, "cpu", torch.bfloat16)
    assert not SHAPES["gpt2-small"].large


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_an_accelerator(tmp_path, dtype):
    device = torch.accelerator.current_accelerator().type
    assert gpu.main(arguments(tmp_path / "x.json", "--device", device, "--dtype", dtype)) == 0
