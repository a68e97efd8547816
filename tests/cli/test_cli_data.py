"""`ketools data`: the report of a check, its exit codes, downloads by name."""

import gzip
import json
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

import ketools as ke
from ketools import Fact, FactSet, KetoolsError
from ketools.cli import app, data
from ketools.cli.data import data_app
from ketools.facts import fetch as download
from ketools.facts.check import check
from ketools.facts.fact import check_conflicts

ADA = {"subject": "Ada Lorn", "prompt": "{} was born in", "target_new": "Oran Bay", "relation": "birthplace"}


@pytest.fixture
def run():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(data_app, name="data")

    def run(*args):
        return CliRunner().invoke(app, ["data", *map(str, args)])

    return run


def lines(path, *records):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def fact(id, subject="Ada Lorn", prompt="{} was born in", new="Oran Bay", relation="birthplace"):
    return Fact(id, relation, prompt, subject, "Vell", new)


def test_contradictions_are_found_by_relation_and_by_prompt():
    facts = FactSet(
        [
            fact("a"),
            fact("b", subject="ADA LORN", prompt="The town of {} is", new="Ix"),  # same subject and relation
            fact("c", relation="home", new="Ul"),  # same prompt
            fact("d", subject="Bo Tarn"),
            fact("e", prompt="{} plays the", relation="instrument", new="harp"),
            fact("f", subject="Ada", prompt="{} Lorn was born in", relation="town", new="Sall"),  # the same text
        ]
    )
    assert [(clash.first.id, clash.second.id) for clash in facts.conflicts()] == [("a", "b"), ("a", "c"), ("a", "f")]
    assert facts.duplicates() == []
    with pytest.raises(KetoolsError, match=r"facts 'a' and 'b' contradict each other: subject 'ADA LORN', relation"):
        check_conflicts(facts)
    with pytest.raises(
        KetoolsError, match=r"facts 'a' and 'c' .* prompt 'Ada Lorn was born in', .* 'Oran Bay' and 'Ul'"
    ):
        check_conflicts([facts[0], facts[2]])
    check_conflicts(facts[3:5])


def test_an_unknown_relation_contradicts_nothing():
    facts = FactSet([fact("a", relation="unknown"), fact("b", prompt="{} plays the", relation="unknown", new="harp")])
    assert facts.conflicts() == []


def test_duplicates_have_prompt_and_target_in_common():
    facts = FactSet([fact("a"), fact("b", prompt="The town of {} is"), fact("c", subject="ada lorn"), fact("d")])
    assert [(clash.first.id, clash.second.id) for clash in facts.duplicates()] == [("a", "c"), ("a", "d")]
    assert facts.conflicts() == []
    with pytest.raises(KetoolsError, match="facts 'a' and 'd' are the same edit"):
        check_conflicts(facts[:2] + facts[3:])


def test_every_contradiction_is_found_though_other_facts_stand_between():
    facts = FactSet([fact("a"), fact("b"), fact("c", new="Ix"), fact("d"), fact("e", new="Ix")])
    assert [(c.first.id, c.second.id) for c in facts.conflicts()] == [("a", "c"), ("c", "d"), ("a", "e")]
    assert [(c.first.id, c.second.id) for c in facts.duplicates()] == [("a", "b"), ("a", "d"), ("c", "e")]


def test_the_world_holds_no_contradiction():
    facts = ke.facts("world")
    assert facts.conflicts() == [] and facts.duplicates() == []


@pytest.fixture
def bad(tmp_path):
    return lines(
        tmp_path / "bad.jsonl",
        ADA,
        "{broken",
        ADA | {"prompt": "She was born in", "target_new": " "},
        "",
        ADA | {"target_new": "Ix"},
        {"colour": "red"},
        ADA | {"subject": "Bo", "target_new": "x" * 101},
        ADA | {"id": "1"},
        ADA | {"subject": "Mira", "target_true": "two\nlines"},
        ADA,
    )


