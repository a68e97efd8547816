"""The runs of causal tracing: clean, corrupted, restored; what probing.tracing tells of as a frame.

What stands before the subject is clean in all runs and is computed once, facts with the same beginning share it
(ketools.replay); a restoration at layer l runs only what can change: layers above it, tokens from the subject on. Every
(fact, draw of noise, place) is a row, so that thousands of restorations make few passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from ketools.model import EditableModel
from ketools.probing.cases import Case, noise_of, rows_of, target_reads
from ketools.probing.sublayers import SUBLAYERS, entering, heard, site
from ketools.replay import Frozen, freeze

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
    heads = [case.ids[: case.first] for case in cases]
    starts = [case.first for case in cases]
    groups = [heads.index(head) for head in heads]
    frozen = freeze(model, [case.ids for case in cases], starts, -1, [groups])
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
        into, at = entering(model, ids[here], mask[here], change), at.to(device)
        runs.entered[name] = into.gather(1, suffix[at][..., None].expand(-1, -1, into.shape[-1]))
        every = torch.arange(len(at) * longest, device=device)
        with heard(model, _heard(plan.kinds), len(at)) as runs.states[name]:
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
                stack.callback(site(model, other, name).register_forward_hook(hook).remove)
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
