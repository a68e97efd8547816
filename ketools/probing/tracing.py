"""Causal tracing: which states carry a fact from the subject to the answer (Meng et al., arXiv 2202.05262, section 2).

Three runs. Clean: the prompt as it is. Corrupted: Gaussian noise on the embeddings of the subject's tokens, so that the
answer is lost. Restored: the corrupted run with some clean states put back. A state whose restoration brings the answer
back carries the fact; the gain in the answer's probability is its *indirect effect*.

The tokens before the subject are clean in all runs and are computed once (ketools.models.replay). Restoring at layer l
runs only what can change: the layers above it and the tokens from the subject on. Every (fact, draw of noise, place) is
a row, so that thousands of restorations need few passes.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ketools.editing.targets import token_losses
from ketools.errors import KetoolsError, named
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import Frozen, embedded, freeze, recorded
from ketools.models.scoring import score_pairs
from ketools.models.tokens import Reads, Row, batches, make_rows, pad_right

KINDS = ("hidden", "mlp", "attention", "hidden, mlp severed", "hidden, attention severed")
"""What is restored: the residual stream after a layer; what the MLPs or attentions of a window of layers add to it; the
stream, while the MLPs or attentions of all later layers keep their corrupted outputs there (Meng et al., figure 3)."""
PLACES = ("each", "subject_last", "last", "subject", "all")
ROLES = ("before the subject", "first of the subject", "middle of the subject", "last of the subject",
         "first after the subject", "further", "last token")  # fmt: skip
TOKENS = 4096  # in one pass
_RESAMPLES = 2000  # draws of facts for an interval
_NAMED = 8  # facts named in a warning, at most
Progress = Callable[[int], None]


def trace(
    model: EditableModel,
    facts: Sequence[Fact],
    kinds: Sequence[str] = KINDS[:3],
    *,
    layers: Sequence[int] | None = None,
    at: str = "each",
    noise: float = 3.0,
    samples: int = 1,
    window: int | None = None,
    target: str = "true",
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Indirect effects of the facts' states.

    Args:
        model: the model in its present state, edits included.
        facts: facts to trace. Those whose target is not the model's most probable answer are left out, with a warning.
        kinds: what is restored, some of `KINDS`.
        layers: where to restore; None: all. For windows, their centres.
        at: "each" position of the prompt separately; only "subject_last" or "last" (the prompt's last token); all tokens
            of the "subject", or "all" tokens from it on, together.
        noise: standard deviation of the noise in units of that of the vocabulary's embeddings (`spread_of`); Meng et al.
            use 3, in units of that of the subjects' tokens.
        samples: draws of noise per fact, averaged (Meng et al.: 10). A mean over many facts needs one.
        window: layers of an mlp or attention window; None: the paper's share of the depth (10 of GPT2-XL's 48).
        target: whose probability is read, "true" or "new" (after an edit).
        seed: seed of the noise. A fact's noise depends on it and on the fact's text, not on the other facts.
        progress: called with the number of facts done since the last call.

    Returns:
        One row per fact, kind, position and layer: fact (id), kind, layer, position, token, role (of `ROLES`), p
        (probability of the target after restoration, exp of the mean token log-probability), effect (p - p_corrupted),
        p_clean, p_corrupted. Where several positions are restored together, position is -1 and role is `at`. States
        before the subject are clean already and have effect 0. Attrs: facts, unknown, unknown_ids, sigma, window, noise.

    Raises KetoolsError for no facts, none that the model knows, a fact that cannot be located, a setting out of range.
    """
    cases, attrs = known_cases(model, facts, target)
    sigma = spread_of(model)
    plan = plan_of(model, kinds, layers, at, samples, window, seed, noise * sigma)
    frame = trace_cases(model, cases, plan, progress)
    frame.attrs = attrs | {"sigma": sigma, "noise": noise, "window": plan.window, "samples": samples, "seed": seed}
    return frame


