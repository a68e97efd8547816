"""A method is two choices: when the target optimisation stops, and what the weight update protects. A third, optional
one is how the update is post-processed. The numbers are data (hyperparameters.toml).

>>> from dataclasses import replace
>>> replace(MEMIT, stopping=MPES(1)).stopping            # the paper's ablation, in one line
MPES(patience=1)
>>> replace(MEMIT, post=Rect()).post
Rect(keep=0.4)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from ketools.editing.postprocess import Nas, Post, Prune, Rect, Sphere  # noqa: F401 - choices of a method
from ketools.editing.stopping import MPES, FixedSteps, ProbabilityThreshold, Stopping  # noqa: F401
from ketools.errors import Damaged, KetoolsError
from ketools.io import checked, packaged
from ketools.models.model import EditableModel

if TYPE_CHECKING:
    import pandas as pd

# Types of settings. Whole numbers are bounded, because they can be larger than any float.
_Whole = Annotated[int, Field(ge=0, lt=1 << 62)]
_Counted = Annotated[int, Field(ge=1, lt=1 << 62)]
_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Threshold = Annotated[float, Field(gt=0)]  # infinite: no threshold
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """Settings of one method on one model; hyperparameters.toml explains each, gives its default and names its source."""

    layers: tuple[_Whole, ...] | None = None
    layers_depth: tuple[_Share, _Share]
    lr: _Positive
    steps: _Counted
    clamp_norm_factor: _Positive
    kl_factor: _Number
    kl_direction: Literal["reference", "edited"]
    weight_decay: _Number
    loss_floor: Annotated[float, Field(allow_inf_nan=False)]
    patience: _Whole
    compat: Literal["exact", "official"]
    prefix_count: _Whole
    prefix_tokens: _Counted
    lambda_p: _Number | None = None
    lambda_p_relative: _Number
    lambda_n: _Number | None = None
    lambda_n_relative: _Number
    null_threshold: _Threshold | None = None
    null_threshold_relative: _Threshold
    l2: _Number | None = None
    l2_relative: _Number
    constraint_ridge: _Number
    shift_lr: _Positive | None = None
    shift_lr_relative: _Positive
    ft_lr: _Positive
    ft_steps: _Counted
    ft_epsilon: _Positive
    lora_rank: _Counted
    facts_at_once: _Counted | None = None
    precision: Literal["weights", "bfloat16"]
    compile: str | None = None
    same_subject: Literal["shared", "apart", "alone"]

    def value(self, name: str, unit: float) -> float:
        """`name` if it is given in absolute terms, else `name`_relative times `unit`."""
        absolute = getattr(self, name)
        return float(absolute if absolute is not None else getattr(self, f"{name}_relative") * unit)

    def absolute(self, d_mlp: int, mean_eigenvalue: float) -> "Absolute":
        """The weights in A in absolute terms, for a C (d_mlp, d_mlp) with this mean eigenvalue."""
        units = (d_mlp, mean_eigenvalue, mean_eigenvalue, mean_eigenvalue)
        return Absolute(*(self.value(name, unit) for name, unit in zip(Absolute._fields, units, strict=True)))


class Absolute(NamedTuple):
    """The weights of the terms of A = lambda_p C + lambda_n I + K_p K_p^T, and AlphaEdit's two settings."""

    lambda_p: float
    lambda_n: float
    null_threshold: float
    l2: float


def scaled(name: str, *given: Mapping[str, Any], model_name: str = "") -> Hyper:
    """Settings of the method `name`: those of the table, then each mapping in `given`; later ones win.

    `layers` is None where only `layers_depth` is given; `Method.settings` knows the model's depth. `compat="official"` also
    sets the direction of the authors' KL term unless `kl_direction` is given. Raises KetoolsError for an unknown setting
    and an invalid value.
    """
    values = _from_table(model_name, name)
    if any(mapping.get("compat") == "official" for mapping in given):
        values["kl_direction"] = "edited"
    for mapping in given:
        for key in mapping:
            if key.endswith("_relative"):  # an absolute value in the table must not override it
                values.pop(key.removesuffix("_relative"), None)
            elif key == "layers_depth":
                values.pop("layers", None)
        values |= mapping
    known = {f.name for f in fields(Hyper)}
    if wrong := sorted(set(values) - known):
        raise KetoolsError(f"no setting named {wrong[0]!r}; there are: {', '.join(sorted(known))}")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    hyper = Hyper(**settings)
    for f in fields(Hyper):
        check_value(f.name, getattr(hyper, f.name))
    return hyper


