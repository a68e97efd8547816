"""Teaching tools of the notebooks: set-up, claims, predictions, exercises, widgets.

A notebook starts with `from ketools.course import setup, check_claim, predict`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ketools.course.claims import check_claim, predict
    from ketools.course.mode import setup

__all__ = ["check_claim", "predict", "setup"]

_LAZY = {
    "check_claim": "ketools.course.claims",
    "predict": "ketools.course.claims",
    "setup": "ketools.course.mode",
}


def __getattr__(name: str) -> object:
    """Import a name on first use (PEP 562): figures alone need neither torch nor transformers."""
    if name not in _LAZY:
        raise AttributeError(f"module 'ketools.course' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
