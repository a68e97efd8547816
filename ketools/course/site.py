"""The course as a site that opens offline: every notebook run by papermill, figures alive, mathematics as MathML."""

import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from ketools.course import cells
from ketools.course.storing import CELL_SECONDS
from ketools.course.student import relink
from ketools.errors import KetoolsError
from ketools.files import write_atomic

_SCRIPT = "plotly.min.js"
# Code first, so that a $ in it stays what it is; then display and inline mathematics.
_MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", re.S)


def build(folder: str | Path, out: str | Path) -> dict[str, float]:
    """Run every notebook in `folder` into `out` (NN.ipynb and NN.html), with an index page: name -> seconds.

    Raises KetoolsError naming the notebook and the cell that failed; those before it are there.
    """
    from plotly.offline import get_plotlyjs

    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / _SCRIPT, get_plotlyjs())
    for path in cells.notebooks(folder):
        nb = execute(path, out / path.name)
        relink(nb, folder, out)
        write_atomic(out / f"{path.stem}.html", page(nb))
    write_atomic(out / "index.html", index(out))
    return seconds(out)


def execute(path: Path, out: Path) -> NotebookNode:
    """Run one notebook by papermill, writing `out`; returns what was run."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        return papermill.execute_notebook(
            path, out, cwd=path.parent, kernel_name="python3", progress_bar=False, execution_timeout=CELL_SECONDS
        )
    except PapermillExecutionError as error:
        raise KetoolsError(f"{path.name}, cell {error.cell_index}: {error.ename}: {error.evalue}") from error


def seconds(folder: str | Path) -> dict[str, float]:
    """Seconds that each notebook in `folder` took, from papermill's metadata: name -> seconds."""
    found = {}
    for path in cells.notebooks(folder):
        duration = cells.read(path).metadata.get("papermill", {}).get("duration")
        if duration is None:
            raise KetoolsError(f"{path} was not run by papermill; run `make course`")
        found[path.stem] = float(duration)
    return found


def page(nb: NotebookNode) -> str:
    """A notebook as one page of HTML beside plotly.min.js; nothing in it asks the network."""
    from nbconvert import HTMLExporter

    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
        for output in cell.get("outputs", ()):
            _alive(output)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nb)
    return _whole(cells.title(nb), f'<p><a href="index.html">The course</a></p>\n{_to_pages(body)}', figures=True)


def index(out: Path) -> str:
    """The list of notebooks in `out`: title, minutes for the reader, seconds of the run, what one learns."""
    rows = []
    took = seconds(out)
    for path in cells.notebooks(out):
        nb = cells.read(path)
        learnt = "".join(f"<li>{escape(re.sub(r'[*`$]', '', each))}</li>" for each in cells.objectives(nb))
        time = f"{cells.minutes(nb)} minutes to read and do, {took[path.stem]:.0f} s to run"
        rows.append(
            f'<li value="{int(cells.number(path))}"><a href="{path.stem}.html">{escape(cells.title(nb))}</a> '
            f"<small>({time})</small><ul>{learnt}</ul></li>"
        )
    return _whole("ketools: the course", f"<h1>The course</h1><ol>{''.join(rows)}</ol>", figures=False)


def mathml(text: str) -> str:
    """Markdown with its TeX ($...$ and $$...$$) as MathML, which browsers draw without a library."""
    from latex2mathml.converter import convert

    def drawn(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        tex, display = (match[2], "block") if match[2] else (match[3], "inline")
        # Markdown must not take parts of a formula for emphasis, nor an empty line in it for a new paragraph.
        made = convert(" ".join(tex.split()), display=display)
        return made.replace("*", "&#42;").replace("_", "&#95;").replace("\n", " ")

    return _MATH.sub(drawn, text)


def _alive(output: NotebookNode) -> None:
    # A figure in place of its data, a word in place of a widget.
    from plotly.io import to_html

    data = output.get("data", {})
    if cells.PLOTLY in data:
        figure: dict[str, Any] = {k: v for k, v in data[cells.PLOTLY].items() if k in ("data", "layout")}
        words = figure["layout"].get("meta") or {}
        drawn = to_html(figure, full_html=False, include_plotlyjs=False, validate=False, config={"responsive": True})
        label = escape(str(words.get("description", "a figure")), quote=True)
        output.data = NotebookNode({"text/html": f'<div role="img" aria-label="{label}">{drawn}</div>'})
    elif cells.WIDGET in data:
        output.data = NotebookNode({"text/html": "<p><em>A widget: run the notebook to use it.</em></p>"})


def _to_pages(body: str) -> str:
    return re.sub(r'href="([0-9]{2}_[a-z0-9_]+)\.ipynb"', r'href="\1.html"', body)


def _whole(title: str, body: str, *, figures: bool) -> str:
    from pygments.formatters import HtmlFormatter

    look = files("ketools.course").joinpath("site.css").read_text(encoding="utf-8")
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    script = f'<script src="{_SCRIPT}"></script>' if figures else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{look}{colours}</style>{script}</head>\n<body><main>{body}</main></body></html>\n"
    )
