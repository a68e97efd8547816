"""Notebook 01: the lens explorer, exercises."""

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.course.claims import Exercise, Property
from ketools.course.widgets.base import View, dropdown
from ketools.errors import KetoolsError
from ketools.plots import lens_heat

Score = Callable[[Sequence[float]], float]
Evidence = Callable[[Sequence[float], Sequence[Sequence[float]]], float]


class LensExplorer(View):
    """The logit lens over several prompts, computed before: choose the prompt and the layers."""

    kind, title, height = "lens", "Lens explorer", 320

    def __init__(self, frames: Mapping[str, pd.DataFrame], *, context: str = "") -> None:
        """`frames`: the table of `lens.lens` by prompt. Raises KetoolsError if there is none."""
        if not frames:
            raise KetoolsError("nothing to explore: give at least one table of probing.lens.lens")
        self.frames, self.context = dict(frames), context
        layers = sorted({int(layer) for frame in frames.values() for layer in frame["layer"]})
        wide, style = W.Layout(width="min(40rem, 100%)"), {"description_width": "7rem"}
        controls = {
            "prompt": dropdown("prompt", list(frames), width="min(40rem, 100%)", indent="7rem"),
            "layers": W.IntRangeSlider(
                value=(layers[0], layers[-1]), min=layers[0], max=layers[-1], description="layers (-1: in)",
                continuous_update=False, layout=wide, style=style,
            ),
        }  # fmt: skip
        super().__init__(controls, [["prompt"], ["layers"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The lens of the chosen prompt at the chosen layers (two at least: a map has columns)."""
        low, high = self.controls["layers"].value
        frame = self.frames[self.controls["prompt"].value]
        return frame[frame["layer"].between(low if low < high else low - 1, high if low < high else high + 1)]

    def figure(self) -> go.Figure:
        """The map of `lens_heat`."""
        return lens_heat(self.data, context=self.context)


score = Exercise(
    "Score an answer of several tokens",
    "easy",
    5,
    properties=(
        Property(
            "one token keeps its probability",
            lambda answer: math.isclose(answer([math.log(0.4)]), 0.4, rel_tol=1e-9),
            "With one token the score is its probability: exp of its log.",
        ),
        Property(
            "three tokens of probability 1/4 score 1/4",
            lambda answer: math.isclose(answer([math.log(0.25)] * 3), 0.25, rel_tol=1e-9),
            "Your score shrinks with the answer's length: a product of probabilities compares lengths, not answers. Take "
            "the mean of the log-probabilities, not their sum.",
        ),
        Property(
            "the mean is taken of logarithms",
            lambda answer: math.isclose(answer([math.log(0.5), math.log(0.02)]), 0.1, rel_tol=1e-9),
            "Tokens of probability 0.5 and 0.02 should score 0.1, their geometric mean: one improbable token must count. "
            "Take the mean first, then exp.",
        ),
    ),
)


def _logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


evidence = Exercise(
    "Measure what the subject adds",
    "medium",
    15,
    properties=(
        Property(
            "a subject that makes no difference adds 0",
            lambda answer: abs(answer(_logs(0.3, 0.5), [_logs(0.3, 0.5)] * 4)) < 1e-5,
            "With the same log-probabilities everywhere the quotient is 1, and its logarithm 0. Score own and others alike.",
        ),
        Property(
            "ten times as probable is log 10",
            lambda answer: abs(answer(_logs(0.5), [_logs(0.05)] * 3) - math.log(10)) < 1e-5,
            "0.5 against 0.05 is ten times as much: log 10, about 2.3. Divide the probabilities, then take the logarithm.",
        ),
        Property(
            "the mean over others is one of probabilities",
            lambda answer: abs(answer(_logs(0.9), [_logs(0.9), _logs(0.001)]) - math.log(0.9 / 0.4505)) < 1e-5,
            "Subjects with which the answer is 0.9 and 0.001 make 0.4505 on average. A mean of logarithms would let one "
            "improbable subject hide that the answer is a good guess for others.",
        ),
        Property(
            "an answer of several tokens has one score",
            lambda answer: abs(answer(_logs(0.8, 0.2), [_logs(0.1, 0.1, 0.1)]) - math.log(4)) < 1e-5,
            "Tokens of 0.8 and 0.2 score 0.4, three of 0.1 score 0.1: 4 times as much, however many tokens there are.",
        ),
    ),
)
