"""The trace explorer shows the rows of the trace that its controls name."""

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.widgets import TraceExplorer
from ketools.plots.style import words
from ketools.probing.recall import answers
from ketools.probing.tracing import ROLES, average, trace

KINDS = ("hidden", "mlp")


def made_up_trace(tokens=("Ada", " Lorn", " was", " born", " in"), facts=("a", "b"), layers=4):
    """A trace in the shape of probing.tracing.trace: the subject's last token matters in the middle."""
    roles = ["first of the subject", "last of the subject", "first after the subject", "further", "last token"]
    rows = [
        {
            "fact": fact, "kind": kind, "layer": layer, "position": i, "token": token, "role": roles[i],
            "effect": 0.05 * n + (0.4 if i == 1 and layer == 2 else 0.01 * i), "p_clean": 0.8, "p_corrupted": 0.1,
        }
        for n, fact in enumerate(facts) for kind in KINDS for i, token in enumerate(tokens) for layer in range(layers)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(p=lambda frame: frame["effect"] + 0.1)
    return frame.assign(role=pd.Categorical(frame["role"], ROLES, ordered=True).remove_unused_categories())


def heat(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


def test_every_control_chooses_rows():
    frame = made_up_trace()
    view = TraceExplorer(frame, context="Mode test.")
    pd.testing.assert_frame_equal(view.data, frame[frame["fact"] == "a"])
    assert len(heat(view)) == 2, "a panel a kind"
    view.controls["fact"].value = "b"
    view.controls["kind"].value = "mlp"
    view.controls["layers"].value = (1, 2)
    wanted = frame[(frame["fact"] == "b") & (frame["kind"] == "mlp") & frame["layer"].isin((1, 2))]
    pd.testing.assert_frame_equal(view.data, wanted)
    (drawn,) = heat(view)
    assert drawn["z"] == wanted.pivot(index="position", columns="layer", values="effect").to_numpy().tolist()
    assert [row[0] for row in drawn["customdata"]] == ["Ada*", "Lorn*", "was", "born", "in"], "hover names the token"
    view.controls["fact"].value = ""
    means = average(view.data).set_index(["role", "layer"])["mean"]
    assert heat(view)[0]["z"][1][1] == pytest.approx(means["last of the subject", 2])
    assert view.message == ""


def test_sentence_and_figure_follow():
    view = TraceExplorer(made_up_trace(), context="Mode test, seed 0.")
    assert "behind layer 2" in view.sentence() and "behind layer 2" in view._sentence.value
    assert "Mode test, seed 0." in words(view.figure())["caption"]
    view.controls["layers"].value = (0, 1)
    assert "layer 2" not in view.sentence()


def test_a_real_trace(tiny_model, tiny_facts):
    asked = answers(tiny_model, [fact.text for fact in tiny_facts], [fact.target_true for fact in tiny_facts])
    known = [fact for fact, ok in zip(tiny_facts, asked["right"]) if ok]
    if not known:
        pytest.skip("the tiny model knows none of the facts")
    view = TraceExplorer(trace(tiny_model, known, ["hidden"]))
    assert view.data["effect"].max() > 0 and view.frame["fact"].nunique() == len(known)


def test_tokens_are_text_not_markup_and_may_repeat():
    frame = made_up_trace(tokens=("<b>Ada", " <img src=x>", " the", " the", "$x$"))
    view = TraceExplorer(frame)
    drawn = str(view._picture.outputs[0]["data"]["application/vnd.plotly.v1+json"])
    assert "<b>Ada" not in drawn and "<img" not in drawn + view._sentence.value + view._below.value
    assert len(heat(view)[0]["y"]) == 5


def test_refusals():
    frame = made_up_trace()
    with pytest.raises(KetoolsError, match="lacks effect"):
        TraceExplorer(frame.drop(columns="effect"))
    with pytest.raises(KetoolsError, match="no rows"):
        TraceExplorer(frame.iloc[:0])
    with pytest.raises(KetoolsError, match="several positions"):
        TraceExplorer(frame.assign(position=-1))
