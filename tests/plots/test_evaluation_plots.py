"""Figures of evaluation: on frames of a tiny model and on frames that show the finding or its absence."""

import math

import numpy as np
import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.evaluation import forgetting, overfitting
from ketools.evaluation.downstream import downstream
from ketools.evaluation.edits import evaluate, recall
from ketools.evaluation.generation import answers
from ketools.evaluation.overfitting import spill
from ketools.plots import figures as plots
from tests.plots.figures import MARKUP, tells, tiny
from tests.small_world import small_facts

IDS = list("abcdefghij")


@pytest.fixture(scope="module")
def real(trained_gpt2, tiny_tokenizer):
    """Frames of an unedited tiny model."""
    model, facts = tiny(trained_gpt2, tiny_tokenizer), small_facts()[:8]
    items = {
        "task": "t",
        "split": "test",
        "prompt": "Ada Lorn was born in",
        "choices": [["Vell", "harp"]] * 4,
        "answer": [0, 1, 0, 1],
    }
    return {
        "scores": evaluate(model, facts),
        "recall": recall(model, facts),
        "spill": spill(model, facts, facts),
        "answers": answers(model, facts),
        "tasks": downstream(model, pd.DataFrame(items | {"id": range(4)})),
    }


def facts_table(**columns):
    return pd.DataFrame({"id": IDS, "relation": ["r"] * 5 + ["s"] * 5} | columns)


def scores(es, ps=1.0, ns=1.0):
    return facts_table(efficacy_success=es, paraphrase_success=ps, neighbourhood_success=ns)


def spilled(share, p=0.3):
    spread = np.linspace(0.0, 1.0, 10) < share
    return facts_table(prompt="q", p_target=p, p_own=0.4, spilled=spread.astype(float))


def hops(p_true, p_new):
    return facts_table(question="q", p_true=p_true, p_new=p_new, says_new=0.0)


def kept(*values):
    return pd.DataFrame({"edits": [100, 200, 300], "now": values, "at_edit": 1.0, "kept": values})


def consequences(followed, old, broken):
    return pd.Series({"followed": followed, "kept": old, "broken": broken, "known": 20, "unknown": 4})


def judged(only_a, only_b):
    a, b = [1.0] * only_a + [0.0] * only_b, [0.0] * only_a + [1.0] * only_b
    tables = [pd.DataFrame({"id": range(len(x) + 5), "end_efficacy_success": [*x, 1, 1, 1, 0, 0]}) for x in (a, b)]
    return forgetting.mcnemar(*tables)


INTERVALS = pd.DataFrame({"measure": ["ES", "PS"], "mean": [0.9, 0.5], "low": [0.8, 0.3], "high": [1.0, 0.7], "n": 9})
DAMAGE = pd.DataFrame(
    {"measure": ["ES", "NS"], "spearman": [-0.9, 0.1], "spearman_p": [0.001, 0.7], "pearson": 0.1, "n": 9}
)
HARNESS = pd.DataFrame({"task": ["a", "b"], "metric": "acc", "value": [0.4, 0.6], "stderr": [0.1, math.nan], "n": 9})
FREE = facts_table(GE=np.linspace(400, 420, 10), RS=np.linspace(0.1, 0.3, 10))
TASKS = pd.DataFrame({"task": ["a", "b"], "n": 30, "accuracy": 0.8, "f1": [0.8, 0.9]})
ANSWERS = facts_table(forced=1.0, starts=0.0, exact=0.0, contains=0.5)
QUANTILES = overfitting.quantiles(np.linspace(0.5, 1, 9), np.linspace(0.1, 0.6, 9))
DRAW = {
    "scores": (plots.score_bars, scores(1.0)),
    "recall": (plots.recall_bars, facts_table(accuracy=[1.0, 0.0] * 5)),
    "generation": (plots.generation_bars, ANSWERS),
    "free": (plots.free_text_bars, FREE),
    "tasks": (plots.task_bars, TASKS),
    "harness": (plots.harness_forest, HARNESS),
    "quantiles": (plots.quantile_lines, QUANTILES),
    "spill": (plots.spill_bars, spilled(0.5)),
    "two hop": (plots.two_hop_bars, hops(0.5, 0.1)),
    "forgetting": (plots.forgetting_lines, kept(1.0, 0.7, 0.4)),
    "intervals": (plots.interval_forest, INTERVALS),
    "damage": (plots.damage_bars, DAMAGE),
}


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_tells_what_it_shows(name):
    draw, frame = DRAW[name]
    assert tells(draw(frame, context="Mode quick, model tiny, n = 10, seed 0."))