def test_check_lists_every_mistake_with_its_line(bad):
    found = check(bad)
    assert [(p.where, p.kind) for p in found.errors] == [
        ("line 2", "record"), ("line 3", "prompt"), ("line 3", "target_new"), ("line 6", "record"), ("line 8", "id"),
    ]  # fmt: skip
    assert sorted((p.where, p.kind) for p in found.warnings) == [
        ("line 10", "conflict"), ("line 10", "duplicate"), ("line 5", "conflict"), ("line 7", "long target"),
        ("line 9", "line break"),
    ]  # fmt: skip
    assert found.records == 9 and len(found.facts) == 5 and found.encoding == "UTF-8"
    assert found.layouts == {"plain": 7, "unknown": 2}
    assert "line 5: warning: facts '1' and '5' contradict" in found.text() and "(the other: line 1)" in found.text()


def test_check_on_the_command_line(run, bad, tmp_path):
    result = run("check", bad, "--json", tmp_path / "out.json", "--good", tmp_path / "good.jsonl")
    assert result.exit_code == 2 and "line 8: error: fact '1': field 'id' is already used on line 1" in result.output
    summary = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (summary["errors"], summary["warnings"], summary["records"], summary["facts"]) == (5, 5, 9, 5)
    assert summary["errors by kind"] == {"record": 2, "target_new": 1, "prompt": 1, "id": 1}
    assert summary["warnings by kind"] == {"conflict": 2, "duplicate": 1, "long target": 1, "line break": 1}
    assert summary["subjects"] == 3 and summary["relations"] == 1 and summary["without target_true"] == 4
    assert summary["problems"][0] | {"what": ""} == {
        "where": "line 2",
        "kind": "record",
        "severity": "error",
        "what": "",
    }
    assert ke.facts(tmp_path / "good.jsonl") == check(bad).facts
    again = run("check", tmp_path / "good.jsonl")
    assert again.exit_code == 0 and "facts                5" in again.output
    assert run("check", tmp_path / "good.jsonl", "--strict").exit_code == 2
    grouped, every = run("check", bad).output.splitlines(), run("check", bad, "--all").output.splitlines()
    (clash,) = [line for line in grouped if "contradict" in line]
    assert "line 5" in clash and "line 10" in clash
    assert len([line for line in every if "contradict" in line]) == 2 and any(
        "the other: line 1" in line for line in every
    )


def test_the_same_field_names_in_csv_and_json(run, tmp_path):
    names = (
        "case_id",
        "relation_id",
        "prompt",
        "subject",
        "target_new",
        "target_true",
        "paraphrase_prompts",
        "neighborhood_prompts",
    )
    values = ("7", "born", "{} was born in", "Ada", "Oran", "Vell", "Ada's home is", "Bo was born in")
    lists = [[value] if name.endswith("prompts") else value for name, value in zip(names, values)]
    (tmp_path / "f.csv").write_text(f"{','.join(names)}\n{','.join(values)}\n", encoding="utf-8")
    (tmp_path / "f.jsonl").write_text(json.dumps(dict(zip(names, lists))), encoding="utf-8")
    assert run("check", tmp_path / "f.csv").exit_code == run("check", tmp_path / "f.jsonl").exit_code == 0
    (fact,) = ke.facts(tmp_path / "f.csv")
    assert [fact] == list(ke.facts(tmp_path / "f.jsonl")) and fact.id == "7" and fact.neighbours == ("Bo was born in",)
    (tmp_path / "f.jsonl").write_text(json.dumps(dict(zip(names, lists)) | {"id": "8"}), encoding="utf-8")
    assert "case_id" in run("check", tmp_path / "f.jsonl").output


def test_check_of_a_good_file(run, tmp_path):
    path = tmp_path / "f.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfsubject,prompt,target_new\nAda,{} is,b\n"))
    result = run("check", path, "--strict")
    assert result.exit_code == 0
    assert "UTF-8 with a byte-order mark" in result.output and "plain 1" in result.output


