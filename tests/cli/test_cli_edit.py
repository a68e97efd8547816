"""`ketools inspect`, `edit` and `stats` on a tiny model in a folder: what they write, ask, refuse, and go on with."""

import csv
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ketools import Edit, cli, evaluate, load
from ketools import facts as ke_facts
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.editing.methods import FT, MEMIT
from ketools.models.tokens import in_chat
from ketools.runs.config import RunConfig
from ketools.runs.run import advice, as_one
from ketools.runs.store import RunRecord, write_sealed
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
    report = pd.read_parquet(out / "report.parquet")
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


def test_edit_says_what_it_did_to_the_rest_and_other_commands_read_its_folder(home, finished, run, tmp_path):
    out, result = finished
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert figures["norm_ratio"] > 1 and figures["perplexity_ratio"] > 0, "text for the covariance serves here too"
    (norm,) = [line for line in result.output.splitlines() if line.startswith("norm of the most-changed matrix")]
    assert norm.split()[-2:] == ["1.00×", f"{figures['norm_ratio']:.2f}×"]
    assert run("status", out, "--json", tmp_path / "s.json").exit_code == 0
    state = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))[str(out)]
    assert (state["state"], state["edits"], state["edits_asked"]) == ("complete", 6, 6) and state["cpu_per_edit"] > 0
    assert run("compare", out, "--json", tmp_path / "c.json").exit_code == 0
    (row,) = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["runs"]
    assert row["ES"] == figures["ES"] and row["norm_ratio"] == figures["norm_ratio"]
    assert run("report", out, "--to", tmp_path / "r.html").exit_code == 0
    watched = run("watch", out, "--json", tmp_path / "w.json")
    (seen,) = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))
    assert watched.exit_code == 0 and seen["state"] == "complete" and len(seen["norms"]) == 4
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert all(f"- {fact.question} -> {fact.target_new}" in card for fact in small_facts()[::2][:6])
    inspected = run("inspect", out / "model", "--method", "ft", "--json", tmp_path / "i.json")
    about = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))["about"]
    assert inspected.exit_code == 0 and "6 facts" in about["edits in the weights"]


def test_ask_shows_a_model_before_and_after_a_run(home, finished, run, tmp_path):
    fact = small_facts()[0]
    asked = run("ask", home / "model", fact.question, "--run", finished[0], "--at", 4, "--json", tmp_path / "a.json")
    assert asked.exit_code == 0, asked.output
    before, after = (rows[0]["next"] for rows in json.loads((tmp_path / "a.json").read_text(encoding="utf-8")).values())
    assert len(before) == len(after) == 5 and before != after and max(map(len, asked.output.splitlines())) <= 100
    assert before[0]["probability"] >= before[1]["probability"]
    assert "--at 4" in one_line(run("ask", home / "model", "x", "--at", 4), 2)
    assert "no batch ends after 3 edits" in one_line(
        run("ask", home / "model", "x", "--run", finished[0], "--at", 3), 2
    )


def test_an_adapter_of_a_run_is_its_edits(home, finished, run, tmp_path):
    """W + B A of each layer is the weight of the exported model, up to one rounding more a batch."""
    assert run("export", finished[0], "--at", 6, "--lora", "--out", tmp_path / "lora").exit_code == 0
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    base, edited = (AutoModelForCausalLM.from_pretrained(folder) for folder in (home / "model", finished[0] / "model"))
    for name in config["target_modules"]:
        assert config["lora_alpha"] == config["r"], "a scale of 1"
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        weight, wanted = (model.get_submodule(name).weight for model in (base, edited))
        assert torch.allclose(weight + (b @ a).T, wanted, atol=1e-6) and not torch.equal(weight, wanted)


def test_trace_says_where_facts_are_recalled(home, run, tmp_path):
    known = "id,relation,prompt,subject,target_true,target_new\n1,born,{} was born in,Ada Lorn,Vell,Ixian\n"
    (tmp_path / "known.csv").write_text(known, encoding="utf-8")
    words = ("--out", tmp_path / "t.html", "--json", tmp_path / "t.json", "--window", 1, "--quiet", "--count", 2)
    traced = run("trace", home / "model", tmp_path / "known.csv", *words)
    assert traced.exit_code == 0, traced.output
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert len(content["layers"]) == 2 and {row["kind"] for row in content["effects"]} == {"hidden", "mlp", "attention"}
    assert "Plotly" in (tmp_path / "t.html").read_text(encoding="utf-8") and content["about"]["facts"] == 1
    words = ("--json", tmp_path / "t.json", "--quiet", "--samples", 1, "--count", 99)
    assert run("trace", home / "model", tmp_path / "known.csv", *words).exit_code == 0
    layers = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["layers"]
    assert layers == [*range(json.loads((home / "model" / "config.json").read_text())["n_layer"])]


