"""Causal tracing: which states carry a fact from the subject to the answer (Meng et al., arXiv 2202.05262, section 2).

Three runs. Clean: the prompt as it is. Corrupted: Gaussian noise on the embeddings of the subject's tokens, so that the
answer is lost. Restored: the corrupted run with some clean states put back. A state whose restoration brings the answer
back carries the fact; the gain in the answer's probability is its *indirect effect*.
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
from ketools.models.model import SUBLAYERS, EditableModel
from ketools.models.replay import Frozen, freeze
from ketools.models.scoring import score_pairs
from ketools.models.states import embedded, recorded
from ketools.models.tokens import batches, make_rows, pad_right, subject_span

# Facts as cases to trace: token rows with the subject's tokens located, facts that the model does not know left out.


_NAMED = 8  # facts that a warning names


@dataclass(frozen=True)
class Case:
    """One fact as tokens: `ids` of the prompt and of all target tokens but the last.

    `answer` is the target as text. The subject's tokens are `first` to `last` (inclusive), the prompt's last one is `end`; `target` holds the target's
    tokens, whose predictions stand at `end`, `end` + 1, ...
    """

    fact: Fact
    answer: str
    ids: tuple[int, ...]
    first: int
    last: int
    end: int
    target: tuple[int, ...]

    def role(self, position: int) -> str:
        """What the token at `position` is in the prompt, in the words of Meng et al. (figure 2)."""
        if position < self.first:
            return "before the subject"
        if position <= self.last:
            # One token alone is the last one: there the fact is looked up.
            inner = "first of the subject" if position == self.first else "middle of the subject"
            return "last of the subject" if position == self.last else inner
        if position == self.end:
            return "last token"
        return "first after the subject" if position == self.last + 1 else "further"


ROLES = (
    "before the subject",
    "first of the subject",
    "middle of the subject",
    "last of the subject",
    "first after the subject",
    "further",
    "last token",
)


def make_cases(model: EditableModel, facts: Sequence[Fact], target: str = "true") -> list[Case]:
    """The cases of `facts` with their `target_true` or `target_new` (target="new").

    Raises KetoolsError, naming the fact, for no facts, a subject that is not in its prompt once, a target that is
    missing or has no tokens, and a prompt longer than the model's window.
    """
    if not len(facts):
        raise KetoolsError("no facts to trace; give at least one")
    if target not in ("true", "new"):
        raise KetoolsError(f"target={target!r}: expected 'true' or 'new'")
    return [_case(model, fact, target) for fact in facts]


def known_cases(
    model: EditableModel, facts: Sequence[Fact], target: str, stacklevel: int = 3
) -> tuple[list[Case], dict[str, object]]:
    """`make_cases` of the facts that the model answers rightly, and what a frame's attrs tell of the others.

    Rightly: every token of the target is the most probable one. The attrs: facts (number kept), unknown (number left
    out), unknown_ids. Warns, once, of those left out. Raises KetoolsError as `make_cases` does, and if none is left.
    """
    cases = make_cases(model, facts, target)
    right = score_pairs(model, [(case.fact.text, case.answer) for case in cases])[1].tolist()
    out = [case.fact.id for case, ok in zip(cases, right, strict=True) if not ok]
    if len(out) == len(cases):
        raise KetoolsError(
            f"the model knows none of the {len(cases)} facts (their target is not its most probable answer), so there is "
            "no recall to trace; give facts that it knows, or target='new' after an edit"
        )
    if out:
        warnings.warn(
            f"{len(out)} of {len(cases)} facts left out, the model does not answer them rightly: "
            f"{named([*map(repr, out)], _NAMED)}",
            UserWarning,
            stacklevel=stacklevel,
        )
    kept = [case for case, ok in zip(cases, right, strict=True) if ok]
    return kept, {"facts": len(kept), "unknown": len(out), "unknown_ids": out}


def noise_of(case: Case, sample: int, seed: int, width: int) -> Tensor:
    """Standard normal noise for the subject's tokens, (tokens, width) float32.

    It depends on the fact's text and subject, on `sample` and `seed` alone: neither on other facts nor on their order.
    """
    name = "\0".join((str(seed), str(sample), case.fact.text, case.fact.subject))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return torch.randn(case.last - case.first + 1, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def spread_of(model: EditableModel, cases: Sequence[Case], spread: str | float) -> float:
    """Standard deviation of the entries of token embeddings, as the model's embedding module puts them out.

    `spread` is "embedding" (of the whole vocabulary), "subjects" (of the subjects' tokens, as Meng et al. take it; it
    depends on the facts given), or a number that is taken as it is.
    """
    if isinstance(spread, int | float) and not isinstance(spread, bool):
        if not spread >= 0:
            raise KetoolsError(f"spread={spread}: expected a number >= 0, 'embedding' or 'subjects'")
        return float(spread)
    if spread not in ("embedding", "subjects"):
        raise KetoolsError(f"spread={spread!r}: expected 'embedding', 'subjects' or a number")
    embed = model.model.get_input_embeddings()
    tokens = [t for case in cases for t in case.ids[case.first : case.last + 1]]
    ids = torch.arange(embed.weight.shape[0]) if spread == "embedding" else torch.tensor(tokens)
    count, total, square = 0, 0.0, 0.0
    for part in ids.split(8192):
        values = embed(part.to(model.device)).double() if model.device.type != "mps" else embed(part.to(model.device))
        count, total = count + values.numel(), total + float(values.sum())
        square += float(values.square().sum())
    return float(np.sqrt(max(0.0, square / count - (total / count) ** 2)))


def rows_of(cases: Sequence[Case], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the cases, (cases, longest), padded on the right."""
    return pad_right([case.ids for case in cases], device)


