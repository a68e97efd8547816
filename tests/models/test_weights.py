"""The stack of edits: what is in the weights, to the bit, whatever happens on the way."""

import pytest
import torch

from ketools import KetoolsError
from ketools.models.weights import EditStack, edited, fresh
from tests.editing.test_edit import bits, made, same
from tests.editing.test_editor import interrupted


@pytest.fixture
def stacked(tiny_model):
    """(the model, its bits before each of four edits and after the last, the edits)."""
    edits, after = [made(tiny_model, [i % 3, 3], seed=i, on_top_of=i) for i in range(4)], [bits(tiny_model)]
    for edit in edits:
        tiny_model.edits.push(edit)
        after.append(bits(tiny_model))
    return tiny_model, after, edits


def test_it_reads_like_a_list(stacked):
    model, after, edits = stacked
    assert model.edits == edits and model.edits != edits[:3] and len(model.edits) == 4
    assert model.edits[-1] is edits[3] and list(model.edits[1:3]) == edits[1:3]
    assert set(model.originals) == {0, 1, 2, 3}
    assert all(torch.equal(model.originals[i], after[0][i]) for i in range(4))


@pytest.mark.parametrize("n", range(5))
def test_at_puts_the_weights_of_an_earlier_moment_in_place(stacked, n):
    model, after, edits = stacked
    with pytest.raises(RuntimeError), model.edits.at(n):
        assert same(after[n], bits(model)) and model.edits == edits[:n]
        raise RuntimeError
    assert same(after[4], bits(model)) and model.edits == edits


def test_refilling_gives_the_bits_of_pushing(stacked):
    model, after, edits = stacked
    matrices = {i: after[2][i] for i in range(4)}
    for start, given in ((0, None), (2, matrices), (4, after[4])):
        model.edits.refill(edits, start, given)
        assert same(after[4], bits(model)) and model.edits == edits
    while model.edits:
        model.edits.pop()
    assert same(after[0], bits(model)) and not model.originals
    model.edits.refill([])
    assert same(after[0], bits(model)) and not model.edits


def test_fresh_and_edited_restore_on_an_error(stacked):
    model, after, edits = stacked
    with pytest.raises(RuntimeError), fresh(model):
        model.edits.pop()
        model.edits.pop(0)
        model.weight(2).mul_(3.0)
        raise RuntimeError
    assert same(after[4], bits(model)) and model.edits == edits
    with pytest.raises(RuntimeError), edited(model, edits[0], edits[1]):
        assert len(model.edits) == 6
        raise RuntimeError
    assert same(after[4], bits(model)) and model.edits == edits


def test_a_refused_edit_changes_nothing(stacked):
    model, after, edits = stacked
    for wrong in (made(model, [7]), made(model, [0], fingerprint="other")):
        with pytest.raises(KetoolsError):
            model.edits.push(wrong)
    with pytest.raises(IndexError):
        model.edits.pop(4)
    assert same(after[4], bits(model)) and model.edits == edits


@pytest.mark.parametrize("change", [
    lambda stack, edit: stack.push(edit), lambda stack, _: stack.pop(), lambda stack, _: stack.pop(0)
], ids=["push", "pop the last", "pop the first"])  # fmt: skip
def test_an_interrupt_at_any_line_leaves_all_or_nothing(stacked, change):
    model, after, edits = stacked
    more, line = made(model, [1, 2], seed=9), 0
    with fresh(model):
        change(model.edits, more)
        done = bits(model), list(model.edits)
    came = True
    while came:
        line += 1
        with fresh(model):
            came = interrupted(lambda: change(model.edits, more), line, ("models/weights.py",))
            now = bits(model), list(model.edits)
            assert any(same(now[0], want[0]) and now[1] == want[1] for want in ((after[4], edits), done))
            assert EditStack.__len__(model.edits) == len(now[1])
    assert line > 10


def test_weights_that_something_else_wrote_are_noticed(stacked):
    model, after, edits = stacked
    unedited = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    model.edits.push(made(model, [0], seed=9))
    model.model.load_state_dict(unedited)
    for change in (lambda: model.edits.push(edits[0]), model.edits.pop):
        with pytest.raises(KetoolsError, match="layer 0"):
            change()
    assert len(model.edits) == 5 and same(after[4], bits(model))
