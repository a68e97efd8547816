"""A run that was stopped ends with the same bits, whatever the method: each keeps other things between its batches."""

import copy

import pandas as pd
import pytest
import torch

from ketools.editing.editor import Editor
from ketools.editing.methods import ALL
from ketools.models.model import load
from ketools.runs.config import composed
from ketools.runs.panel import Panel, Sizes
from ketools.runs.resume import restore
from ketools.runs.run import Interrupted, lifelong
from ketools.runs.store import FRAMES, Store
from tests.runs.conftest import CHANGED

ADDED = (
    "emmet+mpes",
    "memit+norm",
    "memit+past",
    "alphaedit+mpes",
    "encore+prune",
    "memit+rect",
    "memit+sphere",
    "memit+nas",
)
SIZES = Sizes(unedited=4, same_subject=0, per_task=0, documents=0, neighbours=0, neighbours_end=0, spectra=False)
SETTINGS = CHANGED | {"ft_steps": 3, "lora_rank": 2}


@pytest.fixture
def begin(trained_gpt2, tiny_tokenizer, facts, statistics, tmp_path):
    """Run six edits in batches of two on a model of its own, as a process that starts would; (record, model)."""

    def start(method, out):
        model, how = load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer), composed(method)
        panel = Panel.take(model, facts, facts.sample(6, 0), sizes=SIZES)
        record = lifelong(
            model, facts, how, edits=6, batch=2, checkpoint_every=4, consolidate_every=2, out=tmp_path / out, seed=5,
            statistics=statistics, panel=panel, overrides=SETTINGS, progress=False,
        )  # fmt: skip
        return record, model

    return start


def stop_before(patch, batch):
    real, calls = Editor.apply, []

    def apply(self, *args):
        calls.append(1)
        if len(calls) == batch:
            raise KeyboardInterrupt
        return real(self, *args)

    patch.setattr(Editor, "apply", apply)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", [*(known.name for known in ALL), *ADDED])
def test_stopped_twice_and_gone_on_with(begin, method, tmp_path, monkeypatch):
    whole, model = begin(method, "whole")
    # Behind the first batch there is no snapshot to go on from, behind the second there is one.
    for batch in (2, 2):
        with monkeypatch.context() as patch:
            stop_before(patch, batch)
            with pytest.raises(Interrupted):
                begin(method, "stopped")
    assert Store(tmp_path / "stopped").progress() == {"batches": 2, "edits": 4}
    again, other = begin(method, "stopped")
    for name in FRAMES:
        one, two = (
            frame.drop(columns=[column for column in frame if column.startswith("seconds")])
            for frame in (getattr(record, name) for record in (whole, again))
        )
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert any(not torch.equal(model.weight(i), model.originals[i]) for i in model.originals), "something was edited"
    assert all(torch.equal(model.weight(i), other.weight(i)) for i in range(4))
    states = [restore(Store(tmp_path / out), held, 3) for out, held in (("whole", model), ("stopped", other))]
    assert states[0].prefixes == states[1].prefixes
    assert torch.equal(*(state.generator.get_state() for state in states))
    assert states[0].past.keys() == states[1].past.keys()
    for layer, blocks in states[0].past.items():
        assert all(torch.equal(a, b) for a, b in zip(blocks, states[1].past[layer], strict=True))