def check_value(name: str, value: Any) -> None:  # noqa: ANN401
    """Raise KetoolsError if the setting `name` cannot have this value on any model; existence of layers is not checked."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        checked(value, Hyper.__dataclass_fields__[name].type, f"setting {name}")
    except Damaged as error:  # here no file is damaged
        raise KetoolsError(str(error)) from None
    if name == "layers_depth" and value[0] > value[1]:
        raise KetoolsError(f"setting {name} is {value}: expected two shares of the depth in ascending order")
    if name == "compile" and value is not None and value not in torch.compiler.list_backends(exclude_tags=()):
        raise KetoolsError(f"setting {name} is {value!r}: expected a backend of torch.compile, such as inductor")


def listed_for(model_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of settings: its defaults, and what it has for this model; tables in either are those of a method."""
    table = packaged("editing/hyperparameters.toml")
    return table["default"], table["models"].get(model_name.rstrip("/").rsplit("/", 1)[-1].lower(), {})


def _from_table(model_name: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for scope in listed_for(model_name):
        # Layers listed for the model are overridden only by those listed for model and method.
        values |= {k: v for k, v in scope.items() if not isinstance(v, dict)}
        values |= scope.get(name, {})
    return values


@dataclass(frozen=True)
class LeastSquares:
    """Delta = R K1^T A^-1 with A = lambda_p C + lambda_n I + K_p K_p^T + K1 K1^T.

    `past_keys` keeps K_p, the keys of all earlier edits; `norm` keeps lambda_n I.
    """

    past_keys: bool = False
    norm: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings it uses, as in all updates; of an absolute and a relative one the absolute."""
        return ("lambda_p", "lambda_n") if self.norm else ("lambda_p",)

    @property
    def protects(self) -> str:
        """What it protects, as in all updates, for `methods()`."""
        past, norm = ", past edits" if self.past_keys else "", ", the weights' norm" if self.norm else ""
        return f"background text{past}{norm}"


@dataclass(frozen=True)
class NullSpace:
    """Delta = R K1^T P (P (K_p K_p^T + K1 K1^T) P + l2 I)^-1, P onto the small eigenvalues of C (AlphaEdit)."""

    past_keys: bool = True
    settings = ("null_threshold", "l2")

    @property
    def protects(self) -> str:
        return "text's main directions (exactly)" + (", past edits" if self.past_keys else "")


@dataclass(frozen=True)
class Constraint:
    """Delta = R (X^T H)^-1 X^T with X = C^-1 K1: the new facts hold exactly, Delta H = R (ROME, EMMET).

    H = K1, each key half the bare prompt's and half the mean of the prefixed ones (EMMET, R-ROME). With `bare_key`, H
    are the keys of the bare prompts while X keeps the averaged ones. This is ROME as its authors' code computes it:
    where the two keys point in different directions the denominator is small and the update large, an edit that
    disables the model (Gupta et al., arXiv 2403.07175). `one_at_a_time`: each fact of a batch is an edit of its own, on
    top of the one before.
    """

    one_at_a_time: bool = False
    bare_key: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        return () if self.one_at_a_time else ("lambda_p", "constraint_ridge")

    @property
    def protects(self) -> str:
        return f"background text; the new facts hold exactly{' (on the bare prompt)' if self.bare_key else ''}"


@dataclass(frozen=True)
class Shift:
    """Delta = V H^T (H H^T + I)^-1, V = -eta ||h^||^2 g^ by column, from one forward and backward pass (UltraEdit).

    H (d_mlp, tokens) are the inputs of the matrix at all tokens of prompt and target, g the gradients of the target's
    NLL with respect to its outputs. h^ and g^ are normalised by running means and deviations over all edits so far.
    """

    settings = ("shift_lr",)
    protects = "the weights' norm"


@dataclass(frozen=True)
class FineTune:
    """Adam on the edited matrices and the target's NLL, without target optimisation ("ft"; "ft-l": |Delta| <=
    ft_epsilon; "lora": rank lora_rank).
    """

    kind: str = "ft"

    @property
    def settings(self) -> tuple[str, ...]:
        own = {"ft-l": ("ft_epsilon",), "lora": ("lora_rank",)}.get(self.kind, ())
        return ("ft_lr", "ft_steps", "loss_floor", *own)

    @property
    def protects(self) -> str:
        known = {"ft-l": "every single weight, by a bound", "lora": "the update's rank"}
        return known.get(self.kind, "nothing")


Update = LeastSquares | NullSpace | Constraint | Shift | FineTune
# Settings of the target optimisation, and the units of relative settings.
_SEARCH = ("lr", "steps", "clamp_norm_factor", "kl_factor", "kl_direction", "weight_decay", "loss_floor", "compat",
           "precision", "compile", "prefix_count", "prefix_tokens")  # fmt: skip
_UNITS = {"lambda_p_relative": "d_mlp", "shift_lr_relative": "the rms of the matrix's outputs / d_mlp"}


@dataclass(frozen=True)
class Method:
    """A method of editing. `hyper` holds settings that override those of hyperparameters.toml."""

    name: str
    stopping: Stopping
    update: Update
    hyper: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    year: int = 0
    source: str = ""
    post: Post | None = None

    def __post_init__(self) -> None:
        if isinstance(self.post, Nas) and not self.has_targets:
            raise KetoolsError(f"method {self.name!r}: Nas rescales optimised targets, and this method has none")

    @property
    def has_targets(self) -> bool:
        """Whether a target optimisation finds a target state for each fact."""
        return not isinstance(self.update, Shift | FineTune)

    @property
    def needs_statistics(self) -> bool:
        """Whether the update uses C, the covariance of keys over background text."""
        return self.has_targets

    @property
    def past_keys(self) -> bool:
        """Whether the keys of earlier edits are protected."""
        return getattr(self.update, "past_keys", False)

    def settings(self, model: EditableModel, **overrides: object) -> Hyper:
        """The settings for `model`: those of the table (`scaled`), then the method's own, then `overrides`.

        Raises KetoolsError for an unknown setting, an invalid value, and for layers that the model does not have.
        """
        hyper = scaled(self.name, self.hyper, overrides, model_name=model.known_as)
        layers, n_layer = hyper.layers, model.anatomy.n_layer
        if layers is None:
            first, last = (min(n_layer - 1, round(part * n_layer)) for part in hyper.layers_depth)
            layers = tuple(range(max(first, last - 4), last + 1))
        if not layers or list(layers) != sorted(set(layers)):
            raise KetoolsError(
                f"layers {layers!r}: expected different layer numbers in ascending order, such as (4, 5, 6)"
            )
        for index in layers:
            model.layer(index)
        return replace(hyper, layers=layers)

    def describe(self, model: EditableModel | None = None) -> str:
        """Equation, stopping rule, post-processing, source and relevant settings, as text.

        Settings are those for `model`; without a model, those that are scaled to any model without an entry of its own
        (hyperparameters.toml says how, and names their sources).
        """
        lines = [f"{self.name} ({self.year}), {self.source}"]
        parts = {
            "target optimisation": self.stopping if self.has_targets else None,
            "weight update": self.update,
            "afterwards": self.post,
        }
        for title, part in parts.items():
            if part is not None:
                lines += [f"{title}: {part}", "  " + " ".join((type(part).__doc__ or "").split())]
            elif title == "target optimisation":
                lines += ["target optimisation: none"]
        hyper = scaled(self.name, self.hyper) if model is None else self.settings(model)
        lines += ["settings, scaled to the model:" if model is None else f"settings for {model.name}:"]
        for name, value in self._set(hyper).items():
            unit = f" (times {_UNITS.get(name, 'the mean eigenvalue of C')})" if name.endswith("_relative") else ""
            lines += [f"  {name} = {value}{unit}"]
        return "\n".join(lines)

    def told(self, model: EditableModel) -> str:
        """The relevant settings of this method on `model`, with their values: "layers (0,), lr 0.5, ..."."""
        return ", ".join(f"{name} {value}" for name, value in self._set(self.settings(model)).items())

    def _set(self, hyper: Hyper) -> dict[str, object]:
        # The relevant settings that have a value.
        return {name: value for name in self.counting(hyper) if (value := getattr(hyper, name)) is not None}

    def counting(self, hyper: Hyper) -> tuple[str, ...]:
        """Names of the settings that this method uses; of an absolute and a relative one the one in effect."""
        waits = self.has_targets and isinstance(self.stopping, MPES) and self.stopping.patience is None
        names = (*(_SEARCH if self.has_targets else ()), *(("patience",) if waits else ()), *self.update.settings)
        absolute = {
            name for name in names if getattr(hyper, name) is not None or not hasattr(hyper, f"{name}_relative")
        }
        used = (name if name in absolute else f"{name}_relative" for name in names)
        return ("layers" if hyper.layers is not None else "layers_depth", *used, "facts_at_once")


_PAPER = "Gupta et al., arXiv 2502.01636"
_ROME = "Meng et al., arXiv 2202.05262"
ROME = Method("rome", FixedSteps(), Constraint(one_at_a_time=True, bare_key=True), year=2022, source=_ROME)
R_ROME = Method(
    "r-rome", FixedSteps(), Constraint(one_at_a_time=True), year=2024, source="Gupta et al., arXiv 2403.07175"
)
EMMET = Method("emmet", FixedSteps(), Constraint(), year=2024, source="Gupta et al., arXiv 2403.14236")
MEMIT = Method("memit", FixedSteps(), LeastSquares(), year=2022, source="Meng et al., arXiv 2210.07229")
SEQUENTIAL_MEMIT = Method("sequential-memit", FixedSteps(), LeastSquares(past_keys=True), year=2025, source=_PAPER)
ALPHAEDIT = Method("alphaedit", FixedSteps(), NullSpace(), year=2024, source="Fang et al., arXiv 2410.02355")
ENCORE = Method("encore", MPES(), LeastSquares(past_keys=True, norm=True), year=2025, source=_PAPER)
ULTRAEDIT = Method("ultraedit", FixedSteps(), Shift(), year=2025, source="Gu et al., arXiv 2505.14679")
FT = Method("ft", FixedSteps(), FineTune("ft"), year=2022, source=f"baseline of {_ROME}")
FT_L = Method("ft-l", FixedSteps(), FineTune("ft-l"), year=2022, source=f"baseline of {_ROME}")
LORA = Method("lora", FixedSteps(), FineTune("lora"), year=2021, source="Hu et al., arXiv 2106.09685")
ALL = (ROME, R_ROME, EMMET, MEMIT, SEQUENTIAL_MEMIT, ALPHAEDIT, ENCORE, ULTRAEDIT, FT, FT_L, LORA)


def method(name: str | Method) -> Method:
    """The method of that name (case-insensitive). Raises KetoolsError, listing the names, for an unknown one."""
    if isinstance(name, Method):
        return name
    for known in ALL:
        if known.name == str(name).lower().replace("_", "-"):
            return known
    raise KetoolsError(f"no method named {name!r}; there are: {', '.join(m.name for m in ALL)}")


def methods() -> "pd.DataFrame":
    """All methods: name, year, stopping rule, what is protected and how, post-processing, source.

    Post-processing can be added to any of them: replace(MEMIT, post=Prune()), Rect(), Nas(), Sphere().

    Examples:
        >>> import ketools as ke
        >>> ke.methods().set_index("name").loc["encore", "source"]
        'Gupta et al., arXiv 2502.01636'
    """
    import pandas as pd

    rows = [
        {
            "name": m.name,
            "year": m.year,
            "stopping": str(m.stopping) if m.has_targets else "no target optimisation",
            "protects": m.update.protects,
            "post": "none" if m.post is None else str(m.post),
            "source": m.source,
        }
        for m in ALL
    ]
    return pd.DataFrame(rows)
