"""A headless Chromium, for what only a browser can do: pictures of figures, and tests in JupyterLab."""

import base64
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ketools.errors import KetoolsError

if TYPE_CHECKING:
    from playwright.sync_api import Browser


_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_WIDTH = 900  # pixels, about the width of a notebook's column
_DRAW = """async ([figure, width, scale]) => {
    const place = document.createElement('div');
    document.body.append(place);
    const height = figure.layout.height || 460;
    await Plotly.newPlot(place, figure.data, {...figure.layout, width, height});
    const url = await Plotly.toImage(place, {format: 'png', width, height, scale});
    place.remove();
    return url;
}"""


def chromium() -> str:
    """Path of the browser: KETOOLS_CHROMIUM, else one on PATH. Raises KetoolsError if there is none."""
    named = os.environ.get("KETOOLS_CHROMIUM")
    for name in (named,) if named else _NAMES:
        if path := shutil.which(name):
            return path
    where = f"KETOOLS_CHROMIUM names {named}, which does not exist" if named else "no Chromium on PATH"
    raise KetoolsError(f"{where}; install one (apt install chromium) or name it in KETOOLS_CHROMIUM")


@contextmanager
def headless() -> Iterator["Browser"]:
    """A headless browser, closed on leaving. Raises KetoolsError without Chromium or without playwright."""
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise KetoolsError("playwright is missing; pip install '.[dev]' in ketools' folder") from error
    with sync_playwright() as play:
        # In a container, root has no sandbox and /dev/shm is small.
        root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        browser = play.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage", *root])
        try:
            yield browser
        finally:
            browser.close()


def pictures(figures: Sequence[dict[str, Any]], scale: int = 1) -> list[str]:
    """A PNG of each figure (plotly's JSON as a dict), base64, 900 pixels wide times `scale`; no network is used.

    Raises KetoolsError without Chromium or without playwright; needs pillow, which comes with playwright (extra dev).
    """
    from plotly.offline import get_plotlyjs

    if not figures:
        return []
    with headless() as browser:
        page = browser.new_page(viewport={"width": _WIDTH + 50, "height": 1000})
        page.set_content("<!doctype html><meta charset=utf-8><body></body>")
        page.add_script_tag(content=get_plotlyjs())
        urls = [page.evaluate(_DRAW, [figure, _WIDTH, scale]) for figure in figures]
    return [_smaller(url.partition("base64,")[2]) for url in urls]


def _smaller(png: str) -> str:
    """The picture in 256 colours: a quarter of the bytes, without a visible difference."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