@pytest.mark.parametrize("name", DRAW)
def test_empty_tables_and_other_tables_are_named(name):
    draw, frame = DRAW[name]
    with pytest.raises(KetoolsError, match="no rows"):
        draw(frame.iloc[:0])
    with pytest.raises(KetoolsError, match="lacks"):
        draw(pd.DataFrame({"x": [1.0, 2.0]}))


@pytest.mark.parametrize("name", DRAW)
def test_one_row_is_drawn_without_an_interval_or_refused(name):
    draw, frame = DRAW[name]
    if name in ("quantiles", "forgetting"):
        with pytest.raises(KetoolsError, match="1 row, where 2 are needed"):
            draw(frame.iloc[:1])
    else:
        assert tells(draw(frame.iloc[:1]))


def test_frames_of_a_model_are_drawn(real):
    assert tells(plots.score_bars(real["scores"])) and tells(plots.score_bars(real["scores"], "accuracy"))
    assert tells(plots.recall_bars(real["recall"])) and tells(plots.generation_bars(real["answers"]))
    assert tells(plots.spill_bars(real["spill"])) and tells(plots.task_bars(real["tasks"]))


def test_scores_say_who_holds():
    half = [1.0, 0.0] * 5
    assert tells(plots.score_bars({"before": scores(0.0), "now": scores(1.0)})).startswith(
        "Edits hold (the prompt 100%"
    )
    assert tells(plots.score_bars({"memit": scores(half), "encore": scores(1.0)})).startswith(
        "Edits hold with ENCORE only"
    )
    assert tells(plots.score_bars(scores(half))).startswith("Edits do not all hold (the prompt 50% [")
    with pytest.raises(KetoolsError, match="measure='size'"):
        plots.score_bars(scores(1.0), "size")
    with pytest.raises(KetoolsError, match="no tables"):
        plots.score_bars({})


def test_what_was_known_is_kept_or_lost():
    before = facts_table(accuracy=[1.0] * 8 + [0.0] * 2)
    assert "survive (100% still said)" in tells(plots.kept_bars(before, facts_table(accuracy=1.0)))
    lost = plots.kept_bars(before, facts_table(accuracy=[1.0, 0.0] * 5))
    assert "get lost (50%" in tells(lost) and "2 that it did not are left out" in lost.layout.meta["caption"]
    assert "with some methods only" in tells(
        plots.kept_bars(before, {"memit": facts_table(accuracy=0.0), "encore": before})
    )
    with pytest.raises(KetoolsError, match="different facts"):
        plots.kept_bars(before, facts_table(accuracy=1.0).assign(id="x"))
    with pytest.raises(KetoolsError, match="said none of the 10"):
        plots.kept_bars(before.assign(accuracy=0.0), before)


def test_generation_is_held_against_teacher_forcing():
    assert "Teacher forcing promises more" in tells(plots.generation_bars(ANSWERS))
    assert "writes what teacher forcing promises" in tells(plots.generation_bars(ANSWERS.assign(starts=1.0)))
    less = FREE.assign(GE=FREE["GE"] - 200)
    assert "repeats itself more" in tells(plots.free_text_bars({"before": FREE, "now": less}))
    assert "more varied" in tells(plots.free_text_bars({"before": less, "now": FREE}))
    assert "within its intervals" in tells(plots.free_text_bars({"before": FREE, "now": FREE}))
    assert tells(plots.free_text_bars(FREE.assign(RS=math.nan)))


