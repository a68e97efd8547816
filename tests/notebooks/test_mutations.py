"""Every mutation breaks what it says, seen on a tiny model, and is gone afterwards; the harness tells what became of one."""

import json
from dataclasses import replace

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ketools import Editor
from ketools.editing.covariance import Statistics
from ketools.editing.methods import EMMET, ENCORE, MPES, SEQUENTIAL_MEMIT
from ketools.evaluation.edits import evaluate
from ketools.models.model import fingerprint_of
from ketools.models.weights import edited
from ketools.norms import weights
from ketools.probing import tracing
from ketools.probing import tracing as cases
from ketools.probing.recall import answers
from tests.notebooks import harness, rules
from tests.notebooks.mutations import MUTATIONS, broken

BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}
SETTINGS = {"layers": [1], "prefixes": [], "steps": 6, "lr": 0.5, "loss_floor": 1e-9}


def _statistics(model):
    d = model.anatomy.d_mlp
    shape = torch.rand(d, 2 * d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    c = shape @ shape.T / d
    return Statistics({i: c for i in range(model.anatomy.n_layer)}, 1000, {"fingerprint": model.fingerprint})


def _update(how):
    """The summed update of two batches at all layers."""

    def measure(model, facts):
        editor = Editor(model, how, statistics=_statistics(model), **SETTINGS)
        made = [editor.apply(facts[:2]), editor.apply(facts[2:4])]
        total = {
            i: sum(e.delta(i) for e in made if i in e.layers) for i in range(4) if any(i in e.layers for e in made)
        }
        return {i: [round(float(delta.norm()), 9), round(float(delta.sum()), 9)] for i, delta in total.items()}

    return measure


def _steps(model, facts):
    editor = Editor(model, replace(ENCORE, stopping=MPES(1)), statistics=_statistics(model), **SETTINGS)
    return editor.targets(facts[:4]).steps.tolist()


def _undone(model, facts):
    editor = Editor(model, "memit", statistics=_statistics(model), **SETTINGS)
    editor.apply(facts[:1])
    editor.undo()
    return fingerprint_of(model.model) == model.fingerprint


def _edited_answers(model, facts):
    edit = Editor(model, "memit", statistics=_statistics(model), **SETTINGS).apply(facts[:1])
    model.edits[-1].remove(model)
    with edited(model, edit):
        return answers(model, [facts[0].text], [facts[0].target_new])["probability"].round(9).tolist()


def _answers(model, facts):
    return answers(model, [f.text for f in facts], [f.target_true for f in facts])["probability"].round(9).tolist()


def _scores(model, facts):
    return evaluate(model, facts)["efficacy_magnitude"].round(9).tolist()


def _traced(column):
    def measure(model, facts):
        some = cases.make_cases(model, facts[:2])
        frame = tracing.trace_cases(model, some, tracing.plan_of(model, ("hidden",), None, "each", 1, None, 0, 1.0))
        return frame.loc[frame["role"] == "last of the subject", column].round(9).tolist()

    return measure


MEASURES = {
    "sign": _update("memit"), "unedited": _edited_answers, "residue": _undone, "wrong-prompt": _answers, "no-noise": _traced("p_corrupted"),
    "wrong-restored": _traced("p"), "covariance-rome": _update("rome"), "wrong-token": _update("memit"), "covariance-memit": _update("memit"),
    "wrong-layer": _update("memit"), "no-projection": _update("alphaedit"), "slack": _update(EMMET), "past-keys-06": _update(SEQUENTIAL_MEMIT),
    "unedited-06": _edited_answers, "swapped": _scores, "mpes-never": _steps, "mpes-at-once": _steps,
    "wrong-matrix": lambda model, facts: weights.norms(model), "no-penalty": _update("encore"), "past-keys-09": _update("encore"),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutation_changes_what_it_says_and_goes(name, tiny_gpt2, tiny_facts, request):
    measure = MEASURES[name]

    def fresh():
        from copy import deepcopy

        from ketools.models.model import load

        return load(deepcopy(request.getfixturevalue("trained_gpt2")), tokenizer=tiny_gpt2.tokenizer)

    before = measure(fresh(), tiny_facts)
    with broken(BY_NAME[name]):
        within = measure(fresh(), tiny_facts)
    assert within != before, "the mutation breaks nothing"
    assert measure(fresh(), tiny_facts) == before, "the mutation outlived its block"


def test_there_are_enough_of_them_each_with_a_claim_of_its_own():
    assert len(MUTATIONS) >= 12 and len(BY_NAME) == len(MUTATIONS) == len(MEASURES)
    assert {m.notebook for m in MUTATIONS} <= {name[:2] for name in rules.EXPECTED}


NOTEBOOK = """import json
import ketools.norms.weights
from ketools.course import check_claim
from types import SimpleNamespace
import torch
model = SimpleNamespace(anatomy=SimpleNamespace(n_layer=2), weight=lambda i: torch.ones(2, 2) * (i + 1))"""


CLAIMS = """print(check_claim("an earlier claim", 0, at_least=1))
print(check_claim("the edited matrix grows", ketools.norms.weights.norms(model)[0], at_most=3))"""


def test_the_harness_runs_a_notebook_past_its_errors_to_the_claim_that_a_mutation_breaks(tmp_path):
    skipped = new_code_cell("raise SystemError", metadata={"tags": ["exercise"]})
    made = [new_markdown_cell("# x"), *map(new_code_cell, (NOTEBOOK, "1 / 0")), skipped, new_code_cell(CLAIMS)]
    nbformat.write(new_notebook(cells=made), tmp_path / "08_watch_the_norm.ipynb")
    outcome = harness.run(BY_NAME["wrong-matrix"], tmp_path)
    assert outcome.verdict == "killed" and outcome.fine and outcome.others == ("an earlier claim",)


@pytest.mark.parametrize(
    ("made", "verdict"), [({"holds": False}, "killed"), ({"holds": True}, "survived"), (None, "not reached")]
)
def test_what_became_of_a_mutation_follows_from_the_claims_that_were_made(tmp_path, monkeypatch, made, verdict):
    def execute(path, mutation, record, seconds):
        record.write_text(json.dumps({"claim": mutation.claim, "observed": 5} | made) if made else "")
        return "cell 1: ZeroDivisionError"

    monkeypatch.setattr(harness, "_execute", execute)
    (tmp_path / "08_watch_the_norm.ipynb").touch()
    outcome = harness.run(BY_NAME["wrong-matrix"], tmp_path)
    assert outcome.verdict == verdict and outcome.fine == (verdict == "killed") and outcome.others == ()
    assert outcome.observed == ("5" if made else "cell 1: ZeroDivisionError")
    assert verdict in harness.table([outcome]) and "`wrong-matrix`" in harness.table([outcome])


def test_a_notebook_that_is_not_there_yet_is_said_so(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# x")]), tmp_path / "00_x.ipynb")
    assert harness.run(BY_NAME["wrong-matrix"], tmp_path).verdict == "no notebook"


def test_an_unknown_name_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["harness", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        harness.main()
    assert "no-penalty" in capsys.readouterr().err
