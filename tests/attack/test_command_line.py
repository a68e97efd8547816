"""Every kind of bad input through the real command line: one line, exit code 2, no traceback, nothing changed.

The cases are products: every field of every format with every wrong type, every file with every kind of damage, every
option with every impossible value. A third of them, drawn by their order, is in `make test`.
"""

import gzip
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
from dataclasses import fields

import pytest
import torch
from typer.testing import CliRunner

from ketools import cli
from ketools.editing.methods import Hyper
from ketools.io import write_tensors
from ketools.runs.store import read_sealed, write_sealed
from tests.cli.test_cli_whole import home  # noqa: F401 - a fixture
from tests.runs.fakes import fake_run, fake_study

FIELD_VALUES = {
    "null": None, "true": True, "number": 7, "fraction": 0.5, "negative": -3, "huge": 10**400, "text": "x", "empty": "",
    "list": [], "list of lists": [[1]], "object": {}, "deep": [[[[[[{"a": [None]}]]]]]],
}  # fmt: skip
BYTES = {
    "empty": b"",
    "zeros": bytes(64),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a pickle": pickle.dumps({"a": 1}),
    "deep": b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 6000 + b"}",
    "text": b"not what was expected\n" * 9,
    "a list": b"[1, 2]",
    "null": b"null",
    "surrogate": b'{"a": "\\ud800"}',
    "NaN": b'{"a": NaN}',
    "half a gzip": gzip.compress(b'{"a": 1}' * 99)[:-9],
    "a lying length": struct.pack("<Q", 10**15) + b"{}",
    "a lying header": struct.pack("<Q", 84)
    + json.dumps({"a": {"dtype": "F32", "shape": [9**9], "data_offsets": [0, 8]}}).ljust(84).encode()
    + bytes(8),
}
FILES = ("a folder", "a pipe", "a loop", "missing", "a device")


