"""`make test-browser`: notebooks in JupyterLab in a headless Chromium, as a reader meets them.

Not collected by `make test`: it needs a browser (on PATH, or named in KETOOLS_CHROMIUM) and minutes. Screenshots and what
the server said are kept in build/browser. KETOOLS_BROWSER=all opens all notebooks, not only the few below.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ketools import KetoolsError
from ketools.course import build as cells
from ketools.plots.pictures import chromium, headless
from tests.notebooks.driving import DRIVES

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "browser"
OPENED = ("00", "06", *DRIVES)
NOTEBOOKS = [
    path
    for path in cells.notebooks(ROOT / "notebooks")
    if cells.number(path) in OPENED or os.environ.get("KETOOLS_BROWSER") == "all"
]
START, RUN = 120, 900  # seconds: the server, one notebook
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
RANGE = (("valuenow", "value"), ("valuemax", "max"))  # of noUiSlider, else of an input
PROBE = """import itertools

import pandas as pd

from ketools.course.widgets import EncoreDial
from ketools.course.widgets.explorers import MEASURES

grid = pd.DataFrame([
    {"lambda_n": w, "patience": p, **{key: 0.5 + w / 100 + p / 50 for key in MEASURES}}
    for w, p in itertools.product((0.0, 10.0, 20.0), (0, 2, 4))
])
EncoreDial(grid)"""
READY = """() => {
    const context = window.jupyterapp?.shell.currentWidget?.context;
    return context?.isReady && context.sessionContext.session?.kernel?.status === 'idle';
}"""
RUN_ALL = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    panel.content.widgets.forEach(c => { if (c.model.type === 'code') c.model.clearExecution(); });
    window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
CELLS = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const kernel = panel.context.sessionContext.session?.kernel;
    return {
        idle: kernel?.status === 'idle',
        counts: panel.content.widgets.filter(c => c.model.type === 'code').map(c => c.model.executionCount),
        errors: panel.content.widgets.filter(c => c.model.type === 'code')
            .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
    };
}"""


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; without one everything here is skipped."""
    try:
        chromium()
    except KetoolsError as error:
        pytest.skip(str(error))
    with headless() as found:
        yield found


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on loopback over a copy of the notebooks and a probe: (address, token)."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    probe = new_notebook(cells=[new_markdown_cell("# Probe"), new_code_cell(PROBE)], metadata=kernel)
    nbformat.write(probe, folder / "probe.ipynb")
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    OUT.mkdir(parents=True, exist_ok=True)
    with _server(home, folder) as address:
        yield address


@contextmanager
def _server(home, folder):
    token = secrets.token_hex(16)
    words = [
        "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
        f"--LabServerApp.user_settings_dir={home / 'settings'}", f"--LabServerApp.workspaces_dir={home / 'workspaces'}",
    ]  # fmt: skip
    own = {
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "KETOOLS_MODE": "quick",
    }
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (OUT / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], env=os.environ | own | quiet, stdout=log, stderr=log
        )
        try:
            yield _address(server, home / "runtime"), token
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def _address(server, runtime):
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab stopped; see {OUT / 'server.log'}"
        for file in runtime.glob("jpserver-*.json"):
            return f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start within {START} s; see {OUT / 'server.log'}")


@pytest.fixture
def opened(browser, lab, request):
    """A page with the notebook run from top to bottom: (page, addresses asked that are not this machine's)."""
    address, token = lab
    page, asked = browser.new_page(viewport={"width": 1300, "height": 1300}), []
    local = (address, address.replace("http", "ws", 1), "data:", "blob:", "about:")

    def gate(route):
        if route.request.url.startswith(local):
            return route.continue_()
        asked.append(route.request.url)
        return route.abort()

    page.route("**/*", gate)
    try:
        page.goto(f"{address}/lab/tree/{request.param}?token={token}&reset", timeout=START * 1000)
        page.wait_for_function(READY, timeout=START * 1000)
        page.evaluate(RUN_ALL)
        _wait(page)
        yield page, asked
    finally:
        page.screenshot(path=OUT / f"{Path(request.param).stem}-end.png")
        page.close()


def _wait(page):
    end = time.monotonic() + RUN
    while time.monotonic() < end:
        state = page.evaluate(CELLS)
        if state["errors"] or (state["idle"] and all(state["counts"])):
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"not done within {RUN} s: {state}")


def _shots(page, name):
    """A screenshot of the whole notebook, in pieces of a screen."""
    scroller = page.locator(".jp-WindowedPanel-outer").first
    scroller.evaluate("e => e.scrollTo(0, 0)")
    height = scroller.evaluate("e => e.scrollHeight")
    for part, top in enumerate(range(0, height, 900)):
        scroller.evaluate("(e, top) => e.scrollTo(0, top)", top)
        page.wait_for_timeout(200)
        page.screenshot(path=OUT / f"{name}-{part:02d}.png")


def _widget_shot(page, name, what):
    """A screenshot of the first widget alone."""
    view = (
        page.locator(".ketools-control")
        .first.locator("xpath=ancestor::div[contains(@class, 'jp-OutputArea-output')]")
        .last
    )
    view.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    view.screenshot(path=OUT / f"{Path(name).stem}-{what}.png")


def _turn(page):
    """Move the first slider of the page by a step; returns whether the picture below it changed."""
    widget = page.locator("[class*='ketools-'][class*='-picture']").first
    widget.scroll_into_view_if_needed()
    widget.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=60_000)
    before = widget.inner_html()
    handle = page.locator(".ketools-control .noUi-handle, .ketools-control input[type=range]").first
    handle.focus()
    now, end = (handle.evaluate(f"h => h.getAttribute('aria-{name}') ?? h[{other!r}]") for name, other in RANGE)
    handle.press("ArrowLeft" if now == end else "ArrowRight")  # a slider may stand at its end
    for _ in range(120):
        page.wait_for_timeout(500)
        if widget.inner_html() != before:
            return True
    return False


@pytest.mark.parametrize("opened", [path.name for path in NOTEBOOKS], ids=lambda name: name[:2], indirect=True)
def test_a_notebook_runs_in_the_browser(opened, request):
    page, asked = opened
    name = request.node.callspec.params["opened"]
    nb = cells.read(ROOT / "notebooks" / name)
    state = page.evaluate(CELLS)
    _shots(page, Path(name).stem)
    assert state["errors"] == [] and state["counts"] == list(range(1, len(cells.code(nb)) + 1))
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    wanted = len(cells.code(nb, "figure"))
    assert page.locator(".jp-OutputArea .js-plotly-plot").count() >= wanted > 0, "figures are not drawn"
    if cells.code(nb, "widget"):
        assert page.locator(".ketools-control").count() > 0, "widgets are not drawn"
        _widget_shot(page, name, "widget")
        if drive := DRIVES.get(name[:2]):
            drive(page, lambda what: _widget_shot(page, name, what))
        elif page.locator(".ketools-control .noUi-handle").count():
            assert _turn(page), "a slider moved, and the figure is as before"
            _widget_shot(page, name, "turned")
    assert asked == [], "the page asked for something that is not on this machine"


@pytest.mark.parametrize("opened", ["probe.ipynb"], indirect=True)
def test_a_slider_moved_changes_its_figure(opened):
    page, asked = opened
    assert page.evaluate(CELLS)["errors"] == []
    page.screenshot(path=OUT / "probe-before.png")
    assert _turn(page), "a slider moved, and the figure is as before"
    page.screenshot(path=OUT / "probe-after.png")
    assert asked == []
