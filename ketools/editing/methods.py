"""Methods as two choices: when step 1 stops, and what step 2 protects. The numbers are data (hyperparameters.toml).

>>> from dataclasses import replace
>>> replace(MEMIT, stopping=MPES(1)).stopping            # the paper's ablation, in one line
MPES(patience=1)
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ketools.errors import KetoolsError
from ketools.model import EditableModel

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FixedSteps:
    """All steps are taken, unless the loss falls below `loss_floor` (ROME, MEMIT)."""


@dataclass(frozen=True)
class MPES:
    """Most-Probable Early Stopping, Gupta et al., arXiv 2502.01636.

    A fact is done `patience` steps after its target first is the most probable token at every target position in
    every context, the bare prompt included. None: the patience of the model's settings.
    """

    patience: int | None = None


@dataclass(frozen=True)
class ProbabilityThreshold:
    """A fact is done when its target's probability, the mean over the contexts, exceeds `p`."""

    p: float


Stopping = FixedSteps | MPES | ProbabilityThreshold


@dataclass(frozen=True)
class LeastSquares:
    """Delta = R K1^T A^-1 with A = lambda_p C + lambda_n I + K_p K_p^T + K1 K1^T.

    `past_keys` keeps K_p, the keys of all earlier edits; `norm` keeps lambda_n I.
    """

    past_keys: bool = False
    norm: bool = False


@dataclass(frozen=True)
class NullSpace:
    """Delta = R K1^T P (P (K_p K_p^T + K1 K1^T) P + l2 I)^-1, P onto the small eigenvalues of C (AlphaEdit)."""

    past_keys: bool = True


@dataclass(frozen=True)
class Constraint:
    """Delta = R (K1^T A^-1 K1)^-1 K1^T A^-1 with A = lambda_p C: the new facts hold exactly (ROME, EMMET).

    `one_at_a_time`: each fact of a batch is an edit of its own, on top of the one before.
    """

    one_at_a_time: bool = False


Update = LeastSquares | NullSpace | Constraint


@dataclass(frozen=True)
class Hyper:
    """Settings of one method on one model; hyperparameters.toml says what each means and where it comes from."""

    layers: tuple[int, ...] | None = None
    layers_depth: tuple[float, float] = (0.2, 0.35)
    lr: float = 0.5
    steps: int = 20
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    kl_direction: str = "reference"
    weight_decay: float = 0.5
    loss_floor: float = 0.05
    patience: int = 2
    prefix_count: int = 5
    prefix_tokens: int = 10
    lambda_p: float | None = None
    lambda_p_relative: float = 1.5
    lambda_n: float | None = None
    lambda_n_relative: float = 10.0
    null_threshold: float | None = None
    null_threshold_relative: float = 0.1
    l2: float | None = None
    l2_relative: float = 10.0
    constraint_ridge: float = 0.1
    facts_at_once: int | None = None

    def value(self, name: str, unit: float) -> float:
        """`name` as given in absolute terms, else `name`_relative times `unit`."""
        absolute = getattr(self, name)
        return float(absolute if absolute is not None else getattr(self, f"{name}_relative") * unit)