def put(path, kind):
    """Put something of this kind in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    if kind in BYTES:
        path.write_bytes(BYTES[kind])
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a loop":
        path.symlink_to(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")


class Case:
    """What is typed, and what is to come of it: `prepare(folder, home)` returns the arguments."""

    def __init__(self, name, prepare, codes=(2,)):
        self.name, self.prepare, self.codes = name, prepare, codes


CASES = []


def cases(group, codes=(2,)):
    """Collect the (name, prepare) pairs that the function yields."""

    def collect(make):
        CASES.extend(Case(f"{group}: {name}", prepare, codes) for name, prepare in make())
        return make

    return collect


def fact(**changes):
    """A fact in the plain layout."""
    return {"id": "1", "relation": "born", "prompt": "{} was born in", "subject": "Ada Lorn", "target_true": "Vell",
            "target_new": "Oran Bay", "paraphrases": ["The home of Ada Lorn is"], "neighbours": ["Bo Tarn was born in"]} | changes  # fmt: skip


RUN = ("run", "--model", "tiny", "--edits", "2", "--batch", "2", "--quiet")
SETTINGS = [field.name for field in fields(Hyper)]
SET_VALUES = ("", "text", "null", "NaN", "-1", "true", "[]", '["a","b"]', "[0.9,0.1]", "[-1,0.5]", "[NaN,1]", "{}", "1" * 400,
              "1e999", "[" * 5000, '"\\ud800"', "0x10")  # fmt: skip


@cases("facts, a field", codes=(0, 2))  # empty lists are a fact's right; ids may be numbers
def _():
    for name, kind in itertools.product(fact(), FIELD_VALUES):

        def prepare(folder, _, name=name, kind=kind):
            (folder / "f.jsonl").write_text(json.dumps(fact(**{name: FIELD_VALUES[kind]})))
            return "data", "check", folder / "f.jsonl"

        yield f"{name} is {kind}", prepare


@cases("facts, a field of CounterFact", codes=(0, 2))
def _():
    rewrite = {"prompt": "{} was born in", "subject": "Ada Lorn", "relation_id": "born", "target_true": {"str": "Vell"},
               "target_new": {"str": "Oran Bay"}}  # fmt: skip
    whole = {"case_id": 1, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    for name, kind in itertools.product(
        (*whole, *(f"requested_rewrite.{n}" for n in rewrite), "requested_rewrite.target_new.str"), FIELD_VALUES
    ):

        def prepare(folder, _, name=name, kind=kind):
            record = json.loads(json.dumps(whole))
            place, parts = record, name.split(".")
            for part in parts[:-1]:
                place = place[part]
            place[parts[-1]] = FIELD_VALUES[kind]
            (folder / "f.json").write_text(json.dumps([record]))
            return "data", "check", folder / "f.json"

        yield f"{name} is {kind}", prepare


@cases("a file of facts")
def _():
    for suffix, kind in itertools.product(
        (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".xlsx"), (*BYTES, *FILES)
    ):

        def prepare(folder, _, suffix=suffix, kind=kind):
            put(folder / f"f{suffix}", kind)
            return "data", "check", folder / f"f{suffix}"

        yield f"{suffix} is {kind}", prepare


@cases("a config")
def _():
    for kind in (*BYTES, *FILES):

        def prepare(folder, _, kind=kind):
            put(folder / "c.toml", kind)
            return "run", folder / "c.toml"

        yield kind, prepare
    keys = ("model", "facts", "method", "edits", "batch", "seed", "out", "checkpoint_every", "consolidate_every",
            "conflicts", "statistics", "device", "dtype", "settings", "measures")  # fmt: skip
    values = ("1979-05-27", "[1]", "{a = 1}", "true", "-1", "nan", "1e400", '"\\u0000"', "0.5")
    for key, value in itertools.product(keys, values):

        def prepare(folder, _, key=key, value=value):
            (folder / "c.toml").write_text(
                f"{key} = {value}\n"
                + ("" if key == "out" else f'out = "{folder / "o"}"\n')
                + ("" if key == "model" else 'model = "none"\n')
            )
            return "run", folder / "c.toml", "--quiet", "--yes"

        yield f"{key} = {value}", prepare


ALLOWED = {("loss_floor", "-1"), ("null_threshold", "1e999"), ("null_threshold_relative", "1e999")}


@cases("a setting")
def _():
    for name, value in itertools.product(SETTINGS, SET_VALUES):
        may_be_none = "None" in str(Hyper.__dataclass_fields__[name].type)
        if (name, value) not in ALLOWED and not (value == "null" and may_be_none):
            words = ("inspect", "tiny", "--method", "encore", "--set", f"{name}={value}")
            yield f"{name}={value[:12]}", lambda folder, _, words=words: words


@cases("an option")
def _():
    numbers = {"run": ("--edits", "--batch", "--seed", "--checkpoint-every"), "demo": ("--edits", "--batch", "--seed"),
               "edit": ("--limit", "--batch", "--seed"), "stats": ("--tokens", "--length", "--every")}  # fmt: skip
    for command, options in numbers.items():
        for option, value in itertools.product(options, ("x", "", "0.5", "-1", "9" * 400, "nan", "0")):
            if (option, value) == ("--seed", "0"):
                continue
            base = {"run": ("--out", "{o}"), "demo": ("--out", "{o}", "--model", "none"), "stats": ("none", "--out", "{o}"),
                    "edit": ("--model", "none", "--facts", "none.jsonl", "--out", "{o}")}[command]  # fmt: skip
            yield f"{command} {option} {value[:9]}", lambda folder, _, c=command, b=base, o=option, v=value: (
                c, *(x.format(o=folder / "o") for x in b), o, v, *(("--model", "none") if c == "run" else ()))  # fmt: skip
    for option, value in itertools.product(
        ("--layers", "--device", "--dtype", "--method", "--facts"),
        ("", "x", "-1", "99", "4,,5", "é\0", "cpu:99", "cuda:77", "null", "~nosuchuser/x"),
    ):
        if option == "--layers" and value == "":
            continue
        yield f"inspect {option} {value!r}", lambda folder, _, o=option, v=value: (
            "inspect", "tiny", *((v or "none.jsonl",) if o == "--facts" else (o, v or "''")))  # fmt: skip
    for words in (("export", "{r}", "--at", "7", "--out", "{o}"), ("report", "{o}"), ("compare", "{o}"), ("status", "{o}"),
                  ("resume", "{r}"), ("runs", "verify", "{o}"), ("glossary", "nothing"), ("methods", "nothing"),
                  ("models", "get", "nothing"), ("data", "get", "nothing"), ("stats", "tiny", "--out", "{o}/c", "--npz", "x")):  # fmt: skip
        yield " ".join(words[:2]), lambda folder, _, words=words: [
            word.format(o=folder / "none", r=fake_run(folder / "run")) for word in words]  # fmt: skip


PATHS = ["settings", "model", "method", "config", "versions", "seed", "started", "forced", "id", "settings.method", "settings.hyper",
         "settings.sizes", "settings.model", "settings.edits", "settings.batch", "settings.checkpoint_every", "settings.seed",
         "settings.left_out", "settings.method.name", "settings.method.stopping", "settings.method.update",
         "settings.method.post", "model.name", "model.fingerprint", "model.d_mlp"]  # fmt: skip


@cases("run.json, a field", codes=(0, 2))
def _():
    for name, kind in itertools.product(PATHS, FIELD_VALUES):
        for number, command in enumerate((("status",), ("compare",), ("runs", "verify"))):
            if number != (len(name) + len(kind)) % 3:
                continue

            def prepare(folder, _, name=name, kind=kind, command=command):
                run = fake_run(folder / "run")
                about = read_sealed(run / "run.json")
                place, parts = about, name.split(".")
                for part in parts[:-1]:
                    place = place[part]
                place[parts[-1]] = FIELD_VALUES[kind]
                write_sealed(run / "run.json", about)
                return *command, run

            yield f"{name} is {kind} ({command[-1]})", prepare


@cases("a file of a study")
def _():
    names = ("runs.json", "batches.parquet", "norms.parquet", "facts.parquet", "checkpoints.parquet")
    for name, kind in itertools.product(names, (*BYTES, *FILES)):
        command = ("compare", "report")[(len(name) + len(kind)) % 2]

        def prepare(folder, _, name=name, kind=kind, command=command):
            study = fake_study(folder / "study", fake_run(folder / "run"))
            put(study / name, kind)
            return command, study

        yield f"{name} is {kind} ({command})", prepare


@cases("a covariance")
def _():
    texts = {"tokens": "5", "provenance": "{}"}
    triangle = torch.ones(64 * 65 // 2)
    wrong = {
        "no tokens": ({"triangle.1": triangle}, {"provenance": "{}"}),
        "tokens of words": ({"triangle.1": triangle}, texts | {"tokens": "many"}),
        "negative tokens": ({"triangle.1": triangle}, texts | {"tokens": "-5"}),
        "provenance a list": ({"triangle.1": triangle}, texts | {"provenance": "[]"}),
        "a deep provenance": ({"triangle.1": triangle}, texts | {"provenance": "[" * 9999}),
        "no layer": ({"triangle.x": triangle}, texts),
        "a short triangle": ({"triangle.1": triangle[:-1]}, texts),
        "another width": ({f"triangle.{i}": triangle[:6].clone() for i in range(4)}, texts),
        "a matrix": ({"triangle.1": triangle[None]}, texts),
        "whole numbers": ({"triangle.1": triangle.long()}, texts),
        "scale alone": ({"scale.1": torch.ones(64)}, texts),
        "a long scale": ({"triangle.1": triangle, "scale.1": torch.ones(65)}, texts),
        "NaN": ({f"triangle.{i}": triangle * float("nan") for i in range(4)}, texts),
        "a number alone": ({"triangle.1": torch.tensor(1.0)}, texts),
    }  # fmt: skip

    def command(folder):
        words = ("edit", "--model", "tiny", "--yes", "--quiet", "--facts", facts_file(folder), "--out", folder / "o")
        return (*words, "--statistics", folder / "c.safetensors")

    for name, (tensors, about) in wrong.items():

        def prepare(folder, root, tensors=tensors, about=about):
            write_tensors(folder / "c.safetensors", tensors, about)
            return command(folder)

        yield name, prepare
    for kind in (*BYTES, *FILES):

        def prepare(folder, root, kind=kind):
            put(folder / "c.safetensors", kind)
            return command(folder)

        yield f"is {kind}", prepare


def facts_file(folder):
    """Two facts."""
    path = folder / "two.jsonl"
    path.write_text(
        "".join(json.dumps(fact(id=str(i), subject=s)) + "\n" for i, s in enumerate(("Ada Lorn", "Bo Tarn")))
    )
    return path


@cases("a model")
def _():
    for kind in (*BYTES, "a folder", "a pipe"):
        for name in ("config.json", "tokenizer.json", "model.safetensors"):

            def prepare(folder, root, name=name, kind=kind):
                model = shutil.copytree(root / "data" / "models" / "tiny", folder / "m")
                put(model / name, kind)
                return "inspect", model

            yield f"{name} is {kind}", prepare
    for name, kind in itertools.product(
        ("n_layer", "n_embd", "n_head", "n_inner", "vocab_size", "model_type", "architectures"), FIELD_VALUES
    ):
        if (name, kind) in (("architectures", "null"), ("architectures", "list"), ("n_inner", "null")):
            continue

        def prepare(folder, root, name=name, kind=kind):
            model = shutil.copytree(root / "data" / "models" / "tiny", folder / "m")
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | {name: FIELD_VALUES[kind]}))
            return "inspect", model

        yield f"{name} is {kind}", prepare


OWN = {
    "progress.json",
    "tables.json",
    "collapse.json",
    "batches.parquet",
    "facts.parquet",
    "edit.safetensors",
    "batches/00001.json",
}


@cases("a file of the user's own")
def _():
    for name in sorted(OWN):
        for command in ("run", "edit"):

            def prepare(folder, root, name=name, command=command):
                (folder / "o" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "o" / name).write_text("mine")
                words = {"run": RUN, "edit": ("edit", "--model", "tiny", "--yes")}[command]
                return *words, "--facts", facts_file(folder), "--out", folder / "o"

            yield f"{name}, {command}", prepare
    for name in ("demo.json", "report.html"):

        def own(folder, _, name=name):
            (folder / "o").mkdir()
            (folder / "o" / name).write_text("mine")
            return "demo", "--model", "tiny", "--edits", "2", "--batch", "2", "--out", folder / "o", "--quiet"

        yield f"{name}, demo", own
    yield (
        "edit --json onto its facts",
        lambda f, h: ("edit", "--model", "tiny", "--facts", facts_file(f), "--out", f / "o", "--json", f / "two.jsonl"),
    )
    yield "inspect --json onto its facts", lambda f, h: ("inspect", "tiny", facts_file(f), "--json", f / "two.jsonl")
    yield "data check --good onto its facts", lambda f, h: ("data", "check", facts_file(f), "--good", f / "two.jsonl")
    yield (
        "data check --json onto its facts",
        lambda f, h: ("data", "check", facts_file(f), "--json", f / "." / "two.jsonl"),
    )
    yield "stats --out onto its text", lambda f, h: ("stats", "tiny", "--text", facts_file(f), "--out", f / "two.jsonl")
    yield "stats --out onto another file", lambda f, h: ("stats", "tiny", "--text", "world", "--out", facts_file(f))
    yield (
        "compare --json onto run.json",
        lambda f, h: ("compare", fake_run(f / "run"), "--json", f / "run" / "run.json"),
    )
    yield (
        "compare --csv onto a table",
        lambda f, h: ("compare", fake_run(f / "run"), "--csv", f / "run" / "facts.parquet"),
    )
    yield "report --to run.json", lambda f, h: ("report", fake_run(f / "run"), "--to", f / "run" / "run.json")
    yield (
        "export --out in the run",
        lambda f, h: ("export", fake_run(f / "run"), "--at", "50", "--out", f / "run" / "model"),
    )


@pytest.fixture(autouse=True)
def patience():
    """A case that hangs fails."""

    def stop(*_):
        raise TimeoutError("no answer within a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def home_of(home, monkeypatch):  # noqa: F811
    """The folder with the tiny model and its small world."""
    monkeypatch.setenv("KETOOLS_DATA", str(home / "data"))
    monkeypatch.delenv("HF_HOME", raising=False)
    return home


def contents(folder):
    """Bytes of all regular files."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.mark.parametrize("case", [
    pytest.param(case, id=case.name, marks=() if number % 3 == 0 else pytest.mark.attack) for number, case in enumerate(CASES)
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_one_line_and_nothing_changed(case, home_of, tmp_path):
    words = [str(word) for word in case.prepare(tmp_path, home_of)]
    before = contents(tmp_path)
    ended = CliRunner().invoke(cli.app, words, input="")
    assert ended.exception is None or isinstance(ended.exception, SystemExit), repr(ended.exception)
    assert ended.exit_code in case.codes, ended.output
    assert "Traceback" not in ended.output
    if ended.exit_code == 2 and ended.stderr and "Usage:" not in ended.stderr:
        told = [line for line in ended.stderr.splitlines() if line.startswith("ketools: ")]
        assert len(told) <= 1 and (len(told) == 1 or ended.stdout)
    after = contents(tmp_path)
    assert all(after.get(path) == content for path, content in before.items()), "a file that was there was changed"
    assert not [path for path in after if path.name.endswith(".part")]
