"""Target optimisation side by side: the plain loop that published code runs, a plain batch, and the replay engine.

    python -m benchmarks.targets --model pocket --facts 100 --json build/targets.json

(a) plain: one fact at a time, whole sequences through the whole model, logits everywhere (ketools/reference);
(b) batched: the same, 16 facts at once;
(c) replay: what the package does;
(d) replay with one refinement taken away at a time: what each is worth.

All in one process, interleaved, `--repeats` times, medians; ratios against (c). `ratio_plain_over_replay` and the
agreement of z and steps compare (a) with (c) on the same facts. The share of the FLOP bound is the time that the needed
products (live suffix tokens in the layers above the edit, forward and backward with respect to the states, head at
the read positions, no padding) would take at the measured rate of a large matrix product, over the time taken.
`flops_plain_over_needed` is what the ratio would be if both ran at that rate; `needed_in_*` where the needed products lie
(beginnings of prompts, layers up to the edited one, layers above it, head); `padding_share` that of the places that
replay computes. Where the processor has matrix units, float32 models run replay once more with its layers in bfloat16, and
say what that does to z. Replay with
all its steps, as MEMIT takes them, says what MPES is worth (`seconds_saved_by_mpes`, a share of those seconds).
"""

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.command import Work, finish, interleaved, medians, origin, parser, spreads
from benchmarks.measure import Cost, matmul_rate
from benchmarks.shapes import open_model
from ketools.editing import targets as engine
from ketools.editing.keys import FactRows, contexts_of, fact_rows, generate_prefixes
from ketools.editing.methods import MPES, FixedSteps, Hyper, method
from ketools.editing.targets import Targets, compute_targets
from ketools.facts.fact import Fact
from ketools.facts.reading import facts
from ketools.models import replay
from ketools.models.model import EditableModel
from ketools.reference.targets import Target, plain_target, plain_targets

REFINEMENTS = (
    "frozen prefixes", "the top MLP where it is read alone", "leaving when done", "buckets by length",
)  # fmt: skip
ROUGH, ALL_STEPS = "replay in bfloat16", "replay with all steps"
SAID = (
    "flops_plain_over_needed", "max_relative_error_z", "same_steps_share", "mean_steps", "padding_share",
    "flop_bound_share", "needed_in_beginnings", "needed_in_below", "needed_in_above", "needed_in_head", "bfloat16_max_relative_error_z", "bfloat16_same_steps_share", "seconds_saved_by_mpes",
    "mean_steps_without_mpes",
)  # fmt: skip


def needed_flops(model: EditableModel, rows: Sequence[FactRows], steps: Sequence[int], layer: int) -> dict[str, float]:
    """FLOPs that target optimisation cannot do without, given the updates each fact took (attention's products left out), by part.

    A pass forward costs 2 a weight and token, its backward with respect to the states as much again. Every different
    beginning of a prompt counts once, forward only, and so do the layers up to `layer`; of the top layer's MLP only
    what is read counts.
    """
    below, above, mlp, head = _weights(model, layer)
    flat = [row for fact in rows for row in fact.contexts]
    begun = {row.ids[: i + 1] for row in flat for i in range(row.subject_last)}
    begun |= {fact.kl[: i + 1] for fact in rows if not fact.shares_kl for i in range(len(fact.kl) - 1)}
    parts = {"beginnings": 2.0 * (below + above - mlp) * len(begun), "below": 0.0, "above": 0.0, "head": 0.0}
    for fact, taken in zip(rows, steps, strict=True):
        extra = 0 if fact.shares_kl else 1
        suffix = sum(len(row.ids) - row.subject_last for row in fact.contexts) + extra
        asked = sum(len(row.target_ids) for row in fact.contexts) + 1
        places = {(c, p) for c, row in enumerate(fact.contexts) for p in row.target_positions}
        places |= {(-1, 0)} if extra else {(0, fact.contexts[0].subject_last)}
        parts["below"] += 2 * below * suffix
        parts["above"] += (4 * taken + 2) * (above * suffix - mlp * (suffix - len(places)))
        parts["head"] += (4 * taken + 2) * head * asked
    return parts


