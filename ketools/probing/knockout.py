"""Attention knockout: in which layers the last position reads the subject (Geva et al., arXiv 2304.14767).

In a window of layers, the positions at which the answer is read (the prompt's last token and, for an answer of several
tokens, those of the answer) may not attend to those of the subject. A drop in the answer's probability shows that it is
extracted from the subject's state in these layers. Everything else is as in the clean run, which is computed once
(ketools.models.replay): only the reading positions run again, against the cache of everything before them.
"""

import inspect
from collections.abc import Sequence
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
from ketools.models.tokens import Reads, batches
from ketools.probing.tracing import Case, known_cases, probability

SOURCES = ("subject", "other")
_TOKENS = 4096  # in one pass


def knockout(
    model: EditableModel, facts: Sequence[Fact], sources: Sequence[str] = SOURCES, *, window: int | None = None
) -> pd.DataFrame:
    """Probability of the true object when the reading positions cannot attend to the subject, by layer.

    Args:
        model: the model in its present state, edits included; with eager or sdpa attention.
        facts: facts that the model knows; the others are left out, with a warning.
        sources: what is blocked: the tokens of the "subject", or all "other" tokens before the last one.
        window: number of layers blocked around each; None: the paper's share of the depth (9 of GPT2-XL's 48).

    Returns:
        One row per fact, source and layer: fact, source, layer (centre of the window), p (exp of the target's mean token
        log-probability), p_clean, change ((p - p_clean) / p_clean, the paper's measure). NaN for a fact without such
        tokens (its prompt ends with the subject's only token). Attrs: facts, unknown, unknown_ids, window.

    Raises KetoolsError as `tracing.trace` does, for an unknown source, and for an attention whose mask cannot be changed (flash, flex).
    """
    window = max(1, round(model.anatomy.n_layer * 9 / 48)) if window is None else window
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if not sources or not set(sources) <= set(SOURCES) or window < 1:
        raise KetoolsError(
            f"{sources=}, {window=}: expected some of {', '.join(map(repr, SOURCES))}, and a window of at least 1"
        )
    cases, attrs = known_cases(model, facts, "true")
    frame = knockout_cases(model, cases, sources, window)
    frame.attrs = attrs | {"window": window}
    return frame


@torch.no_grad()
def knockout_cases(model: EditableModel, cases: Sequence[Case], sources: Sequence[str], window: int) -> pd.DataFrame:
    """`knockout` of cases, known to the model or not, without attrs, for some of `SOURCES`."""
    parts: dict[int, pd.DataFrame] = {}
    for batch in batches([len(case.ids) for case in cases], _TOKENS):
        clean, blocked = _probabilities(model, [cases[i] for i in batch], sources, window)
        for n, i in enumerate(batch):
            source, layer = (index.reshape(-1) for index in np.indices(blocked[n].shape))
            frame = pd.DataFrame({"source": np.array(sources)[source], "layer": layer, "p": blocked[n].reshape(-1)})
            frame.insert(0, "fact", cases[i].fact.id)
            parts[i] = frame.assign(p_clean=clean[n], change=frame["p"] / clean[n] - 1)
    return pd.concat([parts[i] for i in range(len(cases))], ignore_index=True)


def _probabilities(
    model: EditableModel, cases: Sequence[Case], sources: Sequence[str], window: int
) -> tuple[np.ndarray, np.ndarray]:
    # Probabilities of the targets: clean (cases,), and with the sources blocked (cases, sources, layers).
    n_layer, ends = model.anatomy.n_layer, [case.end for case in cases]
    frozen = freeze(model, [case.ids for case in cases], ends, -1)
    reads = Reads.of([case.row for case in cases], frozen.hidden.device, ends)
    places = reads.places(frozen.hidden.shape[1])

    def measured(run: Frozen) -> np.ndarray:
        return probability(model, run.run(frozen.hidden, places), reads, len(cases))

    clean, p = measured(frozen), np.full((len(cases), len(sources), n_layer), np.nan)
    cached = [getattr(layer, "keys", None) for layer in frozen.cache.layers]
    columns = max(keys.shape[-2] for keys in cached if keys is not None)  # prefixes are padded on the left
    for s, source in enumerate(sources):
        blocked = torch.zeros(len(cases), columns, dtype=torch.bool)
        for row, case in zip(blocked, cases, strict=True):
            before = row[columns - case.end :] if case.end else row[:0]
            before[case.first : case.last + 1] = True
            if source == "other":
                before[:] = ~before
        there = blocked.any(1).numpy()
        calls = [_without(model, layer, frozen, blocked.to(frozen.hidden.device)) for layer in range(n_layer)]
        for layer in range(n_layer):
            first = layer - window // 2
            mixed = [calls[i] if first <= i < first + window else frozen.calls[i] for i in range(n_layer)]
            p[there, s, layer] = measured(replace(frozen, calls=mixed))[there]
    return clean, p


def _without(model: EditableModel, layer: int, frozen: Frozen, blocked: Tensor) -> tuple[tuple[Any, ...], dict]:
    # The arguments of the layer with the `blocked` columns (rows, cached) masked for all queries.
    args, kwargs = frozen.calls[layer]
    names = list(inspect.signature(type(model.layer(layer)).forward).parameters)[2:]  # after self and the states
    named = dict(zip(names, args, strict=False))
    mask = kwargs.get("attention_mask", named.get("attention_mask"))
    queries = frozen.hidden.shape[1]
    blocked = torch.nn.functional.pad(blocked, (0, queries))[:, None, None]
    if mask is None:
        # Without a mask every token sees itself and all before it, and there is no padding.
        seen = torch.ones(queries, blocked.shape[-1], dtype=torch.bool, device=frozen.hidden.device)
        mask = seen.tril(blocked.shape[-1] - queries).expand(len(frozen.hidden), 1, -1, -1)
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != blocked.shape[-1]:
        raise KetoolsError(
            f"model {model.name!r}: layer {layer} takes its attention mask in a form that cannot be changed "
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
