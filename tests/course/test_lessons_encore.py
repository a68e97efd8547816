"""Helpers of notebooks 09 to 11: against the package's solve, and where they must find nothing."""

from types import SimpleNamespace

import pytest
import torch

import ketools as ke
from benchmarks.dial import keep
from ketools.course.lessons import nb09, nb10, nb11
from ketools.editing.update import Protection, least_squares
from tests.course.test_widgets_explorers import made_up_grid


def test_the_small_system_gives_the_packages_update():
    K1, R, C, Kp = nb09._problem()
    protection = Protection(2.0 * C + 0.5 * torch.eye(6, dtype=torch.float64))
    protection.add(Kp)
    left, right = least_squares(protection, K1, R)
    A0 = 2.0 * C + 0.5 * torch.eye(6, dtype=torch.float64) + Kp @ Kp.T
    torch.testing.assert_close(torch.linalg.solve(A0 + K1 @ K1.T, K1 @ R.T).T, left @ right.T)

    def by_cholesky(K1, R, A0):
        X = torch.cholesky_solve(K1, torch.linalg.cholesky(A0))
        return R @ torch.linalg.solve(torch.eye(3, dtype=X.dtype) + K1.T @ X, X.T)

    assert nb09.small.check(by_cholesky).startswith("passed")


def test_the_dial_turns_over_stored_runs_of_this_very_model_else_of_pocket(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    pocket = SimpleNamespace(name="pocket", fingerprint="p" * 64)
    monkeypatch.setattr(nb09, "load", lambda name: pocket)
    lab = SimpleNamespace(mode="quick", model=SimpleNamespace(name="tiny", fingerprint="f" * 64))
    grid = made_up_grid()
    about = {"model": {"fingerprint": "p" * 64}, "edits": 1000, "batch": 50, "seed": 3}
    keep(grid, "pocket", about)
    other = nb09.dial(lab)
    assert other.context == "Mode quick, model pocket, n = 1,000 edits in batches of 50, seed 3, stored."
    keep(grid.assign(efficacy=0.25), "tiny", about | {"model": {"fingerprint": "f" * 64}})
    assert nb09.dial(lab).grid["efficacy"].eq(0.25).all() and not other.grid["efficacy"].eq(0.25).all()


def test_a_table_of_facts_reads_back(tiny_facts):
    folder = nb11.Folder()
    table = nb11.as_table(tiny_facts)
    table.to_csv(folder / "mine.csv", index=False)
    back = ke.facts(folder / "mine.csv")
    assert [f.text for f in back] == [f.text for f in tiny_facts]
    assert [f.target_new for f in back] == [f.target_new for f in tiny_facts]
    assert folder.refusal("mine.csv") == "" and "slip.csv" in folder.refusal("slip.csv")


def test_logits_without_ketools_are_the_models(tiny_model, tiny_facts):
    from ketools.editing.export import export

    folder = nb11.Folder()
    export(tiny_model, folder / "model")
    text = tiny_facts[0].text
    torch.testing.assert_close(
        nb11.without_ketools(folder / "model", text), nb11.logits(tiny_model, text), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["batches", "facts", "norms", "checkpoints"])
def test_runs_are_the_same_only_if_every_table_is(name):
    import pandas as pd

    from ketools.runs.store import RunRecord

    def record(value: float, clock: float) -> RunRecord:
        frames = {
            n: pd.DataFrame({"x": [1.0], "seconds": [clock]}) for n in ("batches", "facts", "norms", "checkpoints")
        }
        frames[name] = pd.DataFrame({"x": [value], "seconds": [clock]})
        return RunRecord(**frames, provenance={})

    assert nb10.same_tables(record(1.0, 1.0), record(1.0, 2.0)) == 1.0
    assert nb10.same_tables(record(1.0, 1.0), record(1.1, 1.0)) == 0.0
