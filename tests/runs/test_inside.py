"""What a checkpoint sees inside the model: plain versions of the same numbers, and settings that leave each measure out."""

import math
from dataclasses import replace

import pytest
import torch

from ketools.editing.edit import Edit
from ketools.norms.residual import contributions, text_sample
from ketools.runs.panel import Panel, Sizes
from tests.runs.conftest import SIZES, TASKS, TEXTS
from tests.runs.test_lifelong import undo_all


@pytest.fixture
def grown(tiny_gpt2):
    """The tiny model with layer 1 three times as large."""
    weight = tiny_gpt2.weight(1)
    factors = (torch.eye(len(weight)), 2.0 * weight.T.clone())
    Edit({1: factors}, {"fingerprint": tiny_gpt2.fingerprint}).apply_to(tiny_gpt2)
    return tiny_gpt2


def with_sizes(panel, **sizes):
    return replace(panel, sizes=replace(panel.sizes, **sizes))


def test_spectra_are_of_the_edited_layers_relative_to_before(grown, panel):
    row, tables = with_sizes(panel, residual_tokens=0).inside(grown, [1, 2])
    assert row["spectral_ratio"] == pytest.approx(3.0, rel=1e-6)  # layer 2 stayed at 1
    assert row["effective_rank_ratio"] == pytest.approx(1.0, rel=1e-6)
    assert list(tables) == ["spectra"] and tables["spectra"]["layer"].tolist() == [1, 2]
    top = torch.linalg.svdvals(grown.weight(1).double())[0]
    assert tables["spectra"]["spectral_norm"].iloc[0] == pytest.approx(float(top))


def test_shares_are_of_the_edited_mlps(grown, panel):
    row, tables = with_sizes(panel, spectra=False, residual_tokens=12).inside(grown, [1])
    plain = contributions(grown, text_sample(grown, TEXTS, 12), edited=[1])
    edited = plain[(plain["layer"] == 1) & (plain["kind"] == "mlp")]
    assert row["residual_share"] == pytest.approx(float(edited["share"].iloc[0]))
    assert tables["residual"].equals(plain) and tables["residual"]["share"].sum() == pytest.approx(1.0)
    assert math.isnan(row["spectral_ratio"])


def test_a_model_that_is_not_finite_has_no_such_numbers_and_the_run_goes_on(tiny_gpt2, panel):
    tiny_gpt2.weight(1)[0, 0] = math.nan
    with pytest.warns(UserWarning, match="not measured: "):
        row, tables = with_sizes(panel, residual_tokens=12).inside(tiny_gpt2, [1])
    assert all(map(math.isnan, row.values())) and not tables


def test_every_measure_can_be_left_out(run, tiny_gpt2, facts):
    sizes = Sizes(
        unedited=0, same_subject=0, per_task=0, documents=0, neighbours=0, neighbours_end=0, past_edits=False, spectra=False,
        residual_tokens=0,
    )  # fmt: skip
    panel = Panel.take(tiny_gpt2, facts, facts.sample(8, 0), sizes=sizes, tasks=TASKS, texts=())
    record = run("bare", panel=panel)
    middle, last = record.checkpoints.iloc[1], record.checkpoints.iloc[2]
    measured = (
        "unedited_kept",
        "same_subject_kept",
        "downstream_kept",
        "perplexity",
        "spectral_ratio",
        "residual_share",
    )
    assert all(math.isnan(last[name]) for name in measured) and record.spectra.empty and record.residual.empty
    assert math.isnan(middle["ES"]) and not math.isnan(last["ES"]), "edits are scored at the end in any case"
    assert math.isnan(last["NS"])


def test_the_record_holds_them_at_every_checkpoint(run):
    record = run()
    assert record.spectra.groupby("edits")["layer"].apply(list).to_dict() == {0: [1, 2], 6: [1, 2], 8: [1, 2]}
    assert record.residual.groupby("edits").size().tolist() == [9, 9, 9]
    assert record.checkpoints["spectral_ratio"].iloc[0] == 1.0


def test_edits_are_compared_with_the_probabilities_of_natural_facts(run, tiny_gpt2, panel):
    p_edited = run().facts["end_p_new"]
    undo_all(tiny_gpt2)
    record = run("between", panel=replace(panel, natural=(p_edited.median(),)))
    above = record.checkpoints["p_above_natural"]
    assert above.isna().tolist() == [True, False, False]
    assert 0 < above.iloc[-1] == (p_edited > p_edited.median()).mean() < 1
    undo_all(tiny_gpt2)
    assert run("without", panel=replace(panel, natural=())).checkpoints["p_above_natural"].isna().all()


def test_a_panel_comes_back_as_it_was_taken(tiny_gpt2, facts):
    panel = Panel.take(tiny_gpt2, facts, facts.sample(8, 0), sizes=SIZES, tasks=TASKS, texts=TEXTS)
    again = Panel.again(panel.kept(), tiny_gpt2, facts, Sizes(per_task=0, documents=0), 0)
    for name in ("unedited", "same_subject", "natural", "norms", "f1"):
        assert getattr(again, name) == getattr(panel, name), name
    with pytest.raises(ValueError, match="the facts were changed since it began"):
        Panel.again(panel.kept(), tiny_gpt2, facts[:1], Sizes(per_task=0, documents=0), 0)
