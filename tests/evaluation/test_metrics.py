"""The table of metrics is whole, consistent, and covers what norms, evaluation and probing report."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from ketools import Edit, KetoolsError
from ketools.editing.methods import FixedSteps, scaled
from ketools.editing.targets import compute_targets
from ketools.evaluation import downstream, edits, forgetting
from ketools.evaluation import downstream as harness
from ketools.evaluation.metrics import (
    BETTER,
    METRICS,
    UNITS,
    hover_text,
    hover_texts,
    look_up,
    metric,
    of_table,
)
from ketools.facts.fact import Locality, TwoHop
from ketools.norms import residual, weights
from ketools.probing import knockout, layers, lens, recall, tracing
from tests.conftest import SENTENCES


def test_every_entry_is_whole():
    assert len({(each.key, each.table) for each in METRICS}) == len(METRICS) > 150
    for each in METRICS:
        assert each.label and each.formula and each.source, each
        assert each.better in BETTER and each.unit in UNITS, each
        assert not each.label.endswith(".") and not each.formula.endswith("."), each
        if each.better != "none":
            assert each.range, f"{each.key}: a direction without a range"
    assert [each.key for each in of_table("norms")] == ["norm", "ratio", "update_norm"]


def test_values_are_written_for_tables_and_for_sentences():
    assert metric("unedited_kept").format(0.9741) == "97.4%" and metric("unedited_kept").brief(0.4321) == "43%"
    assert metric("norm_ratio").format(1.0249) == metric("norm_ratio").brief(1.0249) == "1.02×"
    assert metric("seconds_per_edit").format(0.1234) == "0.123" and metric("steps_mean").format(8.25) == "8.2"
    assert metric("norm", "norms").format(1234.5) == "1,234" and metric("norm", "norms").format(1.23456) == "1.235"
    assert (
        metric("ES").format(None)
        == metric("ES").format(float("nan"))
        == metric("norm", "norms").format(float("nan"))
        == "–"
    )
    assert metric("norm_ratio").axis.endswith("(ratio)") and metric("unedited_kept").spec == ".1%"


def test_look_up():
    score, *_ = look_up("S")
    assert score.better == "higher" and "harmonic" in score.formula
    assert "harmonic" in score.text() and "2202.05262" in score.text()
    assert {entry.table for entry in look_up("ratio")} == {"norms", "overfitting"}
    (of_norms,) = look_up("ratio", "norms")
    assert "W_0" in of_norms.formula
    (early,) = look_up("at_edit_ES", "batches")
    assert early.label.endswith("right after each edit") and early.short == "ES then"
    (late,) = look_up("end_paraphrase_success", "facts")
    assert late.key == "end_paraphrase_success" and late.label.endswith("at the end")
    assert metric("f1_sst2", "checkpoints").key == "f1_sst2"
    assert [e.table for e in look_up("layer", "spectra")] == ["shared"]
    assert [e.table for e in look_up("kept", "forgetting")] == ["forgetting"], "its own meaning wins"


def test_what_is_not_there():
    with pytest.raises(KetoolsError, match="did you mean norm_ratio"):
        look_up("norm_ration")
    with pytest.raises(KetoolsError, match="no table 'tables'"):
        look_up("S", "tables")
    with pytest.raises(KetoolsError, match="ketools glossary"):
        look_up("qqqqqqqq")
    assert metric("ES").table == "evaluate" and metric("seconds_keys").table == "batches"


def test_heads_of_tables_have_the_text_of_the_metric_that_they_name():
    heads = ["unedited_kept", "efficacy (ES): MEMIT", "S", "edits so far (count)", "seconds per edit", "MEMIT", 3]
    texts = hover_texts(heads)
    assert list(texts) == heads[:5]
    assert texts["unedited_kept"] == look_up("unedited_kept")[0].text() and "better: higher" in texts["unedited_kept"]
    assert texts["efficacy (ES): MEMIT"] == look_up("ES", "evaluate")[0].text()
    assert "harmonic" in texts["S"] and texts["seconds per edit"].startswith("seconds_per_edit (demo)")
    assert hover_texts(["ratio", "norm", "p_true"]) == {}, "they mean different things in different tables"
    assert "W_0" in hover_text("ratio", "norms") and hover_text("ratio") == hover_text("nothing_like_it") == ""
    assert "right after" in hover_text("at_edit_p_new", "facts")


def explained(table, *found):
    for frame in found:
        for column in list(frame) if isinstance(frame, pd.DataFrame) else list(frame.index):
            assert look_up(column, table)


def test_evaluation_is_covered(tiny_gpt2, facts):
    beside = replace(facts[0], two_hop=(TwoHop("Ada lives in", "Vell", "Bay"),), locality=(Locality("Bo is", "Vell"),))
    scored = edits.evaluate(tiny_gpt2, [beside, *facts[1:4]])
    explained("evaluate", scored, pd.Series(edits.summary(scored)))
    explained("recall", edits.recall(tiny_gpt2, facts[:4]))
    items = pd.DataFrame([{"task": "a", "prompt": "Ada was", "choices": [" born", " song"], "answer": 0}])
    explained("downstream", downstream.downstream(tiny_gpt2, items))
    ran = {"results": {"t": {"acc,none": 1.0, "acc_stderr,none": 0.0}}, "n-samples": {"t": {"effective": 2}}}
    explained("harness", harness.table(ran))
    explained("overfitting", edits.natural_probabilities(tiny_gpt2, facts[:4]), edits.overfit(0.9, 0.5))
    explained("overfitting", edits.separation([0.9, 0.8], [0.5]))


def test_forgetting_is_covered():
    points = pd.DataFrame({"edits": [0, 5], "ES": [None, 1.0], "at_edit_ES": [None, 1.0], "norm_ratio": [1.0, 2.0]})
    curve = forgetting.forgetting_curve(points)
    facts = pd.DataFrame({"id": ["a"], "batch": [1], "at_edit_efficacy_success": [1.0], "end_efficacy_success": [1.0]})
    aged = forgetting.forgetting_by_age(facts, pd.DataFrame({"batch": [1], "edits": [5]}))
    explained("forgetting", curve, aged)
    explained("forgetting", forgetting.mcnemar(facts, facts))


def test_norms_are_covered(tiny_gpt2, tiny_facts):
    edit = Edit({1: (torch.ones(32, 1), torch.ones(64, 1))}, {"fingerprint": tiny_gpt2.fingerprint, "facts": ["a"]})
    edit.apply_to(tiny_gpt2)
    explained("norms", weights.frobenius(tiny_gpt2))
    explained("growth", weights.growth([1.0, 2.0, 3.0]))
    explained("spectra", weights.spectra(tiny_gpt2))
    both = residual.before_and_now(tiny_gpt2, residual.text_sample(tiny_gpt2, SENTENCES))
    explained("residual", both, residual.edited_share(both))
    found = compute_targets(
        tiny_gpt2, tiny_facts[:2], ["", "You sang. "], FixedSteps(), replace(scaled("memit"), layers=(1,), steps=2)
    )
    explained("targets", edits.overfitting_curve(found))
    explained("diff", edit.diff(edit))


def test_probing_is_covered(tiny_gpt2, tiny_facts):
    explained("probing", recall.top_tokens(tiny_gpt2, "Ada"), recall.answers(tiny_gpt2, ["Ada"], ["Vell"]))
    explained("probing", recall.surroundings(tiny_gpt2, tiny_facts[0]))
    explained("lens", lens.lens(tiny_gpt2, "Ada Lorn"), lens.lens_trace(tiny_gpt2, ["Ada Lorn"], ["Vell"]))
    fact = tiny_facts[0]
    known = [replace(fact, target_true=recall.complete(tiny_gpt2, fact.text, 1).strip())]
    traced = tracing.trace(tiny_gpt2, known)
    explained("tracing", traced, tracing.average(traced))
    explained("knockout", knockout.knockout(tiny_gpt2, known))
    explained("layers", layers.suggest(tiny_gpt2, known, count=1, trials=0).evidence)
