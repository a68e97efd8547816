"""The widgets of single lessons: every control chooses what the picture shows; nothing is computed or edited on the way."""

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.lessons import nb00, nb01, trades
from ketools.plots.style import words


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


def asked(p_new, p_true):
    kinds = ["prompt", "paraphrase", "paraphrase", "same subject"]
    frame = pd.DataFrame({"kind": kinds, "prompt": ["Ada is from", "Ada's city:", "Born in", "<b>Ada</b> speaks"]})
    true = ["Lorn", "Lorn", "Lorn", "Kil"]
    return frame.assign(true=true, new="Vesk", p_true=p_true, p_new=p_new)


@pytest.fixture
def reach():
    before, after = (
        asked([0.01, 0.02, 0.03, 0.0], [0.8, 0.7, 0.6, 0.9]),
        asked([0.9, 0.8, 0.7, 0.1], [0.0, 0.0, 0.1, 0.5]),
    )
    return nb00.ReachExplorer(before, after, context="Mode test, seed 0.")


def test_reach_shows_the_chosen_prompts_and_answer(reach):
    assert reach.data["after"].tolist() == [0.9, 0.8, 0.7, 0.1] and set(reach.data["answer"]) == {"Vesk"}
    reach.controls["answer"].value = "true"
    assert reach.data["before"].tolist() == [0.8, 0.7, 0.6, 0.9] and reach.data["answer"].iloc[-1] == "Kil"
    reach.controls["kind"].value = "paraphrase"
    assert [bar["x"] for bar in drawn(reach)] == [[0.7, 0.6], [0.0, 0.1]]
    assert "0.650 before" in reach.sentence() and "0.0500 after" in reach._sentence.value
    assert "Ada's city" in reach.sentence(), "the prompt that moved most"
    assert "Mode test, seed 0." in words(reach.figure())["caption"] and reach.message == ""


def test_reach_shows_text_not_markup(reach):
    assert "<b>Ada" not in str(drawn(reach)) + str(reach.figure().layout.yaxis.ticktext)


def test_reach_refuses_tables_that_do_not_belong_together(reach):
    with pytest.raises(KetoolsError, match="different prompts"):
        nb00.ReachExplorer(reach.before, reach.after.iloc[::-1])
    with pytest.raises(KetoolsError, match="lacks p_new"):
        nb00.ReachExplorer(reach.before, reach.after.drop(columns="p_new"))


LINES = (trades.C_LINE, trades.NULL_LINE)


@pytest.fixture
def frame():
    rows = [(line, 10.0**i, 0.1 * (i + n), 0.3 - 0.1 * i) for n, line in enumerate(LINES) for i in range(3)]
    return pd.DataFrame(rows, columns=["line", "dial", "missed", "moved"])


def test_each_dial_moves_its_own_sign(frame):
    view = trades.TradeDial(frame, context="Mode test.")
    assert list(view.controls) == ["lambda_p", "ridge"] and view.data["dial"].tolist() == [10.0, 10.0]
    view.controls["lambda_p"].value = 100.0
    assert view.data["dial"].tolist() == [100.0, 10.0]
    view.controls["ridge"].value = 1.0
    chosen = [trace for trace in drawn(view) if trace["name"].startswith("chosen")]
    assert [(trace["x"], trace["y"]) for trace in chosen] == [
        ([pytest.approx(0.1)], [pytest.approx(0.2)]),
        ([pytest.approx(0.3)], [pytest.approx(0.1)]),
    ]
    assert view.sentence().startswith("With the covariance: text moves by 0.100, 20% of the facts is missed")
    assert [text for text, _ in view.controls["lambda_p"].options] == ["1", "10", "100"]
    assert "Mode test." in words(view.figure())["caption"] and view.message == ""


def test_a_dial_needs_the_table_of_a_trade_off(frame):
    with pytest.raises(KetoolsError, match="lacks dial"):
        trades.TradeDial(frame.drop(columns="dial"))


def test_cost_lines_compare_where_equally_much_is_missed():
    moved = {trades.C_LINE: 0.1, trades.NULL_LINE: 0.2, trades.RANDOM_LINE: 0.4}
    rows = [(line, 1.0, missed, far + missed) for line, far in moved.items() for missed in (0.0, 0.1, 0.5)]
    frame = pd.DataFrame(rows, columns=["line", "dial", "missed", "moved"])
    finding = words(trades.cost_lines(frame, {"MEMIT": (0.3, 0.2), "EMMET": (0.4, 0.0)}, "Mode test."))["finding"]
    assert "(20%)" in finding and "1.33×" in finding and "2.00×" in finding


def test_the_lens_explorer_follows_prompt_and_layers():
    rows = [(layer, i, f"t{i}", f"n{layer}", 0.5, i, i - 1) for layer in range(3) for i in range(2)]
    columns = ["layer", "position", "token", "predicted", "probability", "place", "from_end"]
    one = pd.DataFrame(rows, columns=columns)
    view = nb01.LensExplorer({"first": one, "second": one.assign(probability=np.linspace(0, 1, 6))})
    view.controls["prompt"].value = "second"
    view.controls["layers"].value = (1, 2)
    assert set(view.data["layer"]) == {1, 2} and view.data["probability"].max() == 1.0
    assert len(drawn(view)[0]["z"][0]) == 2 and view.message == ""
