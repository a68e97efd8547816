"""A lifelong run: what it records, that stopping does not change it, and what it refuses."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ketools import KetoolsError
from ketools.editing.editor import Editor
from ketools.evaluation.edits import evaluate, summary
from ketools.norms.weights import norms
from ketools.runs import panel as panel_module
from ketools.runs import run as module
from ketools.runs.config import RunConfig, Settled
from ketools.runs.panel import Panel
from ketools.runs.resume import statistics_digest
from ketools.runs.run import Interrupted
from ketools.runs.store import FRAMES, RunRecord, Store
from tests.models.test_prompts import TEMPLATE, chatting
from tests.runs.conftest import CHANGED, SIZES

CLOCK = [f"seconds{phase}" for phase in ("", "_cpu", "_targets", "_keys", "_solve", "_write", "_scoring")]


def weights(model):
    return {layer: model.weight(layer).clone() for layer in range(model.anatomy.n_layer)}


def undo_all(model):
    while model.edits:
        model.edits[-1].remove(model)


def same(a: RunRecord, b: RunRecord) -> None:
    """Equal but for the clock."""
    for name in FRAMES:
        one, two = (getattr(r, name).drop(columns=CLOCK, errors="ignore") for r in (a, b))
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_the_record_says_what_was_measured(run, tiny_gpt2, facts, tmp_path):
    before = norms(tiny_gpt2)
    record = run()
    todo = facts.sample(8, 0)
    assert list(record.batches["edits"]) == [3, 6, 8]
    assert list(record.batches["facts"]) == [3, 3, 2]
    assert list(record.checkpoints["edits"]) == [0, 6, 8]
    assert list(record.facts["id"]) == todo.ids
    assert list(record.facts["batch"]) == [1, 1, 1, 2, 2, 2, 3, 3]
    now = norms(tiny_gpt2)
    last = record.norms[record.norms["edits"] == 8].set_index("layer")
    assert list(last["edited"]) == [False, True, True, False]
    for layer, row in last.iterrows():
        assert row["norm"] == pytest.approx(now[layer], rel=1e-12)
        assert row["ratio"] == pytest.approx(now[layer] / before[layer], rel=1e-12)
        assert math.isnan(row["update_norm"]) == (layer not in (1, 2))
    assert record.provenance["method"]["name"] == "encore"
    assert record.provenance["settings"]["hyper"]["steps"] == 3
    assert record.provenance["model"]["fingerprint"] == tiny_gpt2.fingerprint
    assert not list(tmp_path.rglob("*.part"))
    same(record, RunRecord.load(tmp_path / "run"))


def test_the_last_checkpoint_scores_all_edits_on_the_final_model(run, tiny_gpt2, facts):
    record = run()
    expected = evaluate(tiny_gpt2, facts.sample(8, 0), neighbours=SIZES.neighbours_end)
    last = record.checkpoints.iloc[-1]
    for name, value in summary(expected).items():
        assert last[name] == pytest.approx(value, nan_ok=True), name
    np.testing.assert_array_equal(record.facts["end_p_new"], expected["p_new"])
    assert list(record.checkpoints["neighbours"][1:]) == [SIZES.neighbours, SIZES.neighbours_end]
    assert last["p_edited"] == pytest.approx(expected["p_new"].mean())
    assert last["norm_ratio"] == pytest.approx(record.norms.query("edited and edits == 8")["ratio"].max())


def test_before_the_first_edit_nothing_has_changed(run):
    first = run().checkpoints.iloc[0]
    assert first["perplexity_ratio"] == 1.0
    assert first["norm_ratio"] == first["norm_ratio_unedited"] == 1.0
    assert first["downstream_kept"] == 1.0
    assert math.isnan(first["ES"])


@pytest.mark.parametrize("stopped_in", ["apply", "evaluate", "put", "put_checkpoint", "checkpoint"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_ends_with_the_same_bits(run, tiny_gpt2, tmp_path, monkeypatch, stopped_in, at):
    whole = run("whole")
    final = weights(tiny_gpt2)
    undo_all(tiny_gpt2)
    owner = {"apply": Editor, "evaluate": panel_module, "put": Store, "put_checkpoint": Store, "checkpoint": Panel}
    with monkeypatch.context() as patch:
        stop_at_call(patch, owner[stopped_in], stopped_in, at)
        with pytest.raises(Interrupted, match="edits with encore are kept"):
            run("stopped")
    done = Store(tmp_path / "stopped").progress()
    assert len(tiny_gpt2.edits) == done["batches"]
    assert len(RunRecord.load(tmp_path / "stopped").batches) == done["batches"]
    undo_all(tiny_gpt2)
    again = run("stopped")
    same(whole, again)
    for layer, weight in final.items():
        assert torch.equal(tiny_gpt2.weight(layer), weight)


def stop_at_call(patch, owner, name, number):
    """Ctrl-C on entering the numbered call of owner.name."""
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


def test_ctrl_c_keeps_finished_batches_and_leaves_the_weights_of_those(run, tiny_gpt2, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at_call(patch, Editor, "apply", 3)
        with pytest.raises(Interrupted, match=r"stopped; 6 of 8 edits with encore are kept in .*run"):
            run()
    kept = RunRecord.load(tmp_path / "run")
    assert list(kept.batches["edits"]) == [3, 6]
    assert list(kept.checkpoints["edits"]) == [0, 6]
    stopped = weights(tiny_gpt2)
    undo_all(tiny_gpt2)
    for edit in (module.Edit.load(Store(tmp_path / "run").path("edits", k)) for k in (1, 2)):
        edit.apply_to(tiny_gpt2)
    assert all(torch.equal(stopped[layer], weight) for layer, weight in weights(tiny_gpt2).items())


def test_a_finished_run_is_read_not_run_again(run, tiny_gpt2, monkeypatch):
    whole = run()
    final = weights(tiny_gpt2)
    undo_all(tiny_gpt2)
    monkeypatch.setattr(Editor, "apply", None)
    same(whole, run())
    assert all(torch.equal(final[layer], weight) for layer, weight in weights(tiny_gpt2).items())


def test_a_folder_with_another_run_is_refused(run, tiny_gpt2):
    run()
    undo_all(tiny_gpt2)
    with pytest.raises(KetoolsError, match=r"run with batch = 3, not 2; .*another output folder"):
        run(batch=2)
    with pytest.raises(KetoolsError, match="run with hyper"):
        run(overrides=CHANGED | {"steps": 4})
    with pytest.raises(KetoolsError, match="run with method"):
        run(method="memit")


def test_bad_input(run, tiny_gpt2, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(KetoolsError, match=r"cannot write to .*file.*another output folder"):
        run("file")
    with pytest.raises(KetoolsError, match=r"cannot write to .*inside"):
        run("file/inside")
    with pytest.raises(KetoolsError, match="asked for 21 facts, there are 20"):
        run(edits=21)
    with pytest.raises(KetoolsError, match="batch=0"):
        run(batch=0)
    with pytest.raises(KetoolsError, match="no method named 'mimit'"):
        run(method="mimit")
    assert not tiny_gpt2.edits
    run("good", edits=1)
    with pytest.raises(KetoolsError, match="carries 1 edits already"):
        run("more")


def test_a_full_disk_is_one_clear_error_and_leaves_the_run_readable(run, tmp_path, monkeypatch, tiny_gpt2):
    def full(*_):
        raise OSError(28, "No space left on device")

    real = Store.put
    monkeypatch.setattr(Store, "put", lambda self, batch, *a, **k: full() if batch == 2 else real(self, batch, *a, **k))
    with pytest.raises(KetoolsError, match=r"cannot write to .*: No space left on device; what was finished"):
        run()
    assert len(tiny_gpt2.edits) == 1
    assert list(RunRecord.load(tmp_path / "run").batches["edits"]) == [3]


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(KetoolsError, match="no run here"):
        RunRecord.load(tmp_path)
    (tmp_path / "run.json").write_text("{half")
    with pytest.raises(KetoolsError, match=r"run\.json: not JSON"):
        RunRecord.load(tmp_path)


def test_a_covariance_has_one_name_on_all_machines(statistics) -> None:
    noise = {i: c * (1 + 1e-13) for i, c in statistics.layers.items()}  # what another machine's product may differ by
    other = {i: c * (1 + 1e-3) for i, c in statistics.layers.items()}
    name = statistics_digest(statistics, [0, 1])
    assert statistics_digest(replace(statistics, layers=noise), [0, 1]) == name
    assert statistics_digest(replace(statistics, layers=other), [0, 1]) != name
    assert statistics_digest(replace(statistics, tokens=statistics.tokens + 1), [0, 1]) != name


def test_a_warning_of_every_batch_is_given_once_a_run(run, monkeypatch):
    real = Editor.apply

    def apply(self, *args):
        warnings.warn("prompts share nothing here", UserWarning, stacklevel=2)
        return real(self, *args)

    monkeypatch.setattr(Editor, "apply", apply)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        record = run()
    assert len(record.batches) > 1 and sum("share nothing" in str(one.message) for one in heard) == 1


def test_facts_left_out_are_counted_in_the_chat_template_too(tiny_gpt2, facts, tmp_path, monkeypatch):
    chatting(tiny_gpt2, TEMPLATE)
    monkeypatch.setattr(module, "lifelong", lambda model, facts, *args, **named: facts)
    asked = module.execute(RunConfig(chat=True, out=str(tmp_path)), tiny_gpt2, Settled(facts, 3))
    assert asked.left_out == 3 and asked[0].text.startswith(f"<|user|>\n{facts[0].text}")
