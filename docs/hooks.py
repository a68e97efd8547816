"""What the pages show and nobody types: tables and figures from stored records, the glossary, drawings, mathematics.

A page asks for it with `<!-- made: NAME -->`, a name of MADE; where a block opens with "```python figure" the blocks of its
page are run, and the figure that the last line of such a block gives stands below it. "```python norun": the tests only
compile it. mkdocs calls the functions that begin with on_.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

_SOURCE = re.compile(r"arXiv (\d{4}\.\d{5})")
_BLOCK = re.compile(r"^```python( figure)?\n(.*?)^```$", re.M | re.S)
_MADE = re.compile(r"<!-- made: (\w+) -->")
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def linked(source: str) -> str:
    """A source with its arXiv number as a link."""
    return _SOURCE.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def metrics() -> str:
    """Every metric of metrics.toml, a section a table of the package."""
    from ketools.evaluation.metrics import METRICS, SHARED

    tables: dict[str, list[tuple[str, str]]] = {}
    for metric in sorted(METRICS, key=lambda metric: metric.table == SHARED):  # what all tables share comes last
        notes = [f"range {metric.range}"] if metric.range else []
        notes += [f"better: {metric.better}"] if metric.better != "none" else []
        notes += [linked(metric.source)] if metric.source != "ketools" else []
        formula = re.sub(r"([_*<>\[\]])", r"\\\1", metric.formula)
        small = f"<br><small>{'; '.join(notes)}</small>" if notes else ""
        tables.setdefault(metric.table, []).append((f"{metric.label}<br>`{metric.key}`", formula + small))
    return "\n\n".join(f"## {name}\n\n" + table(("metric", "formula"), rows) for name, rows in tables.items())


def methods() -> str:
    """The table of methods, as `ketools methods` lists them."""
    import ketools as ke

    stops = {"FixedSteps": "at a loss floor or step limit", "MPES": "early (MPES)"}
    rows = [
        (
            f"`{row['name']}`",
            row["year"],
            stops.get(row["stopping"].split("(")[0], "it has none"),
            row["protects"],
            linked(row["source"]),
        )
        for _, row in ke.methods().iterrows()
    ]
    return table(("method", "year", "target optimisation stops", "the update protects", "source"), rows)


def published(kind: str) -> str:
    """A table of the paper."""
    from ketools.runs.reproduce import published as figures

    data = figures()
    columns = data[kind].pop("columns")
    rows = [(model, name, *values) for model, methods in data[kind].items() for name, values in methods.items()]
    return table(("model", "method", *columns), rows) + f"\n\nSource: {data['source']}."


def spread(show: Callable[[float], str], mean: float, low: float, high: float) -> str:
    """Mean (lowest–highest), the mean alone where all are shown alike."""
    mid, *ends = (show(value) for value in (mean, low, high))
    return mid if ends[0] == ends[1] else f"{mid} ({'–'.join(end.rstrip('%×') for end in ends)})"


def ends(folders: Iterable[Path], keys: Sequence[str], names: Sequence[str]) -> str:
    """Unedited model and last checkpoints of stored runs, mean (lowest to highest) over seeds; `names`: columns in front."""
    from ketools.evaluation.metrics import metric
    from ketools.runs.compare import by_method, compare
    from ketools.runs.records import gather, title

    rows: list[list[str]] = []
    for model, part in by_method(compare(gather(folders))).groupby("model", sort=False):
        front = {"model": model, "method": "*unedited*", "load": "0"}
        before = [metric(key).format(1.0) if key.endswith(("_kept", "_ratio")) else "-" for key in keys]
        rows.append([*(front.get(name, "") for name in names), *before])
        for _, row in part.iterrows():
            front = {"method": title(row["method"]), "load": f"{row['load']:.2f}"}
            cells = [front.get(name, str(row[name])) for name in names]
            cells += [spread(metric(key).format, *(row[f"{key}{end}"] for end in ("", "_min", "_max"))) for key in keys]
            rows.append(cells)
    return table((*names, *(metric(key).short or metric(key).label for key in keys)), rows)


def ours() -> str:
    """The reference runs (data/results)."""
    from ketools.io import data_root

    keys = ("ES", "PS", "NS", "S", "unedited_kept", "downstream_kept", "norm_ratio")
    return ends([data_root() / "results"], keys, ("model", "method", "seeds", "load"))


def demo_runs() -> list[Path]:
    """What `make demo` does, over three seeds."""
    from ketools.io import data_root

    names = ("memit", "alphaedit", "encore")
    return [data_root() / "findings" / f"pocket-{name}-seed{seed}" for name in names for seed in range(3)]


def demo() -> str:
    """The demo's table, which the README shows too."""
    keys = ("norm_ratio", "unedited_kept", "same_subject_kept", "downstream_kept", "ES", "NS", "p_edited")
    return ends(demo_runs(), keys, ("method",))


