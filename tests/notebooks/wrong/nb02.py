"""Plausible wrong answers to the exercises of notebook 02: what each does, the answer, and the property that catches it."""

from torch import Tensor, nn

from ketools.course.lessons.nb02 import Hook


def _everywhere(clean: Tensor, position: int) -> Hook:
    return lambda module, args, out: clean.expand_as(out)


def _in_place(clean: Tensor, position: int) -> Hook:
    def hook(module: nn.Module, args: object, out: Tensor) -> Tensor:
        out[:, position] = clean
        return out

    return hook


def _first_row(clean: Tensor, position: int) -> Hook:
    def hook(module: nn.Module, args: object, out: Tensor) -> Tensor:
        new = out.clone()
        new[position // 2 - 1, position] = clean
        return new

    return hook


WRONG = {
    "Say how much came back": [
        ("divides by the clean probability", lambda clean, corrupted, p: p / clean, "0 if nothing came back"),
        ("gives the indirect effect itself", lambda clean, corrupted, p: p - corrupted, "1 if all came back"),
    ],
    "Put one clean state back": [
        ("replaces every position", _everywhere, "all other positions stay"),
        ("replaces the first row alone", _first_row, "it works for several rows"),
        ("writes in place", _in_place, "the module's output is not overwritten"),
    ],
}
