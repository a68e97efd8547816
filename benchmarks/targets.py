"""Step 1 side by side: the plain loop that published code runs, a plain batch, and the replay engine.

    python -m benchmarks.targets --model pocket --facts 100 --json build/targets.json

(a) plain: one fact at a time, whole sequences through the whole model, logits everywhere (tests/reference);
(b) batched: the same, 16 facts at once;
(c) replay: what the package does;
(d) replay with one refinement taken away at a time: what each is worth.

All in one process, interleaved, `--repeats` times, medians; ratios against (c). `ratio_plain_over_replay` and the
agreement of z and steps compare (a) with (c) on the same facts. The share of the FLOP bound is the time that the needed
products (live suffix tokens in the layers above the edit, forward and backward with respect to the states, head at
the read positions, no padding) would take at the measured rate of a large matrix product, over the time taken.
"""

import argparse
import contextlib
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from tqdm import tqdm

import ketools
from benchmarks.measure import Cost, matmul_rate, measured
from benchmarks.shapes import open_model
from ketools.editing import descent
from ketools.editing import targets as engine
from ketools.editing.contexts import contexts_of, generate_prefixes
from ketools.editing.methods import MPES, Hyper, method
from ketools.editing.targets import FactRows, Targets, compute_targets, fact_rows
from ketools.errors import KetoolsError
from ketools.facts import Fact, facts
from ketools.files import write_json
from ketools.model import EditableModel
from tests.reference.plain_batch import plain_targets
from tests.reference.plain_targets import plain_target

Work = Callable[[], Any]


def needed_flops(model: EditableModel, rows: Sequence[FactRows], steps: Sequence[int], layer: int) -> float:
    """FLOPs that step 1 cannot do without, given the updates each fact took (attention's products left out).

    A pass forward costs 2 a weight and token, its backward with respect to the states as much again. The prefix pass
    and the layers up to `layer` are run once, forward only.
    """
    size = [sum(p.numel() for p in model.layer(i).parameters() if p.dim() == 2) for i in range(model.anatomy.n_layer)]
    above, below, head = sum(size[layer + 1 :]), sum(size[: layer + 1]), model.head.weight.numel()
    total = 0.0
    for fact, taken in zip(rows, steps, strict=True):
        suffix = sum(len(row.ids) - row.subject_last for row in fact.contexts) + (0 if fact.shares_kl else 1)
        read = sum(len(row.target_ids) for row in fact.contexts) + 1
        whole = sum(len(row.ids) for row in fact.contexts) + (0 if fact.shares_kl else len(fact.kl))
        total += (
            2 * (above + below) * whole
            + 4 * taken * (above * suffix + head * read)
            + 2 * (above * suffix + head * read)
        )
    return total


@contextlib.contextmanager
def without(what: str) -> Iterator[None]:
    """The engine with one refinement taken away."""
    with contextlib.ExitStack() as stack:
        if what == "shared prefixes":
            stack.enter_context(patch.object(descent, "sharing", lambda *_: []))
        elif what == "leaving when done":
            # Finished facts stay until the slowest is done: their results are noted, their rows computed on.
            stack.enter_context(patch.dict(descent._EVERY, {kind: 10**9 for kind in ("cpu", "cuda", "mps")}))
        elif what == "buckets by length":
            stack.enter_context(patch.object(engine, "_PADDING", 1.0))
            stack.enter_context(patch.object(engine, "sorted", lambda items, key: list(items), create=True))
        yield


def variants(
    model: EditableModel, chosen: Sequence[Fact], contexts: Sequence[str], hyper: Hyper, stopping: MPES
) -> dict[str, Work]:
    """The computations to compare, by name; each returns its targets."""

    def replay(**changed: Any) -> Targets:
        return compute_targets(model, chosen, contexts, stopping, replace(hyper, **changed))

    def lacking(what: str) -> Targets:
        with without(what):
            return replay()

    work: dict[str, Work] = {
        "plain": lambda: [plain_target(model, fact, contexts, stopping, hyper) for fact in chosen],
        "batched": lambda: plain_targets(model, chosen, contexts, stopping, hyper),
        "replay": replay,
        "replay, one fact at a time": lambda: replay(facts_at_once=1),
    }
    for what in ("shared prefixes", "leaving when done", "buckets by length"):
        work[f"replay without {what}"] = lambda what=what: lacking(what)
    return work


