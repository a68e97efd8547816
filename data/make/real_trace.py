"""Where SmolLM2 recalls facts: a causal trace, averaged over facts, that notebook 02 draws beside pocket's.

    python data/make/real_trace.py [--model smollm2] [--facts 48] [--out data/real]       one thread, a few minutes

Restored are the residual stream at the subject's last token and at the prompt's last token, what a window of MLPs adds at the
first and a window of attentions at the second; as a control the stream at every other token, in every tenth layer. trace.csv:
a row per kind, role of the token and layer, the mean indirect effect (gain in the answer's probability) over facts with its
95% bootstrap interval over facts. trace.json: how it was made, and the answer's mean probability, clean and corrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import ketools as ke
from ketools.facts.fact import Fact
from ketools.io import write_atomic, write_json
from ketools.models.model import EditableModel
from ketools.probing.tracing import average, trace
from ketools.runs.records import provenance

SEED = 0


def traced(model: EditableModel, facts: Sequence[Fact]) -> pd.DataFrame:
    """A row per fact, kind, position and layer, as of `trace`."""
    subject = trace(model, facts, ("hidden", "mlp"), at="subject_last", seed=SEED)
    end = trace(model, facts, ("hidden", "attention"), at="last", seed=SEED)
    others = trace(model, facts, "hidden", layers=range(4, model.anatomy.n_layer, 10), seed=SEED)
    others = others[~others["role"].isin(["before the subject", "last of the subject", "last token"])]
    parts = [part.astype({"kind": str, "role": str}) for part in (subject, end, others)]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {name: subject.attrs[name] for name in ("noise", "samples", "window")}
    return frame


def write(model: EditableModel, frame: pd.DataFrame, out: Path) -> None:
    """trace.csv and trace.json."""
    write_atomic(out / "trace.csv", average(frame).round(4).to_csv(index=False, lineterminator="\n"))
    each = frame.drop_duplicates("fact")
    probabilities = {name: round(float(each[name].mean()), 4) for name in ("p_clean", "p_corrupted")}
    settings = {"facts": len(each), **frame.attrs, **probabilities}
    write_json(out / "trace.json", settings | {"provenance": provenance(model, SEED)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("data/real"))
    chosen = parser.parse_args()
    model = ke.load(chosen.model)
    write(model, traced(model, ke.facts("real").sample(chosen.facts, seed=SEED)), chosen.out)


if __name__ == "__main__":
    main()
