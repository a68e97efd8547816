"""A real model at the paper's load: SmolLM2 (d_mlp 1,536), CounterFact, 1,100 edits = load 0.72, that of 10,000 on Llama 3 8B.

    python -m benchmarks.real --facts counterfact.json.gz --text wikitext.txt.gz     runs, one after another; resumes
    python -m benchmarks.real ... --only memit,seed0 only runs whose name has one of these words
    python -m benchmarks.real ... --list             how far each run is
    python -m benchmarks.real ... --states FOLDER    no run; ask each run's checkpoints what a run doesn't: past edits, own facts, six tasks
    python -m benchmarks.real ... --pack             no run; pack what is finished, write the tables of all and the picture

Settings come first, by a rule that was fixed before any run (`develop`): a small grid, tried on BATCHES batches one after
another of facts that no run edits, of which each method takes what has the largest harmonic mean of ES, PS and retention at
the end; MEMIT chooses between the layer picker's layers and the published ones for all. One batch alone would choose too little
protection: what it costs shows after several. Targets are those of the unedited model, computed once. development.csv and
layers.csv hold the evidence, settings.json the choice, which a later start keeps.

Of the facts that the model completes with the true object (4% of CounterFact), 300 are never edited: retention is measured
on them, the same in all runs. The rest of those, and 400 others, are set aside for the choice of settings (`split`). C is over
all articles but the last twenty, which perplexity is measured on. What is made once (which facts the model knows, C) lies
beside the runs; so does generation entropy (generation.json), before any edit and, in a run's folder, at its end.

`--states FOLDER` rebuilds each run's model from its stored edits at every checkpoint, of unfinished runs too, and asks what would
slow a run down (`states`). FOLDER holds downstream-sst2.jsonl.gz and so on: items of GLUE and MMLU with their own fields,
asked with four solved ones before each, as in the paper.
"""

import argparse
import gzip
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import ended
from benchmarks.headline import write_headline
from benchmarks.lifelong import Planned, chosen, done, listing, packed, run_options, state
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.targets import Targets
from ketools.evaluation.downstream import downstream
from ketools.evaluation.edits import evaluate, harmonic_mean, recall, summary
from ketools.evaluation.generation import continuations, generation_entropy
from ketools.facts.fact import FactSet
from ketools.facts.reading import facts as read_facts
from ketools.io import write_atomic, write_json
from ketools.models.model import EditableModel, load
from ketools.probing.layers import suggest
from ketools.runs.config import composed, settled
from ketools.runs.panel import Panel, Sizes
from ketools.runs.records import Run, arrange, gather
from ketools.runs.resume import restore
from ketools.runs.run import lifelong
from ketools.runs.store import RunRecord, Store
from ketools.runs.tune import stopped

MODEL, MAIN = "smollm2", ("encore", "memit", "alphaedit")
OTHERS = ("sequential-memit", "memit+mpes", "memit+norm", "emmet+mpes")
TOKENS = 100_000  # that C is over
LAYERS, PUBLISHED = range(16), range(4, 9)  # that C is of; of Llama 2 and 3
HELD, DEVELOPMENT = 300, 400  # known facts never edited; unknown ones set aside
ARTICLES, CHARACTERS, OPENINGS = 20, 2000, 50  # of held-out text, of each; of free text, 100 tokens each
BATCHES = 5  # of options.batch facts, that settings are chosen on
PAST, SHOTS, PER_TASK = (
    300,
    4,
    100,
)  # past edits and own facts asked of a state; solved items before an item; items a task
ENTAILED = (" True", " False")
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sst2": ("Review: {sentence}\nSentiment:", (" negative", " positive")),
    "mrpc": ("First: {sentence1}\nSecond: {sentence2}\nDo both say the same?", (" no", " yes")),
    "rte": ("{sentence1}\nIt follows that: {sentence2}", ENTAILED),
    "nli": ("{sentence1}\nIt follows that: {sentence2}", ENTAILED),
    "cola": ("Sentence: {sentence}\nIs it grammatical?", (" no", " yes")),
    "mmlu": ("{question}\nA. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:", (" A", " B", " C", " D")),
}  # fmt: skip
SIZES = Sizes(unedited=HELD, same_subject=0, per_task=0, documents=ARTICLES, past_edits=False)
COLUMNS = (
    "load", "ES", "PS", "NS", "S", "at_edit_ES", "at_edit_PS", "unedited_kept", "perplexity_ratio", "norm_ratio",
    "spectral_ratio", "residual_share", "p_edited", "p_natural",
)  # fmt: skip


def plan() -> list[Planned]:
    """The runs in their order: the methods of the paper's tables on seed 0 first."""
    one = [Planned(MODEL, method, 0) for method in (*MAIN, *OTHERS)]
    return one + [Planned(MODEL, method, seed) for seed in (1, 2) for method in MAIN]


