"""What stands beside the paper: data from the numbers, silent about what was not measured."""

import math

import pytest

from ketools.report.verdicts import SENTENCES, Verdict, beside_paper
from tests.plots.sample import records
from tests.report.test_write import context_of


def test_overfitting_is_compared_where_the_paper_has_the_method():
    rows = {
        "memit": {"p_at_edit": 0.79, "p_natural": 0.73},
        "alphaedit": {"p_at_edit": 0.70, "p_natural": 0.73},
        "memit+mpes": {"p_at_edit": 0.50, "p_natural": 0.73},
        "encore": {"p_at_edit": 0.50, "p_natural": 0.73},  # not in table 1
    }
    (verdict,) = beside_paper(rows)
    values = {m: {"edited": row["p_at_edit"], "natural": 0.73} for m, row in rows.items() if m != "encore"}
    assert verdict == Verdict("paper: overfitting", values, 3)
    agree, differ = str(verdict).split("unlike")
    assert "MEMIT and MEMIT + MPES" in agree and "AlphaEdit" in differ


def test_each_verdict_needs_its_numbers():
    assert beside_paper({}) == [] and beside_paper({"mine": {"norm_ratio": 2.0, "S": 0.5}}) == []
    rows = {"encore": {"norm_ratio": 1.28, "S": 0.9, "p_at_edit": 0.5, "downstream_kept": math.nan}}
    assert beside_paper(rows) == [Verdict("paper: norm", {"encore": 1.28}, 1)]
    assert beside_paper({"alphaedit": {"downstream_kept": 0.997}}) == [
        Verdict("paper: downstream", {"alphaedit": 0.997}, 1)
    ]


@pytest.mark.parametrize(
    ("scores", "same"),
    [
        ({"memit": 0.7, "encore": 0.8, "alphaedit": 0.6}, "the paper's on GPT2-XL"),
        ({"memit": 0.5, "encore": 0.6, "alphaedit": 0.7}, "1 of 3 pairs"),
    ],
)
def test_the_order_counts_pairs(scores, same):
    (verdict,) = beside_paper({m: {"S": score} for m, score in scores.items()})
    assert (verdict.kind, verdict.values, verdict.n) == ("paper: order", scores, 3) and same in str(verdict)
    assert beside_paper({m: {"S": scores[m]} for m in ("memit", "encore")}) == []


def test_the_report_has_them(tmp_path, monkeypatch):
    (verdicts,) = context_of(records(), tmp_path, monkeypatch)["beside_paper"].values()
    assert {verdict.kind for verdict in verdicts} <= set(SENTENCES)
    kept = {verdict.kind: verdict.values for verdict in verdicts}["paper: downstream"]
    assert kept == {"memit": pytest.approx(0.73), "alphaedit": pytest.approx(0.928), "encore": pytest.approx(0.988)}
