"""How many tokens are enough: what more of them still change in C, and in the update that is computed with it."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.checks import checked_rows
from ketools.editing.keys import keys_and_states
from ketools.editing.methods import MEMIT
from ketools.editing.moments import Moments, accumulate
from ketools.editing.statistics import default_tokens
from ketools.editing.updates import Protection, least_squares
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel


def convergence(
    model: EditableModel,
    texts: Iterable[str],
    layers: Sequence[int],
    facts: Sequence[Fact],
    max_tokens: int | None = None,
    *,
    length: int = 256,
) -> pd.DataFrame:
    """One pass over `texts`, looked at whenever the number of tokens has doubled, from d_mlp / 2 on.

    An update is Delta = R Y with Y = (I + K1^T A^-1 K1)^-1 K1^T A^-1 and A = lambda_p C (MEMIT, arXiv 2210.07229,
    equation 14). R does not depend on C, so Y (facts, d_mlp) of the keys of `facts` stands for every update of them.

    Returns:
        One row per look and layer: layer, tokens, multiple (of d_mlp), change_c and change_update (Frobenius norm of
        the difference to the look before, relative to the present one; NaN at the first), distance_update (the same to
        the last look). The update's are NaN where C is singular still.

    Raises:
        KetoolsError: facts that cannot be edited, no tokens.
    """
    rows = checked_rows(model, facts, ("",))
    keys = {i: keys_and_states(model, rows, i, i)[0] for i in layers}
    looks = _Looks(keys, MEMIT.settings(model).value("lambda_p", model.anatomy.d_mlp), model.anatomy.d_mlp)
    end = accumulate(
        model, texts, layers, max_tokens or default_tokens(model), min(length, model.window or length), observe=looks
    )
    if end.tokens == 0:
        raise KetoolsError("the texts for the statistics hold no tokens; give running text")
    if looks.tokens[-1:] != [end.tokens]:
        looks.take(end)
    return looks.to_frame()


class _Looks:
    """Keeps of each look what later ones are compared with: the last C, and every Y."""

    def __init__(self, keys: dict[int, Tensor], lambda_p: float, d_mlp: int) -> None:
        self.keys, self.lambda_p, self.d_mlp = keys, lambda_p, d_mlp
        self.due = d_mlp / 2
        self.tokens: list[int] = []
        self.last: dict[int, Tensor] = {}
        self.change: dict[int, list[float]] = {i: [] for i in keys}
        self.updates: dict[int, list[Tensor]] = {i: [] for i in keys}

    def __call__(self, moments: Moments) -> None:
        if moments.tokens >= self.due:
            self.take(moments)
            while self.due <= moments.tokens:
                self.due *= 2

    def take(self, moments: Moments) -> None:
        self.tokens.append(moments.tokens)
        for i, total in moments.sums.items():
            c = total / moments.tokens
            self.change[i].append(_distance(self.last[i], c) if i in self.last else float("nan"))
            self.last[i] = c
            self.updates[i].append(self._update(i, c))

    def _update(self, layer: int, c: Tensor) -> Tensor:
        keys = self.keys[layer]
        unit = torch.eye(keys.shape[1], dtype=torch.float64)
        try:
            return least_squares(Protection(self.lambda_p * c, name=f"C of layer {layer}"), keys, unit)[1]
        except KetoolsError:  # singular so far: there is no update yet
            return torch.full_like(keys, float("nan"))

    def to_frame(self) -> pd.DataFrame:
        parts = []
        for i, ys in self.updates.items():
            steps = [float("nan"), *(_distance(a, b) for a, b in pairwise(ys))]
            ends = [_distance(y, ys[-1]) for y in ys]
            part = {"layer": i, "tokens": self.tokens, "multiple": [n / self.d_mlp for n in self.tokens]}
            parts.append(
                pd.DataFrame(part | {"change_c": self.change[i], "change_update": steps, "distance_update": ends})
            )
        return pd.concat(parts, ignore_index=True)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
