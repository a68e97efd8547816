"""The command line: what it passes on, what it prints, and that every mistake is one line and an exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
from typer.testing import CliRunner

import ketools
from ketools import KetoolsError, cli
from ketools.editing.methods import methods as known_methods
from ketools.report.page import write_report
from tests.facts.test_facts import GOOD, changed, lines

FIGURES = {
    "norm_ratio": 3.4,
    "unedited_kept": 0.551,
    "efficacy": 0.8,
    "p_edited": 0.93,
    "perplexity_ratio": float("nan"),
}


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(cli.app, [str(arg) for arg in args])


@pytest.fixture
def job(monkeypatch):
    """Stands for ketools.runs.demo.demo: remembers its arguments, then does what `job.does` says."""
    from ketools.runs import demo

    class Job:
        def __init__(self):
            self.got, self.does, self.figures = None, lambda: None, None

        def __call__(self, **arguments):
            self.got = arguments
            self.does()
            figures = self.figures or {name: FIGURES for name in arguments["methods"]}
            return {
                "methods": figures,
                "sentences": ["The norm: it grew."],
                "provenance": {"seed": 0},
                "records": {},
            }

    job = Job()
    monkeypatch.setattr(demo, "demo", job)
    return job


def one_line(result, code):
    """The only line on stderr; the exit code is as said and nothing was a traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ketools: ")
    return line


def test_version_and_help(run):
    assert run("--version").output.strip() == f"ketools {ketools.__version__}"
    listed = run("--help")
    assert listed.exit_code == 0 and all(name in listed.output for name in ("demo", "report", "methods"))


def test_demo_passes_everything_on_and_prints_table_and_sentences(run, job, tmp_path):
    result = run(
        *("demo", "--edits", 200, "--methods", "memit, encore", "--model", "smollm2", "--seed", 3, "--batch", 20),
        *("--out", tmp_path / "o", "--json", tmp_path / "deep" / "f.json", "--checkpoint-every", 40, "--quiet"),
    )
    assert result.exit_code == 0, result.output
    assert callable(job.got.pop("look"))
    assert job.got == {
        "methods": ["memit", "encore"],
        "model": "smollm2",
        "edits": 200,
        "seed": 3,
        "out": tmp_path / "o",
        "batch": 20,
        "checkpoint_every": 40,
        "facts": None,
        "tasks": None,
        "texts": None,
        "progress": False,
        "again": False,
        "report": write_report,
    }
    assert "3.40×" in result.output and "55.1%" in result.output and "The norm: it grew." in result.output
    written = json.loads((tmp_path / "deep" / "f.json").read_text(encoding="utf-8"))
    assert set(written) == {"methods", "sentences", "provenance"}
    assert written["methods"]["memit"]["norm_ratio"] == 3.4
    assert written["methods"]["memit"]["perplexity_ratio"] is None, "JSON has no NaN"


def test_the_defaults_are_the_jobs_own(run, job):
    import inspect

    from ketools.runs.demo import METHODS
    from ketools.runs.run import lifelong

    assert run("demo").exit_code == 0
    assert job.got["methods"] == list(METHODS) and job.got["model"] == "pocket" and job.got["edits"] is None
    assert job.got["batch"] == inspect.signature(lifelong).parameters["batch"].default
    assert job.got["checkpoint_every"] == inspect.signature(lifelong).parameters["checkpoint_every"].default


def test_tables_line_up_show_gaps_and_fit_the_terminal(run, job, tmp_path):
    job.figures = {"memit": FIGURES, "a-long-name": {}}
    rows = run("demo", "--methods", "memit,a-long-name", "--out", tmp_path / "o").output.splitlines()[:14]
    assert len({len(row) for row in rows if row.endswith(("–", "name"))}) == 1
    assert rows[1].split()[-3:] == ["–", "3.40×", "–"]
    for words in (["methods"], ["glossary"]):
        assert max(map(len, run(*words).output.splitlines())) <= 100


