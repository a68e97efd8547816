"""Models whose layers lie on different devices give the numbers of one device."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(trained_gpt2, trained_llama, tiny_tokenizer, tmp_path):
    for name, model in (("gpt2", trained_gpt2), ("llama", trained_llama)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    # In a process of its own: the second device, once made, is there for all that follows.
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.models.devices",
        str(tmp_path / "gpt2"),
        str(tmp_path / "llama"),
    ]
    ran = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "alike", ran.stdout + ran.stderr[-4000:]
