"""Names of methods: what readers know them by, and what a run is called by what it changed."""

from dataclasses import replace

import pytest

from ketools.editing.methods import ALL, ALPHAEDIT, EMMET, ENCORE, MEMIT, MPES, LeastSquares, NullSpace
from ketools.editing.postprocess import Rect
from ketools.runs.records import listed, plain, title, variant

MORE = [
    (replace(MEMIT, stopping=MPES()), "memit+mpes", "MEMIT + MPES"),
    (replace(EMMET, stopping=MPES(3)), "emmet+mpes", "EMMET + MPES"),
    (replace(MEMIT, update=LeastSquares(norm=True)), "memit+norm", "MEMIT + norm constraint"),
    (replace(MEMIT, stopping=MPES(), update=LeastSquares(True)), "memit+mpes+past", "MEMIT + MPES + past keys"),
    (replace(ENCORE, update=LeastSquares(norm=True)), "encore+without past", "encore+without past"),
    (replace(ALPHAEDIT, update=NullSpace(past_keys=False)), "alphaedit+without past", "alphaedit+without past"),
    (replace(MEMIT, post=Rect()), "memit+Rect", "memit+Rect"),
    (replace(MEMIT, name="mine"), "mine", "mine"),
]


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_a_known_method_is_itself(method):
    assert variant(plain(method)) == method.name
    assert title(method.name) != method.name, "every known method has a name for readers"


@pytest.mark.parametrize(("method", "name", "shown"), MORE, ids=[name for _, name, _ in MORE])
def test_a_run_is_called_by_what_it_changed(method, name, shown):
    assert variant(plain(method)) == name
    assert title(name) == shown


def test_unknown_names_stay():
    assert title("<b>x") == "<b>x" and variant({}) == "unknown"
    assert listed(["A"]) == "A" and listed(["A", "B", "C"]) == "A, B and C"