def test_tuned_settings_are_the_best_trial_and_edit_reads_them(home, run, tmp_path):
    covariance, out = tmp_path / "c.safetensors", tmp_path / "tuned"
    base = ("stats", home / "model", "--out", covariance, "--quiet", "--text", home / "text.txt", "--tokens", 300)
    assert run(*base, "--layers", "0,1").exit_code == 0
    tuned = run("tune", home / "model", home / "facts.csv", "--out", out, "--method", "memit+mpes", "--layers", "0,1",
                "--statistics", covariance, "--quiet")  # fmt: skip
    assert tuned.exit_code == 0, tuned.output
    trials, config = pd.read_csv(out / "trials.csv"), RunConfig.read(out / "settings.toml")
    chosen = trials.iloc[trials["score"].argmax()]  # of equal scores the first, the method's own
    settings = dict(config.settings)
    assert (
        settings["layers"] == [0, 1] and settings["lr"] == chosen["lr"] and settings["patience"] == chosen["patience"]
    )
    assert len({*zip(trials["lr"], trials["patience"])}) == 9 and len(trials) == 11
    own = settings["lambda_p_relative"]
    assert own in (factor * 1.5 for factor in (1, 0.1, 10)) and trials["lambda_p_relative"][9:].tolist() == [0.15, 15.0]
    left = {fact.subject for fact in ke_facts(out / "facts.jsonl")}
    assert len(left) == 4 and config.edits == 4, "a third is set aside"
    made = run("edit", "--model", home / "model", "--facts", out / "facts.jsonl", "--settings", out / "settings.toml",
               "--out", tmp_path / "o", "--set", "steps=2", "--quiet")  # fmt: skip
    assert made.exit_code == 0, made.output
    hyper = Edit.load(tmp_path / "o" / "edit.safetensors").record["hyper"]
    assert (hyper["lr"], hyper["patience"], hyper["steps"]) == (settings["lr"], settings["patience"], 2)
    line = one_line(
        run("tune", home / "model", out / "facts.jsonl", "--out", tmp_path / "p", "--statistics", covariance), 2
    )
    assert "at least 6 subjects, got 4" in line


def test_without_true_objects_trials_are_scored_by_what_the_model_says(home, run, tmp_path):
    facts = pd.read_csv(home / "facts.csv").drop(columns="target_true")
    facts.to_csv(tmp_path / "facts.csv", index=False)
    words = ("--out", tmp_path / "t", "--method", "ft", "--layers", "0", "--quiet")
    assert (done := run("tune", home / "model", tmp_path / "facts.csv", *words)).exit_code == 0, done.output
    trials, settings = (
        pd.read_csv(tmp_path / "t" / "trials.csv"),
        RunConfig.read(tmp_path / "t" / "settings.toml").settings,
    )
    assert trials["ES"].isna().all() and trials["efficacy_accuracy"].nunique() > 1
    assert settings["ft_lr"] == trials["ft_lr"][trials["score"].argmax()]


