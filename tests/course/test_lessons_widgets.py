"""The widgets of single lessons: every control chooses what the picture shows; nothing is computed or edited on the way."""

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.lessons import nb01, trades
from ketools.plots.style import words


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


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
