"""What every notebook of the course keeps to, as functions: (notebook, its path) -> violations in words."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

from ketools.course import build as cells
from ketools.course.claims import Exercise
from ketools.errors import KetoolsError

EXPECTED = (
    "00_first_edit", "01_ask_the_model", "02_locate_a_fact", "03_write_one_fact", "04_write_many_facts",
    "05_protect_what_is_there", "06_keep_editing", "07_overfit_a_fact", "08_watch_the_norm", "09_apply_encore",
    "10_ten_thousand_edits", "11_edit_your_own_model",
)  # fmt: skip
CODE_CELLS, LINES, WORDS, BYTES, COMPARED = (10, 24), 30, 2000, 1_000_000, 4
IGNORED = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
TAGS = IGNORED | {"setup", "hygiene", "claim", "figure", "widget", "control", "failure", "exercise", cells.HIDDEN}
HYGIENE = "every weight has its old bits again"
SECTIONS = ("## Exercises", "## What you learned", "## Limits", "## Further reading", "## Next")
_ABSOLUTE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|Users|var|opt|mnt|srv|private)/[\w.-]|[A-Z]:\\\\?\w|file://"
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)[^)]*\)")
Rule = Callable[[object, Path], list[str]]


def one_title_first(nb, path):
    """One H1, the first line of the first cell."""
    count = len(re.findall(r"^# +\S", cells.prose(nb), re.M))
    first = nb.cells[0].cell_type == "markdown" and nb.cells[0].source.startswith("# ")
    return [f"{count} titles (# ...), expected one"] * (count != 1) + ["the first cell is not the title"] * (not first)


def head(nb, path):
    """Objectives, prerequisites and minutes in the first cell."""
    said = nb.cells[0].source
    found = [f"the first cell lacks {name}" for name in ("**You need**", "**Time**") if name not in said]
    count = len(cells.objectives(nb))
    found += [f"{count} objectives below **You will be able to**, expected 3 to 5"] * (not 3 <= count <= 5)
    return found + ["**Time**: NN minutes is not said"] * (cells.minutes(nb) is None)


def end(nb, path):
    """The last sections, in order; further reading names arXiv ids or venues with links."""
    places = [cells.prose(nb).find(f"\n{name}\n") for name in SECTIONS]
    found = [f"section {name!r} is missing" for name, at in zip(SECTIONS, places) if at < 0]
    if not found and places != sorted(places):
        found = [f"sections out of order, expected {', '.join(SECTIONS)}"]
    reading = cells.prose(nb).partition("## Further reading")[2].partition("\n## ")[0]
    return found + ["further reading gives no link"] * ("](https://" not in reading)


def size(nb, path):
    """Ten to twenty-four code cells of at most thirty lines, two thousand words, a megabyte."""
    code = cells.code(nb)
    found = [f"{len(code)} code cells, expected 10 to 24"] * (not CODE_CELLS[0] <= len(code) <= CODE_CELLS[1])
    for cell in code:
        lines = [line for line in cell.source.splitlines() if line.strip() not in ("", cells.BEGIN, cells.END)]
        found += [f"a code cell of {len(lines)} lines: {lines[0]}"] * (len(lines) > LINES)
    words = len(cells.prose(nb).split())
    found += [f"{words} words, at most {WORDS}"] * (words > WORDS)
    bytes_ = len(json.dumps(nb, ensure_ascii=False).encode())
    return found + [f"{bytes_:,} bytes, at most {BYTES:,}"] * (bytes_ > BYTES)


def run_in_order(nb, path):
    """Execution counts 1, 2, 3: the outputs come from one run of a fresh kernel, top to bottom."""
    counts = [cell.execution_count for cell in cells.code(nb)]
    expected = list(range(1, len(counts) + 1))
    return [f"execution counts {counts}; store it with `make store`"] * (counts != expected)


def nothing_of_a_machine(nb, path):
    """No widget state, no absolute paths, no errors, no bars or warnings."""
    found = ["metadata.widgets is stored"] * ("widgets" in nb.metadata)
    found += [f"metadata holds {key!r}" for key in nb.metadata if key not in ("kernelspec", "language_info", "widgets")]
    for cell in nb.cells:
        shown = [cell.source, *map(_text, cell.get("outputs", ()))]
        found += [f"absolute path: {match[0]}..." for text in shown if (match := _ABSOLUTE.search(text))]
        for output in cell.get("outputs", ()):
            found += [f"stored error: {output.get('ename')}"] * (output.output_type == "error")
            found += [f"stored on stderr: {output.get('text', '')[:60]!r}"] * (output.get("name") == "stderr")
            found += ["a widget is stored"] * (cells.WIDGET in output.get("data", {}))
    return found


def tags_are_known(nb, path):
    """A mistyped tag does nothing; it is refused. Markers in comments are not used."""
    found = []
    for cell in cells.code(nb):
        odd = {tag for tag in cells.tags(cell) - TAGS if not re.fullmatch(r"objective-[1-5]", tag)}
        found += [f"unknown tags {sorted(odd)}"] * bool(odd)
        found += ["a comment NBVAL_..."] * bool(re.search(r"#.*(?:NBVAL_|PYTEST_VALIDATE)", cell.source))
    return found


def set_up(nb, path):
    """The first code cell sets up, by its number; imports stand nowhere else."""
    code = cells.code(nb)
    found = ["the first code cell is not tagged setup"] * ("setup" not in cells.tags(code[0]))
    called = re.search(r"setup\(\s*\"(\d\d)\"", code[0].source)
    found += [f"no setup({cells.number(path)!r}, ...) in it"] * (not called or called[1] != cells.number(path))
    found += ["it does not print(lab)"] * ("print(lab)" not in code[0].source)
    for cell in code[1:]:
        found += [f"import outside of the set-up: {line}" for line in _imports(cell.source)]
    for cell in code:
        found += [
            f"{word} in a cell" for word in ("sys.path", "pip install", "%pip", "os.chdir") if word in cell.source
        ]
    return found


def hygiene(nb, path):
    """The last code cell claims that the model is the initial one."""
    last = cells.code(nb)[-1]
    missing = [tag for tag in ("hygiene", "claim") if tag not in cells.tags(last)]
    found = [f"the last code cell is not tagged {tag}" for tag in missing]
    found += ["it does not ask lab.clean()"] * ("lab.clean()" not in last.source)
    return found + [f"it does not claim {HYGIENE!r}"] * (HYGIENE not in last.source)


def claims(nb, path):
    """Every claim is compared and holds; every objective has one; enough cells are compared."""
    found, shown = [], set()
    for cell in cells.code(nb):
        said = _stream(cell)
        asked = cell.source.count("check_claim(")
        if asked and "claim" not in cells.tags(cell):
            found.append("check_claim in a cell without the tag claim")
        if "claim" in cells.tags(cell):
            shown |= {int(tag[-1]) for tag in cells.tags(cell) if tag.startswith("objective-")}
            found += ["a claim's output is ignored"] * bool(cells.tags(cell) & IGNORED)
            found += ["a cell tagged claim without a stored line"] * (not re.search("^holds: ", said, re.M))
            found += [f"{asked} claims, {said.count('holds: ')} lines"] * (said.count("holds: ") < asked)
        elif any(tag.startswith("objective-") for tag in cells.tags(cell)):
            found.append("an objective's tag on a cell that claims nothing")
        found += ["a stored claim does not hold"] * ("does not hold" in said)
    missing = set(range(1, len(cells.objectives(nb)) + 1)) - shown
    found += [f"no claim shows objective {i}" for i in sorted(missing)]
    count = compared(nb)
    return found + [f"{count} compared cells with output, at least {COMPARED}"] * (count < COMPARED)


def figures(nb, path):
    """Figures: words, context, a picture beside them; no interactive widget before a figure; images with alternatives."""
    found, seen = [], False
    for cell in cells.code(nb):
        shown = [out for out in cell.get("outputs", ()) if cells.PLOTLY in out.get("data", {})]
        seen |= bool(shown)
        found += ["a cell tagged figure shows none"] * ("figure" in cells.tags(cell) and not shown)
        found += ["a figure in a cell without the tag figure"] * (bool(shown) and "figure" not in cells.tags(cell))
        found += ["a widget before any static figure"] * ("widget" in cells.tags(cell) and not seen)
        if cells.tags(cell) & {"figure", "widget"} and "nbval-ignore-output" not in cells.tags(cell):
            found.append("a figure or widget is compared: tag it nbval-ignore-output")
        found += [problem for out in shown for problem in _figure(out)]
    found += ["no figure"] * (not seen)
    return found + [
        f"image without a describing text: {m[3]}" for m in _LINK.finditer(cells.prose(nb)) if m[1] and len(m[2]) < 10
    ]


def _figure(output):
    layout = output.data[cells.PLOTLY].get("layout", {})
    words, title = layout.get("meta") or {}, layout.get("title", {}).get("text", "")
    found = ["a figure without a title"] * (not title)
    found += [f"{title!r}: no description"] * (len(words.get("description", "")) < 20)
    lacking = [part for part in ("Mode ", "model ", "n = ", "seed ") if part not in words.get("caption", "")]
    found += [f"{title!r}: the caption does not state {', '.join(map(str.strip, lacking))}"] * bool(lacking)
    found += [f"{title!r}: no PNG beside it; store it with `make store`"] * ("image/png" not in output.data)
    return found + [f"{title!r}: a FigureWidget is stored"] * (cells.WIDGET in output.data)


def links(nb, path):
    """Relative links and badges lead somewhere (a notebook of the course may be still to come), others use https."""
    found = []
    for _, text, target in (match.groups() for match in _LINK.finditer(_without_code(cells.prose(nb)))):
        if target.startswith("#"):
            heads = {re.sub(r"\s+", "-", h.strip()) for h in re.findall(r"^#+ +(.+)$", cells.prose(nb), re.M)}
            found += [f"no heading {target}"] * (target[1:] not in heads)
        elif re.match(r"[a-z]+:", target):
            found += [f"{target}: not https"] * (not target.startswith(("https://", "mailto:")))
        elif not (path.parent / target.partition("#")[0]).exists() and target.removesuffix(".ipynb") not in EXPECTED:
            found.append(f"[{text}]({target}) leads nowhere")
    following = EXPECTED.index(path.stem) + 1 if path.stem in EXPECTED else len(EXPECTED)
    after = cells.prose(nb).partition("\n## Next\n")[2]
    if following < len(EXPECTED) and f"({EXPECTED[following]}.ipynb)" not in after:
        found.append(f"## Next does not link to {EXPECTED[following]}.ipynb")
    return found


def teaching(nb, path):
    """Two predictions revealed and reconciled, a control, a failure."""
    source = "\n".join(cell.source for cell in cells.code(nb))
    found = [
        f"{source.count(word)} times {word}..., expected at least 2"
        for word in ("predict(", ".reveal(")
        if source.count(word) < 2
    ]
    told = cells.prose(nb).count("**Reconcile.**")
    found += [f"{told} times **Reconcile.**, expected at least 2"] * (told < 2)
    return found + [f"no cell tagged {tag}" for tag in ("control", "failure") if not cells.code(nb, tag)]


def exercises(nb, path):
    """Two exercises or more: heading with difficulty and minutes as declared, hint, marked solution, check()."""
    marked = cells.code(nb, "exercise")
    found = [f"{len(marked)} exercises, expected at least 2"] * (len(marked) < 2)
    pattern = r"^### Exercise (\d+): (.+) \((easy|medium|hard), (\d+) minutes\)$"
    heads = re.findall(pattern, cells.prose(nb), re.M)
    found += [f"{len(heads)} headings '### Exercise 1: ... (easy, 3 minutes)' for {len(marked)} exercises"] * (
        len(heads) != len(marked)
    )
    found += ["an exercise without a folded hint"] * (cells.prose(nb).count("<summary>Hint") < len(marked))
    for cell in marked:
        try:
            cells.solution(cell.source)
        except KetoolsError as error:
            found.append(str(error))
        found += ["an exercise that is not checked"] * (".check(" not in cell.source)
    declared = {(e.title, e.difficulty, str(e.minutes)) for e in declared_exercises(path)}
    said = {head[1:] for head in heads}
    return found + [f"not as in the lesson's module: {each}" for each in sorted(declared ^ said)]


def declared_exercises(path):
    """The Exercise objects of the notebook's helper module."""
    from importlib import import_module

    module = import_module(f"ketools.course.lessons.nb{cells.number(path)}")
    return [value for value in vars(module).values() if isinstance(value, Exercise)]


def compared(nb) -> int:
    """How many code cells nbval compares that have something to compare."""
    return sum(not cells.tags(cell) & IGNORED and any(map(_comparable, cell.outputs)) for cell in cells.code(nb))


def _comparable(output):
    data = output.get("data", {})
    return bool(output.get("text", "").strip() or data.get("text/plain") or data.get("text/markdown"))


def _stream(cell):
    return "".join(output.get("text", "") for output in cell.get("outputs", ()) if output.get("name") == "stdout")


def _text(output):
    data = output.get("data", {})
    return "\n".join([output.get("text", ""), *(str(value) for name, value in data.items() if name != "image/png")])


def _imports(source):
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"not Python: {error}"]
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`|\$[^$\n]*\$", "", text, flags=re.S)


RULES: tuple[Rule, ...] = (
    one_title_first, head, end, size, run_in_order, nothing_of_a_machine, tags_are_known, set_up, hygiene, claims,
    figures, links, teaching, exercises,
)  # fmt: skip
