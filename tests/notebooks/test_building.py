"""What is made of notebooks: students' versions, stored versions, pages that open offline, the table of times."""

import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ketools import KetoolsError
from ketools.course import build as cells
from ketools.course.build import student, write_students

ROOT = Path(__file__).resolve().parents[2]
HEAD = "# Try it\n\n**You will be able to**\n\n1. add $a_1 + b_1$;\n2. draw.\n\n**Time**: 5 minutes\n\nSee [data](../data/x.md) and [next](01_more.ipynb)."
DRAW = """import plotly.graph_objects as go
import plotly.io
plotly.io.renderers.default = "plotly_mimetype"
fig = go.Figure(go.Bar(y=[1, 2]), layout={"title": {"text": "Two"}, "meta": {"description": "Two bars."}})
fig"""
EXERCISE = (
    f"def add(a, b):\n    # a sum\n    {cells.BEGIN}\n    c = a\n    return c + b\n    {cells.END}\n\nprint(add(1, 2))"
)


@pytest.fixture
def folder(tmp_path):
    """A folder notebooks/ with one small notebook of text, figure and exercise, and a README for the times."""
    nb = new_notebook(
        cells=[
            new_markdown_cell(HEAD, id="a"),
            new_code_cell(DRAW, id="b", metadata={"tags": ["figure"], "execution": {"x": "1"}}),
            new_code_cell(
                "import sys\nprint('w', file=sys.stderr)\nprint('<b>out</b>')",
                id="c",
                metadata={"tags": [cells.HIDDEN]},
            ),
            new_code_cell(EXERCISE, id="d", metadata={"tags": ["exercise"]}),
        ],
        metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.0"}},
    )
    made = tmp_path / "notebooks"
    made.mkdir()
    nbformat.write(nb, made / "00_try.ipynb")
    (made / "README.md").write_text(f"# x\n{cells.TIMES_BEGIN}\nold\n{cells.TIMES_END}\ny\n", encoding="utf-8")
    return made


def test_students_get_a_stub_and_the_solution_folded_up(folder):
    nb = cells.read(folder / "00_try.ipynb")
    made = student(nb)
    stub = cells.code(made, "exercise")[0]
    assert stub.source == 'def add(a, b):\n    # a sum\n    raise NotImplementedError("your turn")\n\nprint(add(1, 2))'
    told = made.cells[-1].source
    assert told.startswith("<details><summary>Solution</summary>") and "c = a\nreturn c + b\n" in told
    assert all(not cell.outputs and cell.execution_count is None for cell in cells.code(made))
    assert cells.BEGIN in nb.cells[-1].source, "the notebook itself is as before"
    nbformat.validate(made)


def test_what_is_handed_out_has_no_solution_and_says_how_to_install(folder, tmp_path):
    for solutions in (False, True):
        (path,) = write_students(folder, tmp_path / str(solutions), solutions)
        assert ("return c + b" in path.read_text(encoding="utf-8")) is solutions
    assert "pip install" in (tmp_path / "False" / "README.md").read_text(encoding="utf-8")


def test_links_lead_on_from_where_a_student_is(folder, tmp_path):
    (path,) = write_students(folder, tmp_path / "build" / "student")
    said = cells.read(path).cells[0].source
    assert "](../../data/x.md)" in said and "](01_more.ipynb)" in said


def test_a_notebook_links_to_those_before_and_after_it(folder):
    for number in ("01", "02"):
        nbformat.write(
            new_notebook(cells=[new_markdown_cell(f"# Do {number}\n\nIt goes on.")]), folder / f"{number}_x.ipynb"
        )
    path, line = folder / "01_x.ipynb", "Previous: [Try it](00_try.ipynb) · Next: [Do 02](02_x.ipynb)"
    nb = cells.with_turns(cells.with_turns(cells.read(path), path), path)
    assert nb.cells[0].source == f"# Do 01\n\n{line}\n\nIt goes on.", "once, however often it is stored"
    assert cells.turns(folder / "02_x.ipynb") == "Previous: [Do 01](01_x.ipynb)"


def test_a_notebook_opens_in_colab_and_binder_and_stays_what_it_is(folder):
    nb, path = cells.with_turns(cells.read(folder / "00_try.ipynb"), folder / "00_try.ipynb"), folder / "00_try.ipynb"
    rest = [cell.source for cell in nb.cells[1:]]
    for url in ("https://github.com/a/old", "https://github.com/some-one/ke.tools.git"):
        nb = cells.badges(nb, path.name, url)
    (line,) = re.findall(r"^Open in .*", nb.cells[0].source, re.M)
    links = re.findall(r"\((https:[^)]+)\)", line)
    assert links == [
        "https://colab.research.google.com/github/some-one/ke.tools/blob/HEAD/notebooks/00_try.ipynb",
        "https://mybinder.org/v2/gh/some-one/ke.tools/HEAD?labpath=notebooks/00_try.ipynb",
    ]
    assert "git clone -q --depth 1 https://github.com/some-one/ke.tools ketools" in nb.cells[1].source
    assert [cell.source for cell in nb.cells[2:]] == rest == [cell.source for cell in [*cells.code(nb)]]
    cells.run(nb, folder)
    assert nb.cells[1].execution_count is None, "it is run in Colab only"
    nbformat.validate(nb)
    with pytest.raises(KetoolsError, match="OWNER/NAME"):
        cells.badges(nb, path.name, "git@host:a/b")


