"""Resident memory over a run: does it grow with the edits?

    python -m benchmarks.memory --method encore --edits 2000 --batch 20 --json build/memory.json

A run (`ketools run`, its checkpoints measure next to nothing) is a process of its own; this one reads the run's resident
memory from Linux every few milliseconds, and counts its batches by what it has committed. For each batch the median and the
peak, MiB; the ratio of the last batch to the tenth, and of the highest batch to the tenth. Pages of files that are mapped
are told apart: Linux takes them back when it needs the memory.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import finish, parser
from ketools.errors import KetoolsError
from ketools.runs.store import Store

_EARLY = 10  # the batch that others are compared with: all that is made once is there by then
_PAUSE = 0.02  # seconds between two readings
_NOTHING = ["unedited", "same_subject", "per_task", "documents", "neighbours", "neighbours_end", "residual_tokens"]
_KINDS = {"anonymous": "RssAnon", "files": "RssFile"}


def command(args: argparse.Namespace, out: Path) -> list[str]:
    """The run as a command line of this Python."""
    words = [sys.executable, "-c", "from ketools.__main__ import main; raise SystemExit(main())", "run", "--quiet"]
    options = {"model": args.model, "facts": args.source, "method": args.method, "edits": args.edits,
               "batch": args.batch, "seed": args.seed, "device": args.device, "dtype": args.dtype,
               "checkpoint-every": args.edits, "out": out}  # fmt: skip
    measures = [*(f"{name}=0" for name in _NOTHING), "spectra=false", "past_edits=false"]
    words += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    words += [part for measure in measures for part in ("--measure", measure)]
    return words + [part for each in args.set for part in ("--set", each)]


def resident(pid: int) -> dict[str, float]:
    """MiB of a process by kind; empty once it has ended. Linux alone (/proc)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    kib = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {kind: int(kib[name]) / 1024 for kind, name in _KINDS.items() if name in kib}


def watched(words: Sequence[str], out: Path) -> list[list[dict[str, float]]]:
    """Readings of each batch, from the commit before it to its own. Raises KetoolsError if the run fails."""
    store, readings = Store(out), []
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            done = len(readings) - 1  # batches committed, once the run has begun (its commit 0)
            if store.path("batches", done + 1).is_file():
                readings.append([])
            if readings and (now := resident(run.pid)):
                readings[-1].append(now)
            time.sleep(_PAUSE)
        said = run.stderr.read() if run.stderr else ""
    if run.returncode:
        raise KetoolsError(f"the run ended with exit code {run.returncode}: {said.strip()[-500:]}")
    return readings[:-1]  # there is no batch after the last commit


def summary(readings: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    """Median and peak of each batch, and the ratios to batch 10."""
    total = [[sum(reading.values()) for reading in batch] or [float("nan")] for batch in readings]
    medians, peaks = [statistics.median(batch) for batch in total], [max(batch) for batch in total]
    early = _EARLY - 1
    figures: dict[str, Any] = {"median_mib": medians, "peak_mib": peaks}
    for kind in _KINDS:
        figures[f"{kind}_mib"] = [statistics.median(r[kind] for r in batch) if batch else None for batch in readings]
    return figures | {
        "ratio_median": medians[-1] / medians[early],
        "ratio_peak": peaks[-1] / peaks[early],
        "ratio_highest": max(medians[early:]) / medians[early],
        "ratio_highest_peak": max(peaks[early:]) / peaks[early],
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run as asked for and return the figures."""
    batches = -(-args.edits // args.batch)
    if batches <= _EARLY:
        raise KetoolsError(f"{batches} batches: expected more than {_EARLY}; raise --edits or lower --batch")
    if not Path("/proc/self/status").is_file():
        raise KetoolsError("no /proc/self/status here: resident memory is read from Linux alone")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        figures = summary(watched(command(args, out), out))
        about = Store(out).about()
    asked = {name: getattr(args, name) for name in ("model", "method", "edits", "batch")}
    return asked | figures | {"provenance": {name: value for name, value in about.items() if name != "config"}}


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    medians, peaks, last = figures["median_mib"], figures["peak_mib"], len(figures["median_mib"])
    points = sorted({1, _EARLY, last, *(last * part // 4 for part in (1, 2, 3))})
    lines = [f"batch {n}: {medians[n - 1]:,.0f} MiB, peak {peaks[n - 1]:,.0f}" for n in points]
    return [
        *lines,
        f"batch {last} / batch {_EARLY}: {figures['ratio_median']:.3f}, peaks {figures['ratio_peak']:.3f}",
        f"highest batch / batch {_EARLY}: {figures['ratio_highest']:.3f}, peaks {figures['ratio_highest_peak']:.3f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("--method", default="encore")
    made.add_argument("--edits", type=int, default=2000)
    made.add_argument("--batch", type=int, default=20)
    made.add_argument("--set", action="append", default=[], help="a setting of the method, such as steps=3; repeatable")
    return finish("memory", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
