"""The commands of long runs on a tiny model: run, killed, status, resume, verify, export; and their bad input."""

import json
import signal
from contextlib import ExitStack

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ketools import cli
from ketools.editing.editor import Editor
from ketools.errors import KetoolsError
from ketools.models.model import load
from ketools.runs.resume import restore
from ketools.runs.store import RunRecord, Store
from tests.cli.test_cli import one_line
from tests.cli.test_cli_whole import home, start  # noqa: F401 - a fixture

FAST = "--set steps=2 --set prefix_count=1 --set prefix_tokens=2 --set layers=[1,2] --measure per_task=4 --measure documents=4"
RUN = f"run --model tiny --edits 12 --batch 3 --checkpoint-every 6 --out kept {FAST} --quiet"


@pytest.fixture
def run(home, monkeypatch):  # noqa: F811
    """The command line with the tiny data folder, in the folder of `home`."""
    monkeypatch.setenv("KETOOLS_DATA", str(home / "data"))
    monkeypatch.chdir(home)
    return lambda text, *more: CliRunner().invoke(cli.app, [*text.split(), *map(str, more)])


def test_killed_watched_resumed_verified_and_exported(home, run, tmp_path, monkeypatch):  # noqa: F811
    process = start(home, RUN)
    while not (home / "kept" / "batches" / "00002.json").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)
    told = run("status kept").output
    assert "stopped, " in told and "of 12 edits with encore on tiny" in told and " MB at the end" in told
    with ExitStack() as held, monkeypatch.context() as patch:
        held.enter_context(Store(home / "kept").locked())  # a run that goes on
        looks = []
        patch.setattr("ketools.cli.run.time.sleep", lambda _: (looks.append(1), held.close()))
        watched = run("watch kept --json seen.json")
    first, second = watched.output.splitlines()[:2]
    assert first.startswith("kept: ") and "stopped" not in first and second.endswith("left stopped") and len(looks) == 2
    (seen,) = json.loads((home / "seen.json").read_text(encoding="utf-8"))
    assert seen["state"] == "stopped" and len(seen["norms"]) == seen["edits"] // 3 + 1
    resumed = run("resume kept --quiet")
    assert resumed.exit_code == 0, resumed.output
    assert "after 12 edits with encore on tiny:" in resumed.output
    assert "complete, 12 of 12 edits" in run("status kept").output
    assert "sound; batches 1 to 4 are intact" in run("runs verify kept").output
    # The model after six edits, in transformers alone, is the one of batch 2.
    assert run("export kept --at 6 --out", tmp_path / "six").exit_code == 0
    exported, model = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "six"),
        load(str(home / "data" / "models" / "tiny")),
    )
    restore(Store(home / "kept"), model, 2)
    assert torch.equal(exported.transformer.h[1].mlp.c_proj.weight, model.mlp_out(1).weight)
    assert not torch.equal(model.weight(1), model.originals[1])
    assert "no batch ends after 7 edits" in one_line(run("export kept --at 7 --out", tmp_path / "seven"), 2)
    assert "choose 6 or 9" in one_line(run("export kept --at 7 --out", tmp_path / "seven"), 2)
    assert "is not empty" in one_line(run("export kept --at 6 --out", tmp_path / "six"), 2)
    path = home / "kept" / "edits" / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    verified = run("runs verify kept")
    assert verified.exit_code == 2 and "edits/00002.safetensors: its checksum" in verified.output
    again = run("resume kept --quiet")
    assert again.exit_code == 0 and "edits/00002.safetensors" in again.stderr
    assert run("runs verify kept").exit_code == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run --edits 5 --model tiny", "no folder for the run"),
        ("run nowhere.toml --out o", "there is no such file"),
        ("run --out o --edits 0", "edits = 0"),
        ("run --out o --model tiny --edits 5 --seed -1", "seed = -1: expected a whole number from 0"),
        ("demo --out o --model tiny --edits 5 --seed -1 --quiet", "seed = -1: expected a whole number from 0"),
        (
            "run --out o --model huge --facts world --edits 5 --set lr=Infinity",
            "setting lr: input should be a finite number, found inf",
        ),
        ("run --out o --model tiny --edits 500", "asked for 500 facts, there are 20"),
        ("run --out o --model tiny --edits 5 --set lamda_n=3", "did you mean 'lambda_n'"),
        ("run --out o --model tiny --edits 5 --measure unedit=3", "did you mean 'unedited'"),
        ("run --out o --model huge --facts world --edits 5", "no model named 'huge'"),
        ("resume nowhere", "no run here"),
        ("status nowhere", "no run here"),
        ("export nowhere --at 3 --out x", "no run here"),
        ("runs verify nowhere", "no run here"),
    ],
)
def test_bad_input_is_one_line(run, command, said):
    assert said in one_line(run(command), 2)


