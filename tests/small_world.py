"""Forty facts of two relations about made-up people, with paraphrases and neighbours: enough for a run of a few batches."""

from ketools import Fact, FactSet

PEOPLE = [
    f"{first} {last}" for first in ("Ada", "Bo", "Mira", "Tovar") for last in ("Lorn", "Tarn", "Quell", "Istin", "Sall")
]
PLACES = ("Vell", "Oran Bay", "Port Sall", "Dunmark", "Ixian")
RELATIONS = {
    "born": ("{} was born in", "The home of {} is", 3),
    "works": ("{} works for the guild of", "You may visit {} in", 4),
}


def small_facts() -> FactSet:
    """A fact per person and relation; its neighbours are the others with the same place."""
    return FactSet(_fact(i, relation) for i in range(len(PEOPLE)) for relation in RELATIONS)


def _fact(i: int, relation: str) -> Fact:
    prompt, other, step = RELATIONS[relation]
    place = [(j * step + j // 5) % len(PLACES) for j in range(len(PEOPLE))]
    new = PLACES[(place[i] + 1 + i % 3) % len(PLACES)]
    same = [prompt.format(PEOPLE[j]) for j in range(len(PEOPLE)) if j != i and place[j] == place[i]]
    return Fact(
        f"{relation}-{i}", relation, prompt, PEOPLE[i], PLACES[place[i]], new,
        paraphrases=(other.format(PEOPLE[i]),), neighbours=same[:4], trained=(prompt.format(PEOPLE[i]),),
    )  # fmt: skip
