"""Step 1: for every fact the state z at the subject's last token that makes the model say the new object.

For one fact delta (d_model,) is added to the output of layer L at the subject's last token, in every context, and
minimises (Meng et al., arXiv 2210.07229, equation 15; Gupta et al., arXiv 2502.01636, section 2)

    mean over contexts of the target's mean token NLL
    + kl_factor KL(p_0 || p_delta) of the token after "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||h_0||^2

with Adam, projected onto ||delta|| <= clamp_norm_factor ||h_0|| after every step. z = h_0 + delta, h_0 read from the
bare prompt. Facts are independent problems: they share a batch and nothing else.

This module puts the facts into pools of like length; ketools.editing.descent runs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch

from ketools.editing.descent import Descent, Targets
from ketools.editing.hyper import Hyper
from ketools.editing.methods import Stopping
from ketools.editing.rows import LEVELS, FactRows, fact_rows
from ketools.errors import NotFinite
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.prefix import tell_unshared

__all__ = ["Targets", "compute_targets", "not_finite", "tokens_at_once"]

_TOKENS_ON_CPU = 1536  # tokens computed on at once: enough for full-speed matrix products, little memory
_TOKENS = (512, 16384)  # on an accelerator, at least and at most
_SHARE = 0.5  # of an accelerator's free memory that step 1 may take
_POOL = 4  # so many times the facts computed on at once are frozen at once: who is done is replaced from there
_PADDING = 0.15  # share of padding that a pool may have for the sake of its size


def compute_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    stopping: Stopping,
    hyper: Hyper,
    progress: Callable[[int], None] | None = None,
    rows: Sequence[FactRows] | None = None,
) -> Targets:
    """Step 1 for all `facts` at layer L = hyper.layers[-1]; `contexts` are texts put before the prompt, "" first.

    `rows` are those of `fact_rows`, if they are at hand already.

    `progress` is called with the number of facts done since the last call. The weights are only read.
    Warns (UserWarning, once) of a model whose prompts cannot be replayed or share no beginnings.
    Raises KetoolsError for a fact that cannot be edited or whose optimisation leaves the finite numbers.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    rows = fact_rows(model, facts, contexts) if rows is None else rows
    tell_unshared(model, [row.ids for fact in rows for row in fact.contexts], LEVELS)
    results: list[tuple[list[int], Targets]] = []
    for chosen, at_once in _pools(rows, hyper.facts_at_once, tokens_at_once(model, hyper.layers[-1])):
        got = Descent(model, [rows[i] for i in chosen], stopping, hyper, at_once).run(progress)
        results.append((chosen, got))
    order = torch.tensor([i for chosen, _ in results for i in chosen]).argsort()
    parts = [got for _, got in results]
    whole = Targets(**{f.name: torch.cat([getattr(part, f.name) for part in parts])[order] for f in fields(Targets)})
    _check_finite(model, whole, facts)
    return whole


def tokens_at_once(model: EditableModel, layer: int) -> int:
    """Tokens to compute on at once when `layer` is the last edited one: fixed on a CPU, from the free memory elsewhere.

    By what one token leaves behind for the gradient in the layers above; passes without a gradient need less.
    """
    if model.device.type == "cpu":
        return _TOKENS_ON_CPU
    about, above = model.anatomy, model.anatomy.n_layer - 1 - layer
    free, _ = torch.accelerator.get_memory_info(model.device)
    one = max(1, above) * (12 * about.d_model + 5 * about.d_mlp) * model.dtype.itemsize
    return int(min(max(_SHARE * free / one, _TOKENS[0]), _TOKENS[1]))


def _pools(rows: Sequence[FactRows], facts_at_once: int | None, tokens: int) -> list[tuple[list[int], int]]:
    # Facts of like suffix length together, and how many of them at once; a pool ends where padding would cost more
    # than its size gains.
    pools: list[tuple[list[int], int]] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].shares_kl, rows[i].suffix)):
        pool = pools[-1][0] if pools else []
        longest, n = rows[i].suffix, len(pool) + 1
        at_once = facts_at_once or max(1, tokens // (longest * len(rows[i].contexts)))
        live = sum(rows[j].suffix for j in pool) + longest
        like = bool(pool) and rows[pool[0]].shares_kl == rows[i].shares_kl
        if like and n <= _POOL * at_once and longest * n - live <= _PADDING * longest * n:
            pools[-1] = ([*pool, i], at_once)
        else:
            pools.append(([i], at_once))
    return pools


def _check_finite(model: EditableModel, targets: Targets, facts: Sequence[Fact]) -> None:
    bad = ~(targets.z.isfinite().all(1) & targets.loss.isfinite())
    if bad.any():
        fact = facts[int(bad.nonzero()[0, 0])]
        raise NotFinite(
            f"fact {fact.id!r}: its target is not finite after {int(targets.steps[bad][0])} steps; {not_finite(model)}"
        )


def not_finite(model: EditableModel) -> str:
    """What to tell a user about numbers that are not finite: which parameter, in which layer, or that none is."""
    for path, weight in model.model.named_parameters():
        if not weight.isfinite().all():
            inside = path.removeprefix(f"{model.anatomy.layers}.")
            layer = f"layer {inside.partition('.')[0]}: " if inside != path else ""
            return f"{layer}{path} holds NaN or Inf; load the model anew, or undo the edit that broke it"
    return (
        f"no parameter holds NaN or Inf, so states overflow in {model.dtype}: earlier edits have made the weights grow "
        "(check their norms), or the model needs float32"
    )