@torch.no_grad()
def trace_cases(
    model: EditableModel, cases: Sequence["Case"], plan: "Plan", progress: Progress | None = None
) -> pd.DataFrame:
    """`trace` of cases, known to the model or not, without attrs."""
    parts: dict[int, pd.DataFrame] = {}
    for batch in batches([len(case.ids) - case.first for case in cases], TOKENS // plan.samples):
        runs = _run_both(model, [cases[i] for i in batch], plan)
        corrupted = runs.probability["corrupted"].reshape(-1, plan.samples).mean(1)
        for n, (i, p) in enumerate(zip(batch, _restored(model, runs, plan), strict=True)):
            parts[i] = _frame(model, cases[i], plan, p, runs.probability["clean"][n], corrupted[n])
        if progress is not None:
            progress(len(batch))
    frame = pd.concat([parts[i] for i in range(len(cases))], ignore_index=True)
    for name, order in (("role", [*ROLES, "subject", "all"]), ("kind", KINDS)):
        frame[name] = pd.Categorical(frame[name], order, ordered=True).remove_unused_categories()
    return frame


def average(frame: pd.DataFrame, by: Sequence[str] = ("kind", "role", "layer"), value: str = "effect") -> pd.DataFrame:
    """Means over facts with 95% bootstrap intervals: columns `by`, mean, low, high, facts (number with the group).

    Rows of one fact in one group (several middle tokens) are averaged first, so that each fact has weight 1. The
    intervals are percentiles over 2,000 draws of facts with replacement; all groups share the draws. Attrs are kept.
    Raises KetoolsError for an empty frame or a missing column.
    """
    if missing := [name for name in (*by, value, "fact") if name not in frame.columns]:
        raise KetoolsError(f"average: the frame has no column {missing[0]!r}; it has: {', '.join(frame.columns)}")
    if frame.empty:
        raise KetoolsError("average: the frame is empty; trace at least one fact")
    table = frame.pivot_table(index="fact", columns=list(by), values=value, aggfunc="mean", observed=True)
    values, there = table.fillna(0.0).to_numpy(), table.notna().to_numpy().astype(float)
    n = len(values)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may contain no fact with the group
        draws = (weights @ values) / (weights @ there)
    low, high = np.nanquantile(draws, [(1 - 0.95) / 2, (1 + 0.95) / 2], axis=0)
    groups, counts = table.columns.to_frame(index=False), there.sum(0)
    means = groups.assign(mean=values.sum(0) / counts, low=low, high=high, facts=counts.astype(int))
    means.attrs = dict(frame.attrs)
    return means


# Facts as cases: their tokens with the subject located, without those that the model does not know.


@dataclass(frozen=True)
class Case:
    """One fact as tokens: the `row` of its prompt and target, `answer` as text; the subject's first token is at
    `first`.
    """

    fact: Fact
    answer: str
    row: Row
    first: int

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of the prompt and all target tokens but the last."""
        return self.row.ids

    @property
    def last(self) -> int:
        """Position of the subject's last token."""
        assert self.row.subject_last is not None
        return self.row.subject_last

    @property
    def end(self) -> int:
        """Position of the prompt's last token, which predicts the first of the target."""
        return self.row.target_positions[0]

    @property
    def target(self) -> tuple[int, ...]:
        """The target's tokens, predicted at `end`, `end` + 1, ..."""
        return self.row.target_ids

    def role(self, position: int) -> str:
        """The role of the token at `position` in the prompt, in the words of Meng et al. (figure 2)."""
        if position < self.first:
            return "before the subject"
        if position <= self.last:
            # A single token is the last one, where the fact is looked up.
            inner = "first of the subject" if position == self.first else "middle of the subject"
            return "last of the subject" if position == self.last else inner
        if position == self.end:
            return "last token"
        return "first after the subject" if position == self.last + 1 else "further"


def make_cases(model: EditableModel, facts: Sequence[Fact], target: str = "true") -> list[Case]:
    """The cases of `facts` with their `target_true` or `target_new` (target="new").

    Raises KetoolsError, naming the fact, for no facts, a target that is missing or has no tokens, and a prompt longer
    than the model's window.
    """
    if not len(facts):
        raise KetoolsError("no facts to trace; give at least one")
    if target not in ("true", "new"):
        raise KetoolsError(f"target={target!r}: expected 'true' or 'new'")
    cases = []
    for fact in facts:
        answer = fact.need_true("tracing") if target == "true" else fact.target_new
        start, end = fact.subject_span
        try:
            row, head = make_rows(
                model, [fact.text] * 2, [answer] * 2, [(start, end), (start, start + 1)], [fact.glue] * 2
            )
        except KetoolsError as error:
            raise KetoolsError(f"fact {fact.id!r}: {error}") from None
        assert head.subject_last is not None
        cases.append(Case(fact, answer, row, head.subject_last))
    return cases


def known_cases(model: EditableModel, facts: Sequence[Fact], target: str) -> tuple[list[Case], dict[str, object]]:
    """`make_cases` of the facts that the model answers correctly, and a frame's attrs about the others.

    Correctly: every token of the target is the most probable one. The attrs: facts (number kept), unknown (number left
    out), unknown_ids. Warns once about those left out. Raises KetoolsError as `make_cases` does, and if none is left.
    """
    cases = make_cases(model, facts, target)
    _, right = score_pairs(model, [(case.fact.text, case.answer) for case in cases], [c.fact.glue for c in cases])
    unknown = [case.fact.id for case, ok in zip(cases, right, strict=True) if not ok]
    if len(unknown) == len(cases):
        raise KetoolsError(
            f"the model knows none of the {len(cases)} facts (their target is not its most probable answer), so there is "
            "no recall to trace; give facts that it knows, or target='new' after an edit"
        )
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(cases)} facts left out, because the model does not answer them correctly: "
            f"{named([*map(repr, unknown)], _NAMED)}",
            UserWarning,
            stacklevel=3,
        )
    kept = [case for case, ok in zip(cases, right, strict=True) if ok]
    return kept, {"facts": len(kept), "unknown": len(unknown), "unknown_ids": unknown}