@dataclass(frozen=True)
class Reads:
    """Where the targets of some rows are read: `places` (row * length + position), the token and the row of each."""

    places: Tensor
    tokens: Tensor
    owner: Tensor
    rows: int

    def probability(self, model: EditableModel, states: Tensor) -> Tensor:
        """exp of the mean token log-probability of each row's target, float64 (rows,); 0 where the model gives NaN.

        `states` (reads, d_model) are those at `places`, before the final norm.
        """
        losses = token_losses(model, states, self.tokens.to(states.device))[0].double().cpu()
        total = torch.zeros(self.rows, dtype=torch.float64).index_add(0, self.owner.cpu(), losses)
        return (-total / torch.bincount(self.owner.cpu(), minlength=self.rows)).exp().nan_to_num(0.0)


def target_reads(cases: Sequence[Case], starts: Sequence[int], longest: int, device: torch.device) -> Reads:
    """Where the targets of `cases` are read in rows of `longest` tokens that begin at position `starts[i]` of each."""
    wanted = [
        (r * longest + case.end - start + j, token, r)
        for r, (case, start) in enumerate(zip(cases, starts, strict=True))
        for j, token in enumerate(case.target)
    ]
    places, tokens, owner = (torch.tensor(column, device=device) for column in zip(*wanted, strict=True))
    return Reads(places, tokens, owner, len(cases))


def _case(model: EditableModel, fact: Fact, target: str) -> Case:
    goal = fact.need_true("tracing") if target == "true" else fact.target_new
    start, end = subject_span(fact)
    try:
        (row,) = make_rows(model, [fact.text], [goal], [(start, end)])
        (head,) = make_rows(model, [fact.text], [goal], [(start, start + 1)])
    except KetoolsError as error:
        raise KetoolsError(f"fact {fact.id!r}: {error}") from None
    assert row.subject_last is not None and head.subject_last is not None
    return Case(fact, goal, row.ids, head.subject_last, row.subject_last, row.target_positions[0], row.target_ids)


# The runs of causal tracing: clean, corrupted, restored; what probing.tracing tells of as a frame.
#
# What stands before the subject is clean in all runs and is computed once, facts with the same beginning share it
# (ketools.models.replay); a restoration at layer l runs only what can change: layers above it, tokens from the subject on. Every
# (fact, draw of noise, place) is a row, so that thousands of restorations make few passes.


KINDS = ("hidden", "mlp", "attention", "hidden, mlp severed", "hidden, attention severed")
"""What is restored: the residual stream behind a layer; the MLPs' or attentions' summands in a window of layers; the
stream, while that position's MLPs or attentions of all later layers stay as corrupted (Meng et al., figure 3)."""
PLACES = ("each", "subject_last", "last", "subject", "all")
TOKENS = 4096


@dataclass(frozen=True)
class Plan:
    """What one trace does, settings checked; `noise` is the standard deviation of the noise on an embedding."""

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    at: str
    noise: float
    samples: int
    window: int
    seed: int

    def span(self, layer: int, n_layer: int) -> range:
        """The window of layers around `layer`, cut at the ends of the model."""
        first = layer - self.window // 2
        return range(max(0, first), min(n_layer, first + self.window))


