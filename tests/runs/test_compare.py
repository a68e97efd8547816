"""Runs side by side: what belongs together, what the table says, what cannot be compared, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ketools import KetoolsError, cli
from ketools.editing.methods import ENCORE, MEMIT, MPES
from ketools.evaluation.forgetting import mcnemar
from ketools.runs.compare import MEASURES, by_method, comparable, compare, paired_tests
from ketools.runs.panel import Sizes
from ketools.runs.records import Run, arrange, gather, plain
from tests.runs.fakes import fake_record, fake_run


def runs(*given, **shape):
    """Runs named method-seed."""
    return [Run(f"{getattr(m, 'name', m)}-{seed}", fake_record(m, seed, **shape)) for m, seed in given]


def test_gather_takes_runs_and_folders_of_runs_once_each(tmp_path):
    fake_run(tmp_path / "demo" / "memit", "memit", changes={"started": "2026-01-02"})
    fake_run(tmp_path / "demo" / "encore", "encore", changes={"started": "2026-01-01"})
    fake_run(tmp_path / "other" / "encore", "encore", 1)
    (tmp_path / "README.md").write_text("text")
    found = gather([tmp_path / "demo", tmp_path / "demo" / "memit", tmp_path / "README.md", tmp_path / "other"])
    assert [run.name for run in found] == ["demo/encore", "memit", "other/encore"], "by start; same names apart"
    assert [(run.method, run.seed, run.model) for run in found][2] == ("encore", 1, "pocket")
    assert all(run.complete and not run.collapsed and run.edits == 200 for run in found)


def test_a_finished_demo_is_the_runs_that_it_names(tmp_path):
    for name in ("memit", "encore"):
        fake_run(tmp_path / name, name)
    (tmp_path / "demo.json").write_text('{"methods": {"encore": {}}}')  # memit's run is of an earlier demo there
    assert [run.name for run in gather([tmp_path])] == ["encore"]
    assert [run.name for run in gather([tmp_path / "memit"])] == ["memit"]
    for other in ("{", "[]", '{"methods": 3}'):  # no demo's file, or a broken one: all that is there
        (tmp_path / "demo.json").write_text(other)
        assert len(gather([tmp_path])) == 2


def test_the_present_folder_is_a_folder_of_runs(tmp_path, monkeypatch):
    fake_run(tmp_path / "memit", "memit")
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in gather([Path()])] == ["memit"]


def test_gather_refuses_what_is_no_run(tmp_path):
    for folders in ([tmp_path], [tmp_path / "nowhere"]):
        with pytest.raises(KetoolsError, match="no records of a run here"):
            gather(folders)
    (tmp_path / "a").write_text("")
    with pytest.raises(KetoolsError, match="no folder of a run given"):
        gather([tmp_path / "a", tmp_path / "a"])


def test_seeds_of_one_method_are_a_group_and_nothing_else_is():
    found = arrange(runs(("memit", 0), ("encore", 2), ("memit", 1), ("encore", 0)))
    assert [(group.label, group.seeds) for group in found] == [("memit", (0, 1)), ("encore", (0, 2))]
    other = Run("wide", fake_record("encore", 1, changes={"hyper": {"layers": [1, 2], "lambda_n": 50.0}}))
    assert [group.label for group in arrange([*runs(("encore", 0)), other])] == [
        "encore (lambda_n 10.0)",
        "encore (lambda_n 50.0)",
    ]
    sums = [Run(c, fake_record("encore", seed, changes={"statistics": c * 64})) for seed, c in enumerate("ab")]
    assert [group.label for group in arrange(sums)] == ["encore (statistics aaaaaaaa)", "encore (statistics bbbbbbbb)"]
    again = Run("again", fake_record("encore", 0))
    assert [group.label for group in arrange([*runs(("encore", 0)), again])] == ["encore (encore-0)", "encore (again)"]
    mpes = Run("mpes", fake_record(replace(MEMIT, stopping=MPES())))
    assert [group.label for group in arrange([*runs(("memit", 0)), mpes])] == ["memit", "memit+mpes"]
    llama = Run("llama", fake_record("encore", 0, changes={"model": "smollm2"}))
    assert [(g.model, g.label) for g in arrange([*runs(("encore", 0)), llama])] == [
        ("pocket", "encore"),
        ("smollm2", "encore"),
    ]


def test_models_of_one_name_that_are_not_the_same_are_told_apart():
    trained_anew = Run("new", fake_record("encore", 1))
    trained_anew.record.provenance["model"]["fingerprint"] = "0123456789"
    assert {group.model for group in arrange([*runs(("encore", 0)), trained_anew])} == {
        "pocket pocket-f",
        "pocket 01234567",
    }


def test_the_table_holds_what_the_records_hold():
    given = runs(("memit", 0), ("encore", 0), ("encore", 1))
    table = compare(given)
    assert list(table["method"]) == ["memit", "encore", "encore"] and list(table["seed"]) == [0, 0, 1]
    assert list(table.columns[-len(MEASURES) :]) == list(MEASURES) and table["complete"].all()
    for run, (_, row) in zip(given, table.iterrows(), strict=True):
        last = run.record.checkpoints.iloc[-1]
        for name in set(MEASURES) & set(last.index):
            assert row[name] == last[name]
        assert row["at_edit_S"] == pytest.approx(0.99)
        assert row["seconds_per_edit"] == pytest.approx(6 / 50)
    early = compare(given, at=100)
    assert (early["edits"] == 100).all() and not early["complete"].any()
    assert (early["ES"] > table["ES"]).all()


def test_facts_without_true_objects_are_compared_by_accuracy(monkeypatch):
    given = runs(("memit", 0), ("encore", 0))
    for run, right in zip(given, (0.61, 0.83), strict=True):
        frame = run.record.checkpoints
        missing = [name for name in frame if name.removeprefix("at_edit_") in {"ES", "PS", "NS", "S"}]
        frame[[*missing, "efficacy_accuracy", "locality_accuracy"]] = [*[np.nan] * len(missing), right, 0.4]
    monkeypatch.setattr("ketools.runs.records.gather", lambda _: given)
    shown = CliRunner().invoke(cli.app, ["compare"]).output
    rows = {line.partition("  ")[0]: line.split()[-2:] for line in shown.splitlines()}
    assert rows["acc."] == ["61.0%", "83.0%"] and rows["loc. acc."] == ["40.0%", "40.0%"]
    assert not {"ES", "para. acc.", "ES then"} & {*rows}, "no row without a figure"


def test_an_unfinished_run_is_compared_where_all_were_measured():
    given = [*runs(("memit", 0)), *runs(("encore", 0), done=100)]
    assert set(compare(given)["edits"]) == {100}
    with pytest.raises(KetoolsError, match="not all runs were measured after 200 edits; all were after 100"):
        compare(given, at=200)
    with pytest.raises(KetoolsError, match="no checkpoint after an edit in common"):
        compare([*runs(("memit", 0)), *runs(("encore", 0), done=50)])
    with pytest.raises(KetoolsError, match="no runs"):
        compare([])


def ended_at_once(method):
    """A run whose first update was not finite: one checkpoint, of the unedited model, and nothing else."""
    whole = fake_record(method)
    first = {
        name: getattr(whole, name)[lambda frame: frame["edits"] == 0] for name in ("checkpoints", "norms", "residual")
    }
    none = {name: pd.DataFrame() for name in ("batches", "facts")}
    return Run(method, replace(whole, **first, **none, collapse={"batch": 1, "edits": 0, "why": "not finite"}))


def test_a_run_that_ended_in_its_first_batch_has_a_row_and_no_measures():
    early = ended_at_once("memit")
    table = compare([early, *runs(("encore", 0))]).set_index("method")
    assert table.loc["memit", list(MEASURES)].isna().all(), "not the 100% of an unedited model"
    assert list(table["edits"]) == [0, 200] and list(table["collapsed"]) == [True, False]
    assert not table.loc["memit", "complete"] and table.loc["encore", "ES"] == pytest.approx(0.994)
    assert paired_tests(arrange([early, *runs(("encore", 0))])).empty
    assert np.isnan(by_method(compare([early, *runs(("encore", 0))])).set_index("method").loc["memit", "ES"])
    alone = compare([early])
    assert alone["edits"].item() == 0 and alone[list(MEASURES)].isna().all().all()
    with pytest.raises(KetoolsError, match="no checkpoint after an edit in common"):
        compare([early, *runs(("encore", 0), done=50)])


def test_a_run_that_ended_early_is_in_no_paired_test():
    whole = fake_record("memit", 0)
    part = replace(whole, checkpoints=whole.checkpoints[whole.checkpoints["edits"] <= 100], facts=whole.facts[:100],
                   collapse={"batch": 3, "edits": 100, "why": "not finite"})  # fmt: skip
    assert "end_efficacy_success" in part.facts
    assert paired_tests(arrange([Run("memit", part), *runs(("encore", 0))])).empty


def test_seeds_with_other_settings_are_other_groups():
    sizes = plain(Sizes(same_subject=300))
    hyper = {"layers": [1, 2], "same_subject": "shared"}
    same = {"sizes": sizes, "hyper": hyper}
    first = Run("0", fake_record("encore", 0, changes=same))
    assert len(arrange([first, Run("1", fake_record("encore", 1, changes=same))])) == 1
    apart = same | {"hyper": hyper | {"same_subject": "apart"}}
    patient = replace(ENCORE, stopping=MPES(4))
    for other in (fake_record("encore", 1, changes=apart), fake_record(patient, 1, changes=same)):
        assert len(arrange([first, Run("1", other)])) == 2


def test_the_number_of_facts_is_that_of_the_checkpoint():
    (run,) = runs(("encore", 0))
    run.record.checkpoints["same_subject_known"] = [300, 150, 300]
    assert run.counts()["ES"] == 200 and run.counts(100) == {"same_subject_kept": 150} | dict.fromkeys(
        ("ES", "PS", "NS", "S", "efficacy_accuracy", "paraphrase_accuracy", "p_edited"), 100
    )


REFUSED = {
    "other facts": ({"changes": {"facts": "another list"}}, "both are of seed 0, but they edit other facts"),
    "another panel": ({"changes": {"sizes": plain(Sizes(unedited=7))}}, r"another panel was asked \(unedited 1000 and 7\)"),
    "more edits": ({"edits": 400}, "one is of 200 edits, the other of 400"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_compared_is_refused_with_the_reason(case):
    shape, why = REFUSED[case]
    other = Run("other", fake_record("memit", 0, **shape))
    with pytest.raises(KetoolsError, match=f"'encore-0' and 'other' can't be compared: .*{why}"):
        comparable([*runs(("encore", 0)), other])


def test_another_panel_shows_in_what_the_unedited_model_answered():
    for column, what in (("p_natural", 0.7), ("perplexity", 9.0)):
        other = Run("other", fake_record("memit"))
        other.record.checkpoints[column] = what
        with pytest.raises(KetoolsError, match=f"before any edit, {column} is"):
            comparable([*runs(("encore", 0)), other])
    rounded = Run("other", fake_record("memit"))
    rounded.record.checkpoints["p_natural"] *= 1 + 1e-6
    comparable([*runs(("encore", 0)), rounded])
    other_facts = Run("other", fake_record("memit", 1))
    other_facts.record.facts["relation"] = "capital"
    with pytest.raises(KetoolsError, match="relations such as birthplace, and such as capital"):
        comparable([*runs(("encore", 0)), other_facts])


def test_another_set_of_tasks_is_another_panel():
    other = Run("other", fake_record("memit", 1))
    more = replace(other.record, checkpoints=other.record.checkpoints.assign(f1_sst2=0.5))
    other = replace(other, record=more)
    with pytest.raises(KetoolsError, match="other tasks \\(rte; rte, sst2\\)"):
        comparable([*runs(("encore", 0)), other])


def test_pairs_are_of_one_model_and_seed_and_are_mcnemars():
    given = runs(("memit", 0), ("encore", 0), ("memit", 1), ("encore", 1), ("alphaedit", 1))
    pairs = paired_tests(arrange(given))
    assert len(pairs) == 1 + 3 and set(pairs["seed"]) == {0, 1}
    expected = mcnemar(given[0].record.facts, given[1].record.facts)
    row = pairs.iloc[0]
    assert (row["a"], row["b"]) == ("memit", "encore")
    assert row["only_a"] == expected["only_a"] and row["p_value"] == expected["p_value"]
    assert (pairs["p_adjusted"] >= pairs["p_value"]).all()
    assert paired_tests(arrange(runs(("memit", 0), done=100))).empty


def test_over_seeds():
    table = compare(runs(("memit", 0), ("memit", 1), ("memit", 2), ("encore", 0)))
    found = by_method(table).set_index("method")
    assert found.loc["memit", "seed_list"] == "0, 1 and 2" and found.loc["encore", "seeds"] == 1
    held = table.loc[table["method"] == "memit", "unedited_kept"]
    assert found.loc["memit", "unedited_kept"] == pytest.approx(held.mean())
    assert found.loc["memit", "unedited_kept_min"] == held.min() < held.max() == found.loc["memit", "unedited_kept_max"]


def test_a_seed_without_a_value_is_not_counted_in_the_mean():
    table = compare(runs(("memit", 0), ("memit", 1), ("memit", 2), ("encore", 0)))
    assert not [name for name in by_method(table) if name.endswith("_seeds")]
    table.loc[1, "ES"], table.loc[:2, "PS"] = np.nan, np.nan
    found = by_method(table).set_index("method")
    assert found.loc["memit", "ES"] == pytest.approx(table.loc[[0, 2], "ES"].mean())
    assert found.loc["memit", "ES_seeds"] == 2 and np.isnan(found.loc["encore", "ES_seeds"])
    assert "PS_seeds" not in found, "no value at all is NaN, which says so itself"


def test_a_measure_that_was_not_recorded_is_unknown_and_not_an_error():
    run = Run("old", fake_record("memit"))
    points = run.record.checkpoints.drop(columns=["perplexity_ratio", "at_edit_PS"])
    row = compare([replace(run, record=replace(run.record, checkpoints=points))]).iloc[0]
    assert np.isnan(row["perplexity_ratio"]) and np.isnan(row["at_edit_S"]) and row["ES"] == pytest.approx(0.865)


def test_the_command(tmp_path):
    for method in ("memit", "encore"):
        for seed in (0, 1):
            fake_run(tmp_path / "runs" / f"{method}-{seed}", method, seed)
    words = ["compare", tmp_path / "runs", "--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv"]
    result = CliRunner().invoke(cli.app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "After 200 edits\n" in result.output and "86.5%" in result.output and "McNemar" in result.output
    stored = json.loads((tmp_path / "c.json").read_text())
    assert len(stored["runs"]) == 4 and len(stored["mcnemar"]) == 2
    assert isinstance(stored["mcnemar"][0]["only_a"], int)
    assert list(pd.read_csv(tmp_path / "c.csv")["method"]) == ["memit", "memit", "encore", "encore"]
    early = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "runs"), "--at", "100"])
    assert "not all runs complete" in early.output and "only after the last edit" in early.output
    assert "McNemar" not in early.output
    fake_run(tmp_path / "runs" / "other", ENCORE, 2, edits=400)
    refused = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "runs")])
    assert (
        refused.exit_code == 2
        and len(refused.stderr.strip().splitlines()) == 1
        and "can't be compared" in refused.stderr
    )
