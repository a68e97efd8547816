"""The runs on a real model: whom they edit and ask, targets of all stopping rules at once, and the whole on a tiny model."""

import copy
import gzip
import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import real
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import ENCORE, MPES
from ketools.editing.targets import compute_targets
from ketools.facts.fact import Fact, FactSet
from ketools.io import write_json
from ketools.probing.layers import Suggestion
from ketools.runs.panel import Sizes
from ketools.runs.study import read_study


def test_known_facts_are_asked_and_never_edited(monkeypatch):
    monkeypatch.setattr(real, "HELD", 3)
    monkeypatch.setattr(real, "DEVELOPMENT", 4)
    world = FactSet(Fact(str(i), "r", "{} is in", f"S{i}", "here", "there") for i in range(20))
    parts = real.split(world, {str(i) for i in range(5)})
    assert [len(part) for part in parts] == [11, 3, 4, 2]
    assert sorted(fact.id for part in parts for fact in part) == sorted(world.ids)
    assert {fact.id for part in (parts[1], parts[3]) for fact in part} == {str(i) for i in range(5)}
    assert real.split(world, {str(i) for i in range(5)}) == parts


def test_one_optimisation_gives_the_targets_of_every_patience(tiny_model, tiny_facts):
    statistics = Statistics.compute(tiny_model, ["Ada Lorn was born in Vell"], [1, 2], 100)
    editor = Editor(tiny_model, "memit", statistics=statistics, prefixes=("Ada Lorn was",), layers=[1, 2], steps=8)
    at = real.stopped(tiny_facts, editor)
    for patience in (1, 2, None):
        stopping = ENCORE.stopping if patience is None else MPES(patience)
        if patience is None:
            want = editor.targets(tiny_facts)
        else:
            want = compute_targets(tiny_model, tiny_facts, ("", "Ada Lorn was. "), stopping, editor.hyper)
        got = at(patience)
        assert got.steps.tolist() == want.steps.tolist()
        torch.testing.assert_close(got.z, want.z, rtol=1e-5, atol=1e-6)


def test_plan_and_table_of_unstarted_runs(tmp_path):
    runs = real.plan()
    assert [run.name for run in runs[:3]] == [f"smollm2-{name}-seed0" for name in ("encore", "memit", "alphaedit")]
    assert len({run.name for run in runs}) == len(runs) == 13
    assert real.table(runs, tmp_path).empty
    (tmp_path / "w.txt.gz").write_bytes(gzip.compress(b" \n = A = \n one \n = = b = = \n two \n = C = \n three"))
    assert len(real.articles(tmp_path / "w.txt.gz")) == 2


def test_settings_are_the_best_of_what_was_tried(tiny_gpt2, tiny_facts, tmp_path, monkeypatch):
    picked = Suggestion((1, 2), pd.DataFrame({"layer": [0, 1, 2], "suggested": [False, True, True]}))
    monkeypatch.setattr(real, "suggest", lambda *_, **__: picked)
    monkeypatch.setattr(real, "PUBLISHED", (1,))
    monkeypatch.setattr(real, "LAYERS", (1, 2))
    monkeypatch.setattr(real, "BATCHES", 2)
    second = torch.linspace(0.001, 0.2, 64, dtype=torch.float64).diag()
    statistics, before = Statistics({1: second, 2: second}, 1000), tiny_gpt2.weight(1).clone()
    world = SimpleNamespace(model=tiny_gpt2, aside=FactSet(tiny_facts), known=tiny_facts, statistics=statistics)
    settings = real.develop(world, tmp_path, 1)
    assert set(settings) == {*real.MAIN, *real.OTHERS}
    assert settings["emmet+mpes"]["layers"] == settings["memit"]["layers"][-1:]
    tried = pd.read_csv(tmp_path / "development.csv")
    assert tried.groupby("method").size().to_dict() == {"alphaedit": 12, "encore": 12, "memit": 8}
    for name, part in tried.groupby("method"):
        chosen = part["layers"] == str(settings[name]["layers"])
        for key, value in settings[name].items():
            chosen &= part[key] == (str(value) if key == "layers" else value)
        assert part.loc[chosen, "score"].tolist() == [part["score"].max()]
    assert tried["norm"].max() > 1.5
    assert not tiny_gpt2.edits and torch.equal(tiny_gpt2.weight(1), before)
    for name, each in settings.items():
        Editor(tiny_gpt2, real.composed(name), statistics=statistics, **each)  # they are settings of the method


