"""Widgets of single lessons: every control drives the data and the picture, from tables that are there already."""

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.lessons import nb08, nb11
from ketools.course.lessons.sequence import Sequence
from ketools.editing.edit import Edit
from ketools.evaluation.edits import evaluate
from ketools.facts.fact import FactSet
from ketools.models.weights import fresh
from ketools.norms.spectra import singular_values


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]


def test_singular_values_on_the_way_are_those_of_the_sums(tiny_model, lab_of):
    lab, layer = lab_of(tiny_model), 1
    shape = tiny_model.weight(layer).shape
    edits = [Edit({layer: nb_factors(shape, seed)}, {}) for seed in (1, 2)]
    table = pd.DataFrame({"edits": [0, 0, 3, 3, 6, 6], "layer": [0, 1] * 3, "ratio": 1.0})
    before = tiny_model.weight(layer).clone()
    frame = nb08.on_the_way(lab, {"memit": Sequence(tuple(edits), table)}, layer)
    assert (tiny_model.weight(layer) == before).all() and not tiny_model.edits
    with fresh(tiny_model):
        for count, edit in zip((0, 3, 6), (None, *edits)):
            if edit is not None:
                edit.apply_to(tiny_model)
            mine = frame[frame["edits"] == count]["value"].to_numpy()
            np.testing.assert_allclose(mine, singular_values(tiny_model.weight(layer)).numpy())
    tops = frame[frame["index"] == 1].set_index("edits")["value"]
    assert tops.nunique() == 3


def nb_factors(shape, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, 1, generator=generator) for size in shape)


@pytest.fixture
def lab_of():
    from types import SimpleNamespace

    return lambda model: SimpleNamespace(model=model)


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
