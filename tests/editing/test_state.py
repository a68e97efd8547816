"""A state comes back as it was, to the bit, and nothing else passes for one."""

import copy
import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ketools import KetoolsError, load
from ketools.editing.covariance import Statistics
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor, SequentialState
from ketools.io import write_tensors
from tests.conftest import SENTENCES


def filled():
    state = SequentialState.fresh("f" * 64, 11)
    state.prefixes = ("The tower", "Because ünder. ")
    state.past = {i: [torch.randn(6, n).T.contiguous().T for n in (2, 1, 12)] for i in (1, 11)}
    torch.randn(5, generator=state.generator)
    return state


@pytest.mark.parametrize("prefixes", [None, (), ("The tower", "Because ünder. ")])
def test_everything_comes_back(tmp_path, prefixes):
    state = filled()
    state.prefixes = prefixes
    got = SequentialState.load(state.save(tmp_path / "a"))
    assert (got.fingerprint, got.seed, got.prefixes) == ("f" * 64, 11, prefixes)
    assert set(got.past) == {1, 11}
    for i, blocks in state.past.items():
        assert all(torch.equal(a, b) for a, b in zip(got.past[i], blocks, strict=True))
    assert torch.equal(torch.rand(9, generator=got.generator), torch.rand(9, generator=state.generator))
    fresh = SequentialState.load(SequentialState.fresh("a", 2).save(tmp_path / "b"))
    assert fresh.past == {} and fresh.prefixes is None


def test_files_grow_by_the_keys_of_the_edits(tmp_path):
    state, sizes = SequentialState.fresh("f" * 64, 0), []
    for n in range(3):
        for i in (4, 5):
            state.past.setdefault(i, []).append(torch.zeros(64, 100))
        sizes.append(state.save(tmp_path / str(n)).stat().st_size)
    grown = [b - a for a, b in pairwise(sizes)]
    assert all(4 * 64 * 100 * 2 <= more <= 4 * 64 * 100 * 2 + 512 for more in grown)


def test_files_that_are_no_states(tmp_path):
    good = filled().save(tmp_path / "good").read_bytes()
    about = {"format": "ketools-state-1"}
    half = '{"fingerprint": "f", "seed": 0, "prefixes": null, "layers": [3]}'
    cases = {
        "cut": (good[:-9], "truncated"),
        "pickle": (pickle.dumps({}), "run code"),
        "edit": (Edit({}, {}).save(tmp_path / "e").read_bytes(), "ketools-edit-1"),
        "bare": (write_tensors(tmp_path / "e", {}, about).read_bytes(), "state"),
        "no json": (write_tensors(tmp_path / "e", {}, about | {"state": "{"}).read_bytes(), "no state in"),
        "no generator": (write_tensors(tmp_path / "e", {}, about | {"state": half}).read_bytes(), "generator"),
        "another generator": (
            write_tensors(tmp_path / "e", {"generator": torch.zeros(3)}, about | {"state": half}).read_bytes(),
            "no state in",
        ),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KetoolsError, match=message) as caught:
            SequentialState.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "SequentialState.save" in str(caught.value)
    with pytest.raises(KetoolsError, match="no such file"):
        SequentialState.load(tmp_path / "missing")


def test_a_sequence_goes_on_from_its_files_to_the_same_bits(tiny_model, tiny_facts, tmp_path):
    # Everything from files, on a model that has seen no edit: what another process would do.
    got = Statistics.compute(tiny_model, [f"{a} {b}" for a in SENTENCES for b in SENTENCES], [0, 1], max_tokens=10_000)
    eye = 1e-3 * torch.eye(tiny_model.anatomy.d_mlp, dtype=torch.float64)
    statistics = replace(got, layers={i: c + c.trace() / len(c) * eye for i, c in got.layers.items()})
    other = load(copy.deepcopy(tiny_model.model), tokenizer=tiny_model.tokenizer)
    assert other.fingerprint == tiny_model.fingerprint
    how = {"statistics": statistics, "layers": [0, 1], "lambda_p": 0.05, "lambda_n": 0.01}
    it = Editor(tiny_model, "encore", seed=3, **how)
    edits = [it.apply(tiny_facts[:2]), it.apply(tiny_facts[2:4])]
    files = [edit.save(tmp_path / f"edit{i}") for i, edit in enumerate(edits)]
    state = it.state.save(tmp_path / "state")
    it.apply(tiny_facts[4:])

    for file in files:
        Edit.load(file, other).apply_to(other)
    again = Editor(other, "encore", SequentialState.load(state), **how)
    assert again.prefixes == it.prefixes and {len(blocks) for blocks in again.state.past.values()} == {2}
    again.apply(tiny_facts[4:])
    for a, b in zip(tiny_model.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(again.state.generator.get_state(), it.state.generator.get_state())
    for i in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(again.state.past[i], it.state.past[i], strict=True))
