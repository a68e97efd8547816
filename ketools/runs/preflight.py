"""A model's parts, how it tokenizes facts, what editing them will cost, and what is wrong. Nothing is changed.

An Editor refuses `problems`; it accepts `warnings`, which may make an edit useless. Costs are orders of magnitude, enough to
decide whether to start: they count all steps of the target optimisation (early stopping takes fewer), and prompts that share
a prefix in full.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from ketools.editing.covariance import own_file
from ketools.editing.export import edits_of
from ketools.editing.keys import FactRows, checked_rows, near_subjects
from ketools.editing.methods import ALL, ENCORE, FineTune, Method, NullSpace, Shift, listed_for
from ketools.errors import KetoolsError, named
from ketools.evaluation.edits import unscorable
from ketools.facts.check import whole_prompt
from ketools.facts.fact import Fact, FactSet, tail
from ketools.models.anatomy import check_finite
from ketools.models.model import EditableModel
from ketools.models.replay import gradient_bytes, tokens_at_once
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import encode, in_chat
from ketools.runs.config import composed

_ROWS, _LENGTH = 4, 32  # of the timed forward pass
_WIDTH = 512  # of the timed matrix product
_GIB = 2.0**30
_PROGRAM = 0.6 * _GIB  # Python, torch and transformers before any model
_SHOWN = 3  # facts whose tokens are shown
_ASKED = 500  # facts whose answers are checked
_ENDS = 20  # characters of prompts and targets that are shown
_NAMED = 5  # facts named per kind of problem
_SPACES = {"Ġ": "·", "▁": "·", "Ċ": "⏎", " ": "·", "\n": "⏎"}


@dataclass(frozen=True)
class Rates:
    """Measured rates: seconds per token of the model's layers (without gradient), float64 operations per second."""

    token: float
    flops: float

    @property
    def text(self) -> str:
        """How they were measured."""
        return (
            f"times: from one forward pass of {_ROWS * _LENGTH} tokens ({self.token * _ROWS * _LENGTH:.2g} s) and one "
            f"float64 product of width {_WIDTH} ({self.flops / 1e9:.3g} GFLOP/s), after a warm-up, all steps taken"
        )


@torch.no_grad()
def measure(model: EditableModel) -> Rates:
    """Time a forward pass and a matrix product, each the better of two runs."""
    ids = torch.arange(_ROWS * _LENGTH, device=model.device).view(_ROWS, _LENGTH) % model.config.vocab_size
    ids = ids[:, : model.window or _LENGTH]
    square = torch.ones(_WIDTH, _WIDTH, dtype=torch.float64)

    def seconds(run: Callable[[], object]) -> float:
        run()
        times = []
        for _ in range(2):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return max(min(times), 1e-9)

    token = seconds(lambda: model.body(input_ids=ids, use_cache=False).last_hidden_state.sum().item()) / ids.numel()
    return Rates(token, 2 * _WIDTH**3 / seconds(lambda: (square @ square).sum().item()))


