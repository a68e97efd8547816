"""Notebook 10 and stored runs: which it reads, which it passes over, and what it makes of them."""

from types import SimpleNamespace

import pandas as pd
import pytest

from ketools.course.lessons import nb10
from ketools.runs.records import gather
from tests.runs.fakes import fake_run, fake_study

LAB = SimpleNamespace(model=SimpleNamespace(fingerprint="pocket-fingerprint"), seed=0)


@pytest.fixture
def results(tmp_path):
    """The runs of a study as `benchmarks/lifelong.py` leaves it."""
    runs = [fake_run(tmp_path / method, method) for method in (*nb10.COMPARED, "sequential-memit")]
    runs += [fake_run(tmp_path / "other", "encore", changes={"model": "smollm2"})]
    return [*runs, fake_run(tmp_path / "seed", "encore", seed=1)]


def test_reference_runs_are_those_of_this_model_with_all_methods(results, tmp_path):
    folder = fake_study(tmp_path / "results", *results)
    found = nb10.reference(LAB, folder)
    assert sorted(run.method for run in found) == sorted([*nb10.COMPARED, "sequential-memit"])
    assert {(run.seed, run.model) for run in found} == {(0, "pocket")}, "seed 1 has ENCORE alone"
    fake_study(folder, *results, fake_run(tmp_path / "memit1", "memit", seed=1))
    assert [run.seed for run in nb10.reference(LAB, folder)] == [0, 0, 0, 1, 1]


def test_without_both_methods_there_is_no_reference(results, tmp_path):
    left = [run for run in results if run.name != "memit"]
    assert nb10.reference(LAB, fake_study(tmp_path / "left", *left)) == []
    unfinished = fake_run(tmp_path / "unfinished", "memit", done=100)
    assert not gather([unfinished])[0].complete
    assert nb10.reference(LAB, fake_study(tmp_path / "unfinished study", *left, unfinished)) == []
    assert nb10.reference(LAB, tmp_path / "nothing") == []


def rows(**shares):
    return pd.DataFrame(
        [(method, seed, kept) for method, seeds in shares.items() for seed, kept in enumerate(seeds)],
        columns=["method", "seed", "unedited_kept"],
    )


def test_who_keeps_most_is_said_from_the_seeds():
    apart = rows(memit=[0.4, 0.5], encore=[0.8, 0.9])
    answer, why = nb10.keeper(pd.concat([apart, rows(other=[1.0, 1.0])]))
    assert answer == "encore" and set(why) == {"memit", "encore", "undecided"}
    assert "40% to 50%" in why["memit"] and "ENCORE 80% to 90%" in why["memit"]
    overlapping = rows(memit=[0.4, 0.85], encore=[0.8, 0.9])
    assert nb10.keeper(overlapping)[0] == "undecided"
    assert nb10.keeper(rows(memit=[1.0], encore=[0.97]))[0] == "undecided", "one seed each, close together"
    assert nb10.keeper(rows(memit=[0.9], encore=[1.0]))[0] == "encore"


def test_paths_are_means_over_seeds_and_large_within_the_papers_loads():
    table = pd.DataFrame(
        [("encore", s, load, 1 - load / 4 + s / 10, 1 - load / 2) for s in (0, 1) for load in (0.5, 1.0, 1.9)],
        columns=["method", "seed", "load", "efficacy_accuracy", "unedited_kept"],
    )
    (path,) = nb10.trade(table, "Mode test.").data
    assert list(path.x) == pytest.approx([0.925, 0.8, 0.575]) and list(path.y) == pytest.approx([0.75, 0.5, 0.05])
    small, large, last = path.marker.size
    assert small == last < large
