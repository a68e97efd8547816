"""`ketools sweep`: many runs from one file, a grid or a random sample of it. Each is an ordinary run in its own folder.

    out = "build/sweep"
    [run]                            # what all runs share: keys of `ketools run`
    edits = 500
    [grid]                           # lists: every combination is a run
    method = ["memit", "encore"]
    seed = [0, 1, 2]
    settings.lambda_n_relative = [1.0, 10.0]
    [sample]                         # optional: draw this many combinations at random; [grid] may then hold ranges
    runs = 8

The folder's sweep.json lists the runs. An interrupted sweep resumes; runs may be added to its file, existing ones are kept.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from tqdm.auto import tqdm

from ketools.editing.covariance import Statistics, load_statistics, own_file
from ketools.editing.methods import Hyper
from ketools.errors import KetoolsError
from ketools.evaluation.downstream import load_heldout, tasks_named
from ketools.facts.fact import FactSet
from ketools.io import data_root, read_json, read_toml
from ketools.models.model import EditableModel
from ketools.models.weights import fresh
from ketools.runs.config import RunConfig, check_seed, composed, known_keys
from ketools.runs.panel import Sizes
from ketools.runs.pool import connected, run_all
from ketools.runs.run import Interrupted, execute, lifelong, opened, ready
from ketools.runs.store import RunRecord, Store, digest, read_sealed, status, write_sealed

KEPT = "sweep.json"
_MOST = 10_000  # runs of a grid
_LONGEST = 120  # characters of a folder's name
_TABLES = {"settings": Hyper, "measures": Sizes}  # of a run


class _Kept(BaseModel):
    points: dict[str, dict[str, Any]]
    threads: int


@dataclass(frozen=True)
class Sweep:
    """A sweep: its folder `out`, the runs (`points`) by the names of their folders in it, and the cores and GPUs that one run
    takes (None: a share of this machine's cores; a GPU if a run asks for a device other than the CPU).
    """

    out: Path
    points: Mapping[str, RunConfig]
    cpus: int | None = None
    gpus: float | None = None

    @classmethod
    def read(cls, path: str | Path, out: str | Path | None = None) -> Sweep:
        """The sweep in a TOML file; `out` replaces the folder named there. Raises KetoolsError naming file and key."""
        content = read_toml(path, "a sweep in TOML")
        try:
            return cls.made(content if out is None else content | {"out": str(out)})
        except KetoolsError as error:
            raise KetoolsError(f"{path}: {error}") from error

    @classmethod
    def made(cls, content: Mapping[str, Any]) -> Sweep:
        """The sweep with these keys.

        Raises KetoolsError for an unknown key (with the one that was probably meant); a grid that is empty, repeats a value,
        sets what [run] sets, or has more than 10,000 runs; a sample larger than the grid; and an invalid run.
        """
        known_keys(content, ["out", "run", "grid", "sample", "cpus", "gpus"], "key")
        for name in ("run", "grid", "sample"):
            if not isinstance(content.get(name, {}), dict):
                raise KetoolsError(f"{name} = {content[name]!r}: expected a table, [{name}]")
        for name, least in (("cpus", 1), ("gpus", 0)):
            value = content.get(name, least)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if name == "cpus" else int | float)
                or value < least
            ):
                raise KetoolsError(f"{name} = {value!r}: expected a number of at least {least}")
        out, base, sample = content.get("out", ""), content.get("run", {}), content.get("sample")
        if not isinstance(out, str) or not out:
            raise KetoolsError('no folder for the sweep; give one (--out DIR, or out = "DIR" in the file)')
        keys = [each.name for each in fields(RunConfig) if each.name not in ("out", "replicas")]
        known_keys(base, keys, "key of [run]:")
        RunConfig.made(base)
        axes = _axes(content.get("grid", {}), keys, sampled=sample is not None)
        for axis in axes:
            table, _, name = axis.rpartition(".")
            if name in (base.get(table, {}) if table else base):
                raise KetoolsError(f"{axis} is set in [run] and in [grid]; remove one of them")
        chosen = _drawn(axes, sample) if sample is not None else _every(axes)
        names = [_named(point) for point in chosen]
        twice = {name for name, n in Counter(names).items() if n > 1}
        points = {}
        for name, point in zip(names, chosen, strict=True):
            unique = name if name not in twice and len(name) <= _LONGEST else f"{name[:_LONGEST]}-{digest(point)[:8]}"
            config = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
            for axis, value in point.items():
                table, _, key = axis.rpartition(".")
                (config.setdefault(table, {}) if table else config)[key] = value
            try:
                points[unique] = RunConfig.made(config | {"out": str(Path(out) / unique)})
            except KetoolsError as error:
                raise KetoolsError(f"run {unique}: {error}") from error
        return cls(Path(out), points, content.get("cpus"), content.get("gpus"))

    @classmethod
    def of(cls, out: str | Path) -> Sweep:
        """The sweep that was started in `out`. Raises KetoolsError if there is none or its list is damaged."""
        kept = read_sealed(Path(out) / KEPT, _Kept)["points"]
        return cls(Path(out), {n: RunConfig.made(c | {"out": str(Path(out) / n)}) for n, c in kept.items()})

    def begin(self, threads: int) -> int:
        """Write the list of runs, or extend that of an earlier call, which also fixes the threads per run; returns the threads.

        Raises KetoolsError if the folder holds a run, or a sweep with a run that this one lacks.
        """
        store, path = Store(self.out), self.out / KEPT
        if store.exists():
            raise KetoolsError(f"{self.out} holds a run, not a sweep; give another folder")
        points = {name: {k: v for k, v in c.as_dict().items() if k != "out"} for name, c in self.points.items()}
        if path.exists():
            kept = read_sealed(path, _Kept)
            for name, before in kept["points"].items():
                if points.get(name) != before:
                    what = "other settings" if name in points else "no such run"
                    raise KetoolsError(
                        f"{self.out} holds another sweep: for its run {name!r} this one has {what}; give the same file (its "
                        "lists may grow) or another folder"
                    )
            threads = kept["threads"]
        with store.writing():
            write_sealed(path, {"points": points, "threads": threads}, indent=2)
        return threads

    def status(self) -> pd.DataFrame:
        """A row per run: run, state ("not started", or that of `ketools.runs.store.status`), edits, asked, seconds_per_edit."""
        rows = []
        for name, config in self.points.items():
            row = {"run": name, "state": "not started", "edits": 0, "asked": config.edits, "seconds_per_edit": math.nan}
            if Store(self.out / name).exists():
                now = status(self.out / name)
                row |= {key: now[key] for key in ("state", "edits", "seconds_per_edit")}
            rows.append(row)
        return pd.DataFrame(rows)


def _axes(grid: Mapping[str, Any], keys: list[str], *, sampled: bool) -> dict[str, Any]:
    """{key, or settings.NAME: its values}, checked."""
    known_keys(grid, keys, "key of [grid]:")
    axes: dict[str, Any] = {}
    for key, value in grid.items():
        if key in _TABLES:
            if not isinstance(value, dict):
                raise KetoolsError(f"{key} = {value!r} in [grid]: expected lists by name, such as {key}.NAME = [1, 2]")
            known_keys(value, [each.name for each in fields(_TABLES[key])], f"name in {key} of [grid]:")
            axes |= {f"{key}.{name}": values for name, values in value.items()}
        else:
            axes[key] = value
    if not axes:
        raise KetoolsError("[grid] is empty; give at least one list, such as seed = [0, 1, 2]")
    for axis, values in axes.items():
        if isinstance(values, dict) and sampled:
            known_keys(values, ["from", "to", "log"], f"key of the range {axis}:")
            low, high = (values.get(name) for name in ("from", "to"))
            number = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
            if not number or not (-math.inf < low < high < math.inf) or (values.get("log") and low <= 0):  # type: ignore[operator]
                raise KetoolsError(f"{axis} = {values!r} in [grid]: expected from < to (log: above 0)")
        elif not isinstance(values, list) or not values:
            more = ", or a range {from = 1.0, to = 9.0}" if sampled else " (a range needs [sample])"
            raise KetoolsError(f"{axis} = {values!r} in [grid]: expected a list with at least one value{more}")
        elif len({repr(value) for value in values}) < len(values):
            raise KetoolsError(f"{axis} = {values!r} in [grid]: a value occurs twice")
    return axes


def _every(axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations, the last axis fastest."""
    if (n := math.prod(map(len, axes.values()))) > _MOST:
        raise KetoolsError(
            f"[grid] has {n:,} combinations, more than {_MOST:,}; draw some of them ([sample] runs = 100)"
        )
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _drawn(axes: Mapping[str, Any], sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`sample["runs"]` different combinations; a smaller sample is the beginning of a larger one."""
    known_keys(sample, ["runs", "seed"], "key of [sample]:")
    runs, seed = sample.get("runs"), sample.get("seed", 0)
    if not isinstance(runs, int) or isinstance(runs, bool) or not 1 <= runs <= _MOST:
        raise KetoolsError(f"runs = {runs!r} in [sample]: expected a whole number from 1 to {_MOST:,}")
    check_seed(seed if isinstance(seed, int) else -1)
    lists = [values for values in axes.values() if isinstance(values, list)]
    if len(lists) == len(axes) and (n := math.prod(map(len, lists))) < runs:
        raise KetoolsError(f"runs = {runs} in [sample], but [grid] has {n:,} combinations; ask for at most as many")
    draw = np.random.default_rng(seed)

    def one() -> dict[str, Any]:
        point: dict[str, Any] = {}
        for axis, values in axes.items():
            if isinstance(values, list):
                point[axis] = values[draw.integers(len(values))]
                continue
            low, high = float(values["from"]), float(values["to"])
            x = math.exp(draw.uniform(math.log(low), math.log(high))) if values.get("log") else draw.uniform(low, high)
            whole = isinstance(values["from"], int) and isinstance(values["to"], int)
            point[axis] = round(x) if whole else float(f"{x:.4g}")  # short enough for a folder's name
        return point

    def different() -> Iterator[dict[str, Any]]:
        known: set[str] = set()
        for _ in range(1000 * runs):
            if (key := repr(point := one())) not in known:
                known.add(key)
                yield point

    points = list(islice(different(), runs))
    if len(points) < runs:
        raise KetoolsError(f"runs = {runs} in [sample]: [grid] has only about {len(points)} combinations")
    return points


def _named(point: Mapping[str, Any]) -> str:
    """A folder's name for a combination: "method=encore,seed=0"."""
    parts = []
    for axis, value in point.items():
        text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
        plain = re.sub(r"[^\w.+-]+", "-", text).strip("-") if isinstance(value, str) else text
        parts.append(f"{axis.rpartition('.')[2]}={plain}")
    return ",".join(parts)


def _by_model(points: Mapping[str, RunConfig]) -> list[dict[str, RunConfig]]:
    """Runs of one model together."""
    groups: dict[tuple[str | None, ...], dict[str, RunConfig]] = {}
    for name, config in points.items():
        groups.setdefault((config.model, config.device, config.dtype), {})[name] = config
    return list(groups.values())


def check(points: Mapping[str, RunConfig]) -> None:
    """Check all that can be checked before the first run; each model is loaded once, nothing is written.

    Raises KetoolsError naming the run: unreadable facts, tasks or text, too few facts, an unknown model, a setting or layer
    that does not fit it, no covariance where one is needed.
    """
    for group in _by_model(points):
        model, read = None, dict[object, Any]()
        for name, config in group.items():
            try:
                key = (config.source, config.conflicts)
                read[key] = ready(config, read.get(key))
                if config.tasks is not None:
                    tasks_named(config.tasks)
                if config.text is not None:
                    load_heldout(config.text, 1)
                model = model or opened(config)
                method = composed(config.method)
                layers = method.settings(model, **config.settings).layers or ()
                if method.needs_statistics and config.statistics is not None:
                    Statistics.load(config.statistics).of(model, layers)
                elif method.needs_statistics and own_file(model) is None:
                    load_statistics(model)  # raises and says what is missing
            except KetoolsError as error:
                raise KetoolsError(f"run {name}: {error}") from error


def carry_out(
    sweep: Sweep,
    *,
    address: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    each: Callable[[str], object] | None = None,
) -> None:
    """Run the sweep, or resume it.

    Args:
        sweep: its runs; finished ones are only read.
        address: a Ray cluster ("auto", or HOST:PORT), whose machines share the folder; None: this machine.
        workers: parallel runs; None: one per GPU, or core; on a cluster as many as fit. With 1, or without Ray, runs go one
            after another in this process.
        progress: show progress bars; each: called with the name of every run that has ended.

    Every run equals that of `ketools run` with as many threads, bit for bit. A worker that dies is replaced, and its run
    resumes. A run that fails (a full disk) does not stop the others.

    Raises:
        KetoolsError: what `check` finds, before any run; a folder with another sweep, or in which another process is working;
            no Ray, or no cluster at the address; afterwards, the runs that failed.
        ketools.runs.run.Interrupted: on Ctrl-C; finished batches of all runs are kept.
    """
    if workers is not None and workers < 1:
        raise KetoolsError(f"workers = {workers}: expected a whole number of at least 1")
    cores, accelerators = os.cpu_count() or 1, torch.accelerator.device_count()
    side_by_side = min(workers or accelerators or cores, len(sweep.points))
    if address is None and side_by_side > 1 and find_spec("ray") is None:
        if workers is not None:
            warnings.warn(
                "Ray is not installed: runs go one after another in this process (pip install '.[ray]' in ketools' folder)",
                stacklevel=2,
            )
        side_by_side = 1
    threads = sweep.cpus or (max(1, torch.get_num_threads() // side_by_side) if address is None else 1)
    on_device = any(config.device not in (None, "cpu") for config in sweep.points.values())
    gpus = float(on_device) if sweep.gpus is None else sweep.gpus
    failed: dict[str, str] = {}

    with (
        Store(sweep.out).locked(),
        tqdm(total=len(sweep.points), unit="run", desc="sweep", disable=not progress) as bar,
    ):

        def ended(name: str, error: str | None) -> None:
            if error is not None:
                failed[name] = error
            bar.update()
            if each is not None:
                each(name)

        try:
            if address is None:
                check(sweep.points)
            if address is None and side_by_side == 1:
                sweep.begin(threads)
                _one_by_one(sweep.points, ended, progress)
            else:
                with connected(address, threads, gpus, side_by_side) as ray:
                    if address is not None:  # check on the cluster, where the models are
                        run_all(ray, check, {"check": (dict(sweep.points),)}, _refused, cpus=threads, gpus=gpus)
                    threads = sweep.begin(threads)
                    jobs = {name: (config.as_dict(), threads) for name, config in sweep.points.items()}
                    limit = None if address is not None and workers is None else side_by_side
                    run_all(ray, _point, jobs, ended, cpus=threads, gpus=gpus, limit=limit)
        except KeyboardInterrupt as stop:
            if not (sweep.out / KEPT).exists():
                raise
            done = int(sweep.status()["state"].isin(("complete", "collapsed")).sum())
            raise Interrupted(
                f"stopped; {done} of {len(sweep.points)} runs are finished, the batches of the others are kept"
            ) from stop
    for name in sweep.points:
        if name not in failed and not Store(sweep.out / name).exists():
            failed[name] = "its worker wrote to another disk; give a folder that all machines share"
    if failed:
        name, error = next(iter(failed.items()))
        raise KetoolsError(
            f"{len(failed)} of {len(sweep.points)} runs failed, first {name}: {error.rstrip('.')}. The others are kept; "
            "repeat the command to resume"
        )


def _refused(_: str, error: str | None) -> None:
    if error is not None:
        raise KetoolsError(error)


def _one_by_one(points: Mapping[str, RunConfig], ended: Callable[[str, str | None], None], progress: bool) -> None:
    """All runs in this process."""
    for group in _by_model(points):
        model = opened(next(iter(group.values())))
        for name, config in group.items():
            error = None
            try:
                with fresh(model):
                    execute(config, model, ready(config), progress=progress)
            except KetoolsError as refused:
                error = str(refused)
            ended(name, error)


def _point(config: dict[str, Any], threads: int) -> None:
    """One run, in a worker."""
    torch.set_num_threads(threads)
    asked = RunConfig.made(config)
    facts = ready(asked)  # checked before the model is loaded
    execute(asked, opened(asked), facts, progress=False)


# Sequential runs on a model in memory.

ALL_STEPS = -1
"""The patience in tables of a target optimisation that takes all its steps."""


def sweep(
    model: EditableModel,
    facts: FactSet,
    runs: Mapping[str, Mapping[str, Any]],
    out: Path,
    **common: Any,  # noqa: ANN401 - passed on
) -> dict[str, RunRecord]:
    """Do one run after another, each in its folder `out`/NAME and from the present weights, which are restored afterwards.

    Args:
        runs: {name: arguments of `ketools.runs.run.lifelong` for this run alone, including its method}.
        common: arguments of all runs.

    Returns:
        {name: record}. Stopped runs resume, finished ones are only read.

    Raises:
        KetoolsError, ketools.runs.run.Interrupted: as `lifelong` does; finished batches and runs are kept.
    """
    records: dict[str, RunRecord] = {}
    for name, settings in runs.items():
        with fresh(model):
            records[name] = lifelong(model, facts, out=out / name, **{**common, **settings})
    return records


def stored(model: EditableModel) -> tuple[pd.DataFrame, dict[str, Any]]:
    """This model's grid of runs in the data folder, and its provenance (edits, batch, seed, model, versions).

    Raises KetoolsError, with the command that makes it, if there is none or it is of another model of this name.
    """
    path = data_root() / "dial" / f"{model.name}.parquet"
    remedy = f"`python -m benchmarks.dial --model {model.name} --write` makes it"
    if not path.is_file():
        raise KetoolsError(f"no grid of {model.name!r} at {path}; {remedy}")
    about = read_json(path.with_suffix(".json"), dict[str, Any], "the provenance of a grid")
    if about["model"]["fingerprint"] != model.fingerprint:
        raise KetoolsError(f"the grid at {path} is of another model than this {model.name!r}; {remedy}")
    return pd.read_parquet(path), about
