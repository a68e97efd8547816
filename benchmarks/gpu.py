"""Long sequences on large shapes: speed and memory of the first and the last edits of ten thousand, random weights.

    python -m benchmarks.gpu --model llama-3-8b --device cuda --dtype bfloat16 --json build/gpu-llama-3-8b.json

Whole batches of ENCORE: targets, keys, solves, write-back. A call stops after `--minutes`; the same command resumes
where it stopped, from the JSON file, which is written after every batch. The edits between the first `--window` and the
last are not made: what they leave is keys to protect, and keys of the same number and size, drawn at random,
cost the same. (So are keys of batches that an earlier call has measured.) Random weights say nothing, so that early
stopping would come by chance: `--steps` passes are the most that a fact takes, and the mean of what was taken is
reported. C is made up too, with eigenvalues over four decades. A call begins with a batch that is not measured and is taken
back: factors are made, libraries load and choose their kernels then.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import finish, origin, parser
from benchmarks.measure import measured
from benchmarks.shapes import open_model
from benchmarks.solver import problem
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import method
from ketools.errors import KetoolsError
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts
from ketools.io import write_json
from ketools.models.model import EditableModel
from ketools.runs.preflight import weight_bytes

_GIB = 2**30


def numbers(edits: int, window: int, batch: int) -> list[int]:
    """The batches to measure, counted from 0: those within the first and the last `window` edits."""
    count, some = edits // batch, max(1, window // batch)
    return sorted({*range(min(some, count)), *range(max(0, count - some), count)})


def make_editor(model: EditableModel, layers: Sequence[int] | None, steps: int, seed: int) -> Editor:
    """ENCORE on `model` with a made-up C, the same for all layers."""
    c, lambda_p, lambda_n = problem(model.anatomy.d_mlp, torch.Generator().manual_seed(seed))
    how = method("encore")
    chosen = tuple(layers or how.settings(model).layers or ())
    known = Statistics(dict.fromkeys(chosen, c), 10 * len(c), {"fingerprint": model.fingerprint})
    settings = {"lambda_p": lambda_p, "lambda_n": lambda_n, "steps": steps}
    return Editor(model, how, statistics=known, layers=chosen, seed=seed, **settings)


def fill(editor: Editor, number: int, batch: int, like: dict[int, float], seed: int) -> None:
    """Keys for as many batches as are missing before batch `number`; `like`: the root mean square of real ones."""
    for layer in editor.layers:
        blocks = editor.state.past.setdefault(layer, [])
        while len(blocks) < number:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + len(blocks))
            block = like[layer] * torch.randn(editor.model.anatomy.d_mlp, batch, generator=generator)
            editor.protection(layer).add(block)
            blocks.append(block)


def one_batch(editor: Editor, chosen: FactSet, number: int) -> dict[str, Any]:
    """Edit `chosen` as batch `number` and tell what it took."""
    cost, edit = measured(lambda: editor.apply(chosen), editor.model.device)
    steps = edit.record["steps"]
    return {
        "batch": number, "facts": len(chosen), "past": number * len(chosen), "seconds": cost.seconds,
        "seconds_per_edit": cost.seconds / len(chosen), "peak_gib_above_held": cost.peak_mib / 1024,
        "mean_steps": sum(steps) / len(steps), "padding": sum(edit.record["padding"]) / len(steps),
        "phases": edit.record["seconds"],
    }  # fmt: skip


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is still missing, as far as the time goes."""
    if args.json is None:
        raise KetoolsError("--json FILE is needed: a stopped call resumes from it")
    start = time.monotonic()
    settings = {n: getattr(args, n) for n in ("model", "dtype", "device", "edits", "window", "facts", "steps", "seed")}
    found = _begun(args, settings)
    todo = [n for n in numbers(args.edits, args.window, args.facts) if n not in {b["batch"] for b in found["batches"]}]
    if todo:
        model, layers = open_model(args.model, args.device, getattr(torch, args.dtype), args.seed)
        editor = make_editor(model, layers, args.steps, args.seed)
        source = facts(args.source)
        about = origin(args, model)
        _check_processor(args, found, about["processor"])
        found |= {"provenance": about, "weights_gib": weight_bytes(model) / _GIB}
        try:
            like = _warm(editor, source.sample(args.facts, seed=args.seed))
            for number in todo:
                if time.monotonic() - start > 60 * args.minutes:
                    break
                fill(editor, number, args.facts, like, args.seed)
                chosen = source.sample(args.facts, seed=args.seed + 1 + number)
                found["batches"].append(one_batch(editor, chosen, number))
                write_json(args.json, found)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"stopped; batches measured: {len(found['batches'])}") from stop
    left = len(numbers(args.edits, args.window, args.facts)) - len(found["batches"])
    return found | {"batches_left": left, "parts": _parts(found["batches"], args)}


def _begun(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    # What an earlier call has measured.
    if not args.json.is_file():
        return {"settings": settings, "batches": []}
    try:
        found = json.loads(args.json.read_text(encoding="utf-8"))
        same = found["settings"] == settings
    except (ValueError, KeyError, TypeError) as error:
        raise KetoolsError(f"{args.json} is no result of this benchmark; name another file, or remove it") from error
    if not same:
        raise KetoolsError(f"{args.json} holds a benchmark with other settings; name another file, or remove it")
    return found


def _check_processor(args: argparse.Namespace, found: dict[str, Any], processor: str) -> None:
    # Seconds of two machines make no median.
    if found["batches"] and (before := found["provenance"]["processor"]) != processor:
        raise KetoolsError(
            f"{args.json} holds batches measured on {before}, and this is {processor}; name another file, or remove it"
        )


def _warm(editor: Editor, chosen: FactSet) -> dict[int, float]:
    # The factors, one batch that is taken back, and from it the size of keys.
    editor.apply(chosen)
    sizes: dict[int, Tensor] = {i: editor.state.past[i][-1] for i in editor.layers}
    like = {i: float(keys.square().mean().sqrt()) for i, keys in sizes.items()}
    editor.undo()
    return like


def _parts(batches: Sequence[dict[str, Any]], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    # Medians over the first and the last batches.
    halves = {
        "first": [b for b in batches if b["past"] < args.window],
        "last": [b for b in batches if b["past"] >= args.edits - args.window],
    }
    names = ("seconds_per_edit", "peak_gib_above_held", "mean_steps")
    return {part: {n: statistics.median(b[n] for b in some) for n in names} for part, some in halves.items() if some}


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [
        f"{part:5} {found['seconds_per_edit']:.4f} s per edit, {found['mean_steps']:.1f} steps, peak "
        f"{found['peak_gib_above_held']:.2f} GiB above what is held between batches"
        for part, found in figures["parts"].items()
    ]
    left = figures["batches_left"]
    return lines + ([f"{left} batches are left; the same command resumes"] if left else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON file; returns the exit code."""
    made = parser(__doc__ or "")
    made.add_argument("--edits", type=int, default=10_000)
    made.add_argument("--window", type=int, default=500, help="so many first and so many last edits are measured")
    made.add_argument("--steps", type=int, default=11, help="forward passes a fact at most; the last makes no update")
    made.add_argument("--minutes", type=float, default=8.0, help="no batch is begun later than this")
    return finish("gpu", made.parse_args(arguments), compare, table)


if __name__ == "__main__":
    raise SystemExit(main())
