"""Factors and keys that stay in their files: the same numbers, read when asked for, and errors that name the file."""

import re
from pathlib import Path

import pytest
import torch

from ketools import KetoolsError
from ketools.editing.covariance import Statistics
from ketools.editing.edit import Blocks, Edit, StoredBlock
from ketools.editing.editor import Editor, SequentialState
from ketools.models.weights import edited
from tests.editing.test_edit import made
from tests.small_world import small_facts


def mapped(path: Path) -> bool:
    return any(line.rstrip().endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def pair(tiny_model, tmp_path):
    """(edit, the same with its factors in a file, the file)."""
    edit = made(tiny_model, (0, 1))
    path = edit.save(tmp_path / "edit.safetensors")
    return edit, edit.stored(path), path


def test_the_same_numbers(pair, tiny_model):
    edit, stored, path = pair
    assert stored.layers.keys() == edit.layers.keys() and stored.record is edit.record and 7 not in stored.layers
    for i, factors in edit.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, stored.layers[i], strict=True))
    assert stored.ranks == edit.ranks and stored.norms() == edit.norms() and repr(stored) == repr(edit)
    with edited(tiny_model, edit):
        wanted = tiny_model.weight(0).clone()
    with edited(tiny_model, stored):
        assert torch.equal(tiny_model.weight(0), wanted)
    again = Edit.load(stored.save(path.with_name("again")))
    assert all(torch.equal(a, b) for i in (0, 1) for a, b in zip(again.layers[i], edit.layers[i]))
    with pytest.raises(KeyError):
        stored.layers[7]


def test_a_dense_edit_in_a_file(tmp_path):
    dense = Edit({0: (torch.eye(3), torch.randn(5, 3))})
    stored = dense.stored(dense.save(tmp_path / "dense"))
    assert torch.equal(stored.delta(0), dense.delta(0)) and stored.dense


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="mappings are read from Linux")
def test_nothing_stays_in_memory(pair, tmp_path):
    _, stored, path = pair
    state = SequentialState("x", past={0: [torch.randn(4, 2)]})
    state.leave_last(state.save(tmp_path / "state"))
    held = (stored.layers[0], state.past[0][0])
    assert not mapped(path) and not mapped(tmp_path / "state"), f"copies, not views of a mapped file: {held}"
    assert isinstance(state.past[0].data[0], StoredBlock)
    assert stored.layers[0][0] is not stored.layers[0][0], "what is read is not kept"


@pytest.mark.parametrize("damage", ["gone", "truncated", "another edit"])
def test_errors_name_the_file_and_weights_stay(pair, tiny_model, damage):
    _, stored, path = pair
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        Edit({5: (torch.zeros(3, 1), torch.zeros(4, 1))}).save(path)
    before = tiny_model.weight(0).clone()
    with pytest.raises(KetoolsError, match=re.escape(str(path))):
        stored.apply_to(tiny_model)
    assert torch.equal(tiny_model.weight(0), before) and not tiny_model.edits


def test_blocks_are_read_when_asked_for(tmp_path):
    one, two, three = (torch.randn(6, n) for n in (2, 1, 3))
    state = SequentialState("x", past={3: [one]})
    state.leave_last(state.save(tmp_path / "1"))
    assert isinstance(state.past[3], Blocks) and torch.equal(state.past[3][0], one)
    state.past[3].append(two)
    state.past[3].append(three)
    assert torch.equal(torch.cat(list(state.past[3]), 1), torch.cat([one, two, three], 1)) and len(state.past[3]) == 3
    assert [b.shape[1] for b in state.past[3][1:]] == [1, 3]
    assert all(
        torch.equal(a, b) for a, b in zip(SequentialState.load(state.save(tmp_path / "all")).past[3], state.past[3])
    )
    state.past[3] = Blocks([StoredBlock(tmp_path / "1", "past.3.0"), StoredBlock(tmp_path / "1", "past.3.7")])
    with pytest.raises(KetoolsError, match=r"no state in .*1: it holds no past\.3\.7"):
        list(state.past[3])
    (tmp_path / "1").unlink()
    with pytest.raises(KetoolsError, match="1: there is no such file"):
        state.past[3][0]


def test_undo_and_go_on_with_keys_in_files(tiny_gpt2, tmp_path):
    texts = [f"{fact.text} {fact.target_true}." for fact in small_facts()]
    statistics = Statistics.compute(tiny_gpt2, texts, (1, 2), 2000)

    def fresh():
        return Editor(tiny_gpt2, "encore", statistics=statistics, prefixes=("It",), steps=2, layers=(1, 2))

    facts, weight = small_facts(), tiny_gpt2.weight(2).clone()
    plain = fresh()
    for part in (facts[:2], facts[2:4], facts[4:6]):
        plain.apply(part)
    wanted = tiny_gpt2.weight(2).clone()
    for _ in range(3):
        plain.undo()
    left = fresh()
    for number, part in enumerate((facts[:2], facts[2:4])):
        edit = left.apply(part)
        last = SequentialState("x", past={i: blocks[-1:] for i, blocks in left.state.past.items()})
        left.state.leave_last(last.save(tmp_path / f"state{number}"))
        left.history[-1] = edit.stored(edit.save(tmp_path / f"edit{number}"))
        tiny_gpt2.edits.replace(-1, left.history[-1])
    left.apply(facts[4:6])
    left.undo()
    left.apply(facts[4:6])
    assert torch.equal(tiny_gpt2.weight(2), wanted)
    for _ in range(3):  # the last of them from the factors and the original bits
        left.undo()
    assert torch.equal(tiny_gpt2.weight(2), weight) and all(len(blocks) == 0 for blocks in left.state.past.values())
