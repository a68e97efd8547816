"""A look before the leap: what a model is made of, how facts read to it, what an edit will cost, and what is wrong.

Nothing is changed. `problems` would be refused by an Editor; `warnings` would not, and may make an edit useless.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pandas as pd
from torch import Tensor

from ketools.anatomy import check_finite
from ketools.costs import Sizes, available, estimate, measure, weight_bytes
from ketools.editing.checks import checked_rows
from ketools.editing.hyper import Hyper
from ketools.editing.methods import ALL, ENCORE, Method
from ketools.editing.methods import method as named_method
from ketools.editing.rows import FactRows
from ketools.editing.statistics import own_file
from ketools.errors import KetoolsError, named
from ketools.facts import Fact, FactSet
from ketools.model import EditableModel
from ketools.prompts import Row
from ketools.scoring import target_logprobs

_SHOWN = 3  # facts whose tokens are shown
_ASKED = 500  # facts whose answers are looked at
_NAMED = 5  # of each kind of trouble
_SPACES = {"Ġ": "·", "▁": "·", "Ċ": "⏎", " ": "·", "\n": "⏎"}


@dataclass(frozen=True)
class Preflight:
    """What `inspect` found.

    about: names and values of the model. modules: part, path, shape, dtype, device. tokens: fact, place, token, mark
    ("subject", "subject's last", "target", ""). costs: as `ketools.costs.estimate`, None where not asked for. layers:
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
