"""Figures of norms: on the frames of a tiny edited model, and on frames that show the finding or its absence."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from ketools import Edit, KetoolsError
from ketools.editing.targets import Targets
from ketools.norms import drift, residual, spectra, weights
from ketools.norms import drift as targets
from ketools.norms.drift import KeyBasis, alignment
from ketools.norms.residual import text_sample
from ketools.plots import figures as plots
from tests.conftest import SENTENCES
from tests.plots.figures import tells, tiny
from tests.plots.sample import records


def step_one():
    """Three targets: stopped in the third, the first and the second pass."""
    nan = math.nan
    return Targets(
        z=torch.tensor([[3.0, 4.0], [0.0, 2.0], [6.0, 8.0]]), h0=torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]]),
        delta_norm=torch.tensor([4.5, 0.0, 6.7]), steps=torch.tensor([2, 0, 1]), p_target=torch.tensor([0.9, 0.7, 0.5]),
        loss=torch.tensor([0.1, 0.4, 0.7]), trace=torch.tensor([[0.1, 0.4, 0.9], [0.7, nan, nan], [0.2, 0.5, nan]]),
        known=torch.tensor([False, True, False]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def frames(trained_gpt2, tiny_tokenizer):
    """Every frame of ketools.norms, of a model of four layers whose layer 1 is edited."""
    model = tiny(trained_gpt2, tiny_tokenizer)
    sample = text_sample(model, SENTENCES)
    norms, before = weights.norms(model), drift.hidden_states(model, sample)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(d, 3, generator=generator) for d in (model.anatomy.d_model, model.anatomy.d_mlp))
    edit = Edit({1: (left, right)}, {})
    edit.apply_to(model)
    now = drift.hidden_states(model, sample)
    d_mlp = model.anatomy.d_mlp
    basis = KeyBasis(torch.linspace(0, 1, d_mlp, dtype=torch.float64), torch.eye(d_mlp, dtype=torch.float64), 20, 0.3)
    found = {
        "norm": weights.frobenius(model, norms),
        "values": spectra.value_table(model, [0, 1]),
        "shape": spectra.spectra(model),
        "update": spectra.update_spectra(edit, model),
        "alignment": alignment(model, edit, bases={1: basis}),
        "stream": residual.before_and_now(model, sample),
        "sums": residual.check_sums(model, sample),
        "activations": drift.activation_norms(now),
        "drift": drift.drift(now, before),
        "points": drift.drift_points(now, before, 2),
        "components": drift.drift_components(now, before, 2, 3),
        "curve": targets.overfitting_curve(step_one()),
        "trace": targets.trace(step_one(), ["a", "b", "c"]),
        "targets": targets.against_natural(step_one(), torch.tensor([2.0, 4.0, 6.0]), ["a", "b", "c"]),
        "summary": targets.summary(targets.per_fact(step_one())),
        "growth": plots.stack(records(), "norms"),
        "convergence": convergence(),
    }
    return found | {"share": residual.edited_share(found["stream"])}


def convergence(change=0.02):
    nan = math.nan
    table = {"layer": [0] * 3, "tokens": [100, 200, 400], "multiple": [1.0, 2.0, 4.0], "change_c": [nan, 0.1, 0.05]}
    return pd.DataFrame(table | {"change_update": [nan, 0.3, change], "distance_update": [0.4, change, 0.0]})


DRAW = {
    "norm": plots.norm_bars,
    "values": plots.spectra_lines,
    "shape": plots.spectra_bars,
    "update": plots.update_bars,
    "alignment": plots.alignment_bars,
    "null": plots.null_energy_bars,
    "stream": plots.stream_profile,
    "share": plots.stream_share_bars,
    "sums": plots.stream_error_lines,
    "activations": plots.activation_profile,
    "drift": plots.drift_profile,
    "points": plots.drift_points,
    "components": plots.drift_component_bars,
    "curve": plots.target_curve,
    "trace": plots.target_trace_lines,
    "targets": plots.target_norm_points,
    "summary": plots.target_summary_forest,
    "growth": plots.norm_fit_curve,
    "convergence": plots.convergence_curve,
}
FRAME = {name: "alignment" if name == "null" else name for name in DRAW}
ONE_ROW_TELLS = {"norm", "update", "alignment", "null", "share", "components", "summary"}


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_tells_what_it_shows(frames, name):
    assert tells(DRAW[name](frames[FRAME[name]], context="Mode quick, model tiny, n = 3, seed 0."))


@pytest.mark.parametrize("name", DRAW)
def test_empty_tables_and_other_tables_are_named(frames, name):
    with pytest.raises(KetoolsError, match="no rows"):
        DRAW[name](frames[FRAME[name]].iloc[:0])
    with pytest.raises(KetoolsError, match="lacks"):
        DRAW[name](pd.DataFrame({"x": [1.0, 2.0]}))


@pytest.mark.parametrize("name", DRAW)
def test_one_row_is_drawn_or_refused_by_name(frames, name):
    frame = frames[FRAME[name]].iloc[:1]
    if name in ONE_ROW_TELLS:
        assert tells(DRAW[name](frame))
    else:
        with pytest.raises(KetoolsError, match="nothing to (draw|fit)"):
            DRAW[name](frame)


def test_names_from_outside_are_text(frames):
    for name in ("trace", "targets"):
        shown = DRAW[name](frames[name].assign(id="<img src=x onerror=alert(1)>"))
        tells(shown)
    tells(plots.null_energy_bars(frames["alignment"].assign(method="<img src=x>")))
    tells(plots.target_curve(frames["curve"].assign(method="<img src=x>"), 0.5))


def test_norms_say_who_grows(frames):
    frame = frames["norm"].assign(ratio=[1.0, 2.4, 1.0, 1.0])
    assert "layer 1 outgrows its norm (2.40×; unedited ones 1.00×)" in tells(plots.norm_bars(frame))
    assert "keeps near the original norm" in tells(plots.norm_bars(frame.assign(ratio=1.0)))
    assert "No layer is edited" in tells(plots.norm_bars(frame.assign(edited=False)))
    assert "has norm" in tells(plots.norm_bars(frame.assign(ratio=math.nan)))
    grown = plots.stack(records(["memit"]), "norms")
    title = tells(plots.norm_fit_curve(grown))
    assert "MEMIT adds as edits^" in title and "still growing at the end with MEMIT" in title
    still = tells(plots.norm_fit_curve(grown.assign(ratio=1.0)))
    assert "does not grow" in still and "no longer growing" in still
    walk = grown.assign(ratio=np.sqrt(1 + grown["edits"] / 50))
    assert "edits^0.50" in tells(plots.norm_fit_curve(walk))


def test_spectra_say_what_moved(frames):
    values = frames["values"]
    assert "layer 0 as before" in tells(plots.spectra_lines(values))
    same = values.assign(value=values["index"].max() - values["index"] + 1.0)
    assert "are as before the edits in layers 0 and 1" in tells(plots.spectra_lines(same))
    assert "In edited layer 1 the spectral norm grows" in tells(plots.spectra_bars(frames["shape"]))
    assert "No layer is edited" in tells(plots.spectra_bars(frames["shape"].assign(edited=False)))
    with pytest.raises(KetoolsError, match="5 layers do not fit"):
        plots.spectra_lines(pd.concat([values.assign(layer=i) for i in range(5)]))


def test_updates_say_where_their_energy_is(frames):
    frame = frames["alignment"]
    assert "lies along the matrix' top directions" in tells(plots.alignment_bars(frame.assign(top_left=0.9)))
    assert "does not favour" in tells(plots.alignment_bars(frame.assign(top_left=0.0, top_right=0.0)))
    assert "prose is spared" in tells(plots.alignment_bars(frame.assign(c_mean=0.1)))
    assert "prose is hit more" in tells(plots.alignment_bars(frame.assign(c_mean=3.0)))
    assert "prose" not in tells(plots.alignment_bars(frame.iloc[:, :5]))
    assert "Updates leave the null space" in tells(plots.null_energy_bars(frame.assign(null_energy=0.3)))
    both = pd.concat(
        [frame.assign(method="memit", null_energy=0.3), frame.assign(method="alphaedit", null_energy=0.999)]
    )
    assert "Only AlphaEdit stays in the null space" in tells(plots.null_energy_bars(both))
    assert "few but strong" in tells(
        plots.update_bars(frames["update"].assign(relative_norm=0.1, relative_spectral_norm=0.9))
    )
    assert "many weak" in tells(
        plots.update_bars(frames["update"].assign(relative_norm=0.9, relative_spectral_norm=0.1))
    )
    with pytest.raises(KetoolsError, match="no row .* finite top_left"):
        plots.alignment_bars(frame.assign(top_left=math.nan))


def test_convergence_says_whether_c_is_settled():
    settled = tells(plots.convergence_curve(convergence(0.02)))
    assert "is settled after 400 tokens" in settled and "from 200 tokens on" in settled
    assert "has not settled" in tells(plots.convergence_curve(convergence(0.4)))
    assert "singular still" in tells(plots.convergence_curve(convergence(math.nan)))


def test_the_overfitting_curve_is_held_against_natural_facts(frames):
    assert "pass natural facts (0.500) at step 1" in tells(plots.target_curve(frames["curve"], 0.5))
    assert "do not pass natural facts (0.900)" in tells(plots.target_curve(frames["curve"], 0.9))
    both = pd.concat([frames["curve"].assign(method="memit"), frames["curve"].assign(method="encore", p_mean=0.2)])
    title = tells(plots.target_curve(both, 0.5))
    assert "MEMIT passes natural facts" in title and "ENCORE does not pass" in title


def test_targets_are_held_against_natural_states(frames):
    assert "1 of 3 targets are longer than 95%" in tells(
        plots.target_norm_points(frames["targets"].assign(above=[0.1, 0.2, 1.0]))
    )
    assert "None of 3 targets" in tells(plots.target_norm_points(frames["targets"].assign(above=0.5)))
    own = targets.per_fact(step_one())
    assert "Targets are longer than the states" in tells(plots.target_norm_points(own))
    assert "as long as" in tells(plots.target_norm_points(own.assign(h0_norm=own["z_norm"])))


def test_the_stream_says_whether_importance_is_hacked(frames):
    frame, mlp = frames["stream"], frames["stream"]["edited"] & (frames["stream"]["state"] == "now")
    grown = frame.assign(share=np.where(mlp, 0.6, 0.05))
    assert "share of the stream of the edited MLP (layer 1) grows from 5% to 60%" in tells(plots.stream_profile(grown))
    assert "stays at 10%" in tells(plots.stream_profile(frame.assign(share=0.1)))
    assert "No layer is edited" in tells(plots.stream_profile(frame.assign(edited=False)))
    one = frame[frame["state"] == "now"].drop(columns="state")
    assert "has the largest share" in tells(plots.stream_profile(one))
    for measure in ("projection", "relative", "norm"):
        assert tells(plots.stream_profile(frame, measure))
    with pytest.raises(KetoolsError, match="measure='size'"):
        plots.stream_profile(frame, "size")
    assert "take over more" in tells(plots.stream_share_bars(residual.edited_share(grown)))
    assert "keep their share" in tells(plots.stream_share_bars(residual.edited_share(frame.assign(share=0.1))))
    several = pd.concat(
        [frames["share"].assign(method="memit", share=[0.1, 0.4]), frames["share"].assign(method="encore", share=0.1)]
    )
    assert "with some methods" in tells(plots.stream_share_bars(several))
    assert "do not add up" in tells(plots.stream_error_lines(frames["sums"].assign(error_layer=0.1)))


def test_drift_says_how_far_and_where(frames):
    assert "Hidden states drift most behind layer" in tells(plots.drift_profile(frames["drift"]))
    still = frames["drift"].assign(distance=0.0, cosine=1.0, cosine_p05=1.0, norm_ratio=1.0)
    assert "have not drifted" in tells(plots.drift_profile(still))
    with pytest.raises(KetoolsError, match="no row .* finite cosine"):
        plots.drift_profile(frames["drift"].assign(cosine=math.nan))
    norms = frames["activations"]
    larger = norms.assign(mean=norms["mean"] * 2)
    assert "Hidden states grow: 2.00×" in tells(plots.activation_profile(larger, norms))
    assert "keep their length" in tells(plots.activation_profile(norms, norms))
    main = pd.DataFrame({"component": [1, 2], "explained": [0.8, 0.1], "cumulative": [0.8, 0.9]})
    assert "one main direction" in tells(plots.drift_component_bars(main))
    assert "many directions" in tells(plots.drift_component_bars(main.assign(explained=0.1, cumulative=[0.1, 0.2])))
    cloud = pd.DataFrame({"token": range(30), "pc1": [0.1] * 29 + [9.0], "pc2": np.linspace(0, 0.1, 30)})
    assert "1 tokens drift more than three times" in tells(plots.drift_points(cloud))


def test_tables_hold_what_is_drawn(frames):
    table = plots.numbers(plots.target_curve(frames["curve"]))
    assert table["targets"].to_numpy() == pytest.approx(frames["curve"]["p_mean"].to_numpy())
    assert table["targets, low"].to_numpy() == pytest.approx(frames["curve"]["p05"].to_numpy())
    shares = plots.numbers(plots.stream_profile(frames["stream"]))
    now = frames["stream"][(frames["stream"]["state"] == "now") & (frames["stream"]["kind"] == "mlp")]
    assert shares["MLP: now"].to_numpy() == pytest.approx(now["share"].to_numpy())
    said = plots.describe(plots.norm_bars(frames["norm"]))
    assert str(said).startswith(said.finding) and "<details>" in said._repr_html_()
