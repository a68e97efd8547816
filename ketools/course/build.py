"""What is built from the notebooks: stored outputs, student versions, pages that open offline, the table of times.

Notebooks are read with nbformat: their tags, headings, and exercises, whose solutions are between two marks.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from html import escape, unescape
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from ketools.errors import KetoolsError
from ketools.io import write_atomic

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TIMES_BEGIN, TIMES_END = "<!-- times: written by `make times` -->", "<!-- end of times -->"
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 120
HIDDEN = "hide-input"
"""Tag of code that JupyterLab and the pages collapse: claims, and cells that only draw."""
COLAB = "colab"
"""Tag of the cell that installs ketools in Colab."""
Draw = Callable[[Sequence[dict[str, Any]]], list[str]]
"""Figures (plotly's JSON) -> a PNG of each, base64."""
_WIDGET_TEXT = "A widget: run the notebook to use it."
_SCRIPT = "plotly.min.js"
_WELCOME = """<p>A fact can be located in a language model's weights and changed there. Many changes make the model overconfident
and its weights grow. Both problems have a cause, and a remedy in closed form. In these notebooks you write the methods, watch a
model break, and repair it.</p>"""
_NAME = re.compile(r"(\d\d)_[a-z0-9_]+")
_BADGES = re.compile(r"\n\nOpen in \[Colab\]\(.*")
_TURNS = re.compile(r"\n\n(?:Previous|Next): \[.*")
_LINK = re.compile(r"\]\((?!#)(?![a-z]+:)([^)\s]+)")
# Code first, so that a $ in it is left alone; then display and inline mathematics.
_MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", re.S)

_INSTALL = """import sys

if "google.colab" in sys.modules:  # on any other machine this cell does nothing
    !git clone -q --depth 1 {url} ketools
    %pip install -q "./ketools[notebooks]"
    %env KETOOLS_DATA=ketools/data"""
_NOTE = """# The course

The notebooks need ketools with its notebook extra, and run without a network and without an accelerator. In the folder of
ketools, with Python 3.11 or newer:

```sh
python -m venv .venv
.venv/bin/python -m pip install '.[notebooks]'    # Windows: .venv\\Scripts\\python
.venv/bin/jupyter lab
```

Every exercise is a cell that raises NotImplementedError until you replace that line.
"""


def notebooks(folder: str | Path) -> list[Path]:
    """The course's notebooks in `folder` (NN_words.ipynb), in order. Raises KetoolsError if there is none."""
    paths = sorted(path for path in Path(folder).glob("*.ipynb") if _NAME.fullmatch(path.stem))
    if not paths:
        raise KetoolsError(f"no notebooks in {folder}; expected files such as 00_first_edit.ipynb")
    return paths


def number(path: Path) -> str:
    """ "03" of 03_write_one_fact.ipynb."""
    match = _NAME.fullmatch(path.stem)
    assert match is not None, path
    return match[1]


def read(path: str | Path) -> NotebookNode:
    """The notebook in `path`. Raises KetoolsError if it is not a notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError) as error:
        raise KetoolsError(f"{path} is not a notebook: {error}") from error


def tags(cell: NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", ()))


def code(nb: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """The code cells: all, or those with `tag`, without the one that installs ketools in Colab (`badges`)."""
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and COLAB not in tags(cell)]
    return [cell for cell in cells if tag is None or tag in tags(cell)]


def prose(nb: NotebookNode) -> str:
    """All markdown cells, joined."""
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def title(nb: NotebookNode) -> str:
    """The text of the first H1. Raises KetoolsError if there is none."""
    match = re.search(r"^# +(.+)$", prose(nb), re.M)
    if match is None:
        raise KetoolsError("a notebook without a title; its first cell must begin with '# '")
    return match[1].strip()


def objectives(nb: NotebookNode) -> list[str]:
    """The numbered list below **You will be able to**."""
    _, head, rest = prose(nb).partition("**You will be able to**")
    items = re.split(r"^\d+\. +", rest.partition("\n**")[0], flags=re.M)[1:] if head else []
    return [" ".join(item.split()) for item in items]


def minutes(nb: NotebookNode) -> int | None:
    """The minutes given under **Time**; None if there are none."""
    match = re.search(r"\*\*Time\*\*:? *(\d+) minutes", prose(nb))
    return int(match[1]) if match else None


def figures(nb: NotebookNode) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    """(cell, output) of every plotly figure that the notebook shows."""
    return ((cell, out) for cell in code(nb) for out in cell.outputs if PLOTLY in out.get("data", {}))


def solution(source: str) -> tuple[str, str]:
    """(stub, solution) of an exercise's cell; students get the stub, which raises NotImplementedError.

    Raises KetoolsError unless there is exactly one marked, non-empty solution.
    """
    lines = source.splitlines()
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END))
    if len(begins) != 1 or len(ends) != 1 or begins[0] + 1 >= ends[0]:
        raise KetoolsError(f"expected one solution between lines {BEGIN!r} and {END!r}; got:\n{source}")
    first, last = begins[0], ends[0]
    indent = lines[first].removesuffix(lines[first].lstrip())
    stub = [*lines[:first], f'{indent}raise NotImplementedError("your turn")', *lines[last + 1 :]]
    return "\n".join(stub), "\n".join(line.removeprefix(indent) for line in lines[first + 1 : last])


def turns(path: str | Path) -> str:
    """A line of markdown with links to the previous and next notebook in the folder of `path`; "" if there is no other."""
    path, around = Path(path), notebooks(Path(path).parent)
    at = around.index(path)
    places = (("Previous", at - 1), ("Next", at + 1))
    links = [(word, around[i]) for word, i in places if 0 <= i < len(around)]
    return " · ".join(f"{word}: [{title(read(other))}]({other.name})" for word, other in links)


def with_turns(nb: NotebookNode, path: str | Path) -> NotebookNode:
    """The notebook with the line of `turns` below its title, replacing an earlier one."""
    name, *rest = _TURNS.sub("", nb.cells[0].source, count=1).split("\n\n")
    nb.cells[0].source = "\n\n".join(filter(None, (name, turns(path), *rest)))
    return nb


def badges(nb: NotebookNode, name: str, url: str) -> NotebookNode:
    """The notebook with links that open it in Colab and in Binder, and a cell that installs ketools in Colab.

    `name`: of its file in notebooks/ of the public repository `url`, on GitHub. What an earlier call wrote is replaced.
    Raises KetoolsError for another address.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    if match is None:
        raise KetoolsError(f"{url}: expected a repository on GitHub, such as https://github.com/OWNER/NAME")
    colab = f"https://colab.research.google.com/github/{match[1]}/blob/HEAD/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{match[1]}/HEAD?labpath=notebooks/{name}"
    top, *rest = _BADGES.sub("", nb.cells[0].source).split("\n\n")
    nb.cells[0].source = "\n\n".join([top, f"Open in [Colab]({colab}) or [Binder]({binder})", *rest])
    install = new_code_cell(_INSTALL.format(url=f"https://github.com/{match[1]}"), id="colab")
    install.metadata = NotebookNode(tags=[COLAB, "nbval-skip", "skip-execution"], jupyter={"source_hidden": True})
    nb.cells = [nb.cells[0], install, *(cell for cell in nb.cells[1:] if COLAB not in tags(cell))]
    return nb


def run(nb: NotebookNode, folder: Path, *, go_on: bool = False, seconds: int = CELL_SECONDS) -> None:
    """Execute all cells in place, in a fresh kernel whose working directory is `folder`; at most `seconds` per cell.

    go_on: keep errors as outputs and continue. Raises KetoolsError at the first cell that fails, times out or kills the
    kernel.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        nb, timeout=seconds, kernel_name="python3", allow_errors=go_on, resources=where, record_timing=False
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise KetoolsError(f"a cell of {title(nb)!r} failed: {error}") from error
    for cell in code(nb):  # join what a cell printed in several messages
        merged: list[NotebookNode] = []
        for output in cell.outputs:
            if merged and output.output_type == "stream" and output.name == merged[-1].get("name"):
                merged[-1].text += output.text
            else:
                merged.append(output)
        cell.outputs = merged


def store(path: str | Path, draw: Draw | None = None, seconds: int = CELL_SECONDS) -> Path:
    """Run the notebook in `path` in a fresh kernel and write it back with its outputs, ready to be committed.

    Widgets and their state, times, the machine's Python and warnings on stderr are left out. The title gets links to the
    previous and next notebook (`turns`), and every figure a PNG from `draw` (None: `ketools.plots.pictures`) and its
    description as plain text. A cell may take `seconds`. The file is written only if every cell ran. Raises KetoolsError
    naming the cell that failed, or without a browser.
    """
    from ketools.plots.pictures import pictures

    path = Path(path)
    nb = with_turns(read(path), path)
    run(nb, path.parent, seconds=seconds)
    nb.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in nb.cells:
        cell.metadata = NotebookNode({"tags": sorted(tags(cell))} if tags(cell) else {})
        if HIDDEN in tags(cell):
            cell.metadata["jupyter"] = NotebookNode(source_hidden=True)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for data in (output.get("data", {}) for output in cell.outputs):
                if data.pop(WIDGET, None) is not None and "text/markdown" not in data:
                    data["text/plain"] = _WIDGET_TEXT
    shown = [output.data for _, output in figures(nb)]
    for data, png in zip(shown, (draw or pictures)([dict(data[PLOTLY]) for data in shown]), strict=True):
        data["image/png"] = png
        data["text/plain"] = data[PLOTLY].get("layout", {}).get("meta", {}).get("description", "")
    nbformat.validate(nb)
    return write_atomic(path, nbformat.writes(nb) + "\n")


def student(nb: NotebookNode, solutions: bool = True) -> NotebookNode:
    """A copy whose exercises are stubs, without outputs; with `solutions` each is followed by its collapsed solution.

    A stub's cell has the tag raises-exception, so that Run All continues after it. Raises KetoolsError for an exercise
    without exactly one marked solution.
    """
    made = deepcopy(nb)
    made.cells = []
    for cell in deepcopy(nb.cells):
        made.cells.append(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if "exercise" in tags(cell):
            cell.source, hidden = solution(cell.source)
            cell.metadata["tags"] = [*cell.metadata["tags"], "raises-exception"]
            text = f"<details><summary>Solution</summary>\n\n```python\n{hidden}\n```\n\n</details>"
            if solutions:
                made.cells.append(new_markdown_cell(text, id=f"{cell.id}-solution", metadata={"tags": ["solution"]}))
    return made


def write_students(folder: str | Path, out: str | Path, solutions: bool = False) -> list[Path]:
    """Write the student version of every notebook in `folder` to `out`, with installation notes; returns the paths.

    `solutions`: add each solution, collapsed, below its exercise.
    """
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "README.md", _NOTE)
    made = {out / path.name: relinked(student(read(path), solutions), folder, out) for path in notebooks(folder)}
    return [write_atomic(path, nbformat.writes(nb) + "\n") for path, nb in made.items()]


def relinked(nb: NotebookNode, old: Path, new: Path) -> NotebookNode:
    """The notebook moved from `old` to `new`: relative links are adapted, except those to other notebooks."""

    def moved(link: re.Match[str]) -> str:
        return f"]({Path(os.path.relpath(old / link[1], new)).as_posix()}" if "/" in link[1] else link[0]

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(moved, cell.source)
    return nb


def build(folder: str | Path, out: str | Path, only: Sequence[Path] | None = None) -> dict[str, float]:
    """Run every notebook in `folder`, or `only` some, and write them to `out` as notebooks and pages, with an index.

    Returns {name: seconds} of all notebooks in `out`. Raises KetoolsError naming the notebook and the cell that failed;
    earlier notebooks are written.
    """
    from plotly.offline import get_plotlyjs

    from ketools.plots.diagrams import transformer

    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / _SCRIPT, get_plotlyjs())
    for path in only or notebooks(folder):
        nb, start = read(path), perf_counter()
        run(nb, path.parent)
        nb.metadata["seconds"] = perf_counter() - start
        write_atomic(out / path.name, nbformat.writes(nb) + "\n")
        write_atomic(out / f"{path.stem}.html", page(relinked(nb, folder, out)))
    items, took = [], run_seconds(out)
    for path in notebooks(out):
        nb = read(path)
        learnt = "".join(f"<li>{_inline(each)}</li>" for each in objectives(nb))
        time = f"{minutes(nb)} minutes to read and do, {took[path.stem]:.0f} s to run"
        items.append(
            f'<li value="{int(number(path))}"><a href="{path.stem}.html">{escape(title(nb))}</a> '
            f"<small>({time})</small><ul>{learnt}</ul></li>"
        )
    index = f"<h1>The course</h1>{_WELCOME}<figure>{transformer()}</figure><ol>{''.join(items)}</ol>"
    write_atomic(out / "index.html", _html("ketools: the course", index))
    return took


def run_seconds(folder: str | Path) -> dict[str, float]:
    """{name: seconds} that the notebooks in `folder` took when `build` ran them."""
    took = {path.stem: read(path).metadata.get("seconds") for path in notebooks(folder)}
    if lacking := [name for name, seconds in took.items() if seconds is None]:
        raise KetoolsError(f"{lacking[0]}.ipynb in {folder} was not built; run `make course`")
    return took


def page(nb: NotebookNode) -> str:
    """A notebook as an HTML page next to plotly.min.js, with interactive figures; it loads nothing from the network."""
    from nbconvert import HTMLExporter

    nb.metadata.pop("widgets", None)
    shown: list[NotebookNode] = []
    for cell in nb.cells:
        if HIDDEN in tags(cell):
            folded = f"<details><summary>code</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
            shown.append(new_markdown_cell(folded))
            cell.metadata["transient"] = {"remove_source": True}
        shown.append(cell)
    nb.cells = shown
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if PLOTLY in data:
                output.data = NotebookNode({"text/html": _figure(deepcopy(data[PLOTLY]))})
            elif data.pop(WIDGET, None) is not None and "text/markdown" not in data:
                output.data = NotebookNode({"text/html": f"<p><em>{_WIDGET_TEXT}</em></p>"})
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body = re.sub(r'href="([0-9]{2}_[a-z0-9_]+)\.ipynb"', r'href="\1.html"', exporter.from_notebook_node(nb)[0])
    script = f'<script src="{_SCRIPT}"></script>'
    return _html(title(nb), f'<p><a href="index.html">The course</a></p>\n{body}', script)


def _figure(figure: dict[str, Any]) -> str:
    """An interactive figure; finding and caption become text of the page, which wraps on a narrow screen."""
    from plotly.io import to_html

    layout = figure["layout"]
    words = {name: escape(unescape(str(text))) for name, text in (layout.get("meta") or {}).items()}
    notes = layout.get("annotations", [])
    if "finding" in words:  # remove the height that `dress` gave them
        above = 18 + 22 * (1 + layout.pop("title")["text"].count("<br>"))
        below = sum(18 * (1 + note["text"].count("<br>")) for note in notes if note.get("name") == "caption")
        layout["annotations"] = [note for note in notes if note.get("name") != "caption"]
        layout["margin"] |= {"t": layout["margin"]["t"] - above, "b": layout["margin"]["b"] - below}
        layout["height"] -= above + below
    drawn = to_html(
        {"data": figure["data"], "layout": layout},
        full_html=False,
        include_plotlyjs=False,
        validate=False,
        config={"responsive": True},
    )
    # Wide enough for labels and panels: on a narrow screen the figure scrolls, not the page.
    panels = {str(axis.get("domain")) for name, axis in layout.items() if name.startswith("xaxis")}
    margin = layout.get("margin", {})
    width = margin.get("l", 0) + margin.get("r", 0) + 230 * max(1, len(panels))
    finding, caption = (words.get(name, "") for name in ("finding", "caption"))
    return (
        f'<figure class="plot"><figcaption>{finding}</figcaption>'
        f'<div role="img" aria-label="{words.get("description", "a figure")}">'
        f'<div style="min-width: {width}px">{drawn}</div></div><small>{caption}</small></figure>'
    )


def mathml(text: str) -> str:
    """Markdown with its TeX ($...$ and $$...$$) as MathML, which browsers render without a library."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        tex, display = (match[2], "block") if match[2] else (match[3], "inline")
        made = convert(" ".join(tex.split()), display=display)
        if match[2]:
            for bare, limits, count in (("msubsup", "munderover", 2), ("msub", "munder", 1)):
                part = r"(?:<mrow>(?:(?!</?mrow>).)*</mrow>|<m[ino]>[^<]*</m[ino]>)"
                sums = rf"<{bare}>(<mo>&#x02211;</mo>{part * count})</{bare}>"
                made = re.sub(sums, rf"<{limits}>\1</{limits}>", made)
        # Browsers lack menclose, and stretch a brace only with suitable fonts: site.css draws both.
        made = re.sub(
            r"<munder>(<munder>)(.*?)<mo>&#x23DF;</mo></munder>", r'<munder><mrow class="brace">\2</mrow>', made
        )
        made = made.replace('<menclose notation="box">', '<mrow class="box">').replace("</menclose>", "</mrow>")
        # Markdown must not read parts of a formula as emphasis, or an empty line in it as a new paragraph.
        made = made.replace("*", "&#42;").replace("_", "&#95;").replace("\n", " ")
        return f'<div class="formula">{made}</div>' if match[2] else made

    return _MATH.sub(drawn, text)


def _inline(text: str) -> str:
    """A line of markdown as HTML: mathematics, `code`, *emphasis*."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", mathml(escape(text, quote=False)))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)


def _html(title: str, body: str, script: str = "") -> str:
    from pygments.formatters import HtmlFormatter

    look = files("ketools.course").joinpath("site.css").read_text(encoding="utf-8")
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{look}{colours}</style>{script}</head>\n<body><main>{body}</main></body></html>\n"
    )


def write_times(folder: str | Path, built: str | Path) -> str:
    """Put the table of times between the marks of README.md in `folder`; `built` is the output folder of `make course`.

    A row per notebook (minutes for the reader, seconds for the machine), and their sums. Returns the table. Raises
    KetoolsError without marks, or if a notebook of `folder` was not built.
    """
    readme = Path(folder) / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(TIMES_BEGIN) != 1 or text.count(TIMES_END) != 1:
        raise KetoolsError(f"{readme} lacks the lines {TIMES_BEGIN!r} and {TIMES_END!r}, between which the table goes")
    took, rows, total = run_seconds(built), [], 0
    for path in notebooks(folder):
        if path.stem not in took:
            raise KetoolsError(f"{path.name} was not built; run `make course` first")
        nb = read(path)
        reading = minutes(nb) or 0
        total += reading
        rows.append(f"| {number(path)} | [{title(nb)}]({path.name}) | {reading} | {took[path.stem]:.0f} |")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    head = "\n| nr | notebook | minutes for you | seconds for the machine |\n|---|---|---|---|"
    last = f"| | all | {total} | {sum(took.values()):.0f} |"
    note = f"\nQuick mode on {cores} cores of a CPU, each notebook from a fresh kernel.\n"
    table = "\n".join([head, *rows, last, note])
    between = re.compile(f"{re.escape(TIMES_BEGIN)}.*?{re.escape(TIMES_END)}", re.S)
    write_atomic(readme, between.sub(lambda _: f"{TIMES_BEGIN}\n{table}\n{TIMES_END}", text))
    return table
