"""Three sentences about a comparison of methods, computed from its figures: the norm, the model, the edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ketools.course.style import label, listed


def sentences(methods: Mapping[str, Mapping[str, Any]], edits: int) -> list[str]:
    """What happened to the norm, to the model and to the edits.

    Args:
        methods: {name: figures} as in demo.json.
        edits: how many edits each method made.

    Returns:
        Three sentences; each is true of these figures whatever they are, nothing is assumed about which method wins.
    """
    return [_norm(methods, edits), _model(methods), _edits(methods)]


def _norm(methods: Mapping[str, Mapping[str, Any]], edits: int) -> str:
    each = [
        f"{label(name)} to {_times(f['norm_ratio'])} ({'still growing' if f['norm_still_growing'] else 'no longer growing'})"
        for name, f in methods.items()
    ]
    return f"The norm: {edits:,} edits brought the most changed matrix from 1 with {listed(each)} its original size."


def _model(methods: Mapping[str, Mapping[str, Any]]) -> str:
    each = [
        f"{label(name)} kept {_percent(f['unedited_kept'])} of the unedited facts that it knew"
        f"{_downstream(f['downstream_kept'])}{', and falling' if f['unedited_falling'] else ''}"
        for name, f in methods.items()
    ]
    return f"The model: {listed(each)}."


def _edits(methods: Mapping[str, Mapping[str, Any]]) -> str:
    each = [
        f"with {label(name)} {_percent(f['efficacy'])} hold ({_percent(f['paraphrase'])} in other words), at a mean "
        f"probability of {f['p_edited']:.2f}"
        for name, f in methods.items()
    ]
    natural = next(iter(methods.values()))["p_natural"]
    return f"The edits: at the end {listed(each)}; natural facts had {natural:.2f}."


def _downstream(kept: float) -> str:
    return "" if kept != kept else f" and {_percent(kept)} of its downstream score"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def _percent(share: float) -> str:
    return "an unknown share" if share != share else f"{100 * share:.1f}%"
