"""Plausible wrong answers to the exercises of notebook 01: what each does, the answer, and the property that catches it."""

import math
from collections.abc import Sequence

Logs = Sequence[float]


def _mean(logs: Logs) -> float:
    return sum(logs) / len(logs)


def _difference(own: Logs, others: Sequence[Logs]) -> float:
    return math.exp(_mean(own)) - _mean([math.exp(_mean(logs)) for logs in others])


def _mean_of_logs(own: Logs, others: Sequence[Logs]) -> float:
    return _mean(own) - _mean([_mean(logs) for logs in others])


def _product(own: Logs, others: Sequence[Logs]) -> float:
    return sum(own) - math.log(_mean([math.exp(sum(logs)) for logs in others]))


def _own_alone(own: Logs, others: Sequence[Logs]) -> float:
    return _mean(own)


WRONG = {
    "Score an answer of several tokens": [
        ("takes the product", lambda logs: math.exp(sum(logs)), "three tokens of probability 1/4 score 1/4"),
        (
            "takes the mean of probabilities",
            lambda logs: sum(map(math.exp, logs)) / len(logs),
            "the mean is taken of logarithms",
        ),
    ],
    "Measure what the subject adds": [
        ("forgets the others", _own_alone, "a subject that makes no difference adds 0"),
        ("takes the difference", _difference, "ten times as probable is log 10"),
        ("averages logarithms", _mean_of_logs, "the mean over others is one of probabilities"),
        ("multiplies the tokens' probabilities", _product, "an answer of several tokens has one score"),
    ],
}