def articles(path: Path) -> list[str]:
    """Wikitext by article; its headings are lines such as " = Title = "."""
    text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8").read()
    return [part for part in re.split(r"\n (?== [^=])", text) if part.strip()]


def split(facts: FactSet, known: set[str]) -> tuple[FactSet, FactSet, FactSet, FactSet]:
    """(to edit, held: known and never edited, development's to edit, development's known), by ids that the model knows."""
    asked = facts.filter(lambda fact: fact.id in known)
    right, other = asked.sample(len(asked), 0, unique_subjects=False), facts.filter(lambda fact: fact.id not in known)
    aside = other.sample(DEVELOPMENT, 1000)
    left = set(aside.ids)
    return other.filter(lambda fact: fact.id not in left), right[:HELD], aside, right[HELD:]


def develop(world: "World", out: Path, batch: int) -> dict[str, dict[str, Any]]:
    """The settings of each method, by the rule above; what was tried is written to `out` on the way."""
    model, facts, rows = world.model, world.aside.sample(BATCHES * batch, 1000), []
    parts, kept_layers = [facts[k : k + batch] for k in range(0, len(facts), batch)], out / "layers.csv"
    if not kept_layers.is_file():
        evidence = suggest(model, world.known, "encore", count=5, trials=3, statistics=world.statistics).evidence
        write_atomic(kept_layers, evidence.round(5).to_csv(index=False))
    picks = pd.read_csv(kept_layers)
    picked, published = picks.loc[picks["suggested"], "layer"].tolist(), [*PUBLISHED]
    whole = {layer: model.weight(layer).norm() for layer in LAYERS}

    @cache
    def found(layers: tuple[int, ...]) -> tuple[list[Callable[[int | None], Targets]], tuple[str, ...]]:
        editor = Editor(model, "memit", statistics=world.statistics, layers=list(layers))
        return [stopped(part, editor) for part in parts], editor.prefixes

    def tried(name: str, layers: list[int], patience: int | None = None, **setting: float) -> float:
        targets, prefixes = found(tuple(layers))
        editor = Editor(model, name, statistics=world.statistics, prefixes=prefixes, layers=layers, **setting)
        taken = [at(patience) for at in targets]
        for part, each in zip(parts, taken, strict=True):
            editor.apply(part, targets=each)
        scores = summary(evaluate(model, facts))
        kept = float(recall(model, world.known)["accuracy"].mean())
        norm = max(float(model.weight(layer).norm() / whole[layer]) for layer in layers)
        while model.edits:
            model.edits.pop()
        score = harmonic_mean([scores["ES"], scores["PS"], kept])
        about = {"layers": str(layers), "patience": patience, **setting, "norm": norm, "kept": kept, "score": score}
        about |= {"steps": float(torch.cat([each.steps for each in taken]).float().mean())}
        about |= {short: scores[short] for short in ("ES", "PS", "NS", "p_new")}
        rows.append({"method": name, **about})
        write_atomic(out / "development.csv", pd.DataFrame(rows).round(4).to_csv(index=False))
        return score

    def best(name: str, **grid: Sequence[Any]) -> dict[str, Any]:
        """Of all combinations that with the largest score."""
        settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        return max(settings, key=lambda setting: tried(name, **setting))

    memit = best("memit", layers=[picked, published], lambda_p_relative=[0.5, 1.5, 5.0, 15.0])
    here = [memit["layers"]]
    encore = best(
        "encore", layers=here, patience=[1, 2, 4], lambda_p_relative=[memit["lambda_p_relative"]],
        lambda_n_relative=[1.0, 10.0, 100.0, 1000.0],
    )  # fmt: skip
    alphaedit = best(
        "alphaedit", layers=here, null_threshold_relative=[0.3, 1.0, 3.0], l2_relative=[300.0, 1000.0, 3000.0, 10000.0]
    )
    mpes = memit | {"patience": encore["patience"]}  # patience and lambda_n are those of ENCORE's parts too
    return {
        "memit": memit, "encore": encore, "alphaedit": alphaedit, "sequential-memit": memit, "memit+mpes": mpes,
        "memit+norm": memit | {"lambda_n_relative": encore["lambda_n_relative"]},
        "emmet+mpes": mpes | {"layers": here[0][-1:]},  # one layer, as published
    }  # fmt: skip


