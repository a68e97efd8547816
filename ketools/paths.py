"""Where the project's data lies: facts of the built-in world, pocket models, reference results."""

import os
from pathlib import Path

from ketools.errors import KetoolsError


def data_root() -> Path:
    """The folder with `world/` and `models/`: KETOOLS_DATA if set, else `data/` of the checkout beside the package.

    Raises KetoolsError if there is no such folder.
    """
    named = os.environ.get("KETOOLS_DATA")
    root = Path(named).expanduser() if named else Path(__file__).resolve().parent.parent / "data"
    if root.is_dir():
        return root
    if named:
        raise KetoolsError(
            f"KETOOLS_DATA names {root}, which is not a folder; set it to the folder with world/ and models/"
        )
    raise KetoolsError(
        f"no data folder at {root}: work from a checkout (pip install -e .), "
        "or set KETOOLS_DATA to the folder that holds world/ and models/"
    )


def model_names() -> list[str]:
    """Names of the pocket models that the data folder holds (folders with a config.json), in order."""
    folder = data_root() / "models"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file())


def model_dir(name: str) -> Path:
    """The folder of the pocket model `name`.

    Raises KetoolsError that lists the models there are if `name` is none of them.
    """
    names = model_names()
    if name in names:
        return data_root() / "models" / name
    have = ", ".join(names) if names else f"none yet in {data_root() / 'models'}"
    raise KetoolsError(f"no pocket model named {name!r}; there are: {have}")
