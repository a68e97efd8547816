"""Reports of sets of runs: seeds as mean and range, models beside each other, capacity, what was not recorded."""

import base64
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ketools import KetoolsError, cli
from ketools.editing.methods import EMMET, MEMIT, MPES, SEQUENTIAL_MEMIT, LeastSquares
from ketools.plots.style import words
from ketools.report.figures import (
    CHARTS,
    by_age,
    capacity,
    capacity_curve,
    pace,
    pooled,
    thinned,
)
from ketools.report.page import write_report
from ketools.report.verdicts import capacity_reached
from ketools.runs.compare import by_method, compare
from ketools.runs.records import Run, arrange
from tests.plots.figures import tells
from tests.report.test_write import read
from tests.runs.fakes import fake_record, fake_run, fake_study

ABLATIONS = (
    "memit", SEQUENTIAL_MEMIT, replace(MEMIT, stopping=MPES()), replace(MEMIT, update=LeastSquares(norm=True)),
    replace(EMMET, stopping=MPES()), "alphaedit", "encore",
)  # fmt: skip


PNG = base64.b64encode(b"\x89PNG").decode()


def groups(*given, **shape):
    """Groups of fake runs (method, seed)."""
    return arrange([Run(f"{i}-{seed}", fake_record(m, seed, **shape)) for i, (m, seed) in enumerate(given)])


def data(path):
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="figures">(.*?)</script>', text).group(1))


def test_one_batch_says_nothing_about_pace_and_ages_count_later_edits():
    def title(figure, **columns):
        return words(figure(pd.DataFrame({"method": "memit", **columns})))["finding"]

    assert "rises" not in title(pace, edits=[2], seconds_per_edit=[0.3])
    assert "rises" in title(pace, edits=[2, 4], seconds_per_edit=[0.3, 0.6])
    assert "after up to 950 later edits: 80%" in title(by_age, edits=[0, 50, 950], kept=[1.0, 0.9, 0.8])


def test_seeds_are_one_line_with_their_mean_and_range():
    given = groups(("memit", 0), ("memit", 1), ("memit", 2), ("encore", 0))
    values = [fake_record("memit", seed).checkpoints["unedited_kept"].iloc[-1] for seed in range(3)]
    fig = CHARTS["unedited"].figure(given)
    lines = {trace.name: trace for trace in fig.data if trace.name}
    assert set(lines) == {"MEMIT", "ENCORE"}
    assert lines["MEMIT"].y[-1] == pytest.approx(np.mean(values))
    assert tuple(lines["MEMIT"].customdata[-1]) == pytest.approx((min(values), max(values)))
    bands = [trace for trace in fig.data if trace.fill]
    assert len(bands) == 1 and "range of the 3" in words(fig)["caption"]
    assert fig.data[0].fill, "bands lie behind the lines"
    alone = CHARTS["unedited"].figure(groups(("memit", 0), ("encore", 0)))
    assert not [trace for trace in alone.data if trace.fill] and "seeds" not in words(alone)["caption"]


def test_the_range_of_norms_is_that_of_the_edited_matrices():
    fig = CHARTS["norm"].figure(groups(("memit", 0), ("memit", 2)))
    (line,) = [trace for trace in fig.data if trace.name == "MEMIT"]
    ends = [fake_record("memit", seed).norms.query("edits == 200 and edited")["ratio"].max() for seed in (0, 2)]
    assert line.y[-1] == pytest.approx(np.mean(ends)) and tuple(line.customdata[-1]) == pytest.approx(tuple(ends))
    assert list(line.x) == sorted(set(line.x)), "one point a place"


def test_means_reach_as_far_as_all_seeds_do():
    frame = pooled(groups(("memit", 0), ("memit", 1)), lambda record: record.checkpoints)
    assert list(frame["edits"]) == [0, 100, 200] and (frame["seeds"] == 2).all()
    short = arrange([Run("a", fake_record("memit", 0)), Run("b", fake_record("memit", 1, done=100))])
    assert list(pooled(short, lambda record: record.checkpoints)["edits"]) == [0, 100]
    assert pooled(short, lambda record: pd.DataFrame()).empty


def test_a_record_of_many_columns_is_pooled_without_a_warning():
    wide = pd.DataFrame({"edits": [0, 100]} | {f"column {i}": [i, i] if i % 2 else [i, np.nan] for i in range(150)})
    with warnings.catch_warnings(action="error"):
        frame = pooled(groups(("memit", 0), ("memit", 1)), lambda record: wide)
    assert frame.shape == (2, 3 + 3 * 150) and (frame["column 7_high"] == 7).all()