def probability(model: EditableModel, states: Tensor, reads: Reads, rows: int) -> np.ndarray:
    """exp of the mean token log-probability of each row's target, float64 (rows,); 0 where the model returns NaN.

    `states` (reads, d_model) are those at the places of `reads`, before the final norm.
    """
    losses = token_losses(model, states, reads.token.to(states.device))[0].double().cpu()
    row = reads.row.cpu()
    total = torch.zeros(rows, dtype=torch.float64).index_add(0, row, losses)
    return (-total / torch.bincount(row, minlength=rows)).exp().nan_to_num(0.0).numpy()


# The settings of a trace: noise, layers, places.


def noise_of(case: Case, sample: int, seed: int, width: int) -> Tensor:
    """Standard normal noise for the subject's tokens, (tokens, width) float32.

    It depends only on the fact's text and subject, `sample` and `seed`, not on other facts or their order.
    """
    name = "\0".join((str(seed), str(sample), case.fact.text, case.fact.subject))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return torch.randn(case.last - case.first + 1, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def spread_of(model: EditableModel) -> float:
    """Standard deviation of the entries of the vocabulary's embeddings, as output by the embedding module."""
    embed = model.model.get_input_embeddings()
    count, total, square = 0, 0.0, 0.0
    for part in torch.arange(len(model.embedding)).split(8192):
        values = embed(part.to(model.device)).double() if model.device.type != "mps" else embed(part.to(model.device))
        count, total = count + values.numel(), total + float(values.sum())
        square += float(values.square().sum())
    return float(np.sqrt(max(0.0, square / count - (total / count) ** 2)))


@dataclass(frozen=True)
class Plan:
    """The checked settings of a trace; `noise` is the standard deviation of the noise on an embedding."""

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    at: str
    noise: float
    samples: int
    window: int
    seed: int

    def span(self, layer: int, n_layer: int) -> range:
        """The window of layers around `layer`, cut off at the ends of the model."""
        first = layer - self.window // 2
        return range(max(0, first), min(n_layer, first + self.window))


def plan_of(
    model: EditableModel,
    kinds: Sequence[str],
    layers: Sequence[int] | None,
    at: str,
    samples: int,
    window: int | None,
    seed: int,
    noise: float,
) -> Plan:
    """The settings of a trace, checked; `noise` is the standard deviation of the noise. Raises KetoolsError."""
    n_layer = model.anatomy.n_layer
    window = max(1, round(n_layer * 10 / 48)) if window is None else window
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise KetoolsError(f"kinds={kinds!r}: expected some of {', '.join(map(repr, KINDS))}")
    if at not in PLACES:
        raise KetoolsError(f"at={at!r}: expected one of {', '.join(map(repr, PLACES))}")
    if not (noise >= 0 and np.isfinite(noise)) or samples < 1 or window < 1:
        raise KetoolsError(f"{noise=:g}, {samples=}, {window=}: expected noise >= 0, samples and window >= 1")
    layers = tuple(range(n_layer)) if layers is None else tuple(layers)
    if not layers:
        raise KetoolsError("layers is empty; name at least one, or leave it out for all")
    for layer in layers:
        model.layer(layer)
    return Plan(kinds, layers, at, noise, samples, window, seed)


def places_of(case: Case, at: str) -> list[list[int]]:
    """Groups of positions restored together, counted from the subject's first token."""
    end, last = case.end - case.first, case.last - case.first
    assert at in PLACES
    return {
        "each": [[p] for p in range(end + 1)],
        "subject_last": [[last]],
        "last": [[end]],
        "subject": [list(range(last + 1))],
        "all": [list(range(len(case.ids) - case.first))],
    }[at]


# The three runs. Draw s of case c is row c * samples + s of the corrupted one.


@dataclass(frozen=True)
class _Runs:
    # Clean and corrupted states of some cases from the subject on; `frozen` has one row per case. Under "clean" and
    # "corrupted": `states` {"hidden", "mlp", "attention": {layer: (rows, length, d_model)}}, in which hidden -1 is the
    # input of layer 0; `probability` of the target (rows,).
    cases: Sequence[Case]
    frozen: Frozen
    states: dict[str, dict[str, dict[int, Tensor]]]
    probability: dict[str, np.ndarray]


def _run_both(model: EditableModel, cases: Sequence[Case], plan: Plan) -> _Runs:
    starts = torch.tensor([case.first for case in cases])
    frozen = freeze(model, [case.ids for case in cases], starts.tolist(), -1)
    ids, mask = pad_right([case.ids for case in cases], model.device)
    width = model.embedding.shape[1]
    change = torch.zeros(len(cases), plan.samples, ids.shape[1], width)
    for (c, case), s in product(enumerate(cases), range(plan.samples)):
        change[c, s, case.first : case.last + 1] = plan.noise * noise_of(case, s, plan.seed, width)
    longest, device = frozen.hidden.shape[1], frozen.hidden.device
    suffix = (starts[:, None] + torch.arange(longest)).clamp_max(ids.shape[1] - 1).to(device)
    names = {name for kind in plan.kinds for name in _parts(kind) if name} | {"hidden"}
    runs = _Runs(cases, frozen, {}, {})
    clean = torch.arange(len(cases))
    for name, of_case, added in (
        ("clean", clean, None),
        ("corrupted", clean.repeat_interleave(plan.samples), change.flatten(0, 1)),
    ):
        here, n = of_case.to(device), len(of_case)
        entered = embedded(model, ids[of_case.to(ids.device)], mask[of_case.to(ids.device)], added)
        entered = entered.gather(1, suffix[here][..., None].expand(-1, -1, entered.shape[-1]))
        with recorded(model, names, n) as states:
            out = frozen.select(here).run(entered, torch.arange(n * longest, device=device))
        states["hidden"][-1] = entered
        runs.states[name] = states
        reads = Reads.of([cases[i].row for i in of_case], out.device, [cases[i].first for i in of_case])
        runs.probability[name] = probability(model, out[reads.places(longest)], reads, n)
    return runs


def _restored(model: EditableModel, runs: _Runs, plan: Plan) -> Iterator[np.ndarray]:
    # For each case the probabilities (places, kinds, layers) after restoration, averaged over draws of noise.
    places = [places_of(case, plan.at) for case in runs.cases]
    rows = [(c, s, p) for c in range(len(places)) for p in range(len(places[c])) for s in range(plan.samples)]
    length = runs.states["clean"]["hidden"][-1].shape[1]
    step = max(1, TOKENS // length)
    p = np.zeros((len(rows), len(plan.kinds), len(plan.layers)))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        mask = torch.zeros(len(part), length, dtype=torch.bool)
        for r, (c, _, place) in enumerate(part):
            mask[r, places[c][place]] = True
        p[start : start + step] = _effects(model, runs, plan, [(c, c * plan.samples + s) for c, s, _ in part], mask)
    at = 0
    for own_places in places:
        n = len(own_places) * plan.samples
        yield p[at : at + n].reshape(-1, plan.samples, *p.shape[1:]).mean(1)
        at += n


def _effects(
    model: EditableModel, runs: _Runs, plan: Plan, rows: Sequence[tuple[int, int]], mask: Tensor
) -> np.ndarray:
    # Probabilities (rows, kinds, layers) after restoring the states in `mask` (rows, length); rows: (case, corrupted row).
    device, n_layer = runs.frozen.hidden.device, model.anatomy.n_layer
    mask = mask.to(device)
    of_case, of_row = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    frozen = runs.frozen.select(of_case)
    cases = [runs.cases[c] for c, _ in rows]
    reads = Reads.of([case.row for case in cases], device, [case.first for case in cases])
    places = reads.places(mask.shape[1])
    clean, corrupted = runs.states["clean"], runs.states["corrupted"]
    p = np.zeros((len(rows), len(plan.kinds), len(plan.layers)))
    for (k, kind), (i, layer) in product(enumerate(plan.kinds), enumerate(plan.layers)):
        restore, severed = _parts(kind)
        if restore == "hidden":
            start = layer
            hidden = torch.where(mask[..., None], clean["hidden"][layer][of_case], corrupted["hidden"][layer][of_row])
            above = range(layer + 1, n_layer) if severed else ()
            put = [(model.sublayer(other, severed), corrupted[severed][other][of_row]) for other in above]
        else:
            span = plan.span(layer, n_layer)
            start = span[0] - 1
            hidden = corrupted["hidden"][start][of_row]
            put = [(model.sublayer(other, restore), clean[restore][other][of_case]) for other in span]
        with ExitStack() as stack:
            for module, values in put:
                stack.callback(module.register_forward_hook(_putting(values, mask, places)).remove)
            out = replace(frozen, layer=start, calls=frozen.calls[start + 1 :]).run(hidden, places)
        p[:, k, i] = probability(model, out, reads, len(rows))
    return p


def _parts(kind: str) -> tuple[str, str]:
    # What is restored, and the severed sublayer ("": none).
    restore, _, severed = kind.removesuffix(" severed").partition(", ")
    return restore, severed


def _putting(values: Tensor, mask: Tensor, places: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    # A hook that replaces outputs by `values` (rows, length, d_model) where `mask` is true.
    flat, where = values.flatten(0, 1), mask.flatten()

    def put(_: nn.Module, __: object, out: Tensor) -> Tensor:
        states = out.reshape(-1, out.shape[-1])
        # The MLP of the top layer receives only the places that are read.
        present = slice(None) if len(states) == len(flat) else places
        return torch.where(where[present][:, None], flat[present], states).view(out.shape)

    return put


def _frame(
    model: EditableModel, case: Case, plan: Plan, p: np.ndarray, p_clean: float, p_corrupted: float
) -> pd.DataFrame:
    # p: (places, kinds, layers).
    if plan.at in ("subject", "all"):
        positions, tokens, roles = [-1], [""], [plan.at]
    else:
        positions = [case.first + place[0] for place in places_of(case, plan.at)]
        if plan.at == "each":  # tokens before the subject are clean already
            p = np.concatenate([np.full((case.first, *p.shape[1:]), p_corrupted), p])
            positions = [*range(case.first), *positions]
        tokens = [str(model.tokenizer.decode([case.ids[i]])) for i in positions]
        roles = [case.role(i) for i in positions]
    place, kind, layer = (index.reshape(-1) for index in np.indices(p.shape))
    columns = {
        "fact": case.fact.id,
        "kind": np.array(plan.kinds)[kind],
        "layer": np.array(plan.layers)[layer],
        "position": np.array(positions)[place],
        "token": np.array(tokens)[place],
        "role": np.array(roles)[place],
        "p": p.reshape(-1),
    }
    frame = pd.DataFrame(columns)
    return frame.assign(effect=frame["p"] - p_corrupted, p_clean=p_clean, p_corrupted=p_corrupted)
