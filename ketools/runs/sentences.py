"""Three sentences about a comparison of methods, computed from its figures: the norm, the model, the edits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ketools.runs.names import listed, title


def sentences(methods: Mapping[str, Mapping[str, Any]], edits: int) -> list[str]:
    """What happened to the norm, to the model and to the edits.

    Args:
        methods: {name: figures} as in demo.json.
        edits: how many edits each method made.

    Returns:
        Three sentences; each is true of these figures whatever they are, nothing is assumed about which method wins.
    """
    done = {name: figures for name, figures in methods.items() if figures["edits"]}
    idle = [title(name) for name in methods if name not in done]
    if not done:
        return [
            f"The {what}: nothing was edited, the first update was not finite." for what in ("norm", "model", "edits")
        ]
    found = [_norm(done, edits), _model(done), _edits(done, edits)]
    for name, figures in done.items():
        if figures["edits"] < edits:
            found[0] += f" {title(name)} ended after {figures['edits']:,} edits: its next update was not finite."
    if idle:  # they have no figures
        found[0] += f" Nothing was edited with {listed(idle)}: the first update was not finite."
    return found


def _norm(methods: Mapping[str, Mapping[str, Any]], edits: int) -> str:
    each = [
        f"{f['norm_ratio']:.2f} times with {title(name)} ({'still' if f['norm_still_growing'] else 'no longer'} growing)"
        for name, f in methods.items()
    ]
    return f"The norm: after {edits:,} edits that of the most grown edited matrix is {listed(each)} what it was."


def _model(methods: Mapping[str, Mapping[str, Any]]) -> str:
    each = [
        f"{_percent(f['unedited_kept'])} with {title(name)}{_brackets(_falling(f), _downstream(f))}"
        for name, f in methods.items()
    ]
    return f"The model: of the facts that it knew and that were not edited, it still has {listed(each)}."


def _edits(methods: Mapping[str, Mapping[str, Any]], edits: int) -> str:
    each = [
        f"{_percent(f['efficacy'])} with {title(name)} "
        f"({_percent(f['paraphrase'])} in other words, mean probability {f['p_edited']:.2f})"
        for name, f in methods.items()
    ]
    natural = next(iter(methods.values()))["p_natural"]
    compared = "" if math.isnan(natural) else f"; natural facts had a mean probability of {natural:.2f}"
    whole = all(f["edits"] == edits for f in methods.values())
    return f"The edits: of {f'all {edits:,}' if whole else 'those made'}, those that hold at the end are {listed(each)}{compared}."


def _falling(figures: Mapping[str, Any]) -> str:
    return "and falling" if figures["unedited_falling"] else ""


def _downstream(figures: Mapping[str, Any]) -> str:
    kept = figures["downstream_kept"]
    return "" if math.isnan(kept) else f"downstream score {_percent(kept)} of before"


def _brackets(*parts: str) -> str:
    said = ", ".join(part for part in parts if part)
    return f" ({said})" if said else ""


def _percent(share: float) -> str:
    return "an unknown share" if math.isnan(share) else f"{100 * share:.1f}%"
