"""A folder of the package imports only from folders below it, in the order of the argument."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ketools"
ORDER = [
    *("cli", "course", "report", "plots", "runs", "norms", "probing", "evaluation", "editing", "reference", "models"),
    *("facts", "io", "errors"),
]


ALLOWED = {
    "ketools/models/model.py": "editing",  # EditableModel.export, imported by the call
    "ketools/models/weights.py": "editing",  # Edit, as a type only
}


def below(top):
    return set(ORDER[ORDER.index(top) :])


def imports(path):
    """(folder or module of ours, line) for every import in a file, also within functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ketools" else [node.module]
            )
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "ketools" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1], node.lineno


def test_the_order_names_every_folder():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert folders | modules == set(ORDER)


@pytest.mark.parametrize("top", ORDER)
def test_imports_lead_downwards(top):
    paths = sorted((PACKAGE / top).rglob("*.py")) or [PACKAGE / f"{top}.py"]
    upward = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path in paths
        for name, line in imports(path)
        if name not in below(top) and ALLOWED.get(path.relative_to(PACKAGE.parent).as_posix()) != name
    ]
    assert not upward
