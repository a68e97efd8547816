"""The runs on a real model: whom they edit and ask, targets of all stopping rules at once, and the whole on a tiny model."""

import gzip
from types import SimpleNamespace

import pandas as pd
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
    picked = Suggestion((1, 2), pd.DataFrame({"layer": [1, 2]}))
    monkeypatch.setattr(real, "suggest", lambda *_, **__: picked)
    monkeypatch.setattr(real, "BATCH", 3)
    monkeypatch.setattr(real, "PUBLISHED", (1,))
    statistics = Statistics(
        {layer: torch.linspace(0.001, 0.2, 64, dtype=torch.float64).diag() for layer in (1, 2)}, 1000
    )
    world = SimpleNamespace(model=tiny_gpt2, aside=tiny_facts, known=tiny_facts, statistics=statistics)
    settings = real.develop(world, tmp_path)
    assert set(settings) == {*real.MAIN, *real.OTHERS} and settings["emmet+mpes"]["layers"] == [2]
    tried = pd.read_csv(tmp_path / "development.csv")
    assert tried.groupby("method").size().to_dict() == {"alphaedit": 9, "encore": 9, "memit": 7}
    for name, part in tried[tried["layers"] == "(1, 2)"].groupby("method"):
        best = part.loc[part["score"].idxmax()]
        assert all(best[key] == value for key, value in settings[name].items() if key != "layers")
    assert not tiny_gpt2.edits
    for name, each in settings.items():
        Editor(tiny_gpt2, real.composed(name), statistics=statistics, **each)  # they are settings of the method


def test_a_run_is_resumed_and_its_table_holds_it(tiny_gpt2, tiny_facts, tmp_path, monkeypatch):
    facts = FactSet(tiny_facts)
    statistics = Statistics.compute(tiny_gpt2, ["Ada Lorn was born in Vell"], [1, 2], 100)
    sizes = Sizes(unedited=2, same_subject=0, per_task=0, documents=1, past_edits=False)
    monkeypatch.setattr(real, "SIZES", sizes)
    made = []

    class World(real.World):
        def __init__(self, options):
            made.append(self)
            self.model, self.pool, self.held = tiny_gpt2, facts[:6], facts[6:]
            self.texts, self.statistics = ["Ada Lorn was born in Vell"], statistics

        def entropy(self):
            return 1.0 * len(self.model.edits)

    monkeypatch.setattr(real, "World", World)
    monkeypatch.setattr(real, "plan", lambda: [real.Planned("m", "encore", 0)])
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "settings.json", {"encore": {"layers": [1, 2], "steps": 2}})
    words = ["--facts", "f", "--text", "t", "--edits", "4", "--batch", "2", "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--results", str(tmp_path / "results")]
    for _ in range(2):
        assert real.main(words) == 0
    assert len(made) == 1, "a finished run is left alone"
    frame = pd.read_csv(tmp_path / "results" / "checkpoints.csv")
    assert frame["edits"].tolist() == [0, 4] and frame["load"].tolist() == [0, 4 / 64]
    assert frame["GE"].iloc[-1] == 2.0 and frame["ES"].notna().tolist() == [False, True]