def estimate(
    model: EditableModel,
    chosen: Iterable[Method],
    edits: int,
    rates: Rates,
    prompt: float = 12.0,
    suffix: float = 6.0,
    **overrides: object,
) -> pd.DataFrame:
    """One row per method: method, layers, memory_gib, seconds_setup (once), seconds_per_edit, seconds (for `edits`).

    `prompt` and `suffix` are token counts of an average fact: its whole prompt, and the part from the subject's last token
    on, target included. `memory_gib` is the peak: weights, their copies for undoing, C and its factors in float64, past keys,
    and what the gradient needs. A backward pass counts as two forward ones. `overrides` are settings as for an Editor.
    """
    a, item = model.anatomy, model.dtype.itemsize
    matrix, layer_seconds = a.d_model * a.d_mlp, rates.token / a.n_layer
    rows = []
    for method in chosen:
        hyper = method.settings(model, **overrides)
        assert hyper.layers is not None
        n, top, contexts = len(hyper.layers), hyper.layers[-1], hyper.prefix_count + 1
        # Weights; copies of the originals and of the matrices before the batch and before the last two edits.
        memory = weight_bytes(model) + n * 4.0 * matrix * item + (_PROGRAM if model.device.type == "cpu" else 0.0)
        if method.needs_statistics:
            memory += n * 3.0 * 8 * a.d_mlp**2  # C, lambda C, its factor
        if method.past_keys:
            memory += n * a.d_mlp * (4.0 * edits + 8.0 * min(edits, a.d_mlp / 2))
        if isinstance(method.update, FineTune):
            memory += n * 16.0 * matrix  # float32 copy, gradient, Adam's two
        else:
            memory += tokens_at_once(model, top) * gradient_bytes(model, top)
        if isinstance(method.update, FineTune | Shift):
            passes = hyper.ft_steps if isinstance(method.update, FineTune) else 1
            setup, each = 0.0, passes * 3 * (prompt + suffix) * rates.token
        else:
            cubes = 10.0 if isinstance(method.update, NullSpace) else 1 / 3  # eigenvectors, or a Cholesky factor
            setup = n * cubes * a.d_mlp**3 / rates.flops
            each = (contexts + 1) * prompt * rates.token  # the frozen prefixes
            each += hyper.steps * contexts * suffix * 3 * layer_seconds * (a.n_layer - 1 - top)
            each += sum(contexts * prompt * layer_seconds * (i + 1) for i in hyper.layers)  # keys
            each += n * (4 * a.d_mlp**2 + 4 * a.d_model * a.d_mlp) / rates.flops
        layers = ", ".join(map(str, hyper.layers))
        rows.append((method.name, layers, memory / _GIB, setup, each, setup + edits * each))
    columns = ["method", "layers", "memory_gib", "seconds_setup", "seconds_per_edit", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _edits_in(model: EditableModel) -> str:
    """The edits in this process, and the facts that were edited before the model was exported."""
    exported = 0 if model.path is None else edits_of(model.path)
    return f"{len(model.edits)}" + (f", and {exported:,} facts in the exported model" if exported else "")


def weight_bytes(model: EditableModel) -> int:
    """Bytes of all parameters, a tied matrix once."""
    return sum(weight.numel() * weight.element_size() for weight in model.model.parameters())


def _available(model: EditableModel) -> float | None:
    """Memory (GiB) of the model's device: free memory and the model's own, or (CPU) the total; None if unknown."""
    info = getattr(getattr(torch, model.device.type, None), "mem_get_info", None)
    if info is not None:
        return info(model.device)[0] / _GIB + weight_bytes(model) / _GIB
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB


@dataclass(frozen=True)
class Preflight:
    """What `inspect` found.

    about: names and values of the model. modules: part, path, shape, dtype, device. tokens: fact, place, token, mark
    ("subject", "subject's last", "target", ""). costs: as from `estimate` (None without a trial), and `costs_from`, how they
    were measured. layers: the edited ones, and `why`. problems: what an Editor refuses; warnings: what it accepts.
    """

    about: dict[str, str]
    modules: pd.DataFrame
    layers: tuple[int, ...]
    why: str
    tokens: pd.DataFrame
    costs: pd.DataFrame | None
    costs_from: str = ""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; tables as lists of rows."""
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
    chat: bool = False,
    statistics: bool = False,
    trial: bool = True,
    **overrides: Any,  # noqa: ANN401 - settings, which the method checks
) -> Preflight:
    """Inspect `model`, and `facts` if there are any, as `method` would edit them.

    Args:
        model: is not changed.
        facts: the facts to edit.
        method: None: ENCORE, with the costs of all methods.
        batch: facts per batch (None: all in one).
        edits: how many to estimate costs for (None: the facts, or 100).
        beside: further methods that will edit the same facts, each on its own; their problems and costs are reported too.
        chat: put prompts into the tokenizer's chat template.
        statistics: covariances are given, whatever the model's folder holds.
        trial: run two short timings for the costs; without them there are no costs.
        overrides: settings as for an Editor.

    Raises:
        KetoolsError: an unknown method or setting, or weights that hold NaN or Inf, naming the layer.
    """
    chosen = composed(ENCORE if method is None else method)
    hyper = chosen.settings(model, **overrides)
    assert hyper.layers is not None
    check_finite(model.model, model.name)
    facts = list(in_chat(model, facts or ()) if chat else facts or ())
    size, n = batch or max(len(facts), 1), edits or len(facts) or 100
    methods = [chosen, *map(composed, beside)]

    problems: list[str] = []
    rows: dict[int, FactRows] = {}
    for place, fact in enumerate(facts):  # one by one, so that one mistake does not hide the next
        try:
            rows[place] = checked_rows(model, [fact], ("",))[0]
        except KetoolsError as error:
            problems.append(str(error))
    known, known_rows = [facts[place] for place in rows], list(rows.values())
    for each in methods:
        settings = each.settings(model, **overrides)
        if not (each.has_targets and settings.prefix_count):
            continue
        for fact, row in zip(known, known_rows, strict=True):
            longest = len(row.contexts[0].ids) + settings.prefix_tokens + 4
            if model.window and longest > model.window:
                problems.append(
                    f"fact {fact.id!r}: its prompt with a prefix of {settings.prefix_tokens} tokens takes about {longest} "
                    f"tokens; the model's context window holds {model.window}; shorten it, or set prefix_tokens"
                )
    problems += unscorable(model, known)
    parts = [FactSet(facts[start : start + size]) for start in range(0, len(facts), size)]
    for clashes in ([c for part in parts for c in part.conflicts()], [c for part in parts for c in part.duplicates()]):
        if clashes:
            others = named([f"{clash.first.id!r} and {clash.second.id!r}" for clash in clashes[1:]], _NAMED)
            more = f"; the same holds for {others} (`ketools data check --all` lists them)" if others else ""
            problems.append(f"{clashes[0]}{more}")

    a, warnings = model.anatomy, []
    for each in methods:
        if each.needs_statistics and not statistics and own_file(model) is None:
            warnings.append(
                f"{each.name} needs the covariance of this model's keys, and its folder holds none: compute it from background "
                "text (ketools stats, or ketools edit --text FILE)"
            )
    if model.edits:
        warnings.append(f"the weights carry {len(model.edits)} edits already")
    if a.post_norm is not None:
        warnings.append(
            f"a norm ({a.post_norm}) sits between the MLP and the residual stream: an edit can meet a large change in direction "
            "only"
        )
    if asked := known[:_ASKED]:
        _, best = target_logprobs(
            model, [f.text for f in asked], [f.target_new for f in asked], [f.glue for f in asked]
        )
        if already := [repr(fact.id) for fact, top in zip(asked, best, strict=True) if top]:
            of = f"the first {_ASKED} facts" if len(known) > _ASKED else f"{len(asked)} facts"
            warnings.append(f"the target is already the model's top answer: {named(already, _NAMED)} of {of}")
    if len(facts) > size and (later := FactSet(facts).conflicts()):
        warnings.append(f"later batches overwrite earlier ones: {named([str(clash) for clash in later], _NAMED)}")

    if alone := [fact for fact in facts if fact.subject_alone]:
        more = f" (so are those of {named([repr(fact.id) for fact in alone[1:]], _NAMED)})" if alone[1:] else ""
        warnings.append(f"{whole_prompt(alone[0])}{more}")
    near = near_subjects(model, known, known_rows, hyper.layers[0]) if chosen.has_targets else []
    for same, what in (
        (
            True,
            f"share a batch and nearly the same key, which can map to only one value (same_subject={hyper.same_subject!r})",
        ),
        (False, "are in different batches; the later may overwrite the earlier"),
    ):
        groups = [g for g in near if (len({i // size for i in g}) < len(g) if same else g[0] // size != g[-1] // size)]
        if groups:
            names = [f"{known[g[0]].subject} ({', '.join(known[i].id for i in g)})" for g in groups]
            warnings.append(f"facts about one subject {what}: {named(names, _NAMED)}")

    costs, costs_from = None, ""
    if trial:
        rates, mean_tokens = measure(model), {}
        if known_rows:
            prompts = [len(row.contexts[0].ids) - len(row.contexts[0].target_ids) + 1 for row in known_rows]
            suffixes = [row.suffix for row in known_rows]
            mean_tokens = {"prompt": sum(prompts) / len(prompts), "suffix": sum(suffixes) / len(suffixes)}
        costs = estimate(model, ALL if method is None else methods, n, rates, **mean_tokens, **overrides)
        costs_from = f"for {n:,} edits; {rates.text}; memory: from shapes"
        available = _available(model)
        for each in costs.to_dict("records"):
            if available is not None and each["memory_gib"] > available:
                warnings.append(
                    f"{each['method']} is estimated at {each['memory_gib']:.1f} GiB, and {model.device} has "
                    f"{available:.1f}: edit fewer layers, load the model in a smaller type, or set facts_at_once"
                )

    tokens = []
    for fact, bare in zip(known[:_SHOWN], (row.contexts[0] for row in known_rows), strict=False):
        targets = {place + 1 for place in bare.target_positions}
        start, end = fact.subject_span
        ((_, offsets),) = encode(model.tokenizer, [fact.text])
        subject = {i for i, (first, last) in enumerate(offsets) if first < end and last > max(start, first)}
        for place, token in enumerate(map(model.tokenizer.convert_ids_to_tokens, (*bare.ids, bare.target_ids[-1]))):
            mark = "target" if place in targets else "subject" if place in subject else ""
            text = "".join(_SPACES.get(letter, letter) for letter in str(token))
            tokens.append((fact.id, place, text, "subject's last" if place == bare.subject_last else mark))

    low, high = hyper.layers_depth
    why = (
        f"{chosen.name}'s default depth, {low:.0%} to {high:.0%} of {a.n_layer} layers; the table of settings has no entry for "
        "this model. Causal tracing shows where it recalls facts; choose other layers with layers="
    )
    _, scope = listed_for(model.known_as)
    if "layers" in overrides:
        why = "as given"
    elif "layers" in scope or "layers" in scope.get(chosen.name, {}):
        why = f"from the table of settings for this model and {chosen.name} (ketools/editing/hyperparameters.toml)"

    tokenizer, embeddings = model.tokenizer, model.model.get_input_embeddings()
    bos, ids = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    about = {
        "model": f"{model.name} ({a.architecture}), fingerprint {model.fingerprint[:12]}",
        "size": f"{a.n_layer} layers, d_model {a.d_model}, d_mlp {a.d_mlp}, {weight_bytes(model) / 2**20:,.0f} MiB "
        f"of {str(model.dtype).removeprefix('torch.')} weights on {model.device}",
        "head": "tied to the embeddings" if a.tied else "separate",
        "window": f"{model.window:,} tokens" if model.window else "no limit",
        "token before a text": (
            f"yes, {tokenizer.bos_token!r}" if bos is not None and ids[0] == bos and len(ids) > 1 else "no"
        ),
        "edits in the weights": _edits_in(model),
    }
    paths = {id(module): path for path, module in model.model.named_modules()}
    modules_of: list[tuple[str, str, Any]] = [("embeddings", paths[id(embeddings)], embeddings.weight)]
    for i in hyper.layers:
        matrix = f"edited matrix{' (transposed)' if a.transposed else ''}"
        modules_of.append((matrix, f"{a.layers}.{i}.{a.mlp_out}", model.mlp_out(i).weight))
    if a.post_norm is not None:
        path = f"{a.layers}.{hyper.layers[-1]}.{a.post_norm}"
        modules_of.append(("norm after the MLP", path, model.model.get_submodule(path).weight))
    modules_of += [("final norm", a.final_norm, model.final_norm.weight), ("head", a.head, model.head.weight)]
    described = [
        (part, path, " x ".join(map(str, weight.shape)), str(weight.dtype).removeprefix("torch."), str(weight.device))
        for part, path, weight in modules_of
    ]
    modules = pd.DataFrame(described, columns=["part", "path", "shape", "dtype", "device"])
    if facts:
        joints = [(fact, tail(fact.text, fact.target_new, fact.glue).startswith(" ")) for fact in facts]
        at_once = [f"{fact.text[-_ENDS:]!r} + {fact.target_new[:_ENDS]!r}" for fact, blank in joints if not blank]
        about["before targets"] = f"a blank ({len(facts) - len(at_once)} facts)" + (
            f", nothing ({named(at_once, _SHOWN)})" if at_once else ""
        )
    shown = pd.DataFrame(tokens, columns=["fact", "place", "token", "mark"])
    return Preflight(
        about, modules, hyper.layers, why, shown, costs, costs_from, tuple(dict.fromkeys(problems)),
        tuple(dict.fromkeys(warnings)),
    )  # fmt: skip
