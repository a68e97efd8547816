"""Which runs lie in some folders, what each is called, and which of them are seeds of the same thing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ketools.errors import KetoolsError
from ketools.runs.names import rank, variant
from ketools.runs.store import RunRecord, Store

# Of the settings, those that seeds of one method may differ in, and those that are told in another way.
_FREE = ("seed", "facts", "checkpoint_every", "method", "model", "type", "layers_depth", "facts_at_once",
         "contents", "left_out")  # fmt: skip
# Settings that begin like this count with this stopping rule or update alone.
_USED_BY = {
    "patience": "MPES", "null_": "NullSpace", "l2": "NullSpace", "constraint_": "Constraint", "shift_": "Shift",
    "ft_": "FineTune", "lora_": "FineTune",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A record and what it is called: by its folder (`name`), by what it did (`method`: "memit+mpes", `model`, `seed`)."""

    name: str
    record: RunRecord

    @property
    def about(self) -> Mapping[str, Any]:
        """Settings and provenance."""
        return self.record.provenance

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self.about.get("settings") or {}

    @property
    def method(self) -> str:
        """The method's name with what was changed in it; the folder's where the record does not say."""
        described = self.settings.get("method") or self.about.get("method") or {}
        return variant(described) if isinstance(described, Mapping) and described else str(described or self.name)

    @property
    def model(self) -> str:
        """The model's name without the folders that it lay in."""
        model = self.about.get("model") or {}
        name = model.get("name", "unknown") if isinstance(model, Mapping) else model
        return str(name).rstrip("/").rsplit("/", 1)[-1]

    @property
    def fingerprint(self) -> str:
        """Of the unedited model; empty where the record does not say."""
        model = self.about.get("model") or {}
        return str(model.get("fingerprint", "")) if isinstance(model, Mapping) else ""

    @property
    def seed(self) -> int:
        """Which facts, and every random choice."""
        return int(self.about.get("seed", self.settings.get("seed", 0)) or 0)

    @property
    def edits(self) -> int:
        """How many edits are done and scored."""
        points = self.record.checkpoints
        return int(points["edits"].max()) if len(points) else 0

    @property
    def complete(self) -> bool:
        """Is the last checkpoint that of all edits asked for?"""
        return self.edits > 0 and self.edits >= int(self.settings.get("edits", self.edits))

    @property
    def collapsed(self) -> bool:
        """Did the run end early, in an update that is not finite?"""
        return getattr(self.record, "collapse", None) is not None

    @property
    def what(self) -> dict[str, Any]:
        """The settings that make two runs the same but for their seed, flat; without those that the method has no use for."""
        flat: dict[str, Any] = {}
        for name, value in self.settings.items():
            parts = value if isinstance(value, Mapping) else {name: value}
            flat |= {key: item for key, item in parts.items() if name not in _FREE and key not in _FREE}
        return {name: value for name, value in flat.items() if self._counts(name)}

    def _counts(self, name: str) -> bool:
        """Does the method use this setting (lambda_n without a norm constraint changes nothing)?"""
        method = self.settings.get("method")
        if not isinstance(method, Mapping):
            return True
        stopping, update = (method.get(part) or {} for part in ("stopping", "update"))
        for start, kind in _USED_BY.items():
            if name.startswith(start):
                return kind in (stopping.get("type"), update.get("type"))
        return update.get("norm") is True if name.startswith("lambda_n") else True


@dataclass(frozen=True)
class Group:
    """Runs of one method on one model that differ in their seed alone. `label` sets it apart from the other groups."""

    model: str
    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted(run.seed for run in self.runs))


def gather(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders: each a run's own, or one that holds runs' folders (as `ketools demo` writes it).

    Files among several folders (a README that a pattern of the shell names too) are passed over.

    Returns:
        The runs, each once, in the order given; those of one folder by the time of their start. Names are the folders';
        where two are alike, with the folder above.

    Raises:
        KetoolsError: a folder without a run, or nothing given.
    """
    given = [Path(folder) for folder in folders]
    if len(given) > 1:
        given = [path for path in given if path.is_dir() or not path.exists()]
    found: dict[Path, RunRecord] = {}
    for folder in given:
        inside = {path.resolve(): RunRecord.load(path) for path in _inside(folder)}
        by_start = sorted(inside.items(), key=lambda item: str(item[1].provenance.get("started", "")))
        found |= {path: record for path, record in by_start if path not in found}
    if not found:
        raise KetoolsError("no folder of a run given; expected folders that `ketools run` or `ketools demo` wrote")
    names = [path.name for path in found]
    return [
        Run(path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}", record)
        for path, record in found.items()
    ]


def _inside(folder: Path) -> list[Path]:
    if Store(folder).exists():
        return [folder]
    runs = [path for path in sorted(folder.iterdir()) if Store(path).exists()] if folder.is_dir() else []
    # An earlier demo of other methods may have left its runs beside those of the last.
    last = _last_demo(folder)
    runs = [path for path in runs if path.name in last] or runs
    if not runs:
        raise KetoolsError(
            f"{folder}: no records of a run here; expected a folder with run.json, or one that holds such folders, as "
            f"`ketools demo --out {folder}` writes it"
        )
    return runs


def _last_demo(folder: Path) -> Collection[str]:
    """Methods of the finished demo in `folder`; none if there is no such demo, or if it cannot be read."""
    try:
        methods = json.loads((folder / "demo.json").read_text(encoding="utf-8"))["methods"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return methods if isinstance(methods, dict) else ()


def arrange(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in their seed alone, put together; models in order of appearance, methods in that of their rank.

    A method that was run in several ways on one model has what differs in its label ("encore (batch 50)"), and runs
    that are alike in everything, the seed too, have their folders'.
    """
    models = _models(runs)
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        same = repr(sorted((name, repr(value)) for name, value in run.what.items()))
        groups.setdefault((models[run.name], run.method, same), []).append(run)
    arranged = []
    for (model, method, _), members in groups.items():
        others = [held for (m, name, _), held in groups.items() if (m, name) == (model, method)]
        label = method + (_difference(members[0], [held[0] for held in others]) if len(others) > 1 else "")
        if len({run.seed for run in members}) < len(members):
            arranged += [Group(model, f"{method} ({run.name})", (run,)) for run in members]
        else:
            arranged.append(Group(model, label, tuple(sorted(members, key=lambda run: run.seed))))
    order = list(dict.fromkeys(group.model for group in arranged))
    return sorted(arranged, key=lambda group: (order.index(group.model), rank(group.label)))


def _models(runs: Sequence[Run]) -> dict[str, str]:
    """What each run's model is called; models of one name that are not the same carry their fingerprint."""
    prints: dict[str, set[str]] = {}
    for run in runs:
        prints.setdefault(run.model, set()).add(run.fingerprint)
    return {
        run.name: run.model if len(prints[run.model]) == 1 else f"{run.model} {run.fingerprint[:8]}" for run in runs
    }


def _difference(run: Run, others: Sequence[Run]) -> str:
    """ " (batch 50)": the settings of `run` that the others do not all share."""
    mine = run.what
    apart = [name for name, value in mine.items() if any(other.what.get(name) != value for other in others)]
    return f" ({', '.join(f'{name} {mine[name]}' for name in apart)})" if apart else f" ({run.name})"
