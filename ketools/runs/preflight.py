"""A look before the leap: what a model is made of, how facts read to it, what an edit will cost, and what is wrong.

Nothing is changed. `problems` would be refused by an Editor; `warnings` would not, and may make an edit useless.
"""

import os
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.contexts import FactRows, checked_rows
from ketools.editing.covariance import own_file
from ketools.editing.methods import ALL, ENCORE, FineTune, Hyper, Method, NullSpace, Shift
from ketools.editing.methods import method as named_method
from ketools.errors import KetoolsError, named
from ketools.facts.fact import Fact, FactSet
from ketools.models.anatomy import check_finite
from ketools.models.model import EditableModel
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import Row

# What edits will cost on this machine: memory from shapes, time from operations and two measured rates.
#
# Estimates of the order of magnitude, for the decision to start: step 1 is counted to its last step (early stopping takes
# a part of it), nothing is counted twice for prompts that share their beginning.


_ROWS, _LENGTH = 4, 32  # of the trial pass
_WIDTH = 512  # of the trial product
_TOKENS_AT_ONCE = 1536  # that step 1 holds for the gradient (targets.py)
_GIB = 2.0**30


@dataclass(frozen=True)
class Rates:
    """Measured: seconds of the model's layers for one token (without gradient), float64 operations a second."""

    token: float
    flops: float

    @property
    def text(self) -> str:
        """How they were found."""
        return (
            f"times: from one forward pass of {_ROWS * _LENGTH} tokens ({self.token * _ROWS * _LENGTH:.2g} s) and one "
            f"float64 product of width {_WIDTH} ({self.flops / 1e9:.3g} GFLOP/s), all steps taken"
        )


@dataclass(frozen=True)
class Sizes:
    """Tokens of an average fact: its whole prompt, and the part from the subject's last token on, target included."""

    prompt: float = 12.0
    suffix: float = 6.0


@torch.no_grad()
def measure(model: EditableModel) -> Rates:
    """Two short trials, each the better of two runs."""
    size = model.config.vocab_size
    ids = torch.arange(_ROWS * _LENGTH, device=model.device).view(_ROWS, _LENGTH) % size
    ids = ids[:, : model.window or _LENGTH]
    square = torch.ones(_WIDTH, _WIDTH, dtype=torch.float64)
    token = _seconds(lambda: model.body(input_ids=ids, use_cache=False).last_hidden_state.sum().item()) / ids.numel()
    return Rates(token, 2 * _WIDTH**3 / _seconds(lambda: (square @ square).sum().item()))


def estimate(
    model: EditableModel, chosen: Iterable[Method], edits: int, sizes: Sizes, rates: Rates, **overrides: object
) -> pd.DataFrame:
    """One row per method: method, layers, memory_gib, seconds_setup (once), seconds_per_edit, seconds (for `edits`).

    `overrides` are settings as for an Editor.

    `memory_gib` is at the peak: weights, their copies for undoing, C and its factors in float64, past keys, and what is
    held for the gradient.
    """
    rows = []
    for method in chosen:
        hyper = method.settings(model, **overrides)
        setup, each = _times(model, method, hyper, sizes, rates)
        assert hyper.layers is not None
        rows.append(
            {
                "method": method.name,
                "layers": ", ".join(map(str, hyper.layers)),
                "memory_gib": _bytes(model, method, hyper, edits) / _GIB,
                "seconds_setup": setup,
                "seconds_per_edit": each,
                "seconds": setup + edits * each,
            }
        )
    return pd.DataFrame(rows)


def available(model: EditableModel) -> float | None:
    """Memory (GiB) of the device that holds the model, free or (CPU) in all; None where it cannot be told."""
    found = getattr(getattr(torch, model.device.type, None), "mem_get_info", None)
    if found is not None:
        return found(model.device)[0] / _GIB + weight_bytes(model) / _GIB
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB


def weight_bytes(model: EditableModel) -> int:
    """Bytes of all parameters, a tied matrix once."""
    return sum(weight.numel() * weight.element_size() for weight in model.model.parameters())


