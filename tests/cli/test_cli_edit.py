"""`ketools inspect`, `edit` and `stats` on a tiny model in a folder: what they write, ask, refuse, and go on with."""

import csv
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ketools import Edit, cli, evaluate, load
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import FT, MEMIT
from ketools.runs.run import advice, as_one
from ketools.runs.store import write_sealed
from tests.cli.test_cli import one_line
from tests.conftest import SENTENCES
from tests.small_world import small_facts

SETTINGS = {"steps": 8, "prefix_count": 1, "lr": 1.0, "lambda_p": 1.0, "lambda_n": 0.01}
QUICK = (*(part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")), "--layers", "0,1")


@pytest.fixture(scope="module")
def home(tmp_path_factory, trained_gpt2, tiny_tokenizer):
    """A folder with a model, facts as CSV, and running text."""
    root = tmp_path_factory.mktemp("home")
    trained_gpt2.save_pretrained(root / "model")
    tiny_tokenizer.save_pretrained(root / "model")
    with (root / "facts.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "relation", "prompt", "subject", "target_true", "target_new"])
        for f in small_facts()[::2][:6]:
            rows.writerow([f.id, f.relation, f.prompt, f.subject, f.target_true, f.target_new])
    texts = [f"{a} {b}" for a in SENTENCES for b in SENTENCES] * 2
    (root / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    return root


@pytest.fixture
def run(home, monkeypatch, tmp_path):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    return lambda *args, **more: CliRunner().invoke(cli.app, [str(arg) for arg in args], **more)


def edit_command(home, out, *more):
    return ("edit", "--model", home / "model", "--facts", home / "facts.csv", "--out", out, "--text",
            home / "text.txt", "--batch", 2, "--method", "encore", "--quiet", *QUICK, *more)  # fmt: skip


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory):
    """A job done once, for the tests that look at what it wrote."""
    out = tmp_path_factory.mktemp("finished") / "out"
    command = edit_command(home, out, "--yes", "--export", "--json", out / "figures.json")
    result = CliRunner().invoke(cli.app, [str(arg) for arg in command])
    assert result.exit_code == 0, result.output
    return out, result


def test_help_names_the_commands(run):
    listed = run("--help").output
    assert all(name in listed for name in ("inspect", "edit", "stats", "data", "demo"))


def test_edit_writes_edit_report_figures_and_model(home, finished):
    out, result = finished
    report = pd.read_parquet(out / "facts.parquet")
    assert report["id"].tolist() == [f.id for f in small_facts()[::2][:6]]
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert figures["facts"] == 6 and figures["p_new_after"] == pytest.approx(report["after_p_new"].mean())
    assert "top answer for" in result.output and str(out / "edit.safetensors") in result.output
    model = load(home / "model")
    edit = Edit.load(out / "edit.safetensors")
    assert edit.record["method"] == "encore" and edit.record["batches"] == 3 and sorted(edit.layers) == [0, 1]
    assert edit.record["facts"] == report["id"].tolist() and edit.record["hyper"]["steps"] == 8
    facts = small_facts()[::2][:6]
    assert np.allclose(evaluate(model, facts)["p_new"], report["before_p_new"], rtol=1e-4)
    edit.apply_to(model)
    assert np.allclose(evaluate(model, facts)["p_new"], report["after_p_new"], rtol=1e-2)
    assert not np.allclose(report["after_p_new"], report["before_p_new"], rtol=0.1)
    exported = AutoModelForCausalLM.from_pretrained(out / "model")
    ids = torch.tensor([model.tokenizer("Ada Lorn was born in")["input_ids"]])
    assert torch.allclose(exported(ids).logits, model.model(ids).logits, atol=1e-4)
    assert not list(out.rglob("*.part"))


def test_edit_is_what_the_editor_does(home, finished):
    out, _ = finished
    model = load(home / "model")
    editor = Editor(
        model, "encore", statistics=Statistics.load(out / "statistics.safetensors"), layers=[0, 1], **SETTINGS
    )
    facts = small_facts()[::2][:6]
    edits = [editor.apply(facts[i : i + 2]) for i in (0, 2, 4)]
    whole, kept = as_one(edits), Edit.load(out / "edit.safetensors")
    for i in (0, 1):
        assert torch.equal(whole.layers[i][0], kept.layers[i][0]) and torch.equal(whole.layers[i][1], kept.layers[i][1])
    bits = model.weight(1).clone()
    while model.edits:
        editor.undo()
    whole.apply_to(model)
    assert torch.allclose(model.weight(1), bits, atol=1e-6)


def test_a_job_that_was_stopped_goes_on_to_the_same_edit(home, finished, run, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    apply = Editor.apply

    def stopped(self, facts, progress=None):
        calls.append(len(facts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return apply(self, facts, progress)

    monkeypatch.setattr(Editor, "apply", stopped)
    line = one_line(run(*edit_command(home, out, "--yes")), 130)
    assert "4 of 6 edits" in line and "To resume: " in line
    assert not (out / "edit.safetensors").exists()
    calls[:] = [0] * 5  # counts on without stopping again
    assert run(*edit_command(home, out, "--yes")).exit_code == 0
    assert len(calls) == 6, "one batch was left"
    ours, whole = (Edit.load(folder / "edit.safetensors") for folder in (out, finished[0]))
    for i in (0, 1):
        assert torch.equal(ours.layers[i][1], whole.layers[i][1]) and torch.equal(ours.layers[i][0], whole.layers[i][0])
    line = one_line(run(*edit_command(home, out, "--yes", "--seed", 7)), 2)
    assert "holds a run with seed" in line


def test_stopped_before_the_first_batch(home, run, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Editor, "apply", stopped)
    assert "0 of 6 edits" in one_line(run(*edit_command(home, tmp_path / "o", "--yes")), 130)


def test_the_question(home, run, tmp_path):
    for answer in ("n\n", ""):
        result = run(*edit_command(home, tmp_path / "o"), input=answer)
        assert result.exit_code == 2 and "Edit 6 facts into" in result.output
        assert "not confirmed, nothing was changed" in result.stderr
        assert not (tmp_path / "o" / "run.json").exists() and not (tmp_path / "o" / "statistics.safetensors").exists()


def test_checks_come_with_yes_too(home, run, tmp_path):
    bad = tmp_path / "bad.csv"
    lines = (home / "facts.csv").read_text(encoding="utf-8").splitlines()
    bad.write_text("\n".join([*lines[:3], lines[1].replace("born-0", "again")]) + "\n", encoding="utf-8")
    command = edit_command(home, tmp_path / "o", "--yes", "--batch", 50)
    result = run(*(bad if arg == home / "facts.csv" else arg for arg in command))
    assert result.exit_code == 2 and "same edit" in result.stderr and "nothing was changed" in result.stderr
    assert "problem: " in result.output and not (tmp_path / "o" / "run.json").exists()


def test_methods_without_covariance_and_what_to_give_for_the_others(home, run, tmp_path):
    base = ("edit", "--model", home / "model", "--facts", home / "facts.csv", "--limit", 1, "--yes", "--quiet")
    line = one_line(run(*base, "--out", tmp_path / "a"), 2)
    assert "--text FILE" in line and "--statistics FILE" in line
    result = run(*base, "--out", tmp_path / "b", "--method", "ft", "--layers", "1", "--set", "ft_steps=2")
    assert result.exit_code == 0, result.output
    assert Edit.load(tmp_path / "b" / "edit.safetensors").record["method"] == "ft"
    assert len(pd.read_parquet(tmp_path / "b" / "facts.parquet")) == 1


def test_mistakes_of_edit(home, run, tmp_path):
    base = edit_command(home, tmp_path / "o", "--yes")
    for more, said in (
        (("--method", "magic"), "no method named 'magic'"),
        (("--layers", "1,x"), "--layers '1,x'"),
        (("--layers", "1,9"), "layers 0 to 3"),
        (("--set", "speed=3"), "no setting named 'speed'"),
        (("--set", "steps"), "expected name=value"),
        (("--dtype", "int8"), "--dtype 'int8'"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--statistics", "x.safetensors"), "give one"),
        (("--model", tmp_path / "nowhere"), "no model named"),
        (("--facts", tmp_path / "nowhere.csv"), "nowhere.csv"),
        (("--text", tmp_path / "nowhere.txt"), "no text"),
    ):
        result = run(*base, *more)
        assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.output, (
            more,
            result.stderr,
        )
        assert not (tmp_path / "o" / "run.json").exists()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "file" in one_line(run(*edit_command(home, tmp_path / "file" / "o", "--yes")), 2)


def test_an_edit_that_falls_short_says_where_and_what_to_turn(home, run, tmp_path):
    held = run(*edit_command(home, tmp_path / "a", "--yes", "--set", "lambda_p=1e9", "--set", "steps=25"))
    assert held.exit_code == 0 and "note: " in held.output and "too constrained" in held.output


@pytest.mark.parametrize(
    ("how", "said", "reached", "expected"),
    [
        (
            MEMIT,
            [0, 0, 1],
            [0.01, 0.02, 0.3],
            "33%.*0.11.*Raise lr",
        ),
        (MEMIT, [0, 0, 1], [0.6, 0.5, 0.7], "too constrained.*Lower lambda_p"),
        (FT, [0, 0, 0], [0.6, 0.5, 0.7], "0% of the new.*take more steps.*ketools methods ft"),
        (MEMIT, [0, 1, 1], [0.01, 0.5, 0.7], None),
    ],
)
def test_advice(how, said, reached, expected):
    told = advice(Edit({}, {"p_target": reached}), pd.DataFrame({"after_efficacy_accuracy": said}), how)
    assert told is None if expected is None else re.search(expected, told)


def test_the_advice_for_subjects_that_are_whole_prompts():
    report = pd.DataFrame(
        {"after_efficacy_accuracy": [0, 0], "prompt": ["Who is it?", "Bo is"], "subject": ["Who is it", "Bo is"]}
    )
    told = advice(Edit({}, {"p_target": [0.9, 0.9]}), report, MEMIT)
    assert "2 of 2 facts is the whole prompt" in told and "lambda_p" not in told


def test_again_clears_only_what_edit_wrote(home, finished, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    assert "model exists already" in one_line(run(*edit_command(home, out, "--yes", "--export")), 2)
    (out / "mine.txt").write_text("x", encoding="utf-8")
    result = run(*edit_command(home, out, "--yes", "--again", "--limit", 1))
    assert result.exit_code == 0, result.output
    assert (out / "mine.txt").exists() and not (out / "model").exists()
    assert len(pd.read_parquet(out / "facts.parquet")) == 1
    (out / "run.json").write_text('{"settings": {}}', encoding="utf-8")
    assert "run.json" in one_line(run(*edit_command(home, out, "--yes", "--again")), 2)
    write_sealed(out / "run.json", {"settings": {"kind": "run"}})
    assert "another command" in one_line(run(*edit_command(home, out, "--yes", "--again")), 2)
    assert (out / "facts.parquet").exists()


def test_inspect(home, run, tmp_path):
    result = run("inspect", home / "model", home / "facts.csv", "--json", tmp_path / "i.json", "--batch", 2)
    assert result.exit_code == 0, result.output
    assert "transformer.h.1.mlp.c_proj" in result.output and "encore" in result.output and "]*" in result.output
    written = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))
    assert written["layers"] and written["costs"] and written["problems"] == []
    alone = run("inspect", home / "model", "--method", "memit", "--layers", "2", "--set", "steps=5")
    assert alone.exit_code == 0 and "as given" in alone.output and "alphaedit" not in alone.output


def test_inspect_of_what_cannot_be_edited(home, run, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(
        "id,relation,prompt,subject,target_true,target_new\n1,r,{} lives in,Vell,harp," + "Oran Bay " * 30,
        encoding="utf-8",
    )
    result = run("inspect", home / "model", bad)
    assert result.exit_code == 2 and "tokens, more than 32" in result.output and "Traceback" not in result.output
    assert "no model named" in one_line(run("inspect", tmp_path / "gone"), 2)
    assert "is a folder" in one_line(run("inspect", home / "model", "--json", tmp_path), 2)


def test_stats(home, run, tmp_path):
    out = tmp_path / "c.safetensors"
    base = ("stats", home / "model", "--out", out, "--quiet")
    result = run(*base, "--text", home / "text.txt", "--layers", "1,3", "--tokens", 600)
    assert result.exit_code == 0 and str(out) in result.output, result.output
    found = Statistics.load(out)
    assert sorted(found.layers) == [1, 3] and found.tokens == 600 and found.provenance["corpus"] == "text.txt"
    assert not list(tmp_path.glob("*.part"))
    edited = run(
        "edit", "--model", home / "model", "--facts", home / "facts.csv", "--out", tmp_path / "o", "--limit", 1,
        "--statistics", out, "--yes", "--quiet", *QUICK[:-2], "--layers", "1",
    )  # fmt: skip
    assert edited.exit_code == 0, edited.output
    line = one_line(
        run("edit", "--model", home / "model", "--facts", home / "facts.csv", "--out", tmp_path / "p", "--statistics",
            out, "--yes", "--quiet", "--layers", "2"), 2
    )  # fmt: skip
    assert "the statistics hold layers [1, 3], not 2" in line and not (tmp_path / "p" / "run.json").exists()
    for more, said in (
        ((), "either --text"),
        (("--text", "x", "--npz", "1=x"), "either --text"),
        (("--npz", "x.npz"), "LAYER=FILE.npz"),
        (("--text", home / "text.txt", "--layers", "7"), "layers 0 to 3"),
    ):
        assert said in one_line(run(*base, *more), 2)


def test_stats_stopped_goes_on(home, run, tmp_path, monkeypatch):
    from ketools.editing import covariance

    monkeypatch.setattr(covariance, "_TOKENS_AT_ONCE", 40)
    add, calls = covariance._add_keys, []

    def stopped(*args, **named):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return add(*args, **named)

    monkeypatch.setattr(covariance, "_add_keys", stopped)
    out = tmp_path / "c.safetensors"
    base = (
        "stats",
        home / "model",
        "--out",
        out,
        "--quiet",
        "--text",
        home / "text.txt",
        "--layers",
        "1",
        "--every",
        50,
    )
    line = one_line(run(*base), 130)
    assert "c.safetensors.part" in line and "To resume: " in line and not out.exists()
    assert run(*base).exit_code == 0
    first = Statistics.load(out)
    out.unlink()
    assert run(*base).exit_code == 0
    assert torch.equal(first.layers[1], Statistics.load(out).layers[1])


def test_stats_imports_published_moments(home, run, tmp_path):
    keys = np.random.default_rng(0).normal(size=(64, 300)).astype(np.float32)
    np.savez(tmp_path / "l1.npz", **{"mom2.mom2": keys @ keys.T, "mom2.count": 300})
    out = tmp_path / "c.safetensors"
    assert run("stats", home / "model", "--npz", f"1={tmp_path / 'l1.npz'}", "--out", out).exit_code == 0
    assert Statistics.load(out).provenance["imported"]["1"]["file"] == "l1.npz"
