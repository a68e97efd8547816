"""Two drawings as SVG text: where an edit sits in a transformer, and what the quadratic form A makes an update cost.

Both are self-contained (no external fonts, scripts or files) and carry a description for readers who cannot see them. In a
notebook: `IPython.display.SVG(data=diagrams.transformer("key", "W"))`.
"""

from html import escape

from ketools.errors import KetoolsError
from ketools.plots.style import OKABE_ITO

INK, GREY, FAINT = "#222222", "#666666", "#BBBBBB"
PARTS = ("subject", "stream", "attention", "key", "W", "delta", "value", "answer")
"""The parts of `transformer` that can be highlighted, in the order in which the computation passes them."""
_TOKENS = ("Ada", "Lorn", "was", "born", "in")
_SUBJECT, _EDITED, _LAYERS = 1, 1, 4  # the subject's last token, the edited layer (from below), layers drawn


def _text(x: float, y: float, words: str, colour: str = INK, size: int = 15, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str, line: str = INK) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="{line}" '
        'stroke-width="1.5"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = INK, extra: str = "") -> str:
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{colour}" stroke-width="2" fill="none" {extra}/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str = INK) -> str:
    return _line(x1, y1, x2, y2, colour, 'marker-end="url(#head)"')


def _vector(x: float, y: float, cells: int, colour: str) -> str:
    """A column vector: `cells` squares from `y` downwards."""
    return "".join(_box(x, y + i * 14, 14, 14, colour) for i in range(cells))


def _page(width: int, height: int, title: str, description: str, body: str) -> str:
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
        f'{head}<rect width="{width}" height="{height}" rx="8" fill="#FFFFFF"/>{body}</svg>'
    )


def transformer(*highlight: str) -> str:
    """SVG of a transformer reading "Ada Lorn was born in", and of the MLP whose output matrix W an edit changes.

    Args:
        highlight: names from PARTS to keep in full colour while the rest fades; none: everything keeps its colour.

    Raises:
        KetoolsError: a name that is not one of PARTS.
    """
    if unknown := [name for name in highlight if name not in PARTS]:
        raise KetoolsError(f"no part {unknown[0]!r} in this drawing; expected one of {', '.join(PARTS)}")
    blue, orange, green = OKABE_ITO["blue"], OKABE_ITO["orange"], OKABE_ITO["green"]
    red, purple = OKABE_ITO["vermillion"], OKABE_ITO["purple"]
    xs = [112 + 62 * i for i in range(len(_TOKENS))]
    ys = [300 - 68 * i for i in range(_LAYERS)]
    at, here = xs[_SUBJECT], ys[_EDITED]
    parts = {name: "" for name in PARTS}
    frame = _box(78, here - 24, 316, 48, "#F3F3F3", FAINT)
    frame += _text(70, here - 4, "edited", GREY, 13, "end") + _text(70, here + 12, "layer", GREY, 13, "end")
    for i, (x, token) in enumerate(zip(xs, _TOKENS, strict=True)):
        mark = i == _SUBJECT
        stream = _line(x, 352, x, ys[-1] - 28, blue if mark else FAINT)
        stream += "".join(f'<circle cx="{x}" cy="{y}" r="7" fill="{blue if mark else "#DDDDDD"}"/>' for y in ys)
        word = _text(x, 376, token, blue if mark else INK, 16)
        if mark:
            parts["subject"] += word + _text(x, 398, "subject's last token", blue, 12)
            parts["stream"] += stream
        else:
            frame += stream + word
    reach = ys[_EDITED + 1]
    parts["attention"] = _arrow(at + 8, here - 8, xs[-1] - 9, reach + 3, green) + _text(
        xs[3] - 31, reach + 18, "attention", green, 13, "end"
    )
    parts["answer"] = _arrow(xs[-1], ys[-1] - 8, xs[-1], 44) + _text(xs[-1], 34, "Vell → Oran", red, 16)
    # The MLP of the edited layer at the subject's last token, enlarged.
    left, top = 430, 92
    frame += _line(at + 10, here, left, top + 40, FAINT, 'stroke-dasharray="4 4"')
    frame += _line(at + 10, here, left, top + 250, FAINT, 'stroke-dasharray="4 4"')
    frame += _box(left, top, 410, 268, "none", FAINT) + _text(
        left + 205, top - 10, "its MLP, at the subject's last token", GREY, 13
    )
    parts["key"] = _vector(left + 30, top + 42, 12, orange) + _text(left + 37, top + 230, "key k")
    parts["key"] += _text(left + 37, top + 248, "d_mlp", GREY, 12) + _arrow(left + 50, top + 126, left + 78, top + 126)
    parts["W"] = _box(left + 84, top + 84, 112, 84, "#E8F1F8", blue) + _text(left + 140, top + 134, "W", blue, 22)
    parts["W"] += _text(left + 140, top + 188, "d_model × d_mlp", GREY, 12)
    parts["delta"] = _text(left + 208, top + 132, "+", size=20) + _text(left + 276, top + 74, "the edit", GREY, 12)
    parts["delta"] += _box(left + 220, top + 84, 112, 84, "#FBE3D6", red) + _text(left + 276, top + 134, "Δ", red, 22)
    parts["value"] = _arrow(left + 336, top + 126, left + 362, top + 126) + _vector(left + 366, top + 84, 6, purple)
    parts["value"] += _text(left + 373, top + 188, "value") + _text(left + 373, top + 206, "d_model", GREY, 12)
    parts["value"] += _text(left + 373, top + 72, "to stream", GREY, 12)
    faded = [
        f'<g opacity="{1 if not highlight or name in highlight else 0.2}">{body}</g>' for name, body in parts.items()
    ]
    return _page(
        860,
        412,
        "Where an edit sits",
        "A transformer reads the prompt Ada Lorn was born in. In the edited layer, the MLP at the subject's last token, "
        "Lorn, turns a key of length d_mlp into a value of length d_model through the matrix W. An edit adds Delta to W, so "
        "that the value that enters the residual stream changes; attention carries it to the last token, whose answer "
        "changes from Vell to Oran.",
        frame + "".join(faded),
    )


