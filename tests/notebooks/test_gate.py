"""The gate itself: it fails on a changed output, on an error, on a dead kernel, fast; and lets figures and widgets be."""

import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
GATE = ["-p", "tests.notebooks.gate", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=60"]


def run(folder, *cells):
    """pytest over one notebook of (source, tags, outputs): (exit code, what it said, seconds)."""
    made = [
        new_code_cell(source, execution_count=i, metadata={"tags": tags}, outputs=outputs)
        for i, (source, tags, outputs) in enumerate(cells, 1)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=made, metadata=kernel), folder / "made.ipynb")
    cfg = ROOT / "tests" / "notebooks" / "sanitize.cfg"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *GATE, f"--nbval-sanitize-with={cfg}"]
    start = time.monotonic()
    done = subprocess.run([*words, str(folder / "made.ipynb")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def said(text):
    return [new_output("stream", name="stdout", text=text + "\n")]


def test_the_same_output_passes_and_so_do_what_is_ignored_and_a_figure(tmp_path):
    figure = new_output(
        "display_data",
        data={
            "application/vnd.plotly.v1+json": {"data": [1], "layout": {}},
            "image/png": "AAAA",
            "text/plain": "words",
        },
    )
    show = "from IPython.display import display\ndisplay({'application/vnd.plotly.v1+json': {'data': [2]}, 'text/plain': 'words'}, raw=True)"
    code, text, _ = run(
        tmp_path,
        ("print('holds: x (at least 1)')", ["claim"], said("holds: x (at least 1)")),
        ("print(4.2)", ["nbval-ignore-output"], said("3.1")),
        ("print('it took 2.5 s')", [], said("it took 1.25 s")),
        (show, [], [figure]),
        ("import sys; print('w', file=sys.stderr)", [], [new_output("stream", name="stderr", text="other\n")]),
    )
    assert code == 0 and "5 passed" in text, text


def test_another_output_and_an_error_fail(tmp_path):
    code, text, _ = run(
        tmp_path,
        ("print('holds: y (at least 1)')", ["claim"], said("holds: x (at least 1)")),
        ("print('holds: x')", ["claim"], []),
        ("assert False, 'does not hold'", ["claim"], said("holds: x (at least 1)")),
    )
    assert code == 1 and "3 failed" in text, text
    assert all(word in text for word in ("mismatch", "Unexpected output", "does not hold")), text


def test_a_dead_kernel_fails_at_once_and_names_the_cell(tmp_path):
    code, text, seconds = run(tmp_path, ("import os; os._exit(1)", [], []), ("print(1)", [], said("1")))
    assert code == 1 and "the kernel died in this cell" in text and "2 failed" in text, text
    assert seconds < 55, "it waited for the cell's whole time"
