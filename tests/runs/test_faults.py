"""What may go wrong with a run's files: the disk in the midst of a write, damage afterwards, another process, other settings."""

import copy
import errno
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import ketools.editing.editor
import ketools.io
import ketools.runs.resume as resuming
import ketools.runs.store
from ketools import KetoolsError
from ketools.models.model import load
from ketools.runs.config import RunConfig
from ketools.runs.resume import config_of
from ketools.runs.run import lifelong
from ketools.runs.store import RunRecord, Store, survey
from tests.runs.conftest import CHANGED
from tests.runs.killed import start
from tests.runs.test_lifelong import same, undo_all, weights
from tests.small_world import small_facts

FILES = (
    "run.json", "batches/00000.json", "batches/00001.json", "batches/00002.json", "batches/00003.json",
    "edits/00001.safetensors", "edits/00003.safetensors", "state/00001.safetensors", "state/00002.safetensors",
    "snapshots/00002.safetensors", "checkpoints/00000.json", "checkpoints/00002.json", "checkpoints/00003.json",
    "facts.parquet", "tables.json", "progress.json",
)  # fmt: skip
# A deletion would leave what a kill leaves: tables that are written again.
AS_IF_NEVER_WRITTEN = ("tables.json",)


@pytest.fixture(scope="module")
def undisturbed(trained_gpt2, tiny_tokenizer, statistics, panel, tmp_path_factory):
    """(folder, record, weights) of a run that nothing disturbed."""
    model = load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer)
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    record = lifelong(
        model, small_facts(), "encore", edits=8, batch=3, checkpoint_every=4, consolidate_every=2, out=out, panel=panel,
        statistics=statistics, progress=False, overrides=CHANGED,
    )  # fmt: skip
    return out, record, weights(model)


@pytest.fixture
def whole(undisturbed, tmp_path):
    """(record, weights) of that run; a copy of its folder is "whole"."""
    shutil.copytree(undisturbed[0], tmp_path / "whole")
    return undisturbed[1:]


def goes_on_to_the_same(run, model, whole, out):
    """The run in `out` ends as the whole one did, and every file of it is sound."""
    undo_all(model)
    same(whole[0], run(out))
    assert all(torch.equal(model.weight(layer), weight) for layer, weight in whole[1].items())


def nth_call(patch, owner, name, number, error):
    """`owner.name` raises `error` in its numbered call, and in no other."""
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise error
        return real(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("number", [1, 2, 3, 12, 13, 15, 24])
@pytest.mark.parametrize("fault", ["no space", "failed rename"])
def test_a_fault_of_the_disk_in_any_write_loses_nothing(run, tiny_gpt2, whole, tmp_path, monkeypatch, fault, number):
    with monkeypatch.context() as patch:
        if fault == "no space":
            nth_call(patch, ketools.io, "_flush", number, OSError(errno.ENOSPC, "No space left on device"))
        else:
            nth_call(patch, Path, "replace", number, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(KetoolsError, match=r"cannot write to .*(No space|Input/output).*finished before is kept"):
            run("faulty")
    assert not list((tmp_path / "faulty").rglob("*.part"))
    if Store(tmp_path / "faulty").exists():
        assert (
            len(tiny_gpt2.edits)
            == Store(tmp_path / "faulty").progress()["batches"]
            == len(RunRecord.load(tmp_path / "faulty").batches)
        )
    goes_on_to_the_same(run, tiny_gpt2, whole, "faulty")
    assert survey(tmp_path / "faulty").sound


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for i, name in enumerate(FILES) for damage in (("truncated", "changed")[i % 2], "gone")],
)
def test_damage_to_any_file_is_named_and_made_good(run, tiny_gpt2, whole, tmp_path, name, damage):
    if damage == "gone" and name in AS_IF_NEVER_WRITTEN:
        damage = "truncated"
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    path = tmp_path / "hurt" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 0x15
        path.write_bytes(content)
    else:
        path.unlink()
    found = survey(tmp_path / "hurt")
    assert list(found.damaged) == [name] and name in found.text()
    with pytest.warns(UserWarning, match=f"1 files were damaged .{name}") as said:
        goes_on_to_the_same(run, tiny_gpt2, whole, "hurt")
    assert survey(tmp_path / "hurt").sound
    again = "the unedited model is measured again"
    assert any(again in str(each.message) for each in said) == (name == "batches/00000.json" and damage != "gone")


