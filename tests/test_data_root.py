"""Where data lies, and what is said when it does not."""

import pytest

from ketools import KetoolsError
from ketools.io import data_root, model_dir, model_names


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
