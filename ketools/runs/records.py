"""Stored runs: names of methods, provenance, and how runs are gathered and grouped over seeds."""

import dataclasses
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ketools
from ketools.editing.methods import ALL
from ketools.errors import Damaged, KetoolsError
from ketools.io import read_json
from ketools.models.model import EditableModel
from ketools.runs.store import RunRecord, Store
from ketools.runs.study import is_study, read_study

# In display order.
_TITLES = {
    "memit": "MEMIT", "sequential-memit": "sequential MEMIT", "rome": "ROME", "r-rome": "R-ROME", "emmet": "EMMET",
    "alphaedit": "AlphaEdit", "ultraedit": "UltraEdit", "ft": "FT", "ft-l": "FT-L", "lora": "LoRA", "encore": "ENCORE",
}  # fmt: skip
_PARTS = {"mpes": "MPES", "norm": "norm constraint", "past": "past keys"}
_PACKAGES = ("torch", "transformers", "numpy", "pandas", "scikit-learn")
# Settings that may differ between seeds of one method, or that a label shows in another way.
_FREE = ("seed", "facts", "checkpoint_every", "method", "model", "type", "layers_depth", "facts_at_once",
         "contents", "left_out", "reads")  # fmt: skip
# Settings with these prefixes count only with this stopping rule or update.
_USED_BY = {
    "patience": "MPES", "null_": "NullSpace", "l2": "NullSpace", "constraint_": "Constraint", "shift_": "Shift",
    "ft_": "FineTune", "lora_": "FineTune",
}  # fmt: skip


def key(method: str) -> str:
    """A method's name as tables hold it: lower case, with hyphens."""
    return str(method).lower().replace("_", "-")


def title(method: str) -> str:
    """The method's display name; an unknown name is returned unchanged.

    >>> title("emmet+mpes"), title("sequential_memit (batch 50)"), title("mine")
    ('EMMET + MPES', 'sequential MEMIT (batch 50)', 'mine')
    """
    name, bracket, rest = str(method).partition(" (")
    base, *parts = key(name).split("+")
    if base not in _TITLES or not set(parts) <= set(_PARTS):
        return str(method)
    return " + ".join([_TITLES[base], *(_PARTS[part] for part in parts)]) + bracket + rest


def rank(method: str) -> tuple[int, int]:
    """A key for sorting methods: in display order, plain before modified; unknown ones last."""
    base, *parts = key(str(method).partition(" (")[0]).split("+")
    known = list(_TITLES)
    return (known.index(base) if base in known else len(known), len(parts))


