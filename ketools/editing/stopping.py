"""When the target optimisation of a fact stops: the first of the two choices that make a method.

The optimisation runs one pass (forward, then a step of Adam) after another. After each forward pass, before the step, a
rule decides for all facts at once. Under any rule a fact also stops when its loss falls below `loss_floor`, and at the
last of `steps` passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ketools.editing.methods import Hyper

_OFFICIAL_PAIRS = 5  # (prefixed prompt, target token) pairs that the authors' code waits for


@dataclass
class Passes:
    """What the passes so far have shown about n facts; all tensors are (n,).

    taken: updates so far, hence the number of this pass; p: the target's probability, the mean over contexts.
    first_top: the first pass in which the target was the most probable token at every target position in every context,
    the bare prompt included; -1 before it. official: the number of passes in which exactly five (prefixed prompt,
    target token) pairs were right, the condition of the authors' code.
    """

    taken: Tensor
    p: Tensor
    first_top: Tensor
    official: Tensor

    def see(self, p: Tensor, wrong: Tensor, right_prefixed: Tensor) -> None:
        """Record a pass: probabilities, and for each fact how many (context, target token) pairs are not the argmax,
        and how many of those of prefixed prompts are.
        """
        self.p = p
        self.first_top = torch.where((self.first_top < 0) & (wrong == 0), self.taken, self.first_top)
        self.official = self.official + (right_prefixed == _OFFICIAL_PAIRS)


@dataclass(frozen=True)
class FixedSteps:
    """All steps are taken, unless the loss falls below `loss_floor` (ROME, MEMIT)."""

    def stops(self, passes: Passes, hyper: Hyper) -> Tensor:
        """Which facts stop at this pass, (n,) bool: none."""
        return torch.zeros_like(passes.taken, dtype=torch.bool)


@dataclass(frozen=True)
class MPES:
    """Most-Probable Early Stopping, Gupta et al., arXiv 2502.01636.

    A fact is done `patience` steps after its target first is the most probable token at every target position in every
    context, the bare prompt included. None: the patience of the model's settings.

    With the setting compat="official" it does what the authors' code does: the bare prompt does not count, exactly five
    (prompt, target token) pairs have to be right (all of them only for single-token targets and five prefixes), and the
    fact is done at the (patience + 1)-th pass in which that holds, whether or not it held in between; patience =
    -prob_cutoff - 1. Both stop before the step of that pass.
    """

    patience: int | None = None

    def stops(self, passes: Passes, hyper: Hyper) -> Tensor:
        """Which facts stop at this pass, (n,) bool."""
        patience = hyper.patience if self.patience is None else self.patience
        if hyper.compat == "official":
            return passes.official > patience
        return (passes.first_top >= 0) & (passes.taken - passes.first_top >= patience)


@dataclass(frozen=True)
class ProbabilityThreshold:
    """A fact is done when its target's probability, the mean over the contexts, exceeds `p`."""

    p: float

    def stops(self, passes: Passes, hyper: Hyper) -> Tensor:
        """Which facts stop at this pass, (n,) bool."""
        return passes.p > self.p


Stopping = FixedSteps | MPES | ProbabilityThreshold
