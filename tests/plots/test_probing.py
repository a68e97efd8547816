"""Figures of probing: on frames of a tiny model, and on frames that show the finding or its absence."""

import math

import numpy as np
import pandas as pd
import pytest

from ketools import Fact, KetoolsError, plots
from ketools.plots.style import numbers, words
from ketools.probing.knockout import knockout
from ketools.probing.lens import lens, lens_trace
from ketools.probing.recall import surroundings, top_tokens
from ketools.probing.tracing import KINDS, average, trace
from tests.plots.figures import MARKUP, known_facts, marked, tells, tiny


@pytest.fixture(scope="module")
def frames(trained_gpt2, tiny_tokenizer):
    """Every frame of ketools.probing, of a model with four layers."""
    model = tiny(trained_gpt2, tiny_tokenizer)
    prompts = [
        ("{} was born in", "Ada Lorn"),
        ("{} plays the", "Mira Quell"),
        ("{} lives in", "Ixian Tower"),
        ("{} was born in", "Bo Tarn"),
    ]
    facts = known_facts(
        model, [Fact(str(i), "r", p, s, "Vell", "Oran Bay", (f"{s} is in",)) for i, (p, s) in enumerate(prompts)]
    )
    fact = facts[0]
    many = ([f.text for f in facts] * 3, [f.target_true for f in facts] * 3)
    return {
        "top": top_tokens(model, fact.text, 5),
        "around": surroundings(model, fact, facts),
        "lens": lens(model, fact.text, 3),
        "one": lens_trace(model, [fact.text], [fact.target_true]),
        "many": lens_trace(model, *many),
        "trace": trace(model, facts, KINDS),
        "knockout": knockout(model, facts),
    }


DRAW = {
    "top": lambda frame: plots.top_token_bars(frame, "a prompt", "Vell", context="n = 3."),
    "around": plots.surroundings_bars,
    "lens": plots.lens_heat,
    "one": plots.lens_lines,
    "many": plots.lens_lines,
    "trace": plots.trace_heat,
    "profile": plots.trace_profile,
    "knockout": plots.knockout_profile,
}
FRAME = {name: "trace" if name == "profile" else name for name in DRAW}


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_tells_what_it_shows(frames, name):
    assert tells(DRAW[name](frames[FRAME[name]]))


