"""Light records: what reports and comparisons need, without weights."""

import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.light import pack, size
from ketools import KetoolsError, cli
from ketools.runs.compare import compare, paired_tests
from ketools.runs.records import arrange, gather
from ketools.runs.resume import export_at
from ketools.runs.store import Damaged, RunRecord, Store, status, survey
from tests.cli.test_cli import one_line
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
    (tmp_path / "light" / "tables.json").unlink()  # nothing says then what the tables held
    assert survey(tmp_path / "light").damaged == {"tables.json": "missing"}
    with pytest.raises(Damaged, match=r"tables\.json: missing"):
        RunRecord.load(tmp_path / "light")


def test_how_a_light_record_ended_cannot_be_lost(tmp_path):
    fake_run(tmp_path / "run", "memit", done=100)
    Store(tmp_path / "run").put_collapse({"batch": 3, "first": 101, "last": 150, "edits": 100, "why": "not finite"})
    pack(tmp_path / "run", tmp_path / "light")
    assert not (tmp_path / "light" / "progress.json").exists() and status(tmp_path / "light")["state"] == "collapsed"
    (tmp_path / "light" / "collapse.json").unlink()
    assert survey(tmp_path / "light").damaged == {"collapse.json": "missing"}
    with pytest.raises(Damaged, match=r"collapse\.json: missing"):
        RunRecord.load(tmp_path / "light")


def test_the_status_of_a_light_record_is_that_of_its_run(tmp_path, tiny_gpt2):
    fake_run(tmp_path / "run", "memit")
    now = status(pack(tmp_path / "run", tmp_path / "light"))
    assert (now["state"], now["light"], now["edits"], now["batches"]) == ("complete", True, 200, 4)
    assert now["seconds_left"] is None
    with pytest.raises(KetoolsError, match="without its weights"):
        export_at(tmp_path / "light", 100, tmp_path / "model", tiny_gpt2)


def test_light_records_at_the_command_line(tmp_path):
    folders = [str(pack(fake_run(tmp_path / f"{name} run", name), tmp_path / name)) for name in ("memit", "encore")]
    ask = CliRunner().invoke
    blocks = [ask(cli.app, ["status", folder]).output.strip() for folder in folders]
    assert f"{folders[0]}: complete, 200 of 200 edits with memit on pocket (tables without weights)" in blocks[0]
    assert "at the end" not in blocks[0], "it does not grow"
    assert ask(cli.app, ["status", *folders]).output.strip() == "\n\n".join(blocks)
    out = str(tmp_path / "model")
    refused = one_line(ask(cli.app, ["export", folders[0], "--at", "100", "--out", out]), 2)
    assert "the tables of a run without its weights" in refused, "before a model is loaded: there is none to load"
    (tmp_path / "memit" / "norms.parquet").unlink()
    verified = ask(cli.app, ["runs", "verify", folders[0]])
    assert verified.exit_code == 2 and "norms.parquet: missing" in verified.output
