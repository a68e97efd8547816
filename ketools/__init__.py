"""ketools: lifelong knowledge editing of language models.

>>> import ketools as ke
>>> model = ke.load("pocket")
>>> facts = ke.facts("world").sample(2, seed=0)
>>> edit = ke.Editor(model, "encore").apply(facts)
>>> ke.evaluate(model, facts, neighbours=1)["efficacy_success"].mean()
np.float64(1.0)

Names that need torch are imported on first use, which keeps `ketools --help` and checks of facts files fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ketools.errors import KetoolsError

# Imported here, not on first use: the function must replace the submodule of the same name.
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts

if TYPE_CHECKING:
    from ketools.editing.edit import Edit
    from ketools.editing.editor import Editor
    from ketools.editing.methods import methods
    from ketools.evaluation.edits import evaluate
    from ketools.models.model import EditableModel, load

__version__ = "0.2.0"

__all__ = [
    "Edit", "EditableModel", "Editor", "Fact", "FactSet", "KetoolsError", "__version__", "edited", "evaluate", "facts",
    "load", "methods",
]  # fmt: skip

_LAZY = {
    "Edit": "ketools.editing.edit",
    "EditableModel": "ketools.models.model",
    "Editor": "ketools.editing.editor",
    "edited": "ketools.models.weights",
    "evaluate": "ketools.evaluation.edits",
    "load": "ketools.models.model",
    "methods": "ketools.editing.methods",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562); raises AttributeError for a name that ketools does not have."""
    if name not in _LAZY:
        raise AttributeError(f"module 'ketools' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