@pytest.mark.parametrize("name", DRAW)
def test_empty_tables_and_other_tables_are_named(frames, name):
    frame = frames[FRAME[name]]
    with pytest.raises(KetoolsError, match="no rows"):
        DRAW[name](frame.iloc[:0])
    with pytest.raises(KetoolsError, match="lacks"):
        DRAW[name](pd.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(KetoolsError, match="expected the table of"):
        DRAW[name]([1, 2])


@pytest.mark.parametrize("name", [name for name in DRAW if name not in ("around", "trace")])
def test_one_row_compares_nothing(frames, name):
    if name == "profile":
        return
    with pytest.raises(KetoolsError, match="1 row, where 2 are needed"):
        DRAW[name](frames[FRAME[name]].iloc[:1])


TEXTS = {
    "top": ["token"],
    "lens": ["token", "predicted"],
    "one": ["target"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_from_outside_is_no_markup(frames, name):
    fig = DRAW[name](marked(frames[FRAME[name]], *TEXTS[name]))
    tells(fig)
    shown = fig.to_json().replace("\\u003c", "<").replace("\\u0026", "&")
    assert "<img" not in shown and "&lt;img" in shown and "$x$" not in shown


def test_prompts_and_targets_are_text_too(frames):
    assert MARKUP in tells(plots.top_token_bars(frames["top"], MARKUP, MARKUP))
    one = frames["trace"][frames["trace"]["fact"] == frames["trace"]["fact"].iloc[0]]
    assert "<img" in tells(plots.trace_heat(marked(one, "token")))


def test_top_tokens_say_at_which_place_the_target_is():
    frame = pd.DataFrame({"token": [" Oslo", " Ro", " Rome"], "probability": [0.5, 0.2, 0.1]})
    assert '"Oslo" comes first (0.500)' in tells(plots.top_token_bars(frame, "p", "Oslo"))
    assert 'the model says "Oslo"' in tells(plots.top_token_bars(frame, "p"))
    assert "place 3 (0.100)" in tells(plots.top_token_bars(frame, "p", "Rome"))
    assert "none of the 3" in tells(plots.top_token_bars(frame, "p", "Paris"))


def test_the_lens_says_since_when(frames):
    rows = [(layer, 0, "is", 1, word, 0.5) for layer, word in enumerate(["a", "b", "c", "c"], -1)]
    frame = pd.DataFrame(rows, columns=["layer", "position", "token", "place", "predicted", "probability"])
    assert "layer 1 on" in tells(plots.lens_heat(frame))
    assert "Only the last layer" in tells(plots.lens_heat(frame.assign(predicted=["a", "a", "a", "c"])))
    assert "from the start" in tells(plots.lens_heat(frame.assign(predicted="c")))
    table = numbers(plots.lens_heat(frames["lens"]))
    top = frames["lens"][frames["lens"]["place"] == 1]
    assert table.to_numpy().flatten() == pytest.approx(
        top.pivot(index="position", columns="layer", values="probability").to_numpy().flatten()
    )
    assert list(table.columns) == ["in", "0", "1", "2", "3"]


def test_lens_lines_say_when_the_target_never_comes(frames):
    never = frames["one"].assign(rank=7)
    assert "not the top answer" in tells(plots.lens_lines(never))
    assert "for any of 12" in tells(plots.lens_lines(frames["many"].assign(rank=7))).replace(
        f"{frames['many']['prompt'].nunique()}", "12"
    )
    rank = np.where(frames["one"]["layer"] >= 2, 1, 5)
    assert "after layer 2" in tells(plots.lens_lines(frames["one"].assign(rank=rank)))


def test_tracing_follows_the_effects(frames):
    frame = frames["trace"]
    role, layer, kind = frame["role"].astype(str), frame["layer"], frame["kind"].astype(str)
    found = ((role == "last of the subject") & (layer == 1) & (kind == "mlp")).to_numpy() * 0.4
    shown = frame.assign(effect=found, p_clean=0.6, p_corrupted=0.1)
    title = tells(plots.trace_heat(shown))
    assert "Of 0.500 lost" in title and "layer 1 (+0.4)" in title
    assert "attentions nowhere" in title
    assert "No single restored state" in tells(plots.trace_heat(shown.assign(effect=0.0)))
    profile = tells(plots.trace_profile(shown))
    assert "layer 1: 0.400" in profile and "hidden states nowhere clearly" in profile
    assert "nothing clearly brings" in tells(plots.trace_profile(shown.assign(effect=-0.1)))
    assert tells(plots.trace_profile(average(shown))) == profile


def test_tracing_of_one_fact_has_tokens_and_no_interval(frames):
    name = frames["trace"]["fact"].iloc[0]
    one = frames["trace"][frames["trace"]["fact"] == name]
    fig = plots.trace_heat(one)
    assert any(str(text).endswith("*") for text in fig.layout.yaxis.ticktext)
    assert numbers(fig).loc["MLPs"].to_numpy().sum() == pytest.approx(one[one["kind"] == "mlp"]["effect"].sum())
    alone = plots.trace_profile(one)
    tells(alone)
    assert (
        all(trace.error_y.array is None for trace in alone.data)
        and "without an interval" in alone.layout.meta["caption"]
    )
    with pytest.raises(KetoolsError, match="nothing at 'last of the subject'"):
        plots.trace_profile(one[one["role"] != "last of the subject"])
    with pytest.raises(KetoolsError, match="several positions together"):
        plots.trace_heat(one.assign(position=-1))


def test_knockout_says_where_it_costs(frames):
    frame = frames["knockout"]
    change = np.where((frame["source"] == "subject") & (frame["layer"] >= 2), -0.5, 0.0)
    assert "layers 2 and 3 (by 50%" in tells(plots.knockout_profile(frame.assign(change=change)))
    assert "does not clearly lower" in tells(plots.knockout_profile(frame.assign(change=0.1)))
    assert tells(plots.knockout_profile(frame.assign(change=np.where(frame["layer"] == 0, math.nan, change))))


def around(prompt, neighbour):
    return pd.DataFrame({"kind": ["prompt", "paraphrase", "neighbour"], "p_new": [prompt, prompt, neighbour]})


def test_one_edit_raises_or_lowers_its_answer():
    up = plots.before_after(around(0.0, 0.0), around(0.9, 0.1), "Oslo", "model tiny, seed 3.")
    assert "rises from 0.00 to 0.90" in tells(up) and "neighbours (0.10)" in tells(up)
    assert list(up.data[1].y) == [0.9, 0.9, 0.1] and words(up)["caption"].endswith("model tiny, seed 3.")
    assert "falls from 0.90 to 0.20" in tells(plots.before_after(around(0.9, 0.0), around(0.2, 0.1), "Oslo", "test."))


def test_damage_counts_the_wanted_answer_new_at_the_edit_and_old_around_it():
    kinds = ["prompt", "paraphrase", "neighbour", "neighbour", "same subject"]
    before = pd.DataFrame({"kind": kinds, "says_new": False, "says_true": True})
    after = before.assign(says_new=[True, False, True, False, True], says_true=[False, True, False, True, False])
    fig = plots.damage_bars({"before": before, "after": after}, "Mode test.")
    assert [list(bar.y) for bar in fig.data] == [[0, 0, 1, 1], [1, 0, 0.5, 0]]
    assert "0% of the subject's other facts" in tells(fig) and words(fig)["caption"].endswith("Mode test.")
    three = plots.damage_bars({"before": before, "a": after, "b": before})
    assert "0% with a, 100% with b" in tells(three) and len(three.data) == 3
    with pytest.raises(KetoolsError, match="says_new"):
        plots.damage_bars({"before": before, "after": around(0.9, 0.1)})


def test_the_more_probable_answer_is_named_by_kind_of_prompt(frames):
    frame = frames["around"].assign(p_new=0.1, p_true=0.2)
    assert "old answer" in tells(plots.surroundings_bars(frame))
    asked = frame.assign(p_new=np.where(frame["kind"] == "prompt", 0.9, 0.1))
    assert "at the prompt (" in tells(plots.surroundings_bars(asked))
