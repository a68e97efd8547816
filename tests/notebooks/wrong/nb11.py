"""Plausible wrong answers to the exercises of notebook 11: what each does, the answer, and the property that catches it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ketools.facts.fact import Fact, FactSet


def _same_id(rows: Sequence[Mapping[str, str]]) -> FactSet:
    return FactSet(Fact("own", "home", "{} lives in", row["who"], None, row["town"]) for row in rows)


def _own_relations(rows: Sequence[Mapping[str, str]]) -> FactSet:
    made = [
        Fact(str(i), f"r{i}", "{} lives in" + " the town of" * i, r["who"], None, r["town"]) for i, r in enumerate(rows)
    ]
    return FactSet(made)


def _prompt_only(frame: pd.DataFrame) -> list[str]:
    return list(frame.loc[frame["efficacy_accuracy"] < 1, "id"])


def _edit_only(frame: pd.DataFrame) -> list[str]:
    return list(frame.loc[(frame["efficacy_accuracy"] < 1) | (frame["paraphrase_accuracy"] < 1), "id"])


WRONG = {
    "Turn rows into facts": [
        ("gives all facts one id", _same_id, "ids differ"),
        ("gives each fact a relation of its own", _own_relations, "contradictions are noticed"),
    ],
    "Find the edits to look at": [
        ("asks the edited prompt alone", _prompt_only, "edits that did not take, in any words"),
        ("does not ask neighbours", _edit_only, "edits that spilled over"),
    ],
}
