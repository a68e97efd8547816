"""The config of a run: a TOML file or command-line options, checked before any work.

Also the facts without contradictions (`settled`) and methods by name ("memit+mpes", `composed`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ketools.editing.methods import MPES, Hyper, LeastSquares, Method, Nas, Prune, Rect, Sphere, check_value
from ketools.editing.methods import method as named_method
from ketools.errors import Damaged, KetoolsError, named
from ketools.facts.fact import UNKNOWN, Fact, FactSet
from ketools.io import joined_paths, knows_world, model_names, read_toml
from ketools.models import smollm2
from ketools.runs.panel import Sizes

POLICIES = ("last wins", "refuse")
DTYPES = ("float32", "bfloat16", "float16")
_WHOLE = ("edits", "batch", "checkpoint_every", "consolidate_every", "replicas")
_LARGEST_SEED = 2**32 - 1  # numpy takes none below 0; multiples of larger ones exceed the 64 bits of torch's generators
_KINDS = {int: "a whole number", bool: "true or false", str: "a text", dict: "a table"}


class Settled(FactSet):
    """Facts without contradictions; `left_out`: how many were left out."""

    __slots__ = ("left_out",)

    def __init__(self, facts: Iterable[Fact], left_out: int) -> None:
        super().__init__(facts)
        self.left_out = left_out


def settled(facts: FactSet, policy: str = POLICIES[0]) -> FactSet:
    """`facts` without contradictions (FactSet.conflicts), in their order.

    Facts contradict each other if they give one subject and relation, or one prompt, different objects. "last wins": those
    that contradict the last such fact are left out, with a warning, and the set says how many; "refuse": they are an error.

    Raises:
        KetoolsError: contradictions with "refuse" (the first are named), or an unknown policy.
    """
    if policy not in POLICIES:
        raise KetoolsError(f"conflicts={policy!r}: expected one of {', '.join(map(repr, POLICIES))}")
    clashes = facts.conflicts()
    if not clashes:
        return facts
    if policy == "refuse":
        pairs = [f"{clash.first.id!r} and {clash.second.id!r}" for clash in clashes]
        raise KetoolsError(
            f"{len(clashes)} facts contradict earlier ones: {named(pairs, 3)} ({clashes[0]}); remove them, or let the last "
            'one win (conflicts = "last wins")'
        )
    objects: dict[tuple[str, ...], str] = {}  # key: prompt, or subject and relation; value: the object of its last fact
    kept: list[Fact] = []
    gone: list[tuple[Fact, str]] = []  # (fact, the object that stays)
    for fact in reversed(facts):
        keys: list[tuple[str, ...]] = [(fact.text.lower(),)]
        if fact.relation != UNKNOWN:
            keys.append((fact.subject.lower(), fact.relation))
        if others := [o for key in keys if (o := objects.get(key, fact.target_new)) != fact.target_new]:
            gone.append((fact, others[0]))
        else:
            kept.append(fact)
            objects |= dict.fromkeys(keys, fact.target_new)
    first, stays = gone[-1]
    warnings.warn(
        f"{len(gone):,} facts contradict later ones and are left out (the last one wins), first of them {first.id!r}: "
        f"subject {first.subject!r}, relation {first.relation!r}, {stays!r} stays and {first.target_new!r} goes",
        stacklevel=2,
    )
    return Settled(reversed(kept), len(gone))


@dataclass(frozen=True)
class RunConfig:
    """A run of `ketools run`. Every field is a key of the TOML file; relative paths start from the current folder.

    model: a pocket model, a model folder, or a Hugging Face id.
    facts: "world", "real", a data set or a file (None: "world" for a model that knows it, else "real").
    tasks: "world", a file of items, or names of lm-eval tasks, separated by commas; text, for perplexity: "world" or a file
        (None of either: `ketools.runs.panel.asked_of`).
    method: "encore", or a method with additions, "memit+mpes" (`composed`); settings: of the method (a table, [settings]).
    edits, batch, seed, checkpoint_every, consolidate_every, conflicts: as in `ketools.runs.run.lifelong`.
    out: the run's folder; statistics: file of the covariance, or several, separated as in PATH (None: the model's own).
    chat: put prompts into the tokenizer's chat template; device, dtype: of the model; replicas: copies of the model over
        which Ray spreads the target optimisation.
    measures: what checkpoints measure, and how much of it (a table, [measures]: `ketools.runs.panel.Sizes`).
    """

    model: str = "pocket"
    facts: str | None = None
    tasks: str | None = None
    text: str | None = None
    method: str = "encore"
    edits: int = 1000
    batch: int = 50
    seed: int = 0
    out: str = ""
    checkpoint_every: int = 250
    consolidate_every: int = 10
    conflicts: str = "last wins"
    statistics: str | None = None
    chat: bool = False
    device: str | None = None
    dtype: str | None = None
    replicas: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """The config in a TOML file; `made` says what is checked. Raises KetoolsError naming the file."""
        path = Path(path)
        try:
            return cls.made(read_toml(path, "a config in TOML"))
        except Damaged:  # names the file
            raise
        except KetoolsError as error:
            raise KetoolsError(f"{path}: {error}") from error

    @classmethod
    def made(cls, content: Mapping[str, Any]) -> RunConfig:
        """The config with these keys. Raises KetoolsError for an unknown key (with the likely intended one) and for a value
        that has the wrong type or is impossible.
        """
        known_keys(content, [each.name for each in fields(cls)], "key")
        for each in fields(cls):
            wanted = {"int": int, "bool": bool, "Mapping[str, Any]": dict}.get(str(each.type), str)
            value = content.get(each.name)
            if value is not None and (not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool)):
                raise KetoolsError(f"{each.name} = {value!r}: expected {_KINDS[wanted]}")
            if isinstance(value, str) and "\0" in value:
                raise KetoolsError(f"{each.name} = {value!r}: a name cannot hold a null byte")
        made = cls(**{name: value for name, value in content.items() if value is not None})
        for name in _WHOLE:
            if getattr(made, name) < 1:
                raise KetoolsError(f"{name} = {getattr(made, name)}: expected a whole number of at least 1")
        check_seed(made.seed)
        if made.conflicts not in POLICIES:
            raise KetoolsError(f"conflicts = {made.conflicts!r}: expected one of {', '.join(map(repr, POLICIES))}")
        if made.dtype not in (None, *DTYPES):
            raise KetoolsError(f"dtype = {made.dtype!r}: expected one of {', '.join(DTYPES)}")
        composed(made.method)
        known_keys(made.settings, [each.name for each in fields(Hyper)], "setting")
        for name, value in made.settings.items():
            check_value(name, tuple(value) if isinstance(value, list) else value)  # the editor takes tuples
        known_keys(made.measures, [each.name for each in fields(Sizes)], "measure")
        for name, value in made.measures.items():
            switch = isinstance(getattr(Sizes, name), bool)
            if isinstance(value, bool) != switch or not isinstance(value, int):
                expected = "true or false" if switch else "a whole number"
                raise KetoolsError(f"measure {name} = {value!r}: expected {expected}")
        Sizes(**made.measures)
        return made

    def changed(self, **options: Any) -> RunConfig:  # noqa: ANN401 - of any type, which `made` checks
        """The config with the given options (not None) in place of its own; tables are merged."""
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name in ("settings", "measures"):
            given[name] = {**getattr(self, name), **given.get(name, {})}
        return self.made(asdict(self) | given)

    @property
    def source(self) -> str:
        """Where the facts come from."""
        return self.facts or ("world" if knows_world(self.model) else "real")

    def as_dict(self) -> dict[str, Any]:
        """As kept in run.json: `made` gives the same config; paths are absolute, so that a run resumes from any folder."""
        content = {name: value for name, value in asdict(self).items() if value is not None}
        models = [*model_names(), smollm2.NAME]
        names = {"model": models, "facts": ["world", "real"], "tasks": [], "text": ["world"]}
        for name, known in names.items():
            if (value := content.get(name)) and value not in known and Path(value).exists():
                content[name] = str(Path(value).resolve())
        if parts := content.get("statistics"):
            found = [str(Path(part).resolve()) if Path(part).exists() else part for part in joined_paths(parts)]
            content["statistics"] = os.pathsep.join(found)
        return content


def check_seed(seed: int) -> None:
    """Raise KetoolsError for a seed that numpy or torch cannot take."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise KetoolsError(f"seed = {seed}: expected a whole number from 0 to {_LARGEST_SEED}")