def quadratic_form() -> str:
    """SVG, schematic: the cost that each term of A = lambda_p C + lambda_n I + K_p K_p^T adds to an update, in four directions."""
    terms = {"λp C": OKABE_ITO["blue"], "Kp Kpᵀ": OKABE_ITO["orange"], "λn I": OKABE_ITO["green"]}
    places = {
        ("common in", "background text"): (150, 0),
        ("keys of", "past edits"): (14, 110),
        ("keys of", "this batch"): (10, 10),
        ("unused", "directions"): (0, 0),
    }
    floor, norm = 300, 34
    body = _line(70, floor, 690, floor) + _text(380, 372, "directions u in the space of keys (d_mlp)", GREY, 13)
    for x, (words, heights) in zip((150, 300, 450, 600), places.items(), strict=True):
        top = float(floor)
        for height, colour in zip((norm, *reversed(heights)), reversed(terms.values()), strict=True):
            top -= height
            body += _box(x - 40, top, 80, height, colour) if height else ""
        body += _text(x, floor + 22, words[0], size=13) + _text(x, floor + 39, words[1], size=13)
    body += _line(70, floor - norm, 690, floor - norm, OKABE_ITO["green"], 'stroke-dasharray="5 4"')
    body += _text(690, floor - norm - 8, "without λn, nearly free", OKABE_ITO["green"], 13, "end")
    for i, (name, colour) in enumerate(terms.items()):
        body += _box(330 + 125 * i, 50, 16, 16, colour) + _text(353 + 125 * i, 64, name, size=16, anchor="start")
    body += _text(70, 28, "Cost of a unit change of W along u:  uᵀ A u", size=16, anchor="start")
    return _page(
        720,
        392,
        "What an update costs under the quadratic form A",
        "A schematic bar for each of four directions in the space of keys. Directions common in background text cost "
        "mostly lambda_p C; keys of past edits cost mostly K_p K_p^T; keys of this batch and directions that nothing uses cost "
        "little but lambda_n, which is the same everywhere. Without lambda_n an update in those directions is nearly free.",
        body,
    )
