"""`make test-mutations`: break the science in one place at a time, run the notebook, and see its claim fail.

python -m tests.notebooks.harness [NAME ...] [--notebooks 00,03] [--jobs 2]; writes the table into tests/notebooks/README.md.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell

from ketools.course import build as cells
from ketools.io import write_atomic
from tests.notebooks.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table: written by `make test-mutations` -->", "<!-- end of table -->"
SKIPPED = {"exercise", "widget"}  # no claim needs them
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "KETOOLS_MODE": "quick"}


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation: verdict "killed", "survived", "not reached" or "no notebook"."""

    mutation: Mutation
    verdict: str
    observed: str = ""
    others: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return self.verdict in ("killed", "no notebook")


def run(mutation: Mutation, folder: Path, seconds: int = 600) -> Outcome:
    """Run the mutation's notebook until its claim was made."""
    found = [path for path in cells.notebooks(folder) if cells.number(path) == mutation.notebook]
    if not found:
        return Outcome(mutation, "no notebook")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        record = Path(temporary) / "claims"
        record.touch()
        trouble = _execute(found[0], mutation, record, seconds)
        made = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    took = time.monotonic() - start
    named = [each for each in made if each["claim"] == mutation.claim]
    failed = tuple(dict.fromkeys(e["claim"] for e in made if not e["holds"] and e["claim"] != mutation.claim))
    if not named:
        return Outcome(mutation, "not reached", trouble, failed, took)
    dead = [each for each in named if not each["holds"]]
    return Outcome(mutation, "killed" if dead else "survived", f"{(dead or named)[0]['observed']:.3g}", failed, took)


def _execute(path: Path, mutation: Mutation, record: Path, seconds: int) -> str:
    """Cell after cell, going on behind errors, until the claim stands in `record`; returns the first error."""
    nb = cells.read(path)
    first = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.notebooks.recording import start\n"
    nb.cells = [cell for cell in cells.code(nb) if not cells.tags(cell) & SKIPPED]
    nb.cells.insert(0, new_code_cell(f"{first}start({mutation.name!r}, {str(record)!r})"))
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(nb, timeout=seconds, kernel_name="python3", allow_errors=True, resources=place)
    trouble = ""
    with client.setup_kernel(env=os.environ | _QUIET):
        for index, cell in enumerate(nb.cells):
            try:
                client.execute_cell(cell, index)
            except (CellTimeoutError, DeadKernelError) as error:
                return trouble or f"cell {index}: {type(error).__name__}"
            errors = [out for out in cell.outputs if out.output_type == "error"]
            trouble = trouble or "".join(f"cell {index}: {e.ename}: {e.evalue[:100]}" for e in errors[:1])
            if index == 0 and errors:
                return trouble
            if any(json.loads(line)["claim"] == mutation.claim for line in record.read_text().splitlines()):
                break
    return trouble


def table(outcomes: list[Outcome]) -> str:
    """Markdown: what was broken, which claim fails, what else failed before it."""
    rows = [
        "| mutation | what is broken | notebook | claim | outcome | claims before it that fail too |",
        "|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        m = each.mutation
        outcome = (
            f"{each.verdict}: observed {each.observed}"
            if each.fine and each.observed
            else f"{each.verdict} {each.observed}".strip()
        )
        rows.append(
            f"| `{m.name}` | {m.what} | {m.notebook} | {m.claim} | {outcome} | {'; '.join(each.others) or '-'} |"
        )
    return "\n".join(["", *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations; all if none is named")
    parser.add_argument("--notebooks", default="", help="only those of these notebooks: 00,03")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at once")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {m.name for m in MUTATIONS}:
        parser.error(f"no mutation {sorted(unknown)[0]!r}; there are: {', '.join(m.name for m in MUTATIONS)}")
    numbers = set(filter(None, chosen.notebooks.split(",")))
    todo = [m for m in MUTATIONS if m.name in (chosen.names or [m.name]) and m.notebook in (numbers or {m.notebook})]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // chosen.jobs)))
    outcomes = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for each in pool.map(lambda mutation: run(mutation, ROOT / "notebooks"), todo):
            outcomes.append(each)
            sys.stdout.write(f"{each.mutation.name}: {each.verdict} {each.observed} ({each.seconds:.0f} s)\n")
            sys.stdout.flush()
    if len(todo) == len(MUTATIONS):
        text = README.read_text(encoding="utf-8")
        write_atomic(
            README, re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table(outcomes)}\n{END}", text, flags=re.S)
        )
    return 0 if all(each.fine for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
