"""The reference runs: which is next, what is packed, and the table that is written from the records."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import lifelong
from ketools.editing.methods import scaled
from ketools.runs.config import composed
from ketools.runs.records import Run, arrange, gather, plain, variant
from ketools.runs.study import read_study
from tests.runs.fakes import fake_record, fake_run

ROOT = Path(lifelong.__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    """The module, whose runs are made up and remembered in script.ran; script.real is what runs them in truth."""
    monkeypatch.setattr(lifelong, "ran", [], raising=False)
    monkeypatch.setattr(lifelong, "real", lifelong.execute, raising=False)

    def execute(config, model, facts, *, progress):
        assert model.name == config.model and len(facts) >= config.edits
        lifelong.ran.append(Path(config.out).name)
        shape = {"edits": config.edits, "batch": config.batch, "every": config.checkpoint_every}
        fake_run(Path(config.out), composed(config.method), config.seed, **shape, changes={"model": config.model})

    monkeypatch.setattr(lifelong, "execute", execute)
    monkeypatch.setattr(lifelong, "write_headline", lambda groups, folder: [])
    return lifelong


@pytest.fixture
def call(script, tmp_path):
    places = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--quiet"]
    return lambda *words: script.main([*places, "--edits", "200", "--batch", "50", "--checkpoint-every", "100", *words])


def test_the_plan_is_that_of_the_paper(script):
    runs = script.plan()
    assert len(runs) == 7 * 3 == len({run.name for run in runs})
    assert {run.seed for run in runs} == {0, 1, 2}
    assert all(run.seed == 0 for run in runs[:7]), "every method once before the next seed"
    assert [run.name for run in script.chosen(runs, ["encore"])] == [
        "pocket-encore-seed0", "pocket-encore-seed1", "pocket-encore-seed2",
    ]  # fmt: skip
    assert all(variant(plain(composed(method))) == method for method in script.METHODS)


def test_the_next_unfinished_run_is_started_and_what_is_finished_is_packed(script, call, tmp_path, capsys):
    assert call("--only", "memit,encore", "--models", "pocket") == 0
    assert call("--only", "memit,encore", "--models", "pocket") == 0
    assert script.ran == ["pocket-memit-seed0", "pocket-encore-seed0"]
    results = tmp_path / "results"
    assert sorted(read_study(results)) == sorted(script.ran)
    text = (results / "README.md").read_text()
    assert "| pocket | MEMIT | 0 | 86.5 |" in text and "### pocket" in text and "added to MEMIT alone" not in text
    assert "by load (edits / d_mlp)" in text and "1 of 1 pairs" in text
    capsys.readouterr()
    assert call("--list") == 0
    listed = capsys.readouterr().out
    assert "pocket-memit-seed0    complete" in listed and "not started" in listed
    assert call("--only", "memit,encore", "--models", "pocket", "--all") == 0
    assert len(script.ran) == 6
    assert "0, 1 and 2" in (results / "README.md").read_text() and " to " in (results / "README.md").read_text()


def test_a_run_is_what_the_package_runs(script, call, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "execute", script.real)
    assert call("--only", "pocket-encore-seed0", "--edits", "4", "--batch", "2", "--checkpoint-every", "4") == 0
    run = script.RunRecord.load(tmp_path / "runs" / "pocket-encore-seed0")
    assert len(run.batches) == 2 and script.state(tmp_path / "runs" / "pocket-encore-seed0") == ("complete", 4)
    assert "| pocket | ENCORE | 0 |" in (tmp_path / "results" / "README.md").read_text()


def test_a_run_made_anew_is_packed_anew(script, call, tmp_path):
    call("--only", "pocket-encore-seed0")
    run = tmp_path / "runs" / "pocket-encore-seed0"
    packed = tmp_path / "results" / "runs.json"
    before = packed.stat().st_mtime_ns
    call("--pack")
    assert packed.stat().st_mtime_ns == before
    import shutil

    shutil.rmtree(run)
    fake_run(run, composed("encore"), changes={"started": "2026-02-02"})
    call("--pack")
    assert "2026-02-02" in packed.read_text()


def test_mistakes_are_one_line(script, call, capsys):
    assert call("--only", "magic") == 2
    assert "no such run; there are pocket-memit-seed0" in capsys.readouterr().err


def test_records_made_with_other_settings_than_todays_say_so(script):
    now = plain(vars(scaled("alphaedit", model_name="pocket")))
    run = SimpleNamespace(method="alphaedit", model="pocket", settings={"hyper": now | {"lambda_n": 7.0}})
    assert script.older_settings([run]) == [], "lambda_n does not count for AlphaEdit"
    run.settings = {"hyper": now | {"l2_relative": 10.0}}
    (said,) = script.older_settings([run, run])
    assert said == "AlphaEdit on pocket was run with older settings: l2_relative = 10.0, not 1000.0."


def test_it_is_said_which_runs_were_made_on_which_processor(script):
    def run(model, seed, processor, threads=1):
        record = fake_record("encore", seed, changes={"model": model})
        return Run("a", replace(record, provenance=record.provenance | {"processor": processor, "threads": threads}))

    runs = [run("pocket", 0, "A"), run("pocket", 2, "B"), run("smollm2", 0, "A"), run("pocket", 1, "A")]
    assert script.processors([*runs, run("pocket", 3, None), run("pocket", 4, "A", 2)]) == [
        "Made on A, 1 thread: ENCORE on pocket (seeds 0 and 1) and ENCORE on smollm2 (seed 0).",
        "Made on B, 1 thread: ENCORE on pocket (seed 2).",
        "Made on A, 2 threads: ENCORE on pocket (seed 4).",
    ]


def test_the_reading_is_of_seeds_that_every_method_has(script, tmp_path):
    names = [("memit", 0), ("encore", 0), ("encore", 1)]
    runs = gather([fake_run(tmp_path / f"{method}-{seed}", method, seed) for method, seed in names])
    text = script.readme(arrange(runs))
    paired = script.reading(script.by_method(script.compare(runs[:2])))["pocket"]
    assert "every method has: 0." in text and all(f"- {verdict}" in text for verdict in paired)
    assert "## What it says" not in script.readme(arrange([runs[0], runs[2]])), "no seed in common"


def test_a_cell_says_of_how_many_seeds_its_mean_is(script, tmp_path):
    runs = gather([fake_run(tmp_path / str(seed), "memit", seed) for seed in range(3)])
    whole = script.by_method(script.compare(runs)).iloc[0]
    assert "seeds" not in script.cell(whole, "ES", "percent")
    table = script.compare(runs)
    table.loc[1, "ES"] = float("nan")
    mean = table["ES"].mean()
    assert (
        script.cell(script.by_method(table).iloc[0], "ES", "percent")
        == f"{100 * mean:.1f} (83.8 to 86.5; 2 of 3 seeds)"
    )
    table.loc[2, "ES"] = float("nan")
    assert script.cell(script.by_method(table).iloc[0], "ES", "percent") == "86.5 (1 of 3 seeds)"


def test_the_tables_are_those_of_the_stored_records():
    table = lifelong.by_method(lifelong.compare(gather([ROOT / "data/results"])))
    brief, full = (lifelong.markdown(table, columns) for columns in (lifelong.BRIEF, lifelong.COLUMNS))
    results = (ROOT / "data/results/README.md").read_text(encoding="utf-8")
    assert brief in results and full in results, "stale: python -m benchmarks.lifelong --pack"
