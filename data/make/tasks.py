"""Five small downstream tasks in the spirit of SST2, MRPC, NLI, RTE and CoLA, answered by one token (the sixth: exam.py).

They are made for models of a few million parameters: each has a cue that such a model learns in passing (a polarity, a
quantifier, a denial, a missing article). What they measure is whether a model
that could read those cues still can.
Train and test items never coincide: an item's split is decided by a hash of its text. The model answers a task by the
most probable of its choices at the end of the prompt.
"""

import hashlib
import random
from collections.abc import Callable

from prose import ADJECTIVES, NOUNS, PEOPLE

GOOD = "wonderful lovely brilliant charming moving clever delightful splendid superb graceful witty touching".split()
BAD = "dreadful boring awful clumsy dull tedious horrible shallow weak lifeless tiresome stupid".split()
SHOWS = "play film novel concert opera recital lecture exhibition ballet show".split()
DEEDS = "bought sold painted carried opened watched lost found".split()
REACHED = [
    ("reached", "reach"),
    ("crossed", "cross"),
    ("opened", "open"),
    ("found", "find"),
    ("left", "leave"),
    ("entered", "enter"),
]
DENIALS = ["did not", "never managed to", "failed to", "refused to"]
WALKS = "walked slept waited worked sang laughed read ate".split()
Item = tuple[str, list[str], int]  # prompt, choices, index of the right one


def _sst2(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    pool = (BAD, GOOD)[answer]
    a, b = rng.sample(pool, 2)
    text = f"Review: the {rng.choice(ADJECTIVES)} {rng.choice(SHOWS)} was {a} and {b}. Feeling:"
    return text, [" negative", " positive"], answer


def _mrpc(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    person, thing, deed = rng.choice(PEOPLE), rng.choice(NOUNS), rng.choice(DEEDS)
    was = "was" if answer else rng.choice(["was not", "was never"])
    return (
        f"First: the {person} {deed} the {thing}. Second: the {thing} {was} {deed} by the {person}. Same:",
        [" no", " yes"],
        answer,
    )


def _nli(rng: random.Random) -> Item:
    answer = rng.randrange(3)
    person, adjective = rng.choice(PEOPLE), rng.choice(ADJECTIVES)
    premise = f"{'some' if answer == 2 else 'every'} {person} near this {rng.choice(NOUNS)} is {adjective}"
    claim = f"{'no' if answer == 1 else 'each'} {person} there is {adjective}"
    return f"Given: {premise}. Claim: {claim}. This is", [" certain", " impossible", " open"], answer


def _rte(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    past, base = rng.choice(REACHED)
    who, noun = f"the {rng.choice(ADJECTIVES)} {rng.choice(PEOPLE)}", rng.choice(NOUNS)
    deed = past if answer else f"{rng.choice(DENIALS)} {base}"
    return f"Text: {who} {deed} the {noun}. So {who} {past} the {noun}. Follows:", [" false", " true"], answer


def _cola(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    person, noun = rng.choice(PEOPLE), rng.choice(NOUNS)
    place = f"near the {noun}" if answer else rng.choice([f"near {noun}", f"near {noun} the", f"near the the {noun}"])
    text = f"Sentence: the {rng.choice(ADJECTIVES)} {person} {rng.choice(WALKS)} {place}. Grammar:"
    return text, [" wrong", " right"], answer


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "sst2": _sst2,
    "mrpc": _mrpc,
    "nli": _nli,
    "rte": _rte,
    "cola": _cola,
}


def split_of(prompt: str) -> str:
    """ "test" for about one item in eight, by the hash of its text."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 32 else "train"


def make_items(task: str, split: str, n: int, rng: random.Random) -> list[dict[str, object]]:
    """`n` distinct items of one task and split."""
    items: dict[str, dict[str, object]] = {}
    while len(items) < n:
        prompt, choices, answer = TASKS[task](rng)
        if split_of(prompt) == split and prompt not in items:
            items[prompt] = {
                "task": task,
                "split": split,
                "id": f"{task}-{split}-{len(items)}",
                "prompt": prompt,
                "choices": choices,
                "answer": answer,
            }
    return list(items.values())
