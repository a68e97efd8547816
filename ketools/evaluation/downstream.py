"""The model's other abilities: multiple-choice tasks, perplexity, and lm-evaluation-harness.

`harness` runs the tasks of lm-evaluation-harness on the edited model in memory: nothing is saved or loaded. The world's
six tasks are YAML files (data/world/lm_eval) that need no network; every other task belongs to the harness and fetches
its data from the hub. It needs the optional package lm-eval (the extra `eval`).
"""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy

from ketools.editing.covariance import corpus
from ketools.errors import KetoolsError, named
from ketools.io import data_root, expanded, parsed, read_bytes
from ketools.models.model import EditableModel
from ketools.models.scoring import LOGITS, choice_logprobs
from ketools.models.tokens import batches, pad_right

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str, "split": str, "id": (str, int), "prompt": str, "choices": list, "answer": int,
}  # fmt: skip
_TABLES = (".jsonl", ".jsonl.gz", ".yaml", ".yml")
_LARGEST = 700.0  # nats per token; exp overflows beyond
_ROWS = 32  # of a forward pass of the harness


def load_tasks(path: str | Path | None = None, split: str = "test") -> pd.DataFrame:
    """Read task items: one JSON object per line (.jsonl, .jsonl.gz), or a list of them in YAML.

    Args:
        path: the file; None: the world's own, data/world/tasks.jsonl.gz.
        split: "train" or "test". Items without a split belong to the test split; those without an id get their number.

    Returns:
        task, split, id, prompt (the choice continues it), choices (list of str), answer (index into choices).

    Raises KetoolsError for a missing file, a broken line, a missing field, an answer outside the choices, and no item
    of that split.
    """
    path = expanded(path) if path is not None else data_root() / "world" / "tasks.jsonl.gz"
    data = read_bytes(path, f"a file of task items ({', '.join(_TABLES)})")
    try:
        text = data.decode("utf-8")
        if path.suffix in (".yaml", ".yml"):
            listed = yaml.safe_load(text)
            if not isinstance(listed, list):
                raise KetoolsError(f"{path}: expected a list of items with {', '.join(FIELDS)}")
            items = [_item(item, f"{path.name}, item {k}", k) for k, item in enumerate(listed, 1)]
        else:
            items = [
                _item(parsed(line, Any, where := f"{path.name}, line {k}"), where, k)
                for k, line in enumerate(text.split("\n"), 1)
                if line.strip()
            ]
    except UnicodeDecodeError as error:
        raise KetoolsError(f"{path}: not UTF-8 text ({error})") from error
    except yaml.YAMLError as error:
        raise KetoolsError(f"{path}: broken YAML ({' '.join(str(error).split())})") from error
    chosen = pd.DataFrame([item for item in items if item["split"] == split], columns=list(FIELDS))
    if chosen.empty:
        raise KetoolsError(f"{path}: no item of split {split!r}; it has {sorted({item['split'] for item in items})}")
    return chosen


def tasks_named(source: str) -> pd.DataFrame | tuple[str, ...]:
    """The tasks for `--tasks`: "world", a file of items (`load_tasks`), or names of lm-eval tasks, separated by commas.

    Raises KetoolsError as `load_tasks` does; for harness tasks also if lm-eval is not installed or has no such task.
    """
    if source == "world" or source.lower().endswith(_TABLES):
        return load_tasks(None if source == "world" else source)
    names = tuple(name.strip() for name in source.split(",") if name.strip())
    try:
        _installed()
    except KetoolsError as error:
        raise KetoolsError(f"tasks {source!r}: no file of items ({', '.join(_TABLES)}), and {error}") from error
    if not (len(names) == 1 and names[0] in PRESETS):
        _found(names, None)
    return names


def f1_of(
    model: EditableModel, tasks: pd.DataFrame | tuple[str, ...], n_per_task: int, seed: int = 0
) -> dict[str, float]:
    """{task: weighted F1} of items, as in `downstream`; for lm-eval tasks {"task metric": value} of their first metric."""
    if not n_per_task or not len(tasks):
        return {}
    if isinstance(tasks, pd.DataFrame):
        return downstream(model, tasks, n_per_task, seed).set_index("task")["f1"].to_dict()
    scores = harness(model, tasks, limit=n_per_task, seed=seed).drop_duplicates("task")
    return {f"{row.task} {row.metric}": row.value for row in scores.itertuples()}