@pytest.mark.parametrize("inside", [False, True])
def test_tables_are_whole_after_a_kill_between_the_last_checkpoint_and_them(
    run, tiny_gpt2, whole, tmp_path, monkeypatch, inside
):
    writes, real = [], Store.write_tables

    def stop(store, *frames):
        writes.append(store)
        if len(writes) == 3 and not inside:
            raise KeyboardInterrupt
        if len(writes) == 3:
            nth_call(patch, ketools.runs.store, "write_atomic", 3, KeyboardInterrupt())
        real(store, *frames)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            run("late")
    found = survey(tmp_path / "late")
    assert found.sound and found.unsealed, "tables that are behind are no damage"
    goes_on_to_the_same(run, tiny_gpt2, whole, "late")
    record = RunRecord.load(tmp_path / "late")
    assert len(writes) == 3 and "end_p_new" in record.facts
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "late" / "facts.parquet"), record.facts)


def test_files_that_a_sync_tool_left_are_nobodys(run, tiny_gpt2, whole, tmp_path):
    strays = [Path("batches/00003 2.json"), Path("checkpoints/00002 2.json"), Path("snapshots/00002 2.safetensors"),
              Path("batches/4.json"), Path("snapshots/00009.bak")]  # fmt: skip
    for path in strays:
        (tmp_path / "whole" / path).write_bytes(b"another machine's")
    found = survey(tmp_path / "whole")
    assert found.sound and {path.as_posix() for path in strays} == set(found.leftovers)
    assert "batches/00003 2.json: no file of the run" in found.text()
    assert len(RunRecord.load(tmp_path / "whole").batches) == 3
    goes_on_to_the_same(run, tiny_gpt2, whole, "whole")
    assert all((tmp_path / "whole" / path).is_file() for path in strays), "they are not ours to remove"


def test_how_a_run_ended_cannot_be_lost_unseen(run, tiny_gpt2, tmp_path, monkeypatch):
    real, calls = ketools.editing.editor.least_squares, []

    def breaks(*args, **named):
        calls.append(1)  # two layers a batch: the fifth call is in the third batch
        left, right = real(*args, **named)
        return (left * float("nan" if len(calls) >= 5 else 1), right)

    monkeypatch.setattr(ketools.editing.editor, "least_squares", breaks)
    ended = run("broken").collapse
    undo_all(tiny_gpt2)
    assert run("broken").collapse == ended and ended["batch"] == 3  # progress.json is written again on the way
    assert survey(tmp_path / "broken").sound
    (tmp_path / "broken" / "collapse.json").unlink()
    assert survey(tmp_path / "broken").damaged == {"collapse.json": "missing"}
    undo_all(tiny_gpt2)
    with pytest.warns(UserWarning, match="collapse.json: missing"):
        assert run("broken").collapse == ended
    assert survey(tmp_path / "broken").sound


def test_a_checkpoint_that_is_gone_is_measured_again_on_the_weights_of_its_batch(run, tiny_gpt2, whole, tmp_path):
    (tmp_path / "whole" / "checkpoints" / "00002.json").unlink()
    assert survey(tmp_path / "whole").batches == 3
    goes_on_to_the_same(run, tiny_gpt2, whole, "whole")


def test_a_record_without_its_edits_is_not_gone_on_with(run, whole, tmp_path):
    for name in ("batches", "edits", "state", "snapshots", "checkpoints"):
        shutil.rmtree(tmp_path / "whole" / name)
    for use in (RunRecord.load, lambda out: run(out.name)):
        with pytest.raises(KetoolsError, match="a table of a run without its batches"):
            use(tmp_path / "whole")
    assert pd.read_parquet(tmp_path / "whole" / "facts.parquet").equals(whole[0].facts)


def test_what_is_behind_a_damaged_batch_is_done_again_and_nothing_else(run, tiny_gpt2, whole, tmp_path, monkeypatch):
    (tmp_path / "whole" / "edits" / "00002.safetensors").write_bytes(b"")
    assert survey(tmp_path / "whole").batches == 1
    calls, real = [], resuming.Edit.load
    monkeypatch.setattr(resuming.Edit, "load", lambda *a: calls.append(a[0].stem) or real(*a))
    with pytest.warns(UserWarning, match="after batch 1 of 3"):
        goes_on_to_the_same(run, tiny_gpt2, whole, "whole")
    assert calls[0] == "00001"


