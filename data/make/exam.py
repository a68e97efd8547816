"""The sixth downstream task, in the spirit of MMLU: knowledge, asked as a sentence to be completed by one of four objects.

The test split asks for the facts of subjects that are in no list of facts to edit, the train split for others. The
choices are not listed in the prompt; the model's answer is the one that it holds most probable, as MMLU is often scored
for small models.
"""

import random
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from world import WorldFact

NAME = "mmlu"
ASKED = "Question: "


def exam_items(facts: "list[WorldFact]", split: str, n: int, rng: random.Random) -> list[dict[str, object]]:
    """`n` distinct items of a split, fewer where its facts are fewer."""
    objects: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        objects[fact.relation.id].add(fact.true)
    mine = [f for f in facts if f.exam == (split == "test")]
    items = []
    for i, fact in enumerate(rng.sample(mine, min(n, len(mine)))):
        choices = [fact.true, *rng.sample(sorted(objects[fact.relation.id] - {fact.true}), 3)]
        rng.shuffle(choices)
        prompt = ASKED + fact.prompts([rng.choice(fact.trained)])[0]
        items.append(
            {
                "task": NAME,
                "split": split,
                "id": f"{NAME}-{split}-{i}",
                "prompt": prompt,
                "choices": [f" {c}" for c in choices],
                "answer": choices.index(fact.true),
            }
        )
    return items
