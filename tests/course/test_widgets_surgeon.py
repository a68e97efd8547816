"""The fact surgeon: what it shows is what the model says, and no edit is left in the weights by accident."""

import base64

import numpy as np
import pandas as pd
import pytest
import torch

import ketools.course.widgets.surgeon as module
from ketools import KetoolsError
from ketools.course.widgets import FactSurgeon
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.norms.weights import norms
from ketools.plots.style import words
from ketools.probing.recall import answers, surroundings, top_tokens
from tests.small_world import small_facts

QUICK = {"steps": 8, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}
PICTURE = "application/vnd.plotly.v1+json"


@pytest.fixture
def facts():
    return small_facts()


@pytest.fixture
def surgeon(tiny_gpt2, facts):
    texts = [f"{fact.text} {fact.target_true}." for fact in facts]
    statistics = Statistics.compute(tiny_gpt2, texts, range(4), 2000)
    return FactSurgeon(tiny_gpt2, facts[:6], world=facts, statistics=statistics, **QUICK)


@pytest.fixture
def bits(tiny_gpt2):
    """A function that says whether the weights are those of the unedited model."""
    before = {i: tiny_gpt2.weight(i).clone() for i in range(4)}
    return lambda: all(torch.equal(tiny_gpt2.weight(i), was) for i, was in before.items()) and not tiny_gpt2.edits


def shown(view):
    """What the page has: the sentence, the picture's data, the message."""
    (output,) = view._picture.outputs
    data = output["data"][PICTURE]["data"]
    for trace in data:
        if isinstance(trace["y"], dict):  # numpy arrays travel in base64
            trace["y"] = np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"]).tolist()
    return view._sentence.value, data, view._message.value


def test_it_starts_with_what_the_model_says_now(surgeon, facts, tiny_gpt2, bits):
    fact = facts[0]
    others = [f for f in facts.by_subject()[fact.subject] if f.id != fact.id]
    now = surroundings(tiny_gpt2, fact, others)
    pd.testing.assert_series_equal(surgeon.data["p_new_before"], now["p_new"], check_names=False)
    assert set(surgeon.data["kind"]) == {"prompt", "paraphrase", "neighbour", "same subject"}
    assert surgeon.edit is None and bits() and surgeon.controls["undo"].disabled
    assert shown(surgeon)[1][1]["y"] == pytest.approx(now.groupby("kind", sort=False)["p_new"].mean().tolist())


def test_a_click_edits_and_undo_gives_the_bits_back(surgeon, facts, tiny_gpt2, bits):
    was = norms(tiny_gpt2)
    surgeon.controls["method"].value = "encore"
    surgeon.controls["apply"].click()
    assert surgeon.message == "" and tiny_gpt2.edits == [surgeon.edit] and surgeon.edit.record["method"] == "encore"
    asked = answers(tiny_gpt2, surgeon.data["prompt"], surgeon.data["new"])["probability"]
    pd.testing.assert_series_equal(surgeon.data["p_new_after"], asked, check_names=False)
    trial = surgeon.trials.iloc[0]
    assert trial["norm_ratio"] == max(norms(tiny_gpt2)[i] / was[i] for i in (1, 2))
    assert trial["p_after"] == asked[0] and trial["p_before"] == surgeon.data["p_new_before"][0]
    sentence, data, _ = shown(surgeon)
    assert data[1]["y"][0] == pytest.approx(asked[0]) and "norm of the edited matrices" in sentence
    assert surgeon.sentence() in sentence.replace("&quot;", '"').replace("&#x27;", "'")
    surgeon.controls["undo"].click()
    assert bits() and surgeon.edit is None and "p_new_after" not in surgeon.data
    assert surgeon.controls["undo"].disabled and len(surgeon.trials) == 1


def test_the_same_edit_as_the_editor_makes(surgeon, facts, tiny_gpt2):
    edit = surgeon.apply()
    ours = {i: tiny_gpt2.weight(i).clone() for i in (1, 2)}
    surgeon.undo()
    Editor(tiny_gpt2, "memit", seed=0, statistics=surgeon._editor["statistics"], **QUICK).apply([facts[0]])
    assert all(torch.equal(tiny_gpt2.weight(i), ours[i]) for i in ours) and edit.norms()


def test_one_edit_at_a_time_and_every_trial_is_kept(surgeon, facts, tiny_gpt2, bits):
    surgeon.apply()
    surgeon.controls["fact"].value = 3
    assert "the edit in the weights (MEMIT" in surgeon.message and surgeon.shown.fact == facts[0]
    surgeon.controls["method"].value = "alphaedit"
    surgeon.apply()
    assert len(tiny_gpt2.edits) == 1 and surgeon.shown.fact == facts[3]
    assert list(surgeon.trials["method"]) == ["memit", "alphaedit"]
    surgeon.undo()
    assert bits()


def test_every_text_field_changes_the_fact(surgeon, facts):
    fields = surgeon.controls
    fields["new"].value = "Sall"
    assert surgeon.shown.fact.id == facts[0].id and surgeon.shown.fact.target_new == "Sall", (
        "the chosen fact, another target"
    )
    assert len(surgeon.data) > 1
    fields["subject"].value = "Bo Tarn"
    assert surgeon.shown.fact.id == "typed" and surgeon.shown.fact.text.startswith("Bo Tarn")
    fields["prompt"].value = "The mother tongue of Bo Tarn is"
    assert surgeon.shown.fact.prompt == "The mother tongue of {} is"
    fields["old"].value = ""
    assert surgeon.shown.fact.target_true == answers_first(surgeon), "what the model says now"
    fields["fact"].value = -1
    assert fields["subject"].value == "Bo Tarn", "a fact of one's own leaves the fields as they are"
    surgeon.apply()
    assert surgeon.shown.after["p_new"].iloc[0] > surgeon.shown.before["p_new"].iloc[0]


