"""Made-up records of three methods, for figures and the report: small, deterministic, not measured."""

import pandas as pd

from ketools.runs.store import RunRecord

GROWTH = {"memit": 2.4, "alphaedit": 0.9, "encore": 0.15}
LOSS = {"memit": 0.45, "alphaedit": 0.12, "encore": 0.02}
P_EDITED = {"memit": 0.93, "alphaedit": 0.8, "encore": 0.41}
PROVENANCE = {
    "settings": {"edits": 200, "batch": 50, "checkpoint_every": 100, "seed": 0},
    "model": {"name": "pocket", "fingerprint": "0123abcd", "architecture": "gpt2"},
    "device": "cpu",
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "method": {"type": "Method", "name": "memit", "hyper": {"lambda_n": 10}},
}


def record(growth, loss, p_edited, steps=20.0, edits=200, batch=50, every=100):
    """One run in the shape of ketools.runs.store.RunRecord."""
    batches, norms, checkpoints = [], [], []
    for done in range(0, edits + 1, batch):
        t = done / edits
        for layer in range(4):
            ratio = 1 + growth * t * (1 - 0.1 * layer) if layer in (1, 2) else 1.0
            norms.append({"edits": done, "layer": layer, "edited": layer in (1, 2), "norm": 30 * ratio, "ratio": ratio})
        if done:
            seconds = {
                "seconds": 6.0,
                "seconds_targets": 5.0,
                "seconds_keys": 0.4,
                "seconds_solve": 0.4,
                "seconds_write": 0.2,
            }
            batches.append(
                {"edits": done, "facts": batch, "steps_mean": steps, **{k: v * steps / 20 for k, v in seconds.items()}}
            )
        if done % every == 0:
            scores = {
                name: 1 - part * loss * t if done else None for name, part in (("ES", 0.3), ("PS", 0.4), ("NS", 0.8))
            }
            checkpoints.append(
                {
                    "edits": done,
                    **scores,
                    "unedited_kept": 1 - loss * t,
                    "same_subject_kept": 1 - 1.2 * loss * t,
                    "downstream_kept": 1 - 0.6 * loss * t,
                    "perplexity_ratio": 1 + 40 * loss * loss * t,
                    "p_edited": p_edited if done else None,
                    "p_natural": 0.62,
                }
            )
    tables = {"batches": batches, "norms": norms, "checkpoints": checkpoints}
    return RunRecord(**{k: pd.DataFrame(v) for k, v in tables.items()}, facts=pd.DataFrame(), provenance=PROVENANCE)


def records(methods=tuple(GROWTH), **settings):
    """Method -> record."""
    return {
        m: record(GROWTH[m], LOSS[m], P_EDITED[m], steps=6.2 if m == "encore" else 20.0, **settings) for m in methods
    }
