"""Running prose around the facts: a small grammar whose sentences begin as people's (and as prefixes) do.

Locate-then-edit methods put model-made prefixes ("The ...", "Therefore ...", "Because ...", "I ...", "You ...") before a
prompt, so sentences of each of these beginnings must be natural to the model.
"""

import random

NOUNS = """street market harbour garden bridge tower window door lamp kitchen table letter story song road hill forest
field mill barn wagon boat horse dog cat crow lake storm winter summer evening morning train station library hall
church castle wall gate well fire stove bread soup apple coat hat shoe ring clock mirror map""".split()
PEOPLE = """traveller neighbour child mother father brother sister uncle aunt friend stranger guest soldier farmer
student king queen captain nurse priest""".split()
ADJECTIVES = """old young quiet small large warm cold bright dark heavy light long short narrow wide green blue red white
black empty full wet dry strange plain gentle proud tired lonely""".split()
VERBS = """found lost painted carried watched opened closed repaired sold bought followed remembered forgot described
mentioned crossed entered left visited admired""".split()
MOVES = "walked ran rode travelled wandered hurried returned sailed".split()
PLACES = """to the market|to the harbour|along the river|through the forest|across the field|over the bridge|
into the hall|past the mill|up the hill|around the lake|towards the castle|behind the church"""
TIMES = "in the morning|in the evening|at night|before dawn|after the storm|every winter|last summer|long ago|at noon"
LINKS = "and|but|while|because|so that|although"


def _phrases(text: str) -> list[str]:
    return [" ".join(p.split()) for p in text.split("|")]


_PLACES, _TIMES, _LINKS = _phrases(PLACES), _phrases(TIMES), _phrases(LINKS)


def _noun(rng: random.Random, pool: list[str]) -> str:
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.5 else ""
    return f"the {adjective}{rng.choice(pool)}"


def clause(rng: random.Random) -> str:
    """One clause in the past tense, without capital and full stop."""
    who = _noun(rng, PEOPLE)
    if rng.random() < 0.5:
        body = f"{who} {rng.choice(VERBS)} {_noun(rng, NOUNS)}"
    else:
        body = f"{who} {rng.choice(MOVES)} {rng.choice(_PLACES)}"
    return f"{body} {rng.choice(_TIMES)}" if rng.random() < 0.4 else body


def sentence(rng: random.Random) -> str:
    """One sentence of prose with its full stop."""
    kind = rng.randrange(8)
    if kind == 0:
        text = f"Therefore {clause(rng)}"
    elif kind == 1:
        text = f"Because {clause(rng)}, {clause(rng)}"
    elif kind == 2:
        text = f"I {rng.choice(VERBS)} {_noun(rng, NOUNS)} {rng.choice(_TIMES)}"
    elif kind == 3:
        text = f"You {rng.choice(MOVES)} {rng.choice(_PLACES)} {rng.choice(_TIMES)}"
    elif kind == 4:
        text = f"{clause(rng)} {rng.choice(_LINKS)} {clause(rng)}"
    elif kind == 5:
        text = f"{rng.choice(_TIMES)}, {clause(rng)}"
    else:
        text = clause(rng)
    return text[0].upper() + text[1:] + "."


def paragraph(rng: random.Random, n: int) -> str:
    """`n` sentences joined by blanks."""
    return " ".join(sentence(rng) for _ in range(n))
