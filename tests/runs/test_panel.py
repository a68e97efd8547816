"""What is compared with before the first edit: drawn rightly, and able to go down."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ketools import FactSet, KetoolsError
from ketools.evaluation.edits import recall
from ketools.models.weights import fresh
from ketools.runs.demo import demo
from ketools.runs.panel import Panel, Sizes, asked_of
from tests.runs.conftest import SIZES, TASKS, TEXTS


@pytest.fixture
def known(facts, monkeypatch):
    """A model that knows every fact until it is told which to forget."""
    forgotten = set()

    def told(model, asked):
        frame = recall(model, asked)
        right = [fact.id not in forgotten for fact in asked]
        return frame.assign(accuracy=[float(r) for r in right], p_true=[0.5 if r else 0.1 for r in right])

    monkeypatch.setattr("ketools.runs.panel.recall", told)
    return forgotten


def take(model, facts, todo, **changes):
    return Panel.take(model, facts, todo, **{"sizes": SIZES, "tasks": TASKS, "texts": TEXTS} | changes)


def test_the_panel_has_no_edited_subject_but_other_facts_of_edited_ones(tiny_gpt2, facts, known):
    todo = facts.sample(8, 0)
    panel = take(tiny_gpt2, facts, todo, sizes=Sizes(unedited=100, same_subject=100))
    edited = {fact.subject for fact in todo}
    assert {fact.subject for fact in panel.unedited} == {fact.subject for fact in facts} - edited
    assert {fact.subject for fact in panel.same_subject} == edited
    assert not {fact.id for fact in panel.same_subject} & set(todo.ids)
    assert panel.p_natural == 0.5
    assert panel.unedited_right == 1.0


def test_only_what_was_right_before_counts(tiny_gpt2, facts, known):
    todo = facts.sample(8, 0)
    wrong = take(tiny_gpt2, facts, todo, sizes=Sizes(unedited=100)).unedited[0]
    known.add(wrong.id)
    panel = take(tiny_gpt2, facts, todo, sizes=Sizes(unedited=100))
    assert wrong not in panel.unedited
    assert panel.unedited_right == pytest.approx(1 - 1 / 24)


def test_what_was_not_known_before_is_counted_in_every_row(tiny_gpt2, facts, known):
    todo, sizes = facts.sample(8, 0), Sizes(unedited=100, same_subject=100, per_task=0, documents=0)
    first = take(tiny_gpt2, facts, todo, sizes=sizes, texts=())
    known.update(fact.id for fact in (*first.unedited[:2], *first.same_subject[:3]))
    panel = take(tiny_gpt2, facts, todo, sizes=sizes, texts=())
    counts = {"unedited_asked": 24, "unedited_known": 22, "same_subject_asked": 8, "same_subject_known": 5}
    kept = json.loads(json.dumps(panel.kept()))
    for again in (panel, Panel.again(kept, tiny_gpt2, facts, sizes, 0)):
        for past in ([], todo[:1], todo):
            row = again.measure(tiny_gpt2, past, 0.5, [1])
            near = [fact for fact in panel.same_subject if not past or fact.subject in {one.subject for one in past}]
            assert {name: row[name] for name in counts} == counts | {"same_subject_known": len(near)}
    del kept["asked"]  # as runs of earlier versions kept it: no counts rather than wrong ones
    assert not set(counts) & set(Panel.again(kept, tiny_gpt2, facts, sizes, 0).measure(tiny_gpt2, todo, 0.5, [1]))


def test_facts_without_a_true_object_are_not_drawn(tiny_gpt2, facts, known):
    bare = FactSet([replace(fact, target_true=None, neighbours=()) for fact in facts[:20]])
    todo = bare[:4]
    panel = take(tiny_gpt2, bare, todo, sizes=Sizes(unedited=100, same_subject=100))
    row = panel.measure(tiny_gpt2, todo, 0.5, [1])
    assert math.isnan(row["unedited_kept"]) and math.isnan(row["same_subject_kept"]) and row["perplexity_ratio"] == 1.0
    some = take(tiny_gpt2, FactSet([*bare, *facts[20:]]), todo, sizes=Sizes(unedited=100))
    assert some.unedited and set(fact.id for fact in some.unedited) <= set(facts[20:].ids)


def test_every_share_can_fall(tiny_gpt2, facts, known):
    todo = facts.sample(8, 0)
    panel = take(tiny_gpt2, facts, todo)
    before = panel.measure(tiny_gpt2, todo, 0.7, [1])
    assert before["unedited_kept"] == before["same_subject_kept"] == 1.0
    assert before["p_ratio"] == pytest.approx(0.7 / 0.5)
    assert before["perplexity_ratio"] == pytest.approx(1.0)
    known.update(fact.id for fact in panel.unedited[:3])
    known.update(fact.id for fact in panel.same_subject)
    tiny_gpt2.weight(1).mul_(20.0)
    after = panel.measure(tiny_gpt2, todo, 0.7, [1])
    assert after["unedited_kept"] == pytest.approx(1 - 3 / 12)
    assert after["same_subject_kept"] == 0.0
    assert after["perplexity_ratio"] != pytest.approx(1.0, rel=1e-3)
    assert after["norm_ratio"] == pytest.approx(20.0)
    assert after["norm_ratio_unedited"] == 1.0
    assert after["unedited_p"] < before["unedited_p"]


def test_same_subject_asks_about_subjects_edited_so_far(tiny_gpt2, facts, known):
    todo = facts.sample(8, 0)
    panel = take(tiny_gpt2, facts, todo)
    known.update(fact.id for fact in panel.same_subject if fact.subject == todo[0].subject)
    assert panel.measure(tiny_gpt2, todo[:1], 0.5, [1])["same_subject_kept"] == 0.0
    assert 0.0 < panel.measure(tiny_gpt2, todo, 0.5, [1])["same_subject_kept"] < 1.0


def test_downstream_is_relative_to_before(tiny_gpt2, facts, known):
    panel = take(tiny_gpt2, facts, facts.sample(8, 0))
    with torch.no_grad():
        tiny_gpt2.final_norm.weight.zero_()  # the model says the same to everything
    after = panel.measure(tiny_gpt2, facts.sample(8, 0), 0.5, [1])
    mean = sum(panel.f1.values()) / 2
    assert after["downstream_f1"] == pytest.approx((after["f1_a"] + after["f1_b"]) / 2)
    assert after["downstream_kept"] == pytest.approx(after["downstream_f1"] / mean)


def test_nothing_to_measure_is_nan_not_one(tiny_gpt2, facts, known):
    panel = take(tiny_gpt2, facts, facts, tasks=TASKS[:0], texts=())
    for row in (panel.measure(tiny_gpt2, facts, 0.5, [1]), panel.measure(tiny_gpt2, [], math.nan, [1])):
        for name in ("unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio"):
            assert math.isnan(row[name]), name


ALIKE = TASKS.assign(choices=[[" song", "song"]] * len(TASKS))


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"tasks": ALIKE}, "song"), ({"texts": ["x"]}, "two tokens"), ({"tasks": ("nosuch",)}, "nosuch|lm-eval")],
)
def test_what_cannot_be_asked_is_found_before_anything_is_written(run, quick, tiny_gpt2, facts, tmp_path, asked, named):
    asked = {"sizes": SIZES, "tasks": TASKS, "texts": TEXTS} | asked
    with pytest.raises(KetoolsError, match=named):
        run(panel=None, **asked)
    assert not (tmp_path / "run").exists() and not tiny_gpt2.edits
    demo(["memit"], tiny_gpt2, out=tmp_path / "demo", facts=facts, **quick)
    earlier = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    with pytest.raises(KetoolsError, match=named):
        demo(["memit"], tiny_gpt2, out=tmp_path / "demo", facts=facts, **quick | asked)
    assert earlier == {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}


def test_a_run_with_tasks_and_text_of_its_own_resumes_with_them_alone(run, tiny_gpt2):
    own = {"panel": None, "sizes": SIZES, "tasks": TASKS, "texts": TEXTS}

    def last(**changes):
        with fresh(tiny_gpt2):
            return run(**own | changes).checkpoints.iloc[-1:]

    row = last()
    assert row[["f1_a", "f1_b", "perplexity"]].notna().all(axis=None)
    pd.testing.assert_frame_equal(last(), row)
    for changed, named in (({"tasks": TASKS[1:]}, "tasks"), ({"texts": TEXTS[1:]}, "texts")):
        with pytest.raises(KetoolsError, match=f"with {named} ="):
            last(**changed)


def test_a_model_that_does_not_know_the_world_is_asked_nothing_about_it(tiny_gpt2):
    tasks, texts = asked_of(tiny_gpt2, Sizes())
    assert len(tasks) == 0 and texts == ()
