"""One switch for all notebooks: KETOOLS_MODE=quick (pocket, CPU, offline) or full (the model in full.toml).

`setup` is called once, in a notebook's first code cell.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ketools.editing.covariance import Statistics, load_statistics, own_file
from ketools.editing.editor import Editor
from ketools.editing.methods import Method
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import expanded, packaged, read_toml
from ketools.models.model import EditableModel, fingerprint_of, load
from ketools.probing.recall import answers
from ketools.runs.config import DTYPES
from ketools.runs.records import versions

MODES = ("quick", "full")
_AT_ONCE = 64  # facts per batch in `known`


@dataclass(frozen=True, eq=False)
class Lab:
    """What a notebook works with; made by `setup`, printed at its top.

    mode ("quick" or "full"), model (unedited at first), facts, sizes (by attribute), seed, statistics (those named in
    full.toml, else those in the model's folder, else None; one object for all editors, so that each C is unpacked once),
    source of the facts.
    """

    mode: str
    model: EditableModel
    facts: FactSet
    sizes: SimpleNamespace
    seed: int
    statistics: Statistics | None
    source: str

    @property
    def device(self) -> str:
        """Type of the model's device, such as "cpu"."""
        return self.model.device.type

    def __str__(self) -> str:
        """Mode, model, facts, sizes, seed, versions: three lines."""
        model, sizes = self.model, ", ".join(f"{name} {value}" for name, value in vars(self.sizes).items())
        dtype = str(model.dtype).removeprefix("torch.")
        about = ", ".join(f"{name} {number}" for name, number in versions().items())
        return (
            f"Mode {self.mode}: model {model.name} ({model.fingerprint[:8]}, {model.anatomy.n_layer} layers, {dtype}) on "
            f"{self.device}, {len(self.facts):,} facts of {self.source}\n"
            f"Sizes: {sizes or 'none'}; seed {self.seed}\nVersions: {about}"
        )

    def context(self, n: str, **more: object) -> str:
        """The last sentence of a figure's caption: mode, model, n, seed and `more` settings.

        >>> lab.context(n="40 facts", layers="1 to 3")                                # doctest: +SKIP
        'Mode quick, model pocket, n = 40 facts, seed 0, layers 1 to 3.'
        """
        rest = "".join(f", {name.replace('_', ' ')} {value}" for name, value in more.items())
        return f"Mode {self.mode}, model {self.model.name}, n = {n}, seed {self.seed}{rest}."

    def editor(self, how: str | Method, **overrides: object) -> Editor:
        """A fresh Editor of this lab's model with its statistics and seed; `overrides` as in `ketools.Editor`."""
        options: dict[str, Any] = {"statistics": self.statistics, "seed": self.seed} | overrides
        return Editor(self.model, how, **options)

    def known(self, n: int, relation: str | None = None) -> FactSet:
        """`n` facts about different subjects whose true object is the model's first choice after the edit prompt.

        In the order of `FactSet.sample` with this lab's seed, so that a smaller set is the beginning of a larger one. Asks
        the model in its present state. Raises KetoolsError if it knows fewer than `n`.
        """
        chosen = self.facts.filter(lambda fact: fact.target_true is not None and relation in (None, fact.relation))
        if not len(chosen):
            have = ", ".join(sorted({fact.relation for fact in self.facts})[:8])
            raise KetoolsError(f"no facts of relation {relation!r} in {self.source}; there are: {have}")
        most = len({fact.subject.lower() for fact in chosen})
        asked = chosen.sample(most, self.seed)
        known: list[Fact] = []
        for start in range(0, most, _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            right = answers(self.model, [f.text for f in some], [str(f.target_true) for f in some])["right"]
            known += [fact for fact, hit in zip(some, right, strict=True) if hit]
            if len(known) >= n:
                return FactSet(known[:n])
        raise KetoolsError(
            f"{self.model.name} answers {len(known)} of {most} facts of {self.source} correctly, {n} are needed; "
            "ask for fewer or take a model that knows them"
        )

    def clean(self) -> float:
        """1.0 if the weights are, bit for bit, as loaded; else 0.0."""
        return float(not self.model.edits and fingerprint_of(self.model.model) == self.model.fingerprint)


def current_mode() -> str:
    """The value of KETOOLS_MODE, "quick" if unset. Raises KetoolsError for anything but "quick" and "full"."""
    mode = os.environ.get("KETOOLS_MODE") or "quick"
    if mode not in MODES:
        raise KetoolsError(f"KETOOLS_MODE is {mode!r}; set it to quick (pocket, on the CPU) or full (see full.toml)")
    return mode


def setup(number: str, *, seed: int = 0, model: str = "pocket", **sizes: int) -> Lab:
    """Everything that notebook `number` ("03") works with, depending on KETOOLS_MODE.

    `model` and `sizes` (by name) are those of quick mode; full mode takes the model and the sizes in [sizes.NUMBER] from
    full.toml (or the file that KETOOLS_FULL names). Also turns off progress bars and lets plotly output only figure data.

    Raises KetoolsError for an unknown mode, a size missing in the notebook or in full.toml, and as loading does.
    """
    import plotly.io
    from transformers.utils import logging

    # Stored outputs hold no progress bars. By default plotly would add its whole library to the first figure.
    logging.disable_progress_bar()
    plotly.io.renderers.default = "plotly_mimetype"
    if current_mode() == "quick":
        small, world = load(model), read_facts("world")
        return Lab("quick", small, world, SimpleNamespace(**sizes), seed, _beside(small), "world")
    table, folder = _full_table()
    about, full = table["model"], table.get("sizes", {}).get(number, {})

    def near(name: str) -> str:
        """The path, relative to the file that names it, if it exists; else the name."""
        return str(folder / name) if folder is not None and (folder / name).exists() else name

    if (dtype := about.get("dtype")) not in (None, *DTYPES):
        raise KetoolsError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    weights = None if dtype is None else getattr(torch, dtype)
    loaded = load(near(about["name"]), device=about.get("device") or accelerator, dtype=weights)
    if "statistics" in about:
        statistics: Statistics | None = Statistics.load(near(about["statistics"])).of(loaded, ())
    else:
        statistics = _beside(loaded)
    facts = read_facts(near(about["facts"]))
    if odd := sorted(set(full) ^ set(sizes)):
        side = "the notebook's set-up cell" if odd[0] in full else f"[sizes.{number}] of full.toml"
        raise KetoolsError(f"size {odd[0]!r} of notebook {number} is missing in {side}; name it in both")
    return Lab("full", loaded, facts, SimpleNamespace(**full), seed, statistics, Path(about["facts"]).name)


def _beside(model: EditableModel) -> Statistics | None:
    """The statistics in the model's folder, if there are any."""
    return load_statistics(model) if own_file(model) is not None else None


def _full_table() -> tuple[dict[str, Any], Path | None]:
    """(content, folder) of the file that KETOOLS_FULL names; else of ketools' own full.toml, with None as folder."""
    named = os.environ.get("KETOOLS_FULL")
    if not named:
        return packaged("course/full.toml"), None
    path = expanded(named)
    table = read_toml(path, "a file like ketools/course/full.toml, which KETOOLS_FULL names")
    if missing := [key for key in ("name", "facts") if key not in table.get("model", {})]:
        raise KetoolsError(f"{path}: [model] lacks {' and '.join(missing)}; expected at least name and facts")
    return table, path.parent