def test_an_update_that_is_not_finite_ends_the_run_with_a_record(home, run, tmp_path, monkeypatch):  # noqa: F811
    from ketools.editing import editor as batch

    real, calls = batch.least_squares, []

    def breaks(*args, **named):
        left, right = real(*args, **named)
        calls.append(1)
        return (left * float("nan"), right) if len(calls) == 5 else (left, right)  # two layers a batch: the third batch

    monkeypatch.setattr(batch, "least_squares", breaks)
    command = RUN.replace("--out kept", f"--out {tmp_path / 'broken'}")
    ended = run(command)
    assert ended.exit_code == 0, ended.output
    assert "collapsed at edits 7 to 9 (batch 3): the update of layer 1 is not finite" in ended.output
    record = RunRecord.load(tmp_path / "broken")
    assert record.collapse["edits"] == 6 and record.checkpoints["edits"].tolist() == [0, 6]
    assert record.facts["end_p_new"].notna().all() and len(record.facts) == 6
    assert "collapsed, 6 of 12 edits" in run("status", tmp_path / "broken").output
    monkeypatch.setattr(Editor, "apply", None)  # it is over: nothing is edited again
    assert "collapsed at edits 7 to 9" in run("resume --quiet", tmp_path / "broken").output


def test_a_mistake_whose_message_speaks_of_numbers_is_no_collapse(run, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise KetoolsError("the target 'not finite' has no tokens")

    monkeypatch.setattr(Editor, "apply", refuses)
    ended = run(RUN.replace("--out kept", f"--out {tmp_path / 'refused'}"))
    assert "'not finite' has no tokens" in one_line(ended, 2)
    assert RunRecord.load(tmp_path / "refused").collapse is None


def test_facts_that_need_no_edit_are_told_once(run, tmp_path, monkeypatch):
    real = Editor.apply

    def apply(self, facts, progress=None):
        edit = real(self, facts, progress)
        edit.record["known"] = [True, True, False]
        return edit

    monkeypatch.setattr(Editor, "apply", apply)
    ended = run(RUN.replace("--out kept", f"--out {tmp_path / 'known'}"))
    assert ended.exit_code == 0 and ended.stderr.count("note: ") == 1 and "8 of 12 facts" in ended.stderr
    assert RunRecord.load(tmp_path / "known").batches["known"].tolist() == [2] * 4
    assert "8 facts needed no edit" in run("status", tmp_path / "known").output


def test_who_sits_at_a_terminal_is_asked_before_anything_is_written(home, run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ketools.cli.common.at_a_terminal", lambda: True)
    words = f"run --model tiny --edits 4 --batch 2 --checkpoint-every 4 --out asked {FAST}"
    refused = CliRunner().invoke(cli.app, words.split(), input="n\n")
    assert refused.exit_code == 2 and "not confirmed, nothing was changed" in refused.output
    assert "d_mlp" in refused.output and "for 4 edits" in refused.output, "what it is and costs is shown first"
    assert not (home / "asked" / "run.json").exists()
    done = run(f"{words} --yes --quiet")
    assert done.exit_code == 0 and "after 4 edits" in done.output
    other = f"{words.replace('--set layers=[1,2]', '--layers 1')} --yes --quiet"
    assert "holds a run with hyper" in one_line(run(other), 2)
    assert run(f"{other} --again --json", home / "again.json").exit_code == 0
    record = RunRecord.load(home / "asked")
    assert record.provenance["settings"]["hyper"]["layers"] == [1]
    point = json.loads((home / "again.json").read_text(encoding="utf-8"))
    assert point["edits"] == 4 and point["ES"] == record.checkpoints["ES"].iloc[-1]
    assert 0 <= record.checkpoints["before_ES"].iloc[0] <= 1, "the unedited model stands beside the edited one"
