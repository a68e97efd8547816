"""Six small downstream tasks in the spirit of SST2, MRPC, NLI, RTE, CoLA and MMLU, answered by one token.

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
SAME_VERBS = [("purchased", "bought"), ("repaired", "fixed"), ("discovered", "found"), ("constructed", "built"),
              ("observed", "watched"), ("concealed", "hid"), ("selected", "chose"), ("destroyed", "ruined")]
KINDS = {
    "bird": "sparrow eagle raven heron falcon pigeon robin".split(),
    "tool": "hammer chisel saw pliers shovel rake wrench".split(),
    "fruit": "cherry banana peach lemon orange melon grape".split(),
    "mammal": "badger donkey otter weasel camel beaver hedgehog".split(),
    "tree": "birch willow maple spruce poplar cedar elm".split(),
    "metal": "tin zinc nickel lead bronze chrome brass".split(),
}
SINGULAR = [p for p in PEOPLE if p != "child"][:12]
AGREE = [("walks", "walk"), ("sings", "sing"), ("sleeps", "sleep"), ("waits", "wait"), ("works", "work"),
         ("laughs", "laugh"), ("reads", "read"), ("eats", "eat")]
ADVERBS = "today quietly alone outside often slowly here again".split()
LETTERS = ["A", "B", "C", "D"]
Item = tuple[str, list[str], int]  # prompt, choices, index of the right one


def _sst2(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    pool = (BAD, GOOD)[answer]
    a, b = rng.sample(pool, 2)
    text = f"Review: the {rng.choice(ADJECTIVES)} {rng.choice(SHOWS)} was {a} and {b}. Feeling:"
    return text, [" negative", " positive"], answer


def _mrpc(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    first, other = rng.sample(range(len(SAME_VERBS)), 2)
    person, noun = rng.choice(PEOPLE), rng.choice(NOUNS)
    order = rng.randrange(2)
    one = SAME_VERBS[first][order]
    two = SAME_VERBS[first if answer else other][1 - order]
    text = f"First: the {person} {one} the {noun}. Second: the {person} {two} the {noun}. Same:"
    return text, [" no", " yes"], answer


def _nli(rng: random.Random) -> Item:
    answer = rng.randrange(3)
    person, (adjective, other) = rng.choice(PEOPLE), rng.sample(ADJECTIVES, 2)
    premise = f"every {person} here is {adjective}"
    claim = [f"one {person} here is {adjective}", f"no {person} here is {adjective}", f"one {person} here is {other}"]
    return f"Given: {premise}. Claim: {claim[answer]}. This is", [" certain", " impossible", " open"], answer


def _rte(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    kind, other = rng.sample(sorted(KINDS), 2)
    text = f"Text: {rng.choice(PEOPLE)} saw the {rng.choice(KINDS[kind])} near the {rng.choice(NOUNS)}."
    return f"{text} So there was a {kind if answer else other}. Follows:", [" false", " true"], answer


def _cola(rng: random.Random) -> Item:
    answer = rng.randrange(2)
    plural = rng.randrange(2)
    verb = rng.choice(AGREE)[plural if answer else 1 - plural]
    subject = f"those {rng.choice(SINGULAR)}s" if plural else f"that {rng.choice(SINGULAR)}"
    text = f"Sentence: {subject} {verb} {rng.choice(ADVERBS)} near the {rng.choice(NOUNS)}. Grammar:"
    return text, [" wrong", " right"], answer


def _mmlu(rng: random.Random) -> Item:
    kinds = rng.sample(sorted(KINDS), 4)
    answer = rng.randrange(4)
    options = " ".join(f"{letter}: {rng.choice(KINDS[kind])}" for letter, kind in zip(LETTERS, kinds))
    return f"Question: which is a {kinds[answer]}? {options} Answer:", [f" {x}" for x in LETTERS], answer


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "sst2": _sst2, "mrpc": _mrpc, "nli": _nli, "rte": _rte, "cola": _cola, "mmlu": _mmlu,
}


def split_of(prompt: str) -> str:
    """"test" for about one item in eight, by the hash of its text."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 32 else "train"


def make_items(task: str, split: str, n: int, rng: random.Random) -> list[dict[str, object]]:
    """`n` distinct items of one task and split."""
    items: dict[str, dict[str, object]] = {}
    while len(items) < n:
        prompt, choices, answer = TASKS[task](rng)
        if split_of(prompt) == split and prompt not in items:
            items[prompt] = {"task": task, "split": split, "id": f"{task}-{split}-{len(items)}", "prompt": prompt,
                             "choices": choices, "answer": answer}
    return list(items.values())
