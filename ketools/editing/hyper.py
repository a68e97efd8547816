"""Settings of a method on a model, looked up in hyperparameters.toml or scaled to the model."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from numbers import Integral, Real
from typing import Any

from ketools.errors import KetoolsError
from ketools.model import EditableModel

# Settings that take one of a few words.
_WORDS = {
    "kl_direction": ("reference", "edited"),
    "compat": ("exact", "official"),
    "precision": ("weights", "bfloat16"),
}
# Numbers that have a least value other than 0, that have to be above 0, and that may be infinite.
_LEAST = {"steps": 1, "prefix_tokens": 1, "facts_at_once": 1, "ft_steps": 1, "lora_rank": 1, "loss_floor": -math.inf}
_ABOVE = ("lr", "clamp_norm_factor", "null_threshold", "null_threshold_relative", "shift_lr", "shift_lr_relative", "ft_lr",
          "ft_epsilon")  # fmt: skip
_ENDLESS = ("null_threshold", "null_threshold_relative")


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
    compat: str = "exact"
    prefix_count: int = 5
    prefix_tokens: int = 10
    lambda_p: float | None = None
    lambda_p_relative: float = 1.5
    lambda_n: float | None = None
    lambda_n_relative: float = 10.0
    null_threshold: float | None = None
    null_threshold_relative: float = 1.0
    l2: float | None = None
    l2_relative: float = 300.0
    constraint_ridge: float = 0.1
    shift_lr: float | None = None
    shift_lr_relative: float = 0.1
    ft_lr: float = 5e-4
    ft_steps: int = 25
    ft_epsilon: float = 5e-4
    lora_rank: int = 8
    facts_at_once: int | None = None
    precision: str = "weights"
    compile: str | None = None

    def value(self, name: str, unit: float) -> float:
        """`name` as given in absolute terms, else `name`_relative times `unit`."""
        absolute = getattr(self, name)
        return float(absolute if absolute is not None else getattr(self, f"{name}_relative") * unit)


def look_up(model: EditableModel, name: str, *given: Mapping[str, Any]) -> Hyper:
    """Settings of the method `name` for `model`: the table's, then those of each mapping in `given`, later ones win.

    `compat="official"` brings the direction of the authors' KL term with it unless `kl_direction` is given too.
    Raises KetoolsError for a name that is no setting, a value that makes no sense, and for layers that the model does
    not have.
    """
    hyper = scaled(name, *given, model_name=model.known_as)
    layers = hyper.layers if hyper.layers is not None else _by_depth(hyper, model.anatomy.n_layer)
    return replace(hyper, layers=_checked(layers, model))


def scaled(name: str, *given: Mapping[str, Any], model_name: str = "") -> Hyper:
    """As `look_up`, before a model's depth is known: `layers` is None where only `layers_depth` is given."""
    values = _from_table(model_name, name)
    if any(mapping.get("compat") == "official" for mapping in given):
        values["kl_direction"] = "edited"
    for mapping in given:
        for key in mapping:
            if key.endswith("_relative"):  # an absolute value of the table must not hide it
                values.pop(key.removesuffix("_relative"), None)
        values |= mapping
    known = {f.name for f in fields(Hyper)}
    if wrong := sorted(set(values) - known):
        raise KetoolsError(f"no setting named {wrong[0]!r}; there are: {', '.join(sorted(known))}")
    hyper = Hyper(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    for f in fields(Hyper):
        check_value(f.name, getattr(hyper, f.name))
    return hyper


def check_value(name: str, value: object) -> None:
    """Raise KetoolsError if the setting `name` cannot have this value on any model (which layers there are, it can't say)."""
    if name in _WORDS and value not in _WORDS[name]:
        raise KetoolsError(f"setting {name} is {value!r}; expected one of {', '.join(_WORDS[name])}")
    kind = Hyper.__dataclass_fields__[name].type
    if name == "layers_depth" and not (isinstance(value, tuple) and len(value) == 2):
        raise KetoolsError(f"setting {name} is {value!r}; expected two shares of the depth, such as (0.2, 0.35)")
    whole = kind in (int, int | None)
    if not (whole or kind in (float, float | None)) or (value is None and kind in (int | None, float | None)):
        return
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    least = _LEAST.get(name, 0)
    if right and (value > 0 if name in _ABOVE else value >= least) and (math.isfinite(value) or name in _ENDLESS):
        return
    wanted = ["whole number" if whole else "number"]
    wanted += ["above 0"] if name in _ABOVE else [] if least == -math.inf else [f"of at least {least}"]
    wanted += ["that is finite"] if right and not math.isfinite(value) else []
    raise KetoolsError(f"setting {name} is {value!r}; expected a {' '.join(wanted)}")


def _from_table(model_name: str, name: str) -> dict[str, Any]:
    table = tomllib.loads(files("ketools.editing").joinpath("hyperparameters.toml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for scope in (table["default"], table["models"].get(model_name.rstrip("/").rsplit("/", 1)[-1].lower(), {})):
        # A list of layers for the model must give way to nothing but a list for model and method.
        values |= {k: v for k, v in scope.items() if not isinstance(v, dict)}
        values |= scope.get(name, {})
    return values


def _by_depth(hyper: Hyper, n_layer: int) -> tuple[int, ...]:
    first, last = (min(n_layer - 1, round(part * n_layer)) for part in hyper.layers_depth)
    return tuple(range(max(first, last - 4), last + 1))


def _checked(layers: tuple[int, ...], model: EditableModel) -> tuple[int, ...]:
    if not layers or any(not isinstance(i, int) for i in layers) or list(layers) != sorted(set(layers)):
        raise KetoolsError(f"layers {layers!r}: expected different layer numbers in ascending order, such as (4, 5, 6)")
    for index in layers:
        model.layer(index)
    return layers
