"""Figures of what edits do: on frames of a tiny model, and on frames that show the finding or its absence."""

import numpy as np
import pandas as pd
import pytest
import torch

from ketools import Edit, KetoolsError, plots
from ketools.norms import residual
from ketools.norms.weights import singular_values
from ketools.plots.style import numbers, words
from tests.conftest import SENTENCES
from tests.plots.figures import MARKUP, tells, tiny

CONTEXT = "Mode quick, model tiny, n = 10, seed 0."
# Three targets: stopped in the third, the first and the second pass.
CURVE = pd.DataFrame(
    {"step": range(3), "p_mean": [0.33, 0.53, 0.7], "p05": 0.1, "p95": 0.9, "running": [0.67, 0.33, 0.0], "n": 3}
)


@pytest.fixture(scope="module")
def frames(trained_gpt2, tiny_tokenizer):
    """Frames of a model of four layers: spectra and stream with layer 1 edited."""
    model = tiny(trained_gpt2, tiny_tokenizer)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(d, 3, generator=generator) for d in (model.anatomy.d_model, model.anatomy.d_mlp))
    before = {layer: model.weight(layer).clone() for layer in (0, 1)}
    Edit({1: (left, right)}, {}).apply_to(model)
    sample = residual.text_sample(model, SENTENCES)
    values = [
        pd.DataFrame(
            {"layer": layer, "state": state, "value": singular_values(matrix), "index": range(1, 1 + len(matrix))}
        )
        for layer in (0, 1)
        for state, matrix in (("before", before[layer]), ("now", model.weight(layer)))
    ]
    return {"values": pd.concat(values), "stream": residual.before_and_now(model, sample), "curve": CURVE}


DRAW = {
    "values": plots.spectra_lines,
    "stream": plots.stream_profile,
    "curve": plots.target_curve,
}


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_tells_what_it_shows(frames, name):
    fig = DRAW[name](frames[name], context=CONTEXT)
    assert tells(fig) and words(fig)["caption"].endswith(CONTEXT)


@pytest.mark.parametrize("name", DRAW)
def test_tables_that_cannot_be_drawn_are_refused(frames, name):
    with pytest.raises(KetoolsError, match="no rows"):
        DRAW[name](frames[name].iloc[:0])
    with pytest.raises(KetoolsError, match="lacks"):
        DRAW[name](pd.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(KetoolsError, match="1 row, where 2"):
        DRAW[name](frames[name].iloc[:1])


def test_overfitting_is_claimed_only_where_it_is_sure():
    low, high = np.linspace(0.1, 0.5, 40), np.linspace(0.6, 1.0, 40)
    cases = ((high, low, "are more probable"), (low, low, "no more probable"), (low, high, "less probable"))
    for edited, natural, head in (*cases, ({"memit": high, "encore": low}, low, "with MEMIT only")):
        assert head in tells(plots.probability_curve(edited, natural))
    with pytest.raises(KetoolsError, match="none finite"):
        plots.probability_curve([], low)


def test_the_overfitting_curve_is_compared_with_natural_facts():
    fig = plots.target_curve(CURVE, 0.5)
    assert "(0.500) at step 1" in tells(fig) and fig.data[-1].y == (0.5, 0.5)
    assert "do not pass" in tells(plots.target_curve(CURVE, 0.9))
    both = pd.concat([CURVE.assign(method="memit"), CURVE.assign(method="encore", p_mean=0.2)])
    assert "MEMIT passes" in tells(plots.target_curve(both, 0.5))
    assert "ENCORE does not pass" in tells(plots.target_curve(both, 0.5))
    table = numbers(plots.target_curve(CURVE))
    assert table["targets"].tolist() == pytest.approx(CURVE["p_mean"].tolist())
    assert table["targets, low"].tolist() == pytest.approx(CURVE["p05"].tolist())


def test_spectra_say_what_moved(frames):
    values = frames["values"]
    title = tells(plots.spectra_lines(values))
    assert "layer 0 as before" in title and "ayer 1: the largest" in title
    same = values.assign(value=values["index"].max() - values["index"] + 1.0)
    assert "layers 0 and 1" in tells(plots.spectra_lines(same))
    with pytest.raises(KetoolsError, match="5 layers"):
        plots.spectra_lines(pd.concat([values.assign(layer=i) for i in range(5)]))


def test_the_stream_says_whether_importance_is_hacked(frames):
    frame, mlp = frames["stream"], frames["stream"]["edited"] & (frames["stream"]["state"] == "now")
    grown = frame.assign(share=np.where(mlp, 0.6, 0.05))
    assert "grows from 5% to 60%" in tells(plots.stream_profile(grown))
    assert "stays at 10%" in tells(plots.stream_profile(frame.assign(share=0.1)))
    assert "No layer is edited" in tells(plots.stream_profile(frame.assign(edited=False)))
    one = frame[frame["state"] == "now"].drop(columns="state")
    assert "has the largest share" in tells(plots.stream_profile(one))
    now = frame[(frame["state"] == "now") & (frame["kind"] == "mlp")]
    assert numbers(plots.stream_profile(frame))["MLP: now"].tolist() == pytest.approx(now["share"].tolist())


def test_names_from_outside_are_text():
    tells(plots.probability_curve({MARKUP: [0.1, 0.2]}, [0.1, 0.3]))
    tells(plots.target_curve(CURVE.assign(method=MARKUP), 0.5))