def _times(model: EditableModel, method: Method, hyper: Hyper, sizes: Sizes, rates: Rates) -> tuple[float, float]:
    # (once, per edit) in seconds; a backward pass counts as two forward ones.
    assert hyper.layers is not None
    a, n = model.anatomy, len(hyper.layers)
    contexts = hyper.prefix_count + 1
    layer = rates.token / a.n_layer
    whole = sizes.prompt + sizes.suffix
    match method.update:
        case FineTune():
            return 0.0, hyper.ft_steps * 3 * whole * rates.token
        case Shift():
            return 0.0, 3 * whole * rates.token
    frozen = (contexts + 1) * sizes.prompt * rates.token
    steps = hyper.steps * contexts * sizes.suffix * 3 * layer * (a.n_layer - 1 - hyper.layers[-1])
    keys = sum(contexts * sizes.prompt * layer * (i + 1) for i in hyper.layers)
    cubes = 10.0 if isinstance(method.update, NullSpace) else 1 / 3  # eigenvectors, or a Cholesky factor
    setup = n * cubes * a.d_mlp**3 / rates.flops
    solve = n * (4 * a.d_mlp**2 + 4 * a.d_model * a.d_mlp) / rates.flops
    return setup, frozen + steps + keys + solve


def _bytes(model: EditableModel, method: Method, hyper: Hyper, edits: int) -> float:
    assert hyper.layers is not None
    a, n = model.anatomy, len(hyper.layers)
    matrix, item = a.d_model * a.d_mlp, torch.empty((), dtype=model.dtype).element_size()
    total = weight_bytes(model) + n * 4.0 * matrix * item  # original, before the batch, before the last two edits
    if method.needs_statistics:
        total += n * 3.0 * 8 * a.d_mlp**2  # C, lambda C, its factor
    if method.past_keys:
        total += n * a.d_mlp * (4.0 * edits + 8.0 * min(edits, a.d_mlp / 2))
    if isinstance(method.update, FineTune):
        return total + n * 16.0 * matrix  # float32 copy, gradient, Adam's two
    above = a.n_layer - 1 - hyper.layers[-1]
    return total + _TOKENS_AT_ONCE * above * (10.0 * a.d_model + 4.0 * a.d_mlp) * item


def _seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


_SHOWN = 3  # facts whose tokens are shown
_ASKED = 500  # facts whose answers are looked at
_NAMED = 5  # of each kind of trouble
_SPACES = {"Ġ": "·", "▁": "·", "Ċ": "⏎", " ": "·", "\n": "⏎"}