def agreement(plain: Sequence[Any], replayed: Targets) -> dict[str, float]:
    """Largest relative error of z over the facts, and the share of facts that took the same number of steps."""
    same = [int(a.steps) == int(b) for a, b in zip(plain, replayed.steps, strict=True)]
    errors = [
        float((a.z.cpu() - z).norm() / a.z.cpu().norm()) for a, z, s in zip(plain, replayed.z, same, strict=True) if s
    ]
    return {"max_relative_error_z": max(errors, default=float("nan")), "same_steps_share": sum(same) / len(same)}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run all variants as asked for and return the figures."""
    dtype = getattr(torch, args.dtype)
    model, layers = open_model(args.model, args.device, dtype, args.seed)
    stopping = MPES(args.patience)
    hyper = method("encore").settings(model, **({"layers": layers} if layers else {}))
    if args.steps:
        hyper = replace(hyper, steps=args.steps)
    generator = torch.Generator().manual_seed(args.seed)
    contexts = contexts_of(generate_prefixes(model, hyper.prefix_count, hyper.prefix_tokens, generator))
    chosen = facts(args.source).sample(args.facts, seed=args.seed)
    work = variants(model, chosen, contexts, hyper, stopping)
    if args.only:
        work = {name: work[name] for name in args.only.split(",")}
    costs: dict[str, list[Cost]] = {name: [] for name in work}
    results: dict[str, Any] = {}
    bar = tqdm(total=args.repeats * len(work), disable=args.quiet)
    compute_targets(model, chosen[: min(8, len(chosen))], contexts, stopping, hyper)  # warm
    for _ in range(args.repeats):
        for name, job in work.items():
            bar.set_description(name)
            cost, results[name] = measured(job, model.device)
            costs[name].append(cost)
            bar.update()
    bar.close()
    return _figures(args, model, hyper, fact_rows(model, chosen, contexts), costs, results)


def _figures(
    args: argparse.Namespace,
    model: EditableModel,
    hyper: Hyper,
    rows: Sequence[FactRows],
    costs: dict[str, list[Cost]],
    results: dict[str, Any],
) -> dict[str, Any]:
    middle = {name: statistics.median(c.seconds for c in some) for name, some in costs.items()}
    out: dict[str, Any] = {
        "model": args.model, "facts": args.facts, "seed": args.seed, "layers": list(hyper.layers or ()),
        "seconds_per_edit": {name: s / args.facts for name, s in middle.items()},
        "spread": {name: [min(c.seconds for c in some), max(c.seconds for c in some)] for name, some in costs.items()},
        "peak_mib_above_weights": {name: max(c.peak_mib for c in some) for name, some in costs.items()},
    }  # fmt: skip
    if "replay" in results:
        targets, base = results["replay"], middle["replay"]
        rate = matmul_rate(model.device, model.dtype)
        flops = needed_flops(model, rows, targets.steps.tolist(), hyper.layers[-1])
        out |= {
            "ratio_over_replay": {name: s / base for name, s in middle.items()},
            "mean_steps": float(targets.steps.float().mean()),
            "flop_bound_share": flops / rate / base,
            "matmul_tflops": rate / 1e12,
        }
        if "plain" in results:
            out["ratio_plain_over_replay"] = middle["plain"] / base
            out |= agreement(results["plain"], targets)
    out["provenance"] = {
        "ketools": ketools.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": sys.version.split()[0], "machine": platform.processor() or platform.machine(),
        "device": str(model.device), "dtype": str(model.dtype), "threads": torch.get_num_threads(),
        "repeats": args.repeats, "stopping": f"MPES({args.patience})",
    }  # fmt: skip
    return out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pocket", help="a shape of benchmarks/shapes.py, a pocket model or a folder")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--source", default="world", help="facts: the built-in world, or a file")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--patience", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=None, help="forward passes at most, instead of the model's setting"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="variants, with commas")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON file; returns the exit code."""
    args = parse(arguments)
    try:
        figures = compare(args)
    except KetoolsError as error:
        print(f"targets: {error}", file=sys.stderr)
        return 2
    for name, seconds in figures["seconds_per_edit"].items():
        ratio = figures.get("ratio_over_replay", {}).get(name, float("nan"))
        peak = figures["peak_mib_above_weights"][name]
        print(f"{name:40} {seconds:9.4f} s/edit {ratio:7.2f} x replay {peak:9.0f} MiB")
    for name in ("max_relative_error_z", "same_steps_share", "mean_steps", "flop_bound_share"):
        if name in figures:
            print(f"{name:40} {figures[name]:9.3g}")
    if args.json is not None:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
