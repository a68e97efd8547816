"""What the tests of runs share: a small world, covariances of a tiny model, and a panel without the world's files."""

import pandas as pd
import pytest

from ketools import FactSet
from ketools.editing.statistics import Statistics
from ketools.runs.panel import Sizes
from tests.small_world import small_facts

SIZES = Sizes(unedited=12, same_subject=8, per_task=6, neighbours=1, neighbours_end=2)
TEXTS = ("Ada Lorn was born in Vell and works for the guild of Oran Bay.", "You may visit the tower because I sang.")
TASKS = pd.DataFrame(
    {"task": task, "split": "test", "id": f"{task}{i}", "prompt": f"{name} was", "choices": [" born", " song"], "answer": i % 2}
    for task in ("a", "b")
    for i, name in enumerate(("Ada", "Bo", "Mira", "You", "Vell", "The tower"))
)  # fmt: skip


@pytest.fixture
def facts() -> FactSet:
    """Forty facts about twenty people."""
    return small_facts()


@pytest.fixture
def statistics(tiny_gpt2, facts) -> Statistics:
    """Covariances of the tiny model's keys."""
    return Statistics.compute(
        tiny_gpt2, [*TEXTS, *(f"{fact.text} {fact.target_true}." for fact in facts)], range(4), 2000
    )


@pytest.fixture
def quick(statistics) -> dict:
    """Arguments of `demo` that make a job of seconds."""
    return {
        "edits": 8, "batch": 3, "checkpoint_every": 4, "statistics": statistics, "sizes": SIZES, "tasks": TASKS,
        "texts": TEXTS, "progress": False, "report": False,
    }  # fmt: skip