def test_a_record_with_a_damaged_file_is_not_read_in_part(whole, tmp_path):
    (tmp_path / "whole" / "batches" / "00002.json").write_text("{}")
    with pytest.raises(KetoolsError, match=r"00002\.json: its checksum"):
        RunRecord.load(tmp_path / "whole")


def test_leftovers_of_a_killed_process_are_named_and_swept(run, tiny_gpt2, whole, tmp_path):
    (tmp_path / "whole" / "edits" / ".00004.safetensors.0123abcd.part").write_bytes(b"half")
    (tmp_path / "whole" / "edits" / "00004.safetensors").write_bytes(b"without its commit")
    found = survey(tmp_path / "whole")
    assert found.sound and set(found.leftovers) == {"edits/.00004.safetensors.0123abcd.part", "edits/00004.safetensors"}
    goes_on_to_the_same(run, tiny_gpt2, whole, "whole")
    assert not survey(tmp_path / "whole").leftovers


def test_two_processes_on_one_folder(run, tmp_path):
    with Store(tmp_path / "run").locked(), pytest.raises(KetoolsError, match="another process is working on the run"):
        run()
    run()


def test_the_lock_of_a_killed_process_is_gone(run, tmp_path):
    process = start(str(tmp_path / "nowhere"), str(tmp_path / "run"))  # dies of its mistake
    process.join(600)
    assert process.exitcode != 0
    run()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(KetoolsError, match="cannot write to .*locked.*Permission denied"):
        run("locked/run")


def test_a_folder_that_cannot_be_written_any_more(run, tiny_gpt2, whole, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ketools.io, "_temporary", refuse)
    with pytest.raises(KetoolsError, match="cannot write to .*Permission denied"):
        run("whole")


def test_other_settings_are_refused_and_force_is_remembered(run, tiny_gpt2, whole, tmp_path):
    with pytest.raises(
        KetoolsError, match=r"run with hyper: steps = 3, not 4; .*--force .*the result is that of neither run"
    ):
        run("whole", overrides=CHANGED | {"steps": 4})
    for name in ("edits", "batch", "seed"):
        with pytest.raises(KetoolsError, match="run with (facts|edits|batch|seed) = ") as refused:
            run("whole", **{name: 7}, force=True)
        assert "--force" not in str(refused.value)
    changed = CHANGED | {"steps": 4}
    run("whole", overrides=changed, force=True, config=RunConfig(method="encore", settings=changed).as_dict())
    assert config_of(tmp_path / "whole").settings["steps"] == 4, "what `ketools resume` goes on with"
    (forced,) = RunRecord.load(tmp_path / "whole").provenance["forced"]
    assert forced["after_batch"] == 3 and list(forced["changed"]) == ["hyper"]
    undo_all(tiny_gpt2)
    run("whole", overrides=changed)


def test_another_covariance_is_refused(run, whole, statistics):
    other = type(statistics)({i: 2 * c for i, c in statistics.layers.items()}, statistics.tokens, statistics.provenance)
    with pytest.raises(KetoolsError, match=r"run with statistics = .*--force"):
        run("whole", statistics=other)


def test_another_version_is_refused(run, whole, monkeypatch):
    from ketools.runs import run as lifelong

    real = lifelong.provenance
    monkeypatch.setattr(
        lifelong, "provenance", lambda *a: real(*a) | {"versions": real(*a)["versions"] | {"transformers": "99"}}
    )
    with pytest.raises(KetoolsError, match=r"run with transformers's version = .*, not '99'.*--force"):
        run("whole")
    run("whole", force=True)


def test_another_model_is_refused_force_or_not(run, whole, tiny_gpt2):
    tiny_gpt2.fingerprint = "another"
    with pytest.raises(KetoolsError, match="run with model = "):
        run("whole", force=True, method="ultraedit")


def test_bits_that_differ_are_told_not_used(run, whole, monkeypatch):
    monkeypatch.setattr(resuming, "_snapshot", lambda *_: (0, {}))
    real = resuming.Edit.load

    def other(*args):
        edit = real(*args)
        edit.layers[1][0].mul_(1.001)
        return edit

    monkeypatch.setattr(resuming.Edit, "load", other)
    with pytest.raises(KetoolsError, match="layer 1 after batch 3, .* has other bits than during the run"):
        run("whole")
