"""Plausible wrong answers to the exercises of notebook 01: what each does, the answer, and the property that catches it."""

import math

from torch import Tensor

from ketools.models.model import EditableModel


def _no_norm(model: EditableModel, state: Tensor) -> Tensor:
    return model.logits(state).softmax(-1)


def _only_logits(model: EditableModel, state: Tensor) -> Tensor:
    return model.logits(model.final_norm(state))


WRONG = {
    "Score an answer of several tokens": [
        ("takes the product", lambda logs: math.exp(sum(logs)), "three tokens of probability 1/4 score 1/4"),
        (
            "takes the mean of probabilities",
            lambda logs: sum(map(math.exp, logs)) / len(logs),
            "the mean is taken of logarithms",
        ),
    ],
    "Write the logit lens": [
        ("forgets the softmax", _only_logits, "what comes out is a distribution over the vocabulary"),
        ("skips the final norm", _no_norm, "behind the last layer it is the model's own output"),
    ],
}