@pytest.mark.parametrize("path", cells.notebooks(ROOT / "notebooks"), ids=lambda path: path.stem)
def test_links_that_a_notebook_has_are_those(path):
    line = cells.read(path).cells[0].source.split("\n\n")[1]
    assert line == cells.turns(path) or not line.startswith(("Previous: ", "Next: ")), "store it again"


@pytest.mark.parametrize(
    "source", ["x = 1", f"{cells.BEGIN}\n{cells.END}", f"{cells.END}\nx\n{cells.BEGIN}", EXERCISE * 2]
)
def test_an_exercise_without_one_solution_is_refused(source):
    with pytest.raises(KetoolsError, match="one solution"):
        cells.solution(source)


def test_stored_notebooks_have_pictures_and_nothing_of_this_machine(folder):
    drawn = []
    path = cells.store(folder / "00_try.ipynb", draw=lambda figures: drawn.extend(figures) or ["AAAA"] * len(figures))
    nb = cells.read(path)
    ((cell, output),) = cells.figures(nb)
    assert len(drawn) == 1 and output.data["image/png"] == "AAAA" and output.data["text/plain"] == "Two bars."
    assert cell.metadata == {"tags": ["figure"]} and dict(nb.metadata["language_info"]) == {"name": "python"}
    assert [c.execution_count for c in cells.code(nb)] == [1, 2, 3] and "widgets" not in nb.metadata
    assert nb.cells[2].metadata["jupyter"] == {"source_hidden": True}, "JupyterLab folds it up"
    assert [out.text for out in nb.cells[2].outputs] == ["<b>out</b>\n"], "stderr is not stored"


def test_a_cell_that_fails_leaves_the_file_alone(folder):
    path = folder / "00_try.ipynb"
    nb = cells.read(path)
    nb.cells[2].source = "1 / 0"
    nbformat.write(nb, path)
    before = path.read_bytes()
    with pytest.raises(KetoolsError, match="ZeroDivisionError"):
        cells.store(path, draw=lambda figures: [])
    assert path.read_bytes() == before


def test_the_site_opens_offline_with_live_figures_and_the_times_come_from_it(folder, tmp_path):
    out = tmp_path / "build" / "course"
    took = cells.build(folder, out)
    page = (out / "00_try.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and 'aria-label="Two bars."' in page
    for text in (page, (out / "index.html").read_text(encoding="utf-8")):
        asked = re.findall(r"""(?:src|srcset|@import|url\()\s*=?\s*["']?(https?:)""", text) + re.findall(
            r"<link[^>]*http", text
        )
        assert not asked and "require" not in text and "MathJax" not in text
    assert (out / "plotly.min.js").stat().st_size > 1_000_000
    assert page.count("<summary>code</summary>") == 1 and page.count('sys</span><span class="o">.</span>') == 1
    assert "<math" in page and "$a_1" not in page and "&lt;b&gt;out&lt;/b&gt;" in page
    index = (out / "index.html").read_text(encoding="utf-8")
    assert 'href="00_try.html">Try it</a>' in index and "5 minutes" in index
    table = cells.write_times(folder, out)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        f"| 00 | [Try it](00_try.ipynb) | 5 | {took['00_try']:.0f} |" in readme
        and "old" not in readme
        and table in readme
    )
    assert readme.startswith("# x\n") and readme.endswith("y\n")


def test_a_notebook_that_was_not_run_has_no_time(folder):
    with pytest.raises(KetoolsError, match="make course"):
        cells.write_times(folder, folder)


def test_mathematics_becomes_mathml_and_code_stays():
    made = cells.mathml("Cost $5 and `$x$`; $W' k_1 = v^*$ and\n\n$$\\Delta = R K^T$$\n")
    assert made.startswith("Cost $5 and `$x$`; <math") and made.count("<math") == 2 and 'display="block"' in made
    assert "*" not in made.replace("&#42;", "") and "_1" not in made


def test_braces_boxes_and_limits_are_drawn_without_a_mathematical_font():
    made = cells.mathml(
        r"$$\boxed{\underbrace{\sum_{j=1}^{6} x_j}_{\text{a}} + \underbrace{y}_{\text{b}}}$$ $\sum_{j=1}^{6} x$"
    )
    assert made.count('<mrow class="brace">') == 2 and made.count('<mrow class="box">') == 1
    assert made.count("<munder>") == made.count("</munder>") == 2 and "menclose" not in made and "23DF" not in made
    assert made.count("<munderover>") == 1 and made.count("<msubsup>") == 1, (
        "limits stand above and below in display alone"
    )
    ElementTree.fromstring(f"<p>{made}</p>")


def test_a_folder_without_notebooks_is_said_so(tmp_path):
    with pytest.raises(KetoolsError, match="no notebooks"):
        cells.notebooks(Path(tmp_path))
