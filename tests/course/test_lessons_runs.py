"""Notebook 10 and stored runs: which it reads, which it passes over, and what it makes of them."""

from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.light import pack
from ketools.course.lessons import nb10
from ketools.runs.records import gather
from tests.runs.fakes import fake_record, fake_run

LAB = SimpleNamespace(model=SimpleNamespace(fingerprint="pocket-fingerprint"), seed=0)


@pytest.fixture
def results(tmp_path):
    """Light records as `benchmarks/lifelong.py` leaves them, a README beside them."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "README.md").write_text("# Reference runs\n", encoding="utf-8")
    for method in (*nb10.COMPARED, "sequential-memit"):
        pack(fake_run(tmp_path / method, method), folder / f"pocket-{method}-seed0")
    pack(
        fake_run(tmp_path / "other", "encore", changes={"model": "pocket-llama"}), folder / "pocket-llama-encore-seed0"
    )
    pack(fake_run(tmp_path / "seed", "encore", seed=1), folder / "pocket-encore-seed1")
    return folder


def test_reference_runs_are_those_of_this_model_and_seed(results):
    found = nb10.reference(LAB, results)
    assert sorted(run.method for run in found) == sorted([*nb10.COMPARED, "sequential-memit"])
    assert {(run.seed, run.model) for run in found} == {(0, "pocket")}
    other = SimpleNamespace(model=LAB.model, seed=1)
    assert nb10.reference(other, results) == [], "seed 1 has ENCORE alone"


def test_without_all_three_methods_there_is_no_reference(results, tmp_path):
    import shutil

    shutil.rmtree(results / "pocket-alphaedit-seed0")
    assert nb10.reference(LAB, results) == []
    unfinished = fake_run(results / "pocket-alphaedit-seed0", "alphaedit", done=100)
    assert not gather([unfinished])[0].complete and nb10.reference(LAB, results) == []
    assert nb10.reference(LAB, tmp_path / "nothing") == []


def test_who_keeps_most_is_said_from_the_shares():
    kept = pd.Series({"memit": 0.4, "alphaedit": 0.7, "encore": 0.9, "sequential-memit": 1.0})
    answer, why = nb10.keeper(kept)
    assert answer == "encore" and set(why) == {"memit", "alphaedit", "encore", "undecided"}
    assert "40%" in why["memit"] and "ENCORE" in why["memit"] and "50 of 100" in why["undecided"]
    assert (
        nb10.keeper(kept + pd.Series({"alphaedit": 0.4, "memit": 0.0, "encore": 0.0, "sequential-memit": 0.0}))[0]
        == "alphaedit"
    )
    assert nb10.keeper(pd.Series({"memit": 1.0, "encore": 0.99}))[0] == "undecided"
    assert set(nb10.keeper(pd.Series({"memit": 1.0, "encore": 0.99}))[1]) == {"memit", "encore"}


def test_a_p_value_too_small_for_a_float_is_not_told_as_zero():
    assert [nb10.chance(p) for p in (0.0, 3.056144e-143, 0.0421, 1.0)] == ["<1e-300", "3.1e-143", "0.042", "1"]


def test_hours_are_those_of_editing():
    record = fake_record("encore")  # 4 batches of 6 s
    assert nb10.hours({"encore": record}) == "ENCORE 24.0 s"
    slow = record.batches.assign(seconds=3600.0)
    assert nb10.hours({"memit": SimpleNamespace(batches=slow)}) == "MEMIT 4.0 h"
    assert nb10.hours({"memit": SimpleNamespace(batches=slow[:1])}) == "MEMIT 60.0 min"
