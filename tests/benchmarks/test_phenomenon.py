"""The table over seeds: what it says, and that seeds that are done are not run again."""

import json
from pathlib import Path
from types import SimpleNamespace

from benchmarks import phenomenon


def result(seed: int, edits: int = 20) -> dict:
    about = {"edits": edits, "batch": 50, "model": {"fingerprint": "f" * 64}, "versions": {}, "seed": seed}
    about["methods"] = {name: {"settings": {"lr": 0.5}} for name in ("memit", "encore")}
    figures = {"norm_ratio": 2.0 + seed, "norm_still_growing": seed > 0, "unedited_kept": 0.5, "downstream_kept": None}
    return {"methods": {"memit": figures, "encore": figures}, "sentences": [], "provenance": about}


def test_cells():
    assert phenomenon.cell([1.0, 2.0], "times") == "1.50 (1.00 to 2.00)"
    assert phenomenon.cell([0.95], "percent") == "95.0%"
    assert phenomenon.cell([True, False, True], "count") == "2 of 3"
    assert phenomenon.cell([None, None], "percent") == "-"


def test_table_and_resume(tmp_path, monkeypatch, capsys):
    ran = []

    def demo(methods, model, edits, seed, out, **_):
        ran.append(seed)
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "demo.json").write_text(json.dumps(result(seed, edits)))
        return result(seed, edits) | {"records": {}}

    monkeypatch.setattr(phenomenon, "demo", demo)
    model = SimpleNamespace(fingerprint="f" * 64)
    now = {"lr": 0.5}
    monkeypatch.setattr(phenomenon, "load", lambda name: model)
    monkeypatch.setattr(phenomenon, "settings", lambda name, of: now)
    words = ["--seeds", "0,1", "--methods", "memit,encore", "--edits", "20", "--out", str(tmp_path), "--model", "tiny"]
    assert phenomenon.main(words) == 0
    assert ran == [0, 1]
    assert phenomenon.main([*words[:1], "0,1,2", *words[2:]]) == 0
    assert ran == [0, 1, 2]
    table = (tmp_path / "tiny.md").read_text()
    assert "| Frobenius norm of the most-changed edited matrix / original | 3.00 (2.00 to 4.00) |" in table
    assert "| still growing over the last quarter (seeds) | 2 of 3 |" in table
    assert "| measure | memit | encore |" in table
    assert set(json.loads((tmp_path / "tiny.json").read_text())["seeds"]) == {"0", "1", "2"}
    assert table in capsys.readouterr().out
    assert phenomenon.main([*words[:4], "--edits", "10", *words[6:]]) == 0  # other settings: not the stored ones
    assert ran == [0, 1, 2, 0, 1]
    now["lr"] = 0.1  # a method's settings have changed since
    assert phenomenon.main([*words[:1], "2", *words[2:]]) == 0 and ran[5:] == [2]
    now["lr"], model.fingerprint = 0.5, "e" * 64  # and so has the model
    assert phenomenon.main([*words[:1], "2", *words[2:]]) == 0 and ran[6:] == [2]


def test_mistakes_are_one_line(tmp_path, capsys):
    assert phenomenon.main(["--model", "nowhere", "--out", str(tmp_path), "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err