def test_bars_of_tasks_have_the_intervals_of_their_table():
    between = TASKS.assign(low=[0.7, 0.85], high=[0.95, 0.92])
    fig = plots.task_bars({"before": between, "now": between})
    assert (
        "intervals" in plots.words(fig)["caption"] and "intervals" not in plots.words(plots.task_bars(TASKS))["caption"]
    )
    assert list(fig.data[0].error_y.array) == pytest.approx([0.15, 0.02])
    assert list(fig.data[0].error_y.arrayminus) == pytest.approx([0.1, 0.05])
    assert plots.describe(fig).table.iloc[0].tolist() == pytest.approx([0.8, 0.7, 0.95] * 2)


def test_tasks_survive_or_decline():
    assert "Downstream skill survives" in tells(plots.task_bars({"before": TASKS, "now": TASKS}))
    assert "Downstream skill declines" in tells(plots.task_bars({"before": TASKS, "now": TASKS.assign(f1=0.3)}))
    both = {"before": TASKS, "memit": TASKS.assign(f1=0.3), "encore": TASKS}
    assert "survives with some methods only" in tells(plots.task_bars(both))
    with pytest.raises(KetoolsError, match="finite value"):
        plots.harness_forest(HARNESS.assign(value=math.nan))


def test_overfit_is_said_only_where_it_is():
    low, high = np.linspace(0.1, 0.5, 40), np.linspace(0.6, 1.0, 40)
    assert "are surer than natural ones (" in tells(plots.probability_curve(high, low))
    assert "are no surer than" in tells(plots.probability_curve(low, low))
    assert "are less sure than" in tells(plots.probability_curve(low, high))
    assert "with MEMIT only" in tells(plots.probability_curve({"memit": high, "encore": low}, low))
    assert "at every quantile" in tells(plots.quantile_lines(QUANTILES))
    assert "at no quantile" in tells(plots.quantile_lines(QUANTILES.assign(difference=-0.1)))
    assert "than of natural ones with MEMIT (" in tells(
        plots.overfit_bars({"memit": overfitting.overfit(0.9, 0.5), "encore": overfitting.overfit(0.4, 0.5)})
    )
    assert "No surer of edited facts" in tells(plots.overfit_bars({"encore": overfitting.overfit(0.4, 0.5)}))
    with pytest.raises(KetoolsError, match="none finite"):
        plots.probability_curve([], low)
    with pytest.raises(KetoolsError, match="nothing to draw"):
        plots.overfit_bars({})


def test_spill_and_consequences_follow_the_data():
    assert "spills onto other prompts" in tells(plots.spill_bars({"before": spilled(0.0), "now": spilled(0.6)}))
    assert "stays where it was edited in" in tells(plots.spill_bars({"before": spilled(0.0), "now": spilled(0.0)}))
    assert "no likelier elsewhere than before" in tells(plots.spill_bars({"before": spilled(0.6), "now": spilled(0.6)}))
    with pytest.raises(KetoolsError, match="with other prompts has no rows"):
        plots.spill_bars(spilled(0.1).assign(prompt=None))
    assert "do not follow the edit" in tells(plots.two_hop_bars({"before": hops(0.6, 0.1), "now": hops(0.5, 0.2)}))
    assert "Consequences follow the edit" in tells(plots.two_hop_bars(hops(0.1, 0.7)))
    assert "do not follow" in tells(plots.ripple_bars(consequences(0.1, 0.6, 0.3)))
    assert "consequences follow (" in tells(plots.ripple_bars(consequences(0.8, 0.1, 0.1)))
    mixed = {"memit": consequences(0.8, 0.1, 0.1), "encore": consequences(0.1, 0.6, 0.3)}
    assert "with some methods only" in tells(plots.ripple_bars(mixed))
    with pytest.raises(KetoolsError, match="questions answered before"):
        plots.ripple_bars(consequences(math.nan, math.nan, math.nan))


