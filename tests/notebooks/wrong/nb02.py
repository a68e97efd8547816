"""Plausible wrong answers to the exercises of notebook 02: what each does, the answer, and the property that catches it."""

from collections.abc import Iterable

from ketools.course.lessons.nb02 import Replacement, States


def _mlps(layers: Iterable[int], states: States) -> list[Replacement]:
    return [("mlp", i, states["mlp"][i]) for i in layers]


def _from_corrupted(layer: int, clean: States, corrupted: States) -> list[Replacement]:
    return [("hidden", layer, corrupted["hidden"][layer]), *_mlps(range(layer + 1, 4), corrupted)]


def _clean_above(layer: int, clean: States, corrupted: States) -> list[Replacement]:
    return [("hidden", layer, clean["hidden"][layer]), *_mlps(range(layer + 1, 4), clean)]


def _one_above(layer: int, clean: States, corrupted: States) -> list[Replacement]:
    return [("hidden", layer, clean["hidden"][layer]), *_mlps(range(layer + 1, 4)[:1], corrupted)]


def _own_too(layer: int, clean: States, corrupted: States) -> list[Replacement]:
    return [("hidden", layer, clean["hidden"][layer]), *_mlps(range(layer, 4), corrupted)]


WRONG = {
    "Say how much came back": [
        ("divides by the clean probability", lambda clean, corrupted, p: p / clean, "0 if nothing came back"),
        ("gives the indirect effect itself", lambda clean, corrupted, p: p - corrupted, "1 if all came back"),
    ],
    "Sever the MLPs": [
        ("restores the corrupted state", _from_corrupted, "the restored state is the clean one"),
        ("takes the clean run's MLPs", _clean_above, "the MLPs above add what they added in the corrupted run"),
        ("severs the next layer alone", _one_above, "the MLPs above add what they added in the corrupted run"),
        ("severs its own layer's MLP", _own_too, "nothing else is replaced"),
    ],
}