def test_long_lines_are_thinned_and_keep_their_ends():
    frame = pd.DataFrame({"method": "memit", "edits": range(0, 10_100, 100), "ratio": 1.0})
    kept = thinned(frame)
    assert len(kept) <= 27 and kept["edits"].iloc[0] == 0 and kept["edits"].iloc[-1] == 10_000


def test_every_chart_is_drawn_from_full_records_and_titles_follow_the_data():
    given = groups(("memit", 0), ("encore", 0))
    swapped = arrange(
        [Run("a", fake_record("memit", growth=0.05, loss=0.0)), Run("b", fake_record("encore", growth=3.0, loss=0.9))]
    )
    for key, chart in CHARTS.items():
        fig = chart.figure(given)
        assert words(fig)["finding"] and words(fig)["caption"].endswith("."), key
        if key in ("residual", "forgetting", "age", "norm", "unedited", "stopped"):
            assert words(chart.figure(swapped))["finding"] != words(fig)["finding"], key
    share = words(CHARTS["residual"].figure(given))["finding"]
    grown, kept_low = share.split(",", 1)
    assert "MEMIT" in grown and "ENCORE" in kept_low, "the method whose share grows is named first"
    kept = CHARTS["age"].figure(given).data[0]
    assert max(kept.x) == 150, "the oldest batch has the edits of all others after it"


def test_targets_are_drawn_as_they_were_when_step_1_stopped():
    given = groups(("memit", 0), ("encore", 0))
    fig = CHARTS["stopped"].figure(given)
    lines = {trace.name: trace for trace in fig.data}
    assert list(lines["MEMIT"].y) == pytest.approx([0.85] * 4) and list(lines["MEMIT"].x) == [50, 100, 150, 200]
    assert set(lines["natural facts, before any edit"].y) == {0.62}
    assert all(text in tells(fig) for text in ("natural facts 0.620", "200 edits", "MEMIT 0.850", "ENCORE 0.420"))
    for group in given:
        for run in group.runs:
            del run.record.checkpoints["p_natural"]
    bare = CHARTS["stopped"].figure(given)
    assert len(bare.data) == 2
    surest, least = tells(bare).split(",", 1)
    assert "MEMIT" in surest and "ENCORE" in least and "natural" not in tells(bare)
    alone = words(CHARTS["stopped"].figure(given[:1]))["finding"]
    assert "0.850" in alone and "MEMIT" in alone and "200 edits" in alone
    for group in given:
        for run in group.runs:
            del run.record.batches["p_target_mean"]
    with pytest.raises(KetoolsError, match="not recorded"):
        CHARTS["stopped"].figure(given)


def test_every_explained_chart_names_what_the_glossary_knows():
    assert {key for key, chart in CHARTS.items() if not chart.about()} == {"cost"}
    assert CHARTS["stopped"].about().startswith("p_target_mean (batches)")
    assert CHARTS["scores"].about().count("source:") == 3


def test_seven_runs_of_two_models(tmp_path):
    for model, seeds in (("pocket", (0, 1)), ("smollm2", (0,))):
        for i, method in enumerate(ABLATIONS):
            for seed in seeds:
                fake_run(
                    tmp_path / f"{model}-{i}-{seed}", method, seed, changes={"model": model, "d_mlp": 64 * len(model)}
                )
    words_ = ["report", *map(str, sorted(tmp_path.iterdir())), "--to", str(tmp_path / "out" / "r.html")]
    result = CliRunner().invoke(cli.app, words_)
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / "r.html"
    tags = read(path)
    text, figures = data(path)
    assert path.stat().st_size < 12e6
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "an id stands twice"
    plots = {attrs["id"] for _, attrs in tags if attrs.get("class") == "plot"}
    assert plots == set(figures) == {*CHARTS, *(f"{key}-2" for key in CHARTS), "capacity"}
    assert text.count("<summary>The numbers</summary>") == len(plots) + 1, "a table beside every figure, and the tests"
    assert "sequential MEMIT" in text and "MEMIT + norm constraint" in text and "Fact by fact" in text
    assert "448 independent keys" in text
    names = [trace["name"] for trace in figures["unedited"]["data"] if trace.get("name")]
    assert len(names) == len(set(names)) == 7
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in figures["unedited"]["data"] if t.get("name")}
    assert len(looks) == 7, "two methods look alike"


