"""Files are wholly written or not there."""

import errno
import os
import stat

import pytest

from ketools.files import write_atomic


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
