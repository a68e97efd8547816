"""Every exercise of every notebook: the solution passes, the stub raises NotImplementedError alone, wrong answers hear why."""

import ast
import builtins
from importlib import import_module
from pathlib import Path

import pytest

from ketools.course import build as cells
from ketools.course import setup
from ketools.course.build import student
from ketools.course.claims import Exercise, WrongAnswer
from tests.notebooks.rules import declared_exercises

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = cells.notebooks(ROOT / "notebooks")
CASES = [(path, i) for path in NOTEBOOKS for i in range(len(cells.code(cells.read(path), "exercise")))]
NAMES = [f"{cells.number(path)}.{i + 1}" for path, i in CASES]


@pytest.fixture(scope="module")
def lab():
    """What notebooks have under the name lab; their numbers do not matter here."""
    return setup("00")


@pytest.fixture
def made(request, lab, monkeypatch):
    """(notebook, student's notebook, place of the exercise, a function that runs a cell's source)."""
    path, place = request.param
    nb = cells.read(path)

    def run(source):
        """Run with the notebook's imports and `lab`; returns what check() was called with: [(exercise, given)]."""
        asked = []
        real = Exercise.check

        def noted(self, answer, *given):
            asked.append((self, given))
            return real(self, answer, *given)

        names = {"lab": lab, "__builtins__": vars(builtins) | {"print": lambda *_: None}}
        exec(compile(_imports(cells.code(nb)[0].source), path.name, "exec"), names)
        with monkeypatch.context() as patched:
            patched.setattr(Exercise, "check", noted)
            try:
                exec(compile(source, path.name, "exec"), names)
            finally:
                run.asked = asked
        return asked

    return path, nb, place, run


def _imports(source):
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.unparse(tree)


@pytest.mark.parametrize("made", CASES, ids=NAMES, indirect=True)
def test_the_solution_passes_and_wrong_answers_hear_why(made, lab):
    path, nb, place, run = made
    asked = run(cells.code(nb, "exercise")[place].source)
    assert asked, "nothing was checked"
    assert lab.clean(), "the solution leaves its edit in the weights"
    for exercise, given in asked:
        assert exercise in declared_exercises(path)
        wrong = import_module(f"tests.notebooks.wrong.nb{cells.number(path)}").WRONG[exercise.title]
        assert wrong, f"{exercise.title}: name a plausible wrong answer"
        for what, answer, fails in wrong:
            (caught_by,) = [each for each in exercise.properties if each.says == fails]
            with pytest.raises(WrongAnswer) as caught:
                exercise.check(answer, *given)
            assert f"Missing: {fails}." in str(caught.value), what
            assert caught_by.teaches in str(caught.value) and len(caught_by.teaches.split()) >= 8
            assert lab.clean(), f"{what}: left in the weights"


@pytest.mark.parametrize("made", CASES, ids=NAMES, indirect=True)
def test_the_stub_raises_not_implemented_and_nothing_else(made):
    _, nb, place, run = made
    source = cells.code(student(nb), "exercise")[place].source
    assert cells.BEGIN not in source and "raises-exception" in cells.tags(cells.code(student(nb), "exercise")[place])
    with pytest.raises(NotImplementedError, match="your turn"):
        run(source)
    assert run.asked, "the stub was never tried"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_declared_exercise_is_in_the_notebook(path):
    module = f"nb{cells.number(path)}."
    source = "\n".join(cell.source for cell in cells.code(cells.read(path), "exercise"))
    assert source.count(f"{module}") >= len(declared_exercises(path)) == len(cells.code(cells.read(path), "exercise"))