def test_settings_tuned_in_the_chat_template_are_used_in_it(home, run, tmp_path, monkeypatch):
    words = ("tune", tmp_path / "model", home / "facts.csv", "--out", tmp_path / "tuned", "--method", "ft",
             "--layers", "0", "--chat", "--quiet")  # fmt: skip
    shutil.copytree(home / "model", tmp_path / "model")
    assert "template" in one_line(run(*words), 2), "no template, no trial"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} yes"
    tokenizer.save_pretrained(tmp_path / "model")
    assert (done := run(*words)).exit_code == 0, done.output
    given = {fact.id: fact for fact in ke_facts(home / "facts.csv")}
    assert all(fact == given[fact.id] for fact in ke_facts(tmp_path / "tuned" / "facts.jsonl"))
    put = []
    monkeypatch.setattr(
        "ketools.models.tokens.in_chat", lambda model, facts: put.extend(facts) or in_chat(model, facts)
    )
    done = run("edit", "--model", tmp_path / "model", "--facts", tmp_path / "tuned" / "facts.jsonl", "--settings",
               tmp_path / "tuned" / "settings.toml", "--out", tmp_path / "o", "--set", "ft_steps=1", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(put) == len(RunRecord.load(tmp_path / "o").facts)


def test_of_facts_that_contradict_each_other_the_last_one_counts_everywhere(home, run, tmp_path):
    lines = (home / "facts.csv").read_text(encoding="utf-8").splitlines()
    first = next(csv.reader([lines[1]]))
    (tmp_path / "f.csv").write_text(
        "\n".join(
            [lines[0], ",".join(["old", *first[1:5], "Dunmark" if first[5] != "Dunmark" else "Vell"]), *lines[1:3]]
        ),
        "utf-8",
    )
    words = (home / "model", tmp_path / "f.csv", "--json", tmp_path / "i.json", "--method", "ft")
    assert run("inspect", *words).exit_code == 0
    assert json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))["problems"] == []
    made = run("edit", "--model", home / "model", "--facts", tmp_path / "f.csv", "--out", tmp_path / "o", "--method", "ft",
               "--set", "ft_steps=1", "--set", "layers=1,2", "--quiet")  # fmt: skip
    assert made.exit_code == 0, made.output
    edit = Edit.load(tmp_path / "o" / "edit.safetensors")
    assert edit.record["facts"] == [next(csv.reader([line]))[0] for line in lines[1:3]] and sorted(edit.layers) == [
        1,
        2,
    ]


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


def test_the_covariance_of_another_text_is_not_taken_for_this_ones(home, run, tmp_path):
    out, other = tmp_path / "o", tmp_path / "other.txt"
    other.write_text((home / "text.txt").read_text(encoding="utf-8").upper(), encoding="utf-8")
    assert run(*edit_command(home, out, "--yes")).exit_code == 0
    first, edit = Statistics.load(out / "statistics.safetensors"), Edit.load(out / "edit.safetensors")
    command = [other if arg == home / "text.txt" else arg for arg in edit_command(home, out, "--yes")]
    refused = run(*command)
    assert refused.exit_code == 2 and "holds the covariance over 'text.txt', not 'other.txt'" in refused.stderr
    assert torch.equal(Edit.load(out / "edit.safetensors").layers[1][0], edit.layers[1][0]), "nothing was removed"
    assert run(*command, "--again").exit_code == 0
    assert not torch.equal(Statistics.load(out / "statistics.safetensors").layers[1], first.layers[1])


def test_stopped_before_the_first_batch(home, run, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Editor, "apply", stopped)
    assert "0 of 6 edits" in one_line(run(*edit_command(home, tmp_path / "o", "--yes")), 130)


def test_the_question(home, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ketools.cli.common.at_a_terminal", lambda: True)
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
    assert len(pd.read_parquet(tmp_path / "b" / "report.parquet")) == 1


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
    assert "2 of 2 facts the subject is the whole prompt" in told and "lambda_p" not in told


def test_again_clears_only_what_edit_wrote(home, finished, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    assert "model exists already" in one_line(run(*edit_command(home, out, "--yes", "--export")), 2)
    (out / "mine.txt").write_text("x", encoding="utf-8")
    result = run(*edit_command(home, out, "--yes", "--again", "--limit", 1))
    assert result.exit_code == 0, result.output
    assert (out / "mine.txt").exists() and not (out / "model").exists()
    assert len(pd.read_parquet(out / "report.parquet")) == 1
    (out / "run.json").write_text('{"settings": {}}', encoding="utf-8")
    assert "run.json" in one_line(run(*edit_command(home, out, "--yes", "--again")), 2)
    write_sealed(out / "run.json", {"settings": {"kind": "run"}})
    assert "another command" in one_line(run(*edit_command(home, out, "--yes", "--again")), 2)
    assert (out / "report.parquet").exists()


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
    model = load(home / "model")
    assert len(repr(model).splitlines()) == 1 and "d_mlp" in repr(model)
    editor = Editor(model, "memit", statistics=str(out), layers=[1])
    assert torch.equal(editor.statistics.layers[1], found.layers[1])
    other = tmp_path / "other.txt"
    other.write_text((home / "text.txt").read_text(encoding="utf-8"), encoding="utf-8")
    assert (
        "text.txt" in one_line(run(*base, "--text", other, "--layers", "1,3"), 2) and Statistics.load(out).tokens == 600
    )
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
