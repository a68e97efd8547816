"""The benchmarks of tracing and of scoring: both ways find the same, the files say what was measured."""

import json

import pytest

from benchmarks import scoring, tracing
from ketools.probing.tracing import KINDS, make_cases, plan_of
from tests.small_world import small_facts


def test_tracing_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "tracing.json"
    arguments = ["--model", "pocket", "--facts", "3", "--plain", "1", "--repeats", "1", "--quiet", "--json", str(out)]
    assert tracing.main(arguments) == 0
    figures = json.loads(out.read_text())
    each = figures["seconds_per_restoration"]
    assert figures["ratio_plain_over_replay"] == pytest.approx(each["plain"] / each["replay"])
    assert figures["max_error_p"] < 1e-4 and figures["restorations"]["replay"] > figures["restorations"]["plain"] > 0
    assert "plain / replay" in capsys.readouterr().out and figures["provenance"]["repeats"] == 1


def test_restorations_are_counted(tiny_gpt2):
    cases = make_cases(tiny_gpt2, small_facts()[:2], "new")
    plan = plan_of(tiny_gpt2, KINDS[:3], None, "each", 1, None, 0, 1.0)
    assert tracing._restorations(cases, plan) == len(tracing.plain(tiny_gpt2, cases, plan))


def test_scoring_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "scoring.json"
    arguments = ["--model", "pocket", "--facts", "6", "--plain", "2", "--repeats", "1", "--neighbours", "3", "--quiet"]
    assert scoring.main([*arguments, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["max_difference_success"] < 1e-9 and figures["prompts"]["packed"] > figures["prompts"]["plain"] > 0
    assert "prompts a second" in capsys.readouterr().out


def test_prompts_are_counted():
    (fact,) = small_facts()[:1]
    assert scoring.prompts([fact], 2) == 1 + len(fact.paraphrases) + min(2, len(fact.neighbours))


@pytest.mark.parametrize("main", [scoring.main, tracing.main])
def test_an_unknown_model_is_one_line_and_exit_code_2(main, capsys):
    assert main(["--model", "no-such-model", "--quiet"]) == 2
    assert "no-such-model" in capsys.readouterr().err
