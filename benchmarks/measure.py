"""Time, peak memory and the rate of matrix products, on whatever device."""

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_PAGE_KIB = 4
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Cost:
    """Seconds, and the peak of memory above what was held before, MiB (NaN where it cannot be read)."""

    seconds: float
    peak_mib: float


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; nothing to wait for on the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measured(job: Callable[[], Any], device: torch.device) -> tuple[Cost, Any]:
    """Cost and result of one call of `job`."""
    gc.collect()
    if device.type == "cpu":
        with _Resident() as memory:
            start = time.perf_counter()
            result = job()
            seconds = time.perf_counter() - start
        return Cost(seconds, memory.peak_mib), result
    synchronize(device)
    held = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result = job()
    synchronize(device)
    seconds = time.perf_counter() - start
    return Cost(seconds, (torch.accelerator.max_memory_allocated(device) - held) / 2**20), result


class _Resident:
    # The process' resident memory, looked at every few milliseconds: torch counts no allocations on the CPU.
    def __enter__(self) -> "_Resident":
        self.peak_mib, self._done = float("nan"), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if _STATM.exists():
            self._base = self._now()
            self.peak_mib = 0.0
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _now(self) -> float:
        return int(_STATM.read_text().split()[1]) * _PAGE_KIB / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak_mib = max(self.peak_mib, self._now() - self._base)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a product of two square matrices of `size` (2048 on a CPU, 8192 else), best of five."""
    size = size or (2048 if device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