def has_matrix_units(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker than in float32: on accelerators, and processors with AMX or AVX-512 BF16."""
    return device.type != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


def plain_flops(model: EditableModel, rows: Sequence[FactRows], steps: Sequence[int], layer: int) -> float:
    """FLOPs of the plain loop's products, counted alike: over `needed_flops`, the ratio of the two at equal rates.

    All rows, padded to the longest, through all layers and the head, the prompts through the head once more; backwards
    as far as the edited layer.
    """
    below, above, _, head = _weights(model, layer)
    total = 0.0
    for fact, taken in zip(rows, steps, strict=True):
        longest, n = max(len(row.ids) for row in fact.contexts), len(fact.contexts)
        heads = head * (2 * n + 1)
        forward, backward = (below + above) * (n + 1) + heads, above * (n + 1) + heads
        total += 2 * longest * ((taken + 1) * forward + taken * backward)
    return total


def _weights(model: EditableModel, layer: int) -> tuple[int, int, int, int]:
    # Of the layers up to `layer`, those above, the top layer's MLP, and the head.
    n, path = model.anatomy.n_layer, model.anatomy.mlp
    size = [sum(p.numel() for p in model.layer(i).parameters() if p.dim() == 2) for i in range(n)]
    mlp = 0 if path is None or layer == n - 1 else model.layer(n - 1).get_submodule(path)
    inside = sum(p.numel() for p in mlp.parameters() if p.dim() == 2) if mlp else 0
    return sum(size[: layer + 1]), sum(size[layer + 1 :]), inside, model.head.weight.numel()


@contextlib.contextmanager
def without(what: str, model: EditableModel) -> Iterator[None]:
    """The engine with one refinement taken away."""
    with contextlib.ExitStack() as stack:
        if what == "frozen prefixes":
            # Whole prompts in every pass, as models with a recurrent state need; the layers up to the edited one stay spared.
            stack.enter_context(patch.object(model, "replays", False))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", UserWarning)  # which says just that
        elif what == "the top MLP where it is read alone":
            stack.enter_context(patch.object(replay, "only", lambda *_: contextlib.nullcontext()))
        elif what == "leaving when done":
            # Finished facts stay until the slowest is done: their results are noted, their rows computed on.
            stack.enter_context(patch.dict(engine._EVERY, {kind: 10**9 for kind in ("cpu", "cuda", "mps")}))
        elif what == "buckets by length":
            stack.enter_context(patch.object(engine, "_PADDING", 1.0))
            stack.enter_context(patch.object(engine, "sorted", lambda items, key: list(items), create=True))
        yield


def variants(
    model: EditableModel, chosen: Sequence[Fact], contexts: Sequence[str], hyper: Hyper, stopping: MPES
) -> dict[str, Work]:
    """The computations to compare, by name; each returns its targets."""

    def replayed(**changed: Any) -> Targets:
        return compute_targets(model, chosen, contexts, stopping, replace(hyper, **changed))

    def lacking(what: str) -> Targets:
        with without(what, model):
            return replayed()

    names = ("lr", "steps", "kl_factor", "weight_decay", "clamp_norm_factor", "loss_floor")
    plain: dict[str, Any] = {name: getattr(hyper, name) for name in names}
    plain |= {"layer": hyper.layers[-1], "mpes": hyper.patience if stopping.patience is None else stopping.patience}

    def batched() -> list[Target]:
        batches = (chosen[i : i + 16] for i in range(0, len(chosen), 16))
        return [target for batch in batches for target in plain_targets(model, batch, contexts, **plain)]

    work: dict[str, Work] = {
        "plain": lambda: [plain_target(model, fact, contexts, **plain) for fact in chosen],
        "batched": batched,
        "replay": replayed,
        "replay one fact at a time": lambda: replayed(facts_at_once=1),
        ALL_STEPS: lambda: compute_targets(model, chosen, contexts, FixedSteps(), hyper),
    }
    if model.dtype == torch.float32 and has_matrix_units(model.device):
        work[ROUGH] = lambda: replayed(precision="bfloat16")
    for what in REFINEMENTS:
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
    compute_targets(model, chosen[: min(8, len(chosen))], contexts, stopping, hyper)  # warm
    costs, results = interleaved(work, args.repeats, model.device, args.quiet)
    return _figures(args, model, hyper, fact_rows(model, chosen, contexts), costs, results)


def _figures(
    args: argparse.Namespace,
    model: EditableModel,
    hyper: Hyper,
    rows: Sequence[FactRows],
    costs: dict[str, list[Cost]],
    results: dict[str, Any],
) -> dict[str, Any]:
    middle = medians(costs)
    out: dict[str, Any] = {
        "model": args.model, "facts": args.facts, "seed": args.seed, "layers": list(hyper.layers or ()),
        "seconds_per_edit": {name: s / args.facts for name, s in middle.items()},
        "spread": spreads(costs),
        "peak_mib_above_weights": {name: max(c.peak_mib for c in some) for name, some in costs.items()},
    }  # fmt: skip
    if "replay" in results:
        targets, base = results["replay"], middle["replay"]
        rate = matmul_rate(model.device, model.dtype)
        parts = needed_flops(model, rows, targets.steps.tolist(), hyper.layers[-1])
        flops = sum(parts.values())
        out |= {
            "ratio_over_replay": {name: s / base for name, s in middle.items()},
            "mean_steps": float(targets.steps.float().mean()),
            "padding_share": targets.padding,
            "flop_bound_share": flops / rate / base,
            **{f"needed_in_{part}": value / flops for part, value in parts.items()},
            "matmul_tflops": rate / 1e12,
        }
        if "plain" in results:
            out["ratio_plain_over_replay"] = middle["plain"] / base
            plain = plain_flops(model, rows, [t.steps for t in results["plain"]], hyper.layers[-1])
            out["flops_plain_over_needed"] = plain / flops
            out |= agreement(results["plain"], targets)
        if ALL_STEPS in results:
            out["seconds_saved_by_mpes"] = 1 - base / middle[ALL_STEPS]
            out["mean_steps_without_mpes"] = float(results[ALL_STEPS].steps.float().mean())
        if ROUGH in results:
            exact = [Target(z, z, int(n), 0.0, 0.0) for z, n in zip(targets.z, targets.steps, strict=True)]
            out |= {f"bfloat16_{name}": value for name, value in agreement(exact, results[ROUGH]).items()}
    out["provenance"] = origin(args, model) | {"stopping": f"MPES({args.patience})"}
    return out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--patience", type=int, default=1)
    made.add_argument("--steps", type=int, default=None, help="forward passes at most, instead of the model's setting")
    made.add_argument("--only", default="", help="variants, with commas")
    return made.parse_args(arguments)


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = []
    for name, seconds in figures["seconds_per_edit"].items():
        ratio = figures.get("ratio_over_replay", {}).get(name, float("nan"))
        peak = figures["peak_mib_above_weights"][name]
        lines.append(f"{name:40} {seconds:9.4f} s/edit {ratio:7.2f} x replay {peak:9.0f} MiB")
    if ROUGH not in figures["seconds_per_edit"]:
        lines.append(f"{ROUGH:40} skipped: not asked for, or the processor has no matrix units")
    return lines + [f"{name:40} {figures[name]:9.3g}" for name in SAID if name in figures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON file; returns the exit code."""
    return finish("targets", parse(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