def known_keys(content: Mapping[str, Any], known: list[str], what: str) -> None:
    """Raise KetoolsError for the first key of `content` that is not in `known`, with the likely intended one."""
    for name in content:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise KetoolsError(f"unknown {what} {name!r}; {hint}")


def composed(name: str | Method) -> Method:
    """The method of a name such as "encore" or "memit+mpes": a method and what is changed in it. A Method stays as it is.

    mpes: the target optimisation stops early (MPES); past: keys of earlier edits are protected; norm: lambda_n I; prune,
    rect, sphere, nas: post-processing. `ketools.runs.records.variant` is the inverse.

    Raises:
        KetoolsError: an unknown method or part, or a part that does not fit the method.
    """
    if isinstance(name, Method):
        return name
    base, *parts = (part.strip() for part in name.split("+"))
    made, posts = named_method(base), {"prune": Prune, "rect": Rect, "sphere": Sphere, "nas": Nas}
    known_keys(dict.fromkeys(part.lower() for part in parts), ["mpes", "past", "norm", *posts], f"part of {name!r}:")
    for part in map(str.lower, parts):
        if part == "mpes" and made.has_targets:
            made = replace(made, stopping=MPES())
        elif part in ("past", "norm") and isinstance(made.update, LeastSquares):
            made = replace(made, update=replace(made.update, **{"past_keys" if part == "past" else "norm": True}))
        elif part in posts and made.post is None:
            made = replace(made, post=posts[part]())
        else:
            raise KetoolsError(f"method {name!r}: {base} has no place for {part!r}")
    return made
