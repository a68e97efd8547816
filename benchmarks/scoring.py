"""Scores of edits side by side: shared beginnings in batches, and one prompt at a time.

    python -m benchmarks.scoring --model pocket --facts 1000 --json build/scoring.json

"packed" is ketools.evaluate with ten neighbours a fact; "plain" (ketools/reference) runs each prompt with each of its two
targets by itself, logits everywhere, for the first `--plain` facts. A prompt counts once, with both its targets: edit
prompt, paraphrases and neighbours of every fact, those that facts have in common too. All in one process, interleaved,
medians; prompts per second, and their ratio.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.command import finish, interleaved, medians, origin, parser, spreads
from benchmarks.shapes import open_model
from ketools.evaluation.edits import KINDS, evaluate
from ketools.facts.fact import Fact
from ketools.facts.reading import facts
from ketools.reference import success


def prompts(some: Sequence[Fact], neighbours: int) -> int:
    """How many prompts are scored for these facts."""
    return sum(1 + len(fact.paraphrases) + len(fact.neighbours[:neighbours]) for fact in some)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run both as asked for and return the figures."""
    model, _ = open_model(args.model, args.device, getattr(torch, args.dtype), args.seed)
    chosen = list(facts(args.source).sample(args.facts, seed=args.seed))
    few, n = chosen[: args.plain], args.neighbours
    work = {
        "packed": lambda: evaluate(model, chosen, neighbours=n),
        "plain": lambda: [success(model, fact, n) for fact in few],
    }
    evaluate(model, few, neighbours=n)  # warm
    costs, results = interleaved(work, args.repeats, model.device, args.quiet)
    seconds, counts = medians(costs), {"packed": prompts(chosen, n), "plain": prompts(few, n)}
    rate = {name: counts[name] / seconds[name] for name in work}
    found = results["packed"][[f"{kind}_success" for kind in KINDS]].to_numpy()[: len(few)]
    return {
        "model": args.model, "facts": len(chosen), "prompts": counts, "prompts_per_second": rate,
        "ratio_packed_over_plain": rate["packed"] / rate["plain"], "spread": spreads(costs),
        "max_difference_success": float(np.nanmax(np.abs(found - np.array(results["plain"], dtype=float)))),
        "provenance": origin(args, model),
    }  # fmt: skip


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    rate = figures["prompts_per_second"]
    return [
        f"packed {rate['packed']:,.0f} prompts a second, plain {rate['plain']:,.0f}: "
        f"{figures['ratio_packed_over_plain']:.1f} times as many",
        f"largest difference of a success rate: {figures['max_difference_success']:.2g}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "", facts=1000)
    made.add_argument("--plain", type=int, default=20, help="facts that the plain loop does")
    made.add_argument("--neighbours", type=int, default=10)
    return finish("scoring", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
