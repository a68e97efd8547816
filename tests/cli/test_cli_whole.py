"""The command line on a real, tiny model: stopped with Ctrl-C, continued, reported."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from ketools import cli
from ketools.editing.covariance import Statistics
from ketools.models.model import load
from tests.small_world import small_facts

COMMAND = "demo --model tiny --edits 12 --batch 2 --checkpoint-every 6 --methods memit,encore --out out --json ends.json --quiet"


@pytest.fixture(scope="module")
def home(tmp_path_factory, trained_gpt2, tiny_tokenizer):
    """A data folder with one model and a small world, and a place to work in."""
    root = tmp_path_factory.mktemp("home")
    model, world = root / "data" / "models" / "tiny", root / "data" / "world"
    world.mkdir(parents=True)
    trained_gpt2.save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    facts = small_facts()
    loaded = load(str(model))
    texts = [f"{fact.text} {fact.target_true}." for fact in facts]
    layers = range(loaded.anatomy.n_layer)
    Statistics.compute(loaded, texts, layers, max_tokens=5000).save(model / "covariance.safetensors")
    (world / "heldout.txt").write_text("\n".join(texts), encoding="utf-8")
    (world / "facts.jsonl").write_text("".join(json.dumps(record(fact)) + "\n" for fact in facts), encoding="utf-8")
    items = [
        {"task": "t", "split": "test", "id": i, "prompt": fact.text, "choices": [" Vell", " Dunmark"], "answer": i % 2}
        for i, fact in enumerate(facts)
    ]
    (world / "tasks.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(item) + "\n" for item in items).encode()))
    return root


def record(fact):
    targets = {name: {"str": getattr(fact, name)} for name in ("target_true", "target_new")}
    rewrite = {"prompt": fact.prompt, "subject": fact.subject, "relation_id": fact.relation, **targets}
    prompts = {
        "paraphrase_prompts": fact.paraphrases,
        "neighborhood_prompts": fact.neighbours,
        "trained_prompts": fact.trained,
    }
    return {"case_id": fact.id, "requested_rewrite": rewrite, **prompts}


def start(home, command):
    environment = {**os.environ, "KETOOLS_DATA": str(home / "data"), "OMP_NUM_THREADS": "1"}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ketools.__main__ import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command.split()],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, env=environment,
    )  # fmt: skip


def test_stopped_continued_and_reported(home):
    process = start(home, COMMAND)
    progress = home / "out" / "memit" / "progress.json"
    until = time.monotonic() + 300
    # It is there from the first checkpoint on, before any edit.
    while (
        not (progress.exists() and json.loads(progress.read_text(encoding="utf-8"))["edits"])
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert "Traceback" not in err and last.startswith("ketools: ") and "To resume: " in last
    kept = json.loads(progress.read_text(encoding="utf-8"))
    assert 2 <= kept["edits"] < 12 and not (home / "ends.json").exists()

    process = start(home, COMMAND)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    ends = json.loads((home / "ends.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert list(ends["methods"]) == ["memit", "encore"] and ends["provenance"]["edits"] == 12
    assert f"{ends['methods']['memit']['norm_ratio']:.2f}×" in out
    assert (home / "out" / "report.html").stat().st_size > 1_000_000
    assert not list(home.rglob("*.part")), "a temporary file stayed behind"

    (home / "out" / "report.html").unlink()
    process = start(home, "report out")
    assert "report.html" in process.communicate(timeout=300)[0] and (home / "out" / "report.html").exists()


def test_an_unknown_model_costs_nothing_that_was_finished(home):
    process = start(home, "demo --model huge --facts world --edits 2 --out other --quiet")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "'huge'" in err and "tiny" in err and "Traceback" not in err


def test_who_sits_at_a_terminal_is_asked_before_the_demo_writes(home, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(home / "data"))
    monkeypatch.setattr("ketools.cli.common.at_a_terminal", lambda: True)
    words = f"demo --model tiny --edits 4 --batch 2 --methods memit,alphaedit --out {home / 'asked'}".split()
    refused = CliRunner().invoke(cli.app, words, input="n\n")
    assert refused.exit_code == 2 and "not confirmed, nothing was changed" in refused.output
    assert "d_mlp" in refused.output and "for 4 edits" in refused.output, "what it is and costs is shown first"
    assert all(f"\n  {name}: layers (" in refused.output for name in ("memit", "alphaedit")), "and with what settings"
    assert "lambda_p" not in refused.output.split("alphaedit:")[1].splitlines()[0], "those alone that count for it"
    assert not (home / "asked").exists()