def _item(given: object, where: str, number: int) -> dict[str, Any]:
    item: dict[str, Any] = {"split": "test", "id": number} | given if isinstance(given, dict) else {}
    for name, kind in FIELDS.items():
        if not isinstance(item.get(name), kind):
            raise KetoolsError(f"{where}: field {name!r} is missing or of the wrong type; expected {list(FIELDS)}")
    if not all(isinstance(choice, str) and choice.strip() for choice in item["choices"]):
        raise KetoolsError(f"{where}: choices {item['choices']!r}; expected a list of texts, none of them empty")
    if len(item["choices"]) < 2 or not 0 <= item["answer"] < len(item["choices"]):
        raise KetoolsError(
            f"{where}: answer {item['answer']} with {len(item['choices'])} choices; expected an index into them"
        )
    return {name: item[name] for name in FIELDS}


def sample_tasks(tasks: pd.DataFrame, n_per_task: int | None, seed: int = 0) -> pd.DataFrame:
    """At most n_per_task items of each task, drawn with the seed, in the order of the file."""
    if n_per_task is None:
        return tasks.reset_index(drop=True)
    if n_per_task < 1:
        raise KetoolsError(f"n_per_task={n_per_task}: expected at least one item per task")
    draw = np.random.default_rng(seed)
    kept = [
        np.sort(draw.choice(rows.to_numpy(), size=min(n_per_task, len(rows)), replace=False))
        for _, rows in tasks.reset_index(drop=True).groupby("task", sort=True).groups.items()
    ]
    return tasks.reset_index(drop=True).loc[np.concatenate(kept)].reset_index(drop=True)


def downstream(
    model: EditableModel, tasks: pd.DataFrame | None = None, n_per_task: int | None = 100, seed: int = 0
) -> pd.DataFrame:
    """Multiple choice, zero-shot: the model chooses the option whose tokens together are the most probable.

    Args:
        model: the model in its present state.
        tasks: items from `load_tasks` (None: the world's test split).
        n_per_task: items drawn per task (None: all); the same seed draws the same items.
        seed: seed of the draw.

    Returns:
        One row per task, by name: task, n, accuracy, f1 (weighted over the answers' classes, scikit-learn). The class of
        an item is the text of its correct choice, so that shuffled choices do not change the classes.

    Raises KetoolsError if two choices of an item are the same.
    """
    items = sample_tasks(load_tasks() if tasks is None else tasks, n_per_task, seed)
    scores = choice_logprobs(model, list(items["prompt"]), [tuple(choices) for choices in items["choices"]])
    picked = [int(np.argmax(np.nan_to_num(row, nan=-np.inf))) for row in scores]
    items = items.assign(
        gold=[choices[answer] for choices, answer in zip(items["choices"], items["answer"], strict=True)],
        answered=[choices[k] for choices, k in zip(items["choices"], picked, strict=True)],
    )
    rows = []
    for task, group in items.groupby("task", sort=True):
        gold, answered = group["gold"], group["answered"]
        row = {"task": str(task), "n": len(group), "accuracy": float(accuracy_score(gold, answered))}
        row["f1"] = float(f1_score(gold, answered, average="weighted", zero_division=0.0))
        rows.append(row)
    return pd.DataFrame(rows)


def load_heldout(source: str | Path = "world", documents: int | None = None) -> list[str]:
    """The first documents for perplexity: "world" (data/world/heldout.txt), or a text file as `corpus` reads it.

    Raises KetoolsError for a file that is missing, not text, or empty.
    """
    texts = list(islice(corpus(data_root() / "world" / "heldout.txt" if source == "world" else source), documents))
    if not texts and documents != 0:
        raise KetoolsError(f"{source} holds no text; expected running text")
    return texts


