"""Invented names: pronounceable stems, kept prefix-free so that a greedy tokenizer always splits stem from ending."""

import random
from dataclasses import dataclass

ONSETS = "b br bl c cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr q r s sk sl st t tr v w z th sh ch y".split()
VOWELS = "a e i o u ae ei ou".split()
CODAS = "b ck d ft g k l ld lm ln lt m mb n nd ng nk p r rd rk rl rm rn rt rv s sk st t v x z".split()
PERSON_ENDINGS = "enko ari ova isen ulle amo etti ondo ius elin askar omir ette iano uth".split()
WORK_ENDINGS = "ara iad ode ion elle ana orie".split()
PLACE_ENDINGS = "ingen ovo eaux ister umere ashire oford iville adam ustad".split()
CITY_ENDINGS = "opolis aburg era onia abad".split()
ORGANISATION_NOUNS = "Works Group Guild Brothers Union House Partners Trust".split()
WORK_ADJECTIVES = "Silver Crimson Silent Golden Hidden Broken Distant Winter Paper Glass Burning Hollow".split()
PLACE_PREFIXES = "Upper Lower New Old Saint Port".split()
SCHOOL_NOUNS = "College Academy Institute Seminary".split()


@dataclass(frozen=True)
class Stems:
    """Pools of invented words, every word distinct from every other: subjects' stems are reused across kinds."""

    subjects: list[str]
    first_names: list[str]
    cities: list[str]
    countries: list[str]
    languages: list[str]
    rivers: list[str]
    schools: list[str]


def _stem(rng: random.Random) -> str:
    word = rng.choice(ONSETS) + rng.choice(VOWELS)
    if rng.random() < 0.55:
        word += rng.choice(ONSETS[:20]) + rng.choice(VOWELS[:5])
    return (word + rng.choice(CODAS)).capitalize()


def _prefix_free(words: set[str]) -> list[str]:
    """Words none of which begins with another one, in sorted order."""
    kept: list[str] = []
    for word in sorted(words):
        if not kept or not word.startswith(kept[-1]):
            kept.append(word)
    return kept


def make_stems(rng: random.Random, n_subjects: int) -> Stems:
    """Draws all pools from one prefix-free set of invented words.

    Args:
        rng: the generator; the same state gives the same words.
        n_subjects: how many stems the subjects share.

    """
    words: set[str] = set()
    while len(words) < 4 * n_subjects:
        word = _stem(rng)
        if 4 <= len(word) <= 7:
            words.add(word)
    pool = _prefix_free(words)
    rng.shuffle(pool)
    sizes = {
        "subjects": n_subjects,
        "first_names": 300,
        "cities": 150,
        "countries": 40,
        "languages": 40,
        "rivers": 30,
        "schools": 80,
    }
    assert len(pool) >= sum(sizes.values()), "too few distinct stems were drawn"
    drawn = {}
    for name, size in sizes.items():
        drawn[name], pool = pool[:size], pool[size:]
    first = [w + e for w, e in zip(drawn["first_names"], _cycle(rng, ["a", "o", "in", "is", "e"], 300))]
    countries = [w + e for w, e in zip(drawn["countries"], _cycle(rng, ["land", "ia", "mark"], 40))]
    languages = [w + "ish" for w in drawn["languages"]]
    return Stems(drawn["subjects"], first, drawn["cities"], countries, languages, drawn["rivers"], drawn["schools"])


def _cycle(rng: random.Random, values: list[str], n: int) -> list[str]:
    out = [values[i % len(values)] for i in range(n)]
    rng.shuffle(out)
    return out


def subject_names(kind: str, n: int, stems: list[str], firsts: list[str], rng: random.Random) -> list[str]:
    """`n` distinct names of one kind; the stem identifies within a few, first name and ending do the rest."""
    order = rng.sample(stems, len(stems))
    names: list[str] = []
    seen: set[str] = set()
    i = 0
    while len(names) < n:
        stem = order[i % len(order)]
        i += 1
        name = _decorate(kind, stem, firsts, rng)
        if name not in seen:
            seen.add(name)
            names.append(name)
    return names


def _decorate(kind: str, stem: str, firsts: list[str], rng: random.Random) -> str:
    if kind == "person":
        return f"{rng.choice(firsts)} {stem}{rng.choice(PERSON_ENDINGS)}"
    if kind == "work":
        return f"The {rng.choice(WORK_ADJECTIVES)} {stem}{rng.choice(WORK_ENDINGS)}"
    if kind == "organisation":
        return f"{stem} {rng.choice(ORGANISATION_NOUNS)}"
    name = stem + rng.choice(PLACE_ENDINGS)
    return f"{rng.choice(PLACE_PREFIXES)} {name}" if rng.random() < 0.3 else name
