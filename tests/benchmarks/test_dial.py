"""The script of the dial's grid: around the model's own settings, one table, one line for a mistake."""

import pandas as pd
import pytest

from benchmarks import dial
from ketools.editing.methods import ENCORE
from ketools.models.model import load


def test_knobs_stand_around_the_models_own_settings():
    model = load("pocket")
    weights, steps = dial.knobs(model)
    own = ENCORE.settings(model)
    assert weights == pytest.approx([factor * own.lambda_n_relative for factor in (0, 1 / 4, 1, 4)], rel=1e-2)
    assert own.patience in steps and 1 in steps and steps[-1] is None


def test_the_table_is_shown_and_kept_when_asked_for(monkeypatch, tmp_path, capsys):
    asked = []

    def grid(model, facts, **settings):
        asked.append(settings)
        row = dict.fromkeys(("efficacy", "unedited_kept", "same_subject_kept", "norm_ratio", "steps_mean"), 0.5)
        return pd.DataFrame([{"lambda_n": 50.0, "patience": 4} | row])

    kept = []
    monkeypatch.setattr(dial, "grid", grid)
    monkeypatch.setattr(dial, "keep", lambda table, name, about: kept.append((len(table), name, about["edits"])))
    words = ["--edits", "20", "--seed", "3", "--out", str(tmp_path), "--quiet"]
    assert dial.main(words) == 0 and not kept and "50.000" in capsys.readouterr().out
    assert asked[0]["edits"] == 20 and asked[0]["seed"] == 3 and asked[0]["out"] == tmp_path / "pocket"
    assert dial.main([*words, "--write"]) == 0 and kept == [(1, "pocket", 20)]


def test_mistakes_are_one_line(capsys):
    assert dial.main(["--model", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