def listed(items: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def variant(method: Mapping[str, Any]) -> str:
    """The method of a run, named by what it did: "memit" with MPES as its stopping rule is "memit+mpes".

    Args:
        method: a Method as `plain` writes it: name, stopping, update, post.

    Returns:
        The method's name, followed by what differs from the known method of that name: "+mpes", "+norm", "+past", or the
        type of any other part ("memit+Rect"). Settings are ignored.
    """
    name = str(method.get("name", "unknown"))
    known = next((m for m in ALL if m.name == name), None)
    if known is None:
        return name
    parts = [name]
    stopping, update, post = (method.get(part) or {} for part in ("stopping", "update", "post"))
    if (rule := stopping.get("type", type(known.stopping).__name__)) != type(known.stopping).__name__:
        parts.append("mpes" if rule == "MPES" else rule)
    if (kind := update.get("type", type(known.update).__name__)) != type(known.update).__name__:
        return "+".join([*parts, kind])
    for field, part in (("past_keys", "past"), ("norm", "norm")):
        before = getattr(known.update, field, False)
        if (now := update.get(field, before)) != before:
            parts.append(part if now else f"without {part}")
    own = type(known.post).__name__ if known.post is not None else ""
    if (after := post.get("type", "")) != own:
        parts.append(after or f"without {own}")
    return "+".join(parts)


def plain(value: object) -> Any:  # noqa: ANN401 - what json.dumps takes
    """A value as plain JSON; a dataclass becomes {"type": its name, fields...}, so that MPES and FixedSteps differ."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def versions() -> dict[str, str]:
    """Versions of Python, ketools and the packages that affect the numbers."""
    found = {"python": platform.python_version(), "ketools": ketools.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def provenance(model: EditableModel, seed: int, method: object | None = None) -> dict[str, Any]:
    """Versions, machine, seed, method with its settings, model with its fingerprint, commit, time (UTC)."""
    anatomy, device = model.anatomy, model.device
    shape = {name: getattr(anatomy, name) for name in ("architecture", "n_layer", "d_model", "d_mlp")}
    # Seconds mean nothing without the processor. On Linux, Python knows only "x86_64" or "".
    processor = platform.processor()
    if device.type != "cpu" and (named := getattr(torch.get_device_module(device), "get_device_name", None)):
        processor = str(named(device))
    elif (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20).stdout

    try:  # the checkout that holds the package
        commit = git("rev-parse", "HEAD").strip()
        checkout = {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):  # outside one, or without git
        checkout = None
    about = {
        "model": {"name": model.name, "fingerprint": model.fingerprint, **shape},
        "device": str(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "seed": seed,
        "versions": versions(),
        "git": checkout,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return about | ({"method": plain(method)} if method is not None else {})


@dataclass(frozen=True)
class Run:
    """A record and its names: its folder (`name`) and what it did (`method`, such as "memit+mpes", `model`, `seed`)."""

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
        """The method's name with what was changed in it; the folder's name if the record does not say."""
        described = self.settings.get("method") or self.about.get("method") or {}
        return variant(described) if isinstance(described, Mapping) and described else str(described or self.name)

    @property
    def _unedited(self) -> Mapping[str, Any]:
        return self.about.get("model") or {}

    @property
    def model(self) -> str:
        """The model's name, without folders."""
        return str(self._unedited.get("name", "unknown")).rstrip("/").rsplit("/", 1)[-1]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the unedited model; empty if the record does not say."""
        return str(self._unedited.get("fingerprint", ""))

    @property
    def seed(self) -> int:
        """Seed of the draw of facts and of every random choice."""
        return int(self.about.get("seed", self.settings.get("seed", 0)) or 0)

    @property
    def d_mlp(self) -> float:
        """Number of inputs of an edited matrix; load is edits / d_mlp. NaN if the record does not say."""
        return float(self._unedited.get("d_mlp") or math.nan)

    @property
    def processor(self) -> str:
        """What its seconds belong to, such as "AMD EPYC, 1 thread"; "" if the record does not say."""
        named, threads = self.about.get("processor") or "", self.about.get("threads")
        return f"{named}, {threads} thread{'s' if threads != 1 else ''}" if named and threads else str(named)

    @property
    def before(self) -> dict[str, float]:
        """Measures of the unedited model, named as at checkpoints; ES to p_edited are those of at most
        `ketools.runs.panel.BEFORE` facts. {} if it was not measured.
        """
        points = self.record.checkpoints
        if points.empty or points["edits"].iloc[0]:
            return {}
        row = points.iloc[0].to_dict()
        names = {name: f"before_{name}" for name in ("ES", "PS", "NS", "S")} | {"p_edited": "before_p_new"}
        found = {name: float(row.get(column, math.nan)) for name, column in names.items()}
        found |= {name: float(row[name]) for name in ("unedited_kept", "downstream_kept", "perplexity_ratio", "norm_ratio",
                                                      "p_natural") if name in row}  # fmt: skip
        return found | ({"same_subject_kept": 1.0} if row.get("same_subject_known") else {})

    def counts(self, at: int | None = None) -> dict[str, int]:
        """The number of facts behind each share of the last checkpoint, or of the last one up to `at` edits."""
        points = self.record.checkpoints
        points = points if at is None or points.empty else points[points["edits"] <= at]
        if points.empty:
            return {}
        row = points.iloc[-1]
        known = {name: row.get(f"{name}_known", math.nan) for name in ("unedited", "same_subject")}
        n = {f"{name}_kept": int(count) for name, count in known.items() if pd.notna(count)}
        n |= {"p_natural": n["unedited_kept"]} if "unedited_kept" in n else {}
        scores = ("ES", "PS", "NS", "S", "efficacy_accuracy", "paraphrase_accuracy", "p_edited")
        return n | (dict.fromkeys(scores, int(row["edits"])) if row["edits"] else {})

    @property
    def edits(self) -> int:
        """How many edits are done and scored."""
        points = self.record.checkpoints
        return int(points["edits"].max()) if len(points) else 0

    @property
    def ended_at_once(self) -> bool:
        """Did it end in its first batch? Its only checkpoint, of the unedited model, would mislead beside methods that edited."""
        return self.collapsed and not self.edits

    @property
    def complete(self) -> bool:
        """Is the last checkpoint that of all edits asked for?"""
        return self.edits > 0 and self.edits >= int(self.settings.get("edits", self.edits))

    @property
    def collapsed(self) -> bool:
        """Did the run end early, with an update that was not finite?"""
        return self.record.collapse is not None

    @property
    def what(self) -> dict[str, Any]:
        """The settings, flat, that runs of one group share; without those that the method does not use."""
        method = self.settings.get("method")
        stopping, update = (
            (method.get(part) or {}) if isinstance(method, Mapping) else {} for part in ("stopping", "update")
        )

        def counts(name: str) -> bool:
            if not isinstance(method, Mapping):
                return True
            for start, kind in _USED_BY.items():
                if name.startswith(start):
                    return kind in (stopping.get("type"), update.get("type"))
            # lambda_n without a norm constraint changes nothing.
            return update.get("norm") is True if name.startswith("lambda_n") else True

        post = method.get("post") if isinstance(method, Mapping) else None
        flat: dict[str, Any] = {}
        for name, value in {**self.settings, "stopping": stopping, "post": post}.items():
            for key, item in (value if isinstance(value, Mapping) else {name: value}).items():
                if name not in _FREE and key not in _FREE:
                    flat[key if key not in flat else f"{name}.{key}"] = item
        return {name: value for name, value in flat.items() if counts(name)}


@dataclass(frozen=True)
class Group:
    """Runs of one method on one model that differ only in their seed. `label` tells the group from others."""

    model: str
    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted(run.seed for run in self.runs))


def gather(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders. Each is the folder of a run, a folder of runs (as `ketools demo` writes it), a study
    (study.py), or one run of a study, named as if it were a folder in it.

    Files among several folders (a README that a shell pattern also matches) are skipped.

    Returns:
        The runs, each once, in the order given; those of one folder by starting time. A run is named after its folder, and
        after the folder above too where two have the same name.

    Raises:
        KetoolsError: a folder without a run, or no folder at all.
    """
    given = [Path(folder) for folder in folders]
    if len(given) > 1:
        given = [path for path in given if path.is_dir() or not path.exists()]
    records: dict[Path, RunRecord] = {}
    studies: dict[Path, dict[str, RunRecord]] = {}  # each is read only once
    for folder in given:
        for path, record in sorted(
            _inside(folder, studies), key=lambda item: str(item[1].provenance.get("started", ""))
        ):
            records.setdefault(path.resolve(), record)
    if not records:
        raise KetoolsError("no folder of a run given; expected folders that `ketools run` or `ketools demo` wrote")
    names = [path.name for path in records]
    return [
        Run(path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}", record)
        for path, record in records.items()
    ]


def _inside(folder: Path, studies: dict[Path, dict[str, RunRecord]]) -> list[tuple[Path, RunRecord]]:
    """The runs of one folder; studies are cached in `studies`. Raises KetoolsError if there is none."""
    study = folder if is_study(folder) else folder.parent
    if study not in studies and is_study(study):
        studies[study] = read_study(study)
    if folder in studies:
        return [(folder / name, record) for name, record in studies[folder].items()]
    if Store(folder).exists():
        return [(folder, RunRecord.load(folder))]
    if study in studies:
        records = studies[study]
        if folder.name not in records:
            raise KetoolsError(f"{folder}: no such run; {folder.parent} holds {', '.join(records)}")
        return [(folder, records[folder.name])]
    paths = [path for path in sorted(folder.iterdir()) if Store(path).exists()] if folder.is_dir() else []
    # demo.json names the runs of the last demo; an earlier one may have left others beside them.
    try:
        last = read_json(folder / "demo.json", dict[str, Any]).get("methods")
        paths = [path for path in paths if isinstance(last, dict) and path.name in last] or paths
    except Damaged:  # no finished demo, or one that cannot be read
        pass
    if not paths:
        raise KetoolsError(
            f"{folder}: no records of a run here; expected a folder with run.json, or one that holds such folders, as "
            f"`ketools demo --out {folder}` writes"
        )
    return [(path, RunRecord.load(path)) for path in paths]


def arrange(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in their seed; models in order of appearance, methods by `rank`.

    Different models of one name are told apart by their fingerprint. If a method was run in several ways on one model, its
    label says what differs ("encore (batch 50)"). Runs that agree in everything, even the seed, are labelled with their folder.
    """
    prints: dict[str, set[str]] = {}
    for run in runs:
        prints.setdefault(run.model, set()).add(run.fingerprint)
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        model = run.model if len(prints[run.model]) == 1 else f"{run.model} {run.fingerprint[:8]}"
        same = repr(sorted((name, repr(value)) for name, value in run.what.items()))
        groups.setdefault((model, run.method, same), []).append(run)
    arranged = []
    for (model, method, _), members in groups.items():
        ways = [some[0].what for (m, name, _), some in groups.items() if (m, name) == (model, method)]
        label = method
        if len(ways) > 1:
            what = members[0].what
            apart = [
                f"{name} {value[:8] if name == 'statistics' and value else value}"  # a checksum
                for name, value in what.items()
                if any(way.get(name) != value for way in ways)
            ]
            label = f"{method} ({', '.join(apart) or members[0].name})"
        if len({run.seed for run in members}) < len(members):
            arranged += [Group(model, f"{method} ({run.name})", (run,)) for run in members]
        else:
            arranged.append(Group(model, label, tuple(sorted(members, key=lambda run: run.seed))))
    order = list(dict.fromkeys(group.model for group in arranged))
    return sorted(arranged, key=lambda group: (order.index(group.model), rank(group.label)))
