"""A guess is scored; without one nothing is, and all is explained."""

import sys

import pytest
from ipywidgets import RadioButtons

from ketools import KetoolsError
from ketools.course.claims import predict


def ask(guess=None):
    return predict("What do neighbours do?", keep="they keep it", move="they move", guess=guess)


def test_a_right_guess_is_said_so_and_explains_nothing_else():
    said = ask("keep").reveal("keep", move="other keys").text
    assert "You predicted it." in said and "other keys" not in said


def test_a_wrong_guess_gets_its_own_explanation():
    said = ask("move").reveal("keep", move="other keys").text
    assert "You said `move`" in said and "other keys" in said


def test_without_a_guess_the_wrong_options_are_explained():
    said = ask().reveal("keep", move="other keys")
    assert "Why not `move`? other keys" in said._repr_markdown_() and "You" not in said.text
    assert 'guess="keep"' in ask()._repr_markdown_()


def test_a_click_on_a_radio_button_is_the_guess():
    question, made = ask(), []
    RadioButtons.on_widget_constructed(made.append)
    try:
        shown = question._repr_mimebundle_()
    finally:
        RadioButtons.on_widget_constructed(None)
    assert "application/vnd.jupyter.widget-view+json" in shown and shown["text/markdown"] == shown["text/plain"]
    (buttons,) = (widget for widget in made if isinstance(widget, RadioButtons))
    assert buttons.value is None and [key for _, key in buttons.options] == ["keep", "move"]
    buttons.value = "move"
    assert "You said `move`" in question.reveal("keep").text


def test_without_widgets_the_options_are_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shown = ask()._repr_mimebundle_()
    assert list(shown) == ["text/markdown", "text/plain"] and shown["text/plain"] == repr(ask())


@pytest.mark.parametrize("use", [lambda: ask("both"), lambda: ask().reveal("both"), lambda: ask().reveal("keep", x="")])
def test_a_key_that_is_no_option_is_refused(use):
    with pytest.raises(KetoolsError, match="choose one of 'keep', 'move'"):
        use()


def test_a_question_needs_two_options():
    with pytest.raises(KetoolsError, match="at least two"):
        predict("Why?", because="so")