def perplexity(model: EditableModel, texts: Iterable[str], *, batch_tokens: int = 4096) -> float:
    """exp of the mean cross-entropy per predicted token, over all documents (long ones weigh more).

    Documents are tokenised with the tokenizer's defaults (with a BOS where it adds one) and cut into windows of the
    model's context; the first token of a window is not predicted. This is the loss of transformers, weighted by tokens.
    Infinite where a token has probability 0 or the model's output is NaN.

    Raises KetoolsError if no document has two tokens.
    """
    longest = model.window or 1024
    rows = [list(model.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    cut = [row[i : i + longest] for row in rows for i in range(0, len(row), longest)]
    windows = [row for row in cut if len(row) > 1]
    if not windows:
        raise KetoolsError("perplexity: no document has two tokens or more, expected running text")
    nll, count = 0.0, sum(len(row) - 1 for row in windows)
    for batch in batches(map(len, windows), batch_tokens):
        ids, mask = pad_right([windows[i] for i in batch], model.device)
        live = mask[:, 1:].bool()
        with torch.inference_mode():
            states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            step = max(1, LOGITS // model.config.vocab_size)  # with a vocabulary of 49,152, 4,096 rows are 0.8 GB
            for part, wanted in zip(states[:, :-1][live].split(step), ids[:, 1:][live].split(step), strict=True):
                nll += float(cross_entropy(model.logits(part).float(), wanted, reduction="none").double().sum())
    mean = nll / count
    return math.exp(mean) if mean < _LARGEST else math.inf  # false for NaN


@dataclass(frozen=True)
class Preset:
    """A named set of tasks: at most `limit` items of each, after `shots` examples."""

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
    include: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Run tasks of lm-evaluation-harness on the model in memory, edits included.

    Args:
        model: the model in its present state; neither it nor its tokenizer is changed.
        tasks: a preset ("world", "two-minutes", "paper"), or the names of tasks, groups or tags (also patterns such as
            "mmlu_*").
        limit: the first items of each task, at most this many (None: the preset's number, else all).
        shots: examples before each item (None: the preset's, else the task's own number).
        include: a folder with more task YAML files.
        seed: seed of the few-shot examples. The random states of Python, numpy and torch do not change.

    Returns:
        One row per task (or group) and metric: task, metric, filter (applied to the answers, or "none"), value, stderr
        (NaN where the harness gives none), n (items), better ("higher" or "lower").

    Raises KetoolsError if lm-eval is not installed, a task is unknown, a number is below 1 (0 for shots), or data
    cannot be fetched.
    """
    _installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    for name, value, least in (("limit", limit, 1), ("shots", shots, 0)):
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
            # A copy, because the harness adds a padding token to a tokenizer without one.
            wrapped = HFLM(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer), batch_size=_ROWS)
            results = simple_evaluate(
                wrapped, tasks=names, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False,
                random_seed=None, numpy_random_seed=None, torch_random_seed=None, fewshot_random_seed=seed,
            )  # fmt: skip
    except OSError as error:
        raise KetoolsError(
            f"tasks {named(names, 8)}: their data cannot be fetched ({error}); the tasks of preset 'world' need no network"
        ) from error
    assert results is not None, "only the other ranks of a distributed run get None"
    return table(results)


def _installed() -> None:
    if find_spec("lm_eval") is None:
        raise KetoolsError(
            "lm-eval is not installed; it comes with the extra eval: pip install '.[eval]' in ketools' folder. "
            "ketools.evaluation.downstream.downstream runs the world's tasks without it"
        )


@contextmanager
def _aside() -> Iterator[None]:
    # The harness draws from Python's random state, and warns for each task about what is intended here: a model in
    # memory, a number of examples, tasks with their own items.
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
        folders.append(expanded(include))
        if not folders[-1].is_dir():
            raise KetoolsError(f"include={str(include)!r}: no such folder; expected one with task YAML files")
    return TaskManager(include_path=[str(f) for f in folders], include_defaults=defaults)


def _found(names: Sequence[str], include: str | Path | None) -> tuple[TaskManager, list[str]]:
    """A manager that knows all the names, and the names with patterns expanded."""
    if not names:
        raise KetoolsError(f"no tasks given; expected names of tasks, or one of {', '.join(map(repr, PRESETS))}")
    manager = _manager(include, defaults=False)  # reading the thousands of files of the harness takes seconds
    if not all(manager.match_tasks([name]) for name in names):
        manager = _manager(include, defaults=True)
    for name in names:
        if not manager.match_tasks([name]):
            near = get_close_matches(name, [*manager.all_tasks, *PRESETS], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise KetoolsError(f"no task named {name!r}; {hint}")
    return manager, list(dict.fromkeys(found for name in names for found in manager.match_tasks([name])))


def table(found: dict[str, Any]) -> pd.DataFrame:
    """The result of `simple_evaluate` as the table of `harness`."""
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
