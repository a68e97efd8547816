"""Going on with a run: how long from the start of the process until the first new batch is edited?

    python -m benchmarks.resume RUN --repeats 3 --json build/resume.json

RUN is the folder of an unfinished run; each repeat resumes a copy of it in a process of its own (`ketools resume`), which
ends where the next batch would begin. Seconds by the clock and of the CPU, with everything before: Python's own start, imports,
the model, the checksum of every file, edits put back into the weights, factors of the protected keys rebuilt.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import finish, middle, parser, said
from ketools.errors import KetoolsError
from ketools.runs.records import versions
from ketools.runs.store import Store

# What `ketools resume` does, up to the point where the weight update of the next batch could begin.
_CHILD = """
import json, resource, sys, time
from ketools.editing.editor import Editor
def stop(editor, facts, progress=None):
    for layer in editor.layers if editor.method.has_targets else ():
        editor.protection(layer).solve(editor.model.weight(layer).T[:, :1])
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"batch": len(editor.model.edits) + 1, "at": time.time(), "cpu": used.ru_utime + used.ru_stime}))
    sys.stdout.flush()
    raise SystemExit(0)
Editor.apply = stop
from ketools.__main__ import main
raise SystemExit(main())
"""


def resumed(folder: Path) -> dict[str, float]:
    """One resume of a copy of `folder`: clock and cpu, seconds; batch, the first new one. KetoolsError if it fails."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        shutil.copytree(folder, out)
        start = time.time()
        done = subprocess.run([sys.executable, "-c", _CHILD, "resume", str(out)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"batch"')]
    if not lines:
        raise KetoolsError(
            f"{folder}: no new batch was begun (exit code {done.returncode}): {done.stderr.strip()[-500:]}"
        )
    found = json.loads(lines[-1])
    return {"clock": found["at"] - start, "cpu": found["cpu"], "batch": found["batch"]}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Resume again and again, and return the figures."""
    store = Store(args.folder)
    if not store.exists() or args.repeats < 1:
        raise KetoolsError(f"{args.folder}: expected the folder of an unfinished run, and --repeats of at least 1")
    seen = [resumed(args.folder) for _ in range(args.repeats)]
    figures: dict[str, Any] = store.progress() | {"next_batch": seen[0]["batch"], "repeats": args.repeats}
    for name in ("clock", "cpu"):
        figures[name] = middle([each[name] for each in seen])
    return figures | {"settings": store.about()["settings"], "versions": versions()}


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"after {figures['edits']:,} edits in {figures['batches']} batches, until batch {figures['next_batch']}"]
    return lines + [said(what, figures[name], 1) for name, what in (("clock", "by the clock"), ("cpu", "CPU"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("folder", type=Path, metavar="RUN")
    return finish("resume", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
