"""Files and folders are wholly written or not there; tensors come back, and nothing else is opened; where data lies."""

import errno
import io
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ketools import KetoolsError
from ketools.io import data_root, model_dir, model_names, new_folder, read_tensors, write_atomic, write_tensors


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
    path = write_atomic(tmp_path / "a" / "b.txt", "ünï")
    assert path.read_bytes() == "ünï".encode()
    assert write_atomic(str(path), b"\x00").read_bytes() == b"\x00"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def full(_):
        raise error

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(type(error)) as caught:
        write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)


def test_tensors_come_back_with_their_texts(tmp_path):
    tensors = {"a": torch.randn(3, 2).T, "b": torch.arange(3)}
    path = write_tensors(tmp_path / "deep" / "a.safetensors", tensors, {"format": "x-1", "n": "5"})
    got, about = read_tensors(path, "thing", "x-1")
    assert about == {"format": "x-1", "n": "5"} and set(got) == {"a", "b"}
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def _spoilt(tmp_path):
    good = write_tensors(tmp_path / "good", {"a": torch.ones(5)}, {"format": "x-1"})
    content = good.read_bytes()
    yield "none", None, "there is no such file"
    yield "cut", content[:-3], "truncated"
    yield "cut in the header", content[:20], "truncated"
    yield "empty", b"", "truncated"
    yield "text", b"facts, and more facts, and no numbers at all", "no safetensors file"
    yield "pickle", pickle.dumps({"a": 1}), "run code"
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=zipped)
        yield f"torch {zipped}", buffer.getvalue(), "run code"
    yield "good", content, "format 'x-1' instead of 'x-2'"


def test_files_that_are_something_else_are_one_clear_error(tmp_path):
    for name, content, message in _spoilt(tmp_path):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(KetoolsError, match=message) as caught:
            read_tensors(tmp_path / name, "thing", "x-2", "Thing.save")
        assert str(tmp_path / name) in str(caught.value) and "written by Thing.save" in str(caught.value)
    with pytest.raises(KetoolsError, match="it is a folder"):
        read_tensors(tmp_path, "thing")


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "sprung", "x"))

    (tmp_path / "trap").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(KetoolsError):
        read_tensors(tmp_path / "trap", "thing")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_whole_or_not_there(tmp_path, there):
    path = tmp_path / "out"
    if there:
        path.mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(path) as part:
        (part / "half").write_text("x", encoding="utf-8")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == (["out"] if there else [])
    with new_folder(path) as part:
        (part / "sub").mkdir()
        (part / "sub" / "whole").write_text("x", encoding="utf-8")
        assert not there or not any(path.iterdir())
    assert (path / "sub" / "whole").read_text(encoding="utf-8") == "x" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KetoolsError, match="not empty"), new_folder(path):
        pass
    with pytest.raises(KetoolsError, match="is a file"), new_folder(path / "sub" / "whole"):
        pass


def test_a_new_name_is_flushed_to_the_disk_with_its_folder(tmp_path, monkeypatch):
    seen = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(stat.S_ISDIR(os.fstat(handle).st_mode)) or real(handle))
    write_atomic(tmp_path / "a.json", "{}")
    assert seen == [False, True], "first what is in the file, then that it is there"


def test_a_full_disk_is_told_as_the_system_does_whoever_writes(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"format": "x-1"})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_environment_names_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    assert data_root() == tmp_path and model_names() == []
    with pytest.raises(KetoolsError, match="no pocket model named 'x'; there are: none yet in"):
        model_dir("x")


def test_models_are_folders_with_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    for name in ("pocket", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "models" / "unfinished").mkdir()
    assert model_dir("pocket") == tmp_path / "models" / "pocket"
    with pytest.raises(KetoolsError, match=r"'\.\./pocket'; there are: other, pocket"):
        model_dir("../pocket")


def test_a_wrong_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path / "none"))
    with pytest.raises(KetoolsError, match="KETOOLS_DATA names .*none, which is not a folder"):
        data_root()