@dataclass
class Runs:
    """Clean and corrupted states of some cases from the subject on; draw s of case c is row c * samples + s.

    `frozen` has a row a case. `entered` (what enters layer 0) and `states` hold "clean" (cases, length, d_model) and
    "corrupted" (rows, length, d_model); `probability` that of the target, float64 (cases,) and (rows,).
    """

    cases: Sequence[Case]
    frozen: Frozen
    entered: dict[str, Tensor]
    states: dict[str, dict[str, dict[int, Tensor]]]
    probability: dict[str, np.ndarray]


def run_both(model: EditableModel, cases: Sequence[Case], plan: Plan) -> Runs:
    """The clean and the corrupted run of `cases`, all states kept."""
    starts = [case.first for case in cases]
    frozen = freeze(model, [case.ids for case in cases], starts, -1)
    ids, mask = rows_of(cases, model.device)
    each = torch.arange(len(cases)).repeat_interleave(plan.samples)
    longest, device = frozen.hidden.shape[1], frozen.hidden.device
    suffix = (torch.tensor(starts)[:, None] + torch.arange(longest)).clamp_max(ids.shape[1] - 1).to(device)
    runs = Runs(cases, frozen, {}, {}, {})
    for name, at, change in (
        ("clean", torch.arange(len(cases)), None),
        ("corrupted", each, _noise(model, cases, plan, ids.shape[1])),
    ):
        here = at.to(ids.device)
        into, at = embedded(model, ids[here], mask[here], change), at.to(device)
        runs.entered[name] = into.gather(1, suffix[at][..., None].expand(-1, -1, into.shape[-1]))
        every = torch.arange(len(at) * longest, device=device)
        with recorded(model, _heard(plan.kinds), len(at)) as runs.states[name]:
            out = frozen.select(at).run(runs.entered[name], every)
        reads = target_reads([cases[i] for i in at.tolist()], [starts[i] for i in at.tolist()], longest, out.device)
        runs.probability[name] = reads.probability(model, out[reads.places]).cpu().numpy()
    return runs


