"""Causal tracing: which states carry a fact from the subject to the answer (Meng et al., arXiv 2202.05262, section 2).

Three runs. Clean: the prompt as it is. Corrupted: Gaussian noise on the embeddings of the subject's tokens, so that the
answer is lost. Restored: the corrupted run with some clean states put back. A state whose restoration brings the answer
back carries the fact; the gain in the answer's probability is its *indirect effect*.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.packing import batches
from ketools.prefix import tell_unshared
from ketools.probing.cases import ROLES, Case, known_cases, spread_of
from ketools.probing.restoring import KINDS, PLACES, TOKENS, Plan, places_of, restored, run_both

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
    if model.replays:  # others are refused
        tell_unshared(model, [case.ids for case in cases], 1)
    parts: dict[int, pd.DataFrame] = {}
    for some in batches([case.ids[case.first :] for case in cases], TOKENS // plan.samples):
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