def test_what_was_not_recorded_or_not_finished_is_said(tmp_path):
    given = arrange([Run("short", fake_record("memit", 0, done=100, residual=False))])
    given[0].runs[0].about["model"].pop("d_mlp")
    text, figures = data(write_report(given, tmp_path / "r.html"))
    assert {"residual", "age", "capacity"}.isdisjoint(figures)
    assert "residual: nothing to draw" in text
    assert re.search(r"short .*100 of 200", text)
    assert "capacity: nothing to draw" in text
    ended = arrange(
        [Run("broken", replace(fake_record("memit", 0, done=100), collapse={"edits": 100, "why": "<b>inf"}))]
    )
    assert re.search(r"broken .*100 edits.*&lt;b&gt;inf", data(write_report(ended, tmp_path / "r.html"))[0])


def test_the_commands_default_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_run(tmp_path / "demo" / "memit", "memit")
    fake_run(tmp_path / "other", "encore")
    assert "Report: demo/report.html" in CliRunner().invoke(cli.app, ["report", "demo"]).output
    both = CliRunner().invoke(cli.app, ["report", "demo", "other"])
    assert "Report: build/report.html" in both.output and (tmp_path / "build" / "report.html").is_file()
    (tmp_path / "there").mkdir()
    assert "Report: there/report.html" in CliRunner().invoke(cli.app, ["report", "demo", "--out", "there"]).output
    fake_study(Path("study"), Path("demo", "memit"))
    assert "Report: build/report.html" in CliRunner().invoke(cli.app, ["report", "study/memit"]).output
    assert CliRunner().invoke(cli.app, ["report", "nowhere"]).exit_code == 2


def test_load_is_edits_over_d_mlp():
    given = groups(("memit", 0), ("memit", 1), ("encore", 0))
    table = compare(given[0].runs)
    assert set(table["load"]) == {200 / 512} == set(by_method(table)["load"])
    axis = CHARTS["unedited"].figure(given).layout.xaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[200] == "200<br>0.39"
    given[0].runs[0].about["model"].pop("d_mlp")
    assert compare(given[0].runs)["load"].isna().tolist() == [True, False]
    assert CHARTS["unedited"].figure(given).layout.xaxis.tickvals is None


def test_capacity_over_load():
    given = groups(("memit", 0), ("memit", 1), ("encore", 0))
    frame = capacity(given)
    memit = frame[frame["method"] == "memit"].set_index("edits")
    scores = [fake_record("memit", seed).checkpoints["efficacy_accuracy"].iloc[-1] for seed in (0, 1)]
    assert memit.loc[200, "load"] == 200 / 512 and memit.loc[200, "held"] == pytest.approx(np.mean(scores))
    assert (memit.loc[200, "held_low"], memit.loc[200, "held_high"]) == (min(scores), max(scores))
    assert 0 not in memit.index
    fig = capacity_curve(frame)
    assert words(fig)["finding"].startswith("pocket at load 0.39 holds")


def test_a_checkpoint_without_a_share_is_told_in_the_figure_of_capacity():
    given = groups(("memit", 0), ("encore", 0))
    points = given[0].runs[0].record.checkpoints
    points.loc[points["edits"] == points["edits"].max(), "efficacy_accuracy"] = np.nan
    frame = capacity(given)
    assert frame["held"].isna().sum() == 1
    caption = words(capacity_curve(frame))["caption"]
    assert "held" in caption and ": 1 of" in caption and "with MEMIT" in caption
    assert "nan" not in "".join(map(str, capacity_reached(frame)))


def test_capacity_is_reached_where_edits_begin_to_be_lost():
    frame = pd.DataFrame(
        {"model": "m", "method": ["a"] * 3 + ["b"] * 3 + ["c"] * 3, "edits": [100, 200, 300] * 3, "d_mlp": 100,
         "load": [1.0, 2.0, 3.0] * 3, "held": [1, 0.95, 0.5, 1, 1, 0.9, 0.5, 0.4, 0.95]}
    )  # fmt: skip
    (verdict,) = capacity_reached(frame)
    assert (verdict.kind, verdict.about, verdict.n) == ("capacity", "m", 100)
    assert verdict.values["methods"] == {
        "a": {"load": 2.0, "first": 1.0, "then": 0.5},
        "b": {"load": 3.0, "first": 1.0, "then": None},
        "c": {"load": None, "first": 1.0, "then": 0.5},
    }
    assert "50%" in str(verdict)
