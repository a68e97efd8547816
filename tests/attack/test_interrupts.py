"""An interrupt at every line that an edit runs through: it is either done, or nothing of it is."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import ketools
from ketools.editing.editor import Editor
from tests.small_world import small_facts

CHEAP = {"steps": 1, "prefix_count": 1, "prefix_tokens": 2, "layers": (1, 2)}
PACKAGE = str(Path(ketools.__file__).parent)


class Lines:
    """Within the block, KeyboardInterrupt before the line `at` (file, number) is run for the first time; `seen`: all lines.

    Python's contextlib counts where the package calls it: blocks are entered and left there.
    """

    def __init__(self, at=None):
        self.at, self.seen = at, {}

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _call(self, frame, _event, _argument):
        name, caller = frame.f_code.co_filename, frame.f_back
        if name.endswith("contextlib.py") and caller is not None:
            name = caller.f_code.co_filename
        return self._line if name.startswith(PACKAGE) else None

    def _line(self, frame, event, _argument):
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            self.seen.setdefault(place)
            if place == self.at:
                self.at = None
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


@pytest.fixture
def editors(tiny_gpt2, statistics):
    """Makes an editor of a method that has edited a fact, on the same model each time."""

    def make(method):
        editor = Editor(
            tiny_gpt2, method, statistics=statistics, seed=1, **CHEAP | ({"ft_steps": 1} if method == "ft" else {})
        )
        editor.apply(small_facts()[:1])
        return editor

    return make


def state_of(editor):
    """What has to agree: weights, edits in them, history, blocks of past keys (or moments)."""
    model = editor.model
    return {
        "weights": [model.weight(i).clone() for i in range(model.anatomy.n_layer)],
        "edits": [edit.record["facts"] for edit in model.edits],
        "history": [edit.record["facts"] for edit in editor.history],
        "past": {i: [block.clone() for block in blocks] for i, blocks in editor.state.past.items()},
        "originals": sorted(model.originals),
    }


def same(a, b):
    """Whether two states are the same to the bit."""
    return (
        all(map(torch.equal, a["weights"], b["weights"]))
        and a["edits"] == b["edits"]
        and a["history"] == b["history"]
        and a["originals"] == b["originals"]
        and a["past"].keys() == b["past"].keys()
        and all(
            len(a["past"][i]) == len(b["past"][i]) and all(map(torch.equal, a["past"][i], b["past"][i]))
            for i in a["past"]
        )
    )


def sweep(editor, step, back, share):
    """Interrupt `step` at each line (`share`: at every so manieth); `back` undoes what was done. Returns the first that fails."""
    before = state_of(editor)
    with Lines() as lines:
        step()
    after = state_of(editor)
    back()
    assert same(before, state_of(editor))
    for place in list(lines.seen)[::share]:
        with Lines(place) as lines, suppress(KeyboardInterrupt):
            step()
            assert lines.at is not None, f"{place}: the interrupt was swallowed"  # else the line is not run any more
        now = state_of(editor)
        what = f"{Path(place[0]).name}:{place[1]}"
        if same(now, before):
            continue
        if not same(now, after):
            return what
        back()
        if not same(state_of(editor), before):
            return f"{what}, done and taken back"
    step()
    assert all(map(torch.equal, state_of(editor)["weights"], after["weights"])), (
        "the same edit gives other bits afterwards"
    )
    return None


@pytest.mark.parametrize("method", ["encore", "memit", "ultraedit", "ft", "rome"])
@pytest.mark.parametrize("share", [pytest.param(5, id="a fifth"), pytest.param(1, id="all", marks=pytest.mark.attack)])
def test_an_interrupted_edit_is_done_or_not(editors, method, share):
    editor = editors(method)
    facts = small_facts()[4:5]
    assert sweep(editor, lambda: editor.apply(facts), editor.undo, share) is None


@pytest.mark.parametrize("method", ["encore", "ultraedit"])
def test_an_interrupted_undo_is_done_or_not(editors, method):
    editor = editors(method)
    facts = small_facts()[4:5]
    editor.apply(facts)
    assert sweep(editor, editor.undo, lambda: editor.apply(facts), 1) is None