class World:
    """Model, facts, C and texts; what takes minutes is kept in `out`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: EditableModel = load(MODEL)
        facts, path = settled(read_facts(str(options.facts))), options.out / "known.parquet"
        if not path.is_file():
            recall(self.model, facts).to_parquet(path)
        right = pd.read_parquet(path).set_index("id")["accuracy"] == 1
        self.pool, self.held, self.aside, self.known = split(facts, set(right.index[right]))
        parts = articles(options.text)
        self.texts, path = [part[:CHARACTERS] for part in parts[-ARTICLES:]], options.out / "statistics.safetensors"
        if not path.is_file():
            running = [
                line.strip() for part in parts[:-ARTICLES] for line in part.split("\n") if len(line.strip()) > 200
            ]
            Statistics.compute(self.model, running, [*LAYERS], TOKENS, corpus=options.text.name).save(path)
        self.statistics = Statistics.load(path)

    def panel(self, todo: FactSet, seed: int) -> Panel:
        """Taken of the unedited model, of the same facts and texts in all runs."""
        return Panel.take(self.model, self.held, todo, sizes=SIZES, seed=seed, tasks=pd.DataFrame(), texts=self.texts)

    def entropy(self) -> float:
        """Generation entropy of what the model, as it stands, writes about subjects that are never edited."""
        openings = [fact.subject for fact in self.held[:OPENINGS]]
        return generation_entropy(continuations(self.model, openings, 100, top_k=5))


def go(run: Planned, options: argparse.Namespace) -> None:
    """Start or resume one run, and measure what only its end is asked."""
    out = options.out / run.name
    if done(out) and (out / "generation.json").is_file():
        return
    sys.stderr.write(f"{run.name}: {options.edits:,} edits\n")
    world, before = World(options), options.out / "generation.json"
    if not before.is_file():
        write_json(before, {"GE": world.entropy(), "openings": OPENINGS})
    path = options.out / "settings.json"
    if not path.is_file():
        write_json(path, develop(world, options.out, options.batch))
    settings = json.loads(path.read_text(encoding="utf-8"))[run.method]
    todo = world.pool.sample(options.edits, run.seed)
    lifelong(
        world.model, world.pool, composed(run.method), edits=options.edits, batch=options.batch, seed=run.seed,
        checkpoint_every=options.checkpoint_every, out=out, statistics=world.statistics,
        panel=world.panel(todo, run.seed), overrides=settings, progress=not options.quiet,
    )  # fmt: skip
    write_json(out / "generation.json", {"GE": world.entropy(), "openings": OPENINGS})


def items(folder: Path) -> pd.DataFrame:
    """The six tasks as `downstream` takes them: before each item the SHOTS shortest solved ones of its task, each answer in turn."""
    rows = []
    for task, (prompt, choices) in TASKS.items():
        with gzip.open(folder / f"downstream-{task}.jsonl.gz", "rt", encoding="utf-8") as stream:
            read = [json.loads(line) for line in stream]
        answers = [item.get("label", item.get("answer")) for item in read]
        asked = [
            (prompt.format(**item), ["entailment", "not_entailment"].index(at) if isinstance(at, str) else int(at))
            for item, at in zip(read, answers, strict=True)
        ]
        asked.sort(key=lambda item: len(item[0]))
        by_answer = [[item for item in asked if item[1] == at] for at in range(len(choices))]
        solved = [by_answer[k % len(choices)][k // len(choices)] for k in range(SHOTS)]
        shown = "\n\n".join(text + choices[at] for text, at in solved)
        rows += [
            {
                "task": task,
                "split": "test",
                "id": k,
                "prompt": f"{shown}\n\n{text}",
                "choices": list(choices),
                "answer": at,
            }
            for k, (text, at) in enumerate(item for item in asked if item not in solved)
        ]
    return pd.DataFrame(rows)


def states(runs: Sequence[Planned], options: argparse.Namespace) -> pd.DataFrame:
    """A row per state, the unedited model first: method, seed, edits; ES, PS, NS, S, p_edited of PAST of the run's edits so far.

    Before any edit and after the last checkpoint also, since each takes minutes: ours: recall of PAST facts that ketools made for
    this model; F1 of each task and their mean. Kept in states.csv.
    """
    path, tasks = options.out / "states.csv", items(options.states)
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    asked: list[tuple[Planned | None, int, bool]] = [(None, 0, True)]
    for run in runs:
        if state(options.out / run.name)[1]:
            edits = RunRecord.load(options.out / run.name).checkpoints["edits"].astype(int)
            asked += [(run, at, at == edits.max()) for at in edits[edits > 0]]
    for run, at, whole in asked:
        key = {"method": run.method if run else "unedited", "seed": run.seed if run else -1, "edits": at}
        if any(key.items() <= row.items() for row in rows):
            continue
        world, row = World(options), dict(key)
        if run:
            restore(Store(options.out / run.name), world.model, -(-at // options.batch))
            past = world.pool.sample(options.edits, run.seed)[:at]
            past = past.sample(min(PAST, at), 1000)  # by the run's own seed it would be the oldest
            scores = summary(evaluate(world.model, past))
            row |= {name: scores[name] for name in ("ES", "PS", "NS", "S")} | {"p_edited": scores["p_new"]}
        if whole:
            own = read_facts("real").sample(PAST, 0)
            row["ours"] = float(recall(world.model, own)["accuracy"].mean())
            f1 = downstream(world.model, tasks, PER_TASK).set_index("task")["f1"]
            row |= {"F1": float(f1.mean())} | {f"F1_{task}": value for task, value in f1.items()}
        rows.append(row)
        write_atomic(path, pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)


def table(runs: Sequence[Planned], out: Path) -> pd.DataFrame:
    """A row per run and checkpoint, of finished and unfinished runs alike: method, seed, edits, COLUMNS, means over the batches
    so far of steps and at_edit_p_new, seconds a fact, GE; what `states` measured where the run did not.
    ES to p_edited of the unedited model are those of at most `ketools.runs.panel.BEFORE` facts.
    """
    parts = []
    for run in runs:
        if state(out / run.name)[0] == "not started":
            continue
        record = RunRecord.load(out / run.name)
        points, batches = record.checkpoints, record.batches.expanding().mean(numeric_only=True)
        part = points[["edits", *(name for name in COLUMNS if name in points)]].assign(method=run.method, seed=run.seed)
        before = {name: value for name, value in Run("", record).before.items() if name in COLUMNS}
        part.loc[part["edits"] == 0, [*before]] = [*before.values()]
        if len(batches):
            so_far = batches.assign(
                edits=record.batches["edits"], seconds_per_edit=batches["seconds"] / batches["facts"]
            )
            part = part.merge(so_far[["edits", "steps_mean", "seconds_per_edit", "at_edit_p_new"]], "left", "edits")
        for folder, at in ((out, 0), (out / run.name, part["edits"].max())):
            if (entropy := folder / "generation.json").is_file():
                part.loc[part["edits"] == at, "GE"] = json.loads(entropy.read_text(encoding="utf-8"))["GE"]
        parts.append(part)
    if not parts:
        return pd.DataFrame()
    frame, path, place = pd.concat(parts, ignore_index=True), out / "states.csv", ["method", "seed", "edits"]
    if path.is_file():
        more = pd.read_csv(path)
        unedited = more[more["method"] == "unedited"].drop(columns=place)
        more = pd.concat([more, frame.loc[frame["edits"] == 0, place].merge(unedited, "cross")])
        more = frame[place].merge(more, "left", place)  # row by row what `frame` has
        frame = frame.combine_first(more)[[*frame, *more.columns.difference(frame.columns, sort=False)]]
    return frame


def picture(runs: Sequence[Planned], results: Path) -> None:
    """headline.png of the README from the packed runs of MAIN and seed 0, with the efficacy that checkpoints.csv has of them."""
    scores = pd.read_csv(results / "checkpoints.csv").set_index(["method", "seed", "edits"])["ES"]

    def rows(record: RunRecord) -> pd.DataFrame:
        points, run = record.checkpoints, Run("", record)
        at = [(run.method, run.seed, edits) for edits in points["edits"]]
        return points.assign(ES=[scores.get(place, math.nan) if place[-1] else math.nan for place in at])

    names = {run.name for run in runs if run.seed == 0 and run.method in MAIN}
    write_headline(arrange([run for run in gather([results]) if run.name in names]), results, rows)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=Path, required=True, help="CounterFact, in any layout that ketools reads")
    parser.add_argument("--text", type=Path, required=True, help="wikitext, of C and of perplexity; may be .gz")
    parser.add_argument(
        "--states", type=Path, help="folder of the tasks' items; start no run, ask the checkpoints of all"
    )
    # A checkpoint about every 0.18 of load.
    run_options(parser, edits=1100, batch=50, every=275, out="build/real", results="data/real")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what is left, pack, write the table; returns the exit code."""
    options = parse(words)
    return ended(lambda: _made(options))


def _made(options: argparse.Namespace) -> None:
    runs = chosen(plan(), options.only)
    if options.list:
        sys.stdout.write(f"{listing(runs, options.out)}\n{table(runs, options.out).round(3).to_string(index=False)}\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.states:
        sys.stdout.write(f"{states(runs, options).round(3).to_string(index=False)}\n")
        return
    for run in () if options.pack else runs:
        go(run, options)
    for name in packed(runs, options.out, options.results):
        sys.stdout.write(f"{name}\n")
    if len(frame := table(plan(), options.out).round(6)):
        path = options.results / "checkpoints.csv"
        if path.is_file():  # runs that were packed on another machine
            kept, here = pd.read_csv(path), {*zip(frame["method"], frame["seed"], strict=True)}
            other = [run not in here for run in zip(kept["method"], kept["seed"], strict=True)]
            frame = pd.concat([kept[other], frame], ignore_index=True)
        write_atomic(path, frame.to_csv(index=False))
        picture(plan(), options.results)


if __name__ == "__main__":
    raise SystemExit(main())
