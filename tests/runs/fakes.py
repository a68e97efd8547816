"""Made-up runs as folders that can be read like real ones: small, deterministic, not measured."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from ketools.editing.methods import method as named_method
from ketools.runs.panel import Sizes
from ketools.runs.records import plain
from ketools.runs.store import RunRecord, Store
from ketools.runs.study import write_study

GROWTH = {"memit": 2.4, "alphaedit": 0.9, "encore": 0.15}
LOSS = {"memit": 0.45, "alphaedit": 0.12, "encore": 0.02}


def settings(method, seed=0, edits=200, batch=50, model="pocket", **changes):
    """What a run was asked for."""
    return {
        "model": f"{model}-fingerprint",
        "method": plain(named_method(method)),
        "hyper": {"layers": [1, 2], "lambda_n": 10.0},
        "facts": hashlib.sha256(f"{seed} {edits}".encode()).hexdigest(),
        "edits": edits,
        "batch": batch,
        "checkpoint_every": 100,
        "seed": seed,
        "sizes": plain(Sizes()),
    } | changes


def about(method="encore", seed=0, model="pocket", d_mlp=512, started="2026-01-01T00:00:00+00:00", **changes):
    """run.json."""
    asked = settings(method, seed, model=model, **changes)
    return {
        "settings": asked,
        "model": {"name": model, "fingerprint": f"{model}-fingerprint", "architecture": "gpt2", "d_mlp": d_mlp},
        "method": asked["method"],
        "seed": seed,
        "device": "cpu",
        "versions": {"python": "3.11"},
        "started": started,
    }


def tables(method="encore", seed=0, edits=200, batch=50, every=100, done=None, growth=None, loss=None, residual=True):
    """The tables of a run: what is lost grows evenly, a little more with each seed."""
    base = getattr(method, "name", method)
    growth = (GROWTH.get(base, 0.5) if growth is None else growth) * (1 + 0.1 * seed)
    loss = (LOSS.get(base, 0.3) if loss is None else loss) * (1 + 0.1 * seed)
    rng = np.random.default_rng(seed)
    norms, batches, checkpoints, shares = [], [], [], []
    for number, so_far in enumerate(range(0, (done or edits) + 1, batch)):
        t = so_far / edits
        for layer in range(4):
            ratio = 1 + growth * t * (1 - 0.1 * layer) if layer in (1, 2) else 1.0
            row = {"batch": number, "edits": so_far, "layer": layer, "edited": layer in (1, 2), "ratio": ratio}
            norms.append(row | {"norm": 8.0 * ratio, "update_norm": 0.1 if number and layer in (1, 2) else None})
        if number:
            took = {
                "seconds": 6.0,
                "seconds_targets": 5.0,
                "seconds_keys": 0.5,
                "seconds_solve": 0.3,
                "seconds_write": 0.2,
                "seconds_scoring": 0.1,
                "known": 0,
            }
            batches.append(
                {
                    "batch": number,
                    "edits": so_far,
                    "facts": batch,
                    "steps_mean": 10.0 + seed,
                    "p_target_mean": 0.4 + loss,
                    **took,
                }
            )
        if so_far % every == 0:
            checkpoints.append(_checkpoint(so_far, t, loss, growth))
            shares += [
                {"edits": so_far, "layer": layer, "kind": kind, "edited": kind == "mlp" and layer in (1, 2),
                 "share": 1 / 8 * (1 + growth * t * (kind == "mlp" and layer in (1, 2)))}
                for layer in range(4) for kind in ("attention", "mlp")
            ]  # fmt: skip
    facts = _facts(done or edits, edits, batch, loss, rng, seed)
    frames = {"norms": norms, "batches": batches, "checkpoints": checkpoints, "residual": shares if residual else []}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()} | {"facts": facts}


def _checkpoint(so_far, t, loss, growth):
    score = {name: 1 - part * loss * t if so_far else None for name, part in (("ES", 0.3), ("PS", 0.4), ("NS", 0.8))}
    then = {f"at_edit_{name}": 0.99 if so_far else None for name in ("ES", "PS", "NS")}
    return {
        "edits": so_far,
        "load": so_far / 512,  # of `about`
        **score,
        **then,
        "S": 1 - 0.5 * loss * t if so_far else None,
        "efficacy_accuracy": 1 - 0.5 * loss * t if so_far else None,
        "unedited_kept": 1 - loss * t,
        "same_subject_kept": 1 - 1.2 * loss * t if so_far else None,
        "downstream_f1": 0.9 * (1 - 0.6 * loss * t),
        "downstream_kept": 1 - 0.6 * loss * t,
        "f1_rte": 0.9,
        "perplexity": 7.0 * (1 + 40 * loss * loss * t),
        "perplexity_ratio": 1 + 40 * loss * loss * t,
        "norm_ratio": 1 + 0.9 * growth * t,
        "p_edited": 0.8 if so_far else None,
        "p_natural": 0.62,
        "seconds": 1.0,
    }


def _facts(done, edits, batch, loss, rng, seed):
    held = (rng.random(done) > 0.5 * loss).astype(float)
    frame = pd.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(done)],
            "batch": [i // batch + 1 for i in range(done)],
            "relation": "birthplace",
            "subject": [f"Ada {i}" for i in range(done)],
            "steps": 10,
            "at_edit_p_new": 0.9,
            "at_edit_efficacy_success": 1.0,
            "at_edit_efficacy_accuracy": 1.0,
        }
    )
    if done < edits:
        return frame
    return frame.assign(end_p_new=0.9 * held, end_efficacy_success=held, end_efficacy_accuracy=held)


def fake_record(method="encore", seed=0, *, changes=None, **shape) -> RunRecord:
    """A record in memory."""
    known = {name: shape[name] for name in ("edits", "batch") if name in shape}
    return RunRecord(**tables(method, seed, **shape), provenance=about(method, seed, **known, **(changes or {})))


def fake_run(out: Path, method="encore", seed=0, *, changes=None, **shape) -> Path:
    """The same as a run's folder, all of it written before the first batch."""
    record, store = fake_record(method, seed, changes=changes, **shape), Store(out)
    store.write_about(record.provenance | {"id": "made up"})
    store.start({name: getattr(record, name) for name in ("batches", "norms", "facts")}, panel={})
    store.put_checkpoint(0, {name: getattr(record, name) for name in ("checkpoints", "residual")})
    return out


def fake_study(folder: Path, *runs: Path) -> Path:
    """A study of these runs, by the names of their folders."""
    return write_study({run.name: RunRecord.load(run) for run in runs}, folder)
