"""How a process ends: Ctrl-C at any time, output that cannot be written, a question that nobody answers, a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from safetensors import SafetensorError

from ketools.cli import common
from ketools.io import new_folder, write_atomic
from ketools.runs.config import RunConfig
from ketools.runs.preflight import Preflight

ROOT = Path(__file__).resolve().parents[2]


def start(*words, **streams):
    """The command line as a process of its own, in its own group."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **streams.pop("env", {})}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ketools.__main__ import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, **given)


@pytest.mark.parametrize(
    "after", [pytest.param(t, marks=() if t == 0.6 else pytest.mark.attack) for t in (0.3, 0.6, 1.0, 1.5, 2.5)]
)
def test_an_interrupt_at_any_time_is_one_line_and_130(after, tmp_path):
    # Python itself starts in the first tenths, where the signal finds no line of ours: those are let pass.
    process = start("inspect", "pocket", "world", "--json", tmp_path / "found.json")
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if process.returncode in (-signal.SIGINT, 1) and b"ketools" not in error:
        pytest.skip("before our first line")
    assert process.returncode in (130, 0) and b"Traceback" not in error


@pytest.mark.parametrize("words", [("glossary",), ("methods", "encore"), ("--help",), ("data", "list")])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written(words):
    with Path("/dev/full").open("wb") as full:
        process = start(*words, stdout=full)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and b"Traceback" not in error and b"No space left" in error


def test_output_whose_reader_has_left():
    process = start("glossary")
    process.stdout.close()
    error = process.stderr.read()
    process.wait(120)
    assert b"Traceback" not in error and b"Exception ignored" not in error


def test_a_terminal_that_lacks_the_letters(tmp_path):
    (tmp_path / "f.csv").write_text("subject,prompt,target_new\nŻółw,{} żyje w,東京\n", encoding="utf-8")
    process = start("data", "check", tmp_path / "f.csv", env={"PYTHONIOENCODING": "latin-1"})
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0 and b"Traceback" not in error and output
    process = start("data", "check", tmp_path / "東京.csv", env={"PYTHONIOENCODING": "latin-1"})
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and error.startswith(b"ketools: ") and b"?" in error


@pytest.mark.parametrize(("why", "expected"), [(KeyboardInterrupt, KeyboardInterrupt), (EOFError, common.KetoolsError)])
def test_the_question_without_an_answer(monkeypatch, why, expected):
    def ask(*_):
        try:
            raise why
        except why:
            raise typer.Abort from None

    monkeypatch.setattr(typer, "confirm", ask)
    monkeypatch.setattr(common, "findings", lambda _: [])
    findings = Preflight({}, None, (1,), "", None, None)
    with pytest.raises(expected, match="nothing was changed"):
        common.confirm(findings, 3, "tiny", yes=False, quiet=False)


def test_a_disk_that_fills_while_a_folder_is_written(tmp_path):
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "model") as part:
        (part / "half").write_text("x")
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_a_device_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_atomic(tmp_path / "pipe", "said")
    assert reader.communicate(timeout=60)[0] == b"said"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "null").symlink_to("/dev/null")
    write_atomic(tmp_path / "null", "nothing")
    assert (tmp_path / "null").is_char_device()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "link").is_symlink()


def test_files_have_the_permissions_of_others_and_the_mask_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask of the whole process was changed"))
    plain = tmp_path / "plain"
    plain.touch()
    with new_folder(tmp_path / "folder") as part:
        (part / "private").touch(mode=0o600)
    assert write_atomic(tmp_path / "a", "x").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "folder" / "private").stat().st_mode == plain.stat().st_mode


def test_a_config_is_kept_with_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "f.jsonl").touch()
    kept = RunConfig(model="own", facts="f.jsonl", out="o").as_dict()
    assert kept["model"] == str(tmp_path / "own") and kept["facts"] == str(tmp_path / "f.jsonl")
    assert "facts" not in RunConfig().as_dict()
