"""What the tests of runs share: a small world, covariances of a tiny model, and a panel without the world's files."""

import copy

import pandas as pd
import pytest

from ketools import FactSet
from ketools.editing.covariance import Statistics
from ketools.models.model import load
from ketools.runs.panel import Panel, Sizes
from ketools.runs.run import lifelong
from tests.small_world import small_facts

SIZES = Sizes(unedited=12, same_subject=8, per_task=6, neighbours=1, neighbours_end=2)
TEXTS = ("Ada Lorn was born in Vell and works for the guild of Oran Bay.", "You may visit the tower because I sang.")
TASKS = pd.DataFrame(
    {"task": task, "split": "test", "id": f"{task}{i}", "prompt": f"{name} was", "choices": [" born", " song"], "answer": i % 2}
    for task in ("a", "b")
    for i, name in enumerate(("Ada", "Bo", "Mira", "You", "Vell", "The tower"))
)  # fmt: skip

CHANGED = {"steps": 3, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}


@pytest.fixture
def facts() -> FactSet:
    """Forty facts about twenty people."""
    return small_facts()


@pytest.fixture(scope="session")
def statistics(trained_gpt2, tiny_tokenizer) -> Statistics:
    """Covariances of the tiny model's keys."""
    model = load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer)
    texts = [*TEXTS, *(f"{fact.text} {fact.target_true}." for fact in small_facts())]
    return Statistics.compute(model, texts, range(4), 2000)


@pytest.fixture(scope="session")
def panel(trained_gpt2, tiny_tokenizer) -> Panel:
    """What a run of 8 edits compares with."""
    model, facts = load(copy.deepcopy(trained_gpt2), tokenizer=tiny_tokenizer), small_facts()
    return Panel.take(model, facts, facts.sample(8, 0), sizes=SIZES, tasks=TASKS, texts=TEXTS)


@pytest.fixture
def quick(statistics) -> dict:
    """Arguments of `demo` that make a job of seconds."""
    return {
        "edits": 8, "batch": 3, "checkpoint_every": 4, "statistics": statistics, "sizes": SIZES, "tasks": TASKS,
        "texts": TEXTS, "progress": False, "report": None,
    }  # fmt: skip


@pytest.fixture
def run(tiny_gpt2, facts, statistics, panel, tmp_path):
    """Start a run of 8 edits in batches of 3 on the tiny model."""

    def start(out="run", method="encore", **changes):
        arguments = {"edits": 8, "batch": 3, "checkpoint_every": 4, "statistics": statistics, "progress": False}
        arguments |= {"panel": panel, "overrides": CHANGED, "out": tmp_path / out, "consolidate_every": 2}
        return lifelong(tiny_gpt2, facts, method, **arguments | changes)

    return start
