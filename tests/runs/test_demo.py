"""Methods side by side on one model: each from the same bits, and what the figures say of it."""

import json
import math

import pandas as pd
import pytest
import torch

from ketools import KetoolsError
from ketools.cli.run import runs_in
from ketools.editing.editor import Editor
from ketools.errors import NotFinite
from ketools.report.page import write_report
from ketools.runs import sweep as module
from ketools.runs.compare import MEASURES, compare
from ketools.runs.demo import demo, figures, sentences
from ketools.runs.panel import Panel
from ketools.runs.records import gather
from ketools.runs.run import Interrupted
from ketools.runs.store import RunRecord

FIGURES = {
    "norm_ratio", "norm_still_growing", "unedited_kept", "downstream_kept", "efficacy", "paraphrase", "neighbourhood",
    "p_edited", "p_natural", "perplexity_ratio", "steps_mean", "seconds", "seconds_per_edit", "same_subject_kept",
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Three optimisation steps and two short prefixes: a job of a second."""
    real = module.lifelong
    changed = {"steps": 3, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}
    monkeypatch.setattr(module, "lifelong", lambda *args, **named: real(*args, **named, overrides=changed))


def test_methods_side_by_side(tiny_gpt2, facts, quick, tmp_path):
    bits = {layer: tiny_gpt2.weight(layer).clone() for layer in range(4)}
    result = demo(["memit", "encore"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    assert set(result["methods"]) == {"memit", "encore"}
    for name, found in result["methods"].items():
        assert set(found) >= FIGURES
        assert found["edits"] == 8
        assert found["seconds_per_edit"] == pytest.approx(found["seconds"] / 8)
        assert found["efficacy"] == result["records"][name].checkpoints["ES"].iloc[-1]
    assert all(torch.equal(tiny_gpt2.weight(layer), weight) for layer, weight in bits.items())
    assert not tiny_gpt2.edits
    assert not tiny_gpt2.originals
    stored = json.loads((tmp_path / "demo.json").read_text())
    assert stored["methods"]["memit"]["norm_ratio"] == result["methods"]["memit"]["norm_ratio"]
    assert stored["provenance"]["methods"]["encore"]["settings"]["layers"] == [1, 2]
    assert stored["provenance"]["seed"] == 0
    assert len(stored["sentences"]) == 3
    # Each method on its own gives what it gave beside the other.
    alone = demo(["encore"], tiny_gpt2, out=tmp_path / "alone", facts=facts, **quick)
    for name, value in alone["methods"]["encore"].items():
        if not name.startswith("seconds"):
            assert value == pytest.approx(result["methods"]["encore"][name], nan_ok=True, rel=0), name


def test_an_ablation_is_a_name_here_too(tiny_gpt2, facts, quick, tmp_path):
    result = demo(["MEMIT + mpes"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    assert [*result["methods"]] == ["memit+mpes"] and (tmp_path / "memit+mpes" / "run.json").is_file()
    assert result["provenance"]["methods"]["memit+mpes"]["stopping"]["type"] == "MPES"
    assert runs_in(tmp_path) == [tmp_path / "memit+mpes"] and runs_in(tmp_path / "nowhere") == [tmp_path / "nowhere"]


def test_methods_that_need_no_covariance_ask_for_none(tiny_gpt2, facts, quick, tmp_path):
    result = demo(["ft"], tiny_gpt2, out=tmp_path, facts=facts, **quick | {"statistics": None})
    assert result["methods"]["ft"]["edits"] == 8
    with pytest.raises(KetoolsError, match="covariance"):
        demo(["ft", "memit"], tiny_gpt2, out=tmp_path / "both", facts=facts, **quick | {"statistics": None})


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(tiny_gpt2, facts, quick, tmp_path, monkeypatch):
    whole = demo(["memit", "encore"], tiny_gpt2, out=tmp_path / "whole", facts=facts, **quick)
    bits = {layer: tiny_gpt2.weight(layer).clone() for layer in range(4)}
    real, calls = Editor.apply, []

    def apply(self, *args):
        calls.append(1)
        if len(calls) == 5:  # the second batch of the second method
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Editor, "apply", apply)
        with pytest.raises(Interrupted, match="3 of 8 edits with encore are kept"):
            demo(["memit", "encore"], tiny_gpt2, out=tmp_path / "stopped", facts=facts, **quick)
    assert all(torch.equal(tiny_gpt2.weight(layer), weight) for layer, weight in bits.items())
    assert not (tmp_path / "stopped" / "demo.json").exists()
    calls.clear()
    monkeypatch.setattr(Editor, "apply", lambda self, *args: (calls.append(1), real(self, *args))[1])
    again = demo(["memit", "encore"], tiny_gpt2, out=tmp_path / "stopped", facts=facts, **quick)
    assert len(calls) == 2  # the batches that were missing
    for name, found in whole["methods"].items():
        for key, value in found.items():
            if not key.startswith("seconds"):
                assert value == pytest.approx(again["methods"][name][key], nan_ok=True, rel=0), (name, key)


def test_a_method_that_ends_in_its_first_batch_has_no_figures_and_stops_nobody(
    tiny_gpt2, facts, quick, tmp_path, monkeypatch
):
    real = Editor.apply

    def apply(self, *args):
        if self.method.name == "memit":
            raise NotFinite("the update of layer 1 is not finite")
        return real(self, *args)

    monkeypatch.setattr(Editor, "apply", apply)
    job = quick | {"report": write_report}
    result = demo(["memit", "encore"], tiny_gpt2, out=tmp_path / "two", facts=facts, **job)
    ended, other = result["methods"]["memit"], result["methods"]["encore"]
    assert ended["edits"] == 0 and ended["seconds"] == 0
    assert ended["p_natural"] == pytest.approx(other["p_natural"], nan_ok=True)
    for name in FIGURES - {"norm_still_growing", "seconds", "p_natural"}:
        assert math.isnan(ended[name]), name
    assert other["efficacy"] >= 0 and other["norm_ratio"] > 1, "the other method is measured as ever"
    assert not ended["norm_still_growing"] and not ended["unedited_falling"]
    norm, model, edits = result["sentences"]
    assert "Nothing was edited with MEMIT" in norm
    assert "MEMIT" not in model + edits and "nan" not in norm + model + edits
    assert "all 8 edits" in edits
    assert (tmp_path / "two" / "report.html").is_file()
    table = compare(gather([tmp_path / "two"])).set_index("method")
    assert list(table["edits"]) == [0, 8] and list(table["collapsed"]) == [True, False]
    assert table.loc["memit", list(MEASURES)].isna().all() and table.loc["encore", "ES"] == other["efficacy"]
    alone = demo(["memit"], tiny_gpt2, out=tmp_path / "one", facts=facts, **quick)
    assert all("nothing was edited" in sentence for sentence in alone["sentences"])


def test_a_finished_job_is_done_anew(tiny_gpt2, facts, quick, tmp_path):
    demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    found = demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick | {"edits": 4})
    assert found["methods"]["memit"]["edits"] == 4


def test_a_mistyped_model_costs_no_earlier_result(tiny_gpt2, facts, quick, tmp_path):
    demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    before = (tmp_path / "demo.json").read_bytes()
    with pytest.raises(KetoolsError, match="nowhere"):
        demo(["memit"], "nowhere", out=tmp_path, facts=facts, **quick)
    assert (tmp_path / "demo.json").read_bytes() == before
    assert (tmp_path / "memit" / "run.json").is_file()


def test_an_unfinished_job_with_other_settings_is_refused_unless_again(tiny_gpt2, facts, quick, tmp_path):
    demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    (tmp_path / "demo.json").unlink()
    with pytest.raises(KetoolsError, match="run with "):
        demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick | {"edits": 4})
    demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, again=True, **quick | {"edits": 4})


def test_bad_input_comes_before_any_work(tiny_gpt2, facts, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(Panel, "take", None)
    with pytest.raises(KetoolsError, match="no method named 'mimit'"):
        demo(["memit", "mimit"], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    with pytest.raises(KetoolsError, match="asked for 500 facts"):
        demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, **quick | {"edits": 500})
    with pytest.raises(KetoolsError, match="seed = -1: expected a whole number from 0"):
        demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, seed=-1, **quick)
    with pytest.raises(KetoolsError, match="no methods given"):
        demo([], tiny_gpt2, out=tmp_path, facts=facts, **quick)
    (tmp_path / "file").write_text("")
    with pytest.raises(KetoolsError, match="cannot write to"):
        demo(["memit"], tiny_gpt2, out=tmp_path / "file", facts=facts, **quick)
    with pytest.raises(KetoolsError, match="nowhere"):
        demo(["memit"], "nowhere", out=tmp_path, facts=facts, **quick)


def record(ratios, kept) -> RunRecord:
    """A run of 400 edits, measured every 100."""
    edits = [0, 100, 200, 300, 400]
    rows = [
        {"batch": i, "edits": n, "layer": layer, "edited": layer != 9, "norm": 7.0 * r, "ratio": r}
        for i, n in enumerate(edits)
        for layer, r in ((1, ratios[i]), (2, 1.0), (9, 1.0 + i))
    ]
    names = [
        "ES",
        "PS",
        "NS",
        "S",
        "at_edit_ES",
        "at_edit_PS",
        "at_edit_NS",
        "norm_ratio",
        "norm_ratio_unedited",
        "same_subject_kept",
        "downstream_kept",
        "downstream_f1",
        "perplexity",
        "perplexity_ratio",
        "efficacy_accuracy",
        "paraphrase_accuracy",
        "neighbourhood_accuracy",
        "p_edited",
        "p_natural",
    ]
    checkpoints = pd.DataFrame({"edits": edits, "unedited_kept": kept, "seconds": 1.0} | {name: 0.5 for name in names})
    checkpoints["norm_ratio"] = ratios
    batches = pd.DataFrame({"edits": edits[1:], "seconds": 2.0, "seconds_scoring": 0.5})
    return RunRecord(batches, pd.DataFrame(rows), pd.DataFrame({"steps": [4] * 400}), checkpoints, {})


def test_figures_say_growing_and_falling_as_measured():
    grown = figures(record([1.0, 1.5, 2.0, 2.5, 3.0], [1.0, 0.9, 0.8, 0.7, 0.6]))
    assert (grown["norm_ratio"], grown["norm_layer"], grown["norm_still_growing"]) == (3.0, 1, True)
    assert grown["unedited_falling"]
    still = figures(record([1.0, 1.3, 1.4, 1.41, 1.41], [1.0, 0.97, 0.96, 0.96, 0.96]))
    assert not still["norm_still_growing"]
    assert not still["unedited_falling"]
    assert still["seconds"] == 8.0
    assert still["seconds_evaluation"] == 7.0
    assert still["steps_mean"] == 4.0


def test_sentences_are_true_of_the_figures_whatever_they_are():
    found = {
        "memit": figures(record([1.0, 1.5, 2.0, 2.5, 3.0], [1.0, 0.9, 0.8, 0.7, 0.6])),
        "encore": figures(record([1.0, 1.1, 1.1, 1.1, 1.1], [1.0, 1.0, 1.0, 0.99, 0.99])),
    }
    norm, model, edits = sentences(found, 400)
    assert "3.00× with MEMIT (still growing)" in norm and "1.10× with ENCORE" in norm
    assert "60.0% with MEMIT (downstream score at 50.0%" in model
    assert "99.0% with ENCORE (downstream" in model
    assert "50.0% with ENCORE (50.0% when rephrased, mean probability 0.50)" in edits
    assert "unedited facts" in edits
    unknown = {"downstream_kept": math.nan, "unedited_kept": math.nan, "p_natural": math.nan}
    norm, model, edits = sentences({"encore": found["encore"] | unknown}, 400)
    assert "MEMIT" not in norm + model + edits and "nan" not in norm + model + edits
    assert "unknown share" in model and "unedited facts" not in edits


def test_a_look_comes_before_anything_is_written_and_once_a_job(tiny_gpt2, facts, quick, tmp_path, monkeypatch):
    seen = []

    def look(model, todo, methods, statistics):
        seen.append((model, len(todo), [how.name for how in methods], statistics))

    def refuse(*_):
        raise KetoolsError("no")

    done = demo(["memit", "encore"], tiny_gpt2, out=tmp_path, facts=facts, look=look, **quick)
    assert seen == [(tiny_gpt2, 8, ["memit", "encore"], True)]
    with pytest.raises(KetoolsError, match="no"):
        demo(["memit", "encore"], tiny_gpt2, out=tmp_path, facts=facts, look=refuse, **quick)
    assert json.loads((tmp_path / "demo.json").read_text())["methods"].keys() == done["methods"].keys()
    (tmp_path / "demo.json").unlink()  # as if it had been stopped
    demo(["memit", "encore"], tiny_gpt2, out=tmp_path, facts=facts, look=refuse, **quick)
    with pytest.raises(KetoolsError, match="no"):
        (tmp_path / "demo.json").unlink()
        demo(["memit"], tiny_gpt2, out=tmp_path, facts=facts, look=refuse, again=True, **quick)


def test_a_method_that_ends_early_is_told_so():
    figures = dict.fromkeys(FIGURES, 0.5) | {"norm_still_growing": True, "unedited_falling": True}
    norm, _, edits = sentences({"memit": figures | {"edits": 100}, "encore": figures | {"edits": 200}}, 200)
    assert "MEMIT ended after 100 edits" in norm
    assert "200" not in edits