@pytest.mark.parametrize(
    "error",
    [
        KetoolsError("no model named 'x';\nthere are: pocket"),
        OSError(errno.ENOSPC, "No space left on device", "/full/disk"),
        PermissionError(errno.EACCES, "Permission denied", "/locked"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, job, error):
    def fail():
        raise error

    job.does = fail
    line = one_line(run("demo"), 2)
    assert (getattr(error, "filename", None) or "there are: pocket") in line


def test_ctrl_c_is_one_line_that_says_how_to_go_on(run, job):
    from ketools.runs.run import Interrupted

    def stop():
        raise Interrupted("stopped; 50 of 1000 edits with memit are kept in build/demo/memit.")

    job.does = stop
    line = one_line(run("demo"), 130)
    assert "50 of 1000 edits" in line and "To resume: " in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["demo", "--edits", "0"], "--edits"),
        (["demo", "--edits", "many"], "--edits"),
        (["demo", "--batch", "-1"], "--batch"),
        (["demo", "--nothing"], "--nothing"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_options_name_the_option(run, args, said):
    result = run(*args)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.output


def test_no_method_and_unknown_methods(run, tmp_path):
    assert "names no method" in one_line(run("demo", "--methods", " , "), 2)
    line = one_line(run("demo", "--methods", "memit,magic", "--out", tmp_path / "o"), 2)
    assert "no method named 'magic'; there are: " in line and "encore" in line
    assert not (tmp_path / "o").exists()


def test_an_unwritable_json_is_found_out_before_the_work(run, job, tmp_path):
    assert "is a folder" in one_line(run("demo", "--json", tmp_path), 2)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert str(tmp_path / "file") in one_line(run("demo", "--json", tmp_path / "file" / "x.json"), 2)
    assert job.got is None


def test_an_unwritable_folder_is_named(run, tmp_path):
    facts = lines(tmp_path / "f.jsonl", GOOD)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    line = one_line(run("demo", "--facts", facts, "--edits", 1, "--out", tmp_path / "file" / "o"), 2)
    assert str(tmp_path / "file" / "o") in line


def test_an_unknown_model_lists_what_there_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    facts = lines(tmp_path / "f.jsonl", GOOD)
    line = one_line(run("demo", "--facts", facts, "--edits", 1, "--model", "huge", "--out", tmp_path / "o"), 2)
    assert "'huge'" in line and "tiny" in line


def test_more_edits_than_facts_names_both_numbers(run, tmp_path):
    facts = lines(tmp_path / "f.jsonl", GOOD, {**GOOD, "case_id": 8})
    line = one_line(run("demo", "--facts", facts, "--edits", 5, "--out", tmp_path / "o"), 2)
    assert "asked for 5 facts, there are 1 with different subjects (2 facts in all)" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(changed(target_new=None)), "line 1: fact '7': field 'requested_rewrite.target_new' is missing"),
        (json.dumps(changed(prompt="born in")), "field 'prompt' has"),
        (json.dumps(changed(subject="")), "field 'subject' is empty"),
        (json.dumps(changed(target_new={"str": "Vell"})), "equals target_true"),
        (json.dumps(GOOD) + "\n{", "line 2: broken JSON"),
        ("", "is empty"),
    ],
)
def test_bad_facts_are_one_line(run, tmp_path, content, said):
    path = tmp_path / "f.jsonl"
    path.write_text(content, encoding="utf-8")
    line = one_line(run("demo", "--facts", path, "--edits", 1, "--out", tmp_path / "o"), 2)
    assert said in line and str(path) in line
    assert not (tmp_path / "o").exists()


def test_facts_in_another_encoding(run, tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes('{"x": "é"}'.encode("latin-1"))
    assert "not UTF-8" in one_line(run("demo", "--facts", path, "--out", tmp_path / "o"), 2)


def test_methods(run, tmp_path):
    listed = run("methods")
    assert listed.exit_code == 0 and all(name in listed.output for name in known_methods()["name"])
    assert run("methods", "--json", tmp_path / "m.json").exit_code == 0
    assert [m["name"] for m in json.loads((tmp_path / "m.json").read_text("utf-8"))] == list(known_methods()["name"])
    assert "no method named 'magic'" in one_line(run("methods", "magic"), 2)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("memit", {"lambda_p_relative"}),
        ("encore", {"lambda_p_relative", "lambda_n_relative", "patience"}),
        ("alphaedit", {"null_threshold_relative", "l2_relative"}),
    ],
)
def test_a_method_is_described_by_the_settings_that_count_for_it(run, name, own):
    lines = run("methods", name).output.partition("settings")[2].splitlines()[1:]
    settings = {line.split(" = ")[0].strip() for line in lines}
    assert "lr" in settings and {s for s in settings if s.endswith("_relative") or s == "patience"} == own


def test_report_of_nothing(run, tmp_path):
    assert "no records of a run here" in one_line(run("report", tmp_path), 2)


def test_a_real_ctrl_c_in_a_process_of_its_own(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from ketools.runs import demo\n"
        "from ketools.__main__ import main\n"
        "def slow(**_):\n"
        "    sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(600)\n"
        "demo.demo = slow\n"
        "sys.argv = ['ketools', 'demo', '--out', 'my results']\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    (line,) = err.strip().splitlines()
    assert line.startswith("ketools: ") and line.endswith("To resume: ketools demo --out 'my results'")
    assert out == ""


def test_the_command_to_resume_is_one_that_the_shell_finds_and_discards_nothing(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/ketools-elsewhere", "demo", "--again"])
    assert cli.resume_command() == "/somewhere/bin/ketools-elsewhere demo"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(run, job, tmp_path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in one_line(run("demo", "--json", tmp_path / "f.json"), 2)
    tmp_path.chmod(0o700)


def test_a_method_is_described_with_the_settings_of_a_model(run):
    told = run("methods", "encore", "--model", "pocket")
    assert told.exit_code == 0 and "settings for pocket:" in told.output and "clamp" in told.output
    for words, why in ((["--model", "pocket"], "without a method"), (["encore", "--model", "nowhere"], "nowhere")):
        wrong = run("methods", *words)
        assert wrong.exit_code == 2 and why in wrong.output + wrong.stderr


def test_a_warning_is_a_line_of_its_own(run, job, tmp_path):
    job.does = lambda: warnings.warn("2 of 8 facts needed no edit", UserWarning, stacklevel=2)
    told = run("demo", "--out", tmp_path, "--yes")
    assert (
        told.exit_code == 0
        and "note: 2 of 8 facts needed no edit\n" in told.stderr
        and "UserWarning" not in told.stderr
    )
