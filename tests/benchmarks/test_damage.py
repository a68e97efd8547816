"""Does damage go with the norm: correlations over checkpoints against hand-made tables."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.verdicts import damage_sentences, norm_damage
from ketools import KetoolsError
from tests.evaluation.test_forgetting import checkpoints


def test_norm_and_damage():
    frame = norm_damage(checkpoints(), damage=["unedited_kept", "ES", "perplexity_ratio"]).set_index("measure")
    row = frame.loc["unedited_kept"]
    assert row["spearman"] == pytest.approx(-1) and row["pearson"] == pytest.approx(-1) and row["n"] == 4
    assert frame.loc["ES", "n"] == 3 and frame.loc["ES", "excluded"] == 1
    missing = frame.loc["perplexity_ratio"]
    assert missing["n"] == 0 and missing["excluded"] == 4 and math.isnan(missing["spearman"])
    still = norm_damage(checkpoints(norm_ratio=1.0), damage=["unedited_kept"]).iloc[0]
    assert math.isnan(still["pearson"]) and still["n"] == 4
    with pytest.raises(KetoolsError, match="none of the columns other"):
        norm_damage(checkpoints(), damage=["other"])
    with pytest.raises(KetoolsError, match="no checkpoints"):
        norm_damage(pd.DataFrame(), damage=["ES"])


def run(model, kept, **more):
    points = pd.DataFrame({"edits": [0, 1, 2, 3], "norm_ratio": [1.0, 1.1, 1.3, 1.6], "unedited_kept": kept} | more)
    return SimpleNamespace(model=model, record=SimpleNamespace(checkpoints=points))


def test_damage_goes_with_the_norm_or_against_it():
    falls, grows = [0.0, 0.9, 0.8, 0.3], [1.0, 0.1, 0.2, 0.3]
    a, b = damage_sentences([run("a", falls), run("b", grows, perplexity_ratio=[1.0, 3.0, 2.0, 1.0]), run("a", falls)])
    assert " a," in a and "6 checkpoints of 2 runs" in a and a.count("-1.00") == 1
    assert " b," in b and "3 checkpoints of 1 run" in b and b.count("+1.00") == b.count("-1.00") == 1
    assert damage_sentences([run("a", [math.nan] * 4)]) == [] and damage_sentences([]) == []
    bare = SimpleNamespace(model="a", record=SimpleNamespace(checkpoints=pd.DataFrame({"edits": [0, 10]})))
    assert damage_sentences([bare]) == []
