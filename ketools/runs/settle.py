"""Facts that contradict each other, before a run draws from them: the last one wins, or the run is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ketools.errors import KetoolsError, named
from ketools.fact import UNKNOWN, Fact
from ketools.facts import FactSet

POLICIES = ("last wins", "refuse")


class Settled(FactSet):
    """Facts without contradictions; `left_out`: how many of those that were given had to go."""

    __slots__ = ("left_out",)

    def __init__(self, facts: Iterable[Fact], left_out: int) -> None:
        super().__init__(facts)
        self.left_out = left_out


def settled(facts: FactSet, policy: str = POLICIES[0]) -> FactSet:
    """`facts` without contradictions (FactSet.conflicts), in their order.

    "last wins": of facts that ask for different objects of one thing (subject and relation, or prompt) those with another
    object than the last one's are left out, with a warning, and the set says how many; "refuse": there may be none.

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
    kept: list[Fact] = []
    gone: list[tuple[Fact, str]] = []  # with the object that stays
    for fact in reversed(facts):
        things = [(fact.text.lower(),)]
        if fact.relation != UNKNOWN:
            things.append((fact.subject.lower(), fact.relation))
        if others := [said[thing] for thing in things if said.get(thing, fact.target_new) != fact.target_new]:
            gone.append((fact, others[0]))
        else:
            kept.append(fact)
            said |= dict.fromkeys(things, fact.target_new)
    first, stays = gone[-1]
    warnings.warn(
        f"{len(gone):,} facts contradict later ones and are left out (the last one wins), first of them {first.id!r}: "
        f"subject {first.subject!r}, relation {first.relation!r}, {stays!r} stays and {first.target_new!r} goes",
        stacklevel=2,
    )
    return Settled(reversed(kept), len(gone))
