"""What a method is called in text: "memit+mpes" is MEMIT + MPES. The name of a run is that of what it changed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ketools.editing.methods import Method

# In the order in which they are shown.
_TITLES = {
    "memit": "MEMIT",
    "sequential-memit": "sequential MEMIT",
    "rome": "ROME",
    "r-rome": "R-ROME",
    "emmet": "EMMET",
    "alphaedit": "AlphaEdit",
    "ultraedit": "UltraEdit",
    "ft": "FT",
    "ft-l": "FT-L",
    "lora": "LoRA",
    "encore": "ENCORE",
}
_PARTS = {"mpes": "MPES", "norm": "norm constraint", "past": "past keys"}


def title(method: str) -> str:
    """The method's name as readers know it; a name that nobody knows is given back as it is.

    >>> title("emmet+mpes"), title("sequential_memit (batch 50)"), title("mine")
    ('EMMET + MPES', 'sequential MEMIT (batch 50)', 'mine')
    """
    name, bracket, rest = str(method).partition(" (")
    base, *parts = key(name).split("+")
    if base not in _TITLES or not set(parts) <= set(_PARTS):
        return str(method)
    return " + ".join([_TITLES[base], *(_PARTS[part] for part in parts)]) + bracket + rest


def rank(method: str) -> tuple[int, int]:
    """Where a method stands among others: in the order of the methods, plain before changed; unknown ones last."""
    base, *parts = key(str(method).partition(" (")[0]).split("+")
    known = list(_TITLES)
    return (known.index(base) if base in known else len(known), len(parts))


def key(method: str) -> str:
    """The name in the form in which tables of names hold it: lower case, with hyphens."""
    return str(method).lower().replace("_", "-")


def listed(items: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def variant(method: Mapping[str, Any]) -> str:
    """The method of a run by what it did: "memit" with MPES as its stopping rule is "memit+mpes".

    Args:
        method: as `ketools.runs.provenance.plain` writes a Method: name, stopping, update, post.

    Returns:
        The method's own name where it is the known one; with "+mpes", "+norm", "+past" for what was added to it; with
        the type of any other difference ("memit+Rect") otherwise. Settings are not looked at.
    """
    from ketools.editing.methods import ALL  # brings torch, which nothing else of a name needs

    name = str(method.get("name", "unknown"))
    known = next((m for m in ALL if m.name == name), None)
    if known is None:
        return name
    return "+".join([name, *_added(known, method)])


def _added(known: "Method", method: Mapping[str, Any]) -> list[str]:
    parts = []
    stopping, update, post = (method.get(part) or {} for part in ("stopping", "update", "post"))
    if (rule := stopping.get("type", type(known.stopping).__name__)) != type(known.stopping).__name__:
        parts.append("mpes" if rule == "MPES" else rule)
    if (kind := update.get("type", type(known.update).__name__)) != type(known.update).__name__:
        return [*parts, kind]
    for field, part in (("past_keys", "past"), ("norm", "norm")):
        before = getattr(known.update, field, False)
        if (now := update.get(field, before)) != before:
            parts.append(part if now else f"without {part}")
    own = type(known.post).__name__ if known.post is not None else ""
    if (after := post.get("type", "")) != own:
        parts.append(after or f"without {own}")
    return parts
