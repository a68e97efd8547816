"""Target optimisation over copies of a model: the targets of one process, whatever Ray does with the copies."""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from benchmarks import replicas
from ketools.editing.editor import Editor
from ketools.editing.methods import method as named_method
from ketools.errors import KetoolsError, NotFinite
from ketools.models.model import load
from ketools.runs import pool
from ketools.runs.config import RunConfig
from ketools.runs.run import execute, opened, ready
from ketools.runs.store import RunRecord
from tests.cli.test_cli_whole import home  # noqa: F401 - a fixture
from tests.runs.test_sweep import RUN, tiny  # noqa: F401 - a fixture
from tests.small_world import small_facts

FEW = {"steps": 4, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}


class TaskError(Exception):
    """As ray.exceptions.RayTaskError: says what was raised in `cause`."""

    def __init__(self, cause):
        super().__init__(f"Traceback ... {cause}")
        self.cause = cause


class NoRay:
    """What Ray is asked for, done at once in this process; `made`: the copies."""

    exceptions = SimpleNamespace(RayTaskError=TaskError)

    def __init__(self):
        self.made = []

    def remote(self, **_):
        def actor(kind):
            def start(*args):
                self.made.append(copy := kind(*args))
                return SimpleNamespace(targets=SimpleNamespace(remote=lambda *asked: (copy, asked)))

            return SimpleNamespace(remote=start)

        return actor

    put = staticmethod(lambda value: value)

    def get(self, jobs):
        try:
            return [copy.targets(*asked) for copy, asked in jobs]
        except KetoolsError as error:
            raise TaskError(error) from error


@pytest.fixture
def copies(tiny):  # noqa: F811
    """A model, and two copies of it."""
    ray = NoRay()
    made = pool.Replicas(ray, 2, str(tiny), None, torch.float32, cpus=1, gpus=0)
    return load(str(tiny)), made, ray


def test_the_targets_are_those_of_one_process_on_weights_that_have_changed(copies):
    model, spread_over, ray = copies
    facts = small_facts()
    editor = Editor(model, "encore", **FEW)
    editor.apply(facts.sample(3, 1))
    batch = facts[:9]  # two facts a subject, which share a target
    alone, spread = editor.targets(batch), spread_over.targets(editor, batch)
    for name in ("z", "h0", "delta_norm", "p_target", "loss"):
        torch.testing.assert_close(getattr(spread, name), getattr(alone, name), rtol=1e-6, atol=1e-6, msg=name)
    assert torch.equal(spread.steps, alone.steps) and torch.equal(spread.known, alone.known)
    assert len(ray.made) == 2 and all(torch.equal(copy.model.weight(2), model.weight(2)) for copy in ray.made)
    edit = editor.apply(batch, targets=spread)
    assert edit.record["facts"] == [fact.id for fact in batch] and len(model.edits) == 2


def test_a_fault_in_a_copy_is_the_users_message(copies, monkeypatch):
    model, spread_over, _ = copies

    def breaks(*_, **__):
        raise NotFinite("fact 'born-0': its target is not finite")

    monkeypatch.setattr(pool, "compute_targets", breaks)
    with pytest.raises(NotFinite, match="^fact 'born-0'"):
        spread_over.targets(Editor(model, "encore", **FEW), small_facts()[:3])


@pytest.mark.parametrize(("name", "more"), [("rome", {}), ("ft", {}), ("memit", {"same_subject": "apart"})])
def test_methods_whose_facts_depend_on_each_other_are_refused(copies, name, more):
    method = named_method(name)
    with pytest.raises(KetoolsError, match="replicas"):
        pool.check_replicas(method, method.settings(copies[0], **more))
    pool.check_replicas(named_method("encore"), named_method("encore").settings(copies[0]))


def test_the_benchmark_compares_the_two_on_the_same_facts(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(replicas, "connected", lambda *_: nullcontext(NoRay()))
    out = tmp_path / "f.json"
    assert replicas.main(["--model", "tiny", "--facts", "4", "--repeats", "1", "--quiet", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["seconds_per_edit"]) == {"one process", "replicas"} and figures["largest_difference_of_z"] < 1e-4
    assert figures["ratio"] == pytest.approx(
        figures["seconds_per_edit"]["one process"] / figures["seconds_per_edit"]["replicas"]
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)")
def test_a_run_over_two_replicas_ends_as_the_plain_one(tiny, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RAY_worker_niceness", "0")
    models = []
    for count in (1, 2):
        config = RunConfig.made(RUN | {"edits": 6, "replicas": count, "out": str(tmp_path / str(count))})
        models.append(opened(config))
        execute(config, models[-1], ready(config), progress=False)
    one, two = (RunRecord.load(tmp_path / name) for name in "12")
    assert one.facts["id"].tolist() == two.facts["id"].tolist() and one.facts["steps"].equals(two.facts["steps"])
    assert (two.batches["seconds_targets"] > 0).all()
    for layer in (1, 2):
        torch.testing.assert_close(models[1].weight(layer), models[0].weight(layer), rtol=1e-4, atol=1e-4)
