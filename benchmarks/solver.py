"""The weight update over a sequence of batches: factors that grow with the keys, against a dense solve in every batch.

    python benchmarks/solver.py --json build/solver.json

Both solve Delta = R K1^T (lambda_p C + lambda_n I + K_p K_p^T + K1 K1^T)^-1 in float64 for the same batches, one after the
other in this process. "sequential" is what an Editor does (ketools.editing.update.Protection): one Cholesky factor, kept
up to date by each batch's rank. "dense" is what the published codes do: K_p K_p^T summed up, and one dense solve a batch.
Times are medians over the batches; what counts is their ratio, on whatever machine: by the clock, and in CPU seconds of this
process (cpu_ratio), which say the same where it has a core for itself and more where it has not. The exit code is 1 if the
two disagree by more than 1e-8. A size that does not fit the free memory is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ketools.editing.update import Protection, least_squares
from ketools.io import write_json
from ketools.runs.records import versions

SIZES = (2048, 8192, 14336)  # GPT2-medium and small Llamas; 8,192; Llama 3 8B, Mistral 7B
TOLERANCE = 1e-8
_HELD = 6  # matrices of d x d that are there at the same time, at most: C, its factor, the sum, its copy and LU, a fold


def problem(d: int, generator: torch.Generator) -> tuple[Tensor, float, float]:
    """C (d, d) with eigenvalues over four decades and 64 strong directions, lambda_p and lambda_n as by default."""
    strong = torch.randn(d, 64, generator=generator, dtype=torch.float64)
    c = strong @ strong.T / 64
    c.diagonal().add_(torch.logspace(0, -4, d, dtype=torch.float64))
    return c, 1.5 * d, 10 * float(c.trace()) / d


def batches(
    d: int, d_model: int, batch: int, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` pairs of keys (d, batch) and residuals (d_model, batch)."""
    for _ in range(count):
        yield tuple(torch.randn(n, batch, generator=generator, dtype=torch.float64) for n in (d, d_model))


def dense(base: Tensor, past: Tensor, keys: Tensor, residuals: Tensor) -> Tensor:
    """Delta (d_model, d) by one dense solve; `past` (d, d) is K_p K_p^T and takes these keys in."""
    past.addmm_(keys, keys.T)
    return residuals @ torch.linalg.solve(base + past, keys).T


def compare(d: int, batch: int, past: int, count: int, seed: int = 0) -> dict[str, Any]:
    """One size: `past` keys are there already, then `count` batches of `batch` keys are timed both ways."""
    generator = torch.Generator().manual_seed(seed)
    c, lambda_p, lambda_n = problem(d, generator)
    base = c.mul_(lambda_p)
    base.diagonal().add_(lambda_n)
    before, _ = next(batches(d, 1, past, 1, generator)) if past else (torch.zeros(d, 0, dtype=torch.float64), None)
    summed = before @ before.T
    spent = Spent()
    protection = Protection(base)
    protection.add(before)
    protection.solve(before[:, :1] if past else base[:, :1])  # builds the factors
    factors, sequential, solved, error = spent.now(), [], [], 0.0
    for keys, residuals in batches(d, max(1, d // 4), batch, count, generator):
        spent = Spent()
        left, right = least_squares(protection, keys, residuals)
        protection.add(keys)
        sequential.append(spent.now())
        spent = Spent()
        want = dense(base, summed, keys, residuals)
        solved.append(spent.now())
        error = max(error, float((left @ right.T - want).norm() / want.norm()))
    about = {"d_mlp": d, "batch": batch, "past": past, "batches": count, "relative_error": error}
    return about | _ratios(factors, sequential, solved, 0, "") | _ratios(factors, sequential, solved, 1, "cpu_")


class Spent:
    """Seconds since it was made: by the clock, and of this process on all its cores."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def now(self) -> tuple[float, float]:
        """(by the clock, of this process)."""
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def _ratios(
    factors: tuple[float, float],
    sequential: Sequence[tuple[float, float]],
    solved: Sequence[tuple[float, float]],
    which: int,
    prefix: str,
) -> dict[str, float]:
    ours, theirs = [pair[which] for pair in sequential], [pair[which] for pair in solved]
    row = {"seconds_factors": factors[which], "seconds_sequential": statistics.median(ours),
           "seconds_dense": statistics.median(theirs)}  # fmt: skip
    row["ratio"] = row["seconds_dense"] / row["seconds_sequential"]
    row["ratio_with_factors"] = sum(theirs) / (factors[which] + sum(ours))
    return {prefix + name: value for name, value in row.items()}


def too_large(d: int) -> str | None:
    """Why a size does not fit, or None."""
    need, free = _HELD * 8 * d * d, _free_bytes()
    if free is None or need <= 0.9 * free:
        return None
    return f"needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def _free_bytes() -> int | None:
    table = Path("/proc/meminfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def line(row: dict[str, Any]) -> str:
    """One size as a line of text."""
    if "skipped" in row:
        return f"d_mlp {row['d_mlp']:>6,}  skipped: {row['skipped']}"
    return (
        f"d_mlp {row['d_mlp']:>6,}  dense solve / sequential update = {row['ratio']:.1f} (with the first factors, over "
        f"{row['batches']} batches: {row['ratio_with_factors']:.1f}); in CPU seconds {row['cpu_ratio']:.1f} "
        f"({row['cpu_ratio_with_factors']:.1f}); relative error {row['relative_error']:.1e}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 1 where the two ways disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="d_mlp, one or more")
    parser.add_argument("--batch", type=int, default=100, help="facts of a batch")
    parser.add_argument("--past", type=int, default=500, help="facts edited before")
    parser.add_argument("--batches", type=int, default=5, help="batches that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    about = {"versions": versions(), "threads": torch.get_num_threads(), "seed": options.seed}
    for d in options.sizes:
        why = too_large(d)
        done = compare(d, options.batch, options.past, options.batches, options.seed) if why is None else None
        rows.append(done or {"d_mlp": d, "skipped": why})
        sys.stdout.write(line(rows[-1]) + "\n")
        sys.stdout.flush()
        if options.json is not None:  # after every size: the last one can take long
            write_json(options.json, {"rows": rows, **about})
    wrong = [row for row in rows if row.get("relative_error", 0.0) > TOLERANCE]
    for row in wrong:
        sys.stderr.write(f"d_mlp {row['d_mlp']}: the two disagree by {row['relative_error']:.1e}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
