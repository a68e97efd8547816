"""The figure of one edit says what its data say."""

import pandas as pd

from ketools.plots.drawers import before_after


def _frame(prompt: float, neighbour: float) -> pd.DataFrame:
    return pd.DataFrame({"kind": ["prompt", "paraphrase", "neighbour"], "p_new": [prompt, prompt, neighbour]})


def test_the_title_follows_the_data() -> None:
    up = before_after(_frame(0.0, 0.0), _frame(0.9, 0.1), "Oslo", "test")
    down = before_after(_frame(0.9, 0.0), _frame(0.2, 0.1), "Oslo", "test")
    assert "rises from 0.00 to 0.90" in up.layout.meta["finding"]
    assert "falls from 0.90 to 0.20" in down.layout.meta["finding"]
    assert list(up.data[1].y) == [0.9, 0.9, 0.1]


def test_axes_have_units_and_the_caption_its_context() -> None:
    fig = before_after(_frame(0.0, 0.0), _frame(0.9, 0.1), "Oslo", "model tiny, seed 3")
    assert "0 to 1" in fig.layout.yaxis.title.text
    assert "model tiny, seed 3" in fig.layout.meta["caption"]
    assert fig.layout.meta["description"]
