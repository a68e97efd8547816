"""Light records: what reports and comparisons need, without weights."""

import shutil

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.runs.compare import compare, paired_tests
from ketools.runs.gather import arrange, gather
from ketools.runs.job import export_at, status
from ketools.runs.light import pack, size
from ketools.runs.sealed import Damaged
from ketools.runs.store import RunRecord
from ketools.runs.verify import survey
from tests.runs.fakes import fake_run


def test_a_light_record_says_the_same(tmp_path):
    for method in ("memit", "encore"):
        fake_run(tmp_path / "runs" / method, method)
        (tmp_path / "runs" / method / "weights.safetensors").write_bytes(b"x" * 1000)
        pack(tmp_path / "runs" / method, tmp_path / "light" / method)
    whole, light = gather([tmp_path / "runs"]), gather([tmp_path / "light"])
    assert not list((tmp_path / "light").rglob("*.safetensors"))
    pd.testing.assert_frame_equal(compare(whole), compare(light))
    pd.testing.assert_frame_equal(paired_tests(arrange(whole)), paired_tests(arrange(light)))
    one, two = (RunRecord.load(tmp_path / folder / "memit") for folder in ("runs", "light"))
    assert one.provenance == two.provenance
    pd.testing.assert_frame_equal(one.residual, two.residual)
    assert two.facts["end_p_new"].dtype == "float32" and list(two.facts["id"]) == list(one.facts["id"])
    assert 0 < size(tmp_path / "light" / "memit") < 60_000


def test_an_unfinished_run_is_not_packed_and_nothing_is_overwritten(tmp_path):
    fake_run(tmp_path / "short", "memit", done=100)
    with pytest.raises(KetoolsError, match="100 of 200 edits are measured"):
        pack(tmp_path / "short", tmp_path / "light")
    fake_run(tmp_path / "whole", "memit")
    (tmp_path / "light").mkdir()
    (tmp_path / "light" / "mine").write_text("")
    with pytest.raises(KetoolsError, match="not empty"):
        pack(tmp_path / "whole", tmp_path / "light")
    with pytest.raises(KetoolsError, match="no run here"):
        pack(tmp_path / "nowhere", tmp_path / "light")


def test_what_is_wrong_with_a_light_record_is_named(tmp_path):
    fake_run(tmp_path / "run", "memit")
    pack(tmp_path / "run", tmp_path / "light")
    found = survey(tmp_path / "light")
    assert found.sound and not found.leftovers and found.files == len(list((tmp_path / "light").iterdir()))
    for name in ("checkpoints.parquet", "facts.parquet"):
        hurt = shutil.copytree(tmp_path / "light", tmp_path / name)
        content = bytearray((hurt / name).read_bytes())
        content[len(content) // 2] ^= 1
        (hurt / name).write_bytes(content)
        assert list(survey(hurt).damaged) == [name] and "resume" not in survey(hurt).text()
        (hurt / name).unlink()
        assert survey(hurt).damaged == {name: "missing"}
        with pytest.raises(Damaged, match=f"{name}: missing"):
            RunRecord.load(hurt)
    (tmp_path / "light" / "tables.json").unlink()  # as they were written before
    assert survey(tmp_path / "light").sound and len(RunRecord.load(tmp_path / "light").facts)


def test_the_status_of_a_light_record_is_that_of_its_run(tmp_path, tiny_gpt2):
    fake_run(tmp_path / "run", "memit")
    now = status(pack(tmp_path / "run", tmp_path / "light"))
    assert (now["state"], now["light"], now["edits"], now["batches"]) == ("complete", True, 200, 4)
    assert now["seconds_left"] is None
    with pytest.raises(KetoolsError, match="without its weights"):
        export_at(tmp_path / "light", 100, tmp_path / "model", tiny_gpt2)
