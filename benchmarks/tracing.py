"""Causal tracing side by side: every layer, position and kind of every fact, shared and batched, and as a plain loop.

    python -m benchmarks.tracing --model pocket --facts 100 --json build/tracing.json

"replay" is ketools.probing.tracing.trace; "plain" (ketools/reference) restores one state in one run at a time, whole
sequences through the whole model, as published code does (which also runs the clean prompt again beside each corrupted
one; here clean states are kept). The plain loop does the first `--plain` facts only; times are compared per restoration.
All in one process, interleaved, medians. Random models know no fact, so that cases are traced whether known or not.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.command import finish, interleaved, medians, origin, parser, spreads
from benchmarks.shapes import open_model
from ketools.facts.reading import facts
from ketools.models.model import EditableModel
from ketools.probing.tracing import KINDS, Case, Plan, make_cases, noise_of, plan_of, spread_of, trace_cases
from ketools.reference.tracing import Tokens, restored, states

Effects = dict[tuple[str, str, int, int], float]  # of fact, kind, layer, position


def plain(model: EditableModel, cases: Sequence[Case], plan: Plan) -> Effects:
    """The target's probability after each restoration."""
    found: Effects = {}
    width = model.model.get_input_embeddings().weight.shape[1]
    for case in cases:
        tokens = Tokens(case.ids, case.first, case.last, case.target)
        noise = (plan.noise * noise_of(case, 0, plan.seed, width)).to(model.device)
        known = states(model, tokens)[0], states(model, tokens, noise)[0]
        for kind in plan.kinds:
            for layer in plan.layers:
                layers = [layer] if kind.startswith("hidden") else plan.span(layer, model.anatomy.n_layer)
                for place in range(case.first, case.end + 1):
                    p = restored(model, tokens, noise, kind, layers, [place], known)
                    found[case.fact.id, kind, layer, place] = p
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run both as asked for and return the figures."""
    model, _ = open_model(args.model, args.device, getattr(torch, args.dtype), args.seed)
    cases = make_cases(model, facts(args.source).sample(args.facts, seed=args.seed))
    plan = plan_of(model, KINDS[:3], None, "each", 1, None, args.seed, 3.0 * spread_of(model))
    few = cases[: args.plain]
    work = {"replay": lambda: trace_cases(model, cases, plan), "plain": lambda: plain(model, few, plan)}
    trace_cases(model, few, plan)  # warm
    costs, results = interleaved(work, args.repeats, model.device, args.quiet)
    frame, effects = results["replay"], results["plain"]
    seconds = medians(costs)
    rows = frame.set_index(["fact", "kind", "layer", "position"])["p"]
    counts = {"replay": _restorations(cases, plan), "plain": len(effects)}
    each = {name: seconds[name] / counts[name] for name in work}
    return {
        "model": args.model, "facts": len(cases), "restorations": counts, "seconds": seconds["replay"],
        "seconds_per_restoration": each, "spread": spreads(costs),
        "ratio_plain_over_replay": each["plain"] / each["replay"],
        "max_error_p": max(abs(rows[place] - p) for place, p in effects.items()),
        "provenance": origin(args, model),
    }  # fmt: skip


def _restorations(cases: Sequence[Case], plan: Plan) -> int:
    return len(plan.kinds) * len(plan.layers) * sum(case.end + 1 - case.first for case in cases)


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    return [
        f"{figures['facts']} facts, {figures['restorations']['replay']:,} restorations: {figures['seconds']:.1f} s",
        f"plain / replay per restoration: {figures['ratio_plain_over_replay']:.1f}",
        f"largest difference of a probability: {figures['max_error_p']:.1e}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("--plain", type=int, default=5, help="facts that the plain loop does")
    return finish("tracing", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
