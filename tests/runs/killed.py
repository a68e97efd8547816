"""A run of many small batches on a tiny model in a process of its own, which is killed on the way: by the clock from
outside, or by itself in the midst of its work with files. What the tests of exactness and of faults share.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

from ketools import Fact, FactSet

PLACES = ("Vell", "Oran Bay", "Port Sall", "Dunmark", "Ixian")
CHANGED = {"steps": 2, "prefix_count": 1, "prefix_tokens": 2, "layers": (1, 2)}
MEASURES = {"unedited": 6, "same_subject": 0, "per_task": 0, "documents": 0, "neighbours": 0, "neighbours_end": 0}
# File events of Python's audit hooks: what a process does with files, from opening a temporary one to its renaming.
EVENTS = ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "tempfile.mkstemp")


def many_facts(n: int = 420) -> FactSet:
    """Facts about n people."""
    syllables = ("ba", "do", "ki", "lu", "me", "ra", "so", "ti", "vo", "ze")
    names = [f"{a}{b}{c}".title() for a in syllables for b in syllables for c in syllables][:n]
    return FactSet(
        Fact(f"{i}", "born", "{} was born in", name, PLACES[i % 5], PLACES[(i + 1 + i % 3) % 5])
        for i, name in enumerate(names)
    )


def run(home: str, out: str, edits: int = 400, batch: int = 20, events: int | None = None) -> None:
    """The run in `out`, with the model and statistics in `home`; kills itself at file event number `events`."""
    import warnings

    import torch

    from ketools.editing.covariance import Statistics
    from ketools.models.model import load
    from ketools.runs.panel import Sizes
    from ketools.runs.run import lifelong

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, statistics = load(home), Statistics.load(Path(home) / "covariance.safetensors")
    if events is not None:
        _die_at(out, events)
    lifelong(
        model, many_facts(), "encore", edits=edits, batch=batch, checkpoint_every=edits // 4, consolidate_every=4, out=out,
        statistics=statistics, progress=False, sizes=Sizes(**MEASURES), overrides=CHANGED,
    )  # fmt: skip


def _die_at(out: str, number: int) -> None:
    left = [number]

    def hook(event: str, args: tuple) -> None:
        if event in EVENTS and any(str(out) in str(a) for a in args[:2]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def start(*args: object) -> multiprocessing.process.BaseProcess:
    """`run` in a fresh process; torch is loaded once, in the server that processes are made from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ketools.runs.run", "ketools.models.model", "tests.runs.killed"])
    process = context.Process(target=run, args=args, daemon=True)
    process.start()
    return process


def kill_often(home: Path, out: Path, kills: int, seed: int, progress: "list[str]") -> None:
    """Run to the end, killed so many times on the way; `progress` hears where each kill fell."""
    draw = random.Random(seed)
    for number in range(kills):
        if number % 2:
            process = start(str(home), str(out), 400, 20, draw.randrange(1, 8000 // kills))
            process.join(600)
        else:
            process = start(str(home), str(out))
            until = _commits(out) + draw.randrange(0, max(2, 40 // kills))
            while process.is_alive() and _commits(out) < min(until, 19):
                time.sleep(0.005)
            time.sleep(draw.random() * 0.3)
            process.kill()
            process.join(600)
        progress.append(f"kill {number}: after {_commits(out)} commits, exit code {process.exitcode}")
    process = start(str(home), str(out))
    process.join(600)
    assert process.exitcode == 0, progress


def _commits(out: Path) -> int:
    return len(list((out / "batches").glob("[0-9]*.json"))) - 1
