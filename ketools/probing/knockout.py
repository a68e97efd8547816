"""Attention knockout: does the last position read the subject, and in which layers (Geva et al., arXiv 2304.14767).

In a window of layers the positions at which the answer is read (the prompt's last token and, for an answer of several
tokens, those of the answer) may not attend to the subject's. If the answer's probability falls there, that is where it
is extracted from the subject's state. All else is as in the clean run, which is computed once (ketools.models.replay): only
the reading positions run again, against the cache of everything before them.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import Frozen, freeze
from ketools.models.tokens import batches
from ketools.probing.tracing import Case, known_cases, target_reads

SOURCES = ("subject", "other")
Progress = Callable[[int], None]
_TOKENS_AT_ONCE = 4096


def knockout(
    model: EditableModel,
    facts: Sequence[Fact],
    sources: Sequence[str] = SOURCES,
    *,
    window: int | None = None,
    target: str = "true",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The target's probability when the reading positions cannot attend to the subject, by layer.

    Args:
        model: the model as it stands, edits included; with eager or sdpa attention.
        facts: facts that the model knows; the others are left out, with a warning.
        sources: what is blocked: the "subject"'s tokens, or all "other" tokens before the last one.
        window: layers blocked around each; None: the paper's share of the depth (9 of GPT2-XL's 48), at least 1.
        target: "true" or "new" (after an edit).
        progress: called with the number of facts done since the last call.

    Returns:
        A row per fact, source and layer: fact, source, layer (centre of the window), p (exp of the target's mean token
        log-probability), p_clean, change ((p - p_clean) / p_clean, the paper's measure). A fact without such tokens
        (its prompt ends with the subject's only token) has NaN. Attrs: facts, unknown, unknown_ids, window.

    Raises:
        KetoolsError: as `tracing.trace`; an unknown source; an attention whose mask cannot be changed (flash, flex).
    """
    window = max(1, round(model.anatomy.n_layer * 9 / 48)) if window is None else window
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if not sources or any(source not in SOURCES for source in sources):
        raise KetoolsError(f"sources={sources!r}: expected some of {', '.join(map(repr, SOURCES))}")
    if window < 1:
        raise KetoolsError(f"window={window}: expected a number of layers >= 1")
    cases, attrs = known_cases(model, facts, target)
    frame = knockout_cases(model, cases, sources, window, progress)
    frame.attrs = attrs | {"window": window}
    return frame


@torch.no_grad()
def knockout_cases(
    model: EditableModel, cases: Sequence[Case], sources: Sequence[str], window: int, progress: Progress | None = None
) -> pd.DataFrame:
    """`knockout` of cases whether the model knows them or not, without attrs."""
    parts: dict[int, pd.DataFrame] = {}
    for some in batches([len(case.ids) for case in cases], _TOKENS_AT_ONCE):
        found = _probabilities(model, [cases[i] for i in some], sources, window)
        for i, p in zip(some, found, strict=True):
            layers = np.tile(np.arange(p.shape[1]), len(sources))
            here = pd.DataFrame({"source": np.repeat(sources, p.shape[1]), "layer": layers, "p": p[:-1].reshape(-1)})
            here.insert(0, "fact", cases[i].fact.id)
            parts[i] = here.assign(p_clean=p[-1, 0], change=here["p"] / p[-1, 0] - 1)
        if progress is not None:
            progress(len(some))
    return pd.concat([parts[i] for i in range(len(cases))], ignore_index=True)


def _probabilities(model: EditableModel, cases: Sequence[Case], sources: Sequence[str], window: int) -> np.ndarray:
    # (cases, sources + 1, layers); the last row is the clean probability throughout.
    n_layer, starts = model.anatomy.n_layer, [case.end for case in cases]
    frozen = freeze(model, [case.ids for case in cases], starts, -1)
    device = frozen.hidden.device
    reads = target_reads(cases, starts, frozen.hidden.shape[1], device)
    found = np.full((len(cases), len(sources) + 1, n_layer), np.nan)
    found[:, -1] = reads.probability(model, frozen.run(frozen.hidden, reads.places)).cpu().numpy()[:, None]
    for s, source in enumerate(sources):
        blocked = _blocked(cases, source, frozen)
        there = blocked.any(1).cpu().numpy()
        calls = [_without(model, layer, frozen, blocked.to(device)) for layer in range(n_layer)]
        for layer in range(n_layer):
            first = layer - window // 2
            mixed = [calls[i] if first <= i < first + window else frozen.calls[i] for i in range(n_layer)]
            p = reads.probability(model, replace(frozen, calls=mixed).run(frozen.hidden, reads.places))
            found[there, s, layer] = p.cpu().numpy()[there]
    return found


def _blocked(cases: Sequence[Case], source: str, frozen: Frozen) -> Tensor:
    # Columns (rows, cached) of the tokens that are not to be seen; beginnings are padded on the left.
    columns = max(layer.keys.shape[-2] for layer in frozen.cache.layers)
    blocked = torch.zeros(len(cases), columns, dtype=torch.bool)
    for row, case in zip(blocked, cases, strict=True):
        before = row[columns - case.end :] if case.end else row[:0]
        before[case.first : case.last + 1] = True
        if source == "other":
            before[:] = ~before
    return blocked


def _without(model: EditableModel, layer: int, frozen: Frozen, blocked: Tensor) -> tuple[tuple[Any, ...], dict]:
    # The layer's call with the blocked columns masked for all queries.
    args, kwargs = frozen.calls[layer]
    names = list(inspect.signature(type(model.layer(layer)).forward).parameters)[2:]  # after self and the states
    named = dict(zip(names, args, strict=False))
    mask = kwargs.get("attention_mask", named.get("attention_mask"))
    blocked = torch.nn.functional.pad(blocked, (0, frozen.hidden.shape[1]))[:, None, None]
    if mask is None:
        mask = _causal(frozen, blocked.shape[-1])
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != blocked.shape[-1]:
        raise KetoolsError(
            f"model {model.name!r}: layer {layer} takes its mask of attention in a form that cannot be changed "
            f"({getattr(model.model.config, '_attn_implementation', 'unknown')} attention); load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    if mask.dtype == torch.bool:
        mask = mask & ~blocked
    else:
        mask = mask.expand(len(blocked), -1, -1, -1).masked_fill(blocked, torch.finfo(mask.dtype).min)
    if "attention_mask" in named and "attention_mask" not in kwargs:
        at = names.index("attention_mask")
        return (*args[:at], mask, *args[at + 1 :]), kwargs
    return args, kwargs | {"attention_mask": mask}


def _causal(frozen: Frozen, columns: int) -> Tensor:
    # What a mask left out means: every token sees itself and all before it; there is no padding then.
    queries = frozen.hidden.shape[1]
    seen = torch.ones(queries, columns, dtype=torch.bool, device=frozen.hidden.device)
    return seen.tril(columns - queries).expand(len(frozen.hidden), 1, -1, -1)
