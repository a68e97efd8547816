"""What the benchmarks have in common: the command line, interleaved repeats, where figures come from, how they end."""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import Cost, measured
from ketools.errors import KetoolsError
from ketools.io import write_json
from ketools.models.model import EditableModel
from ketools.runs.records import provenance

Work = Callable[[], Any]


def parser(about: str, facts: int = 100) -> argparse.ArgumentParser:
    """Arguments that all of them take; `about` is the module's docstring."""
    made = argparse.ArgumentParser(description=about.partition("\n")[0])
    made.add_argument("--model", default="pocket", help="a shape of benchmarks/shapes.py, a pocket model or a folder")
    made.add_argument("--facts", type=int, default=facts)
    made.add_argument("--source", default="world", help="facts: the built-in world, or a file")
    made.add_argument("--json", type=Path, default=None)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quiet", action="store_true")
    return made


def over_seeds(about: str, methods: Sequence[str], out: str) -> argparse.ArgumentParser:
    """Arguments of the benchmarks that make a run for each method and seed; `about` is the module's docstring."""
    made = argparse.ArgumentParser(description=about.partition("\n")[0])
    made.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2, 3, 4], help="0,1,2")
    made.add_argument("--methods", type=lambda s: s.split(","), default=list(methods), help="memit,encore")
    made.add_argument("--model", default="pocket")
    made.add_argument("--edits", type=int, default=1000)
    made.add_argument("--batch", type=int, default=50)
    made.add_argument("--out", default=out)
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def interleaved(
    work: Mapping[str, Work], repeats: int, device: torch.device, quiet: bool = True
) -> tuple[dict[str, list[Cost]], dict[str, Any]]:
    """Costs of each piece of work, all of them done once before any is done again, and their last results."""
    costs: dict[str, list[Cost]] = {name: [] for name in work}
    results: dict[str, Any] = {}
    with tqdm(total=repeats * len(work), disable=quiet) as bar:
        for _ in range(repeats):
            for name, job in work.items():
                bar.set_description(name)
                cost, results[name] = measured(job, device)
                costs[name].append(cost)
                bar.update()
    return costs, results


def medians(costs: Mapping[str, Sequence[Cost]]) -> dict[str, float]:
    """Median of the seconds by name."""
    return {name: statistics.median(cost.seconds for cost in some) for name, some in costs.items()}


def spreads(costs: Mapping[str, Sequence[Cost]]) -> dict[str, list[float]]:
    """Least and most seconds by name."""
    return {name: [min(c.seconds for c in some), max(c.seconds for c in some)] for name, some in costs.items()}


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of some measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def said(what: str, values: Mapping[str, float], digits: int) -> str:
    """What `middle` gave of `what`, in seconds, as a line of text."""
    median, least, most = (f"{values[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{what}: {median} s ({least} to {most})"


def origin(args: argparse.Namespace, model: EditableModel) -> dict[str, Any]:
    """Where figures come from: versions, machine, threads, model, commit, repeats."""
    return provenance(model, args.seed) | {"repeats": args.repeats}


def finish(
    name: str,
    args: argparse.Namespace,
    compare: Callable[[argparse.Namespace], dict[str, Any]],
    lines: Callable[[dict[str, Any]], Sequence[str]],
) -> int:
    """Compare, print the lines, write the JSON file; the exit code is that of `ended`."""

    def work() -> None:
        figures = compare(args)
        sys.stdout.write("\n".join(lines(figures)) + "\n")
        if args.json is not None:
            write_json(args.json, figures)

    return ended(work, name)


def ended(work: Callable[[], None], name: str = "") -> int:
    """Do the work; the exit code: 0, 2 for a mistake of the user and 130 for Ctrl-C, both said on stderr."""
    try:
        work()
        return 0
    except KetoolsError as error:
        message, code = str(error), 2
    except KeyboardInterrupt as stop:
        message, code = f"{stop}; the same command resumes" if str(stop) else "stopped", 130
    sys.stderr.write(f"{name}: {message}\n" if name else f"{message}\n")
    return code
