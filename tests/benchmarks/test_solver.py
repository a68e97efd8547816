"""The benchmark of step 2, at sizes that take no time."""

import json

import pytest

from benchmarks import solver


def test_both_ways_agree_and_the_figures_are_whole(tmp_path, capsys):
    path = tmp_path / "solver.json"
    assert (
        solver.main(["--sizes", "64", "160", "--batch", "7", "--past", "20", "--batches", "9", "--json", str(path)])
        == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "relative error" in said[0]
    found = json.loads(path.read_text())
    assert found["threads"] >= 1 and "torch" in found["versions"]
    for row, d in zip(found["rows"], (64, 160), strict=True):  # at 64 keys are folded into the factors on the way
        assert row["d_mlp"] == d and row["relative_error"] <= 1e-8
        assert row["ratio"] == pytest.approx(row["seconds_dense"] / row["seconds_sequential"])
        assert row["cpu_ratio"] == pytest.approx(row["cpu_seconds_dense"] / row["cpu_seconds_sequential"])
        assert row["ratio_with_factors"] > 0 and row["cpu_ratio_with_factors"] > 0


def test_without_past_keys():
    assert solver.compare(48, batch=5, past=0, count=2)["relative_error"] <= 1e-8


def test_a_size_that_does_not_fit_is_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solver, "_free_bytes", lambda: 10**6)
    path = tmp_path / "solver.json"
    assert (
        solver.main(["--sizes", "14336", "32", "--batch", "3", "--past", "4", "--batches", "2", "--json", str(path)])
        == 0
    )
    assert "skipped: needs 9.2 GiB, 0.0 GiB are free" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert "needs 9.2 GiB" in rows[0]["skipped"] and rows[1]["relative_error"] <= 1e-8


def test_a_disagreement_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(solver, "dense", lambda base, past, keys, residuals: 2 * residuals @ keys.T)
    assert solver.main(["--sizes", "16", "--batch", "2", "--past", "2", "--batches", "1"]) == 1
    assert "disagree" in capsys.readouterr().err


def test_a_run_that_is_stopped_keeps_the_sizes_before(tmp_path, monkeypatch):
    real = solver.compare

    def stopped(d, *rest):
        if d == 40:
            raise KeyboardInterrupt
        return real(d, *rest)

    monkeypatch.setattr(solver, "compare", stopped)
    with pytest.raises(KeyboardInterrupt):
        solver.main(["--sizes", "32", "40", "--batch", "3", "--past", "4", "--json", str(tmp_path / "s.json")])
    assert [row["d_mlp"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]] == [32]
