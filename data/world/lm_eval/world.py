"""What the YAML files beside it call: the items of a task, the score of an answer, weighted F1."""

from typing import Any

import datasets
from sklearn.metrics import f1_score

from ketools.evaluation.downstream import load_tasks


def items(task: str, **_: object) -> datasets.DatasetDict:
    """Both splits of one of the world's tasks."""
    parts = {}
    for split in ("train", "test"):
        chosen = load_tasks(split=split)
        chosen = chosen[chosen["task"] == task]
        parts[split] = datasets.Dataset.from_list(chosen[["id", "prompt", "choices", "answer"]].to_dict("records"))
    return datasets.DatasetDict(parts)


def results(doc: dict[str, Any], answers: list[tuple[float, bool]]) -> dict[str, Any]:
    """Whether the most probable choice is the right one; classes are texts, since some tasks shuffle their choices."""
    said = max(range(len(answers)), key=lambda i: answers[i][0])
    right = doc["choices"][doc["answer"]]
    return {"acc": float(said == doc["answer"]), "f1": (right, doc["choices"][said])}


def weighted_f1(pairs: list[tuple[str, str]]) -> float:
    """F1 by class, weighted by the classes' sizes (scikit-learn), of (right, said) pairs."""
    right, said = zip(*pairs, strict=True)
    return float(f1_score(right, said, average="weighted", zero_division=0.0))
