"""For lessons: step 1 watched pass by pass, and its targets written as they were at any pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.keys import contexts_of
from ketools.editing.methods import FixedSteps, Method
from ketools.editing.targets import Pass, Targets, compute_targets
from ketools.facts.fact import Fact
from ketools.models.weights import fresh

_AT_ONCE = 16  # facts of step 1 at once


@dataclass(frozen=True, eq=False)
class Watched:
    """Step 1 of n facts with all its passes: p, loss (n, passes) float64; right (n, passes) bool, the target is the most
    probable token at all its positions in all contexts; z (n, passes, d_model) float32, the target state of each pass.
    """

    facts: tuple[Fact, ...]
    h0: Tensor
    z: Tensor
    p: np.ndarray
    loss: np.ndarray
    right: np.ndarray

    def stopped(self, steps: Sequence[int] | np.ndarray) -> Targets:
        """What step 1 comes to if it stops after `steps` (n,) updates."""
        at = torch.as_tensor(np.asarray(steps), dtype=torch.long)
        every, n = torch.arange(len(at)), len(at)
        p, loss = torch.tensor(self.p), torch.tensor(self.loss)
        after = torch.arange(p.shape[1])[None] > at[:, None]
        z, known = self.z[every, at], torch.tensor(self.right[:, 0])
        places = {name: torch.ones(n, dtype=torch.long) for name in ("positions", "tokens")}
        return Targets(
            z=z, h0=self.h0, delta_norm=(z - self.h0).norm(dim=1), steps=at, p_target=p[every, at].float(),
            loss=loss[every, at].float(), trace=p.masked_fill(after, torch.nan).float(), known=known, **places,
        )  # fmt: skip


def watch(editor: Editor, facts: Sequence[Fact]) -> Watched:
    """Target optimisation of `facts` with the editor's settings, all passes taken and kept; the weights are only read."""
    # No loss is below a floor of 0: no fact stops.
    hyper = replace(editor.hyper, loss_floor=0.0, facts_at_once=_AT_ONCE)
    n, passes = len(facts), max(1, hyper.steps)
    table = {name: torch.full((n, passes), torch.nan, dtype=torch.float64) for name in ("p", "loss", "top")}
    z = torch.full((n, passes, editor.model.anatomy.d_model), torch.nan)

    def keep(seen: Pass) -> None:
        at = (seen.facts, seen.taken)
        z[at] = seen.z
        for name, column in table.items():
            column[at] = getattr(seen, name).double()

    contexts = contexts_of(editor.prefixes)
    found = compute_targets(editor.model, facts, contexts, FixedSteps(), hyper, callback=keep)
    p, loss, top = (table[name].numpy() for name in ("p", "loss", "top"))
    return Watched(tuple(facts), found.h0, z, p, loss, top == 1)


def floor_steps(watched: Watched, floor: float) -> np.ndarray:
    """Updates (n,) until the loss is below `floor`, all of them where it never is: MEMIT's rule."""
    below = watched.loss < floor
    return np.where(below.any(1), below.argmax(1), below.shape[1] - 1)


def write(lab: Lab, watched: Watched, steps: Sequence[int] | np.ndarray, how: str | Method = "memit") -> Edit:
    """Step 2 alone: the targets as they were after `steps` updates, written by the method `how`; the weights stay."""
    editor = Editor(lab.model, how, statistics=lab.statistics, seed=lab.seed)
    with fresh(lab.model):
        return editor.apply(watched.facts, targets=watched.stopped(steps))
