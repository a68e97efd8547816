"""The lecturer's page: links, marks for the table of times, a plan of each kind, every notebook's needs."""

import re
from pathlib import Path

from ketools.course import build as cells
from tests.notebooks import rules

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PAGES = [FOLDER / "README.md", FOLDER / "AUTHORING.md", Path(__file__).parent / "README.md"]
TEXT = PAGES[0].read_text(encoding="utf-8")


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(
            r"\]\(([^)#]+)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        ):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_plans_and_the_place_for_times_are_there():
    assert all(plan in TEXT for plan in ("**90 minutes", "**Half a day", "**Three weeks", "## Common misconceptions"))
    assert TEXT.count(cells.TIMES_BEGIN) == TEXT.count(cells.TIMES_END) == 1


def test_needs_are_given_for_all_twelve_by_their_titles():
    rows = dict(re.findall(r"^\| (\d\d) \| ([^|]+?) \| [^|]+ \| [^|]+ \|$", TEXT.partition("## Three plans")[0], re.M))
    assert list(rows) == [name[:2] for name in rules.EXPECTED]
    for path in cells.notebooks(FOLDER):
        assert rows[cells.number(path)].startswith(cells.title(cells.read(path)))


def test_every_make_target_that_the_pages_name_exists():
    targets = set(re.findall(r"^([a-z-]+):", (FOLDER.parent / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        assert set(re.findall(r"make ([a-z][a-z-]+)`?", page.read_text(encoding="utf-8"))) & {
            "store",
            "test",
            "student",
        }
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_continuous_integration_runs_what_anybody_can_run():
    lines = (FOLDER.parent / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make lint", "make test", "make docs", "make test-real", "make browser", "make test-browser"]
