"""A run that is killed, at whatever moment, ends with the same bits as one that never was: weights, records and state."""

import os
import shutil

import pandas as pd
import pytest
import torch

from ketools.editing.covariance import Statistics
from ketools.models.model import load
from ketools.runs.resume import restore
from ketools.runs.store import FRAMES, RunRecord, Store, survey
from tests.runs.killed import kill_often, many_facts, start

KILLS = int(os.environ.get("KETOOLS_KILLS", "5"))


@pytest.fixture(scope="module")
def home(tmp_path_factory, trained_gpt2, tiny_tokenizer):
    """A tiny model with its covariance on disk."""
    path = tmp_path_factory.mktemp("home") / "tiny"
    trained_gpt2.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    texts = [f"{fact.text} {fact.target_true}." for fact in many_facts()]
    Statistics.compute(load(str(path)), texts, range(4), 4000).save(path / "covariance.safetensors")
    return path


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(str(home), str(out))
    process.join(600)
    assert process.exitcode == 0
    return out


def same_run(home, one, two):
    """Tables but for the clock, weights and state, all to the bit."""
    a, b = RunRecord.load(one), RunRecord.load(two)
    for name in FRAMES:
        left, right = (getattr(r, name) for r in (a, b))
        clock = [column for column in left if column.startswith("seconds")]
        assert left.drop(columns=clock).equals(right.drop(columns=clock)), name
        # What was written last holds all, not what was there before a kill.
        for out, frame in ((one, left), (two, right)):
            assert pd.read_parquet(out / f"{name}.parquet").equals(frame) or frame.empty, f"{out}: {name}.parquet"
    models, batches = [], Store(one).progress()["batches"]
    assert batches == Store(two).progress()["batches"]
    for out in (one, two):
        model = load(str(home))
        models.append((model, restore(Store(out), model, batches)))
    (model_a, state_a), (model_b, state_b) = models
    for layer in range(4):
        assert torch.equal(model_a.weight(layer), model_b.weight(layer)), f"weights of layer {layer}"
    assert state_a.prefixes == state_b.prefixes and state_a.past.keys() == state_b.past.keys() == {1, 2}
    assert torch.equal(state_a.generator.get_state(), state_b.generator.get_state())
    for layer, blocks in state_a.past.items():
        assert len(blocks) == batches and all(torch.equal(x, y) for x, y in zip(blocks, state_b.past[layer])), layer


def test_killed_runs_end_with_the_same_bits(home, whole, tmp_path):
    told = []
    kill_often(home, tmp_path / "run", KILLS, seed=KILLS, progress=told)
    assert sum("exit code -9" in each for each in told) >= 0.6 * KILLS, f"most kills must hit a run that works: {told}"
    same_run(home, whole, tmp_path / "run")
    found = survey(tmp_path / "run")
    assert found.sound and not found.leftovers and found.batches == 20, told


def test_a_snapshot_gives_the_bits_that_the_updates_give(home, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "snapshots")
    same_run(home, whole, tmp_path / "run")


def test_only_new_keys_are_written_and_two_snapshots_kept(whole):
    sizes = [path.stat().st_size for path in sorted((whole / "state").iterdir())]
    assert len(sizes) == 20 and max(sizes) < 1.1 * min(sizes), "a batch writes its own keys, not those before it"
    assert [path.stem for path in sorted((whole / "snapshots").iterdir())] == ["00016", "00020"]


def test_what_is_written_a_batch_does_not_grow(whole):
    commits = [path.stat().st_size for path in sorted((whole / "batches").iterdir())[1:]]
    assert max(commits) < 1.2 * min(commits)
