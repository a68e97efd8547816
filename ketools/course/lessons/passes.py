"""For lessons: step 1 watched pass by pass, and its targets written as they were at any pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ketools.course.mode import Lab
from ketools.editing.contexts import FactRows, contexts_of, fact_rows
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import FixedSteps, Hyper, Method
from ketools.editing.targets import Descent, Targets
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
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


class _Recorder(Descent):
    # Descent that keeps what it saw in each pass; nothing of what it does changes.

    def __init__(self, model: EditableModel, rows: Sequence[FactRows], hyper: Hyper) -> None:
        super().__init__(model, rows, FixedSteps(), hyper, _AT_ONCE)
        n, passes, d = len(rows), self.passes, model.anatomy.d_model
        self.seen = {name: torch.full((n, passes), torch.nan, dtype=torch.float64) for name in ("p", "loss", "right")}
        self.seen["z"] = torch.full((n, passes, d), torch.nan)

    def _evaluate(self, with_slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loss, chance, best, slope = super()._evaluate(with_slope)
        at, now = self.now["age"].clamp_max(self.passes - 1).cpu(), self.now
        found = {"p": chance, "loss": loss, "right": self._count(~best) == 0, "z": now["h0"] + now["delta"]}
        for name, value in found.items():
            table = self.seen[name]
            table[self.facts.cpu(), at] = value.detach().cpu().to(table.dtype)
        return loss, chance, best, slope


class GivenTargets(Editor):
    """An Editor whose step 1 was done elsewhere: `given` is what it came to."""

    given: Targets

    def _targets(self, *_: object) -> Targets:
        return self.given


def watch(editor: Editor, facts: Sequence[Fact]) -> Watched:
    """Step 1 of `facts` with the editor's settings, all passes taken and kept; the weights are only read."""
    rows = fact_rows(editor.model, facts, contexts_of(editor.prefixes))
    hyper = replace(editor.hyper, loss_floor=0.0)  # no loss is below it: no fact stops
    order = sorted(range(len(rows)), key=lambda i: (rows[i].shares_kl, rows[i].suffix))
    groups = [[i for i in order if rows[i].shares_kl is flag] for flag in (False, True)]
    seen = []
    for group in filter(None, groups):
        descent = _Recorder(editor.model, [rows[i] for i in group], hyper)
        descent.run()
        seen.append(descent.seen | {"h0": descent.all["h0"].cpu()})
    back = torch.tensor([i for group in groups for i in group]).argsort()
    whole = {name: torch.cat([part[name] for part in seen])[back] for name in seen[0]}
    p, loss, right = (whole[name].numpy() for name in ("p", "loss", "right"))
    return Watched(tuple(facts), whole["h0"], whole["z"], p, loss, right == 1)


def floor_steps(watched: Watched, floor: float) -> np.ndarray:
    """Updates (n,) until the loss is below `floor`, all of them where it never is: MEMIT's rule."""
    below = watched.loss < floor
    return np.where(below.any(1), below.argmax(1), below.shape[1] - 1)


def write(lab: Lab, watched: Watched, steps: Sequence[int] | np.ndarray, how: str | Method = "memit") -> Edit:
    """Step 2 alone: the targets as they were after `steps` updates, written by the method `how`; the weights stay."""
    editor = GivenTargets(lab.model, how, statistics=lab.statistics, seed=lab.seed)
    editor.given = watched.stopped(steps)
    with fresh(lab.model):
        return editor.apply(watched.facts)
