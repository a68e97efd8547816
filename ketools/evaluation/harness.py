"""Downstream tasks by lm-evaluation-harness, on the edited model as it stands in memory: nothing is saved or loaded.

The world's six tasks are there as YAML files (data/world/lm_eval) and need no network; every other task is the
harness's own and fetches its data from the hub. Needs the optional package lm-eval (the extra `eval`).
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ketools.errors import KetoolsError, named
from ketools.model import EditableModel
from ketools.paths import data_root

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class Preset:
    """Tasks under one name: at most `limit` items of each, behind `shots` examples."""

    tasks: tuple[str, ...]
    limit: int | None
    shots: int | None


PRESETS = {
    "world": Preset(("ketools_world",), 100, 0),
    "two-minutes": Preset(("sst2", "mrpc", "rte", "wnli", "cola", "arc_easy"), 100, 0),
    "paper": Preset(("sst2", "mrpc", "mnli", "rte", "cola", "mmlu"), 100, 4),
}
"""world: the world's six tasks, offline. two-minutes: short tasks of the hub, 100 items each, which take a model of 7
billion parameters about two minutes on one GPU. paper: the kinds of tasks of Gupta et al. (2502.01636), figures 3 and
6, with their numbers of examples and items; mmlu has 57 subjects, with 100 items of each."""


def harness(
    model: EditableModel,
    tasks: str | Sequence[str] = "world",
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 32,
    include: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Run tasks of lm-evaluation-harness on the model in memory, edits included.

    Args:
        model: the model as it stands; neither it nor its tokenizer is changed.
        tasks: a preset ("world", "two-minutes", "paper"), or the names of tasks, groups or tags (patterns such as
            "mmlu_*" too).
        limit: at most so many items of each task, the first ones (None: the preset's number, else all).
        shots: examples in front of each item (None: the preset's, else the task's own number).
        batch_size: rows of a forward pass.
        include: a folder with more task YAML files.
        seed: of the examples that stand in front. The random states of Python, numpy and torch are left alone.

    Returns:
        A row per task (or group) and metric: task, metric, filter (how answers were read, "none" as they are), value,
        stderr (NaN where the harness gives none), n (items), better ("higher" or "lower").

    Raises:
        KetoolsError: lm-eval is not installed, an unknown task, numbers below 1 (0 for shots), data that cannot be
            fetched.
    """
    _installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    for name, value, least in (("limit", limit, 1), ("shots", shots, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise KetoolsError(f"{name}={value}: expected a whole number of at least {least}")
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if len(names) == 1 and names[0] in PRESETS:
        preset = PRESETS[names[0]]
        names = list(preset.tasks)
        limit, shots = (b if a is None else a for a, b in ((limit, preset.limit), (shots, preset.shots)))
    manager, names = _found(names, include)
    try:
        with _aside():
            # A copy: the harness gives a tokenizer without a padding token one.
            wrapped = HFLM(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size)
            found = simple_evaluate(
                wrapped, tasks=names, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False,
                random_seed=None, numpy_random_seed=None, torch_random_seed=None, fewshot_random_seed=seed,
            )  # fmt: skip
    except OSError as error:
        raise KetoolsError(
            f"tasks {named(names, 8)}: their data cannot be fetched ({error}); the tasks of preset 'world' need no network"
        ) from error
    assert found is not None, "only other ranks of a distributed run get nothing"
    return table(found)


def task_names(include: str | Path | None = None) -> list[str]:
    """Names of all tasks, groups and tags there are: the world's, the harness's own and those of `include`."""
    _installed()
    return list(_manager(include, defaults=True).all_tasks)


def _installed() -> None:
    if find_spec("lm_eval") is None:
        raise KetoolsError(
            "lm-eval is not installed; it comes with the extra eval: pip install 'ketools[eval]'. "
            "ketools.evaluation.downstream.downstream asks the world's tasks without it"
        )


@contextmanager
def _aside() -> Iterator[None]:
    # The harness draws from Python's own random numbers, and warns, once a task, of what is meant here: a model in
    # memory, a number of examples, tasks with items of their own.
    log = logging.getLogger("lm_eval")
    level, state = log.level, random.getstate()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        random.setstate(state)


def _manager(include: str | Path | None, defaults: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    folders = [data_root() / "world" / "lm_eval"]
    if include is not None:
        folders.append(Path(include).expanduser())
        if not folders[-1].is_dir():
            raise KetoolsError(f"include={str(include)!r}: no such folder; expected one with task YAML files")
    return TaskManager(include_path=[str(f) for f in folders], include_defaults=defaults)


def _found(names: Sequence[str], include: str | Path | None) -> tuple[TaskManager, list[str]]:
    """A manager that knows all the names, and the names with patterns written out."""
    if not names:
        raise KetoolsError(f"no tasks given; expected names of tasks, or one of {', '.join(map(repr, PRESETS))}")
    manager = _manager(include, defaults=False)  # reading the harness's own thousands of files takes seconds
    if not all(manager.match_tasks([name]) for name in names):
        manager = _manager(include, defaults=True)
    for name in names:
        if not manager.match_tasks([name]):
            near = get_close_matches(name, [*manager.all_tasks, *PRESETS], n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "ketools.evaluation.harness.task_names() lists them"
            )
            raise KetoolsError(f"no task named {name!r}; {hint}")
    return manager, list(dict.fromkeys(found for name in names for found in manager.match_tasks([name])))


def table(found: dict[str, Any]) -> pd.DataFrame:
    """What `simple_evaluate` returns as `harness`'s table."""
    rows = []
    counts, better = found.get("n-samples", {}), found.get("higher_is_better", {})
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        n = counts[task]["effective"] if task in counts else sum(counts[t]["effective"] for t in _leaves(task, found))
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            higher = better.get(task, {}).get(metric, True)
            row = {"task": task, "metric": metric, "filter": filtered, "value": float(value)}
            row |= {"stderr": float(error) if isinstance(error, int | float) else float("nan"), "n": n}
            rows.append(row | {"better": "lower" if higher is False else "higher"})
    return pd.DataFrame(rows)


def _leaves(group: str, found: dict[str, Any]) -> list[str]:
    inside = found.get("group_subtasks", {}).get(group, [])
    return [leaf for name in inside for leaf in (_leaves(name, found) if name not in found["n-samples"] else [name])]
