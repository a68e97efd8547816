"""Facts that change under their ids while a run is stopped are noticed; a run that was kept from before goes on as it did."""

import shutil
import warnings
from dataclasses import replace

import pandas as pd
import pytest

from ketools import FactSet, KetoolsError
from ketools.editing.editor import Editor
from ketools.runs.run import Interrupted, lifelong
from ketools.runs.store import RunRecord, Store
from tests.runs.conftest import CHANGED, SIZES


@pytest.fixture
def go(tiny_gpt2, statistics, tmp_path):
    """Start a run of 6 edits in batches of 3 on these facts, or go on with it; no panel is brought along."""

    def start(facts, out="run", **changes):
        while tiny_gpt2.edits:
            tiny_gpt2.edits[-1].remove(tiny_gpt2)
        sizes = replace(SIZES, per_task=0, documents=0)
        given = {"edits": 6, "batch": 3, "sizes": sizes, "statistics": statistics, "overrides": CHANGED} | changes
        return lifelong(tiny_gpt2, facts, "encore", out=tmp_path / out, progress=False, **given)

    return start


@pytest.fixture
def stopped(go, facts, monkeypatch):
    """A run that was stopped after its first batch; its panel holds every fact that was asked, whatever was answered."""
    real, calls = Editor.apply, []

    def apply(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    def all_right(model, asked):
        return pd.DataFrame({"accuracy": [1.0] * len(asked), "p_true": 0.5})

    monkeypatch.setattr("ketools.runs.panel.recall", all_right)
    with monkeypatch.context() as patch:
        patch.setattr(Editor, "apply", apply)
        with pytest.raises(Interrupted):
            go(facts)
    return facts


def changed(facts, i, **fields):
    """The facts with other fields in the one of id `i`."""
    return FactSet(replace(fact, **fields) if fact.id == i else fact for fact in facts)


EDITS = {
    "target_true": {"target_true": "harp"}, "paraphrases": {"paraphrases": ("Nobody knows",)},
    "neighbours": {"neighbours": ()}, "generation": {"generation": ("The story of",)},
}  # fmt: skip


@pytest.mark.parametrize("field", EDITS)
def test_a_changed_field_of_an_edited_fact_stops_it(go, stopped, field):
    other = changed(stopped, stopped.sample(6, 0)[5].id, **EDITS[field])
    with pytest.raises(KetoolsError, match=r"the facts of the run in .*run were changed since it began.*--force"):
        go(other)
    assert len(go(stopped).facts) == 6, "nothing was spoilt"


def test_so_does_a_changed_fact_of_the_panel_and_no_other(go, stopped, tmp_path):
    asked = Store(tmp_path / "run").commit(0)["panel"]
    with pytest.raises(KetoolsError, match="facts of the panel"):
        go(changed(stopped, asked["unedited"][0], target_true="harp"))
    used = {*asked["unedited"], *asked["same_subject"], *stopped.sample(6, 0).ids}
    unused = next(fact for fact in stopped if fact.id not in used)
    assert len(go(changed(stopped, unused.id, target_true="harp")).facts) == 6


def test_force_goes_on_and_says_so_in_the_record(go, stopped, tmp_path):
    record = go(changed(stopped, stopped.sample(6, 0)[0].id, target_true="harp"), force=True)
    (forced,) = record.provenance["forced"]
    assert len(record.facts) == 6 and forced["after_batch"] == 1 and list(forced["changed"]) == ["contents"]


def test_an_edit_that_changed_is_another_run_force_or_not(go, stopped):
    other = changed(stopped, stopped.sample(6, 0)[0].id, target_new="harp")
    for force in (False, True):
        with pytest.raises(KetoolsError, match="holds a run with other facts;"):
            go(other, force=force)


def test_a_run_kept_before_this_was_looked_at_goes_on_as_it_did(go, stopped, tmp_path):
    store = Store(tmp_path / "run")
    about = store.about()
    assert {"contents", "left_out"} <= set(about["settings"])
    for name in ("contents", "left_out"):
        del about["settings"][name]
    store.write_about(about)
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    assert len(go(stopped, "older").facts) == 6
    assert len(go(changed(stopped, stopped.sample(6, 0)[5].id, target_true="harp")).facts) == 6


def test_how_many_facts_gave_way_is_kept(go, facts, tmp_path):
    first = facts.sample(6, 0)[0]
    other = FactSet([replace(first, id="before", target_new="harp"), *facts])
    with pytest.warns(UserWarning, match=r"1 facts contradict later ones and are left out .* first of them 'before'"):
        record = go(other)
    assert record.provenance["settings"]["left_out"] == 1 and "before" not in set(record.facts["id"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        go(other)
    assert RunRecord.load(tmp_path / "run").provenance["settings"]["left_out"] == 1
    assert go(facts, "none").provenance["settings"]["left_out"] == 0
