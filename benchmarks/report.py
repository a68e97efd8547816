"""A report of several runs in a browser: how large the file is, and how long until its figures are drawn.

    python -m benchmarks.report --runs 7 --repeats 5 --json build/report-speed.json

The report is made of the runs in `data/results` (or those named), each taken again under another name until there are as
many as asked for, every one a method of its own: the most lines and rows that so many runs can give. A headless Chromium
opens it from the disk, each time in a fresh page without a cache. Seconds are those of the page's own clock, from the moment
it was asked for: until the text is painted, until the first figure is drawn, and until all of them are. Where other jobs share
the machine the page waits for them too: the CPU seconds of the page's main thread, which does all of this, say how long it
would take alone.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import finish, middle, parser, said
from ketools.errors import KetoolsError
from ketools.plots.pictures import headless
from ketools.report.page import write_report
from ketools.runs.records import gather, versions

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RESULTS = Path(__file__).parent.parent / "data" / "results"
_LIMIT = 60  # seconds in which a report must be drawn
# Looks at every frame; a figure is drawn once a trace of it is in the page.
_WATCH = """
window.seen = {};
function look() {
  const plots = [...document.querySelectorAll("div.plot")];
  const drawn = plots.filter(p => p.querySelector(".main-svg .trace"));
  if (drawn.length && !seen.first) seen.first = performance.now();
  if (plots.length && drawn.length === plots.length && document.readyState === "complete") {
    seen.all = performance.now();
    seen.figures = plots.length;
    seen.text = performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  } else requestAnimationFrame(look);
}
requestAnimationFrame(look);
"""


def opened(browser: "Browser", path: Path, picture: Path | None = None) -> dict[str, float]:
    """Seconds until text, first and all figures are there, of CPU in all, and how many figures; KetoolsError if some never are."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        page.add_init_script(_WATCH)
        clock = page.context.new_cdp_session(page)
        clock.send("Performance.enable")
        page.goto(path.resolve().as_uri(), wait_until="commit")
        end = time.monotonic() + _LIMIT
        while "all" not in (seen := page.evaluate("window.seen || {}")):
            if time.monotonic() > end:
                raise KetoolsError(f"{path}: not all figures were drawn within {_LIMIT} s")
            time.sleep(0.05)
        metrics = {each["name"]: each["value"] for each in clock.send("Performance.getMetrics")["metrics"]}
        if picture is not None:
            page.screenshot(path=picture, full_page=True)
    finally:
        page.close()
    seconds = {name: (seen[name] or 0) / 1000 for name in ("text", "first", "all")}
    return seconds | {"cpu": metrics["ThreadTime"], "figures": seen["figures"]}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Write the report, open it again and again, and return the figures."""
    if args.runs < 1 or args.repeats < 1:
        raise KetoolsError(f"--runs {args.runs}, --repeats {args.repeats}: expected at least 1")
    runs = gather(args.folders or [RESULTS])
    several = {f"{run.name} ({n})": run.record for n, run in enumerate(islice(cycle(runs), args.runs), 1)}
    with tempfile.TemporaryDirectory() as folder, headless() as browser:
        path = write_report(several, Path(folder) / "report.html")
        size, version = path.stat().st_size, browser.version
        opened(browser, path, args.picture)  # once for the disk
        seen = [opened(browser, path) for _ in range(args.repeats)]
    figures: dict[str, Any] = {"runs": args.runs, "megabytes": size / 1e6, "figures": int(seen[0]["figures"])}
    for name in ("text", "first", "all", "cpu"):
        figures[name] = middle([each[name] for each in seen])
    return figures | {"repeats": args.repeats, "chromium": version, "versions": versions()}


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{figures['runs']} runs, {figures['figures']} figures: {figures['megabytes']:.1f} MB"]
    names = {"text": "text painted", "first": "first figure drawn", "all": "all figures drawn",
             "cpu": "CPU of the main thread"}  # fmt: skip
    return lines + [said(what, figures[name], 2) for name, what in names.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("folders", nargs="*", type=Path, help="folders of runs; default data/results")
    made.add_argument("--runs", type=int, default=7)
    made.add_argument("--picture", type=Path, default=None, help="write a picture of the whole page here (PNG)")
    return finish("report", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
