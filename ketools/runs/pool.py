"""Everything that uses Ray: parallel runs, and the targets of one batch spread over copies of a model.

Ray is the extra `ray`. It is started on this machine and stopped after the work, or is an existing cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ketools.editing.editor import Editor
from ketools.editing.keys import checked_rows, contexts_of, near_subjects
from ketools.editing.methods import Hyper, Method
from ketools.editing.stopping import Stopping
from ketools.editing.targets import Targets, compute_targets
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import load

_LIVES = 3  # times that a dead worker is replaced
_GRACE = 30.0  # seconds for workers to finish writing their batch after Ctrl-C
_STORE = 100 << 20  # bytes of Ray's object store, the least it accepts: little is sent


@contextmanager
def connected(address: str | None, cpus: int, gpus: float, workers: int) -> Iterator[Any]:
    """Within the block Ray is available, on this machine for `workers` of `cpus` cores and `gpus` GPUs each, or at `address`.

    Raises KetoolsError: Ray is not installed, nothing answers at the address, or no machine there has the resources.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # report nothing to anybody
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise KetoolsError(
            "several workers need Ray, which is not installed: pip install '.[ray]' in ketools' folder"
        ) from error
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {"num_cpus": cpus * workers, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise KetoolsError(
            f"Ray cannot be reached at {address or 'this machine'!r}: {reason}; start a cluster with `ray start --head` and give "
            "its address, or leave out --address"
        ) from error
    try:
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            most = max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0)
            if most < wanted:
                raise KetoolsError(
                    f"a run takes {wanted:g} {name}s, and no machine has more than {most:g}; ask for fewer"
                )
        yield ray
    finally:
        ray.shutdown()


def run_all(
    ray: Any,  # noqa: ANN401 - the module
    work: Callable[..., object],
    jobs: Mapping[str, tuple[Any, ...]],
    ended: Callable[[str, str | None], None],
    *,
    cpus: int,
    gpus: float,
    limit: int | None = None,
) -> None:
    """Call `work(*job)` for every job, at most `limit` at once, and `ended` with its name and error (None: no error).

    A job whose worker died is repeated on another one, three times at most.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_LIVES)(_told)
    waiting, running = list(jobs), dict[Any, str]()
    try:
        while waiting or running:
            while waiting and (limit is None or len(running) < limit):
                name = waiting.pop(0)
                running[task.remote(work, *jobs[name])] = name
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                error = ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as lost:
                error = f"its worker died {_LIVES + 1} times ({' '.join(str(lost).split())[:200]})"
            ended(running.pop(done), error)
    except KeyboardInterrupt:
        for job in running:
            ray.cancel(job)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE)
        raise


def _told(work: Callable[..., object], *job: Any) -> str | None:  # noqa: ANN401 - whatever the work takes
    """None, or the error in one line, where Ray would give a traceback."""
    try:
        work(*job)
    except KetoolsError as error:
        return str(error)
    return None


class _Replica:
    """A copy of the model in its own process."""

    def __init__(self, model: str, device: str | None, dtype: torch.dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = load(model, device=device, dtype=dtype)

    def targets(
        self,
        facts: Sequence[Fact],
        contexts: Sequence[str],
        stopping: Stopping,
        hyper: Hyper,
        weights: Mapping[int, Tensor],
    ) -> Targets:
        """Targets of `facts` with these weights in the edited layers."""
        self.model.edits.restore(weights)
        rows = checked_rows(self.model, facts, contexts)
        assert hyper.layers is not None
        near = near_subjects(self.model, facts, rows, hyper.layers[0]) if hyper.same_subject == "shared" else []
        return compute_targets(self.model, facts, contexts, stopping, hyper, None, rows, None, near)


class Replicas:
    """Copies of one model that share the target optimisation of a batch. Every batch is sent with the edited matrices, so a
    copy that died can be replaced.
    """

    def __init__(
        self,
        ray: Any,  # noqa: ANN401 - the module
        count: int,
        model: str,
        device: str | None,
        dtype: torch.dtype,
        *,
        cpus: int,
        gpus: float,
    ) -> None:
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=_LIVES, max_task_retries=_LIVES)(_Replica)
        self._ray, self._copies = ray, [actor.remote(model, device, dtype, cpus) for _ in range(count)]

    def targets(self, editor: Editor, facts: Sequence[Fact]) -> Targets:
        """`editor.targets(facts)`, up to rounding."""
        parts: list[list[int]] = [[] for _ in self._copies]
        groups: dict[str, list[int]] = {}
        for place, fact in enumerate(facts):  # facts of one subject may share a target
            groups.setdefault(fact.subject.lower(), []).append(place)
        # Deal out in order of length, so that each copy gets similar work.
        for number, group in enumerate(sorted(groups.values(), key=lambda some: len(facts[some[0]].text))):
            parts[number % len(parts)] += group
        common = contexts_of(editor.prefixes), editor.method.stopping, editor.hyper
        bits = {layer: weight.cpu() for layer, weight in editor.model.edits.snapshot(editor.layers).items()}
        sent = self._ray.put(bits)
        jobs = [
            copy.targets.remote([facts[i] for i in part], *common, sent)
            for copy, part in zip(self._copies, parts, strict=True) if part
        ]  # fmt: skip
        try:
            found = self._ray.get(jobs)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, KetoolsError) else error) from None
        return Targets.gathered(found, [place for part in parts for place in part])


def check_replicas(method: Method, hyper: Hyper) -> None:
    """Raise KetoolsError if the targets of a batch depend on each other, or there are none."""
    why = None
    if not method.has_targets:
        why = "it has no target optimisation"
    elif getattr(method.update, "one_at_a_time", False):
        why = "it edits one fact after another, each on the weights left by the last"
    elif hyper.same_subject == "apart":
        why = 'same_subject = "apart" edits facts of one subject one after another'
    if why is not None:
        raise KetoolsError(f"replicas: {method.name} cannot use them, {why}; leave out --replicas")
