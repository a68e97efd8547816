"""What stands beside the paper: worded from the numbers, silent about what was not measured."""

import math

from ketools.report.page import write_report
from ketools.report.verdicts import beside_paper, order, overfitting
from tests.plots.sample import records


def test_overfitting_is_told_as_there_or_not():
    rows = {
        "memit": {"p_at_edit": 0.79, "p_natural": 0.73},
        "alphaedit": {"p_at_edit": 0.70, "p_natural": 0.73},
        "memit+mpes": {"p_at_edit": 0.50, "p_natural": 0.73},
        "encore": {"p_at_edit": 0.50, "p_natural": 0.73},  # not in table 1
    }
    assert overfitting(rows) == (
        "Edited facts right after their edit against natural ones, mean probability: MEMIT 0.790 against 0.730, AlphaEdit 0.700 against 0.730 and "
        "MEMIT + MPES 0.500 against 0.730; as in the paper's table 1 with MEMIT and MEMIT + MPES and unlike the paper's table 1 "
        "with AlphaEdit."
    )
    assert overfitting({"memit": {"p_at_edit": 0.2, "p_natural": 0.7}}).endswith(
        "unlike the paper's table 1 with MEMIT."
    )


def test_each_sentence_needs_its_numbers():
    assert beside_paper({}) == [] and beside_paper({"mine": {"norm_ratio": 2.0, "S": 0.5}}) == []
    (norm,) = beside_paper({"encore": {"norm_ratio": 1.28, "S": 0.9, "p_at_edit": 0.5, "downstream_kept": math.nan}})
    assert norm == "The largest norm ratio, against the paper's after 10,000 edits: ENCORE 1.28× (there near 1×)."
    (score,) = beside_paper({"alphaedit": {"downstream_kept": 0.997}})
    assert score == "Downstream F1, of before: AlphaEdit 99.7% (there it falls)."


def test_the_order_counts_pairs():
    assert order({"memit": {"S": 0.5}, "encore": {"S": 0.6}}) == ""
    assert order({"memit": {"S": 0.7}, "encore": {"S": 0.8}, "alphaedit": {"S": 0.6}}).startswith(
        "The order by S is the paper's"
    )
    assert "1 of 3 pairs" in order({"memit": {"S": 0.5}, "encore": {"S": 0.6}, "alphaedit": {"S": 0.7}})


def test_the_report_has_them(tmp_path):
    text = write_report(records(), tmp_path / "report.html").read_text(encoding="utf-8")
    part = text.split("<h2>Beside the paper</h2>")[1].split("</section>")[0]
    assert "Downstream F1, of before: MEMIT 73%" in part and "arXiv 2502.01636" in part