@dataclass(frozen=True)
class Preflight:
    """What `inspect` found.

    about: names and values of the model. modules: part, path, shape, dtype, device. tokens: fact, place, token, mark
    ("subject", "subject's last", "target", ""). costs: as `ketools.runs.preflight.estimate`, None where not asked for. layers:
    those that are edited, and `why`. problems: what an Editor would refuse. warnings: what it would not.
    """

    about: dict[str, str]
    modules: pd.DataFrame
    layers: tuple[int, ...]
    why: str
    tokens: pd.DataFrame
    costs: pd.DataFrame | None
    costs_from: str = ""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def text(self) -> str:
        """All of it, for a terminal."""
        width = max(map(len, self.about))
        parts = ["\n".join(f"{name.ljust(width)}  {value}" for name, value in self.about.items())]
        parts.append(self.modules.to_string(index=False))
        parts.append(f"layers {', '.join(map(str, self.layers))}: {self.why}")
        if len(self.tokens):
            parts.append("tokens (* the subject's last, > < the target)\n" + "\n".join(_lines(self.tokens)))
        if self.costs is not None:
            parts.append(f"{self.costs.to_string(index=False, float_format='{:.3g}'.format)}\n{self.costs_from}")
        parts += [f"problem: {text}" for text in self.problems] + [f"warning: {text}" for text in self.warnings]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; tables as lists of rows."""
        tables = {"modules": self.modules, "tokens": self.tokens, "costs": self.costs}
        return vars(self) | {name: None if t is None else t.to_dict("records") for name, t in tables.items()}


def inspect(
    model: EditableModel,
    facts: Sequence[Fact] | None = None,
    method: str | Method | None = None,
    *,
    batch: int | None = None,
    edits: int | None = None,
    beside: Sequence[str | Method] = (),
    statistics: bool = False,
    trial: bool = True,
    **overrides: object,
) -> Preflight:
    """Look at `model`, and at `facts` if there are any, as `method` would edit them (None: as ENCORE, costs of all).

    `batch`: facts in one batch (None: all). `edits`: how many to estimate costs for (None: the facts, or 100). `beside`:
    methods that are to edit the same facts, each on its own; what is wrong for them and what they cost is told too.
    `statistics`: they are at hand, whatever the model's folder holds. `trial`: measure two short trials for the costs;
    without it there are none. `overrides` are settings as for an Editor.

    Raises KetoolsError for an unknown method or setting and for weights that hold NaN or Inf, naming the layer.
    """
    chosen = named_method(ENCORE if method is None else method)
    hyper = chosen.settings(model, **overrides)
    assert hyper.layers is not None
    check_finite(model.model, model.name)
    facts = list(facts or ())
    size, n = batch or max(len(facts), 1), edits or len(facts) or 100
    others = [named_method(other) for other in beside]
    rows, problems = _rows(model, facts)
    for each in (hyper, *(other.settings(model, **overrides) for other in others)):
        problems += _too_long(model, facts, rows, each)
    problems += _clashes(facts, size)
    known = [fact for fact, row in zip(facts, rows, strict=True) if row is not None]
    found = [row for row in rows if row is not None]
    warnings = [text for how in (chosen, *others) for text in _of_the_model(model, how, statistics)]
    warnings += _of_facts(model, facts, known, size)
    costs, source = None, ""
    if trial:
        rates = measure(model)
        costs = estimate(model, ALL if method is None else (chosen, *others), n, _sizes(found), rates, **overrides)
        source = f"for {n:,} edits; {rates.text}; memory: from shapes"
        warnings += _too_large(model, costs)
    tokens = _tokens(model, known[:_SHOWN], found[:_SHOWN])
    why = _why(model, chosen, hyper, "layers" in overrides)
    parts = _modules(model, hyper.layers)
    return Preflight(
        _about(model), parts, hyper.layers, why, tokens, costs, source, tuple(dict.fromkeys(problems)),
        tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def _about(model: EditableModel) -> dict[str, str]:
    a, tokenizer = model.anatomy, model.tokenizer
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    begins = f"yes, {tokenizer.bos_token!r}" if bos is not None and ids[0] == bos and len(ids) > 1 else "no"
    return {
        "model": f"{model.name} ({a.architecture}), fingerprint {model.fingerprint[:12]}",
        "size": f"{a.n_layer} layers, d_model {a.d_model}, d_mlp {a.d_mlp}, {weight_bytes(model) / 2**20:,.0f} MiB "
        f"of {str(model.dtype).removeprefix('torch.')} weights on {model.device}",
        "head": "tied to the embeddings" if a.tied else "of its own",
        "window": f"{model.window:,} tokens" if model.window else "no limit",
        "token before a text": begins,
        "edits in the weights": str(len(model.edits)),
    }


def _modules(model: EditableModel, layers: tuple[int, ...]) -> pd.DataFrame:
    a = model.anatomy
    inner = model.model.get_input_embeddings()
    names = {id(module): path for path, module in model.model.named_modules()}
    parts = [("embeddings", names[id(inner)], inner.weight)]
    for i in layers:
        stored = model.mlp_out(i).weight
        parts.append((f"edited matrix{' (transposed)' if a.transposed else ''}", f"{a.layers}.{i}.{a.mlp_out}", stored))
    if a.post_norm is not None:
        path = f"{a.layers}.{layers[-1]}.{a.post_norm}"
        parts.append(("norm behind the MLP", path, model.model.get_submodule(path).weight))
    parts += [("final norm", a.final_norm, model.final_norm.weight), ("head", a.head, model.head.weight)]
    return pd.DataFrame([_module(*part) for part in parts])


def _module(part: str, path: str, weight: Tensor) -> dict[str, object]:
    shape, dtype = " x ".join(map(str, weight.shape)), str(weight.dtype).removeprefix("torch.")
    return {"part": part, "path": path, "shape": shape, "dtype": dtype, "device": str(weight.device)}


def _why(model: EditableModel, chosen: Method, hyper: Hyper, given: bool) -> str:
    if given:
        return "as given"
    table = tomllib.loads(files("ketools.editing").joinpath("hyperparameters.toml").read_text(encoding="utf-8"))
    scope = table["models"].get(model.known_as.rstrip("/").rsplit("/", 1)[-1].lower(), {})
    if "layers" in scope or "layers" in scope.get(chosen.name, {}):
        return f"the table's for this model and {chosen.name} (ketools/editing/hyperparameters.toml)"
    low, high = hyper.layers_depth
    return (
        f"{chosen.name}'s part of the depth, {low:.0%} to {high:.0%} of {model.anatomy.n_layer} layers; the table has no "
        "entry for this model. Causal tracing says where it recalls facts; give others with layers="
    )


def _rows(model: EditableModel, facts: list[Fact]) -> tuple[list[FactRows | None], list[str]]:
    # Each fact by itself, so that one mistake does not hide the next.
    rows: list[FactRows | None] = []
    problems: list[str] = []
    for fact in facts:
        try:
            rows += checked_rows(model, [fact], ("",))
        except KetoolsError as error:
            rows.append(None)
            problems.append(str(error))
    return rows, problems


def _too_long(model: EditableModel, facts: list[Fact], rows: list[FactRows | None], hyper: Hyper) -> list[str]:
    problems: list[str] = []
    for fact, row in zip(facts, rows, strict=True):
        longest = len(row.contexts[0].ids) + hyper.prefix_tokens + 4 if row is not None and hyper.prefix_count else 0
        if model.window and longest > model.window:
            problems.append(
                f"fact {fact.id!r}: its prompt behind a prefix of {hyper.prefix_tokens} tokens takes about {longest} "
                f"tokens; the model's context window holds {model.window}; shorten it, or set prefix_tokens"
            )
    return problems


def _clashes(facts: list[Fact], batch: int) -> list[str]:
    parts = [FactSet(facts[start : start + batch]) for start in range(0, len(facts), batch)]
    return [str(clash) for part in parts for clash in (*part.conflicts(), *part.duplicates())]


def _of_the_model(model: EditableModel, chosen: Method, statistics: bool) -> list[str]:
    warnings = []
    if chosen.needs_statistics and not statistics and own_file(model) is None:
        warnings.append(
            f"{chosen.name} needs the covariance of this model's keys, and its folder holds none: compute it from running "
            "text (ketools stats, or ketools edit --text FILE)"
        )
    if model.edits:
        warnings.append(f"the weights carry {len(model.edits)} edits already")
    if model.anatomy.post_norm is not None:
        warnings.append(
            f"a norm ({model.anatomy.post_norm}) stands between the MLP and the residual stream: a large change of a state "
            "is met in direction only"
        )
    return warnings


def _of_facts(model: EditableModel, facts: list[Fact], known: list[Fact], batch: int) -> list[str]:
    warnings = []
    asked = known[:_ASKED]
    if asked:
        _, best = target_logprobs(model, [f.text for f in asked], [f.target_new for f in asked])
        already = [repr(fact.id) for fact, top in zip(asked, best, strict=True) if top]
        if already:
            of = f"the first {_ASKED} facts" if len(known) > _ASKED else f"{len(asked)} facts"
            warnings.append(f"the target is the model's top answer already: {named(already, _NAMED)} of {of}")
    later = FactSet(facts).conflicts() if len(facts) > batch else []
    if later:
        warnings.append(f"later batches overwrite earlier ones: {named([str(clash) for clash in later], _NAMED)}")
    return warnings


def _sizes(rows: list[FactRows]) -> Sizes:
    if not rows:
        return Sizes()
    bare = [row.contexts[0] for row in rows]
    return Sizes(
        prompt=sum(len(row.ids) - len(row.target_ids) + 1 for row in bare) / len(bare),
        suffix=sum(row.suffix for row in rows) / len(rows),
    )


def _too_large(model: EditableModel, costs: pd.DataFrame) -> list[str]:
    here = available(model)
    if here is None:
        return []
    large = costs[costs["memory_gib"] > here]
    return [
        f"{row.method} is estimated at {row.memory_gib:.1f} GiB, and {model.device} has {here:.1f}: edit fewer layers, load "
        "the model in a smaller type, or set facts_at_once"
        for row in large.itertuples()
    ]


def _tokens(model: EditableModel, facts: list[Fact], rows: list[FactRows]) -> pd.DataFrame:
    lines = [
        {"fact": fact.id, "place": place, "token": token, "mark": mark}
        for fact, row in zip(facts, rows, strict=True)
        for place, (token, mark) in enumerate(_marked(model, fact, row.contexts[0]))
    ]
    return pd.DataFrame(lines, columns=["fact", "place", "token", "mark"])


def _marked(model: EditableModel, fact: Fact, row: Row) -> list[tuple[str, str]]:
    ids = [*row.ids, row.target_ids[-1]]
    targets = {place + 1 for place in row.target_positions}
    start, end = fact.prompt.index("{}"), fact.prompt.index("{}") + len(fact.subject)
    offsets = model.tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    subject = {i for i, (a, b) in enumerate(offsets) if a < end and b > max(start, a)}
    marks = []
    for place, token in enumerate(model.tokenizer.convert_ids_to_tokens(ids)):
        mark = "target" if place in targets else "subject" if place in subject else ""
        shown = "".join(_SPACES.get(letter, letter) for letter in str(token))
        marks.append((shown, "subject's last" if place == row.subject_last else mark))
    return marks


def _lines(tokens: pd.DataFrame) -> list[str]:
    forms = {"target": ">{}<", "subject's last": "[{}]*", "subject": "[{}]", "": "{}"}
    return [
        f"  {fact}:  {' '.join(forms[row.mark].format(row.token) for row in part.itertuples())}"
        for fact, part in tokens.groupby("fact", sort=False)
    ]
