"""Input that cannot be measured is answered by name, whichever measure is asked: nothing is dropped unsaid."""

from dataclasses import replace

import pytest

from ketools import KetoolsError
from ketools.evaluation.downstream import downstream, perplexity
from ketools.evaluation.edits import evaluate, natural_probabilities, recall
from ketools.evaluation.generation import continuations
from ketools.facts.fact import Locality, TwoHop
from ketools.norms.residual import subject_sample, text_sample
from ketools.probing import recall as asked
from ketools.probing.lens import lens
from tests.models.test_prompts import fact

LONG = "Ada " * 200
FAR = fact(f"{LONG}{{}} lives in", "Bo Tarn")
HOP, KEPT = TwoHop(LONG, "Vell", "Bay"), Locality(LONG, "Vell")


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: evaluate(m, [FAR]),
        lambda m: evaluate(m, [replace(fact("{} lives in", "Bo"), two_hop=(HOP,))]),
        lambda m: evaluate(m, [replace(fact("{} lives in", "Bo"), locality=(KEPT,))]),
        lambda m: recall(m, [FAR]),
        lambda m: natural_probabilities(m, [FAR]),
        lambda m: asked.surroundings(m, FAR),
        lambda m: asked.answers(m, [LONG], ["Vell"]),
        lambda m: lens(m, LONG),
        lambda m: continuations(m, [LONG], 3),
        lambda m: subject_sample(m, [FAR]),
    ],
)
def test_a_prompt_longer_than_the_window_is_refused_with_both_lengths(tiny_gpt2, ask):
    with pytest.raises(KetoolsError, match=r"takes \d+ tokens.*window holds 128"):
        ask(tiny_gpt2)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: text_sample(m, []), "without a token to read"),
        (lambda m: text_sample(m, ["", "  \n"]), "2 texts, all blank"),
        (lambda m: perplexity(m, []), "two tokens or more"),
        (lambda m: perplexity(m, ["", " "]), "two tokens or more"),
        (lambda m: continuations(m, [" "], 3), "is blank"),
        (lambda m: subject_sample(m, []), "from 0 facts"),
        (lambda m: downstream(m, n_per_task=0), "n_per_task=0"),
    ],
)
def test_empty_samples_are_refused(tiny_gpt2, ask, said):
    with pytest.raises(KetoolsError, match=said):
        ask(tiny_gpt2)
