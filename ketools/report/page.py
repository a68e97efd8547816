"""One HTML page that stands alone: style, script, tables; nothing is loaded from anywhere."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ketools.course.tables import numbers
from ketools.evaluation.glossary import hover_texts

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de; --link: #0072b2; --width: 68rem }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3acb6; --page: #14171b; --card: #1d2127; --line: #3a424c; --link: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: var(--width); background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; line-height: 1.35; margin: 0 0 .4rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
p, li { max-width: 52rem }
a { color: var(--link) }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem }
section { margin: 2.6rem 0 0; padding-top: 1.4rem; border-top: 1px solid var(--line) }
figure { margin: 0 }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.6rem 2rem }
.pair > * { min-width: 0 }
.broad { --width: 104rem }
.bleed { width: min(96vw, 98rem); margin-left: calc(50% - min(48vw, 49rem)) }
.plot { min-height: 380px; width: 100%; overflow: hidden }
.wide { overflow: auto; margin: .6rem 0 }
details .wide { max-height: 28rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: 0 0 .4rem }
th, td { padding: .28rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { background: var(--card) }
th:first-child { text-align: left }
tbody th { font-weight: 600; background: none; white-space: normal; min-width: 12rem }
thead th { position: sticky; top: 0 }
th abbr[title], caption abbr[title] { text-decoration: underline dotted; text-underline-offset: .2em; cursor: help }
details { margin: .6rem 0 }
summary { cursor: pointer; color: var(--link); width: fit-content }
pre { background: var(--card); padding: .8rem; overflow: auto; font-size: .82rem; max-height: 30rem; white-space: pre-wrap }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px }
@media print { .wide, pre { max-height: none; overflow: visible } section { break-inside: avoid } }
"""

# Figures are drawn here, in the colours of the page, and again in the others when the reader's system changes them.
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = JSON.parse(document.getElementById("figures").textContent);
function coloured(layout) {
  const ink = dark.matches ? "#e6e9ed" : "#1b1f24", line = dark.matches ? "#3a424c" : "#e1e4e8";
  const copy = JSON.parse(JSON.stringify(layout));
  copy.autosize = true;
  copy.paper_bgcolor = copy.plot_bgcolor = "rgba(0,0,0,0)";
  copy.font = Object.assign({}, copy.font, {color: ink});
  copy.hoverlabel = {bgcolor: dark.matches ? "#1d2127" : "#ffffff", font: {color: ink}};
  Object.assign(copy.modebar, {color: dark.matches ? "#a3acb6" : "#57606a", activecolor: ink, bgcolor: "rgba(0,0,0,0)"});
  for (const name of Object.keys(copy).filter(name => /^[xy]axis/.test(name)))
    Object.assign(copy[name], {gridcolor: line, zerolinecolor: line, linecolor: line, color: ink});
  return copy;
}
const drawn = new Set(), waiting = Object.keys(figures);
function draw(id) {
  drawn.add(id);
  Plotly.react(id, figures[id].data, coloured(figures[id].layout), {responsive: true, displaylogo: false});
}
// One after another with a pause between, so that a page of many figures can be read and scrolled at once.
function next() {
  if (waiting.length) { draw(waiting.shift()); setTimeout(next); }
}
next();
addEventListener("beforeprint", () => { while (waiting.length) draw(waiting.shift()); });
dark.addEventListener("change", () => drawn.forEach(draw));
"""

# The page may run its own script and nothing else: no address is ever contacted.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def page(title: str, body: str, figures: dict[str, go.Figure], *, broad: bool = False) -> str:
    """The whole page as text; `body` is HTML that has a `<div id=KEY class="plot">` for every figure's key.

    broad: room for figures beside each other.
    """
    drawn = {key: json.loads(str(fig.to_json())) for key, fig in figures.items()}
    # "<" cannot end the script element early, whatever a method or a fact is called.
    data = json.dumps(drawn).replace("<", "\\u003c")
    broadly = ' class="broad"' if broad else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body{broadly}>\n{body}\n"
        f'<script type="application/json" id="figures">{data}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def table(
    frame: pd.DataFrame,
    caption: str,
    formats: Sequence[Callable[[float], str]] | None = None,
    *,
    about: str = "",
    terms: Mapping[str, str] | None = None,
) -> str:
    """An accessible HTML table: the index heads the rows; all text escaped; `formats` write the numbers of each column.

    Heads of columns that the glossary knows have its text on hovering; `terms` has that of heads of columns and rows
    which it does not find by itself (head -> text, "": none), `about` that of the caption.
    """
    heads = [str(name) for name in (frame.index.name or "", *frame.columns)]
    terms = terms or {}  # rows may be headed by names from a facts file, which are not looked up
    texts = {**hover_texts(heads), **terms}
    head = "".join(f'<th scope="col">{_term(name, texts.get(name, ""))}</th>' for name in heads)
    rows = []
    for key, values in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        shown = f"{key:,}" if isinstance(key, int) else str(key)
        cells = "".join(_cell(value, formats[i] if formats else short) for i, value in enumerate(values))
        rows.append(f'<tr><th scope="row">{_term(shown, terms.get(shown, ""))}</th>{cells}</tr>')
    said = f"{escape(caption)} {_term('What is measured', about)}" if about else escape(caption)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{said}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def figure_table(fig: go.Figure) -> tuple[pd.DataFrame, list[Callable[[float], str]]]:
    """The numbers that a figure shows (`ketools.course.tables.numbers`), and how to write those of each column."""
    frame = numbers(fig)
    return frame, [_share if fig.layout.yaxis.tickformat == ".0%" else short] * len(frame.columns)


def short(value: float) -> str:
    """A number in four figures; "–" where nothing was measured."""
    if pd.isna(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _term(shown: str, text: str) -> str:
    # Text, with its explanation on hovering where there is one; both may come from outside.
    return f'<abbr title="{escape(text)}">{escape(shown)}</abbr>' if text else escape(shown)


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1%}"


def _cell(value: object, show: Callable[[float], str]) -> str:
    return f"<td>{escape(value if isinstance(value, str) else show(value))}</td>"
