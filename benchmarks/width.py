"""Does load decide, or the number of edits? `pocket` with three and five times the keys and the same function, edited 10,000 times.

    python -m benchmarks.width              every run, one after another; resumes
    python -m benchmarks.width --only pocket-wider        its runs only; so with a method (encore, memit) or a run
    python -m benchmarks.width --only pocket-wide-memit-seed0 --edits 4000      what is stored of MEMIT
    python -m benchmarks.width --list       how far each run is
    python -m benchmarks.width --pack       no run; pack what is finished into data/width

`pocket-wide` has the 6,400 neurons of GPT2-XL in each MLP, `pocket-wider` the 11,008 of Llama 2 7B: after 10,000 edits they are at
these models' load. Each is made first, by `data/make/widen.py` (5 and 25 CPU minutes, most of them for C). Settings are `pocket`'s, with lambda_p in
proportion to d_mlp (as in `hyperparameters.toml`) and lambda_n relative to the mean eigenvalue of C.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.command import ended
from benchmarks.lifelong import Planned, chosen, listing, packed, run_options
from ketools.editing.covariance import Statistics
from ketools.editing.methods import scaled
from ketools.facts.reading import facts
from ketools.io import data_root
from ketools.models.model import load
from ketools.runs.config import composed
from ketools.runs.run import lifelong

METHODS, WIDTHS = ("encore", "memit"), {"pocket-wide": 6400, "pocket-wider": 11008}


def go(run: Planned, options: argparse.Namespace) -> None:
    """Start or resume one run."""
    folder = options.out / run.model
    if not (folder / "covariance.safetensors").is_file():
        script = data_root() / "make" / "widen.py"
        subprocess.run([sys.executable, script, "--width", str(WIDTHS[run.model]), "--out", folder], check=True)
    method = composed(run.method)
    hyper = scaled(method.name, method.hyper, model_name="pocket")
    assert hyper.lambda_p is not None
    kept = ("layers", "lr", "clamp_norm_factor", "patience", "lambda_n_relative", "l2_relative")
    settings = {name: getattr(hyper, name) for name in kept}
    lifelong(
        load(folder), facts("world"), method, edits=options.edits, batch=options.batch, seed=run.seed, out=options.out / run.name,
        checkpoint_every=options.checkpoint_every, statistics=Statistics.load(folder / "covariance.safetensors"),
        overrides=settings | {"lambda_p_relative": hyper.lambda_p / load("pocket").anatomy.d_mlp},
        progress=not options.quiet,
    )  # fmt: skip


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    run_options(parser, edits=10_000, batch=100, every=1000, out="build/width", results="data/width")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is left, then pack; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    runs = chosen([Planned(name, method, 0) for method in METHODS for name in WIDTHS], options.only)
    if options.list:
        sys.stdout.write(f"{listing(runs, options.out)}\n")
        return
    for run in () if options.pack else runs:
        go(run, options)
    for name in packed(runs, options.out, options.results):
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    raise SystemExit(main())
