"""Facts that contradict each other, before a run draws from them: the last one wins, or the run is refused."""

from __future__ import annotations

from ketools.errors import KetoolsError, named
from ketools.fact import UNKNOWN
from ketools.facts import FactSet

POLICIES = ("last wins", "refuse")


def settled(facts: FactSet, policy: str = POLICIES[0]) -> FactSet:
    """`facts` without contradictions (FactSet.conflicts), in their order.

    "last wins": of facts that ask for different objects of one thing (subject and relation, or prompt) those with another
    object than the last one's are left out; "refuse": there may be none.

    Raises:
        KetoolsError: a contradiction with "refuse" (the first ones are named), or an unknown policy.
    """
    if policy not in POLICIES:
        raise KetoolsError(f"conflicts={policy!r}: expected one of {', '.join(map(repr, POLICIES))}")
    clashes = facts.conflicts()
    if not clashes:
        return facts
    if policy == "refuse":
        pairs = [f"{clash.first.id!r} and {clash.second.id!r}" for clash in clashes]
        raise KetoolsError(
            f"{len(clashes)} facts contradict earlier ones: {named(pairs, 3)} ({clashes[0]}); take them out, or let the last "
            'one win (conflicts = "last wins")'
        )
    said: dict[tuple[str, ...], str] = {}  # one thing -> the object that its last fact asks for
    kept = []
    for fact in reversed(facts):
        things = [(fact.text.lower(),)]
        if fact.relation != UNKNOWN:
            things.append((fact.subject.lower(), fact.relation))
        if all(said.get(thing, fact.target_new) == fact.target_new for thing in things):
            kept.append(fact)
            said |= dict.fromkeys(things, fact.target_new)
    return FactSet(reversed(kept))