def real(*methods: str) -> str:
    """SmolLM2 before any edit and at the end of its runs with these methods (none: all), from data/real/checkpoints.csv;
    mean (lowest–highest) over seeds."""
    import pandas as pd

    from ketools.evaluation.metrics import number, percent, times
    from ketools.io import data_root
    from ketools.runs.records import listed, rank, title

    shown = {
        "norm_ratio": ("norm", times), "unedited_kept": ("known", percent), "ours": ("own set", percent),
        "perplexity_ratio": ("perplexity", times), "F1": ("F1", percent), "at_edit_ES": ("ES then", percent),
        "ES": ("ES", percent), "PS": ("PS", percent), "NS": ("NS", percent), "p_edited": ("probability", number),
        "steps_mean": ("steps", number),
    }  # fmt: skip
    frame = pd.read_csv(data_root() / "real" / "checkpoints.csv")
    last = frame[(frame["edits"] == frame["edits"].max()) & (frame["method"].isin(methods) | (not methods))]
    states = [("*unedited*", "", frame[frame["edits"] == 0].head(1))]
    for method in sorted(last["method"].unique(), key=rank):
        part = last[last["method"] == method]
        states.append((title(method), listed([str(seed) for seed in part["seed"]]), part))
    rows = []
    for name, seeds, part in states:
        ranges = part[[*shown]].agg(["mean", "min", "max"])
        cells = ["-" if ranges[key].isna().all() else spread(show, *ranges[key]) for key, (_, show) in shown.items()]
        rows.append([name, seeds, *cells])
    return table(("method", "seeds", *(head for head, _ in shown.values())), rows)


def reproduced() -> str:
    """What `ketools reproduce encore --model smollm2` gave (data/real/reproduce.csv)."""
    import pandas as pd

    from ketools.io import data_root

    frame = pd.read_csv(data_root() / "real" / "reproduce.csv")
    rows = [(row.measure.replace("f1_", "F1 of ").replace("downstream_f1", "mean F1"), f"{row.unedited:.1f}", f"{row.here:.1f}")
            for row in frame.itertuples()]  # fmt: skip
    return table(("measure", "unedited", "after 1,100 edits"), rows)


def drawing(name: str, *highlight: str) -> str:
    """A drawing of ketools.plots.diagrams as SVG within the page."""
    from ketools.plots import diagrams

    return f'<div class="drawing">{getattr(diagrams, name)(*highlight)}</div>'


MADE = {
    "metrics": metrics,
    "methods": methods,
    "counterfact": lambda: published("counterfact"),
    "zsre": lambda: published("zsre"),
    "overfitting": lambda: published("overfitting"),
    "ours": ours,
    "demo": demo,
    "real": real,
    "reproduced": reproduced,
    "transformer": lambda: drawing("transformer"),
    "update": lambda: drawing("transformer", "key", "W", "delta", "value"),
    "form": lambda: drawing("quadratic_form"),
}


def with_figures(markdown: str, top: str = "") -> str:
    """The page with the figure of each "```python figure" block below it; its blocks are run in order and share names.

    `top`: the way from the page to the site's folder, as "../".
    """
    from ketools.plots.style import undressed, words

    names: dict[str, object] = {}

    def draw(block: re.Match[str]) -> str:
        plain = f"```python\n{block[2]}```"
        if not block[1]:
            exec(block[2], names)  # our own pages
            return plain
        *lines, last = block[2].rstrip("\n").split("\n")
        exec("\n".join(lines), names)
        fig = eval(last, names)
        html = undressed(fig).to_html(full_html=False, include_plotlyjs=False, config={"responsive": True})
        text = {key: escape(value) for key, value in words(fig).items()}
        return (
            f'{plain}\n\n<figure class="figure" aria-label="{text["description"]}"><p><b>{text["finding"]}</b></p>{html}'
            f"<figcaption>{text['caption']}</figcaption></figure>\n"
        )

    return f'<script src="{top}assets/plotly.min.js"></script>\n\n' + _BLOCK.sub(draw, markdown)


def on_page_markdown(markdown: str, page: Any = None, **_: object) -> str:  # noqa: ANN401 - mkdocs' page
    """Put in what the page asks for."""
    if "```python figure" in markdown:
        markdown = with_figures(markdown, "../" * page.url.count("/"))
    return _MADE.sub(lambda found: MADE[found[1]](), markdown).replace("```python norun", "```python")


def on_page_content(html: str, **_: object) -> str:
    """Set mathematics as MathML, which browsers draw without a library."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        if found[1] == "span":
            return convert(unescape(found[2]))
        return f'<div class="maths">{convert(unescape(found[2]), display="block")}</div>'

    return _MATHS.sub(mathml, html)


def on_post_build(config: dict[str, str], **_: object) -> None:
    """Put the library that draws the figures beside the pages: the copy that plotly carries."""
    import plotly

    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", Path(config["site_dir"]) / "assets")
