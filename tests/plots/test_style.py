"""Styles that colour-blind readers can tell apart, and the words and numbers of a figure."""

import math
import re
from html import unescape

import pytest

from ketools import plots
from ketools.evaluation.metrics import look_up
from ketools.plots import style
from ketools.plots.style import OKABE_ITO, described, numbers, styles, undressed, words
from tests.plots.sample import records


def draw(name, methods=None):
    table = "norms" if name == "norm_growth" else "checkpoints"
    return getattr(plots, name)(plots.stack(records(methods) if methods else records(), table))


def test_methods_differ_by_colour_and_by_dash_and_symbol():
    for methods in (list(records()), [*records(), "sequential-memit"], [f"m{i}" for i in range(6)]):
        looks = list(styles(methods).values())
        assert {look.colour for look in looks} <= set(OKABE_ITO.values()) - {"#000000", "#F0E442"}
        for kind in ("colour", "dash", "symbol"):
            assert len({getattr(look, kind) for look in looks}) == len(methods), kind
    beside = list(styles(["mine", "memit+mpes", "memit+norm", "other"]).values())
    assert len(set(beside)) == 4, "an unknown method does not take the style of a known one"
    many = list(styles(f"m{i}" for i in range(18)).values())
    assert len({(look.colour, look.dash) for look in many}) == 18


def test_a_method_looks_the_same_alone_and_in_company():
    alone, company = draw("unedited_kept", ["encore"]).data[0], draw("unedited_kept").data[2]
    assert alone.name == company.name == "ENCORE"
    assert alone.line == company.line and alone.marker == company.marker


def test_of_many_methods_the_two_at_the_ends_are_named():
    ends = {f"method-{i}": i / 10 for i in (3, 1, 9, 2, 5)}
    many = style.OUTCOMES["unedited_kept"].sentence(ends, "100")
    assert {m for m in ends if f"{m} " in many.split(": ")[1]} == {"method-1", "method-9"}
    few = style.OUTCOMES["unedited_kept"].sentence(dict(list(ends.items())[:4]), "100")
    assert re.findall(r"(\d+)%", few) == ["30", "10", "90", "20"]
    broken = style.OUTCOMES["norm_ratio"].sentence({**ends, "method-1": math.inf}, "100")
    assert all(m in broken for m in ends), "an infinite value has no place in a range"


def test_undressed_leaves_the_figure_as_it_was():
    fig = draw("edit_scores")
    bare = undressed(fig)
    assert bare.layout.title.text is None and not any(note.name == "caption" for note in bare.layout.annotations)
    assert len(bare.layout.annotations) == 3, "panel titles stay"
    assert fig.layout.title.text and len(fig.layout.annotations) == 4


def test_the_table_below_a_figure_explains_the_metrics_it_knows():
    fig = draw("edit_scores")
    shown = described(words(fig)["description"], numbers(fig))
    (said,) = re.findall(r'<th><abbr title="([^"]*)">efficacy \(ES\): MEMIT</abbr></th>', shown)
    assert unescape(said) == look_up("ES", "evaluate")[0].text() and "&gt;" in said
    assert '<abbr title="edits (shared): edits so far' in shown
    assert "<th>MEMIT</th>" in described("", numbers(draw("unedited_kept"))), "a method is no metric"


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb", "a⏎b"), (" ", "␣"), ("<b>$", "&lt;b&gt;&#36;"), ("x" * 70, "x" * 59 + "…")]
)
def test_text_from_outside_is_plain(text, shown):
    assert style.plain(text) == shown
