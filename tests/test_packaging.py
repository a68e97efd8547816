"""pyproject.toml, environment.yml, requirements.lock, the version numbers and the actual imports say the same."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ketools

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"ketools", "tests", "benchmarks", "data", "conftest"}


def names(requirements):
    """Distribution names of requirement lines, canonical; an extra of ours stands for nothing new."""
    return {canonicalize_name(Requirement(line).name) for line in requirements} - {"ketools"}


CORE = names(PROJECT["dependencies"])
DECLARED = CORE.union(*(names(lines) for lines in EXTRAS.values()))


def imports(folder):
    """(distribution, file:line) of every absolute third-party import below `folder`, wherever in the file it stands."""
    known = packages_distributions()
    for path in sorted((ROOT / folder).rglob("*.py")):
        # A script may import the scripts beside it, and tests the helpers in their folder.
        near = {p.stem for p in path.parent.iterdir()} | OURS
        if path.parent == ROOT / "tests" / "data":  # they import the scripts that they test (pytest's pythonpath)
            near |= {p.stem for p in (ROOT / "data" / "make").glob("*.py")}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for top in {module.split(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or (top in near and (top in OURS or folder != "ketools")):
                    continue
                dists = {canonicalize_name(d) for d in known.get(top, [top])}
                yield dists, f"{path.relative_to(ROOT)}:{node.lineno}: {top}"


def test_style():
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("folder", ["ketools", "tests", "benchmarks", "data/make"])
def test_every_import_is_declared(folder):
    allowed = DECLARED | {"packaging"} if folder == "tests" else DECLARED  # packaging comes with pytest
    missing = [where for dists, where in imports(folder) if not dists & allowed]
    assert not missing, "imported, but declared in no dependency or extra of pyproject.toml"


def test_every_core_dependency_is_imported():
    used = set().union(*(dists for dists, _ in imports("ketools")))
    assert not CORE - used, "core dependencies that nothing in ketools/ imports"


def test_environment_yml_only_points_at_pyproject():
    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert env["channels"] == ["conda-forge"]
    *conda, pip = env["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    (line,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", line).group(1).split(",")
    assert extras == ["notebooks", "dev"] and set(extras) <= set(EXTRAS)


def test_the_lock_pins_what_is_declared():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    pins = {}
    for line in lines:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line).groups()  # no +cpu, no addresses
        pins[canonicalize_name(name)] = version
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    for line in [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["dev"]]:
        wanted = Requirement(line)
        pinned = pins.get(canonicalize_name(wanted.name))
        assert pinned and wanted.specifier.contains(pinned), f"{line}: the lock has {pinned}; run `make lock`"
    assert "setuptools" in pins, "make installs the package without build isolation"


def test_one_version_everywhere():
    version = PROJECT["version"]
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M).group(1)
    assert ketools.__version__ == version == cff["version"] == newest


def test_citation_names_the_paper():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = cff["references"]
    assert "2502.01636" in paper["url"] and len(paper["authors"]) == 6
    assert cff["license"] == PROJECT["license"] == "MIT"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel, built in a folder of links so that nothing stays behind in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("ketools", "data", "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).symlink_to(ROOT / name)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "--wheel-dir", "out", "."]
    subprocess.run([sys.executable, *command], cwd=tree, check=True)
    (path,) = (tree / "out").iterdir()
    assert path.stat().st_size < 40e6
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


def test_the_wheel_carries_every_module_and_the_data_that_the_demo_needs(wheel):
    sources = [p for p in (ROOT / "ketools").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.relative_to(ROOT).as_posix() for p in sources} <= wheel
    folders = ["world", "world/lm_eval", "models/pocket"]
    needed = [p for folder in folders for p in (ROOT / "data" / folder).iterdir() if p.is_file()]
    assert {f"ketools/_data/{p.relative_to(ROOT / 'data').as_posix()}" for p in needed} <= wheel
    assert "ketools/_data/models/pocket/model.safetensors" in wheel
    assert not any("__pycache__" in name or "/make/" in name for name in wheel)


def test_beside_the_clone_an_editable_install_is_no_namespace(tmp_path):
    tree = tmp_path / "ketools"
    tree.mkdir()
    for name in ("ketools", "data", "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).symlink_to(ROOT / name)
    code = "from setuptools.build_meta import build_editable; build_editable('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (made,) = tree.glob("*.whl")
    zipfile.ZipFile(made).extractall(tmp_path / "site")
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import ketools; print(ketools.__version__)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert told.stdout.strip() == ketools.__version__, told.stderr


def test_every_package_folder_has_an_init():
    bare = {p.parent.name for p in (ROOT / "ketools").rglob("*.py") if not (p.parent / "__init__.py").exists()}
    assert not bare


def test_public_names_exist_and_nothing_heavy_loads_with_the_package():
    for name in ketools.__all__:
        assert getattr(ketools, name) is not None
    assert set(ketools.__all__) <= set(dir(ketools))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ketools.nothing  # noqa: B018
    code = "import sys, ketools, ketools.cli; sys.exit(bool({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_relative_links_of_the_documents_lead_somewhere():
    for doc in [*ROOT.glob("*.md"), *(ROOT / "data").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", doc.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (doc.parent / target).exists(), f"{doc.name} links to {target}"


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