@dataclass(frozen=True)
class Method:
    """A locate-then-edit method. `hyper` holds settings that differ from those of hyperparameters.toml."""

    name: str
    stopping: Stopping
    update: Update
    hyper: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    year: int = 0
    source: str = ""

    def settings(self, model: EditableModel, **overrides: object) -> Hyper:
        """The settings for `model`: the table's, then the method's own, then `overrides`.

        Raises KetoolsError for a name that is no setting, and for layers that the model does not have.
        """
        values = _looked_up(model, self.name)
        for given in (self.hyper, overrides):
            for name in given:
                if name.endswith("_relative"):  # an absolute value of the table must not hide it
                    values.pop(name.removesuffix("_relative"), None)
            values |= given
        known = {f.name for f in fields(Hyper)}
        if wrong := sorted(set(values) - known):
            raise KetoolsError(f"no setting named {wrong[0]!r}; there are: {', '.join(sorted(known))}")
        hyper = Hyper(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        layers = hyper.layers if hyper.layers is not None else _layers_by_depth(hyper, model.anatomy.n_layer)
        return replace(hyper, layers=_checked(layers, model))

    def describe(self, model: EditableModel | None = None) -> str:
        """Equation, stopping rule, source and (for `model`) settings, as text."""
        lines = [f"{self.name} ({self.year}), {self.source}", f"step 1: {self.stopping}", f"step 2: {self.update}"]
        lines.append(" ".join((type(self.update).__doc__ or "").split()))
        if model is not None:
            hyper = self.settings(model)
            lines += [
                f"  {f.name} = {getattr(hyper, f.name)}" for f in fields(hyper) if getattr(hyper, f.name) is not None
            ]
        return "\n".join(lines)


_PAPER = "Gupta et al., arXiv 2502.01636"
ROME = Method("rome", FixedSteps(), Constraint(one_at_a_time=True), year=2022, source="Meng et al., arXiv 2202.05262")
EMMET = Method("emmet", FixedSteps(), Constraint(), year=2024, source="Gupta et al., arXiv 2403.14236")
MEMIT = Method("memit", FixedSteps(), LeastSquares(), year=2022, source="Meng et al., arXiv 2210.07229")
SEQUENTIAL_MEMIT = Method("sequential-memit", FixedSteps(), LeastSquares(past_keys=True), year=2025, source=_PAPER)
ALPHAEDIT = Method("alphaedit", FixedSteps(), NullSpace(), year=2024, source="Fang et al., arXiv 2410.02355")
ENCORE = Method("encore", MPES(), LeastSquares(past_keys=True, norm=True), year=2025, source=_PAPER)
ALL = (ROME, EMMET, MEMIT, SEQUENTIAL_MEMIT, ALPHAEDIT, ENCORE)


def method(name: str | Method) -> Method:
    """The method of that name (in any case). Raises KetoolsError listing the names there are."""
    if isinstance(name, Method):
        return name
    for known in ALL:
        if known.name == str(name).lower().replace("_", "-"):
            return known
    raise KetoolsError(f"no method named {name!r}; there are: {', '.join(m.name for m in ALL)}")


def methods() -> "pd.DataFrame":
    """All methods: name, year, stopping rule, what is protected and how, source."""
    import pandas as pd

    rows = [
        {
            "name": m.name,
            "year": m.year,
            "stopping": str(m.stopping),
            "protects": _protects(m.update),
            "source": m.source,
        }
        for m in ALL
    ]
    return pd.DataFrame(rows)


def _protects(update: Update) -> str:
    match update:
        case LeastSquares(past_keys=past, norm=norm):
            return "prose keys" + (", past edits" if past else "") + (", the weights' norm" if norm else "")
        case NullSpace(past_keys=past):
            return "the span of prose keys, exactly" + (", past edits" if past else "")
    return "prose keys; the new facts hold exactly"


def _looked_up(model: EditableModel, name: str) -> dict[str, Any]:
    table = tomllib.loads(files("ketools.editing").joinpath("hyperparameters.toml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for scope in (table["default"], table["models"].get(model.name.rstrip("/").rsplit("/", 1)[-1].lower(), {})):
        # A list of layers for the model must give way to nothing but a list for model and method.
        values |= {k: v for k, v in scope.items() if not isinstance(v, dict)}
        values |= scope.get(name, {})
    return values


def _layers_by_depth(hyper: Hyper, n_layer: int) -> tuple[int, ...]:
    first, last = (min(n_layer - 1, round(part * n_layer)) for part in hyper.layers_depth)
    return tuple(range(max(first, last - 4), last + 1))


def _checked(layers: tuple[int, ...], model: EditableModel) -> tuple[int, ...]:
    if not layers or any(not isinstance(i, int) for i in layers) or list(layers) != sorted(set(layers)):
        raise KetoolsError(f"layers {layers!r}: expected different layer numbers in ascending order, such as (4, 5, 6)")
    for index in layers:
        model.layer(index)
    return layers
