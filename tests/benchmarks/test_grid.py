"""The grid of ENCORE's two knobs: each pair is a run of its own, from the unedited model, kept and taken over."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks.dial import grid, keep
from ketools import KetoolsError
from ketools.editing.methods import MPES, FixedSteps
from ketools.runs import sweep as module
from ketools.runs.demo import figures
from ketools.runs.panel import Panel
from ketools.runs.store import RunRecord
from ketools.runs.sweep import ALL_STEPS, stored
from tests.runs.conftest import SIZES, TASKS, TEXTS, facts, statistics  # noqa: F401 - fixtures

CHANGED = {"steps": 3, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}


@pytest.fixture
def make(tiny_gpt2, facts, statistics, tmp_path):  # noqa: F811
    """Compute a grid of runs of 4 edits."""
    panel = Panel.take(tiny_gpt2, facts, facts.sample(4, 0), sizes=SIZES, tasks=TASKS, texts=TEXTS)

    def made(lambda_n=(0, 50), patience=(0, None), **changes):
        arguments = {"edits": 4, "batch": 2, "out": tmp_path / "grid", "statistics": statistics, "panel": panel}
        return grid(
            tiny_gpt2, facts, lambda_n=lambda_n, patience=patience, progress=False, **arguments | CHANGED | changes
        )

    return made


def test_a_row_per_pair_from_a_run_of_its_own(make, tiny_gpt2, tmp_path):
    before = {i: tiny_gpt2.weight(i).clone() for i in range(4)}
    table = make()
    assert table[["lambda_n", "patience"]].values.tolist() == [[0, 0], [0, ALL_STEPS], [50, 0], [50, ALL_STEPS]]
    assert all(torch.equal(tiny_gpt2.weight(i), was) for i, was in before.items()) and not tiny_gpt2.edits
    for row, name in zip(
        table.itertuples(), ("lambda_n=0,patience=0", "lambda_n=0,patience=all", "lambda_n=50,patience=0")
    ):
        record = RunRecord.load(tmp_path / "grid" / name)
        assert row.norm_ratio == figures(record)["norm_ratio"] and row.steps_mean == record.facts["steps"].mean()
        assert record.provenance["settings"]["hyper"]["lambda_n_relative"] == row.lambda_n
        rule = FixedSteps if row.patience == ALL_STEPS else MPES
        assert record.provenance["method"]["stopping"]["type"] == rule.__name__
    strong = table.set_index(["lambda_n", "patience"])["norm_ratio"]
    assert abs(strong[50, ALL_STEPS] - 1) < abs(strong[0, ALL_STEPS] - 1), "the constraint contains the norm"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "grid" / "grid.parquet"), table)


def test_a_larger_grid_takes_over_what_is_there(make, monkeypatch):
    small = make(patience=(0,))
    fresh = []
    real = module.lifelong
    monkeypatch.setattr(
        module,
        "lifelong",
        lambda *a, out, **k: (fresh.append(out.name) if not out.exists() else None, real(*a, out=out, **k))[1],
    )
    large = make(patience=(0, 1))
    assert fresh == ["lambda_n=0,patience=1", "lambda_n=50,patience=1"]
    pd.testing.assert_frame_equal(large[large["patience"] == 0].reset_index(drop=True), small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_n": ()}, "lambda_n=.*at least one"),
        ({"lambda_n": (1, 1.0)}, "different values"),
        ({"lambda_n": (-1,)}, "lambda_n=-1: expected a number >= 0"),
        ({"lambda_n": (float("nan"),)}, "lambda_n=nan"),
        ({"patience": (None, None)}, "different values"),
        ({"patience": (-1,)}, "patience=-1"),
        ({"patience": (1.5,)}, "patience=1.5"),
        ({"edits": 0}, "edits=0"),
    ],
)
def test_refusals(make, changes, message):
    with pytest.raises(KetoolsError, match=message):
        make(**changes)


def test_a_kept_grid_is_read_as_it_was_made(make, tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    tiny = SimpleNamespace(name="tiny", fingerprint="f" * 64)
    with pytest.raises(KetoolsError, match="no grid of 'tiny'.*benchmarks.dial --model tiny --write"):
        stored(tiny)
    table = make(lambda_n=(0,), patience=(0, None))
    made = {"edits": 4, "seed": 0, "model": {"fingerprint": "f" * 64}}
    keep(table, "tiny", made)
    read, about = stored(tiny)
    pd.testing.assert_frame_equal(read, table)
    assert about == made
    tiny.fingerprint = "e" * 64
    with pytest.raises(KetoolsError, match="of another model than this 'tiny'"):
        stored(tiny)
