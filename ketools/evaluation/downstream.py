"""What else the model could do before it was edited: small multiple-choice tasks, and perplexity on unseen text."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy

from ketools.errors import KetoolsError
from ketools.model import EditableModel
from ketools.packing import batches
from ketools.paths import data_root
from ketools.prompts import pad_right
from ketools.scoring import choice_logprobs

FIELDS = {"task": str, "split": str, "id": (str, int), "prompt": str, "choices": list, "answer": int}
_LARGEST = 700.0  # nats a token: beyond it exp overflows
_RESAMPLES = 2000


def load_tasks(path: str | Path | None = None, split: str = "test") -> pd.DataFrame:
    """Read task items, one JSON object a line.

    Args:
        path: .jsonl or .jsonl.gz; None: the world's own, data/world/tasks.jsonl.gz.
        split: "train" or "test".

    Returns:
        task, split, id, prompt (ends where the choice comes), choices (list of str), answer (index into choices).

    Raises:
        KetoolsError: no such file, broken line, missing field, answer outside the choices, no item of that split.
    """
    path = Path(path) if path is not None else data_root() / "world" / "tasks.jsonl.gz"
    if not path.is_file():
        raise KetoolsError(f"no tasks file at {path}; the world's own is made with data/make/world.py")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as stream:
            items = [_item(line, f"{path.name}, line {k}") for k, line in enumerate(stream, 1) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise KetoolsError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    chosen = pd.DataFrame([item for item in items if item["split"] == split], columns=list(FIELDS))
    if chosen.empty:
        raise KetoolsError(f"{path}: no item of split {split!r}; it has {sorted({item['split'] for item in items})}")
    return chosen


def _item(line: str, where: str) -> dict[str, object]:
    """One line, checked."""
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise KetoolsError(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
    for name, kind in FIELDS.items():
        if not isinstance(item, dict) or not isinstance(item.get(name), kind):
            raise KetoolsError(f"{where}: field {name!r} is missing or of the wrong type; expected {list(FIELDS)}")
    if len(item["choices"]) < 2 or not 0 <= item["answer"] < len(item["choices"]):
        raise KetoolsError(
            f"{where}: answer {item['answer']} with {len(item['choices'])} choices; expected an index into them"
        )
    return {name: item[name] for name in FIELDS}


def sample_tasks(tasks: pd.DataFrame, n_per_task: int | None, seed: int = 0) -> pd.DataFrame:
    """At most n_per_task items of each task, drawn by the seed, in the order of the file."""
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
    """Multiple choice, zero-shot: the model's choice is the one whose first token has the largest logit.

    Args:
        model: the model as it stands.
        tasks: items as from `load_tasks` (None: the world's test split).
        n_per_task: items drawn per task (None: all); the same seed draws the same items.
        seed: of the draw.

    Returns:
        A row per task, by name: task, n, accuracy, f1 (weighted over the answers' classes, scikit-learn). The class
        of an item is the text of its right choice, so that a task whose choices are shuffled keeps its classes. low, high:
        95% bootstrap interval of f1 over the items (percentile).

    Raises:
        KetoolsError: two choices of an item begin with the same token.
    """
    items = sample_tasks(load_tasks() if tasks is None else tasks, n_per_task, seed)
    scores = choice_logprobs(model, list(items["prompt"]), [tuple(choices) for choices in items["choices"]])
    picked = [int(np.argmax(np.nan_to_num(row, nan=-np.inf))) for row in scores]
    items = items.assign(
        gold=[choices[answer] for choices, answer in zip(items["choices"], items["answer"], strict=True)],
        said=[choices[k] for choices, k in zip(items["choices"], picked, strict=True)],
    )
    return pd.DataFrame([_task(str(task), group, seed) for task, group in items.groupby("task", sort=True)])


def _task(name: str, items: pd.DataFrame, seed: int) -> dict[str, object]:
    # A row of `downstream`, of the items of one task.
    gold, said = items["gold"], items["said"]
    low, high = _interval(gold, said, seed)
    return {
        "task": name,
        "n": len(items),
        "accuracy": float(accuracy_score(gold, said)),
        "f1": float(f1_score(gold, said, average="weighted", zero_division=0.0)),
        "low": low,
        "high": high,
    }


def _interval(gold: pd.Series, said: pd.Series, seed: int, level: float = 0.95) -> tuple[float, float]:
    # Items with the same right choice and the same answer are the same to F1: a draw of items is a draw of how often each
    # such pair comes. There are as many as items at most; of classes there may be hundreds, and of their squares too many.
    pairs = pd.DataFrame({"gold": gold.to_numpy(), "said": said.to_numpy()}).value_counts(sort=False)
    count, n = pairs.to_numpy(), len(gold)
    drawn = np.random.default_rng(seed).multinomial(n, count / n, _RESAMPLES).astype(float)
    low, high = np.quantile(_weighted_f1(drawn, pairs.index), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weighted_f1(drawn: np.ndarray, pairs: pd.MultiIndex) -> np.ndarray:
    # Of how often each pair (right choice, answer) comes, (draws, pairs). Classes that are nobody's right choice weigh nothing.
    right, answer = (pairs.get_level_values(level).to_numpy() for level in ("gold", "said"))
    classes = np.unique(right)
    is_right, is_answer = (side[:, None] == classes for side in (right, answer))
    asked, answered, hit = (drawn @ each.astype(float) for each in (is_right, is_answer, is_right & is_answer))
    return (2 * hit / np.maximum(asked + answered, 1) * asked).sum(1) / drawn.sum(1)


def load_heldout(path: str | Path | None = None, documents: int | None = None) -> list[str]:
    """Documents for perplexity, one a line, blank lines left out (None: data/world/heldout.txt)."""
    path = Path(path) if path is not None else data_root() / "world" / "heldout.txt"
    if not path.is_file():
        raise KetoolsError(f"no held-out text at {path}; the world's own is made with data/make/world.py")
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return texts[:documents]


def perplexity(model: EditableModel, texts: Iterable[str], *, batch_tokens: int = 4096) -> float:
    """exp of the mean cross-entropy per predicted token, over all documents (long ones weigh more).

    A document is tokenised as the tokenizer does by default (a BOS where it adds one), cut into windows of the
    model's context; the first token of a window is not predicted. This is transformers' own loss, token-weighted.
    Infinite where a token has no probability left or the model's output is NaN.

    Raises:
        KetoolsError: no document has two tokens.
    """
    windows = _windows(model, texts)
    if not windows:
        raise KetoolsError("perplexity: no document has two tokens or more, expected running text")
    nll, count = 0.0, sum(len(row) - 1 for row in windows)
    for batch in batches(windows, batch_tokens):
        ids, mask = pad_right([windows[i] for i in batch], model.device)
        live = mask[:, 1:].bool()
        with torch.inference_mode():
            states = model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = model.logits(states[:, :-1][live]).float()
            nll += float(cross_entropy(logits, ids[:, 1:][live], reduction="none").double().sum())
    mean = nll / count
    return math.exp(mean) if mean < _LARGEST else math.inf  # NaN compares false


def _windows(model: EditableModel, texts: Iterable[str]) -> list[list[int]]:
    """Token windows no longer than the context."""
    longest = getattr(model.model.config, "max_position_embeddings", None) or 1024
    rows = [list(model.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    cut = [row[i : i + longest] for row in rows for i in range(0, len(row), longest)]
    return [row for row in cut if len(row) > 1]