def items_in(folder):
    for task, (_, choices) in real.TASKS.items():
        rows = [
            {
                "sentence": f"b{k:02}",
                "sentence1": f"c{k:02}",
                "sentence2": "d",
                "question": f"e{k:02}",
                "choices": ["f"] * 4,
            }
            | {"label": k % len(choices)}
            for k in range(12)
        ]
        (folder / f"downstream-{task}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def test_a_run_is_resumed_and_its_table_holds_it(tiny_gpt2, tiny_facts, tmp_path, monkeypatch):
    facts = FactSet(tiny_facts)
    statistics = Statistics.compute(tiny_gpt2, ["Ada Lorn was born in Vell"], [1, 2], 100)
    sizes = Sizes(unedited=2, same_subject=0, per_task=0, documents=1, past_edits=False)
    monkeypatch.setattr(real, "SIZES", sizes)
    made = []

    class World(real.World):
        def __init__(self, options):
            made.append(self)
            self.model, self.pool, self.held = copy.deepcopy(tiny_gpt2), facts[:6], facts[6:]
            self.texts, self.statistics = ["Ada Lorn was born in Vell"], statistics

        def entropy(self):
            return 1.0 * len(self.model.edits)

    monkeypatch.setattr(real, "World", World)
    monkeypatch.setattr(real, "plan", lambda: [real.Planned("m", "encore", 0)])
    drawn = []
    monkeypatch.setattr(real, "write_headline", lambda *given: drawn.append(given))
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "settings.json", {"encore": {"layers": [1, 2], "steps": 2}})
    words = ["--facts", "f", "--text", "t", "--edits", "4", "--batch", "2", "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--results", str(tmp_path / "results"), "--checkpoint-every", "2"]
    for _ in range(2):
        assert real.main(words) == 0
    assert len(made) == 1, "a finished run is left alone"
    frame = pd.read_csv(tmp_path / "results" / "checkpoints.csv")
    assert frame["edits"].tolist() == [0, 2, 4] and frame["load"].tolist() == [0, 2 / 64, 4 / 64]
    assert frame["GE"].iloc[-1] == 2.0 and frame["ES"].notna().tolist() == [True, False, True]

    # At each checkpoint, from the stored edits alone: the weights are the run's, and tasks, facts and edits are scored on them.
    ended = made[0].model
    items_in(tmp_path)
    monkeypatch.setattr(real, "read_facts", lambda name: facts)
    monkeypatch.setattr(real, "PER_TASK", 2)
    monkeypatch.setattr(real, "PAST", 3)
    monkeypatch.setattr(real, "SHOTS", 2)
    for _ in range(2):
        assert real.main([*words, "--states", str(tmp_path)]) == 0
    assert len(made) == 4, "what is measured is left alone"
    unedited, halfway, rebuilt = (world.model for world in made[1:])
    for layer in (1, 2):
        assert torch.equal(unedited.weight(layer), tiny_gpt2.weight(layer))
        assert torch.equal(rebuilt.weight(layer), ended.weight(layer))
        assert not torch.equal(rebuilt.weight(layer), halfway.weight(layer))
    states = pd.read_csv(tmp_path / "out" / "states.csv")
    assert states["method"].tolist() == ["unedited", "encore", "encore"] and states["edits"].tolist() == [0, 2, 4]
    assert states["ES"].notna().tolist() == [False, True, True] and (
        states.filter(like="F1_").notna().all(axis=1).tolist() == [True, False, True]
    )

    # The table takes from them what the run did not measure, and nothing else; the picture is drawn from the table.
    assert real.main([*words, "--pack"]) == 0
    whole = pd.read_csv(tmp_path / "results" / "checkpoints.csv")
    assert whole["ES"].tolist()[1:] == pytest.approx([states["ES"][1], frame["ES"].iloc[-1]])
    assert whole["F1"].tolist()[::2] == pytest.approx(states["F1"].tolist()[::2], abs=1e-5)
    pd.testing.assert_series_equal(whole["norm_ratio"], frame["norm_ratio"])
    ((_, folder, rows),) = drawn[-1:]
    assert folder == tmp_path / "results"
    assert rows(read_study(folder)["m-encore-seed0"])["ES"].tolist()[1:] == whole["ES"].tolist()[1:]


def test_items_show_every_answer_before_they_ask(tmp_path):
    items_in(tmp_path)
    for row in real.items(tmp_path).itertuples():
        solved, asked = row.prompt.rsplit("\n\n", 1)
        assert {choice for choice in row.choices if choice in solved} == set(row.choices) and asked not in solved