def test_forgetting_has_a_half_life_where_half_is_gone():
    gone = tells(plots.forgetting_lines(kept(1.0, 0.6, 0.4)))
    assert "Half of the edits get lost (40% kept after 300 edits, half-life 250" in gone
    assert "no half-life in sight" in tells(plots.forgetting_lines(kept(1.0, 1.0, 1.0)))
    assert "by extrapolation" in tells(plots.forgetting_lines(kept(1.0, 0.9, 0.8)))
    both = pd.concat([kept(1.0, 0.6, 0.4).assign(method="memit"), kept(1.0, 1.0, 1.0).assign(method="encore")])
    assert "Half of the edits get lost with MEMIT" in tells(plots.forgetting_lines(both))
    aged = kept(1.0, 0.6, 0.4).rename(columns={"edits": "age"})
    assert plots.forgetting_lines(aged).layout.xaxis.title.text.startswith("edits made after")
    with pytest.raises(KetoolsError, match="finite kept"):
        plots.forgetting_lines(kept(*[math.nan] * 3))


def test_methods_differ_only_where_it_is_sure():
    sure, unsure = judged(20, 2), judged(3, 2)
    fig = plots.mcnemar_forest({("encore", "memit"): sure, ("encore", "alphaedit"): unsure})
    assert tells(fig) == "ENCORE has more facts than MEMIT (20 against 2 alone, p below .001)"
    ends = plots.numbers(fig)
    assert ends["estimate, low"].iloc[0] > 0.5 > ends["estimate, low"].iloc[1], "the interval agrees with the test"
    assert "No two methods differ for certain" in tells(plots.mcnemar_forest({("a", "b"): unsure}))
    assert tells(plots.mcnemar_forest({("a", "b"): judged(0, 0), ("a", "c"): unsure}))
    heat = plots.mcnemar_heat(sure, "encore", "memit")
    assert "ENCORE has more facts" in tells(heat) and plots.numbers(heat).to_numpy().sum() == sure["n"]
    assert "MEMIT has more facts" in tells(plots.mcnemar_heat(judged(2, 20), "encore", "memit"))
    with pytest.raises(KetoolsError, match="no pairs"):
        plots.mcnemar_forest({})
    with pytest.raises(KetoolsError, match="lacks"):
        plots.mcnemar_heat(pd.Series({"x": 1}), "a", "b")


def test_damage_names_only_what_is_sure():
    assert tells(plots.damage_bars(DAMAGE)).startswith("With the norm go: ES -0.90 (")
    assert "No measure goes with the norm" in tells(plots.damage_bars(DAMAGE.assign(spearman_p=0.5)))
    with pytest.raises(KetoolsError, match="finite spearman"):
        plots.damage_bars(DAMAGE.assign(spearman=math.nan))


def test_names_from_outside_are_text():
    tells(plots.score_bars({MARKUP: scores(1.0), "encore": scores(1.0)}))
    tells(plots.recall_bars(facts_table(accuracy=1.0).assign(relation=MARKUP)))
    tells(
        plots.kept_bars(facts_table(accuracy=1.0).assign(relation=[MARKUP] * 5 + ["s"] * 5), facts_table(accuracy=1.0))
    )
    tells(plots.task_bars(TASKS.assign(task=[MARKUP, "b"])))
    tells(plots.harness_forest(HARNESS.assign(task=MARKUP)))
    tells(plots.mcnemar_forest({(MARKUP, "b"): judged(9, 1)}))
    tells(plots.mcnemar_heat(judged(9, 1), MARKUP, "b"))
    tells(plots.interval_forest(INTERVALS.assign(measure=[MARKUP, "b"])))
    tells(plots.ripple_bars({MARKUP: consequences(0.1, 0.6, 0.3)}))
    tells(plots.probability_curve({MARKUP: [0.1, 0.2]}, [0.1, 0.3]))