def answers_first(surgeon):
    words = [token.strip() for token in top_tokens(surgeon.model, surgeon.shown.fact.text, 20)["token"]]
    return next(word for word in words if word and word.isprintable() and word != surgeon.shown.fact.target_new)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("prompt", "", "'prompt' is empty"),
        ("prompt", "was born in", '"{}" 0 times'),
        ("prompt", "{} and {} were born in", '"{}" 2 times'),
        ("subject", "   ", "'subject' is empty"),
        ("new", "", "'target_new' is empty"),
        ("new", "tower " * 40, "more than 32"),
        ("prompt", "{} " + "I sang. " * 200, "context window"),
        ("new", None, "equals target_true"),
    ],
)
@pytest.mark.parametrize("edited", [False, True])
def test_bad_input_is_one_message_and_changes_nothing(surgeon, tiny_gpt2, bits, field, text, message, edited):
    if edited:
        surgeon.apply()
    weights = {i: tiny_gpt2.weight(i).clone() for i in range(4)}
    edits, data = list(tiny_gpt2.edits), surgeon.data
    surgeon.controls[field].value = surgeon.controls["old"].value if text is None else text
    surgeon.controls["apply"].click()
    assert message in surgeon.message and 'role="alert"' in shown(surgeon)[2]
    assert tiny_gpt2.edits == edits and all(torch.equal(tiny_gpt2.weight(i), w) for i, w in weights.items())
    if edited:
        pd.testing.assert_frame_equal(surgeon.data, data)
    with pytest.raises(KetoolsError):
        surgeon.apply()
    assert not surgeon.controls["apply"].disabled
    surgeon.close()
    assert bits()


def test_what_was_typed_is_text_not_markup(surgeon):
    evil = "<img src=x onerror=alert(1)>"
    surgeon.controls["new"].value = evil
    surgeon.controls["prompt"].value = f"{evil} {{}} is"
    for _ in range(2):
        sentence, data, message = shown(surgeon)
        page = sentence + message + surgeon._below.value + str(data) + str(surgeon._picture.outputs)
        assert "<img" not in page.replace(str(surgeon._picture.outputs[0]["data"]["text/plain"]), "")
        surgeon.apply()
    surgeon.controls["prompt"].value = evil
    surgeon.controls["apply"].click()
    assert "&lt;img" in shown(surgeon)[2] and "<img" not in shown(surgeon)[2]


def test_an_error_behind_the_edit_takes_it_out_again(surgeon, facts, bits, monkeypatch, tiny_gpt2):
    def broken(*_):
        raise RuntimeError("no picture")

    with monkeypatch.context() as patch:
        patch.setattr(module, "before_after", broken)
        with pytest.raises(RuntimeError, match="no picture"):
            surgeon.apply()
    assert bits() and surgeon.edit is None and "stopped by RuntimeError" in surgeon.message
    surgeon.apply()
    first, weights = surgeon.edit, {i: tiny_gpt2.weight(i).clone() for i in range(4)}
    with monkeypatch.context() as patch:
        patch.setattr(Editor, "apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply()
    assert surgeon.edit is first and all(torch.equal(tiny_gpt2.weight(i), w) for i, w in weights.items())


def test_leaving_closing_and_running_the_cell_again_take_the_edit_out(surgeon, facts, tiny_gpt2, bits):
    with surgeon:
        surgeon.apply()
        assert not bits()
    assert bits()
    statistics = surgeon._editor["statistics"]
    first = FactSurgeon(tiny_gpt2, facts[:2], statistics=statistics, **QUICK)
    first.apply()
    second = FactSurgeon(tiny_gpt2, facts[:2], statistics=statistics, **QUICK)
    assert bits() and first.edit is None
    second.apply()
    on_top = Editor(tiny_gpt2, "memit", statistics=statistics, **QUICK).apply([facts[4]])
    with pytest.raises(KetoolsError, match="on top of this one"):
        second.undo()
    assert "on top of this one" in second.message
    second.close()
    assert tiny_gpt2.edits == [on_top]


def test_static_figure_and_words(surgeon):
    assert surgeon.sentence().startswith("The old answer") or surgeon.sentence().startswith("The new answer")
    assert words(surgeon.figure())["description"] and "tiny" not in repr(surgeon)
    surgeon.apply()
    assert "memit" in words(surgeon.figure())["caption"].lower()
    bundle = surgeon._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and bundle["text/plain"] == repr(surgeon)


def test_every_control_has_its_class(surgeon):
    for name, control in surgeon.controls.items():
        assert {"ketools-control", f"ketools-surgeon-{name}"} <= set(control._dom_classes)


def test_refusals(tiny_gpt2, facts):
    with pytest.raises(KetoolsError, match="at least one fact"):
        FactSurgeon(tiny_gpt2, facts[:0])
    with pytest.raises(KetoolsError, match="no method named 'mimit'"):
        FactSurgeon(tiny_gpt2, facts[:2], methods=["mimit"])