def restored(model: EditableModel, runs: Runs, plan: Plan) -> Iterator[np.ndarray]:
    """For each case of `runs` the probabilities (places, kinds, layers) after restoring, averaged over draws of noise."""
    places = [places_of(case, plan.at) for case in runs.cases]
    rows = [(c, s, p) for c in range(len(places)) for p in range(len(places[c])) for s in range(plan.samples)]
    longest = runs.entered["clean"].shape[1]
    step = max(1, TOKENS // longest)
    found = np.zeros((len(rows), len(plan.kinds), len(plan.layers)))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        mask = torch.zeros(len(some), longest, dtype=torch.bool)
        for r, (c, _, p) in enumerate(some):
            mask[r, places[c][p]] = True
        found[start : start + step] = _effects(model, runs, plan, [(c, c * plan.samples + s) for c, s, _ in some], mask)
    at = 0
    for place in places:
        n = len(place) * plan.samples
        yield found[at : at + n].reshape(-1, plan.samples, *found.shape[1:]).mean(1)
        at += n


def places_of(case: Case, at: str) -> list[list[int]]:
    """Positions, counted from the subject's first token, that are restored together."""
    end, last = case.end - case.first, case.last - case.first
    assert at in PLACES
    return {
        "each": [[p] for p in range(end + 1)],
        "subject_last": [[last]],
        "last": [[end]],
        "subject": [list(range(last + 1))],
        "all": [list(range(len(case.ids) - case.first))],
    }[at]


def _effects(model: EditableModel, runs: Runs, plan: Plan, rows: Sequence[tuple[int, int]], mask: Tensor) -> np.ndarray:
    # Probabilities (rows, kinds, layers) after restoring the states in `mask` (rows, length); rows: (case, corrupted row).
    device = runs.entered["clean"].device
    mask = mask.to(device)
    of_case, of_row = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    frozen = runs.frozen.select(of_case)
    cases = [runs.cases[c] for c, _ in rows]
    reads = target_reads(cases, [case.first for case in cases], mask.shape[1], device)
    found = np.zeros((len(rows), len(plan.kinds), len(plan.layers)))
    for (k, kind), (i, layer) in product(enumerate(plan.kinds), enumerate(plan.layers)):
        below, put = _patch(runs, plan, kind, layer, model.anatomy.n_layer)
        hidden = runs.states["corrupted"]["hidden"][below] if below >= 0 else runs.entered["corrupted"]
        hidden = hidden[of_row]
        if kind.startswith("hidden"):
            hidden = torch.where(mask[..., None], runs.states["clean"]["hidden"][layer][of_case], hidden)
        with ExitStack() as stack:
            for other, name, source in put:
                values = runs.states[source][name][other][of_case if source == "clean" else of_row]
                hook = _putting(values, mask, reads.places)
                stack.callback(model.sublayer(other, name).register_forward_hook(hook).remove)
            out = replace(frozen, layer=below, calls=frozen.calls[below + 1 :]).run(hidden, reads.places)
        found[:, k, i] = reads.probability(model, out).cpu().numpy()
    return found


def _patch(runs: Runs, plan: Plan, kind: str, layer: int, n_layer: int) -> tuple[int, list[tuple[int, str, str]]]:
    # The layer behind which the run starts, and whose summands are put in: (layer, sublayer, run that they are from).
    name = _sublayer(kind)
    if not kind.startswith("hidden"):
        span = plan.span(layer, n_layer)
        return span[0] - 1, [(other, str(name), "clean") for other in span]
    return layer, [(other, name, "corrupted") for other in range(layer + 1, n_layer) if name is not None]


def _putting(values: Tensor, mask: Tensor, reads: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    # A hook that puts `values` (rows, length, d_model) in where `mask` says so.
    flat, where = values.flatten(0, 1), mask.flatten()

    def put(_: nn.Module, __: object, out: Tensor) -> Tensor:
        states = out.reshape(-1, out.shape[-1])
        # In the top layer the MLP is given the read places alone.
        some = slice(None) if len(states) == len(flat) else reads
        return torch.where(where[some][:, None], flat[some], states).view(out.shape)

    return put


def _noise(model: EditableModel, cases: Sequence[Case], plan: Plan, longest: int) -> Tensor:
    # What is added to the embeddings, (cases * samples, longest, width of the embedding).
    width = model.model.get_input_embeddings().weight.shape[1]
    change = torch.zeros(len(cases), plan.samples, longest, width)
    for c, case in enumerate(cases):
        for s in range(plan.samples):
            change[c, s, case.first : case.last + 1] = plan.noise * noise_of(case, s, plan.seed, width)
    return change.flatten(0, 1)


def _heard(kinds: Sequence[str]) -> list[str]:
    return ["hidden", *dict.fromkeys(name for kind in kinds if (name := _sublayer(kind)) is not None)]


def _sublayer(kind: str) -> str | None:
    # The sublayer whose summands are put in: restored, or kept as corrupted.
    return next((name for name in SUBLAYERS if name in kind), None)


Progress = Callable[[int], None]


def trace(
    model: EditableModel,
    facts: Sequence[Fact],
    kinds: Sequence[str] = KINDS[:3],
    *,
    layers: Sequence[int] | None = None,
    at: str = "each",
    noise: float = 3.0,
    spread: str | float = "embedding",
    samples: int = 1,
    window: int | None = None,
    target: str = "true",
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Indirect effects of the facts' states.

    Args:
        model: the model as it stands, edits included.
        facts: facts to trace. Those whose target is not the model's most probable answer are left out, with a warning.
        kinds: what is restored, of `KINDS`.
        layers: where; None: all. With a window, its centre.
        at: "each" position of the prompt by itself; "subject_last" or "last" (the prompt's last token) alone; all
            tokens of the "subject", or "all" tokens from it on, together.
        noise: standard deviation of the noise in units of `spread`; Meng et al. take 3.
        spread: standard deviation of the "embedding" of the vocabulary, of the "subjects'" tokens, or a number.
        samples: draws of noise per fact, averaged (Meng et al.: 10). A mean over many facts needs one.
        window: layers of an mlp or attention window; None: the paper's share of the depth (10 of GPT2-XL's 48).
        target: "true" or "new" (after an edit): whose probability is read.
        seed: of the noise. A fact's noise depends on it and on the fact's text, not on the other facts.
        progress: called with the number of facts done since the last call.

    Returns:
        A row per fact, kind, position and layer: fact (id), kind, layer, position, token, role (of `cases.ROLES`),
        p (probability of the target after restoration, exp of the mean token log-probability), effect (p - p_corrupted),
        p_clean, p_corrupted. Where several positions are restored together, position is -1 and role is `at`. States
        before the subject are clean already, hence effect 0. Attrs: facts, unknown, unknown_ids, sigma, window, noise.

    Raises:
        KetoolsError: no facts, none that the model knows, a fact that cannot be located, a setting out of range.
    """
    cases, attrs = known_cases(model, facts, target)
    sigma = spread_of(model, cases, spread)
    plan = plan_of(model, kinds, layers, at, samples, window, seed, noise * sigma)
    frame = trace_cases(model, cases, plan, progress)
    frame.attrs = attrs | {"sigma": sigma, "noise": noise, "window": plan.window, "samples": samples, "seed": seed}
    return frame


@torch.no_grad()
def trace_cases(
    model: EditableModel, cases: Sequence[Case], plan: Plan, progress: Progress | None = None
) -> pd.DataFrame:
    """`trace` of cases whether the model knows them or not, without attrs."""
    parts: dict[int, pd.DataFrame] = {}
    for some in batches([len(case.ids) - case.first for case in cases], TOKENS // plan.samples):
        runs = run_both(model, [cases[i] for i in some], plan)
        corrupted = runs.probability["corrupted"].reshape(-1, plan.samples).mean(1)
        for n, (i, p) in enumerate(zip(some, restored(model, runs, plan), strict=True)):
            parts[i] = _frame(model, cases[i], plan, p, runs.probability["clean"][n], corrupted[n])
        if progress is not None:
            progress(len(some))
    frame = pd.concat([parts[i] for i in range(len(cases))], ignore_index=True)
    for name, order in (("role", [*ROLES, "subject", "all"]), ("kind", KINDS)):
        frame[name] = pd.Categorical(frame[name], order, ordered=True).remove_unused_categories()
    return frame


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


def average(
    frame: pd.DataFrame,
    by: Sequence[str] = ("kind", "role", "layer"),
    value: str = "effect",
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means over facts with bootstrap intervals: columns `by`, mean, low, high, facts (in how many the group occurs).

    Rows of one fact in one group (several middle tokens) are averaged first, so that a fact weighs 1. The intervals are
    percentiles over `resamples` draws of facts with replacement; all groups share the draws. Attrs are kept.
    Raises KetoolsError for an empty frame or a column that is not there.
    """
    if missing := [name for name in (*by, value, "fact") if name not in frame.columns]:
        raise KetoolsError(f"average: the frame has no column {missing[0]!r}; it has: {', '.join(frame.columns)}")
    if frame.empty:
        raise KetoolsError("average: the frame is empty; trace at least one fact")
    table = frame.pivot_table(index="fact", columns=list(by), values=value, aggfunc="mean", observed=True)
    values, there = table.fillna(0.0).to_numpy(), table.notna().to_numpy().astype(float)
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no fact with the group
        draws = (weights @ values) / (weights @ there)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = table.columns.to_frame(index=False)
    counts = there.sum(0)
    found = found.assign(mean=values.sum(0) / counts, low=low, high=high, facts=counts.astype(int))
    found.attrs = dict(frame.attrs)
    return found


def _frame(
    model: EditableModel, case: Case, plan: Plan, p: np.ndarray, p_clean: float, p_corrupted: float
) -> pd.DataFrame:
    # p: (places, kinds, layers).
    if plan.at in ("subject", "all"):
        positions, tokens, roles = [-1], [""], [plan.at]
    else:
        positions = [case.first + place[0] for place in places_of(case, plan.at)]
        if plan.at == "each":  # what stands before the subject is clean already
            p = np.concatenate([np.full((case.first, *p.shape[1:]), p_corrupted), p])
            positions = [*range(case.first), *positions]
        tokens = [model.tokenizer.decode([case.ids[i]]) for i in positions]
        roles = [case.role(i) for i in positions]
    index = pd.MultiIndex.from_product([range(len(positions)), plan.kinds, plan.layers], names=["at", "kind", "layer"])
    frame = pd.DataFrame({"p": p.reshape(-1)}, index=index).reset_index()
    at = frame.pop("at").to_numpy()
    frame.insert(0, "fact", case.fact.id)
    for place, (name, values) in enumerate((("position", positions), ("token", tokens), ("role", roles)), 3):
        frame.insert(place, name, np.array(values)[at])
    return frame.assign(effect=frame["p"] - p_corrupted, p_clean=p_clean, p_corrupted=p_corrupted)
