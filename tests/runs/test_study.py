"""A study says the same of its runs as their own folders, and what is wrong with it is named."""

from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from ketools import KetoolsError, cli
from ketools.runs.compare import compare, paired_tests
from ketools.runs.records import arrange, gather
from ketools.runs.store import FRAMES, Damaged, RunRecord, Store
from ketools.runs.study import add_to_study, read_study
from tests.runs.fakes import fake_run, fake_study


@pytest.fixture
def folders(tmp_path):
    """Two runs, the second without a table that the first has and ended early."""
    runs = [fake_run(tmp_path / "runs" / "memit", "memit", changes={"started": "2025"})]
    runs += [fake_run(tmp_path / "runs" / "encore", "encore", done=100, residual=False)]
    Store(runs[1]).put_collapse({"batch": 3, "first": 101, "last": 150, "edits": 100, "why": "not finite"})
    return tmp_path / "runs", fake_study(tmp_path / "study", *runs)


def test_a_study_says_the_same_as_the_runs(folders):
    whole, kept = map(gather, ([each] for each in folders))
    assert [run.name for run in kept] == [run.name for run in whole]
    pd.testing.assert_frame_equal(compare(whole), compare(kept))
    pd.testing.assert_frame_equal(paired_tests(arrange(whole)), paired_tests(arrange(kept)))
    for one, two in zip(whole, kept, strict=True):
        assert one.about == two.about and one.record.collapse == two.record.collapse
        for name in set(FRAMES) - {"facts"}:
            pd.testing.assert_frame_equal(getattr(one.record, name), getattr(two.record, name))
        assert list(one.record.facts["id"]) == list(two.record.facts["id"])
        assert two.record.facts["at_edit_p_new"].dtype == "float32"
    assert "end_p_new" in kept[0].record.facts and "end_p_new" not in kept[1].record.facts


def test_a_run_is_put_beside_those_that_are_there_and_what_is_there_already_is_not_written(folders):
    whole, study = folders
    more = RunRecord.load(fake_run(whole.parent / "more", "rome", 1))
    assert list(add_to_study({"rome": more}, study)) == ["memit", "encore", "rome"] == list(read_study(study))
    before = (study / "runs.json").stat().st_mtime_ns
    add_to_study({"rome": more}, study)
    assert (study / "runs.json").stat().st_mtime_ns == before
    add_to_study({"rome": replace(more, batches=more.batches.iloc[:-1])}, study)  # as it was before its last batch
    add_to_study({"rome": more}, study)
    assert len(read_study(study)["rome"].batches) == len(more.batches), "a run that has gone on is another one"


def test_one_run_of_a_study_is_named_below_it(folders):
    _, study = folders
    assert [run.name for run in gather([study / "encore"])] == ["encore"]
    assert [run.name for run in gather([study / "encore", study])] == ["encore", "memit"]
    with pytest.raises(KetoolsError, match="no such run; .* holds memit, encore"):
        gather([study / "rome"])


def test_what_is_wrong_with_a_study_is_named(folders):
    _, study = folders
    for name in ("checkpoints.parquet", "facts.parquet", "runs.json"):
        whole = (study / name).read_bytes()
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        (study / name).write_bytes(content)
        with pytest.raises(Damaged, match=name):
            read_study(study)
        (study / name).write_bytes(whole)
    (study / "facts.parquet").unlink()
    with pytest.raises(Damaged, match=r"facts\.parquet"):
        read_study(study)


def test_a_study_has_no_weights(folders, tmp_path):
    _, study = folders
    with pytest.raises(KetoolsError, match="without their weights"):
        RunRecord.load(study)
    ask = CliRunner().invoke
    for words in (["status"], ["resume"], ["runs", "verify"]):
        refused = ask(cli.app, [*words, str(study)])
        assert refused.exit_code == 2 and "without their weights" in refused.stderr
    assert ask(cli.app, ["compare", str(study), "--csv", str(tmp_path / "table.csv")]).exit_code == 0
    assert set(pd.read_csv(tmp_path / "table.csv")["run"]) == {"memit", "encore"}
