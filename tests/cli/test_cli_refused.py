"""What `ketools run` refuses about facts and folders, through the command line: one line each and exit code 2."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ketools import cli
from ketools.editing.covariance import Statistics
from ketools.models.model import load
from ketools.runs.store import RunRecord
from tests.cli.test_cli import one_line
from tests.cli.test_cli_run import FAST, run  # noqa: F401 - a fixture
from tests.cli.test_cli_whole import home, record  # noqa: F401 - a fixture
from tests.small_world import small_facts

RUN = f"run --model tiny --edits 4 --batch 2 --checkpoint-every 4 {FAST} --quiet --measure spectra=false"
HOLD = """
import sys
from pathlib import Path
from ketools.runs.store import Store
with Store(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def made(home):  # noqa: F811
    """A folder with a run of four edits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KETOOLS_DATA", str(home / "data"))
        ended = CliRunner().invoke(cli.app, [*RUN.split(), "--out", str(home / "made")])
    assert ended.exit_code == 0, ended.output
    return home / "made"


@pytest.fixture
def kept(made, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(made, tmp_path / "kept")


@pytest.fixture
def clashing(tmp_path):
    """A file of forty facts and one before them that says something else than one of them."""
    facts = small_facts()
    first = record(facts[0]) | {"case_id": "before"}
    first["requested_rewrite"] = first["requested_rewrite"] | {"target_new": {"str": "harp"}}
    path = tmp_path / "clashing.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (first, *map(record, facts))), encoding="utf-8")
    return path


def test_facts_that_contradict_each_other_where_that_is_refused(run, clashing, tmp_path):  # noqa: F811
    line = one_line(run(f"{RUN} --conflicts refuse --facts", clashing, "--out", tmp_path / "o"), 2)
    assert "1 facts contradict earlier ones: 'before' and 'born-0'" in line and 'conflicts = "last wins"' in line
    assert not (tmp_path / "o").exists()


def test_where_the_last_wins_it_is_said_once_and_kept(run, clashing, tmp_path):  # noqa: F811
    ended = run(f"{RUN} --facts", clashing, "--out", tmp_path / "o")
    assert ended.exit_code == 0, ended.output
    assert ended.stderr.count("left out") == 1
    assert (
        "note: 1 facts contradict later ones and are left out (the last one wins), first of them 'before'"
        in ended.stderr
    )
    assert "1 facts that contradict later ones were left out before sampling" in ended.stdout
    assert RunRecord.load(tmp_path / "o").provenance["settings"]["left_out"] == 1


def test_a_run_of_another_model(run, home, kept):  # noqa: F811
    other = shutil.copytree(home / "data" / "models" / "tiny", home / "data" / "models" / "other")
    changed = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        changed.transformer.h[3].mlp.c_proj.weight.mul_(1.01)
    changed.save_pretrained(other)
    texts = [f"{fact.text} {fact.target_true}." for fact in small_facts()]
    Statistics.compute(load(str(other)), texts, range(4), max_tokens=5000).save(other / "covariance.safetensors")
    line = one_line(run(f"{RUN.replace('--model tiny', '--model other')} --out", kept), 2)
    assert "holds a run with model = " in line and "another output folder" in line and "--force" not in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--set steps=3", "holds a run with hyper: steps = 2, not 3;"),
        ("--method memit", "holds a run with method: name = "),
        ("--batch 4", "holds a run with batch = 2, not 4"),
        ("--seed 1", "holds a run with seed = 0, not 1;"),
        ("--checkpoint-every 2", "holds a run with checkpoint_every = 4, not 2"),
    ],
)
def test_a_run_of_another_config(run, kept, change, said):  # noqa: F811
    line = one_line(run(f"{RUN} {change} --out", kept), 2)
    assert said in line and "another output folder" in line


def test_a_run_of_another_version(run, kept, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ketools.__version__", "9.9.9")
    line = one_line(run("resume --quiet", kept), 2)
    assert "holds a run with ketools's version = " in line and ", not '9.9.9'" in line and "--force" in line


def test_facts_that_changed_under_their_ids(run, home, kept, monkeypatch, tmp_path):  # noqa: F811
    data = shutil.copytree(home / "data", tmp_path / "data")
    world = data / "world" / "facts.jsonl"
    rows = [json.loads(line) for line in world.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["paraphrase_prompts"] = ["Nobody knows"]
    world.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setenv("KETOOLS_DATA", str(data))
    line = one_line(run("resume --quiet", kept), 2)
    assert "the facts of the run in" in line and "were changed since it began" in line and "--force" in line


@pytest.mark.parametrize("command", [f"{RUN} --out", "resume --quiet"])
def test_a_folder_that_another_process_works_on(run, kept, command):  # noqa: F811
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(kept)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        line = one_line(run(command, kept), 2)
        assert f"another process is working on the run in {kept}; wait for it" in line
    finally:
        holder.communicate("", timeout=60)
    assert run(command, kept).exit_code == 0, "the lock goes with its process"