@pytest.mark.parametrize(
    ("name", "content", "where", "said"),
    [
        ("f.json", b'{"a": [1]}', "file", "holds an object with the fields 'a'; expected a list"),
        ("f.json", b"[{},\n{]", "line 2", "broken JSON at column 2"),
        ("f.json", b"", "file", "is empty: no facts"),
        ("f.jsonl", b"", "file", "is empty: no facts"),
        ("f.csv", b"a,b\n1,2\n", "line 1", "there is no header"),
        ("f.txt", b"x", "file", "can't tell what kind of file"),
        ("f.json.gz", b"[]", "file", "no whole gzip file"),
        ("f.jsonl", "{}".encode("utf-16"), "line 1", "UTF-16 text"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_mistake(run, tmp_path, name, content, where, said):
    path = tmp_path / name
    path.write_bytes(content)
    result = run("check", path)
    assert result.exit_code == 2 and f"{where}: error: " in result.output and said in result.output
    assert len(check(path).errors) == 1
    with pytest.raises(KetoolsError, match="."):
        ke.facts(path)


def test_every_line_in_another_encoding_is_listed(tmp_path):
    path = tmp_path / "f.jsonl"
    rows = [ADA | {"subject": name} for name in ("Zoë", "Ann", "Jörg")]
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("latin-1"))
    found = check(path)
    assert [p.where for p in found.errors] == ["line 1", "line 3"] and found.encoding == "not UTF-8"
    assert found.facts.ids == ["2"]
    listed = tmp_path / "f.json"
    listed.write_bytes(json.dumps(rows, ensure_ascii=False, indent=1).encode("latin-1"))
    assert ["0xEB" in p.what or "0xF6" in p.what for p in check(listed).errors] == [True, True]


def test_check_never_writes_over_what_it_reads(run, tmp_path):
    path = lines(tmp_path / "f.jsonl", ADA)
    before = path.read_bytes()
    for option in ("--json", "--good"):
        result = run("check", path, option, path)
        assert isinstance(result.exception, KetoolsError) and "would be overwritten" in str(result.exception)
    result = run("check", path, "--good", tmp_path / "f.csv")
    assert isinstance(result.exception, KetoolsError) and path.read_bytes() == before
    result = run("check", tmp_path / "none.jsonl")
    assert isinstance(result.exception, KetoolsError) and "no facts file" in str(result.exception)


def test_get_and_list(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DOWNLOADS", str(tmp_path))
    listed = run("list")
    assert listed.exit_code == 0 and str(tmp_path) in listed.output
    for source in download.SOURCES.values():
        assert source.name in listed.output and source.url in listed.output
    (tmp_path / "zsre.json").write_text(json.dumps([ADA]), encoding="utf-8")
    got = run("get", "zsre", "--quiet")  # there already, put there by hand
    assert got.exit_code == 0 and str(tmp_path / "zsre.json") in got.output and "no checksum is published" in got.output
    assert "bytes here" in run("list").output
    assert run("check", "zsre").exit_code == 0
    wrong = run("get", "zsre", "nothing")
    assert isinstance(wrong.exception, KetoolsError) and "no data set named 'nothing'" in str(wrong.exception)


def test_the_doctor_says_what_is_there_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_installed", lambda name: name != "lm-eval")
    monkeypatch.setenv("KETOOLS_DOWNLOADS", str(tmp_path / "facts"))
    result = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "doctor.json")])
    found = json.loads((tmp_path / "doctor.json").read_text("utf-8"))
    assert result.exit_code == 0 and found["works"] and found["missing"] == {"eval": ["lm-eval"]}
    assert f"torch {version('torch').split('+')[0]}" in found["versions"] and "pocket" in found["data"]
    assert found["cache of facts"] == f"{tmp_path / 'facts'}: nothing yet"
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "set.json").write_bytes(bytes(3 << 20))
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    result = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "doctor.json")])
    found = json.loads((tmp_path / "doctor.json").read_text("utf-8"))
    assert result.exit_code == 2 and not found["works"] and found["cache of facts"].endswith(": 3 MiB")
