"""Widgets of single lessons: every control drives the data and the picture, from tables that are there already."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ketools import KetoolsError
from ketools.course.lessons import nb08, nb11
from ketools.editing.edit import Edit
from ketools.evaluation.edits import evaluate
from ketools.facts.fact import FactSet
from ketools.plots.style import words


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]


def test_norm_and_loss_of_runs_meet_at_checkpoints():
    norms = pd.DataFrame(
        {"edits": [0, 0, 4, 4], "layer": [0, 1] * 2, "edited": [True, False] * 2, "ratio": [1, 1, 2, 9]}
    )
    points = pd.DataFrame({"edits": [0, 4], "unedited_kept": [1.0, 0.5]})
    frame = nb08.norm_and_loss({"memit": SimpleNamespace(norms=norms, checkpoints=points)})
    assert frame["norm_ratio"].tolist() == [1, 2] and frame["unedited_kept"].tolist() == [1.0, 0.5]
    said = words(nb08.norm_against_loss(frame, "Mode test."))
    assert "2.00x and 50%" in said["finding"] and said["caption"].endswith("Mode test.")


def test_the_packages_norm_is_that_of_the_edited_matrix(tiny_model):
    layer, shape = 1, tiny_model.weight(1).shape
    left, right = (torch.randn(size, 1, generator=torch.Generator().manual_seed(1)) for size in shape)
    want = (tiny_model.weight(layer) + left @ right.T).norm() / tiny_model.weight(layer).norm()
    lab = SimpleNamespace(model=tiny_model)
    assert nb08.package_ratio(lab, [Edit({layer: (left, right)}, {})], layer) == pytest.approx(float(want), rel=1e-4)
    assert not tiny_model.edits


def test_every_control_of_the_fact_browser_drives_the_picture(tiny_model, tiny_facts):
    facts = FactSet(list(tiny_facts)[:3])
    before = evaluate(tiny_model, facts)
    good = {name: 1.0 for name in before if name.endswith("accuracy")}
    now = before.assign(p_new=[0.9, 0.8, 0.7], **good)
    now.loc[1, "neighbourhood_accuracy"] = 0.5
    with nb11.FactBrowser(facts, before, now, context="Mode test.") as view:
        for i, fact in enumerate(facts):
            view.controls["fact"].value = fact.id
            assert view.data.loc["p_new", "now"] == now["p_new"][i] == drawn(view)["data"][1]["y"][0]
            assert fact.target_new in view.sentence() and "Mode test" in view._below.value
        view.controls["review"].value = True
        assert [key for _, key in view.controls["fact"].options] == [facts[1].id] == [view.controls["fact"].value]
        assert view.data.loc["neighbourhood_accuracy", "now"] == 0.5 and view.message == ""
        view.controls["review"].value = False
        assert len(view.controls["fact"].options) == 3


def test_with_nothing_to_look_at_the_browser_says_so(tiny_model, tiny_facts):
    facts = FactSet(list(tiny_facts)[:2])
    frame = evaluate(tiny_model, facts)
    fine = frame.assign(**{name: 1.0 for name in frame if name.endswith("accuracy")})
    with nb11.FactBrowser(facts, frame, fine) as view:
        view.controls["review"].value = True
        assert "no fact to look at" in view.message and len(view.controls["fact"].options) == 2
        view.controls["review"].value = False
        assert view.message == ""
    with pytest.raises(KetoolsError, match="now are of other facts"):
        nb11.FactBrowser(facts, frame, fine[:1])
